"""Cuts a document's sections into chunks of at most so many tokens, along its structure.

A chunk is a slice of one section, or whole neighbouring sections under one heading. Sections under different top
headings are never put together. A section that is too long is cut between paragraphs where the chunk is then at least
half full, else between sentences (lines, in code and tables), else between words, and only then within a word; a code
block or table that fits into a chunk is kept whole. From one slice of a section to the next, up to ``overlap`` tokens
are repeated, whole sentences if they fit, else whole words. Nothing is lost: every section's text is in its chunks,
in order.

Pure: the same input gives the same chunks on every machine.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from headway.domain.knowledge import Chunk, Section

Count = Callable[[str], int]

_TOKEN = re.compile(r"[A-Za-z]{1,6}|[\u0370-\u1fff]{1,3}|\S")
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*\Z)|~{3,})")
_SENTENCE_END = re.compile(
    r"""[.!?…]["'”’»)\]]*\s+"""  # a sentence, and what closes around it
    r"|[。！？]"
    r"|\n[ \t]*\n\s*"
    r"|\n(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t])"  # the next item of a list
)
_WORD_END = re.compile(r"\s+")
_MINIMUM_TOKENS = 16
_REPEATED_CHARACTERS = 12  # looked at for each token of overlap
_LONG_CHARACTERS = 40  # for each token of a chunk: no use to count such a section before it is cut

_Kind = Literal["text", "solid", "sentence", "line", "words"]
_FLOWING = frozenset({"text", "sentence", "words"})


class _Span(NamedTuple):
    """A slice of a section's text; solid is a code block or a table."""

    begin: int
    end: int
    kind: _Kind
    tokens: int


class _Sized(NamedTuple):
    """A section, the tokens of its text, and about those it has where others stand beside it."""

    section: Section
    tokens: int
    among_others: int


_Piece = tuple[tuple[str, ...], str, int]  # headings, text, tokens


def approximate_tokens(text: str) -> int:
    """Count tokens without a model's vocabulary: a token for every six letters of a word, each digit and each mark.

    Within some 10 % of Llama 2's tokenizer on English, code and markup; letters of other scripts count one each, or
    one for three where the script is alphabetic. Newer vocabularies need fewer.
    """
    return len(_TOKEN.findall(text))


def embedded_text(title: str, heading: str, text: str) -> str:
    """What is embedded for a chunk, and hashed: its document's title, its headings, its text."""
    if f"{heading} > ".startswith(f"{title} > "):
        title = ""
    return "\n".join(part for part in (title, heading, text) if part)


def chunk(
    document_title: str,
    sections: Sequence[Section],
    *,
    tokens: int = 256,
    overlap: int = 32,
    count: Count = approximate_tokens,
) -> list[Chunk]:
    """Cut a document into chunks, in order.

    Args:
        document_title: Goes into each chunk's hash, with its headings.
        sections: The document's.
        tokens: The most that a chunk's text may have, at least 16.
        overlap: The most that is repeated from one chunk of a section in its next, at most half of ``tokens``.
        count: Gives a text's tokens.

    Raises:
        ValueError: ``tokens`` or ``overlap`` is out of range.
    """
    if tokens < _MINIMUM_TOKENS or not 0 <= overlap <= tokens // 2:
        raise ValueError(f"chunks need at least {_MINIMUM_TOKENS} tokens and an overlap of at most half of them")
    chunks: list[Chunk] = []
    for headings, text, size in _Cutter(tokens, overlap, count).cut(sections):
        heading = " > ".join(headings)
        content_hash = hashlib.sha256(embedded_text(document_title, heading, text).encode()).hexdigest()
        chunks.append(Chunk(len(chunks), heading, text, size, content_hash))
    return chunks


class _Cutter:
    """Gives headings, text and tokens of each chunk.

    Counts of parts are added up to decide what goes together; what goes out is counted as a whole, and cut again in
    the rare case that it has more.
    """

    def __init__(self, tokens: int, overlap: int, count: Count) -> None:
        self._tokens = tokens
        self._overlap = overlap
        self._count = count

    def cut(self, sections: Sequence[Section]) -> Iterator[_Piece]:
        """Cut a whole document."""
        sized = []
        for section in sections:
            # No need to count what is surely too long.
            short = len(section.text) <= self._tokens * _LONG_CHARACTERS
            size = self._count(section.text) if short else self._tokens + 1
            mark = self._count(section.headings[-1]) + 2 if section.headings else 1
            sized.append(_Sized(section, size, size + mark))
        return self._pack(sized, 0)

    def _pack(self, group: Sequence[_Sized], depth: int) -> Iterator[_Piece]:
        """Put neighbours together as long as they fit; all of the group share ``depth`` headings."""
        run: list[_Sized] = []
        used = 0
        for part in _parts(group, depth):
            size = sum(each.among_others for each in part)
            related = depth or not run or not (run[-1].section.headings or part[0].section.headings)
            if related and used + size <= self._tokens:
                run += part
                used += size
                continue
            yield from self._whole(run)
            run, used = [], 0
            if size <= self._tokens or (len(part) == 1 and part[0].tokens <= self._tokens):
                run, used = part, size
            elif len(part) == 1:
                yield from self._slices(part[0].section)
            else:
                yield from self._pack(part, depth + 1)
        yield from self._whole(run)

    def _whole(self, run: Sequence[_Sized]) -> Iterator[_Piece]:
        """Make one chunk of whole sections."""
        sections = [each.section for each in run]
        if not any(section.text.strip() for section in sections):
            return
        shared = _shared([section.headings for section in sections])
        text = _together(sections, len(shared)) if len(run) > 1 else sections[0].text.strip()
        size = self._count(text)
        if size <= self._tokens:
            yield shared, text, size
        elif len(run) > 1:
            middle = len(run) // 2
            yield from self._whole(run[:middle])
            yield from self._whole(run[middle:])
        else:
            yield from self._slices(sections[0])

    def _slices(self, section: Section) -> Iterator[_Piece]:
        """Cut one section into slices of its text."""
        text = section.text.strip()
        waiting = deque(self._spans(text, _blocks(text), 0))
        begin = end = used = 0  # the slice that is open, and the tokens of its spans
        flowing = repeating = False  # its last span can be repeated; all it has is repeated
        while waiting:
            span = waiting.popleft()
            if not text[span.begin : span.end].strip():
                end = span.end
                continue
            if used + span.tokens > self._tokens:
                finer = self._finer(text, span, used)
                if finer:
                    waiting.extendleft(reversed(finer))
                    continue
                if begin < end:
                    if not repeating:
                        yield from self._fitting(section.headings, text[begin:end])
                    repeats = not repeating and flowing and span.kind in _FLOWING
                    begin, used = self._repeated(text, begin, end) if repeats else (end, 0)
                    repeating = begin < end
                    waiting.appendleft(span)
                    continue
            end, used = span.end, used + span.tokens
            flowing, repeating = span.kind in _FLOWING, False
        if not repeating:
            yield from self._fitting(section.headings, text[begin:end])

    def _spans(self, text: str, ends: Iterable[tuple[int, _Kind]], begin: int) -> Iterator[_Span]:
        """Count the slices that end there."""
        for end, kind in ends:
            yield _Span(begin, end, kind, self._count(text[begin:end]))
            begin = end

    def _finer(self, text: str, span: _Span, used: int) -> list[_Span]:
        """Cut a span that does not fit beside so many tokens; empty if it is better left whole."""
        too_long = span.tokens > self._tokens
        kind = span.kind
        ends: list[int] = []
        if kind == "solid" and too_long:
            kind = "line"
            ends = [found.end() for found in re.compile("\n").finditer(text, span.begin, span.end)]
        elif kind == "text" and (too_long or 2 * used < self._tokens):
            kind = "sentence"
            ends = [found.end() for found in _SENTENCE_END.finditer(text, span.begin, span.end)]
        ends = [end for end in ends if end < span.end]
        if not ends and too_long and span.end - span.begin > 1:
            kind = "words"
            ends = self._word_ends(text, span)
        return list(self._spans(text, ((end, kind) for end in [*ends, span.end]), span.begin)) if ends else []

    def _word_ends(self, text: str, span: _Span) -> list[int]:
        """Where to cut what has no sentences into about equal parts that leave room for the overlap."""
        length = span.end - span.begin
        wanted = (self._tokens - self._overlap) * 9 // 10  # tokens are not spread evenly
        step = min(length - 1, max(1, length * wanted // span.tokens))
        ends = []
        begin = span.begin
        while begin + step < span.end:
            begin = max(text.rfind(" ", begin, begin + step), text.rfind("\n", begin, begin + step)) + 1 or begin + step
            ends.append(begin)
        return ends

    def _repeated(self, text: str, begin: int, end: int) -> tuple[int, int]:
        """Where in a slice the part begins that the next one repeats, and its tokens: whole sentences, else words."""
        first = max(begin + 1, end - self._overlap * _REPEATED_CHARACTERS)
        best = end, 0
        for ends in (_SENTENCE_END, _WORD_END):
            places = [found.end() for found in ends.finditer(text, first, end) if found.end() < end]
            for place in reversed(places):
                size = self._count(text[place:end])
                if size > self._overlap:
                    break
                best = place, size
            if best[1]:
                break
        return best

    def _fitting(self, headings: tuple[str, ...], text: str) -> Iterator[_Piece]:
        """Give a slice; in parts if as a whole it has more tokens than its spans have together."""
        text = text.strip()
        size = self._count(text)
        if size <= self._tokens or len(text) <= 1:
            if text:
                yield headings, text, size
            return
        begin = 0
        for end in [*self._word_ends(text, _Span(0, len(text), "words", size)), len(text)]:
            yield from self._fitting(headings, text[begin:end])
            begin = end


def _parts(group: Sequence[_Sized], depth: int) -> Iterator[list[_Sized]]:
    """Neighbours that share one more heading; a section that has no more is by itself."""

    def name(numbered: tuple[int, _Sized]) -> tuple[str, ...] | int:
        number, each = numbered
        headings = each.section.headings
        return headings[: depth + 1] if len(headings) > depth else number

    for _, part in itertools.groupby(enumerate(group), name):
        yield [each for _, each in part]


def _shared(headings: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The headings that all begin with."""
    alike = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*headings, strict=False))
    return tuple(names[0] for names in alike)


def _together(sections: Sequence[Section], depth: int) -> str:
    """The text of neighbouring sections, each under its headings below the ones they share."""
    blocks = []
    before: tuple[str, ...] = ()
    for section in sections:
        headings = section.headings
        known = max(depth, len(_shared([before, headings])))
        blocks += ["#" * min(level + 1, 6) + " " + headings[level] for level in range(known, len(headings))]
        blocks.append(section.text.strip())
        before = headings
    return "\n\n".join(block for block in blocks if block)


def _blocks(text: str) -> Iterator[tuple[int, _Kind]]:
    """Where paragraphs, tables and fenced code end, blank lines after them included."""
    at = 0
    kind: _Kind | None = None
    fence = ""
    blank = False
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if fence:
            if bare.startswith(fence) and not bare.strip(fence[0]):
                fence, blank = "", True  # what follows is another block
        elif not bare:
            blank = True
        else:
            opens = _FENCE.match(line.rstrip())
            if kind and (blank or opens):
                yield at, kind
                kind = None
            if opens:
                fence = opens[1]
            kind = kind or ("solid" if opens or bare.startswith("|") else "text")
            blank = False
        at += len(line)
    if at:
        yield at, kind or "text"
