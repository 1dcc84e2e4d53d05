"""Applications and their releases as stored: applications come, change and retire; releases never change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import msgspec
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from headway.config.document import nearest
from headway.config.spec import ApplicationSpec, ReleaseSpec
from headway.domain.release import Bundle, Deployment, Retrieval
from headway.errors import NotFoundError
from headway.storage.database import Connection


@dataclass(frozen=True)
class Application:
    """An application; ``stable_release`` is a number, and None only until its first release is there."""

    number: int
    name: str
    unit: str
    policy: str
    record_content: bool
    retention_days: int
    stable_release: int | None
    retired_at: datetime | None


@dataclass(frozen=True)
class Release:
    """A release of an application; ``bundle`` and ``deployments`` are plain JSON values."""

    number: int
    application: str
    name: str
    content_hash: str
    created_at: datetime
    created_by: str
    role: str  # stable, candidate, or empty
    share: float  # of the application's units, 0 to 1
    bundle: dict[str, Any]
    deployments: list[dict[str, Any]]


async def list_applications(connection: Connection, *, retired: bool = True) -> list[Application]:
    """List the applications by name."""
    async with connection.cursor(row_factory=class_row(Application)) as cursor:
        await cursor.execute(
            "SELECT id AS number, name, unit, policy, record_content, retention_days, stable_release, retired_at"
            " FROM application WHERE %s OR retired_at IS NULL ORDER BY name",
            (retired,),
        )
        return await cursor.fetchall()


async def find_application(connection: Connection, name: str, *, lock: bool = False) -> Application:
    """Find an application that is served; with ``lock`` nobody else changes it until the transaction ends.

    Raises:
        NotFoundError: There is none of that name; the message names the nearest.
    """
    query: LiteralString = (
        "SELECT id AS number, name, unit, policy, record_content, retention_days, stable_release, retired_at"
        " FROM application WHERE name = %s AND retired_at IS NULL"
    )
    async with connection.cursor(row_factory=class_row(Application)) as cursor:
        await cursor.execute(query + " FOR NO KEY UPDATE" if lock else query, (name,))
        found = await cursor.fetchone()
    if found is not None:
        return found
    names = [application.name for application in await list_applications(connection, retired=False)]
    if not names:
        raise NotFoundError("there are no applications yet; `headway apply` makes those of headway.yaml")
    raise NotFoundError(f"no application is called {name!r}{nearest(name, names)}", param="application")


async def list_releases(connection: Connection, application: str | None = None) -> list[Release]:
    """List the releases of one application, or of all, newest first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            """
            SELECT r.id AS number, a.name AS application, r.name, r.content_hash, r.created_at, r.created_by,
                   CASE WHEN r.id = a.stable_release THEN 'stable'
                        WHEN r.id = o.candidate_release THEN 'candidate' ELSE '' END AS role,
                   CASE WHEN a.retired_at IS NOT NULL THEN 0
                        WHEN r.id = a.stable_release THEN 1 - coalesce(o.share, 0)
                        WHEN r.id = o.candidate_release THEN o.share ELSE 0 END AS share,
                   r.bundle, r.deployments
            FROM release r JOIN application a ON a.id = r.application_id
            LEFT JOIN rollout o ON o.application_id = a.id AND o.ended_at IS NULL
            WHERE %(application)s::text IS NULL OR a.name = %(application)s
            ORDER BY r.id DESC
            """,
            {"application": application},
        )
        return [Release(**row) for row in await cursor.fetchall()]


async def find_release(connection: Connection, application: str, name: str) -> Release:
    """Find a release of an application by its name.

    Raises:
        NotFoundError: There is none of that name; the message names the nearest.
    """
    releases = await list_releases(connection, application)
    for release in releases:
        if release.name == name:
            return release
    known = nearest(name, [release.name for release in releases])
    raise NotFoundError(f"{application} has no release called {name!r}{known}", param="release")


async def find_bundle(connection: Connection, release: int) -> Bundle:
    """Read what a release consists of, by its number."""
    cursor = await connection.execute("SELECT bundle::text FROM release WHERE id = %s", (release,))
    row = await cursor.fetchone()
    assert row is not None, "releases are never deleted"
    return msgspec.json.decode(row[0], type=Bundle)


async def find_retrieval(
    connection: Connection, name: str | None, default: Retrieval, *, otherwise: str | None = None
) -> Retrieval:
    """Read how to search: as the stable release of an application does.

    Args:
        connection: To read on.
        name: Of the application; it must have an index.
        default: Where no application is named, or the other has no index.
        otherwise: Of the application that counts where that is None; it need not have an index.

    Raises:
        NotFoundError: There is none of that name, or its stable release has no index.
    """
    if name is None and otherwise is None:
        return default
    application = await find_application(connection, name or otherwise or "")
    release = application.stable_release
    retrieval = None if release is None else (await find_bundle(connection, release)).retrieval
    if retrieval is None and name is not None:
        raise NotFoundError(f"the stable release of {name} has no search index", param="application")
    return retrieval or default


async def save_application(connection: Connection, name: str, spec: ApplicationSpec) -> int:
    """Make an application as the file wants it, or bring it there; a retired one comes back.

    Returns:
        Its number.
    """
    metrics = {metric: msgspec.to_builtins(declared) for metric, declared in spec.metrics.items()}
    cursor = await connection.execute(
        """
        INSERT INTO application (name, unit, policy, record_content, retention_days, metrics)
        VALUES (%s, %s, %s, %s, %s, %s)
        ON CONFLICT (name) DO UPDATE SET retired_at = NULL, unit = excluded.unit, policy = excluded.policy,
            record_content = excluded.record_content, retention_days = excluded.retention_days,
            metrics = excluded.metrics
        RETURNING id
        """,
        (name, spec.unit, spec.policy, spec.record_content, spec.retention_days, Jsonb(metrics)),
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def retire_application(connection: Connection, name: str) -> None:
    """Stop serving an application; what it recorded stays."""
    await connection.execute("UPDATE application SET retired_at = now() WHERE name = %s", (name,))


async def save_release(
    connection: Connection, application: int, release: ReleaseSpec, deployments: Iterable[Deployment], *, author: str
) -> int:
    """Insert a release unless its content is there already; the application's first one is stable at once.

    Returns:
        The number of the release with this content.
    """
    cursor = await connection.execute(
        "INSERT INTO release (application_id, name, content_hash, bundle, deployments, created_by)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (application_id, content_hash) DO NOTHING",
        (
            application,
            release.name,
            release.bundle.content_hash(),
            Jsonb(msgspec.to_builtins(release.bundle)),
            Jsonb([msgspec.to_builtins(deployment) for deployment in deployments]),
            author,
        ),
    )
    cursor = await connection.execute(
        "SELECT id FROM release WHERE application_id = %s AND content_hash = %s",
        (application, release.bundle.content_hash()),
    )
    row = await cursor.fetchone()
    assert row is not None
    await connection.execute(
        "UPDATE application SET stable_release = %s WHERE id = %s AND stable_release IS NULL", (row[0], application)
    )
    return int(row[0])
