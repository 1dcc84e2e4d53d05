"""PDF: the text of each page, under the bookmarks that lead to it."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

import pypdfium2

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.parsed import Limits, Outline, Parsed, file_title, too_large
from headway.lake.parsing.texts import one_line

_JOINED = "\x02"  # PDFium's mark between the parts of a word that was broken at a line's end
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_BOOKMARKS = 10_000
_BOOKMARK_LEVELS = 6
_NUMBER_CHARACTERS = 12  # in front of a heading, as in "Chapter 12.3"
_NEEDS_PASSWORD = (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY)
_FIELDS: Mapping[str, str] = MappingProxyType({"author": "Author", "subject": "Subject", "keywords": "Keywords"})


def parse_pdf(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse a PDF: sections by its bookmarks and pages; the last heading of each is ``page N``.

    PDFium is not made for threads: one PDF at a time in a process.
    """
    try:
        document = pypdfium2.PdfDocument(body)
    except pypdfium2.PdfiumError as error:
        if error.err_code in _NEEDS_PASSWORD:
            message = "is encrypted: save it without a password"
            raise UnreadableDocumentError(message, code="document_encrypted") from None
        raise UnreadableDocumentError(f"is no sound PDF: {error}") from None
    try:
        return _parse(path, document, limits)
    finally:
        document.close()


def _parse(path: str, document: pypdfium2.PdfDocument, limits: Limits) -> Parsed:
    pages = len(document)
    if pages > limits.pages:
        raise too_large(f"{pages:,} pages", f"{limits.pages:,}")
    outline = Outline(limits)
    bookmarks = _bookmarks(document)
    for page in range(pages):
        text, begin = _text(document, page), 0
        for level, title in bookmarks[page]:
            end = _place(title, text, begin)
            _add(text[begin:end], page, outline)
            outline.enter(level, title)
            begin = end
        _add(text[begin:], page, outline)
    try:
        sections = outline.sections()
    except UnreadableDocumentError as error:
        if error.error_code != "document_empty":
            raise
        message = f"holds no text on its {pages:,} pages: it seems to be scanned; run text recognition (OCR) over it"
        raise UnreadableDocumentError(message, code="document_empty") from None
    fields = {name: one_line(text) for name, text in document.get_metadata_dict().items()}
    metadata = {name: fields[key] for name, key in _FIELDS.items() if fields.get(key)}
    return Parsed(fields.get("Title") or file_title(path), sections, {**metadata, "pages": pages})


def _text(document: pypdfium2.PdfDocument, number: int) -> str:
    try:
        page = document[number]
    except pypdfium2.PdfiumError as error:
        raise UnreadableDocumentError(f"its page {number + 1} is damaged: {error}") from None
    text = page.get_textpage()
    try:
        read: str = text.get_text_bounded()
    finally:
        text.close()
        page.close()
    return read.replace("\r\n", "\n").replace(_JOINED, "").translate(_LIGATURES)


def _add(text: str, page: int, outline: Outline) -> None:
    if text.strip():
        outline.enter(_BOOKMARK_LEVELS + 1, f"page {page + 1}")
        outline.add(text)


def _bookmarks(document: pypdfium2.PdfDocument) -> Mapping[int, list[tuple[int, str]]]:
    """Level, from 1, and title of the bookmarks to each page, from 0."""
    found: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for bookmark in itertools.islice(document.get_toc(max_depth=_BOOKMARK_LEVELS), _BOOKMARKS):
        target = bookmark.get_dest()
        page = target.get_index() if target else None
        if page is not None:
            found[page].append((min(bookmark.level + 1, _BOOKMARK_LEVELS), bookmark.get_title()))
    return found


def _place(title: str, text: str, begin: int) -> int:
    """Where on the page a bookmark's section begins: at the line with its title, else where the last one did."""
    words = re.findall(r"\w+", title)[:20]  # marks between them differ: quotes, hyphens
    found = re.compile(r"\W+".join(words)).search(text, begin) if words else None
    if found is None:
        return begin
    line = text.rfind("\n", begin, found.start()) + 1
    return max(line, begin) if found.start() - line <= _NUMBER_CHARACTERS else found.start()
