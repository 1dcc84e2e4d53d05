"""Feedback in the database: append-only, one current value per target, metric and author."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import msgspec
from psycopg import sql

from headway.clock import utc
from headway.domain.feedback import Attribution, Feedback
from headway.errors import LimitError
from headway.ids import Kind
from headway.storage import ratings
from headway.storage.database import Connection
from headway.storage.paging import Condition, Listing

LISTING = Listing(
    select="""
        SELECT f.id, f.at, a.name AS application, r.name AS release, f.rollout, f.stage,
               (ARRAY['stable', 'candidate'])[f.arm + 1] AS arm,
               (ARRAY['randomised', 'pinned', 'manual', 'shadow', 'holdback'])[f.kind] AS kind,
               f.target, f.target_id, f.choice, f.metric, coalesce(to_jsonb(f.number), to_jsonb(f.text)) AS value,
               f.comment, f.correction, f.source, f.author, f.key, encode(f.unit, 'hex') AS unit, f.exposed_at,
               f.superseded_at
        FROM feedback f LEFT JOIN application a ON a.id = f.application LEFT JOIN release r ON r.id = f.release""",
    order=(("f.at", "at", "time"), ("f.id", "id", "uuid")),
)

_SAME = sql.SQL(
    "application = %(application)s AND target = %(target)s AND target_id = %(target_id)s AND choice = %(choice)s"
    " AND metric = %(metric)s AND author = %(author)s"
)
_CURRENT = sql.SQL(
    "SELECT id, number, text, comment, correction, source FROM feedback WHERE {} AND superseded_at IS NULL"
).format(_SAME)
_NEXT = sql.SQL("SELECT min(at) FROM feedback WHERE {} AND at > %(at)s").format(_SAME)
_SUPERSEDE = sql.SQL(
    "UPDATE feedback SET superseded_at = %(at)s WHERE {} AND at <= %(at)s AND coalesce(superseded_at > %(at)s, true)"
).format(_SAME)
_INSERT = """
    INSERT INTO feedback (id, at, target, target_id, choice, application, release, rollout, stage, arm, kind, unit,
                          exposed_at, metric, number, text, comment, correction, source, author, key, superseded_at)
    VALUES (%(id)s, %(at)s, %(target)s, %(target_id)s, %(choice)s, %(application)s, %(release)s, %(rollout)s, %(stage)s,
            %(arm)s, %(kind)s, %(unit)s, %(exposed_at)s, %(metric)s, %(number)s, %(text)s, %(comment)s, %(correction)s,
            %(source)s, %(author)s, %(key)s, %(superseded_at)s)"""


@dataclass(frozen=True)
class Kept:
    """What became of a feedback value.

    Attributes:
        id: The value that stands for it: its own, or the equal one that was there before.
        new: It was appended, now or by an earlier try.
    """

    id: uuid.UUID
    new: bool


async def keep(connection: Connection, feedback: Feedback, *, revisions: int | None = None) -> Kept:
    """Append a value, unless the author's current value is equal; the value accepted last is the current one.

    Whatever arrives together or late, in any order, and however often: there is one current value per target, metric
    and author, and each accepted value is there once. What it means for a running rollout is kept along.

    Args:
        connection: Of a transaction.
        feedback: The value.
        revisions: Refuse it when the author has given so many values for this metric and target; None never does.

    Raises:
        LimitError: There are too many values already.
    """
    row = _row(feedback)
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (_lock_name(feedback),))
    if await _first(connection, "SELECT 1 FROM feedback WHERE id = %(id)s", row):
        return Kept(row["id"], new=True)
    current = await _first(connection, _CURRENT, row)
    value = (feedback.number, feedback.text, feedback.comment, feedback.correction, feedback.source)
    if current is not None and current[1:] == value:
        # Said again of what may be another exposure by now: a conversation goes on.
        await ratings.note_feedback(connection, feedback, current[0])
        return Kept(current[0], new=False)
    if revisions is not None:
        await _check_room(connection, feedback, revisions)
    following = await _first(connection, _NEXT, row)  # a later value may have been faster: then this one is history
    await connection.execute(_SUPERSEDE, row)
    await connection.execute(_INSERT, {**row, "superseded_at": following and following[0]})
    await ratings.note_feedback(connection, feedback, row["id"])
    return Kept(row["id"], new=True)


async def attribute_conversation(
    connection: Connection, application: int, conversation: str, since: datetime
) -> Attribution | None:
    """Find which release a conversation is on: that of its latest interaction since a time; None when it has none."""
    cursor = await connection.execute(
        "SELECT application, release, rollout, stage, arm, kind, unit, (extract(epoch FROM at) * 1000)::bigint"
        " FROM interaction WHERE application = %s AND conversation = %s AND at >= %s AND kind <> %s"
        " ORDER BY at DESC LIMIT 1",
        (application, conversation, since, Kind.SHADOW),
    )
    row = await cursor.fetchone()
    return None if row is None else Attribution(*row)


def conditions(
    *,
    application: str | None = None,
    metric: str | None = None,
    release: str | None = None,
    source: str | None = None,
    target_id: str | None = None,
    since: datetime | None = None,
    current: bool = True,
) -> list[Condition]:
    """Say which feedback to list; by default current values only, without what was superseded."""
    return [
        ("f.application = (SELECT id FROM application WHERE name = %s)", application),
        ("f.metric = %s", metric),
        ("f.release IN (SELECT id FROM release WHERE name = %s)", release),
        ("f.source = %s", source),
        ("f.target_id = %s", target_id),
        ("f.at >= %s", since),
        ("(f.superseded_at IS NULL) = %s", current or None),
    ]


def _row(feedback: Feedback) -> dict[str, Any]:
    given = feedback.attribution
    return {
        **msgspec.structs.asdict(feedback),
        **msgspec.structs.asdict(given),
        "id": uuid.UUID(bytes=feedback.id),
        "at": utc(feedback.unix_ms),
        "exposed_at": utc(given.exposed_unix_ms),
    }


def _lock_name(feedback: Feedback) -> str:
    parts = (feedback.attribution.application, feedback.target_id, feedback.choice, feedback.metric, feedback.author)
    return "\x1f".join(map(str, parts))


async def _first(
    connection: Connection, query: LiteralString | sql.Composed, row: dict[str, Any]
) -> tuple[Any, ...] | None:
    return await (await connection.execute(query, row)).fetchone()


async def _check_room(connection: Connection, feedback: Feedback, revisions: int) -> None:
    # Over all choices: who may rate without a key must not fill the disk choice by choice.
    found = await _first(
        connection,
        "SELECT count(*) FROM feedback WHERE application = %(application)s AND target = %(target)s"
        " AND target_id = %(target_id)s AND metric = %(metric)s AND author = %(author)s",
        _row(feedback),
    )
    if found is not None and found[0] >= revisions:
        message = (
            f"{feedback.author!r} has given {feedback.metric!r} of this {feedback.target} {found[0]} values;"
            " no more are taken"
        )
        raise LimitError(message, code="feedback_history_full")
