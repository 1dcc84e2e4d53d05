"""DOCX: headings, paragraphs, lists and tables of the main text, with insertions that are tracked.

Read from the package's XML itself: only the three parts that hold text are unpacked, each within a limit, so what else
is in the package cannot harm; and text in content controls and tracked insertions is found.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from lxml import etree

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.parsed import Limits, Outline, Parsed, file_title, too_large
from headway.lake.parsing.tables import table_row
from headway.lake.parsing.texts import one_line

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_STRICT = b"http://purl.oclc.org/ooxml/wordprocessingml/main"
_TRANSITIONAL = b"http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_MAIN_PART = "/officeDocument"
_HEADING = re.compile(r"heading ([1-9])\Z", re.IGNORECASE)
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_TEXTS = frozenset({f"{_W}t", f"{_MATH}t"})
_BREAKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
# What is gone, and what is there a second time for older programs.
_DROPPED = (f"{_W}del", f"{_W}moveFrom", "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback")
_FIELDS = ("creator", "subject", "keywords", "description")


class _Styles(NamedTuple):
    """Styles by their ids: the level of those for headings, 0 for the document's title; and those for list items."""

    levels: dict[str, int]
    lists: frozenset[str]


def parse_docx(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse a Word document."""
    if body.startswith(b"\xd0\xcf\x11\xe0"):
        message = "is encrypted, or in Word's old format: save it as .docx without a password"
        raise UnreadableDocumentError(message, code="document_encrypted")
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as package:
            name = _main_part(package, limits)
            document = _part(package, name, limits)
            styles = _part(package, posixpath.join(posixpath.dirname(name), "styles.xml"), limits)
            properties = _part(package, "docProps/core.xml", limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UnreadableDocumentError(f"is no sound DOCX package: {one_line(str(error))[:200]}") from None
    if document is None:
        raise UnreadableDocumentError("is no Word document: the package holds no main text")
    etree.strip_elements(document, *_DROPPED, with_tail=False)
    outline = Outline(limits)
    title = _write(document, _styles(styles), outline)
    sections = outline.sections()
    metadata = _properties(properties)
    own = metadata.pop("title", "")
    return Parsed(title or own or outline.first_heading or file_title(path), sections, metadata)


def _main_part(package: zipfile.ZipFile, limits: Limits) -> str:
    relations = _part(package, "_rels/.rels", limits)
    for relation in [] if relations is None else relations:
        if str(relation.get("Type", "")).endswith(_MAIN_PART):
            return str(relation.get("Target", "")).lstrip("/")
    return "word/document.xml"


def _part(package: zipfile.ZipFile, name: str, limits: Limits) -> Any:
    """Unpack and parse one part; None if it is not there."""
    limit = limits.expanded_bytes
    try:
        with package.open(name) as member:
            xml = member.read(limit + 1)
    except KeyError:
        return None
    if len(xml) > limit:
        raise too_large(f"more than {limit:,} bytes when {name} is unpacked", f"{limit:,}")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True, remove_pis=True
    )
    try:
        tree = etree.fromstring(xml.replace(_STRICT, _TRANSITIONAL), parser)
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from None
        raise UnreadableDocumentError(f"its part {name} is not sound XML: {one_line(str(error))[:200]}") from None
    if tree.getroottree().docinfo.doctype:
        raise UnreadableDocumentError(f"its part {name} declares a document type, which no Word document does")
    return tree


def _styles(styles: Any) -> _Styles:
    own: dict[str, int | None] = {}
    lists = set()
    based: dict[str, str] = {}
    for style in [] if styles is None else styles.iter(f"{_W}style"):
        identifier = style.get(f"{_W}styleId", "")
        name = _value(style.find(f"{_W}name"))
        outlined = _value(style.find(f"{_W}pPr/{_W}outlineLvl"))
        heading = _HEADING.match(name)
        if name.lower() == "title":
            own[identifier] = 0
        elif heading:
            own[identifier] = int(heading[1])
        elif outlined.isdigit():
            own[identifier] = int(outlined) + 1 if int(outlined) < 9 else None
        if style.find(f"{_W}pPr/{_W}numPr") is not None:
            lists.add(identifier)
        based[identifier] = _value(style.find(f"{_W}basedOn"))
    levels = {}
    for identifier in based:
        ancestor = identifier
        for _ in range(10):
            if ancestor in own or ancestor not in based:
                break
            ancestor = based[ancestor]
        level = own.get(ancestor)
        if level is not None:
            levels[identifier] = level
    return _Styles(levels, frozenset(lists))


def _write(document: Any, styles: _Styles, outline: Outline) -> str:
    """Write the main text; returns the text set as the document's title."""
    title = ""
    in_list = False
    for block in _blocks(document.find(f"{_W}body")):
        if block.tag == f"{_W}tbl":
            outline.add("\n".join(_rows(block)))
            in_list = False
            continue
        text = _text(block).strip()
        if not text:
            continue
        style = _value(block.find(f"{_W}pPr/{_W}pStyle"))
        level = _level(block, styles.levels.get(style))
        if level is not None:
            title = title or (one_line(text) if level == 0 else "")
            outline.enter(level + 1, text)
            in_list = False
        else:
            item = style in styles.lists or block.find(f"{_W}pPr/{_W}numPr") is not None
            outline.add("- " + text if item else text, tight=item and in_list)
            in_list = item
    return title


def _blocks(container: Any) -> Iterator[Any]:
    """Paragraphs and tables in their order, out of whatever wraps them."""
    for element in () if container is None else container:
        if element.tag in (f"{_W}p", f"{_W}tbl"):
            yield element
        else:
            yield from _blocks(element)


def _level(paragraph: Any, of_style: int | None) -> int | None:
    outlined = _value(paragraph.find(f"{_W}pPr/{_W}outlineLvl"))
    return int(outlined) + 1 if outlined.isdigit() and int(outlined) < 9 else of_style


def _text(element: Any) -> str:
    parts = []
    for part in element.iter(f"{_W}r", f"{_MATH}r", f"{_W}p"):
        if part.tag == f"{_W}p":  # the paragraph itself, one of a cell, or one in a text box
            parts.append("\n")
            continue
        parts += [_BREAKS.get(piece.tag) or piece.text or "" for piece in part if piece.tag in _TEXTS | _BREAKS.keys()]
    return "".join(parts)


def _rows(table: Any) -> Iterator[str]:
    for row in _inner(table, f"{_W}tbl", f"{_W}tr"):
        cells = [_text(cell) for cell in _inner(row, f"{_W}tr", f"{_W}tc")]
        if any(cell.strip() for cell in cells):
            yield table_row(cells)


def _inner(outer: Any, kind: str, tag: str) -> Iterator[Any]:
    """The elements of a tag in another of that kind, without those of the same kind further in."""
    return (element for element in outer.iter(tag) if next(element.iterancestors(kind)) is outer)


def _properties(core: Any) -> dict[str, Any]:
    found = {}
    for element in [] if core is None else core:
        name = etree.QName(element).localname
        text = one_line(element.text or "")
        if text and name in ("title", *_FIELDS):
            found["author" if name == "creator" else name] = text
    return found


def _value(element: Any) -> str:
    return "" if element is None else str(element.get(f"{_W}val", ""))
