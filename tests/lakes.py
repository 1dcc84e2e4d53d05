"""Folders of documents to build indexes over, and what builds are done with; as a program, a build to be killed."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headway.clock import SystemClock
from headway.config.indexes import ChunkSpec, IndexSpec, LakeSpec, VersionSpec
from headway.providers.credentials import resolve_secret
from headway.retrieval.building import Tools, start
from headway.storage.builds import Build
from headway.storage.database import Database

WORDS = ("leave", "travel", "invoice", "server", "budget", "safety", "review", "holiday", "laptop", "contract")


class CountingEmbedder:
    """Makes vectors of words, and counts its work."""

    dimensions = 32
    cost_usd: float | None = 0.0

    def __init__(self) -> None:
        self.embedded = 0

    async def open(self) -> None:
        """It is ready."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += len(texts)
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, hashlib.blake2b(word.encode(), digest_size=1).digest()[0] % self.dimensions] += 1
        return vectors


def write_documents(folder: Path, count: int, *, first: int = 0) -> None:
    """Write Markdown documents of about two chunks each into folders of a hundred."""
    for number in range(first, first + count):
        path = folder / f"part{number // 100}" / f"doc{number:05}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(number))


def document(number: int) -> str:
    """Give the text of one document: its number is in every paragraph."""
    word = WORDS[number % len(WORDS)]
    paragraphs = [
        f"## Section {section}\n\nRule {number}-{section} on {word}: {' '.join([f'{word} {number} {section}'] * 20)}."
        for section in range(3)
    ]
    return f"# Document {number}\n\n" + "\n\n".join(paragraphs) + "\n"


def specify(folder: Path, **changes: object) -> VersionSpec:
    """Specify an index over a folder, cut small."""
    fields = {"lake": LakeSpec(f"file:{folder}", include=("**/*.md",)), "chunk": ChunkSpec(96, 8)} | changes
    return VersionSpec(IndexSpec(**fields))  # type: ignore[arg-type]  # fields of a test's choice


def make_tools(database: Database, embedder: CountingEmbedder | None = None) -> Tools:
    """Make what builds are done with; vectors come from ``embedder``."""
    shared = embedder or CountingEmbedder()

    @asynccontextmanager
    async def open_embedder(_: VersionSpec) -> AsyncIterator[CountingEmbedder]:
        yield shared

    return Tools(database, SystemClock(), resolve_secret, open_embedder)


async def build(
    database: Database,
    folder: Path,
    embedder: CountingEmbedder | None = None,
    *,
    index: str = "handbook",
    **changes: object,
) -> Build:
    """Build the next version of an index over a folder."""
    spec = specify(folder, **changes)
    return await start(make_tools(database, embedder), index, spec, author="ann", tell=lambda _: None)


class _Slow(CountingEmbedder):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        await asyncio.sleep(self._seconds)
        return await super().embed(texts)


async def _main(url: str, folder: str, pause_seconds: str = "0") -> None:
    """Build, and print a line at every step; a pause before each batch is embedded."""
    database = Database(url)
    await database.open()

    def tell(build: Build) -> None:
        print(build.stage, build.state, build.progress.done, flush=True)

    tools = make_tools(database, _Slow(float(pause_seconds)))
    await start(tools, "handbook", specify(Path(folder)), author="ann", tell=tell)
    await database.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
