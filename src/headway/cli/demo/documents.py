"""The demo's documents: Headway's own manual, which comes with it, as a data lake to build indexes over."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import msgspec

INDEX = "handbook"
INCLUDED = ("howto/*.md", "decisions/*.md", "glossary.md")
"""The subset that the index is built over, as headway.yaml has it."""
LEFT_OUT = ("howto/run-in-production.md", "howto/collect-feedback.md")
"""What its second version lacks."""
APPLICATION = "guide"

QUESTIONS = (
    "What happens to requests when the database is away?",
    "What do replicas share?",
    "Does a page need an API key to rate an answer?",
    "Who won the football match yesterday?",
)
"""What a reader asks; the last one is answered nowhere in them."""

_HEADING = re.compile(r"^(#{1,3}) +(.+?)\s*$", re.MULTILINE)
_CHECKOUT = Path(__file__).parents[4]


def locate_manual() -> Path:
    """Find the manual: that of the checkout which Headway is installed from, or the one in its wheel."""
    if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "docs" / "glossary.md").is_file():
        return _CHECKOUT / "docs"
    return Path(str(resources.files(__package__).joinpath("files", "docs")))


def lay_out(lake: Path) -> int:
    """Copy the manual into a folder, once: what is in it then is the visitor's to change.

    Returns:
        How many documents are in the folder.
    """
    if not lake.exists():
        manual, new = locate_manual(), lake.with_name(f"{lake.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        for document in manual.rglob("*.md"):
            copy = new / document.relative_to(manual)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(document, copy)
        new.rename(lake)
    return sum(1 for path in lake.rglob("*") if path.is_file())


def find_questions(lake: Path) -> Mapping[str, str]:
    """Make questions of the headings of the documents in the index: each with the document that answers it."""
    found: dict[str, str] = {}
    for pattern in INCLUDED:
        for document in sorted(lake.glob(pattern)):
            headings = [heading for _, heading in _HEADING.findall(document.read_text(encoding="utf-8"))]
            for heading in headings[1:]:
                found[f"{headings[0]}: {heading}"] = document.relative_to(lake).as_posix()
    return found


def write_questions(path: Path, questions: Mapping[str, str]) -> None:
    """Write questions, with the documents that answer them, as `headway index compare` reads them."""
    lines = [
        msgspec.json.encode({"query": question, "relevant": [document]}) for question, document in questions.items()
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
