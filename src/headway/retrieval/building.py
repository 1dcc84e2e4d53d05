"""Builds an index version: snapshot of the lake -> read, parse, cut, embed and load, batch by batch -> index -> verify.

All that is done is in the database before the next step begins, so a build that ends at any moment goes on from there,
with the same result. The steps on a batch take values and give values (``headway.retrieval.batches``); only this
module writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from datetime import datetime
from typing import Any

import msgspec
import psycopg
from msgspec.structs import replace

from headway.clock import Clock
from headway.config.indexes import VersionSpec
from headway.errors import (
    ConfigurationError,
    ConflictError,
    HeadwayError,
    LakeError,
    ProviderError,
    StorageError,
    UnreadableDocumentError,
)
from headway.lake.parsing.parsed import Limits
from headway.lake.parsing.workers import Parsers
from headway.lake.sources import Lake, LakeObject, Skipped, Source, open_lake
from headway.providers.azure_search import SearchServices
from headway.retrieval import azure_index
from headway.retrieval.batches import Labels
from headway.retrieval.embedding import Embedder
from headway.retrieval.loading import Loading, Preparation
from headway.retrieval.manifest import PIPELINE, ContentHash, Manifest, Recipe, name_embedder
from headway.storage import builds, partitions, versions
from headway.storage.builds import Build, Count, Listed, Outcome, Progress, Stage
from headway.storage.database import Connection, Database

_LISTED = 1000  # documents that are listed at a time
_SAMPLE = 32  # chunks that are searched for before a version is published

Tell = Callable[[Build], None]


@dataclass(frozen=True)
class Tools:
    """What builds are done with.

    Attributes:
        database: Where versions are.
        clock: Tells the time.
        read_secret: Gives the secret that a reference names.
        open_embedder: Makes the embedder of a version.
        parsers: Processes that parse.
        limits: What one document may cost.
        services: Call search services, for indexes that are searched there.
    """

    database: Database
    clock: Clock
    read_secret: Callable[[str], str]
    open_embedder: Callable[[VersionSpec], AbstractAsyncContextManager[Embedder]]
    parsers: int = 2
    limits: Limits = field(default_factory=Limits)
    services: SearchServices | None = None


def _may_go_on(error: HeadwayError, reached: Build) -> bool:
    """Say whether a build may go on later: what is away comes back, a refusal can be put right, what is paid is kept.

    A lake that cannot be listed, or a refusal before anything is loaded, costs nothing but another start.
    """
    if isinstance(error, LakeError):
        return reached.stage != "snapshot"
    return isinstance(error, ProviderError) or (isinstance(error, ConfigurationError) and reached.progress.loaded > 0)


async def start(tools: Tools, index: str, spec: VersionSpec, *, author: str, tell: Tell) -> Build:
    """Begin a version, or go on with the unfinished one of the same specification, and build it to its end.

    Args:
        tools: What it is done with.
        index: Name of the index.
        spec: What to build.
        author: Who wants it.
        tell: Called at every step.

    Raises:
        ConflictError: Somebody is building one, an unfinished one has another specification, or it was cancelled.
        HeadwayError: It failed, or waits: for what is away, or, with something loaded, for a refusal to be put right.
            What waits is unfinished as before, with the problem noted.
    """
    async with _own_connection(tools.database) as holder:
        async with tools.database.connection() as connection:
            build = await builds.find_unfinished(connection, index)
            if build is None:
                build = await builds.begin(connection, index, spec, author=author)
            await _take(holder, build)  # before others can see that it is there
            if build.spec != spec:
                raise ConflictError(
                    f"{build.label} is unfinished, and was begun with other settings: `headway index cancel {index}`"
                    " gives it up"
                )
        return await _finish(tools, build, holder, tell)


async def resume(tools: Tools, version: int, *, tell: Tell) -> Build:
    """Build a version from where it is to its end; its row's number says which.

    Raises:
        ConflictError: Somebody else is building it, it has ended already, or it was cancelled.
        HeadwayError: As of ``start``.
    """
    async with _own_connection(tools.database) as holder:
        async with tools.database.connection() as connection:
            await _take(holder, await builds.find(connection, version))
            build = await builds.find(connection, version)  # as whoever had it before has left it
        return await _finish(tools, build, holder, tell)


@asynccontextmanager
async def _own_connection(database: Database) -> AsyncIterator[Connection]:
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        try:
            yield connection
        finally:
            await builds.let_go(connection)


async def _take(holder: Connection, build: Build) -> None:
    if not await builds.hold(holder, build.version):
        raise ConflictError(
            f"{build.label} is being built ({builds.describe(build)}): `headway index show {build.label}` tells how far"
            f" it is, `headway index cancel {build.index}` gives it up",
            code="build_running",
        )


async def _finish(tools: Tools, build: Build, holder: Connection, tell: Tell) -> Build:
    """Build, and write down why if it fails."""
    try:
        return await _Builder(tools, build, holder, tell).run()
    except ConflictError:  # there is nothing to write
        raise
    except (StorageError, psycopg.OperationalError, psycopg.InterfaceError) as error:
        with contextlib.suppress(StorageError):  # where it is not the database that is away: its disk is full
            async with tools.database.connection() as connection:
                await builds.note_problem(connection, build.version, " ".join(str(error).split()))
        raise  # out of the connection that holds the build, as a StorageError
    except HeadwayError as error:
        async with tools.database.connection() as connection:
            reached = await builds.find(connection, build.version)
            if _may_go_on(error, reached):
                await builds.note_problem(connection, build.version, error.message)
            else:
                await builds.end(connection, build, "failed", error.message, author=build.created_by)
        raise
    except Exception as error:
        async with tools.database.connection() as connection:
            fault = f"a fault of Headway's ({type(error).__name__}); its log says more"
            await builds.end(connection, build, "failed", fault, author=build.created_by)
        raise


class _Builder:
    """Takes the steps of one build."""

    def __init__(self, tools: Tools, build: Build, holder: Connection, tell: Tell) -> None:
        self._tools = tools
        self._build = build
        self._holder = holder
        self._tell = tell
        self._since = tools.clock.monotonic_seconds()

    async def run(self) -> Build:
        spec = self._build.spec
        if self._build.state != "building":
            raise ConflictError(f"{self._build.label} is {self._build.state}: there is nothing to build")
        self._tell(self._build)
        if spec.index.is_pinned:
            return await self._pin()
        if spec.index.azure_ai_search is not None and self._build.stage == "snapshot":
            await azure_index.require_access(self._services, self._build)
        lake = await asyncio.to_thread(open_lake, _source(spec), self._tools.read_secret)
        labels = Labels(spec.index.labels)
        if self._build.stage == "snapshot":
            await self._snapshot(lake)
        async with self._tools.open_embedder(spec) as embedder:
            recipe = _recipe(spec, embedder.dimensions)
            if self._build.stage == "load":
                async with Parsers(self._tools.parsers, self._tools.limits) as parsers:
                    preparation = Preparation(lake, parsers, spec.index.chunk, labels, self._tools.limits.body_bytes)
                    loading = Loading(self._tools.database, recipe, preparation, embedder, self._book)
                    await loading.run(self._build)
                await self._book(self._build.progress, "index")
        if self._build.stage == "index":
            await self._index(recipe.dimensions)
            await self._book(self._build.progress, "verify")
        return await self._publish(recipe)

    @property
    def _services(self) -> SearchServices:
        if self._tools.services is None:
            raise HeadwayError("this process builds no index in a search service")
        return self._tools.services

    async def _index(self, dimensions: int) -> None:
        """Make what is searched of what was loaded."""
        if self._build.spec.index.azure_ai_search is not None:
            await azure_index.upload(self._services, self._tools.database, self._build, dimensions, self._book)
            return
        async with self._tools.database.connection() as connection:
            await partitions.index(connection, self._build.version, dimensions)

    async def _book(
        self,
        progress: Progress,
        stage: Stage,
        outcomes: Sequence[Outcome] = (),
        write: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> Progress:
        """Book a step with all that it writes, or nothing of it, and tell."""
        await self._holder.execute("SELECT 1")  # does it still hold the lock?
        now = self._tools.clock.monotonic_seconds()
        progress = replace(progress, seconds=progress.seconds + now - self._since)
        async with self._tools.database.connection() as connection:
            await builds.book(connection, self._build.version, progress, stage=stage, outcomes=outcomes)
            if write is not None:
                await write(connection)
        self._since = now
        self._build = replace_fields(self._build, progress=progress, stage=stage, problem=None)
        self._tell(self._build)
        return progress

    async def _snapshot(self, lake: Lake) -> None:
        """Write the whole subset down, or nothing of it."""
        progress = self._build.progress
        entries = lake.walk()
        async with self._tools.database.connection() as connection:
            while some := await asyncio.to_thread(lambda: list(itertools.islice(entries, _LISTED))):
                listed = [_listed(each) for each in some if isinstance(each, LakeObject)]
                others = [(each.path, each.reason) for each in some if isinstance(each, Skipped)]
                await builds.save_documents(connection, self._build.version, listed, others)
                progress = replace(
                    progress, documents=progress.documents + len(some), skipped=progress.skipped + len(others)
                )
                self._tell(replace_fields(self._build, progress=progress))
            await builds.book(connection, self._build.version, progress, stage="load")
        self._build = replace_fields(self._build, progress=progress, stage="load")

    async def _publish(self, recipe: Recipe) -> Build:
        """See that nothing was lost and that what is there is found; then give the version to releases."""
        build, remote = self._build, None
        content = ContentHash(recipe)
        async with self._tools.database.connection() as connection:
            count = await builds.count(connection, build.version)
            _refuse_losses(build.progress, count)
            if build.spec.index.azure_ai_search is None:
                await partitions.check_search(connection, build.version, recipe.dimensions, _SAMPLE)
            async for document, chunks_hash in builds.stream_documents(connection, build.version):
                content.add(document, chunks_hash)
        if build.spec.index.azure_ai_search is not None:
            tools = self._tools
            remote = await azure_index.verify(self._services, tools.database, tools.clock, build, count.chunks)
        progress = self._worked()
        manifest = Manifest(
            recipe=recipe,
            documents=count.loaded,
            skipped=count.skipped,
            chunks=count.chunks,
            tokens=count.tokens,
            size_bytes=progress.size_bytes,
            embedded=progress.embedded,
            reused=progress.reused,
            cost_usd=progress.cost_usd,
            seconds=round(progress.seconds, 3),
        )
        plain = msgspec.to_builtins(manifest) | azure_index.describe(remote)
        return await self._give(progress, plain, content.hexdigest())

    async def _pin(self) -> Build:
        """Pin an index that exists in a search service: see that it can be searched, and publish what it is."""
        build, dimensions = self._build, 0
        if azure_index.has_vectors(build.spec):
            async with self._tools.open_embedder(build.spec) as embedder:
                dimensions = embedder.dimensions
        remote, count = await azure_index.pin(self._services, build.spec, dimensions)
        manifest = azure_index.describe(remote) | {"documents": count, "dimensions": dimensions}
        return await self._give(self._worked(), manifest, azure_index.hash_pinned(build.spec, remote))

    def _worked(self) -> Progress:
        progress = self._build.progress
        return replace(progress, seconds=progress.seconds + self._tools.clock.monotonic_seconds() - self._since)

    async def _give(self, progress: Progress, manifest: dict[str, Any], manifest_hash: str) -> Build:
        """Publish what was built; older versions go."""
        build = self._build
        async with self._tools.database.connection() as connection:
            await builds.publish(connection, build, progress, manifest, manifest_hash)
        with contextlib.suppress(StorageError):  # what is left goes after the next build
            async with self._tools.database.connection() as connection:
                keep = build.spec.index.keep
                await versions.enforce_keep(connection, build.index, keep, author=build.created_by)
        if build.spec.index.azure_ai_search is not None:
            await azure_index.sweep(self._services, self._tools.database)
        self._build = replace_fields(build, progress=progress, state="published")
        self._tell(self._build)
        return self._build


def _refuse_losses(progress: Progress, count: Count) -> None:
    if count.loaded == 0:
        raise UnreadableDocumentError(
            f"none of the {count.skipped:,} documents could be read; `headway index show` tells why", code="index_empty"
        )
    booked = (progress.documents, progress.loaded, progress.skipped, progress.chunks)
    if count.listed or count.astray or (booked[0], *booked[1:]) != (
        count.loaded + count.skipped, count.loaded, count.skipped, count.chunks
    ):  # fmt: skip
        raise HeadwayError(f"the version is not whole: booked {progress}, found {count}", code="index_not_whole")


def _listed(found: LakeObject) -> Listed:
    return Listed(0, found.path, found.size, found.modified, found.etag)


def _source(spec: VersionSpec) -> Source:
    lake = spec.index.lake
    since = datetime.fromisoformat(lake.modified_since) if lake.modified_since else None
    return Source(lake.url, lake.include, lake.exclude, lake.prefix, since, lake.options, lake.secrets)


def _recipe(spec: VersionSpec, dimensions: int) -> Recipe:
    index = spec.index
    return Recipe(PIPELINE, index.chunk.tokens, index.chunk.overlap, index.language, name_embedder(spec), dimensions)
