"""What commands share: output for people and for programs, errors, and how things are named."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from headway.config.indexes import IndexReference, parse_reference
from headway.errors import HeadwayError, InvalidRequestError

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPED_COLUMNS = 200  # of a table that goes into a file: nobody sees the edge of the window

console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_COLUMNS)
"""For results."""
notes = Console(highlight=False, stderr=True, width=None if sys.stderr.isatty() else _PIPED_COLUMNS)
"""For what a person should know and a program should not read."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class Group(TyperGroup):
    """The commands; an error of Headway becomes one red message and exit status 1, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except HeadwayError as error:
            show_error(error)
            raise typer.Exit(1) from error


def show_error(error: HeadwayError) -> None:
    """Print an error's message in red."""
    notes.print(Text(error.message, style="red"), soft_wrap=True)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return what it returns."""
    return asyncio.run(work)


def author() -> str:
    """Name who runs the command: the user name of the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in the password file
        return f"uid {os.getuid()}"


def emit(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, json: bool) -> None:
    """Print rows as a table of the given columns, or as a JSON array of the whole rows."""
    listed = list(rows)
    if json:
        emit_json(listed)
        return
    if not listed:
        notes.print("none", style="dim")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in listed:
        table.add_row(*(Text(cell(row[column])) for column in columns))
    console.print(table)


def emit_record(row: Mapping[str, Any], *, json: bool, beside: Mapping[str, Any] | None = None) -> None:
    """Print one thing with all its fields, one per line, or as a JSON object; ``beside`` it another of its kind."""
    if json:
        emit_json(row)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    columns = [row] if beside is None else [row, beside]
    for _ in columns:
        table.add_column(overflow="fold")
    for name in row:
        table.add_row(name.replace("_", " "), *(Text(cell(column[name])) for column in columns))
    console.print(table)


def emit_json(value: Any) -> None:
    """Print a value as JSON."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def cell(value: Any) -> str:
    """Write a value for a person: times to the second in UTC, nothing as a dash."""
    if value is None or value == "" or value in ([], (), {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    # What users wrote must not steer the terminal.
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def read_reference(text: str) -> IndexReference:
    """Read which index version a person names: `NAME@N`, or `NAME` for the latest.

    Raises:
        InvalidRequestError: It is none.
    """
    try:
        return parse_reference(text)
    except ValueError as error:
        raise InvalidRequestError(f"{text!r}: {error}", param="version") from error


def is_interactive() -> bool:
    """Say whether a person sits at the other end and can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()
