"""What the demo shows: steps, answers as they stream in, ratings, and what was recorded in the end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from headway.cli.demo.visitors import Question, Verdict
from headway.clock import Clock

_COLOURS = ("cyan", "magenta", "yellow", "green", "blue")
_NAME_WIDTH = 6
_RELEASE_WIDTH = 8
_INDENT = _NAME_WIDTH + _RELEASE_WIDTH + 2
_SCORE_WIDTH = 10
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s")


class Source(NamedTuple):
    """A passage that an answer cites: its document's title and path, fit (0 to 1), index version, text."""

    title: str
    document: str
    score: float
    version: str
    text: str


class Reading(NamedTuple):
    """A question, what the model says to it by itself, and what it says from documents: ``sources``."""

    question: str
    bare: str
    answer: str
    sources: tuple[Source, ...]


@dataclass
class _Talk:
    """A visitor in front of the desk: the question and what has come of the answer."""

    question: str = ""
    release: str = ""
    answer: str = ""


@dataclass
class Screen:
    """Shows the demo on a terminal; into a pipe it prints the same without moving parts."""

    console: Console
    clock: Clock
    _colours: dict[str, str] = field(default_factory=dict)
    _talks: dict[str, _Talk] = field(default_factory=dict)

    def title(self) -> None:
        """Say what is going to happen."""
        self.console.print()
        self.console.rule("[bold]Headway[/bold]: two releases of one application, side by side", align="left")
        self.console.print()

    def heading(self, text: str) -> None:
        """Start a part."""
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def say(self, text: str) -> None:
        """Print a remark."""
        self.console.print(Text(text, style="dim"))

    @contextmanager
    def step(self, doing: str) -> Iterator[list[str]]:
        """Show that something is under way, then how long it took.

        Yields:
            A list; what is appended to it is shown as the result.
        """
        notes: list[str] = []
        started = self.clock.monotonic_seconds()
        with self._spinner(Text(doing)):
            yield notes
        line = Text.assemble(("✓ ", "green"), doing)
        if notes:
            line.append(": " + ", ".join(notes))
        line.append(f"  {self.clock.monotonic_seconds() - started:.1f} s", "dim")
        self.console.print(line)

    @contextmanager
    def command(self, line: str) -> Iterator[None]:
        """Show a command while it runs; what it prints comes after it."""
        self.console.print(Text.assemble(("$ ", "dim"), (line, "bold")))
        with self._spinner(Text("")):
            yield

    def _spinner(self, text: Text) -> Live:
        return Live(Spinner("dots", text), console=self.console, transient=True, refresh_per_second=10)

    def shell(self, line: str, remark: str = "") -> None:
        """Show a command to type, whole, so that it can be copied."""
        self.console.print(
            Text.assemble(("  ", ""), (line, "bold"), (f"   # {remark}" if remark else "", "dim")), soft_wrap=True
        )

    @contextmanager
    def talks(self) -> Iterator[None]:
        """Show the visitors' talks while the block runs."""
        with Live(get_renderable=self._render, console=self.console, transient=True, refresh_per_second=12):
            yield

    def ask(self, visitor: str, question: Question) -> None:
        """A visitor asks."""
        self._talks[visitor] = _Talk(question.text)

    def hear(self, visitor: str, release: str, answer: str) -> None:
        """A part of the answer came; ``answer`` is all of it so far."""
        talk = self._talks[visitor]
        talk.release, talk.answer = release, answer

    def rate(self, visitor: str, verdict: Verdict, remark: str) -> None:
        """The answer is complete and rated: print it for good."""
        talk = self._talks.pop(visitor)
        thumb, colour = ("👍", "green") if verdict.good else ("👎", "red")
        answer = Text.assemble(" ".join(talk.answer.split()), "\n", (f"{thumb} {verdict.reason}", colour))
        if remark:
            answer.append(f"  “{remark}”", "italic")
        self.console.print(self._asked(visitor, talk))
        self.console.print(Padding(answer, (0, 0, 0, _INDENT), expand=False))

    def fail(self, visitor: str, problem: str) -> None:
        """There was no answer."""
        talk = self._talks.pop(visitor)
        self.console.print(self._asked(visitor, talk))
        self.console.print(Padding(Text(f"✗ {problem}", "red"), (0, 0, 0, _INDENT), expand=False))

    def quote(self, reading: Reading) -> None:
        """Print an answer from documents, with what it cites, next to the model's own."""
        bare = " ".join(reading.bare.split())
        self.console.print(Text.assemble("\n", (reading.question, "bold")))
        for label, style, words in (("alone", "dim", bare), ("grounded", "green", " ".join(reading.answer.split()))):
            line = Table.grid(padding=(0, 1))
            line.add_column(width=_INDENT - 1)
            line.add_column(overflow="fold")
            line.add_row(Text(f"  {label}", "dim"), Text(words, style))
            self.console.print(line)
        for number, source in enumerate(reading.sources, start=1):
            filled = round(source.score * _SCORE_WIDTH)
            head = Text.assemble(
                (f"[{number}] ", "cyan"),
                (source.title, "bold cyan"),
                (f"  {source.document}  ", "dim"),
                ("█" * filled, "cyan"),
                ("░" * (_SCORE_WIDTH - filled), "dim"),
                f" {source.score:.2f}  ",
                (source.version, "magenta"),
            )
            text = Text(f"    {excerpt(source.text, reading.answer)}", "dim italic", no_wrap=True, overflow="ellipsis")
            self.console.print(Padding(Group(head, text), (0, 0, 0, _INDENT)))
        if not reading.sources:
            self.console.print(Padding(Text("no passage fits: no model was asked", "yellow"), (0, 0, 0, _INDENT)))

    def _render(self) -> RenderableType:
        rows: list[RenderableType] = []
        room = max(20, self.console.width - _INDENT - 2)
        for visitor, talk in list(self._talks.items()):  # drawn by a thread of its own
            words = " ".join(talk.answer.split())
            shown = words if len(words) <= room else "…" + words[1 - room :]
            rows.append(self._asked(visitor, talk))
            rows.append(Padding(Text(shown + "▌", "dim"), (0, 0, 0, _INDENT)))
        return Group(*rows)

    def _asked(self, visitor: str, talk: _Talk) -> Text:
        release = Text(f"{talk.release:<{_RELEASE_WIDTH}} ", self._colour(talk.release))
        return Text.assemble((f"{visitor:<{_NAME_WIDTH}} ", "bold"), release, (talk.question, "bold"))

    def _colour(self, release: str) -> str:
        if not release:
            return ""
        return self._colours.setdefault(release, _COLOURS[len(self._colours) % len(_COLOURS)])

    def compare(self, title: str, figures: Mapping[str, Mapping[str, str]]) -> None:
        """Print figures by release, side by side; each release has the same ones."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        table.add_column("release")
        for release in figures:
            table.add_column(Text(release, self._colour(release)), justify="right")
        for name in next(iter(figures.values()), {}):
            table.add_row(name, *(of_release[name] for of_release in figures.values()))
        self.console.print()
        self.console.print(table)


def excerpt(passage: str, answer: str) -> str:
    """Give a passage on one line, from the sentence on that shares the most words with an answer.

    Example:
        >>> excerpt("Some are red. Others are green, most are blue. None is black.", "Most are blue")
        '… Others are green, most are blue. None is black.'
    """
    words = set(_WORD.findall(answer.lower()))
    sentences = _SENTENCE.split(" ".join(passage.split()))
    shared = [len(words & set(_WORD.findall(sentence.lower()))) for sentence in sentences]
    first = shared.index(max(shared))
    return ("… " if first else "") + " ".join(sentences[first:])
