"""Building: how fast a folder of documents becomes an index version, where the time goes, and what a rebuild costs."""

from __future__ import annotations

import html
import itertools
import os
import random
import resource
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.database import start_database
from benchmarks.figures import Figure, VoidRunError
from benchmarks.processes import Tree
from headway.clock import SystemClock
from headway.config.indexes import IndexSpec, LakeSpec, VersionSpec
from headway.domain.knowledge import Section
from headway.errors import UnreadableDocumentError
from headway.lake.parsing.documents import parse
from headway.providers.credentials import resolve_secret
from headway.retrieval.building import Tools, start
from headway.retrieval.embedding import StaticEmbedder
from headway.storage.builds import Build
from headway.storage.database import Database, migrate
from headway.testing.faq import locate_faq, pod_to_markdown

AREA = "building"
_EMBEDDED_AT_MOST_PERCENT = 5.0
_CHANGED = 100  # one document in so many
_DOCUMENT_CHARACTERS = 4000
_FOLDER_DOCUMENTS = 200
_SEED = 20261123


def measure_building(bench: Bench) -> list[Figure]:
    """Build an index version of pieces of real manuals, then others after nothing and after one in a hundred changed.

    The build, its parsers and PostgreSQL share the two cores.

    Raises:
        VoidRunError: A document was left out, or what should be the same was embedded again.
    """
    with _both_cores(bench), start_database(bench.folder / AREA) as server:
        migrate(server.url)
        lake = bench.folder / "lake"
        count = write_lake(lake, bench.sizes.documents)
        return bench.runner.run(_measure(server.url, server.tree, lake, count))


@contextmanager
def _both_cores(bench: Bench) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {bench.cores.measured, bench.cores.others})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def write_lake(folder: Path, count: int) -> int:
    """Write documents of some 5,000 characters, of sections of Python's and Perl's manuals: three of four in Markdown.

    Returns:
        How many: ``count``. When the manuals are through, they come again with another number in each section.
    """
    pages = [list(_pieces(path, body)) for path, body in _manuals()]
    for number, sections in zip(range(count), _again(pages), strict=False):
        path = folder / f"part{number // _FOLDER_DOCUMENTS}" / f"{number:06}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 4:
            path.with_suffix(".md").write_text(_markdown(sections), "utf-8")
        else:
            path.with_suffix(".html").write_text(_html(sections), "utf-8")
    return count


def _manuals() -> Iterator[tuple[str, bytes]]:
    share = locate_faq() / "usr" / "share"
    for path in sorted(share.glob("doc/python3.*/html/**/*.html")):
        yield path.name, path.read_bytes()
    for path in sorted(share.glob("perl/*/pod/*.pod")):
        yield f"{path.stem}.md", pod_to_markdown(path.read_text("utf-8")).encode()


def _pieces(name: str, body: bytes) -> Iterator[list[Section]]:
    """Give the sections of a page, as many at a time as make a document."""
    try:
        parsed = parse(name, body)
    except UnreadableDocumentError:  # a page of links alone
        return
    piece: list[Section] = []
    for section in parsed.sections:
        piece.append(section)
        if sum(len(each.text) for each in piece) > _DOCUMENT_CHARACTERS:
            yield piece
            piece = []
    if sum(len(each.text) for each in piece) > _DOCUMENT_CHARACTERS // 8:
        yield piece


def _again(pages: Sequence[Sequence[list[Section]]]) -> Iterator[list[Section]]:
    pieces = [piece for page in pages for piece in page]
    for turn in itertools.count(1):
        for piece in pieces:
            yield piece if turn == 1 else [Section(each.headings, f"{turn}: {each.text}") for each in piece]


def _markdown(sections: Sequence[Section]) -> str:
    return "\n\n".join(f"{'#' * len(each.headings)} {each.headings[-1]}\n\n{each.text}" for each in _headed(sections))


def _html(sections: Sequence[Section]) -> str:
    body = "".join(
        f"<h{min(len(each.headings), 6)}>{html.escape(each.headings[-1])}</h{min(len(each.headings), 6)}>"
        + "".join(f"<p>{html.escape(part)}</p>\n" for part in each.text.split("\n\n"))
        for each in _headed(sections)
    )
    return (
        f"<html><head><title>{html.escape(_headed(sections)[0].headings[0])}</title></head><body>{body}</body></html>"
    )


def _headed(sections: Sequence[Section]) -> list[Section]:
    return [Section(each.headings or ("Untitled",), each.text) for each in sections]


@dataclass(frozen=True)
class Took:
    """What a build took, by the clock and of CPU.

    Attributes:
        build: As it ended.
        all_seconds: From its beginning to its end.
        index_seconds: Of it, making the indexes.
        embed_seconds: Of it, making vectors, beside other work.
        own_cpu_seconds, parsing_cpu_seconds, database_cpu_seconds: Of the building process, of those that parse, and of
            PostgreSQL.
    """

    build: Build
    all_seconds: float
    index_seconds: float
    embed_seconds: float
    own_cpu_seconds: float
    parsing_cpu_seconds: float
    database_cpu_seconds: float


class _Timed(StaticEmbedder):
    """The embedded model, timed."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        began = time.perf_counter()
        vectors = await super().embed(texts)
        self.seconds += time.perf_counter() - began
        return vectors


async def _measure(url: str, server: Tree, lake: Path, count: int) -> list[Figure]:
    database = Database(url)
    await database.open()
    try:
        full = await _build(database, server, lake)
        same = await _build(database, server, lake)
        _change(lake, count)
        changed = await _build(database, server, lake)
    finally:
        await database.close()
    if {took.build.progress.loaded for took in (full, same, changed)} != {count} or same.build.progress.embedded:
        raise VoidRunError(f"of {count} documents: {[took.build.progress for took in (full, same, changed)]}")
    return _figures(full, same, changed)


async def _build(database: Database, server: Tree, lake: Path) -> Took:
    embedder = _Timed()

    @asynccontextmanager
    async def open_embedder(_: VersionSpec) -> AsyncIterator[StaticEmbedder]:
        await embedder.open()
        yield embedder

    reached: dict[str, float] = {}

    def tell(build: Build) -> None:
        reached[build.stage] = reached.get(build.stage, time.perf_counter())

    tools = Tools(database, SystemClock(), resolve_secret, open_embedder)
    spec = VersionSpec(IndexSpec(LakeSpec(f"file:{lake}")))
    own, parsing, of_server = _cpu(resource.RUSAGE_SELF), _cpu(resource.RUSAGE_CHILDREN), server.cpu_seconds()
    began = time.perf_counter()
    build = await start(tools, "manuals", spec, author="benchmark", tell=tell)
    return Took(
        build,
        time.perf_counter() - began,
        reached["verify"] - reached["index"],
        embedder.seconds,
        _cpu(resource.RUSAGE_SELF) - own,
        _cpu(resource.RUSAGE_CHILDREN) - parsing,
        server.cpu_seconds() - of_server,
    )


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _change(lake: Path, count: int) -> None:
    """Change one document in a hundred, in one paragraph."""
    paths = sorted(lake.rglob("*.*"))
    for path in random.Random(_SEED).sample(paths, count // _CHANGED):
        text = path.read_text("utf-8")
        path.write_text(text.replace(". ", ", it was said. ", 1) + "\nRevised.\n", "utf-8")


def _figures(full: Took, same: Took, changed: Took) -> list[Figure]:
    progress = full.build.progress
    chunks, size = progress.chunks, progress.size_bytes / progress.loaded
    note = f"{progress.loaded:,} documents of {size:,.0f} bytes, {chunks:,} chunks; two cores"
    whole = full.all_seconds / 100
    embedded = 100 * changed.build.progress.embedded / progress.embedded
    return [
        Figure(AREA, "documents", "headway", progress.loaded / full.all_seconds, "/s", note=note),
        Figure(AREA, "chunks", "headway", chunks / full.all_seconds, "/s"),
        Figure(AREA, "time of it for the indexes", "headway", full.index_seconds / whole, "%"),
        Figure(AREA, "time of it in which vectors are made", "headway", full.embed_seconds / whole, "%"),
        Figure(AREA, "CPU per chunk, parsing", "headway", 1e6 * full.parsing_cpu_seconds / chunks, "us"),
        Figure(AREA, "CPU per chunk, Headway", "headway", 1e6 * full.own_cpu_seconds / chunks, "us"),
        Figure(AREA, "CPU per chunk, PostgreSQL", "headway", 1e6 * full.database_cpu_seconds / chunks, "us"),
        Figure(
            AREA, "embedded again with 1 % changed", "headway", embedded, "%", _EMBEDDED_AT_MOST_PERCENT,
            f"{changed.build.progress.embedded:,} of {progress.embedded:,} chunks",
        ),
        Figure(AREA, "time of a rebuild with 1 % changed", "headway", changed.all_seconds / whole, "%"),
        Figure(AREA, "time of a rebuild with nothing changed", "headway", same.all_seconds / whole, "%"),
    ]  # fmt: skip
