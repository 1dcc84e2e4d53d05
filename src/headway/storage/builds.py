"""Builds of index versions: what is to be done, what is done, and who does it. A build is the version's own row.

There is no queue beside it: a version in state ``building`` is to be built. Whoever builds it holds an advisory lock
of PostgreSQL on its number, which goes when the connection goes, so that a killed build is free at once. Each step is
booked with what it wrote, in one transaction, and only while the version is still ``building``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from headway.config.indexes import VersionSpec
from headway.domain.knowledge import Document, IndexState
from headway.errors import ConflictError, NotFoundError
from headway.storage import audit
from headway.storage.database import Connection

Stage = Literal["snapshot", "load", "index", "verify"]
STAGES: tuple[Stage, ...] = ("snapshot", "load", "index", "verify")

_FETCHED_ROWS = 1000
_LOCK_CLASS = 0x68776978  # "hwix"
_LIVENESS = (
    "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '1', false),"
    " set_config('tcp_keepalives_count', '3', false)"
)


class Progress(msgspec.Struct, frozen=True):
    """How far a build is.

    Attributes:
        documents: Listed.
        loaded: Of them, in the index.
        skipped: Of them, left out, each with its reason.
        size_bytes: Of the documents that were read.
        chunks: In the index.
        reused: Chunks whose vectors were there already.
        embedded: Chunks that were embedded.
        cost_usd: What that has cost; None where the price is not known.
        seconds: Time worked on it.
        remote: Name of its index in a search service, as long as there is one that Headway has made.
        uploaded: Chunks that are in it.
    """

    documents: int = 0
    loaded: int = 0
    skipped: int = 0
    size_bytes: int = 0
    chunks: int = 0
    reused: int = 0
    embedded: int = 0
    cost_usd: float | None = None
    seconds: float = 0.0
    remote: str = ""
    uploaded: int = 0

    @property
    def done(self) -> int:
        """Documents that are dealt with."""
        return self.loaded + self.skipped


@dataclass(frozen=True)
class Build:
    """A version that is being built, or was.

    Attributes:
        version: Its row's number.
        index: Name of its index.
        number: Its number in the index: ``NAME@number``.
        state: Where it stands.
        stage: The next step of the build.
        spec: What it is built by.
        progress: How far it is.
        problem: Why it failed, or waits; None if it does neither.
        created_by: Who wanted it.
        created_at: When.
    """

    version: int
    index: str
    number: int
    state: IndexState
    stage: Stage
    spec: VersionSpec
    progress: Progress
    problem: str | None
    created_by: str
    created_at: datetime

    @property
    def label(self) -> str:
        """Its name, as ``handbook@3``."""
        return f"{self.index}@{self.number}"


class Listed(msgspec.Struct, frozen=True):
    """A document that is to be loaded, as the lake listed it; ``number`` is its row's."""

    number: int
    path: str
    size: int
    modified: str
    etag: str


class Earlier(msgspec.Struct, frozen=True):
    """A document of an earlier version; ``number`` is its row's."""

    number: int
    content_hash: str
    title: str
    metadata: dict[str, Any]
    chunks: int


class Count(msgspec.Struct, frozen=True):
    """What a version's tables hold.

    Attributes:
        listed: Documents that are neither loaded nor skipped.
        loaded: Documents that are loaded.
        skipped: Documents that were left out.
        chunks: Chunks.
        tokens: Of all chunks.
        astray: Loaded documents that have another number of chunks than they were booked with.
    """

    listed: int
    loaded: int
    skipped: int
    chunks: int
    tokens: int
    astray: int


class Outcome(msgspec.Struct, frozen=True):
    """What became of a document: loaded as ``document`` in so many chunks, or skipped because of ``problem``."""

    number: int
    size: int
    document: Document | None = None
    chunks: int = 0
    problem: str | None = None


_SELECT: LiteralString = (
    "SELECT v.id AS version, i.name AS index, v.number, v.state, v.stage, v.spec, v.progress, v.problem, v.created_by,"
    " v.created_at FROM index_version v JOIN search_index i ON i.id = v.index_id"
)


def require_builder() -> None:
    """See that what is begun here to be built in the background can be.

    Raises:
        ConflictError: The extra ``knowledge`` is not installed.
    """
    if importlib.util.find_spec("fsspec") is None:
        message = "this control plane builds no indexes: it needs the extra, pip install 'headway[knowledge]'"
        raise ConflictError(message, code="builds_off")


async def begin(connection: Connection, index: str, spec: VersionSpec, *, author: str) -> Build:
    """Open the next version of an index, to be built.

    Raises:
        ConflictError: One is being built already.
    """
    await connection.execute("INSERT INTO search_index (name) VALUES (%s) ON CONFLICT (name) DO NOTHING", (index,))
    cursor = await connection.execute("SELECT id FROM search_index WHERE name = %s FOR NO KEY UPDATE", (index,))
    row = await cursor.fetchone()
    assert row is not None
    running = await find_unfinished(connection, index)
    if running is not None:
        message = f"{running.label} is being built already ({describe(running)}): see `headway index show`"
        raise ConflictError(message, code="build_running")
    cursor = await connection.execute(
        "INSERT INTO index_version (index_id, number, state, stage, spec, created_by)"
        " SELECT %(index)s, coalesce(max(number), 0) + 1, 'building', 'snapshot', %(spec)s, %(author)s"
        " FROM index_version WHERE index_id = %(index)s RETURNING id",
        {"index": row[0], "spec": Jsonb(msgspec.to_builtins(spec)), "author": author},
    )
    made = await cursor.fetchone()
    assert made is not None
    build = await find(connection, made[0])
    await audit.record(connection, author=author, action="index.build", subject=f"index {build.label}")
    return build


def describe(build: Build) -> str:
    """Say how far a build is, in a few words."""
    progress = build.progress
    counted = f"{progress.done:,} of {progress.documents:,} documents" if progress.documents else build.stage
    return f"{counted}, begun by {build.created_by}"


async def find(connection: Connection, version: int) -> Build:
    """Read a build by its row's number.

    Raises:
        NotFoundError: There is none.
    """
    found = await _read(connection, _SELECT + " WHERE v.id = %s", (version,))
    if not found:
        raise NotFoundError(f"there is no index version with the number {version}")
    return found[0]


async def find_unfinished(connection: Connection, index: str) -> Build | None:
    """Find what is being built of an index; None for nothing."""
    found = await _read(connection, _SELECT + " WHERE i.name = %s AND v.state = 'building'", (index,))
    return found[0] if found else None


async def list_unfinished(connection: Connection) -> list[Build]:
    """List what is to be built, oldest first."""
    return await _read(connection, _SELECT + " WHERE v.state = 'building' ORDER BY v.id", ())


async def hold(connection: Connection, version: int) -> bool:
    """Try to become the one who builds a version, for as long as the connection lives; see that it does in time."""
    await connection.execute(_LIVENESS)
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (_LOCK_CLASS, version))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def hold_in_transaction(connection: Connection, version: int) -> bool:
    """Try to keep others from building a version until the transaction ends."""
    cursor = await connection.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", (_LOCK_CLASS, version))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def let_go(connection: Connection) -> None:
    """Stop building what this connection holds."""
    try:
        await connection.execute("SELECT pg_advisory_unlock_all()")
        await connection.set_autocommit(False)
    except psycopg.Error:  # it is broken, and with it the lock is gone
        await connection.close()


async def is_held(connection: Connection, version: int) -> bool:
    """Say whether somebody is building a version right now."""
    cursor = await connection.execute(
        "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = %s"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
        (_LOCK_CLASS, version),
    )
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def save_documents(
    connection: Connection, version: int, listed: Iterable[Listed], skipped: Iterable[tuple[str, str]]
) -> None:
    """Write down the subset: what is to be loaded, and paths that cannot be, with reasons."""
    copy: LiteralString = (
        "COPY index_document (version_id, path, content_hash, size_bytes, modified, etag, state, problem) FROM STDIN"
    )
    async with connection.cursor() as cursor, cursor.copy(copy) as writer:
        for each in listed:
            await writer.write_row((version, each.path, "", each.size, each.modified, each.etag, "listed", None))
        for path, reason in skipped:
            await writer.write_row((version, path, "", 0, "", "", "skipped", reason))


async def next_documents(connection: Connection, version: int, *, after: str, limit: int) -> list[Listed]:
    """Read the next documents to load, in the order of their paths, those after a path."""
    cursor = await connection.execute(
        "SELECT id, path, size_bytes, modified, etag FROM index_document"
        ' WHERE version_id = %s AND state = \'listed\' AND path COLLATE "C" > %s ORDER BY path COLLATE "C" LIMIT %s',
        (version, after, limit),
    )
    return [Listed(*row) for row in await cursor.fetchall()]


async def list_manifests(connection: Connection, index: str) -> list[tuple[int, dict[str, Any]]]:
    """List the published versions of an index, newest first: the row's number, and the manifest."""
    cursor = await connection.execute(
        "SELECT v.id, v.manifest FROM index_version v JOIN search_index i ON i.id = v.index_id"
        " WHERE i.name = %s AND v.state = 'published' AND v.manifest ? 'recipe' ORDER BY v.id DESC",
        (index,),
    )
    return [(version, manifest) async for version, manifest in cursor]


async def find_earlier(connection: Connection, version: int, paths: Sequence[str]) -> dict[str, Earlier]:
    """Find what a version holds at these paths."""
    cursor = await connection.execute(
        "SELECT path, id, content_hash, title, metadata, chunks FROM index_document"
        " WHERE version_id = %s AND path = ANY(%s) AND state = 'loaded'",
        (version, list(paths)),
    )
    return {path: Earlier(*row) async for path, *row in cursor}


async def count(connection: Connection, version: int) -> Count:
    """Count what a version's tables hold."""
    cursor = await connection.execute(
        """
        WITH loaded AS (
            SELECT document, count(*) AS chunks, sum(tokens) AS tokens FROM index_chunk WHERE version = %(version)s
            GROUP BY document
        )
        SELECT count(*) FILTER (WHERE d.state = 'listed'), count(*) FILTER (WHERE d.state = 'loaded'),
               count(*) FILTER (WHERE d.state = 'skipped'), coalesce(sum(c.chunks), 0)::bigint,
               coalesce(sum(c.tokens), 0)::bigint,
               count(*) FILTER (WHERE d.id IS NULL OR d.chunks <> coalesce(c.chunks, 0))
        FROM (SELECT * FROM index_document WHERE version_id = %(version)s) d FULL JOIN loaded c ON c.document = d.id
        """,
        {"version": version},
    )
    row = await cursor.fetchone()
    assert row is not None
    return Count(*row)


async def stream_documents(connection: Connection, version: int) -> AsyncGenerator[tuple[Document, str | None], None]:
    """Read the documents of a version in the order of their paths, each with the SHA-256 of its chunks' hashes.

    A document that was skipped has None in its place.
    """
    query: LiteralString = """
        SELECT d.path, d.content_hash, d.title, d.modified, d.metadata, d.groups, (
            -- One by one, by the index: a join of all goes wrong as long as nothing is known of so new a version.
            SELECT encode(sha256(string_agg(c.content_hash, '' ORDER BY c.position)::bytea), 'hex')
            FROM index_chunk c WHERE c.version = %(version)s AND c.document = d.id
        ) FROM index_document d
        WHERE d.version_id = %(version)s ORDER BY d.path COLLATE "C"
    """
    async with connection.cursor("headway_documents") as rows:
        rows.itersize = _FETCHED_ROWS
        await rows.execute(query, {"version": version})
        async for path, content_hash, title, modified, metadata, groups, chunks_hash in rows:
            yield Document(path, content_hash, title, modified, metadata, tuple(groups)), chunks_hash


async def book(
    connection: Connection, version: int, progress: Progress, *, stage: Stage, outcomes: Sequence[Outcome] = ()
) -> None:
    """Book a step with what it wrote; first in its transaction, so that nobody cancels it half-way.

    Raises:
        ConflictError: The build was cancelled, or somebody else has done this step; the caller's work is undone.
    """
    cursor = await connection.execute(
        "UPDATE index_version SET progress = %s, stage = %s, problem = NULL WHERE id = %s AND state = 'building'",
        (Jsonb(msgspec.to_builtins(progress)), stage, version),
    )
    if cursor.rowcount != 1:
        raise ConflictError("the build was cancelled", code="build_cancelled")
    if not outcomes:
        return
    async with connection.cursor() as rows:
        await rows.executemany(
            "UPDATE index_document SET content_hash = %s, size_bytes = %s, title = %s, modified = %s, metadata = %s,"
            " groups = %s, state = %s, problem = %s, chunks = %s WHERE id = %s AND state = 'listed'",
            [_row(outcome) for outcome in outcomes],
        )
        if rows.rowcount != len(outcomes):
            raise ConflictError("somebody else builds this version too", code="build_taken")


def _row(outcome: Outcome) -> tuple[Any, ...]:
    document = outcome.document or Document("", "", "")
    return (
        document.content_hash,
        outcome.size,
        document.title,
        document.modified,
        Jsonb(document.metadata),
        list(document.groups),
        "skipped" if outcome.document is None else "loaded",
        outcome.problem,
        outcome.chunks,
        outcome.number,
    )


async def publish(
    connection: Connection, build: Build, progress: Progress, manifest: dict[str, Any], manifest_hash: str
) -> None:
    """Make a version what releases can name; its manifest holds the recipe, or the vectors' dimensions.

    Raises:
        ConflictError: The build was cancelled.
    """
    await book(connection, build.version, progress, stage="verify")
    await connection.execute(
        "UPDATE index_version SET state = 'published', manifest = %s, manifest_hash = %s, dimensions = %s,"
        " ended_at = clock_timestamp() WHERE id = %s",
        (Jsonb(manifest), manifest_hash, manifest.get("recipe", manifest)["dimensions"], build.version),
    )
    await audit.record(
        connection,
        author=build.created_by,
        action="index.publish",
        subject=f"index {build.label}",
        detail={"documents": progress.loaded, "skipped": progress.skipped, "manifest_hash": manifest_hash},
    )


async def end(
    connection: Connection, build: Build, state: Literal["failed", "cancelled"], problem: str, *, author: str
) -> bool:
    """End a build without a version; False if it has ended already. Its chunks are for the next sweep."""
    cursor = await connection.execute(
        "UPDATE index_version SET state = %s, problem = %s, ended_at = clock_timestamp()"
        " WHERE id = %s AND state = 'building'",
        (state, problem, build.version),
    )
    if cursor.rowcount != 1:
        return False
    await audit.record(
        connection, author=author, action=f"index.{state}", subject=f"index {build.label}", reason=problem
    )
    return True


async def note_problem(connection: Connection, version: int, problem: str) -> None:
    """Say why a build waits; the next step that it takes removes it."""
    await connection.execute(
        "UPDATE index_version SET problem = %s WHERE id = %s AND state = 'building'", (problem, version)
    )


async def _read(connection: Connection, query: LiteralString, values: tuple[Any, ...]) -> list[Build]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, values)
        rows = await cursor.fetchall()
    return [
        Build(
            **row
            | {
                "spec": msgspec.convert(row["spec"], VersionSpec),
                "progress": msgspec.convert(row["progress"], Progress),
            }
        )
        for row in rows
    ]
