"""Index versions as they are shown, compared and dropped: who uses them, what they hold, what differs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from headway.config.document import nearest
from headway.config.indexes import LATEST, IndexReference, VersionSpec
from headway.domain.knowledge import IndexState
from headway.errors import ConflictError, NotFoundError
from headway.storage import audit, builds, partitions
from headway.storage.builds import Build, Progress
from headway.storage.database import Connection
from headway.storage.paging import Listing, stream

VERSIONS = Listing(
    "SELECT v.id AS version, i.name AS index, v.number, v.state, v.stage, v.spec, v.progress, v.problem, v.manifest,"
    " v.manifest_hash, v.created_at, v.created_by, v.ended_at"
    " FROM index_version v JOIN search_index i ON i.id = v.index_id",
    (("v.id", "version", "number"),),
)
DOCUMENTS = Listing(
    "SELECT d.path, d.state, d.problem, d.title, d.content_hash, d.size_bytes, d.modified, d.metadata, d.groups,"
    " d.chunks FROM index_document d",
    (('d.path COLLATE "C"', "path", "text"),),
    ascending=True,
)
CHANGES = Listing(
    """
    SELECT d.change, d.path, d.title
    FROM index_version b CROSS JOIN index_version a CROSS JOIN LATERAL (
        SELECT CASE WHEN o.path IS NULL THEN 'added' WHEN n.path IS NULL THEN 'removed' ELSE 'changed' END AS change,
               coalesce(n.path, o.path) AS path, coalesce(n.title, o.title) AS title
        FROM (SELECT * FROM index_document WHERE version_id = b.id AND state = 'loaded') o
        FULL JOIN (SELECT * FROM index_document WHERE version_id = a.id AND state = 'loaded') n ON n.path = o.path
        WHERE n.path IS NULL OR o.path IS NULL OR n.content_hash <> o.content_hash OR n.groups <> o.groups
    ) d
    """,
    (('d.path COLLATE "C"', "path", "text"),),
    ascending=True,
)
_DROP_WAITS = "300ms"
_FAILED_STAY = "7 days"


@dataclass(frozen=True)
class Use:
    """A release in use that names an index version: it is stable, takes part in a rollout, or is wanted by the file."""

    index: str
    number: int
    application: str
    release: str


@dataclass(frozen=True)
class Version:
    """An index version.

    Attributes:
        version: Its row's number.
        index: Name of its index.
        number: Its number in the index: ``NAME@number``.
        state: Where it stands.
        stage: The next step of its build.
        spec: What it is built by.
        progress: How far its build is, or was.
        problem: Why it failed, or waits.
        manifest: What it consists of; None until it is published.
        manifest_hash: Equal for equal content.
        created_at, created_by: When its build began, and who wanted it.
        ended_at: When its build ended.
        used_by: Releases in use that name it, as ``application: release``.
    """

    version: int
    index: str
    number: int
    state: IndexState
    stage: str
    spec: VersionSpec
    progress: Progress
    problem: str | None
    manifest: dict[str, Any] | None
    manifest_hash: str | None
    created_at: datetime
    created_by: str
    ended_at: datetime | None
    used_by: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its name, as ``handbook@3``."""
        return f"{self.index}@{self.number}"


@dataclass(frozen=True)
class DocumentChange:
    """A document that one version has and another has not, or has with other content."""

    change: Literal["added", "changed", "removed"]
    path: str
    title: str


async def list_versions(connection: Connection, index: str | None = None) -> list[Version]:
    """List the versions of an index, or of all, newest first."""
    uses = await list_uses(connection)
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            VERSIONS.select + " WHERE %(index)s::text IS NULL OR i.name = %(index)s ORDER BY v.id DESC",
            {"index": index},
        )
        return [make_version(row, uses) for row in await cursor.fetchall()]


async def find_version(connection: Connection, wanted: IndexReference) -> Version:
    """Find a version; of a name alone the latest published one, else the newest.

    Raises:
        NotFoundError: There is none; the message names the nearest.
    """
    number = None if wanted.version == LATEST else wanted.version
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            VERSIONS.select + " WHERE i.name = %(name)s AND (%(number)s::integer IS NULL OR v.number = %(number)s)"
            " ORDER BY v.state = 'published' DESC, v.id DESC LIMIT 1",
            {"name": wanted.name, "number": number},
        )
        row = await cursor.fetchone()
    if row is None:
        raise await _explain_missing(connection, wanted)
    return make_version(row, await list_uses(connection, IndexReference(wanted.name, row["number"])))


async def _explain_missing(connection: Connection, wanted: IndexReference) -> NotFoundError:
    cursor = await connection.execute(
        "SELECT i.name, max(v.number) FROM index_version v JOIN search_index i ON i.id = v.index_id GROUP BY i.name"
    )
    newest: dict[str, int] = dict(await cursor.fetchall())
    if wanted.name in newest:
        there = IndexReference(wanted.name, newest[wanted.name])
        return NotFoundError(f"there is no {wanted}; the newest is {there}", param="index")
    hint = nearest(wanted.name, newest) or f"; `headway index build {wanted.name}` makes one"
    return NotFoundError(f"no index called {wanted.name!r} has a version{hint}", param="index")


async def list_uses(connection: Connection, wanted: IndexReference | None = None) -> list[Use]:
    """List which index versions the releases in use name; of one version, which of them name it."""
    async with connection.cursor(row_factory=class_row(Use)) as cursor:
        await cursor.execute(
            """
            SELECT r.bundle->'retrieval'->>'index' AS index, (r.bundle->'retrieval'->>'version')::integer AS number,
                   a.name AS application, r.name AS release
            FROM release r JOIN application a ON a.id = r.application_id AND a.retired_at IS NULL
            LEFT JOIN rollout o ON o.application_id = a.id AND o.ended_at IS NULL
            LEFT JOIN (SELECT spec FROM configuration ORDER BY id DESC LIMIT 1) c ON true
            WHERE jsonb_typeof(r.bundle->'retrieval') = 'object' AND (
                r.id IN (a.stable_release, o.stable_release, o.candidate_release)
                OR r.bundle = c.spec->'applications'->a.name->'release'->'bundle')
                AND (%(index)s::text IS NULL OR (r.bundle->'retrieval'->>'index' = %(index)s
                     AND (r.bundle->'retrieval'->>'version')::integer = %(number)s))
            ORDER BY a.name, r.id
            """,
            {"index": wanted and wanted.name, "number": wanted and wanted.version},
        )
        return await cursor.fetchall()


async def compare(connection: Connection, before: Version, after: Version) -> list[DocumentChange]:
    """List the documents that differ between two versions, in the order of their paths."""
    conditions = between(before, after)
    return [DocumentChange(**row) async for row in stream(connection, CHANGES, conditions)]


async def count_changes(connection: Connection, before: Version, after: Version) -> dict[str, int]:
    """Count the documents that were added, changed and removed."""
    cursor = await connection.execute(
        sql.SQL("SELECT change, count(*) FROM ({} WHERE b.id = %s AND a.id = %s) c GROUP BY change").format(
            sql.SQL(CHANGES.select)
        ),
        (before.version, after.version),
    )
    return {"added": 0, "changed": 0, "removed": 0} | dict(await cursor.fetchall())


def between(before: Version, after: Version) -> list[tuple[LiteralString, int]]:
    """The conditions on ``CHANGES`` that make it those from one version to another."""
    return [("b.id = %s", before.version), ("a.id = %s", after.version)]


async def drop(connection: Connection, version: Version, *, author: str, reason: str = "") -> None:
    """Give up a version that no release in use names; its chunks go with the next sweep.

    Raises:
        ConflictError: It is in use, is being built or was dropped before, or a build of its index may take from it.
    """
    await connection.execute("SELECT FROM index_version WHERE id = %s FOR UPDATE", (version.version,))
    now = await find_version(connection, IndexReference(version.index, version.number))
    if now.used_by:
        raise ConflictError(f"{now.label} is in use by {', '.join(now.used_by)}")
    if now.state in ("building", "dropped"):
        hint = f"; `headway index cancel {now.index}` ends its build" if now.state == "building" else ""
        raise ConflictError(f"{now.label} is {now.state}{hint}")
    running = await builds.find_unfinished(connection, now.index)
    if running is not None:
        raise ConflictError(f"{running.label} is being built, and may take over what {now.label} holds")
    await connection.execute("UPDATE index_version SET state = 'dropped' WHERE id = %s", (now.version,))
    await connection.execute("DELETE FROM index_document WHERE version_id = %s", (now.version,))
    await audit.record(
        connection, author=author, action="index.drop", subject=f"index {now.label}", reason=reason or None
    )


async def cancel(connection: Connection, index: str, *, author: str, reason: str = "") -> Build:
    """Give up the build of an index; whoever builds it notices at its next step.

    Raises:
        NotFoundError: None is being built.
    """
    build = await builds.find_unfinished(connection, index)
    if build is None or not await builds.end(connection, build, "cancelled", reason, author=author):
        raise NotFoundError(f"no version of {index} is being built", param="index")
    return await builds.find(connection, build.version)


async def enforce_keep(connection: Connection, index: str, keep: int, *, author: str) -> list[str]:
    """Drop the published versions of an index beyond its newest ``keep``, except those in use.

    Each goes in a transaction of its own, and what the connection was in is committed: two that held several versions,
    this and an apply, could wait for each other.

    Returns:
        The names of those dropped.
    """
    published = [version for version in await list_versions(connection, index) if version.state == "published"]
    surplus = [version for version in published[keep:] if not version.used_by]
    await connection.commit()
    dropped = []
    for version in surplus:
        try:
            async with connection.transaction():
                await drop(connection, version, author=author, reason=f"the index keeps {keep}")
        except ConflictError:  # it came into use just now, or a build of the next version began
            continue
        dropped.append(version.label)
    return dropped


async def sweep(connection: Connection) -> int:
    """Drop the chunks of versions that failed, were cancelled or dropped; run it in a transaction of its own.

    Who reads or makes partitions through their parent table waits for it, and it for them; searches do not, each reads
    its version's own. It does not wait for long: what it leaves comes next time.

    Returns:
        How many versions' chunks went.
    """
    cursor = await connection.execute(
        "SELECT id FROM index_version WHERE state IN ('failed', 'cancelled', 'dropped')"
        " AND to_regclass('index_chunk_' || id) IS NOT NULL ORDER BY id"
    )
    swept = 0
    for (version,) in await cursor.fetchall():
        if not await builds.hold_in_transaction(connection, version):
            continue
        await connection.execute("SELECT set_config('lock_timeout', %s, true)", (_DROP_WAITS,))
        try:
            async with connection.transaction():
                await partitions.drop(connection, version)
        except psycopg.errors.LockNotAvailable:
            break
        swept += 1
    return swept


async def forget_documents(connection: Connection) -> int:
    """Delete the documents of versions that failed or were cancelled a week ago; until then they tell what was wrong.

    Returns:
        How many went.
    """
    cursor = await connection.execute(
        "SELECT v.id FROM index_version v WHERE v.state IN ('failed', 'cancelled')"
        " AND v.ended_at < clock_timestamp() - %s::interval"
        " AND (SELECT d.id FROM index_document d WHERE d.version_id = v.id LIMIT 1) IS NOT NULL",
        (_FAILED_STAY,),
    )
    gone = 0
    for (version,) in await cursor.fetchall():
        gone += (await connection.execute("DELETE FROM index_document WHERE version_id = %s", (version,))).rowcount
    return gone


async def require_published(connection: Connection, bundle: dict[str, Any]) -> None:
    """See that the index version of a release is there, and keep it from being dropped until the transaction ends.

    Raises:
        ConflictError: It was dropped.
    """
    retrieval = bundle.get("retrieval")
    if retrieval is None:
        return
    cursor = await connection.execute(
        "SELECT FROM index_version v JOIN search_index i ON i.id = v.index_id"
        " WHERE i.name = %s AND v.number = %s AND v.state = 'published' FOR SHARE OF v",
        (retrieval["index"], retrieval["version"]),
    )
    if await cursor.fetchone() is None:
        raise ConflictError(
            f"the release's index version {retrieval['index']}@{retrieval['version']} was dropped; a release on a"
            " newer one can be made in headway.yaml",
            code="index_dropped",
        )


def make_version(row: dict[str, Any], uses: Iterable[Use]) -> Version:
    """Make a version of a row of ``VERSIONS``."""
    used_by = tuple(
        f"{use.application}: {use.release}" for use in uses if (use.index, use.number) == (row["index"], row["number"])
    )
    spec = msgspec.convert(row.pop("spec"), VersionSpec)
    return Version(**row | {"progress": msgspec.convert(row["progress"], Progress)}, spec=spec, used_by=used_by)
