"""reStructuredText: headings, code blocks and text; without comments, targets and directives that only lay out.

A small reader that knows headings and explicit markup, not docutils: what is inside a paragraph stays as it is written,
and a mistake in the markup costs no text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from types import MappingProxyType

from headway.lake.parsing.parsed import Limits, Outline, Parsed, file_title
from headway.lake.parsing.tables import fenced
from headway.lake.parsing.texts import decode

_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*\Z")
_DIRECTIVE = re.compile(r"\.\. +([\w:+.-]+)::(?: +(.*))?\Z")
_NOTE = re.compile(r"\.\. +(\[[^\]]+\] .*)\Z")
_OPTION = re.compile(r" *:[\w-]+:")
_ITEM = re.compile(r" *(?:[-*+•]|\(?\w{1,3}[.)]) +| *")
_ROLE = re.compile(r":[\w:+.-]+:`[~!]?([^`<]+?)(?: +<[^`>]*>)?`")
_CODE = frozenset(
    {
        *("code", "code-block", "sourcecode", "parsed-literal", "math", "productionlist", "prompt", "doctest"),
        *("testcode", "testoutput"),
    }
)
_REMARKS: Mapping[str, str] = MappingProxyType(
    {
        **{name: name.capitalize() for name in ("note", "warning", "tip", "hint", "important", "caution", "danger")},
        "attention": "Attention",
        "error": "Error",
        "seealso": "See also",
    }
)
_CHANGES: Mapping[str, str] = MappingProxyType(
    {
        "versionadded": "New in version",
        "versionchanged": "Changed in version",
        "deprecated": "Deprecated since version",
    }
)
_LAYOUT = frozenset(
    {
        *("contents", "toctree", "index", "image", "raw", "meta", "include", "literalinclude", "highlight", "role"),
        *("default-role", "sectnum", "header", "footer", "currentmodule", "module", "tabularcolumns", "cssclass"),
        *("rst-class", "class", "testsetup", "testcleanup", "sectionauthor", "moduleauthor", "codeauthor"),
    }
)


def parse_rst(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse a reStructuredText file."""
    outline = Outline(limits)
    lines = [line.rstrip() for line in decode(body).expandtabs(8).split("\n")]
    _Reader(lines, outline).read(headings=True)
    sections = outline.sections()
    return Parsed(outline.first_heading or file_title(path), sections)


class _Reader:
    """Goes through some lines once, a block at a time."""

    def __init__(self, lines: list[str], outline: Outline) -> None:
        self._lines = lines
        self._outline = outline
        self._at = 0
        self._styles: list[tuple[str, bool]] = []  # of headings, in the order of their first use: that is their level

    def read(self, *, headings: bool) -> None:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if not line:
                self._at += 1
            elif line.startswith(" "):
                self._nested(self._indented(0))
            elif line == ".." or line.startswith(".. "):
                self._markup()
            elif not (headings and self._heading()):
                self._paragraph()

    def _line(self, at: int) -> str:
        return self._lines[at] if at < len(self._lines) else ""

    def _heading(self) -> bool:
        first, second, third = (self._line(self._at + ahead) for ahead in range(3))
        over, under = _ADORNMENT.match(first), _ADORNMENT.match(second)
        if over and second and third == first and len(first) >= len(second):
            title, style, used = second, (first[0], True), 3
        elif under and not over and len(second) >= min(len(first), 4):
            title, style, used = first, (second[0], False), 2
        elif over and not second and len(first) >= 4:  # a line across the page
            self._at += 1
            return True
        else:
            return False
        if style not in self._styles:
            self._styles.append(style)
        self._outline.enter(self._styles.index(style) + 1, _ROLE.sub(r"\1", title))
        self._at += used
        return True

    def _markup(self) -> None:
        line = self._lines[self._at]
        self._at += 1
        body = self._indented(0)
        directive, note = _DIRECTIVE.match(line), _NOTE.match(line)
        if note:
            self._add("\n".join([note[1], *body]))
        elif directive:
            name, argument = directive[1].rpartition(":")[2], directive[2] or ""
            while body and _OPTION.match(body[0]):
                body = body[1:]
            if name in _CODE:
                self._outline.add(fenced("\n".join(body), argument))
            elif name not in _LAYOUT:
                if name in _CHANGES:
                    argument = f"{_CHANGES[name]} {argument}:"
                elif name in _REMARKS:
                    argument = f"{_REMARKS[name]}: {argument}".strip()
                self._add(argument)
                self._nested(body)
        # All else that begins so is a comment, a target or a substitution: nobody sees it.

    def _paragraph(self) -> None:
        begin = self._at
        while self._line(self._at):
            self._at += 1
        lines = self._lines[begin : self._at]
        text = "\n".join(lines)
        if text.startswith(">>> "):
            self._outline.add(fenced(text))
        elif text.endswith("::"):
            column = _ITEM.match(lines[-1])
            self._add(text[:-1] if len(text) > 2 and not text[-3].isspace() else text[:-2])
            self._outline.add(fenced("\n".join(self._indented(column.end() if column else 0))))
        else:
            self._add(text)

    def _add(self, text: str) -> None:
        self._outline.add(_ROLE.sub(r"\1", text))

    def _nested(self, lines: list[str]) -> None:
        _Reader(lines, self._outline).read(headings=False)

    def _indented(self, column: int) -> list[str]:
        """The lines from here on that stand further right than a column, dedented."""
        begin = self._at
        margin = " " * (column + 1)
        while self._at < len(self._lines) and (not self._lines[self._at] or self._lines[self._at].startswith(margin)):
            self._at += 1
        return textwrap.dedent("\n".join(self._lines[begin : self._at])).split("\n")
