"""What an application has recorded in the last days, written straight into the tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from headway.ids import Kind
from headway.storage.database import Connection


@dataclass(frozen=True)
class Record:
    """Interactions of one kind; ``when`` and the columns are SQL over the number ``g``, from 0 to ``count``.

    The units are conversations of ``turns`` interactions.
    """

    application: int
    release: int
    until: datetime
    count: int
    hours: float = 24.0
    turns: int = 1
    units: int = 1_000_000_000
    rollout: int = 0
    arm: int = 0
    kind: int = int(Kind.RANDOMISED)
    thumbs: float = 0.0  # part of the units that rate
    good: float = 0.7
    columns: tuple[tuple[str, str], ...] = ()

    def having(self, **changes: Any) -> Record:
        """The same with other fields."""
        return replace(self, **changes)


async def write(connection: Connection, record: Record) -> None:
    """Write the interactions, and the ratings of some of them."""
    for day in range(int(record.hours // 24) + 2):
        at = record.until - timedelta(days=day)
        await connection.execute("SELECT ensure_interaction_partition(%s)", (at.date(),))
    columns = {
        "error": "NULL",
        "release_error": "false",
        "attempt_errors": "0",
        "fallback": "false",
        "refused": "false",
        "filtered": "false",
        "aborted": "false",
        "cost_usd": "0.001",
        "first_token_ms": "100",
        "total_ms": "1000 + g %% 100",
        **dict(record.columns),
    }
    unit = f"decode(md5((g / {record.turns} %% {record.units})::text), 'hex')"
    query = f"""
        INSERT INTO interaction (at, id, application, release, rollout, stage, arm, kind, unit, own_unit, key,
            conversation, operation, stream, status, deployment, attempts, input_tokens, output_tokens, overhead_ms,
            queue_ms, {", ".join(columns)})
        SELECT %(until)s::timestamptz - %(hours)s * interval '1 hour' * ((g + 0.5) / %(count)s), gen_random_uuid(),
            %(application)s, %(release)s, %(rollout)s, 0, %(arm)s, %(kind)s, {unit}, false, 1,
            'c' || g / {record.turns}, 'chat', true, 200, 'd', 1, 10, 20, 1, 0, {", ".join(columns.values())}
        FROM generate_series(0, %(count)s - 1) g"""
    values = {
        "until": record.until,
        "hours": record.hours,
        "count": record.count,
        "application": record.application,
        "release": record.release,
        "rollout": record.rollout,
        "arm": record.arm,
        "kind": record.kind,
    }
    await connection.execute(query.encode(), values)
    if record.thumbs:
        await connection.execute(
            """
            INSERT INTO feedback (id, at, target, target_id, application, release, rollout, stage, arm, kind, unit,
                exposed_at, metric, number, source, author, key)
            SELECT gen_random_uuid(), at, 'interaction', id::text, application, release, rollout, 0, arm, kind, unit,
                at, 'thumbs_up',
                (row_number() OVER (ORDER BY at) * %(good)s::numeric %% 1 >= 1 - %(good)s::numeric)::int,
                'end_user', 'u', 0
            FROM (SELECT DISTINCT ON (unit) * FROM interaction
                  WHERE application = %(application)s AND release = %(release)s AND arm = %(arm)s AND kind = %(kind)s
                    AND at BETWEEN %(until)s::timestamptz - %(hours)s * interval '1 hour' AND %(until)s
                  ORDER BY unit, at) first
            WHERE get_byte(unit, 0) < %(thumbs)s * 256
            """,
            values | {"good": record.good, "thumbs": record.thumbs},
        )
