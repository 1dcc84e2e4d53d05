"""What the commands on recorded things share: since when, the first so many, and export as JSON lines."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from headway.cli.terminal import notes, run_async
from headway.clock import SystemClock, utc
from headway.config.quantities import parse_duration
from headway.config.settings import load_settings
from headway.errors import InvalidRequestError
from headway.runtime import open_database
from headway.storage.paging import Condition, Listing, stream

ApplicationOption = Annotated[str | None, typer.Option("--application", "-a", help="Only this application's.")]
ReleaseOption = Annotated[str | None, typer.Option("--release", help="Only this release's, by its name.")]
SinceOption = Annotated[
    str | None, typer.Option(metavar="WHEN", help="Only from then on: 7d, 12h, 2026-01-31 or 2026-01-31T12:00 (UTC).")
]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; by default standard output.", dir_okay=False)
]

_TOLD_ROWS = 1000


def parse_since(text: str | None) -> datetime | None:
    """Read a point in time: so long ago, or a date, or a date and time.

    Raises:
        InvalidRequestError: It is neither.
    """
    if text is None:
        return None
    try:
        if text[:4].isdigit() and "-" in text:
            given = datetime.fromisoformat(text)
            return given if given.tzinfo is not None else given.replace(tzinfo=UTC)
        return utc(SystemClock().unix_ms()) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError) as error:
        message = f"{text!r} is no point in time: give one like 7d, 12h, 2026-01-31 or 2026-01-31T12:00"
        raise InvalidRequestError(message, param="since") from error


def read_first(listing: Listing, conditions: Sequence[Condition], limit: int) -> list[dict[str, Any]]:
    """Read the first rows of a list."""
    return run_async(_read_first(listing, conditions, limit))


def export(listing: Listing, conditions: Sequence[Condition], output: Path | None) -> None:
    """Write a list, oldest first, as one JSON object per line; memory stays bounded however long it is."""
    try:
        count = run_async(_export(dataclasses.replace(listing, ascending=not listing.ascending), conditions, output))
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        raise typer.Exit(0) from None
    notes.print(f"{count} exported{f' to {output}' if output else ''}", style="dim")


async def _read_first(listing: Listing, conditions: Sequence[Condition], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with (
        open_database(load_settings()) as database,
        database.connection() as connection,
        aclosing(stream(connection, listing, conditions)) as rows,
    ):
        async for row in rows:
            found.append(row)
            if len(found) == limit:
                break
    return found


async def _export(listing: Listing, conditions: Sequence[Condition], output: Path | None) -> int:
    encoder = msgspec.json.Encoder()
    count = 0
    async with open_database(load_settings()) as database, database.connection() as connection:
        # A blocking write is right here: this process does nothing else.
        with nullcontext(sys.stdout.buffer) if output is None else output.open("wb") as target:
            with notes.status("exporting") as status:
                async for row in stream(connection, listing, conditions):
                    target.write(encoder.encode(row) + b"\n")
                    count += 1
                    if count % _TOLD_ROWS == 0:
                        status.update(f"exporting: {count}")
            target.flush()
    return count
