"""Ratings and responses: what people say of answers, as a rollout books it (statistics, 4b, rules 4 and 5).

A unit's first value of a metric is its rating. It is written with the feedback itself, settles a while later, and is
claimed once, with the value as it stood then. A unit that says anything at all, or reports, has responded.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime

import msgspec
from psycopg import sql

from headway.clock import utc
from headway.domain.books import Rating, ResponseKey
from headway.domain.feedback import Attribution, Feedback, LinkedInteraction
from headway.ids import Kind
from headway.storage.database import Connection

_EVIDENCE_KINDS = frozenset((Kind.RANDOMISED, Kind.MANUAL, Kind.HOLDBACK))

# A rollout that has ended takes no more; one without terms is manual and books by the defaults.
_RUNNING = sql.SQL("""
    WITH running AS (
        SELECT o.id AS rollout, coalesce(o.terms->>'unit', a.unit) AS unit,
               coalesce((o.terms->'policy'->>'settle_seconds')::float8, 60) * interval '1 second' AS settle,
               date_bin(coalesce((o.terms->'recording'->>'period_seconds')::int, 3600) * interval '1 second',
                        %(exposed_at)s::timestamptz, 'epoch') AS period
        FROM rollout o JOIN application a ON a.id = o.application_id
        WHERE o.id = %(rollout)s AND o.ended_at IS NULL
    )""")
_RESPOND = sql.SQL("""
        INSERT INTO response (rollout, stage, period, arm, unit, kind)
        SELECT rollout, %(stage)s, period, %(arm)s, %(unit)s, %(response)s FROM running ON CONFLICT DO NOTHING""")
_NOTE_REPORT = _RUNNING + _RESPOND
_NOTE_FEEDBACK = sql.SQL("""{}, responded AS ({})
    INSERT INTO rating (rollout, metric, unit, feedback, stage, period, arm, settles_at)
    SELECT rollout, %(metric)s, %(unit)s, %(feedback)s, %(stage)s, period, %(arm)s, %(at)s::timestamptz + settle
    FROM running WHERE %(number)s::float8 IS NOT NULL AND (%(target)s = 'interaction' OR unit = 'conversation')
    ON CONFLICT DO NOTHING""").format(_RUNNING, _RESPOND)

_CLAIM = """
    WITH claimed AS (
        UPDATE rating SET tick = %(tick)s WHERE rollout = %(rollout)s AND tick IS NULL AND settles_at <= %(now)s
        RETURNING *
    )
    SELECT c.metric, stood.number, c.unit, c.stage, extract(epoch FROM c.period)::bigint, c.arm
    FROM claimed c JOIN feedback first ON first.id = c.feedback
    CROSS JOIN LATERAL (
        SELECT f.number FROM feedback f
        WHERE f.target_id = first.target_id AND f.target = first.target AND f.application = first.application
          AND f.choice = first.choice AND f.metric = first.metric AND f.author = first.author
          AND f.at <= c.settles_at AND coalesce(f.superseded_at > c.settles_at, true) AND f.number IS NOT NULL
    ) stood
    ORDER BY c.metric, c.unit"""

# A unit is one of those first exposed then and there, unless it is known to have come elsewhere before.
_COUNT = """
    WITH period AS (
        SELECT coalesce((terms->'recording'->>'period_seconds')::int, 3600) * interval '1 second' AS length
        FROM rollout WHERE id = %(rollout)s
    ), wanted AS (
        SELECT (k->>0)::int AS stage, to_timestamp((k->>1)::bigint) AS period, (k->>2)::smallint AS arm
        FROM jsonb_array_elements(%(keys)s::jsonb) AS k
    )
    SELECT r.stage, extract(epoch FROM r.period)::bigint, r.arm,
           count(*) FILTER (WHERE r.kind = 'feedback'), count(*) FILTER (WHERE r.kind = 'report')
    FROM wanted CROSS JOIN period
    JOIN response r ON r.rollout = %(rollout)s AND r.stage = wanted.stage AND r.period = wanted.period
                   AND r.arm = wanted.arm
    LEFT JOIN unit_state s ON s.rollout = r.rollout AND s.unit = r.unit
    WHERE s.unit IS NULL OR (s.stage = r.stage AND s.arm = r.arm
                             AND s.first_at >= r.period AND s.first_at < r.period + period.length)
    GROUP BY r.stage, r.period, r.arm"""


async def note_feedback(connection: Connection, feedback: Feedback, row: uuid.UUID) -> None:
    """Note that a unit has responded, and its rating if it is its first value of a metric of numbers.

    What is nobody's evidence (pinned, outside a rollout, of the shadow stage, of a rollout that has ended) is passed
    over.

    Args:
        connection: Of the transaction that keeps the feedback.
        feedback: The value.
        row: Id of the feedback that stands for it.
    """
    given = feedback.attribution
    if not _is_evidence(given):
        return
    values = {
        **_exposure(given),
        "response": "feedback",
        "metric": feedback.metric,
        "number": feedback.number,
        "target": feedback.target,
        "feedback": row,
        "at": utc(feedback.unix_ms),
    }
    await connection.execute(_NOTE_FEEDBACK, values)


async def note_report(connection: Connection, interactions: Iterable[LinkedInteraction]) -> None:
    """Note that the units of the interactions that a report names have responded; what is no evidence is passed over.

    Args:
        connection: Of the transaction that keeps the report.
        interactions: What the report is about.
    """
    exposures = [_exposure(each) for each in interactions if _is_evidence(each)]
    if not exposures:
        return
    # In one order: two reports about the same units must not wait for each other in a ring.
    exposures.sort(key=lambda each: (each["rollout"], each["stage"], each["exposed_at"], each["arm"], each["unit"]))
    async with connection.cursor() as cursor:
        await cursor.executemany(_NOTE_REPORT, [{**each, "response": "report"} for each in exposures])


async def claim(connection: Connection, rollout: int, tick: int, now: datetime) -> list[Rating]:
    """Claim a rollout's ratings that have settled by ``now``, each once, for a tick.

    Returns:
        Ratings with the value as it stood when they settled, in the order of metric and unit.
    """
    cursor = await connection.execute(_CLAIM, {"rollout": rollout, "tick": tick, "now": now})
    return [Rating(*row) for row in await cursor.fetchall()]


async def count_responses(
    connection: Connection, rollout: int, keys: Iterable[ResponseKey]
) -> dict[ResponseKey, tuple[int, int]]:
    """Count, of the units first exposed in a stage, period and arm, those that gave feedback and those that reported.

    Returns:
        Both counts for each of ``keys``.
    """
    counts = dict.fromkeys(keys, (0, 0))
    if counts:
        values = {"rollout": rollout, "keys": msgspec.json.encode(list(counts)).decode()}
        async for stage, period, arm, feedback, reports in await connection.execute(_COUNT, values):
            counts[ResponseKey(stage, period, arm)] = (feedback, reports)
    return counts


def _is_evidence(given: Attribution | LinkedInteraction) -> bool:
    return given.rollout > 0 and given.stage > 0 and given.kind in _EVIDENCE_KINDS


def _exposure(given: Attribution | LinkedInteraction) -> dict[str, object]:
    return {
        "rollout": given.rollout,
        "stage": given.stage,
        "arm": given.arm,
        "unit": given.unit,
        "exposed_at": utc(given.exposed_unix_ms),
    }
