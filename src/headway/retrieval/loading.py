"""The longest step of a build: every listed document is read, parsed, cut, embedded and loaded, batch by batch.

While one batch is embedded and written, the next is read and parsed. What an earlier version holds already is taken
over: whole documents where the recipe is the same, else the vectors of equal chunks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from headway.config.indexes import ChunkSpec
from headway.lake.parsing.workers import Parsers
from headway.lake.sources import Lake
from headway.retrieval import batches
from headway.retrieval.batches import Labels, Prepared, Read
from headway.retrieval.chunking import embedded_text
from headway.retrieval.embedding import Embedder
from headway.retrieval.manifest import Recipe
from headway.retrieval.tasks import do_both
from headway.storage import builds, partitions
from headway.storage.builds import Build, Listed, Outcome, Progress, Stage
from headway.storage.database import Connection, Database

_BATCH_DOCUMENTS = 64
_BATCH_BYTES = 16 * 2**20
_EMBEDDED_CHUNKS = 1024  # given to the embedder at a time

Vectors = NDArray[np.float32]
Write = Callable[[Connection], Awaitable[None]]


class Book(Protocol):
    """Books a step with all that it writes, or nothing of it."""

    async def __call__(
        self, progress: Progress, stage: Stage, outcomes: Sequence[Outcome] = (), write: Write | None = None
    ) -> Progress:
        """Book it, and give the progress as it is booked."""
        ...


@dataclass(frozen=True)
class Preparation:
    """What documents are prepared with.

    Attributes:
        lake: Where they are.
        parsers: Parse them.
        chunking: How they are cut.
        labels: Who may see them.
        limit_bytes: The most that one may have.
    """

    lake: Lake
    parsers: Parsers
    chunking: ChunkSpec
    labels: Labels
    limit_bytes: int


@dataclass(frozen=True)
class _Base:
    """The version that is taken over from: its row's number, and whether whole documents can be."""

    version: int
    same_recipe: bool


@dataclass(frozen=True)
class _Batch:
    """Documents that are ready to be loaded or were skipped, and the path after which the next batch begins."""

    last: str
    prepared: Sequence[Prepared]
    skipped: Sequence[Outcome]


class Loading:
    """Loads all listed documents of a version.

    Args:
        database: Where it is written.
        recipe: Of the version.
        preparation: What documents are prepared with.
        embedder: Makes the vectors.
        book: Writes a batch and its bookkeeping together.
    """

    def __init__(
        self, database: Database, recipe: Recipe, preparation: Preparation, embedder: Embedder, book: Book
    ) -> None:
        self._database = database
        self._recipe = recipe
        self._preparation = preparation
        self._embedder = embedder
        self._book = book
        self._base: _Base | None = None
        self._paid_usd: float | None = 0.0  # before

    async def run(self, build: Build) -> None:
        """Load what is listed and not loaded yet."""
        async with self._database.connection() as connection:
            await partitions.create(connection, build.version, self._recipe.dimensions)
            self._base = await self._find_base(connection, build)
        progress = build.progress
        self._paid_usd = progress.cost_usd if progress.done else 0.0
        batch = await self._prepare(build.version, "")
        while batch is not None:
            batch, progress = await do_both(
                self._prepare(build.version, batch.last), self._load(build.version, batch, progress)
            )

    async def _find_base(self, connection: Connection, build: Build) -> _Base | None:
        """The newest version whose vectors can be taken over."""
        for version, manifest in await builds.list_manifests(connection, build.index):
            recipe = msgspec.convert(manifest["recipe"], Recipe)
            if recipe.same_vectors(self._recipe):
                return _Base(version, recipe == self._recipe)
        return None

    async def _prepare(self, version: int, after: str) -> _Batch | None:
        """Read and cut the next documents; None when there are no more."""
        preparation, base = self._preparation, self._base
        async with self._database.connection() as connection:
            listed = _first(await builds.next_documents(connection, version, after=after, limit=_BATCH_DOCUMENTS))
            if not listed:
                return None
            earlier = {}
            if base is not None and base.same_recipe:
                earlier = await builds.find_earlier(connection, base.version, [each.path for each in listed])
        found = await batches.read(preparation.lake, listed, preparation.limit_bytes)
        read = [each for each in found if isinstance(each, Read)]
        prepared = await batches.prepare(read, earlier, preparation.parsers, preparation.chunking, preparation.labels)
        return _Batch(
            listed[-1].path,
            [each for each in prepared if isinstance(each, Prepared)],
            [each for each in (*found, *prepared) if isinstance(each, Outcome)],
        )

    async def _load(self, version: int, batch: _Batch, progress: Progress) -> Progress:
        """Embed a batch and write it."""
        fresh = [each for each in batch.prepared if each.earlier is None]
        kept = [each for each in batch.prepared if each.earlier is not None]
        vectors, embedded = await self._embed(version, fresh)
        rows = [
            partitions.Row(each.listed.number, each.document, chunk, vectors[chunk.content_hash])
            for each in fresh
            for chunk in each.chunks
        ]
        carried = [
            partitions.Carried(each.earlier.number, each.listed.number, each.document) for each in kept if each.earlier
        ]

        async def write(connection: Connection) -> None:
            await partitions.load(connection, version, rows, self._recipe.language)
            if carried and self._base is not None:
                await partitions.carry_over(connection, self._base.version, version, carried)

        outcomes = [*batch.skipped, *map(_outcome, batch.prepared)]
        count = sum(outcome.chunks for outcome in outcomes)
        progress = replace(
            progress,
            loaded=progress.loaded + len(batch.prepared),
            skipped=progress.skipped + len(batch.skipped),
            size_bytes=progress.size_bytes + sum(each.listed.size for each in batch.prepared),
            chunks=progress.chunks + count,
            embedded=progress.embedded + embedded,
            reused=progress.reused + count - embedded,
            cost_usd=self._cost_usd(),
        )
        return await self._book(progress, "load", outcomes, write)

    def _cost_usd(self) -> float | None:
        spent, paid = self._embedder.cost_usd, self._paid_usd
        return None if spent is None or paid is None else paid + spent

    async def _embed(self, version: int, documents: Sequence[Prepared]) -> tuple[dict[str, Vectors], int]:
        """Find or make the vectors of all chunks, by content hash; and how many were made.

        Found are those of equal chunks, in the version that is taken over from and in what is loaded already.
        """
        texts = {
            chunk.content_hash: embedded_text(each.document.title, chunk.heading, chunk.text)
            for each in documents
            for chunk in each.chunks
        }
        vectors: dict[str, Vectors] = {}
        if texts:
            async with self._database.connection() as connection:
                for known in (version,) if self._base is None else (self._base.version, version):
                    missing = [content_hash for content_hash in texts if content_hash not in vectors]
                    vectors |= await partitions.find_vectors(connection, known, missing)
        missing = [content_hash for content_hash in texts if content_hash not in vectors]
        for begin in range(0, len(missing), _EMBEDDED_CHUNKS):
            some = missing[begin : begin + _EMBEDDED_CHUNKS]
            made = await self._embedder.embed([texts[content_hash] for content_hash in some])
            vectors |= zip(some, made, strict=True)
        return vectors, len(missing)


def _first(listed: Sequence[Listed]) -> list[Listed]:
    """As many as fit into a batch, at least one."""
    total = 0
    for number, each in enumerate(listed):
        total += each.size
        if number and total > _BATCH_BYTES:
            return list(listed[:number])
    return list(listed)


def _outcome(prepared: Prepared) -> Outcome:
    count = len(prepared.chunks) if prepared.earlier is None else prepared.earlier.chunks
    return Outcome(prepared.listed.number, prepared.listed.size, prepared.document, count)
