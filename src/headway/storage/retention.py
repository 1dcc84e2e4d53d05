"""Retention: interactions go when their time is over, whole days at once where that is possible.

What a decision rests on stays: blocks, decisions and stages of rollouts are never removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import LiteralString

import psycopg
from psycopg import sql

from headway.storage.database import Connection

DAYS_AHEAD = 3
BATCH_ROWS = 5000

_LINK_DAYS = 30  # providers forget a response's id by then
_ROLLOUT_DAYS = 30  # after its end; nothing is booked any more, and the blocks say all that decided
_WEBHOOK_DAYS = 30
_BOOKED: tuple[LiteralString, ...] = ("unit_state", "rating", "response", "evidence")
_LOCK_WAIT = "200ms"  # dropping a day waits for whoever reads, and writers wait behind it for as long


@dataclass(frozen=True)
class Removed:
    """What one pass removed.

    Attributes:
        partitions: Days dropped whole.
        interactions: Rows deleted one by one, of applications that keep theirs for a shorter time.
        links: Links to providers' responses.
        batches: Keys of recorder batches.
        booked: Rows that rollouts which ended long ago were booked from.
        webhooks: Messages to webhooks, delivered or given up.
        postponed: Days that were in use and are dropped by a later pass.
    """

    partitions: tuple[str, ...] = ()
    interactions: int = 0
    links: int = 0
    batches: int = 0
    booked: int = 0
    webhooks: int = 0
    postponed: tuple[str, ...] = ()


async def enforce(
    connection: Connection, now: datetime, *, spool_hours: float = 72.0, most_batches: int = 200
) -> Removed:
    """Make the partitions of the coming days and remove what is past retention; commits as it goes.

    A day is dropped when it is past the longest retention of all applications; until then the rows of applications
    with a shorter one are deleted in batches.

    Args:
        connection: Outside a transaction; nobody waits for this one for long.
        now: The time, aware.
        spool_hours: How old a spooled batch may be when it is replayed; its key must still be there then.
        most_batches: Batches of rows deleted in one pass; the next pass goes on.
    """
    today = now.astimezone(UTC).date()
    for ahead in range(DAYS_AHEAD + 1):
        await connection.execute("SELECT ensure_interaction_partition(%s)", (today + timedelta(days=ahead),))
    cursor = await connection.execute("SELECT id, retention_days FROM application ORDER BY id")
    retention = {number: days async for number, days in cursor}
    await connection.commit()
    longest = max(retention.values(), default=0)
    dropped, postponed = await _drop_days(connection, today - timedelta(days=longest)) if retention else ([], [])
    interactions = 0
    for application, days in retention.items():
        if days < longest:
            until = now - timedelta(days=days)
            interactions += await _delete_rows(connection, application, until, most_batches)
    links = await _delete_links(connection, now - timedelta(days=min(longest or _LINK_DAYS, _LINK_DAYS)))
    batches = await _delete_batch_keys(connection, now - timedelta(hours=max(168.0, 2 * spool_hours)))
    booked = await _delete_booked(connection, now - timedelta(days=_ROLLOUT_DAYS), most_batches)
    webhooks = await _delete_webhooks(connection, now - timedelta(days=_WEBHOOK_DAYS))
    return Removed(tuple(dropped), interactions, links, batches, booked, webhooks, tuple(postponed))


async def list_days(connection: Connection) -> dict[date, str]:
    """List the days that have a partition, with its name."""
    cursor = await connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = 'interaction'::regclass ORDER BY c.relname"
    )
    found = [(re.fullmatch(r"interaction_(\d{4})(\d\d)(\d\d)", name), name) async for (name,) in cursor]
    return {date(int(match[1]), int(match[2]), int(match[3])): name for match, name in found if match}


async def _drop_days(connection: Connection, first_kept: date) -> tuple[list[str], list[str]]:
    dropped, postponed = [], []
    for day, name in (await list_days(connection)).items():
        if day >= first_kept:
            continue
        try:
            async with connection.transaction():
                await connection.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_WAIT,))
                await connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
            dropped.append(name)
        except psycopg.errors.LockNotAvailable:
            postponed.append(name)
        await connection.commit()
    await connection.commit()
    return dropped, postponed


async def _delete_rows(connection: Connection, application: int, until: datetime, most_batches: int) -> int:
    deleted = 0
    for _ in range(most_batches):
        cursor = await connection.execute(
            """
            WITH gone AS (
                DELETE FROM interaction WHERE (at, id) IN (
                    SELECT at, id FROM interaction WHERE application = %s AND at < %s LIMIT %s
                ) RETURNING id
            ), unlinked AS (DELETE FROM response_link USING gone WHERE response_link.id = gone.id)
            SELECT count(*) FROM gone
            """,
            (application, until, BATCH_ROWS),
        )
        row = await cursor.fetchone()
        await connection.commit()
        count = 0 if row is None else int(row[0])
        deleted += count
        if count < BATCH_ROWS:
            break
    return deleted


async def _delete_links(connection: Connection, until: datetime) -> int:
    cursor = await connection.execute("DELETE FROM response_link WHERE at < %s", (until,))
    await connection.commit()
    return cursor.rowcount


async def _delete_batch_keys(connection: Connection, until: datetime) -> int:
    cursor = await connection.execute("DELETE FROM recorder_batch WHERE at < %s", (until,))
    await connection.commit()
    return cursor.rowcount


async def _delete_booked(connection: Connection, until: datetime, most_batches: int) -> int:
    """Delete what rollouts that ended before ``until`` were booked from; stragglers go with a later pass."""
    cursor = await connection.execute("SELECT id FROM rollout WHERE ended_at < %s ORDER BY id", (until,))
    ended = [number for (number,) in await cursor.fetchall()]
    await connection.commit()
    deleted = 0
    for table in _BOOKED:
        delete = sql.SQL(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table} WHERE rollout = ANY (%s) LIMIT %s))"
        ).format(table=sql.Identifier(table))
        for _ in range(most_batches if ended else 0):
            cursor = await connection.execute(delete, (ended, BATCH_ROWS))
            await connection.commit()
            deleted += cursor.rowcount
            if cursor.rowcount < BATCH_ROWS:
                break
    return deleted


async def _delete_webhooks(connection: Connection, until: datetime) -> int:
    cursor = await connection.execute(
        "DELETE FROM webhook_delivery WHERE created_at < %s AND next_at IS NULL", (until,)
    )
    await connection.commit()
    return cursor.rowcount
