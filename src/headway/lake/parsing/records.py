"""CSV and JSONL: a section for each row or record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import msgspec

from headway.errors import UnreadableDocumentError
from headway.lake.parsing.parsed import Limits, Outline, Parsed, file_title
from headway.lake.parsing.texts import decode, one_line

_DELIMITERS = ",;\t|"


def parse_csv(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse a CSV or TSV file: its first row names the columns, each further row is ``column: value`` lines."""
    text = decode(body)
    outline = Outline(limits)
    first = text.lstrip("\n").partition("\n")[0]
    delimiter = "\t" if path.lower().endswith(".tsv") else max(_DELIMITERS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    names: list[str] | None = None
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = [one_line(cell) for cell in row]
                continue
            outline.add("\n".join(_cells(names, row)))
            outline.close()
    except csv.Error as error:
        raise UnreadableDocumentError(f"line {rows.line_num:,} is not sound CSV: {error}") from None
    return Parsed(file_title(path), outline.sections(), {"columns": names or []})


def _cells(names: list[str], row: list[str]) -> Iterator[str]:
    for position, cell in enumerate(row):
        if cell.strip():
            name = names[position] if position < len(names) else ""
            yield f"{name or f'column {position + 1}'}: {cell.strip()}"


def parse_jsonl(path: str, body: bytes, limits: Limits) -> Parsed:
    """Parse a file with a JSON value on each line: keys ``text`` and ``title`` if there, else all of it, flattened."""
    outline = Outline(limits)
    for number, line in enumerate(decode(body).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line)
        except RecursionError:
            raise UnreadableDocumentError(f"line {number:,} is nested too deeply") from None
        except msgspec.DecodeError as error:
            raise UnreadableDocumentError(f"line {number:,} is not sound JSON: {error}") from None
        outline.reset()
        _add(record, outline)
    return Parsed(file_title(path), outline.sections())


def _add(record: Any, outline: Outline) -> None:
    if isinstance(record, dict):
        title = record.get("title")
        if isinstance(title, str):
            outline.enter(1, title)
            record = {key: value for key, value in record.items() if key != "title"}
        if isinstance(record.get("text"), str):
            record = record["text"]
    if isinstance(record, str):
        outline.add(record)
        return
    outline.add("\n".join(f"{name}: {value}" if name else value for name, value in _flattened(record)))


def _flattened(record: Any) -> Iterator[tuple[str, str]]:
    """Path and text of each value that is not empty."""
    waiting: list[tuple[str, Any]] = [("", record)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            inner = [(f"{name}.{key}" if name else key, item) for key, item in value.items()]
        elif isinstance(value, list):
            inner = [(f"{name}[{position}]", item) for position, item in enumerate(value)]
        else:
            inner = []
            if isinstance(value, bool):
                yield name, "true" if value else "false"
            elif value is not None and value != "":
                yield name, str(value)
        waiting += reversed(inner)
