"""HTML: title, headings and main text; without scripts, navigation, forms and what is hidden."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lxml import etree

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.parsed import Limits, Outline, Parsed, file_title
from headway.lake.parsing.tables import fenced, table_row
from headway.lake.parsing.texts import decode, one_line

_CHARSET = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([\w-]{1,40})|<\?xml[^>]{0,100}encoding=["']([\w-]{1,40})""", re.IGNORECASE
)
_DROPPED = (
    *("script", "style", "noscript", "template", "nav", "aside", "svg", "canvas", "iframe", "object", "embed", "audio"),
    *("video", "map", "dialog", "button", "select", "input", "textarea", "datalist", "progress", "meter"),
)
_HIDDEN = etree.XPath(
    "//*[@hidden or @aria-hidden='true' or @role='navigation' or @role='banner' or @role='contentinfo'"
    " or @role='search' or @role='complementary']"
)
_FRAME = etree.XPath(
    "//*[self::footer or self::header[not(.//h1)]][not(ancestor::main or ancestor::article or ancestor::section)]"
)
_MAIN = etree.XPath("//main | //*[@role='main']")
_ARTICLES = etree.XPath("//article[not(ancestor::article)]")
_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_BLOCKS = frozenset(
    {
        *(
            "address",
            "article",
            "blockquote",
            "body",
            "caption",
            "center",
            "dd",
            "details",
            "div",
            "dl",
            "dt",
            "fieldset",
        ),
        *("figcaption", "figure", "footer", "form", "header", "hgroup", "hr", "html", "legend", "li", "main", "menu"),
        *("ol", "p", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul"),
    }
)
_LISTS = frozenset({"ul", "ol", "menu"})
# A table with one of these lays out a page.
_LAYOUT = ("table", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "ul", "ol", "dl")
_SPACES = re.compile(r"[ \t\n\r\f\xa0]+")
_LINE = "\v"  # stands for <br> while spaces are joined; a document's own were dropped
_PILCROW = re.compile(r"\s*[¶§🔗]\s*\Z")


def parse_html(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse an HTML page, however broken."""
    found = _CHARSET.search(body[:2048])
    declared = (found[1] or found[2]).decode("ascii") if found else ""
    tree = _tree(decode(body, declared))
    title = one_line(tree.findtext(".//title") or "")
    metadata = _metadata(tree)
    outline = Outline(limits)
    _Writer(outline).write(_main(tree))
    sections = outline.sections()
    if outline.first_heading and outline.first_heading in title:  # the rest is the site's name
        title = outline.first_heading
    return Parsed(title or outline.first_heading or file_title(path), sections, metadata)


def _tree(text: str) -> Any:
    # huge_tree lifts the limit of 10 MB for one text; depth stays limited, to 2,048.
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True, no_network=True)
    try:
        tree = etree.fromstring(text.replace("\0", "").encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from None
        raise
    if any(entry.level_name == "FATAL" for entry in parser.error_log):
        raise UnreadableDocumentError("is nested too deeply")
    if tree is None:
        raise UnreadableDocumentError("holds no text", code="document_empty")
    return tree


def _metadata(tree: Any) -> dict[str, Any]:
    metadata = {}
    for name in ("description", "author", "keywords"):
        content = one_line(tree.xpath("string(//meta[@name=$name]/@content)", name=name))
        if content:
            metadata[name] = content
    language = one_line(tree.get("lang") or "")
    return {**metadata, "language": language} if language else metadata


def _main(tree: Any) -> Any:
    """Cut away what is not the page's own text; give the element that holds the rest."""
    etree.strip_elements(tree, *_DROPPED, with_tail=False)
    for element in [*_HIDDEN(tree), *_FRAME(tree)]:
        _remove(element)
    for candidates in (_MAIN(tree), _ARTICLES(tree)):
        if len(candidates) == 1 and "".join(candidates[0].itertext()).strip():
            return candidates[0]
    body = tree.find("body")
    return tree if body is None else body


def _remove(element: Any) -> None:
    parent = element.getparent()
    if parent is None or element.tag in ("html", "body"):
        return
    tail = element.tail or ""
    before = element.getprevious()
    if before is not None:
        before.tail = (before.tail or "") + tail
    else:
        parent.text = (parent.text or "") + tail
    parent.remove(element)


class _Writer:
    """Writes an element's text into an outline, block by block."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._line: list[str] = []  # the paragraph that is open
        self._depth = 0  # lists around it
        self._marker = False  # it begins a list item
        self._in_list = False  # the block before was a list item

    def write(self, root: Any) -> None:
        """Write all of it."""
        walk = etree.iterwalk(root, events=("start", "end"))
        for event, element in walk:
            if event == "start":
                if self._start(element):
                    walk.skip_subtree()
            else:
                self._end(element)
                if element is not root and element.tail:
                    self._line.append(element.tail)
        self._flush()

    def _start(self, element: Any) -> bool:
        """Open an element; true if it has been written whole."""
        tag = element.tag
        if tag in _HEADINGS:
            self._flush()
            heading = _PILCROW.sub("", " ".join("".join(element.itertext()).split()))
            self._outline.enter(_HEADINGS[tag], heading)
            self._in_list = False
            return True
        if tag == "pre":
            self._flush()
            self._block(fenced("".join(element.itertext())))
            return True
        if tag == "table" and not _is_layout(element):
            self._flush()
            self._block("\n".join(_rows(element)))
            return True
        if tag == "br":
            self._line.append(_LINE)
        elif tag in _BLOCKS:
            self._flush()
            self._depth += tag in _LISTS
            self._marker = self._marker or tag == "li"
        elif tag in ("title", "head"):
            return True
        if element.text:
            self._line.append(element.text)
        return False

    def _end(self, element: Any) -> None:
        tag = element.tag
        if tag in _BLOCKS:
            self._flush()
            self._depth -= tag in _LISTS
            if tag == "li":
                self._marker = False

    def _flush(self) -> None:
        text = _SPACES.sub(" ", "".join(self._line)).strip(" \v")
        self._line.clear()
        if not text:
            return
        text = re.sub(r" ?\v ?", "\n", text)
        if self._depth:
            indent = "  " * min(self._depth - 1, 8)
            first = "- " if self._marker else "  "
            text = indent + first + text.replace("\n", "\n" + indent + "  ")
            tight = self._in_list and self._marker
            self._marker = False
            self._outline.add(text, tight=tight)
            self._in_list = True
        else:
            self._block(text)

    def _block(self, text: str) -> None:
        self._outline.add(text)
        self._in_list = False


def _is_layout(table: Any) -> bool:
    return next(table.iterdescendants(*_LAYOUT), None) is not None


def _rows(table: Any) -> Iterator[str]:
    caption = table.find("caption")
    if caption is not None:
        yield one_line("".join(caption.itertext()))
    for row in table.iter("tr"):
        cells = [" ".join(cell.itertext()) for cell in row.iterchildren("td", "th")]
        if any(cell.strip() for cell in cells):
            yield table_row(cells)
