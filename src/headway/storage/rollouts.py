"""Rollouts as stored: opened, moved from stage to stage, ended; every change is compare-and-set.

Times are those of the change itself, not of its transaction's start: who waited for a lock came later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from headway.errors import ConflictError, NotFoundError
from headway.ids import Kind
from headway.storage.applications import Application, Release
from headway.storage.database import Connection

Ending = Literal["promoted", "rolled_back"]


@dataclass(frozen=True)
class Rollout:
    """One move of an application from its stable release to a candidate; ``share`` (0 to 1) is the candidate's."""

    number: int
    application: str
    stable: str
    candidate: str
    state: str
    stage: int
    share: float
    started_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class Stage:
    """One step of a rollout: the candidate's share from then on, who set it and why."""

    stage: int
    share: float
    since: datetime
    author: str
    reason: str


@dataclass(frozen=True)
class Step:
    """A step to take: the candidate's new share (0 to 1), who takes it and why."""

    share: float
    author: str
    reason: str


async def list_rollouts(
    connection: Connection, *, application: str | None = None, number: int | None = None, active: bool = False
) -> list[Rollout]:
    """List rollouts, newest first: all, or one application's, or one, or those that are running."""
    async with connection.cursor(row_factory=class_row(Rollout)) as cursor:
        await cursor.execute(
            """
            SELECT o.id AS number, a.name AS application, s.name AS stable, c.name AS candidate,
                   o.state, o.stage, o.share, o.started_at, o.ended_at
            FROM rollout o JOIN application a ON a.id = o.application_id
            JOIN release s ON s.id = o.stable_release JOIN release c ON c.id = o.candidate_release
            WHERE (%(application)s::text IS NULL OR a.name = %(application)s)
              AND (%(number)s::integer IS NULL OR o.id = %(number)s)
              AND (NOT %(active)s OR o.ended_at IS NULL)
            ORDER BY o.id DESC
            """,
            {"application": application, "number": number, "active": active},
        )
        return await cursor.fetchall()


async def find_rollout(connection: Connection, number: int) -> Rollout:
    """Find a rollout by its number.

    Raises:
        NotFoundError: There is none.
    """
    found = await list_rollouts(connection, number=number)
    if not found:
        raise NotFoundError(f"there is no rollout {number}; `headway rollouts list` shows them")
    return found[0]


async def active_rollout(connection: Connection, application: str) -> Rollout | None:
    """Find the application's running rollout."""
    running = await list_rollouts(connection, application=application, active=True)
    return running[0] if running else None


async def list_stages(connection: Connection, rollout: int) -> list[Stage]:
    """List the steps of a rollout, first to last."""
    async with connection.cursor(row_factory=class_row(Stage)) as cursor:
        await cursor.execute(
            "SELECT stage, share, since, author, reason FROM rollout_stage WHERE rollout_id = %s ORDER BY stage",
            (rollout,),
        )
        return await cursor.fetchall()


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
                             started_at)
        SELECT id, stable_release, %s, %s, %s, %s, 'running', 1, %s, clock_timestamp() FROM application
        WHERE id = %s AND stable_release = %s AND retired_at IS NULL
        ON CONFLICT (application_id) WHERE ended_at IS NULL DO NOTHING RETURNING id
        """,
        (
            candidate.number,
            int(Kind.MANUAL),
            Jsonb("manual"),
            salt,
            step.share,
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
    """Take a running rollout to its next stage, or end it there; promoted, its candidate becomes the stable release.

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
        UPDATE rollout SET stage = stage + 1, share = %s, state = %s, ended_at = CASE WHEN %s THEN clock_timestamp() END
        WHERE id = %s AND stage = %s AND state = 'running' AND ended_at IS NULL
        RETURNING application_id, stable_release, candidate_release
        """,
        (step.share, state, ending is not None, rollout.number, rollout.stage),
    )
    row = await cursor.fetchone()
    if row is None:
        raise _overtaken(rollout.application)
    await _add_stage(connection, rollout.number, rollout.stage + 1, step)
    if ending == "promoted":
        application, stable, candidate = row
        cursor = await connection.execute(
            "UPDATE application SET stable_release = %s WHERE id = %s AND stable_release = %s",
            (candidate, application, stable),
        )
        if cursor.rowcount != 1:
            raise _overtaken(rollout.application)
    return await find_rollout(connection, rollout.number)


async def _add_stage(connection: Connection, rollout: int, stage: int, step: Step) -> None:
    await connection.execute(
        "INSERT INTO rollout_stage (rollout_id, stage, share, since, author, reason)"
        " VALUES (%s, %s, %s, clock_timestamp(), %s, %s)",
        (rollout, stage, step.share, step.author, step.reason),
    )


def _overtaken(application: str) -> ConflictError:
    return ConflictError(f"somebody else has just changed the rollout of {application}; look again, then repeat")
