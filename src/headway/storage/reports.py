"""Reports in the database: raised once, changed by compare-and-set, every change and comment kept."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg.rows import dict_row

from headway.clock import utc
from headway.domain.feedback import NEXT_STATUSES, Report, ReportStatus, Severity
from headway.errors import ConflictError, LimitError, NotFoundError
from headway.storage import ratings
from headway.storage.database import Connection
from headway.storage.paging import Condition, Listing

EVENTS = 1000
"""Comments and changes that one report takes."""

_SELECT: LiteralString = """
    SELECT p.id, p.at, a.name AS application, p.title, p.description, p.severity, p.status, p.author, p.key, p.version,
           p.updated_at
    FROM report p LEFT JOIN application a ON a.id = p.application"""

LISTING = Listing(select=_SELECT, order=(("p.at", "at", "time"), ("p.id", "id", "uuid")))


@dataclass(frozen=True)
class Change:
    """What somebody does to a report.

    Attributes:
        id: Of the report.
        author: Who does it.
        at: When.
        version: The version that the author has seen; None takes any.
        status: New status, if it changes.
        severity: New severity, if it changes.
        comment: What the author says to it.
        key: Only a report of this API key; None takes any.
    """

    id: uuid.UUID
    author: str
    at: datetime
    version: int | None = None
    status: ReportStatus | None = None
    severity: Severity | None = None
    comment: str | None = None
    key: int | None = None


async def insert(connection: Connection, report: Report) -> bool:
    """Insert a report with what it links to and means for running rollouts; False when it is there already."""
    own = uuid.UUID(bytes=report.id)
    at = utc(report.unix_ms)
    cursor = await connection.execute(
        "INSERT INTO report (id, at, application, title, description, severity, status, author, key, updated_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, 'open', %s, %s, %s) ON CONFLICT (id) DO NOTHING",
        (own, at, report.application, report.title, report.description, report.severity, report.author, report.key, at),
    )
    if cursor.rowcount == 0:
        return False
    async with connection.cursor() as links:
        await links.executemany(
            "INSERT INTO report_interaction (report_id, interaction, interaction_id, release, exposed_at)"
            " VALUES (%s, %s, %s, %s, %s)",
            [
                (own, uuid.UUID(bytes=link.uuid), link.interaction_id, link.release, utc(link.exposed_unix_ms))
                for link in report.interactions
            ],
        )
    await ratings.note_report(connection, report.interactions)
    return True


async def read(connection: Connection, report: uuid.UUID, *, key: int | None = None) -> dict[str, Any]:
    """Read a report with its linked interactions and its events, oldest first.

    Args:
        connection: To read on.
        report: Its id.
        key: Only a report of this API key; None takes any.

    Raises:
        NotFoundError: There is no such report.
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_SELECT + " WHERE p.id = %s AND (%s::int IS NULL OR p.key = %s)", (report, key, key))
        found = await cursor.fetchone()
        if found is None:
            raise _missing(report)
        await cursor.execute(
            "SELECT i.interaction_id, i.interaction, r.name AS release, i.exposed_at FROM report_interaction i"
            " LEFT JOIN release r ON r.id = i.release WHERE i.report_id = %s ORDER BY i.interaction",
            (report,),
        )
        interactions = await cursor.fetchall()
        await cursor.execute(
            "SELECT number, at, author, comment, status, severity FROM report_event WHERE report_id = %s"
            " ORDER BY number",
            (report,),
        )
        events = await cursor.fetchall()
    return {**found, "interactions": interactions, "events": events}


async def change(connection: Connection, wanted: Change) -> None:
    """Change a report's status or severity, or comment on it, and keep that as an event.

    Args:
        connection: Of a transaction.
        wanted: What to do. A change that leaves status and severity as they are only comments.

    Raises:
        NotFoundError: There is no such report.
        ConflictError: Somebody changed it since ``version``, or it cannot go to that status.
        LimitError: It has as many events as it takes.
    """
    cursor = await connection.execute(
        "SELECT version, status, severity FROM report WHERE id = %s AND (%s::int IS NULL OR key = %s) FOR UPDATE",
        (wanted.id, wanted.key, wanted.key),
    )
    found = await cursor.fetchone()
    if found is None:
        raise _missing(wanted.id)
    version, old_status, old_severity = found
    if wanted.version is not None and wanted.version != version:
        message = f"the report is at version {version}, not {wanted.version}: somebody changed it; read it again"
        raise ConflictError(message, code="version_conflict", param="version")
    status = None if wanted.status == old_status else wanted.status
    severity = None if wanted.severity == old_severity else wanted.severity
    _check_status(old_status, status)
    if status is None and severity is None and wanted.comment is None:
        return
    # Asked for only now: before the lock was won, others may have added some.
    cursor = await connection.execute("SELECT count(*)::int FROM report_event WHERE report_id = %s", (wanted.id,))
    ((events,),) = await cursor.fetchall()
    if events >= EVENTS:
        raise LimitError(f"the report has {events} comments and changes; no more are taken", code="report_full")
    changed = int(status is not None or severity is not None)
    await connection.execute(
        "UPDATE report SET status = %s, severity = %s, version = version + %s, updated_at = %s WHERE id = %s",
        (status or old_status, severity or old_severity, changed, wanted.at, wanted.id),
    )
    await connection.execute(
        "INSERT INTO report_event (report_id, number, at, author, comment, status, severity)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (wanted.id, events + 1, wanted.at, wanted.author, wanted.comment, status, severity),
    )


def conditions(
    *,
    key: int | None = None,
    application: str | None = None,
    status: str | None = None,
    severity: str | None = None,
) -> Sequence[Condition]:
    """Say which reports to list."""
    return [("p.key = %s", key), ("a.name = %s", application), ("p.status = %s", status), ("p.severity = %s", severity)]


def _missing(report: uuid.UUID) -> NotFoundError:
    return NotFoundError(f"there is no report {report} for you to see")


def _check_status(old: ReportStatus, new: ReportStatus | None) -> None:
    if new is not None and new not in NEXT_STATUSES[old]:
        allowed = ", ".join(NEXT_STATUSES[old])
        raise ConflictError(f"a report that is {old} cannot become {new}, only {allowed}", param="status")
