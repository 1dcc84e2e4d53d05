"""Evidence and the books: claimed by a tick, each row once, in the transaction that stores what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg.rows import class_row

from headway.clock import utc
from headway.domain.evidence import Counts, ExposureKey, merge
from headway.domain.recording import Terms
from headway.storage.database import Connection
from headway.storage.rollouts import encode

_CLAIM = """
    UPDATE evidence SET tick = %(tick)s WHERE id IN (
        SELECT id FROM evidence WHERE rollout = %(rollout)s AND tick IS NULL ORDER BY id LIMIT %(limit)s
    ) RETURNING stage, extract(epoch FROM period)::bigint, arm, counts::text"""
# Each branch walks its part of an index backwards, and reads no more rows than are wanted.
_HEAVIEST = """
    SELECT count(*), sum(count(*)) OVER () FROM (
        (SELECT at, unit, rollout FROM interaction
         WHERE application = %(application)s AND release = %(stable)s AND at > %(since)s AND at <= %(now)s
         ORDER BY at DESC LIMIT %(limit)s)
        UNION ALL
        (SELECT at, unit, rollout FROM interaction
         WHERE application = %(application)s AND release = %(candidate)s AND at > %(since)s AND at <= %(now)s
         ORDER BY at DESC LIMIT %(limit)s)
        ORDER BY at DESC LIMIT %(limit)s
    ) AS latest WHERE rollout = %(rollout)s
    GROUP BY unit ORDER BY 1 DESC LIMIT 1"""
_DECODER = msgspec.json.Decoder(Counts)


@dataclass(frozen=True)
class Desk:
    """What a tick finds of a rollout, beside what ``headway.storage.rollouts.Rollout`` has.

    Attributes:
        application_number, stable_number, candidate_number: Of the application and the two releases.
        books: ``Books.encode`` of the last tick; None before the first.
        last_outcome, last_reason, last_metric, last_at: Of the newest decision; None before the first.
        figure_at: When the newest figure was kept; None before the first.
    """

    application_number: int
    stable_number: int
    candidate_number: int
    books: bytes | None
    last_outcome: str | None
    last_reason: str | None
    last_metric: str | None
    last_at: datetime | None
    figure_at: datetime | None


async def open_desk(connection: Connection, rollout: int, *, passed_over: Sequence[str]) -> Desk:
    """Read what a tick needs of a rollout; decisions with those reasons are passed over."""
    async with connection.cursor(row_factory=class_row(Desk)) as cursor:
        await cursor.execute(
            """
            SELECT o.application_id AS application_number, o.stable_release AS stable_number,
                   o.candidate_release AS candidate_number, o.books, d.outcome AS last_outcome,
                   d.reason AS last_reason, d.metric AS last_metric, d.at AS last_at,
                   (SELECT at FROM figure WHERE rollout_id = o.id ORDER BY tick DESC LIMIT 1) AS figure_at
            FROM rollout o LEFT JOIN LATERAL (
                SELECT outcome, reason, metric, at FROM decision WHERE rollout_id = o.id AND reason <> ALL (%s)
                ORDER BY number DESC LIMIT 1
            ) AS d ON true
            WHERE o.id = %s
            """,
            (list(passed_over), rollout),
        )
        found = await cursor.fetchone()
    assert found is not None, "it is locked"
    return found


async def claim(connection: Connection, rollout: int, tick: int, *, limit: int) -> dict[ExposureKey, Counts]:
    """Claim a rollout's evidence for a tick, oldest first, and add it up.

    Rows that commit late, with lower numbers than those claimed before, are simply unclaimed, and come with the next
    tick.
    """
    cursor = await connection.execute(_CLAIM, {"tick": tick, "rollout": rollout, "limit": limit})
    found: dict[ExposureKey, list[Counts]] = {}
    for stage, period, arm, body in await cursor.fetchall():
        found.setdefault(ExposureKey(rollout, stage, period, arm), []).append(_DECODER.decode(body))
    return {key: merge(*parts) for key, parts in found.items()}


async def book(
    connection: Connection, rollout: int, tick: int, *, books: bytes | None, block: bytes | None, at_ms: int
) -> None:
    """Store the books after a tick, unless they are as they were (None), and the blocks that it closed, for ever."""
    if block is not None:
        await connection.execute(
            "INSERT INTO block (rollout_id, tick, at, body) VALUES (%s, %s, %s, %s)", (rollout, tick, utc(at_ms), block)
        )
    await connection.execute(
        "UPDATE rollout SET tick = %s, books = coalesce(%s, books) WHERE id = %s", (tick, books, rollout)
    )


async def spend(connection: Connection, rollout: int, usd: float) -> float:
    """Add to what a rollout's mirrored answers have cost.

    Returns:
        All of it, in US dollars.
    """
    cursor = await connection.execute(
        "UPDATE rollout SET shadow_usd = shadow_usd + %s WHERE id = %s RETURNING shadow_usd", (usd, rollout)
    )
    row = await cursor.fetchone()
    return 0.0 if row is None else float(row[0])


async def freeze(connection: Connection, rollout: int, terms: Terms) -> None:
    """Write the terms, while the baseline is being collected."""
    await connection.execute("UPDATE rollout SET terms = %s WHERE id = %s", (encode(terms), rollout))


async def list_blocks(connection: Connection, rollout: int) -> list[tuple[int, bytes]]:
    """List the blocks that closed, with the tick that closed them, first to last."""
    cursor = await connection.execute("SELECT tick, body FROM block WHERE rollout_id = %s ORDER BY tick", (rollout,))
    return [(tick, body) for tick, body in await cursor.fetchall()]


async def find_heaviest(
    connection: Connection, rollout: int, desk: Desk, *, since: datetime, now: datetime, limit: int
) -> tuple[int, int]:
    """Count the latest interactions of the unit that has most of them, and of all units.

    Reads at most about ``limit`` rows, by index.
    """
    cursor = await connection.execute(
        _HEAVIEST,
        {
            "application": desk.application_number,
            "stable": desk.stable_number,
            "candidate": desk.candidate_number,
            "rollout": rollout,
            "since": since,
            "now": now,
            "limit": limit,
        },
    )
    row = await cursor.fetchone()
    return (0, 0) if row is None else (int(row[0]), int(row[1]))
