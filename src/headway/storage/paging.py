"""Lists, page by page: newest first, each page starting where the last one ended, however much arrives meanwhile."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString

import msgspec
from psycopg import sql
from psycopg.rows import dict_row

from headway.errors import InvalidRequestError
from headway.storage.database import Connection

PAGE_SIZE = 50
LARGEST_PAGE = 500
_FETCH_ROWS = 100  # of a stream, at a time: a row may hold a whole prompt
LARGEST_CURSOR = 16_384
"""Characters; one may hold the path of a document."""
_LARGEST_NUMBER = 2**63 - 1

Order = tuple[tuple[LiteralString, str, Literal["time", "uuid", "number", "text"]], ...]
"""Columns that order a list and together are unique: SQL, name in the row, type."""

Condition = tuple[LiteralString, Any]
"""SQL with one placeholder and its value; a condition whose value is None does not apply."""


@dataclass(frozen=True)
class Page:
    """One page of a list.

    Attributes:
        items: Rows by column name.
        next: Cursor of the next page; None on the last.
    """

    items: list[dict[str, Any]]
    next: str | None


@dataclass(frozen=True)
class Listing:
    """A list that can be read page by page.

    Attributes:
        select: The query up to and without WHERE.
        order: What orders it, newest first.
        ascending: Oldest, or first in the alphabet, first.
    """

    select: LiteralString
    order: Order
    ascending: bool = False

    def query(self, conditions: Sequence[Condition], *, after: bool = False, limit: bool = False) -> sql.Composed:
        """Compose the query; it takes the conditions' values, then the place to start after, then the limit."""
        columns = [sql.SQL(name) for name, _, _ in self.order]
        where: list[sql.Composable] = [sql.SQL(text) for text, _ in conditions]
        if after:
            places = sql.SQL(", ").join([sql.Placeholder()] * len(columns))
            comparison = sql.SQL("({}) > ({})" if self.ascending else "({}) < ({})")
            where.append(comparison.format(sql.SQL(", ").join(columns), places))
        direction = sql.SQL(" ASC" if self.ascending else " DESC")
        return sql.Composed(
            [
                sql.SQL(self.select),
                sql.SQL(" WHERE ") if where else sql.SQL(""),
                sql.SQL(" AND ").join(where),
                sql.SQL(" ORDER BY "),
                sql.SQL(", ").join(column + direction for column in columns),
                sql.SQL(" LIMIT %s") if limit else sql.SQL(""),
            ]
        )


async def read_page(
    connection: Connection,
    listing: Listing,
    conditions: Sequence[Condition] = (),
    *,
    limit: int = PAGE_SIZE,
    cursor: str | None = None,
) -> Page:
    """Read one page.

    Args:
        connection: To read on.
        listing: What to list.
        conditions: Which of it.
        limit: Rows on a page, 1 to 500.
        cursor: Where to start: ``next`` of the page before.

    Raises:
        InvalidRequestError: The limit is out of range, or the cursor is not one of this list.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise InvalidRequestError(f"limit is a number from 1 to {LARGEST_PAGE}", param="limit")
    applying, values = _applying(conditions)
    start = [] if cursor is None else _decode(listing, cursor)
    async with connection.cursor(row_factory=dict_row) as rows:
        await rows.execute(listing.query(applying, after=cursor is not None, limit=True), (*values, *start, limit + 1))
        items = await rows.fetchall()
    more = len(items) > limit
    items = items[:limit]
    return Page(items, _encode(listing, items[-1]) if more else None)


async def stream(
    connection: Connection, listing: Listing, conditions: Sequence[Condition] = ()
) -> AsyncGenerator[dict[str, Any], None]:
    """Read a list from end to end in bounded memory, as it stood at the first row."""
    applying, values = _applying(conditions)
    async with connection.cursor("headway_stream", row_factory=dict_row) as rows:
        rows.itersize = _FETCH_ROWS
        await rows.execute(listing.query(applying), values)
        async for row in rows:
            yield row


def _applying(conditions: Sequence[Condition]) -> tuple[list[Condition], list[Any]]:
    applying = [condition for condition in conditions if condition[1] is not None]
    return applying, [value for _, value in applying]


def _encode(listing: Listing, row: dict[str, Any]) -> str:
    place = [row[name].isoformat() if kind == "time" else str(row[name]) for _, name, kind in listing.order]
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode()


def _decode(listing: Listing, cursor: str) -> list[Any]:
    try:
        if len(cursor) > LARGEST_CURSOR:
            raise ValueError(cursor)
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        place = msgspec.json.decode(raw, type=list[str])
        if len(place) != len(listing.order):
            raise ValueError(cursor)
        return [_value(kind, text) for (_, _, kind), text in zip(listing.order, place, strict=True)]
    except (binascii.Error, ValueError) as error:
        message = "the cursor is not one of this list: start again without it"
        raise InvalidRequestError(message, param="cursor") from error


def _value(kind: str, text: str) -> Any:
    if kind == "time":
        value = datetime.fromisoformat(text)
        if value.tzinfo is None:
            raise ValueError(text)
        return value
    if kind == "uuid":
        return uuid.UUID(text)
    if kind == "number":
        number = int(text)
        if not 0 <= number <= _LARGEST_NUMBER:
            raise ValueError(text)
        return number
    if "\x00" in text:
        raise ValueError(text)
    return text
