"""The outbox of webhooks: written in the transaction of what they tell of, delivered afterwards, at least once."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from psycopg.rows import class_row

from headway.clock import utc
from headway.config.spec import WebhookSpec
from headway.ids import uuid7
from headway.storage.database import Connection


@dataclass(frozen=True)
class Delivery:
    """A message to a webhook.

    Attributes:
        id: The same at every attempt.
        created_at: When it was written.
        event: What it tells of, ``rollout.advanced`` for one.
        url: Where to.
        secret: Reference of the secret that signs it; None: not signed.
        body: JSON.
        attempts: How many there have been, this one included.
    """

    id: uuid.UUID
    created_at: datetime
    event: str
    url: str
    secret: str | None
    body: str
    attempts: int


async def add(connection: Connection, event: str, data: Mapping[str, Any], now_ms: int) -> int:
    """Tell every webhook that wants to know; the messages stand or fall with the caller's transaction.

    Args:
        connection: Of the transaction.
        event: What happened.
        data: What is to be said of it, as JSON values.
        now_ms: Unix milliseconds.

    Returns:
        How many messages there are to deliver.
    """
    cursor = await connection.execute(
        "SELECT (spec->'webhooks')::text FROM configuration ORDER BY id DESC LIMIT 1",
    )
    row = await cursor.fetchone()
    if row is None or row[0] is None:
        return 0
    webhooks = msgspec.json.decode(row[0], type=tuple[WebhookSpec, ...])
    wanted = [each for each in webhooks if not each.events or event in each.events]
    at = utc(now_ms)
    body = msgspec.json.encode({"type": event, "timestamp": at, "data": data}).decode()
    for each in wanted:
        await connection.execute(
            "INSERT INTO webhook_delivery (id, created_at, event, url, secret, body, next_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (uuid.UUID(bytes=uuid7(now_ms)), at, event, each.url, each.secret, body, at),
        )
    return len(wanted)


async def claim(connection: Connection, now_ms: int, *, lease_seconds: float, limit: int) -> list[Delivery]:
    """Take messages that are due, oldest first; nobody else takes them before the lease ends."""
    now = utc(now_ms)
    async with connection.cursor(row_factory=class_row(Delivery)) as cursor:
        await cursor.execute(
            """
            UPDATE webhook_delivery SET attempts = attempts + 1, next_at = %s
            WHERE id IN (SELECT id FROM webhook_delivery WHERE next_at <= %s ORDER BY next_at, id LIMIT %s
                         FOR UPDATE SKIP LOCKED)
            RETURNING id, created_at, event, url, secret, body, attempts
            """,
            (now + timedelta(seconds=lease_seconds), now, limit),
        )
        return await cursor.fetchall()


async def complete(connection: Connection, delivery: Delivery, body: str) -> None:
    """Say more in a message, at its later attempts too."""
    await connection.execute("UPDATE webhook_delivery SET body = %s WHERE id = %s", (body, delivery.id))


async def settle(connection: Connection, delivery: Delivery, now_ms: int) -> None:
    """Note that a message was delivered."""
    await connection.execute(
        "UPDATE webhook_delivery SET delivered_at = %s, next_at = NULL, problem = NULL WHERE id = %s",
        (utc(now_ms), delivery.id),
    )


async def postpone(connection: Connection, delivery: Delivery, problem: str, next_ms: int | None) -> None:
    """Note why a message could not be delivered, and when to try again; None gives it up."""
    await connection.execute(
        "UPDATE webhook_delivery SET problem = %s, next_at = %s WHERE id = %s AND delivered_at IS NULL",
        (problem, None if next_ms is None else utc(next_ms), delivery.id),
    )
