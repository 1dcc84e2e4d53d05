"""The demo's documents: Headway's own manual, which comes with it, as a data lake to build indexes over."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

INDEX = "handbook"
APPLICATION = "guide"

QUESTIONS = (
    "What happens to requests when the database is away?",
    "What do replicas share?",
    "What is a release identified by?",
    "Who won the football match yesterday?",
)
"""What a reader asks; the last one is answered nowhere in them."""

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
