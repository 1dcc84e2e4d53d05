"""What parsing gives, within which limits, and the outline that parsers write into."""

from __future__ import annotations

import math
import posixpath
from datetime import date, time
from typing import Any

import msgspec

from headway.domain.knowledge import Section
from headway.errors import UnreadableDocumentError
from headway.lake.parsing.texts import clean, one_line

_HEADING_CHARACTERS = 300
_METADATA_DEPTH = 8
_INTEGER_BITS = 63


class Parsed(msgspec.Struct, frozen=True):
    """A parsed document.

    Attributes:
        title: Its own, or its file's name.
        sections: In reading order. Their text is plain, in Markdown's manner: a blank line between paragraphs, ``- ``
            before list items, code between fences, a table as lines that begin with ``|``.
        metadata: Front matter and the like; plain JSON values.
    """

    title: str
    sections: tuple[Section, ...]
    metadata: dict[str, Any] = {}


class Limits(msgspec.Struct, frozen=True):
    """What one document may cost; a document beyond a limit is refused whole, never cut.

    Attributes:
        body_bytes: Size of the file.
        characters: Length of all its text and headings together.
        sections: Number of sections: headings, rows of a CSV, records of a JSONL.
        pages: Pages of a PDF.
        expanded_bytes: Size of one unpacked part of a DOCX.
        cpu_seconds: Computing time, where it is parsed in a process of its own.
        memory_bytes: Address space of that process.
    """

    body_bytes: int = 256 * 2**20
    characters: int = 20_000_000
    sections: int = 200_000
    pages: int = 5_000
    expanded_bytes: int = 64 * 2**20
    cpu_seconds: float = 120.0
    memory_bytes: int = 2 * 2**30


def too_large(has: str, limit: str) -> UnreadableDocumentError:
    """The error of a document beyond a limit: ``too_large("6,000 pages", "5,000")``."""
    return UnreadableDocumentError(f"has {has}; at most {limit} are read: split it", code="document_too_large")


class Outline:
    """Collects sections under headings, cleaned, within the limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._headings: list[tuple[int, str]] = []
        self._blocks: list[str] = []
        self._sections: list[Section] = []
        self._characters = 0
        self._bare = False
        self.first_heading = ""

    def enter(self, level: int, heading: str) -> None:
        """Begin a section under a heading; 1 is the outermost level.

        What is too long for a heading (a paragraph set as one) becomes text.
        """
        name = one_line(heading)
        if not name:
            return
        if len(name) > _HEADING_CHARACTERS:
            self.add(name)
            return
        if self._headings and self._headings[-1][0] < level:
            self._bare = False  # the section below it has its heading too
        self.close()
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        self._headings.append((level, name))
        self._bare = True
        self._spend(len(name))
        self.first_heading = self.first_heading or name

    def add(self, text: str, *, tight: bool = False) -> None:
        """Add a block of text, apart from the one before by a blank line; ``tight`` for the next item of a list."""
        text = clean(text).strip("\n")
        if not text.strip():
            return
        self._spend(len(text))
        if self._blocks:
            self._blocks.append("\n" if tight else "\n\n")
        self._blocks.append(text)

    def close(self) -> None:
        """End the section that is open; a heading that nothing follows is a section without text."""
        if self._blocks or self._bare:
            if len(self._sections) >= self._limits.sections:
                raise too_large(f"more than {self._limits.sections:,} sections", f"{self._limits.sections:,}")
            self._sections.append(Section(tuple(name for _, name in self._headings), "".join(self._blocks)))
        self._blocks, self._bare = [], False

    def reset(self) -> None:
        """End the section and leave all headings."""
        self.close()
        self._headings = []

    def sections(self) -> tuple[Section, ...]:
        """All sections, in order.

        Raises:
            UnreadableDocumentError: There is no text in any.
        """
        self.close()
        if not any(section.text for section in self._sections):
            raise UnreadableDocumentError("holds no text", code="document_empty")
        return tuple(self._sections)

    def _spend(self, characters: int) -> None:
        self._characters += characters
        if self._characters > self._limits.characters:
            limit = f"{self._limits.characters:,}"
            raise too_large(f"more than {limit} characters of text", limit)


def file_title(path: str) -> str:
    """The title of a document that names none: its file's name, without the ending."""
    name = clean(posixpath.splitext(posixpath.basename(path))[0])
    return one_line(name) or path


def plain(value: Any, depth: int = 0) -> Any:
    """Turn what a file says of itself into JSON values that PostgreSQL keeps: dates as ISO 8601, the rest as text."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _INTEGER_BITS else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if depth < _METADATA_DEPTH and isinstance(value, dict):
        return {clean(str(key)): plain(item, depth + 1) for key, item in value.items()}
    if depth < _METADATA_DEPTH and isinstance(value, (list, tuple, set)):
        return [plain(item, depth + 1) for item in value]
    return clean(str(value))
