"""Parses a document of any known kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from headway.errors import HeadwayError, UnreadableDocumentError
from headway.lake.parsing.docx import parse_docx
from headway.lake.parsing.html import parse_html
from headway.lake.parsing.markdown import parse_markdown
from headway.lake.parsing.parsed import Limits, Outline, Parsed, file_title, too_large
from headway.lake.parsing.pdf import parse_pdf
from headway.lake.parsing.records import parse_csv, parse_jsonl
from headway.lake.parsing.rst import parse_rst
from headway.lake.parsing.texts import decode

Parser = Callable[[str, bytes, Limits], Parsed]


def parse(path: str, body: bytes, limits: Limits | None = None) -> Parsed:
    """Parse a document by the ending of its name; a file with an unknown one by its content.

    A document that means to harm can take much time and memory here: ``headway.lake.parsing.workers`` parses in
    processes of their own, where both are limited.

    Raises:
        UnreadableDocumentError: It is empty, encrypted, damaged, too large, or of a kind that is not read.
    """
    limits = limits or Limits()
    if not body:
        raise UnreadableDocumentError("is empty", code="document_empty")
    if len(body) > limits.body_bytes:
        raise too_large(f"{len(body):,} bytes", f"{limits.body_bytes:,}")
    try:
        return _parser(path, body)(path, body, limits)
    except HeadwayError:
        raise
    except MemoryError:
        raise
    except RecursionError:
        raise UnreadableDocumentError("is nested too deeply") from None
    except Exception as error:  # whatever a parser makes of damaged or hostile bytes
        reason = " ".join(str(error).split())[:200]
        raise UnreadableDocumentError(f"is damaged or unusual ({type(error).__name__}: {reason})") from error


def _parser(path: str, body: bytes) -> Parser:
    if path.lower().endswith(".rst.txt"):  # as Sphinx publishes its sources
        return parse_rst
    ending = path.rpartition("/")[2].rpartition(".")[2].lower()
    if ending in _BY_ENDING:
        return _BY_ENDING[ending]
    if body.startswith(b"%PDF-"):
        return parse_pdf
    if body.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UnreadableDocumentError(f"a .{ending} file is not read: save it as PDF, DOCX or text")
    return parse_text


def parse_text(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse a text file: one section without a heading."""
    outline = Outline(limits)
    outline.add(decode(body))
    return Parsed(file_title(path), outline.sections())


_BY_ENDING: Mapping[str, Parser] = MappingProxyType(
    {
        "md": parse_markdown,
        "markdown": parse_markdown,
        "mdx": parse_markdown,
        "html": parse_html,
        "htm": parse_html,
        "xhtml": parse_html,
        "txt": parse_text,
        "rst": parse_rst,
        "pdf": parse_pdf,
        "docx": parse_docx,
        "csv": parse_csv,
        "tsv": parse_csv,
        "jsonl": parse_jsonl,
        "ndjson": parse_jsonl,
    }
)
