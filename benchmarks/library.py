"""Index versions over real documents, built and searched as in production, with any embedder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from headway.clock import SystemClock
from headway.config.indexes import ChunkSpec, IndexSpec, LakeSpec, VersionSpec
from headway.domain.release import Retrieval
from headway.domain.relevance import recall, reciprocal_rank
from headway.providers.credentials import resolve_secret
from headway.retrieval.building import Tools, start
from headway.retrieval.embedding import Embedder
from headway.retrieval.retriever import VersionRetriever, Versions
from headway.retrieval.searching import VersionSearch
from headway.storage.builds import Build
from headway.storage.database import Database
from headway.testing.faq import Question, locate_faq, pod_to_markdown

TOP_K = 10
_AT_A_TIME = 4
FINE = ChunkSpec(64, 8)
"""How manuals are cut: all of them make 114,000 chunks."""


class Quality(NamedTuple):
    """How well questions find their answers: means over questions, of the first ten passages."""

    recall: float
    reciprocal_rank: float


def write_manuals(folder: Path, pattern: str = "*") -> None:
    """Write Python's and Perl's manuals into a folder, about 740 pages.

    Args:
        folder: Where to.
        pattern: Of the names of pages, without their ending.
    """
    share = locate_faq() / "usr" / "share"
    python = next(share.glob("doc/python3.[0-9][0-9]/html"))
    for path in python.rglob(f"{pattern}.html"):
        _write(folder / "python" / path.relative_to(python), path.read_bytes())
    for path in share.glob(f"perl/*/pod/{pattern}.pod"):
        _write(folder / "perl" / f"{path.stem}.md", pod_to_markdown(path.read_text("utf-8")).encode())


def _write(path: Path, body: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


async def build_index(database: Database, name: str, spec: IndexSpec, embedder: Embedder) -> Build:
    """Build the next version of an index."""

    @asynccontextmanager
    async def open_embedder(_: VersionSpec) -> AsyncIterator[Embedder]:
        await embedder.open()
        yield embedder

    tools = Tools(database, SystemClock(), resolve_secret, open_embedder)
    return await start(tools, name, VersionSpec(spec), author="benchmark", tell=lambda _: None)


def specify(
    folder: Path, chunk: ChunkSpec | None = None, labels: Sequence[tuple[str, tuple[str, ...]]] = ()
) -> IndexSpec:
    """Specify an index over a folder."""
    return IndexSpec(LakeSpec(f"file:{folder}"), chunk=chunk or ChunkSpec(), labels=tuple(labels))


@asynccontextmanager
async def open_search(database: Database, embedder: Embedder, seconds: float = 60.0) -> AsyncIterator[VersionRetriever]:
    """Give a retriever whose queries are embedded so."""
    versions = Versions(lambda _: embedder)
    retriever = VersionRetriever(database, versions, VersionSearch(), SystemClock(), seconds=seconds)
    try:
        yield retriever
    finally:
        await retriever.close()


async def measure_quality(retriever: VersionRetriever, retrieval: Retrieval, questions: Sequence[Question]) -> Quality:
    """Ask every question of an index of answers.

    Args:
        retriever: Searches.
        retrieval: Which version, and how; for ten passages.
        questions: Of which each one's document is known.
    """
    places = asyncio.Semaphore(_AT_A_TIME)

    async def ask(question: Question) -> Quality:
        async with places:
            found = await retriever.retrieve(question.text, retrieval, frozenset())
        ranked = [passage.document for passage in found.passages]
        return Quality(recall({question.path}, ranked, TOP_K), reciprocal_rank({question.path}, ranked, TOP_K))

    taken = await asyncio.gather(*map(ask, questions))
    return Quality(fmean(each.recall for each in taken), fmean(each.reciprocal_rank for each in taken))
