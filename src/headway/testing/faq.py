"""Real questions with known answers: the FAQ documents of Debian's packages python3.11-doc, perl-doc and debian-faq.

About 600 question headings, each with the section that answers it, to measure how well a search finds things. Two lakes
can be written of them:

* of *pages*: the documents as they are, a question's heading above its answer. For whole applications; a search for a
  heading is easy.
* of *answers*: a document for every question, in which the question itself is left out. For measuring: what is asked
  and what answers it share no more words than they happen to.

``make test`` fetches the packages; nothing is installed::

    faq = load_faq()
    faq.write_answers(folder)  # then build an index over it
    for question in faq.questions:
        found = await retriever.retrieve(question.text, retrieval, frozenset())
        relevant, ranked = {question.path}, [passage.document for passage in found.passages]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from headway.domain.knowledge import Section
from headway.errors import ConfigurationError
from headway.lake.parsing.documents import parse

# Without a question mark: "I copied the Perl binary ... but scripts don't work."
_ASKS = re.compile(r"\?|^(?:I|My|How)\b")
_NUMBER = re.compile(r"^(?:Chapter )?[\d.]+\s+")  # of a section
_PERL = re.compile(r"perlfaq[1-9]\.pod")


class Question(msgspec.Struct, frozen=True):
    """A question and where its answer is.

    Attributes:
        text: As somebody asks it: the heading, without a section's number.
        answer: The text of its section, those below it included.
        page: Path of its page among the pages.
        heading: The headings of its section, joined by " > ", as those of the page's chunks begin.
        path: Path of its answer among the answers.
        title: Of its page.
    """

    text: str
    answer: str
    page: str
    heading: str
    path: str
    title: str


class Page(msgspec.Struct, frozen=True):
    """A document, as it is written into a lake."""

    path: str
    body: bytes


class Faq(msgspec.Struct, frozen=True):
    """All pages and their questions, in the order of their paths."""

    pages: tuple[Page, ...]
    questions: tuple[Question, ...]

    def write_pages(self, folder: Path) -> None:
        """Write the pages into a folder, to build an index over."""
        for page in self.pages:
            _write(folder / page.path, page.body)

    def write_answers(self, folder: Path, *, without: Collection[str] = ()) -> None:
        """Write a document for each question into a folder: its answer, under the title of its page.

        Args:
            folder: Where to.
            without: Paths of those to leave out.
        """
        for question in self.questions:
            if question.path not in without:
                _write(folder / question.path, f"# {question.title}\n\n{question.answer}\n".encode())


def locate_faq() -> Path:
    """Find the unpacked packages.

    Raises:
        ConfigurationError: They are not there; says how to fetch them.
    """
    root = Path(sys.prefix) / "share" / "faq"
    if not (root / "usr" / "share" / "doc" / "debian" / "FAQ").is_dir():
        raise ConfigurationError("the FAQ documents are not there: run `make test` once, on Debian or a relative of it")
    return root


def load_faq(root: Path | None = None) -> Faq:
    """Read the pages and their questions.

    Args:
        root: Where the packages are unpacked; None: where ``make`` does it.

    Raises:
        ConfigurationError: They are not there.
    """
    share = (root or locate_faq()) / "usr" / "share"
    pages: list[Page] = []
    questions: list[Question] = []
    for path, body in sorted(_read(share)):
        parsed = parse(path, body)
        found = list(_find_questions(path, parsed.title, parsed.sections))
        if found:
            pages.append(Page(path, body))
            questions += found
    return Faq(tuple(pages), tuple(questions))


def _read(share: Path) -> Iterator[tuple[str, bytes]]:
    for path in share.glob("doc/python3.[0-9][0-9]/html/faq/*.html"):
        yield f"python/{path.name}", path.read_bytes()
    for path in share.glob("doc/debian/FAQ/*.en.html"):
        yield f"debian/{path.name.removesuffix('.en.html')}.html", path.read_bytes()
    for path in share.glob("perl/*/pod/perlfaq*.pod"):
        if _PERL.fullmatch(path.name):
            yield f"perl/{path.stem}.md", pod_to_markdown(path.read_text("utf-8")).encode()


def _find_questions(page: str, title: str, sections: Sequence[Section]) -> Iterator[Question]:
    """Put sections together under the outermost heading that asks something."""
    stem = page.rpartition(".")[0]
    answers: dict[tuple[str, ...], list[str]] = {}
    for section in sections:
        for depth in range(1, len(section.headings)):  # the outermost heading is the page's title
            if _ASKS.search(section.headings[depth]):
                texts = answers.setdefault(section.headings[: depth + 1], [])
                if len(section.headings) > depth + 1:
                    texts.append("## " + section.headings[-1])
                texts.append(section.text)
                break
    for number, (headings, texts) in enumerate(answers.items()):
        answer = "\n\n".join(filter(None, texts))
        if answer:
            asked = _NUMBER.sub("", headings[-1])
            yield Question(asked, answer, page, " > ".join(headings), f"{stem}/{number:03}.md", _NUMBER.sub("", title))


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


# --- POD, the format of Perl's documentation ---

_HEADING = re.compile(r"=head([1-6])\s+(.*)", re.DOTALL)
_CODE = re.compile(r"([A-Z])(?:<<+\s(.*?)\s>>+|<([^<>]*)>)", re.DOTALL)
_ESCAPES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}
_HELD = str.maketrans("<>", "\ue000\ue001")  # while codes around are read
_FREED = str.maketrans("\ue000\ue001", "<>")


def pod_to_markdown(pod: str) -> str:
    """Write POD as Markdown: headings, paragraphs, lists and code; the first title becomes the outermost heading."""
    blocks: list[str] = []
    title = ""
    for block in re.split(r"\n[ \t]*\n", pod.replace("\r\n", "\n")):
        text = block.strip("\n")
        found = _HEADING.fullmatch(text)
        if found:
            name = _plain(" ".join(found[2].split()))
            blocks.append("#" * (int(found[1]) + 1) + " " + name)
        elif text.startswith("=item"):
            blocks.append("- " + _plain(text.removeprefix("=item").strip().removeprefix("*").strip()))
        elif text.startswith("=") or not text.strip():
            continue
        elif text[0] in " \t":
            if blocks and blocks[-1].startswith("```"):
                blocks[-1] = blocks[-1].removesuffix("\n```") + "\n\n" + text + "\n```"
            else:
                blocks.append(f"```\n{text}\n```")
        elif not title and blocks and blocks[-1] == "## NAME":
            title = _plain(" ".join(text.split()))
            blocks[-1] = "# " + title
        else:
            blocks.append(_plain(text))
    return "\n\n".join(blocks) + "\n"


def _plain(text: str) -> str:
    """Take formatting codes out, the innermost first."""
    while (plainer := _CODE.sub(_decode, text)) != text:
        text = plainer
    return text.translate(_FREED)


def _decode(found: re.Match[str]) -> str:
    code = found[1]
    inside: str = found[2] if found[2] is not None else found[3]
    match code:
        case "E":
            return _ESCAPES.get(inside, inside).translate(_HELD)
        case "X" | "Z":
            return ""
        case "L":
            shown, _, target = inside.rpartition("|")
            return shown or (target if "://" in target else target.replace("/", " ").replace('"', "").strip())
        case "C":
            return f"`{inside}`"
    return inside
