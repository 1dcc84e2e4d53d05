"""Decisions on rollouts: each takes effect by compare-and-set, with its entry in the log, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.clock import utc
from headway.domain.assessment import Assessment
from headway.domain.rollout import Command, Decision, Status, is_over, phase_of
from headway.errors import ConflictError
from headway.ids import Kind
from headway.storage import outbox
from headway.storage.database import Connection
from headway.storage.rollouts import Rollout, add_stratum, describe, encode, find_rollout, promote

CONTROLLER = "controller"

_EVENTS: Mapping[str, str] = {
    "advance": "rollout.advanced",
    "pause": "rollout.paused",
    "resume": "rollout.resumed",
    "roll_back": "rollout.rolled_back",
    "inconclusive": "rollout.inconclusive",
}
_TOLD_HOLDS: Mapping[str, str] = {
    "approval": "rollout.approval_needed",
    "no_data": "rollout.alert",
    "provider_changed": "rollout.alert",
    "fingerprint_changed": "rollout.alert",
    "heavy_unit": "rollout.alert",
}


@dataclass(frozen=True)
class Circumstances:
    """Who decides, when, and on what.

    Attributes:
        author: ``controller``, or who asked.
        now_ms: Unix milliseconds.
        tick: The controller's tick: the decision sees the blocks up to there.
        assessment: What it is decided on; None where nothing is assessed.
        command: What was asked; None where the controller decides.
        words: Why, in the words of the person who asked.
    """

    author: str
    now_ms: int
    tick: int
    assessment: Assessment | None = None
    command: Command | None = None
    words: str = ""


@dataclass(frozen=True)
class Change:
    """What a decision did.

    Attributes:
        rollout: As it is now.
        number: The decision's number in the log.
        routed: Traffic goes another way from now on, or is booked elsewhere: a snapshot has to say so.
    """

    rollout: Rollout
    number: int
    routed: bool


async def change(connection: Connection, rollout: Rollout, decision: Decision, circumstances: Circumstances) -> Change:
    """Let a decision take effect: rollout, stage, log, stable release and outbox; the snapshot is the caller's.

    Args:
        connection: Of the transaction.
        rollout: As it was read; if somebody has changed it since, nothing is changed.
        decision: What happens; one that changes nothing is logged only.
        circumstances: Who decides, when, and on what.

    Raises:
        ConflictError: The rollout, or the stable release, is not as it was read any more.
    """
    before, after = rollout.status, decision.status
    assert before is not None, "a manual rollout has no status"
    at = utc(circumstances.now_ms)
    cursor = await connection.execute(
        """
        UPDATE rollout SET state = %s, stage = %s, share = %s, status = %s, version = version + 1, kind = %s,
               ended_at = CASE WHEN %s THEN %s::timestamptz END
        WHERE id = %s AND version = %s AND ended_at IS NULL
        """,
        (
            after.state,
            after.stage,
            after.share,
            encode(after),
            int(Kind.HOLDBACK if phase_of(after) == "holdback" else Kind.RANDOMISED),
            is_over(after),
            at,
            rollout.number,
            rollout.version,
        ),
    )
    if cursor.rowcount != 1:
        raise ConflictError(
            f"somebody else has just changed the rollout of {rollout.application}; look again, then repeat"
        )
    if after.stage != before.stage or (phase_of(before) is None and phase_of(after) is not None):
        reason = circumstances.words or decision.message
        await add_stratum(connection, rollout.number, after, at=at, author=circumstances.author, reason=reason)
    if after.state == "promoted":
        await promote(connection, rollout)
    number = await _log(connection, rollout, decision, circumstances)
    changed = await find_rollout(connection, rollout.number)
    await _tell(connection, changed, decision, circumstances, number)
    return Change(changed, number, _route(before) != _route(after))


async def add_figure(
    connection: Connection, rollout: int, status: Status, assessment: Assessment, *, tick: int, now_ms: int
) -> None:
    """Keep what a rollout looks like at a tick, for people to look at."""
    await connection.execute(
        "INSERT INTO figure (rollout_id, tick, at, status, assessment) VALUES (%s, %s, %s, %s, %s)",
        (rollout, tick, utc(now_ms), encode(status), encode(assessment)),
    )


async def has_told(connection: Connection, rollout: int, reason: str, stage: int, *, before: int | None = None) -> bool:
    """Say whether a hold for a reason is in the log of a stage already, under a lower number than ``before``."""
    cursor = await connection.execute(
        "SELECT 1 FROM decision WHERE rollout_id = %s AND outcome = 'hold' AND reason = %s"
        " AND (after->>'stage')::integer = %s AND (%s::integer IS NULL OR number < %s) LIMIT 1",
        (rollout, reason, stage, before, before),
    )
    return await cursor.fetchone() is not None


def _route(status: Status) -> tuple[object, ...]:
    phase = phase_of(status)
    return status.stage, status.share, phase, phase == "shadow" and status.state == "paused"


async def _log(connection: Connection, rollout: Rollout, decision: Decision, circumstances: Circumstances) -> int:
    assessment = circumstances.assessment
    cursor = await connection.execute(
        """
        INSERT INTO decision (rollout_id, number, tick, at, author, outcome, reason, message, metric, command, words,
                              before, after, assessment)
        SELECT %s, coalesce(max(number), 0) + 1, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s
        FROM decision WHERE rollout_id = %s RETURNING number
        """,
        (
            rollout.number,
            circumstances.tick,
            utc(circumstances.now_ms),
            circumstances.author,
            decision.outcome,
            decision.reason,
            decision.message,
            decision.metric,
            circumstances.command,
            circumstances.words,
            None if rollout.status is None else encode(rollout.status),
            encode(decision.status),
            None if assessment is None else encode(assessment),
            rollout.number,
        ),
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _tell(
    connection: Connection, rollout: Rollout, decision: Decision, circumstances: Circumstances, number: int
) -> None:
    event = await _event(connection, rollout, decision, number)
    if event is None:
        return
    data: dict[str, Any] = {
        **describe(rollout),
        "decision": number,
        "outcome": decision.outcome,
        "reason": decision.reason,
        "message": decision.message,
        "metric": decision.metric,
        "author": circumstances.author,
    }
    await outbox.add(connection, event, data, circumstances.now_ms)


async def _event(connection: Connection, rollout: Rollout, decision: Decision, number: int) -> str | None:
    if decision.status.state == "promoted":
        return "rollout.promoted"
    if decision.outcome != "hold":
        return _EVENTS.get(decision.outcome)
    if decision.reason not in _TOLD_HOLDS:
        return None
    # Evidence may waver about a threshold, and data come and go: that is told once per stage.
    wavers = decision.reason in {"approval", "no_data"}
    if wavers and await has_told(connection, rollout.number, decision.reason, decision.status.stage, before=number):
        return None
    return _TOLD_HOLDS[decision.reason]
