"""Queries to compare index versions by, and what of the documents answers them: read of files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import msgspec

from headway.errors import InvalidRequestError

MOST_QUERIES = 10_000
"""Of one file."""
MOST_CHARACTERS = 2_000
"""Of a query, as in a search."""

_SEPARATOR = ";"  # of documents in a field of a CSV file
_FIELDS = "query and relevant"


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What answers a query: a document, a section of it, or one of its chunks.

    Attributes:
        document: Its path in the lake.
        heading: A heading of it, or several joined by " > "; empty for the whole document.
        position: Number of a chunk in the document, from 0; it means the same only in versions that are cut alike.
        grade: How well it answers, above 0; the figure of nDCG goes by it.
    """

    document: str
    heading: str = ""
    position: int | None = None
    grade: float = 1.0


class LabelledQuery(msgspec.Struct, frozen=True):
    """A query.

    Attributes:
        text: What is searched for.
        relevant: What answers it; empty where that is not known.
    """

    text: str
    relevant: tuple[Label, ...] = ()


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    query: str
    relevant: str | list[str | Label] | None = None
    id: str | int | None = None


def read_queries(path: Path) -> list[LabelledQuery]:
    """Read queries: one JSON object in each line, or, of a file that ends in ``.csv``, one in each row.

    ::

        {"query": "how much leave do I get?", "relevant": ["leave.md", "rules.md#Days off"]}
        {"query": "who replaces laptops?", "relevant": [{"document": "it.md", "heading": "Hardware", "grade": 2}]}
        {"query": "nobody knows what answers this"}

    A CSV file has the columns ``query`` and, if it has labels, ``relevant``; several documents are separated by ``;``.

    Raises:
        InvalidRequestError: It cannot be read, or a line is wrong: the message names it.
    """
    queries: list[LabelledQuery] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _read_rows(file, path) if path.suffix.lower() == ".csv" else _read_lines(file, path)
            for number, line in lines:
                if len(queries) == MOST_QUERIES:
                    raise InvalidRequestError(f"{path} has more than {MOST_QUERIES:,} queries", param="queries")
                try:
                    queries.append(make_query(line.query, line.relevant or ()))
                except ValueError as error:
                    raise _wrong(path, number, str(error)) from error
    except OSError as error:
        raise InvalidRequestError(f"{path} cannot be read: {error.strerror}", param="queries") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{path} is not UTF-8: {error.reason}", param="queries") from error
    if not queries:
        raise InvalidRequestError(f"{path} has no queries", param="queries")
    return queries


def make_query(text: str, relevant: str | list[str | Label] | tuple[Label, ...] = ()) -> LabelledQuery:
    """Make a query of a text and its labels: ``document``, ``document#heading``, or labels as they are.

    Raises:
        ValueError: One of them cannot be; the message says which, and why.
    """
    query = text.replace("\0", " ").strip()
    if not query:
        raise ValueError("query is empty")
    if len(query) > MOST_CHARACTERS:
        raise ValueError(f"query has {len(query):,} characters; {MOST_CHARACTERS:,} is the most")
    labels: dict[tuple[str, str, int | None], Label] = {}
    for given in [relevant] if isinstance(relevant, str) else relevant:
        label = _make_label(given) if isinstance(given, str) else given
        if not label.document.strip():
            raise ValueError("relevant: a document has no path")
        if not 0 < label.grade < float("inf"):
            raise ValueError(f"relevant: {label.document}: grade is a number above 0")
        if labels.setdefault((label.document, label.heading, label.position), label) != label:
            raise ValueError(f"relevant: {label.document} has two grades")
    return LabelledQuery(query, tuple(labels.values()))


def _make_label(text: str) -> Label:
    document, _, heading = text.strip().partition("#")
    return Label(document, heading.strip())


def _read_lines(file: Iterator[str], path: Path) -> Iterator[tuple[int, _Line]]:
    decode = msgspec.json.Decoder(_Line).decode
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield number, decode(line)
        except msgspec.ValidationError as error:
            raise _wrong(path, number, f"{error}; known are {_FIELDS}") from error
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise _wrong(path, number, f"is no JSON object: {error}") from error


def _read_rows(file: Iterator[str], path: Path) -> Iterator[tuple[int, _Line]]:
    reader = csv.DictReader(file, strict=True)
    try:
        if "query" not in (reader.fieldnames or ()):
            raise _wrong(path, 1, f"the first row names the columns; expected {_FIELDS}")
        for row in reader:
            if None in row:
                raise _wrong(path, reader.line_num, "has more fields than the first row names; quote what has a comma")
            relevant = [part for part in (row.get("relevant") or "").split(_SEPARATOR) if part.strip()]
            yield reader.line_num, _Line(row["query"] or "", list(relevant))
    except csv.Error as error:
        raise _wrong(path, reader.line_num, str(error)) from error


def _wrong(path: Path, line: int, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"{path}, line {line}: {reason}", param="queries")
