"""Mirrored answers beside the answers that callers got: what the shadow stage is for people."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from headway.clock import utc
from headway.ids import Kind
from headway.storage.database import Connection

_LAST_MS = 253_402_300_000_000  # the last second that a datetime can be


@dataclass(frozen=True)
class Answer:
    """One of the two answers.

    Attributes:
        body: As recorded, JSON; None where content is not recorded, or there was no answer.
        error: Code of what went wrong; None if nothing did.
        total_ms: How long it took.
        output_tokens: Its length.
        cost_usd: What it cost.
    """

    body: str | None
    error: str | None
    total_ms: float
    output_tokens: int | None
    cost_usd: float | None


@dataclass(frozen=True)
class Pair:
    """A request with the answer that the caller got and the candidate's.

    Attributes:
        interaction: UUID of the caller's interaction.
        at: When it was mirrored.
        request: As recorded, JSON; None where content is not recorded.
        stable: The caller's answer; None once it is past retention, or while it is not written yet.
        candidate: The mirrored answer.
    """

    interaction: uuid.UUID
    at: datetime
    request: str | None
    stable: Answer | None
    candidate: Answer


async def list_pairs(
    connection: Connection, rollout: int, *, limit: int = 10, before: datetime | None = None
) -> list[Pair]:
    """List the answers mirrored in a rollout, newest first; with ``before``, those that began earlier."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT m.at, m.mirror_of, m.answer, m.error, m.total_ms, m.output_tokens, m.cost_usd
            FROM rollout o JOIN interaction m ON m.application = o.application_id AND m.release = o.candidate_release
                 AND m.at >= o.started_at - interval '1 minute'
            WHERE o.id = %(rollout)s AND m.rollout = o.id AND m.kind = %(shadow)s AND m.mirror_of IS NOT NULL
              AND (%(before)s::timestamptz IS NULL OR m.at < %(before)s)
            ORDER BY m.at DESC LIMIT %(limit)s
            """,
            {"rollout": rollout, "shadow": int(Kind.SHADOW), "before": before, "limit": limit},
        )
        mirrored = await cursor.fetchall()
        # An interaction's id says when it began, and so where it lies.
        places = [(_began(row["mirror_of"]), row["mirror_of"]) for row in mirrored]
        await cursor.execute(
            """
            SELECT i.id, i.request, i.answer, i.error, i.total_ms, i.output_tokens, i.cost_usd
            FROM unnest(%s::timestamptz[], %s::uuid[]) AS place(began, id)
            JOIN interaction i ON i.at >= place.began AND i.at < place.began + interval '1 ms' AND i.id = place.id
            """,
            ([began for began, _ in places], [number for _, number in places]),
        )
        originals = {row["id"]: row for row in await cursor.fetchall()}
    return [_pair(row, originals.get(row["mirror_of"])) for row in mirrored]


def _pair(mirrored: dict[str, Any], original: dict[str, Any] | None) -> Pair:
    return Pair(
        interaction=mirrored["mirror_of"],
        at=mirrored["at"],
        request=None if original is None else original["request"],
        stable=None if original is None else _answer(original),
        candidate=_answer(mirrored),
    )


def _answer(row: dict[str, Any]) -> Answer:
    return Answer(row["answer"], row["error"], row["total_ms"], row["output_tokens"], row["cost_usd"])


def _began(interaction: uuid.UUID) -> datetime:
    unix_ms = int.from_bytes(interaction.bytes[:6], "big")
    return utc(min(unix_ms, _LAST_MS))
