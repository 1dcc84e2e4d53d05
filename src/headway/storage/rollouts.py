"""Rollouts as stored: opened, read, and, under the policy `manual`, moved; every change is compare-and-set.

Under any other policy ``headway.storage.decisions`` changes them. Times of manual changes are those of the change
itself, not of its transaction's start: who waited for a lock came later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString, TypeVar

import msgspec
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from headway.clock import utc
from headway.domain.assessment import Assessment
from headway.domain.books import Stratum
from headway.domain.difference import Difference, find_difference
from headway.domain.recording import Terms
from headway.domain.release import Bundle
from headway.domain.rollout import Phase, Status, phase_of
from headway.errors import ConflictError, NotFoundError
from headway.ids import Kind
from headway.storage import outbox
from headway.storage.applications import Application, Release
from headway.storage.database import Connection

Ending = Literal["promoted", "rolled_back"]

_Struct = TypeVar("_Struct", bound=msgspec.Struct)
_ROLLOUTS: LiteralString = """
    SELECT o.id AS number, a.name AS application, s.name AS stable, c.name AS candidate, o.state, o.stage, o.share,
           o.started_at, o.ended_at, coalesce(o.policy->>'name', o.policy #>> '{}') AS policy, o.restarts, o.version,
           o.tick, o.started_by, o.shadow_usd, o.terms::text, o.status::text, s.bundle::text AS stable_bundle,
           c.bundle::text AS candidate_bundle
    FROM rollout o JOIN application a ON a.id = o.application_id
    JOIN release s ON s.id = o.stable_release JOIN release c ON c.id = o.candidate_release
"""
_DECISIONS: LiteralString = """
    SELECT number, tick, at, author, outcome, reason, message, metric, command, words, before::text, after::text,
           assessment::text
    FROM decision
"""


@dataclass(frozen=True)
class Rollout:
    """One move of an application from its stable release to a candidate.

    Attributes:
        number: Its number.
        application, stable, candidate: Names of the application and the releases.
        state: ``running`` under the policy ``manual``, else ``headway.domain.rollout.State``; or how it ended.
        stage: Stratum that interactions are booked under.
        share: The candidate's share of units, 0 to 1.
        started_at, ended_at: From when to when.
        policy: Name of its policy.
        restarts: Earlier rollouts of this candidate that were rolled back.
        version: Grows with every change of the status: compare-and-set.
        tick: How often the controller has booked.
        started_by: Who started it.
        shadow_usd: What mirrored answers have cost.
        terms: What it is decided by; None under ``manual``.
        status: Where it stands; None under ``manual``.
        difference: By which parts the two releases differ.
    """

    number: int
    application: str
    stable: str
    candidate: str
    state: str
    stage: int
    share: float
    started_at: datetime
    ended_at: datetime | None
    policy: str
    restarts: int
    version: int
    tick: int
    started_by: str
    shadow_usd: float
    terms: Terms | None
    status: Status | None
    difference: Difference


@dataclass(frozen=True)
class Stage:
    """One step of a rollout: the candidate's share from then on, who set it and why."""

    stage: int
    share: float
    since: datetime
    author: str
    reason: str
    phase: Phase = "ramp"
    ratio_epoch: int = 0


@dataclass(frozen=True)
class Step:
    """A step to take: the candidate's new share (0 to 1), who takes it and why."""

    share: float
    author: str
    reason: str


@dataclass(frozen=True)
class Opening:
    """How a rollout under a policy begins.

    Attributes:
        terms: What it is decided by.
        status: Where it begins: ``baseline``, ``shadow``, or the first step of the ramp.
        restarts: Earlier rollouts of this candidate that were rolled back.
        author: Who starts it.
        reason: Why.
        now_ms: Unix milliseconds.
    """

    terms: Terms
    status: Status
    restarts: int
    author: str
    reason: str
    now_ms: int


@dataclass(frozen=True)
class RolloutDecision:
    """A decision as it was taken.

    Attributes:
        number: Counts the decisions of the rollout, from 1.
        tick: The controller's tick that it belongs to: it saw the blocks up to there.
        at: When.
        author: ``controller``, or who asked.
        outcome, reason, message, metric: See ``headway.domain.rollout.Decision``.
        command: What was asked; None where the controller decided.
        words: Why, in the words of the person who asked.
        before, after: Where the rollout stood and stands.
        assessment: What it was decided on; None where nothing was assessed.
    """

    number: int
    tick: int
    at: datetime
    author: str
    outcome: str
    reason: str
    message: str
    metric: str | None
    command: str | None
    words: str
    before: Status
    after: Status
    assessment: Assessment | None


@dataclass(frozen=True)
class Figure:
    """What a rollout looked like at a tick."""

    tick: int
    at: datetime
    status: Status
    assessment: Assessment


async def list_rollouts(
    connection: Connection, *, application: str | None = None, number: int | None = None, active: bool = False
) -> list[Rollout]:
    """List rollouts, newest first: all, or one application's, or one, or those that are running."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _ROLLOUTS
            + """
            WHERE (%(application)s::text IS NULL OR a.name = %(application)s)
              AND (%(number)s::integer IS NULL OR o.id = %(number)s)
              AND (NOT %(active)s OR o.ended_at IS NULL)
            ORDER BY o.id DESC
            """,
            {"application": application, "number": number, "active": active},
        )
        return [_rollout(row) for row in await cursor.fetchall()]


async def find_rollout(connection: Connection, number: int, *, lock: bool = False) -> Rollout:
    """Find a rollout by its number; with ``lock`` nobody else changes it until the transaction ends.

    The lock includes the application, which comes first: whoever needs both takes them in this order.

    Raises:
        NotFoundError: There is none.
    """
    if lock:
        await connection.execute(
            "SELECT 1 FROM application WHERE id = (SELECT application_id FROM rollout WHERE id = %s) FOR NO KEY UPDATE",
            (number,),
        )
        await connection.execute("SELECT 1 FROM rollout WHERE id = %s FOR NO KEY UPDATE", (number,))
    found = await list_rollouts(connection, number=number)
    if not found:
        raise NotFoundError(f"there is no rollout {number}; `headway rollout list` shows them")
    return found[0]


async def active_rollout(connection: Connection, application: str) -> Rollout | None:
    """Find the application's running rollout."""
    running = await list_rollouts(connection, application=application, active=True)
    return running[0] if running else None


async def list_stages(connection: Connection, rollout: int) -> list[Stage]:
    """List the steps of a rollout, first to last."""
    async with connection.cursor(row_factory=class_row(Stage)) as cursor:
        await cursor.execute(
            "SELECT stage, share, since, author, reason, phase, ratio_epoch FROM rollout_stage WHERE rollout_id = %s"
            " ORDER BY stage",
            (rollout,),
        )
        return await cursor.fetchall()


async def list_strata(connection: Connection, rollout: int) -> list[Stratum]:
    """List the strata that a rollout's evidence is booked in, first to last."""
    return [
        Stratum(each.stage, each.phase, each.share, each.ratio_epoch) for each in await list_stages(connection, rollout)
    ]


async def list_decisions(
    connection: Connection, rollout: int, *, limit: int = 100, before: int | None = None
) -> list[RolloutDecision]:
    """List a rollout's decisions, newest first; with ``before``, those with lower numbers."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            _DECISIONS
            + " WHERE rollout_id = %s AND (%s::integer IS NULL OR number < %s) ORDER BY number DESC LIMIT %s",
            (rollout, before, before, limit),
        )
        return [_decision(row) for row in await cursor.fetchall()]


async def list_figures(
    connection: Connection, rollout: int, *, since: datetime | None = None, limit: int = 2000
) -> list[Figure]:
    """List a rollout's figures after a time, oldest first, thinned out evenly to ``limit``; the last one is kept."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT f.tick, f.at, f.status::text, f.assessment::text FROM figure f JOIN (
                SELECT tick, row_number() OVER (ORDER BY tick) AS place, count(*) OVER () AS total FROM figure
                WHERE rollout_id = %(rollout)s AND (%(since)s::timestamptz IS NULL OR at > %(since)s)
            ) AS placed USING (tick)
            WHERE f.rollout_id = %(rollout)s
              AND (total <= %(limit)s OR place * %(limit)s / total > (place - 1) * %(limit)s / total)
            ORDER BY f.tick
            """,
            {"rollout": rollout, "since": since, "limit": limit},
        )
        return [_figure(row) for row in await cursor.fetchall()]


async def latest_figure(connection: Connection, rollout: int) -> Figure | None:
    """Read a rollout's newest figure; None before the first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT tick, at, status::text, assessment::text FROM figure WHERE rollout_id = %s"
            " ORDER BY tick DESC LIMIT 1",
            (rollout,),
        )
        row = await cursor.fetchone()
    return None if row is None else _figure(row)


async def count_restarts(connection: Connection, candidate: Release) -> int:
    """Count the earlier rollouts of a release that were rolled back, or ended without a result."""
    cursor = await connection.execute(
        "SELECT count(*) FROM rollout WHERE candidate_release = %s AND state IN ('rolled_back', 'inconclusive')"
        " AND ended_at IS NOT NULL",
        (candidate.number,),
    )
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def open_staged(
    connection: Connection, application: Application, candidate: Release, opening: Opening, salt: bytes
) -> Rollout:
    """Open a rollout under a policy, from the application's stable release to the candidate.

    Args:
        connection: Of the transaction.
        application: As it was read in this transaction.
        candidate: Another release of it.
        opening: How it begins.
        salt: Random bytes that decide which units go first.

    Raises:
        ConflictError: A rollout is running, or the stable release has changed meanwhile.
    """
    status, at = opening.status, utc(opening.now_ms)
    cursor = await connection.execute(
        """
        INSERT INTO rollout (application_id, stable_release, candidate_release, kind, policy, salt, state, stage, share,
                             started_at, terms, status, restarts, started_by)
        SELECT id, stable_release, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM application
        WHERE id = %s AND stable_release = %s AND retired_at IS NULL
        ON CONFLICT (application_id) WHERE ended_at IS NULL DO NOTHING RETURNING id
        """,
        (
            candidate.number,
            int(Kind.RANDOMISED),
            Jsonb(opening.terms.policy.name),
            salt,
            status.state,
            status.stage,
            status.share,
            at,
            encode(opening.terms),
            encode(status),
            opening.restarts,
            opening.author,
            application.number,
            application.stable_release,
        ),
    )
    row = await cursor.fetchone()
    if row is None:
        raise _overtaken(application.name)
    rollout = await find_rollout(connection, row[0])
    if phase_of(status) is not None:
        await add_stratum(connection, rollout.number, status, at=at, author=opening.author, reason=opening.reason)
    await outbox.add(
        connection,
        "rollout.started",
        {**describe(rollout), "author": opening.author, "message": opening.reason},
        opening.now_ms,
    )
    return rollout


async def add_stratum(
    connection: Connection, rollout: int, status: Status, *, at: datetime, author: str, reason: str
) -> None:
    """Write the stage that a rollout has come to, in a phase."""
    await connection.execute(
        "INSERT INTO rollout_stage (rollout_id, stage, share, since, author, reason, phase, ratio_epoch)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (rollout, status.stage, status.share, at, author, reason, phase_of(status), status.ratio_epoch),
    )


def describe(rollout: Rollout) -> dict[str, Any]:
    """Say where a rollout stands, for those outside."""
    return {
        "rollout": rollout.number,
        "application": rollout.application,
        "stable": rollout.stable,
        "candidate": rollout.candidate,
        "policy": rollout.policy,
        "state": rollout.state,
        "stage": rollout.stage,
        "share": rollout.share,
        **describe_difference(rollout.difference),
    }


def describe_difference(difference: Difference) -> dict[str, Any]:
    """Say by which parts the releases of a rollout differ, for those outside."""
    return {
        "differs": list(difference.parts),
        "stable_index": difference.stable_index,
        "candidate_index": difference.candidate_index,
    }


def encode(value: msgspec.Struct) -> str:
    """Write a structure as JSON for a column."""
    return msgspec.json.encode(value).decode()


async def open_manual(
    connection: Connection, application: Application, candidate: Release, step: Step, salt: bytes
) -> Rollout:
    """Open a rollout from the application's stable release to the candidate, at stage 1.

    Args:
        connection: Of the transaction.
        application: As it was read in this transaction.
        candidate: Another release of it.
        step: The candidate's first share.
        salt: Random bytes that decide which units go first.

    Raises:
        ConflictError: A rollout is running, or the stable release has changed meanwhile.
    """
    cursor = await connection.execute(
        """
        INSERT INTO rollout (application_id, stable_release, candidate_release, kind, policy, salt, state, stage, share,
                             started_at, started_by)
        SELECT id, stable_release, %s, %s, %s, %s, 'running', 1, %s, clock_timestamp(), %s FROM application
        WHERE id = %s AND stable_release = %s AND retired_at IS NULL
        ON CONFLICT (application_id) WHERE ended_at IS NULL DO NOTHING RETURNING id
        """,
        (
            candidate.number,
            int(Kind.MANUAL),
            Jsonb("manual"),
            salt,
            step.share,
            step.author,
            application.number,
            application.stable_release,
        ),
    )
    row = await cursor.fetchone()
    if row is None:
        raise _overtaken(application.name)
    await _add_stage(connection, row[0], 1, step)
    return await find_rollout(connection, row[0])


async def move(connection: Connection, rollout: Rollout, step: Step, ending: Ending | None = None) -> Rollout:
    """Take a manual rollout to its next stage, or end it there; promoted, its candidate becomes the stable release.

    Args:
        connection: Of the transaction.
        rollout: As it was read; if somebody has moved it since, nothing is changed.
        step: The candidate's new share.
        ending: How it ends with this step.

    Raises:
        ConflictError: The rollout is not as it was read any more.
    """
    state = "running" if ending is None else ending
    cursor = await connection.execute(
        """
        UPDATE rollout SET stage = stage + 1, share = %s, state = %s, version = version + 1,
               ended_at = CASE WHEN %s THEN clock_timestamp() END
        WHERE id = %s AND stage = %s AND state = 'running' AND ended_at IS NULL
        """,
        (step.share, state, ending is not None, rollout.number, rollout.stage),
    )
    if cursor.rowcount != 1:
        raise _overtaken(rollout.application)
    await _add_stage(connection, rollout.number, rollout.stage + 1, step)
    if ending == "promoted":
        await promote(connection, rollout)
    return await find_rollout(connection, rollout.number)


async def promote(connection: Connection, rollout: Rollout) -> None:
    """Make the candidate its application's stable release.

    Raises:
        ConflictError: The stable release is another one by now.
    """
    cursor = await connection.execute(
        "UPDATE application a SET stable_release = o.candidate_release FROM rollout o"
        " WHERE o.id = %s AND a.id = o.application_id AND a.stable_release = o.stable_release",
        (rollout.number,),
    )
    if cursor.rowcount != 1:
        raise _overtaken(rollout.application)


async def _add_stage(connection: Connection, rollout: int, stage: int, step: Step) -> None:
    await connection.execute(
        "INSERT INTO rollout_stage (rollout_id, stage, share, since, author, reason)"
        " VALUES (%s, %s, %s, clock_timestamp(), %s, %s)",
        (rollout, stage, step.share, step.author, step.reason),
    )


def _rollout(row: dict[str, Any]) -> Rollout:
    bundles = [msgspec.json.decode(row.pop(name), type=Bundle) for name in ("stable_bundle", "candidate_bundle")]
    read = {
        "terms": _read(row["terms"], Terms),
        "status": _read(row["status"], Status),
        "difference": find_difference(*bundles),
    }
    return Rollout(**{**row, **read})


def _decision(row: Mapping[str, Any]) -> RolloutDecision:
    read = {
        "before": msgspec.json.decode(row["before"], type=Status),
        "after": msgspec.json.decode(row["after"], type=Status),
        "assessment": _read(row["assessment"], Assessment),
    }
    return RolloutDecision(**{**row, **read})


def _figure(row: Mapping[str, Any]) -> Figure:
    return Figure(
        row["tick"],
        row["at"],
        msgspec.json.decode(row["status"], type=Status),
        msgspec.json.decode(row["assessment"], type=Assessment),
    )


def _read(body: str | None, kind: type[_Struct]) -> _Struct | None:
    return None if body is None else msgspec.json.decode(body, type=kind)


def _overtaken(application: str) -> ConflictError:
    return ConflictError(f"somebody else has just changed the rollout of {application}; look again, then repeat")
