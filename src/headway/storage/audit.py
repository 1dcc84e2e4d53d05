"""The audit log: who changed what, when and why; append-only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from headway.storage.database import Connection


async def record(
    connection: Connection,
    *,
    author: str,
    action: str,
    subject: str,
    reason: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an entry; it stands or falls with the caller's transaction.

    Args:
        connection: Of the transaction that makes the change.
        author: Who.
        action: What, as ``noun.verb``.
        subject: To what.
        reason: Why, in the author's words.
        detail: Figures, as JSON.
    """
    await connection.execute(
        "INSERT INTO audit_log (author, action, subject, reason, detail) VALUES (%s, %s, %s, %s, %s)",
        (author, action, subject, reason, Jsonb(dict(detail or {}))),
    )
