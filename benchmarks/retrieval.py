"""Retrieval: how well real questions find their answers, what approximate search misses, and what a search costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.database import start_database
from benchmarks.exact import choose_documents, compare_with_exact, read_library
from benchmarks.figures import Figure, percentile
from benchmarks.library import FINE, TOP_K, build_index, measure_quality, open_search, specify, write_manuals
from benchmarks.minilm import MiniLm
from benchmarks.processes import Tree
from headway.domain.release import Retrieval
from headway.retrieval.embedding import Embedder, StaticEmbedder
from headway.storage.database import Database, migrate
from headway.storage.search import read_searched
from headway.testing.faq import Faq, Question, load_faq

AREA = "retrieval"
_MISSED_AT_MOST = 2.0
_HYBRID = Retrieval("", 0).hybrid_weight
_PARTS = ((1.0, "no filter"), (0.05, "a filter that keeps 5 %"), (0.3, "a filter that keeps 30 %"))
_QUESTIONS = 200
_LONG, _ODD = 2000, 50
_COMMON = ("function", "use", "perl", "python", "value", "how to use a function", "the value of a string in a file")


def measure_retrieval(bench: Bench) -> list[Figure]:
    """Measure quality on the FAQ questions, with both embedders, and search in manuals of 114,000 chunks."""
    with start_database(bench.folder / AREA / "server") as server:
        migrate(server.url)
        return bench.runner.run(_measure(bench, server.url, server.tree))


async def _measure(bench: Bench, url: str, tree: Tree) -> list[Figure]:
    database = Database(url)
    await database.open()
    faq = load_faq()
    folder = bench.folder / AREA
    try:
        figures = await _measure_quality(database, faq, folder / "answers", StaticEmbedder(), "static")
        with _open_minilm() as embedder:
            asked = faq.questions if bench.sizes.questions is None else _shortest(faq, bench.sizes.questions)
            few = Faq(faq.pages, asked)
            figures += await _measure_quality(database, few, folder / "few", embedder, "MiniLM")
        return figures + await _measure_scale(database, faq, folder / "manuals", bench.sizes.manuals, tree)
    finally:
        await database.close()


@contextmanager
def _open_minilm() -> Iterator[MiniLm]:
    embedder = MiniLm(workers=1)
    try:
        yield embedder
    finally:
        embedder.close()


def _shortest(faq: Faq, count: int) -> tuple[Question, ...]:
    return tuple(sorted(faq.questions, key=lambda question: len(question.answer))[:count])


async def _measure_quality(database: Database, faq: Faq, folder: Path, embedder: Embedder, name: str) -> list[Figure]:
    faq.write_answers(folder)
    index = f"faq-{name.lower()}"
    await build_index(database, index, specify(folder), embedder)
    figures = []
    async with open_search(database, embedder) as retriever:
        for way, weight in (("full text", 0.0), (name, 1.0), (f"hybrid, {name}", _HYBRID)):
            retrieval = Retrieval(index, 1, top_k=TOP_K, hybrid_weight=weight)
            quality = await measure_quality(retriever, retrieval, faq.questions)
            note = f"{len(faq.questions)} questions"
            figures.append(Figure(AREA, f"recall@{TOP_K}", way, quality.recall * 100, "%", note=note))
            figures.append(Figure(AREA, f"MRR@{TOP_K}", way, quality.reciprocal_rank * 100, "%", note=note))
    return figures


async def _measure_scale(database: Database, faq: Faq, folder: Path, pattern: str, tree: Tree) -> list[Figure]:
    write_manuals(folder, pattern)
    embedder = StaticEmbedder()
    build = await build_index(database, "manuals", specify(folder, FINE), embedder)
    async with database.connection() as connection:
        library = await read_library(connection, await read_searched(connection, build.version))
    texts = [question.text for question in faq.questions[:: max(1, len(faq.questions) // _QUESTIONS)]]
    figures = []
    for part, what in _PARTS:
        wanted = {} if part == 1 else {"path": choose_documents(library, part)}
        for way, weight in (("hybrid", _HYBRID), ("static", 1.0)):
            retrieval = Retrieval("manuals", 1, top_k=TOP_K, hybrid_weight=weight, filter=wanted)
            before = tree.cpu_seconds()
            found = await compare_with_exact(database, library, embedder, retrieval, texts)
            cpu_ms = (tree.cpu_seconds() - before) * 1000 / len(texts)
            missed = (1 - found.recall) * 100
            note = f"{found.chunks:,} chunks of {len(library.chunks):,} may be found"
            figures += [
                Figure(AREA, f"missed of the exact {TOP_K}, {what}", way, missed, "%", _MISSED_AT_MOST, note),
                Figure(AREA, f"search, {what}, median", way, percentile(found.spent_ms, 50), "ms"),
                Figure(AREA, f"search, {what}, 95th percentile", way, percentile(found.spent_ms, 95), "ms"),
                Figure(AREA, f"PostgreSQL's CPU for a search, {what}", way, cpu_ms, "ms"),
            ]
    long = [question.answer[:_LONG] for question in faq.questions if len(question.answer) >= _LONG]
    for what, odd in ((f"{_LONG:,} characters", long[:_ODD]), ("common words alone", _COMMON)):
        retrieval = Retrieval("manuals", 1, top_k=TOP_K)
        before = tree.cpu_seconds()
        found = await compare_with_exact(database, library, embedder, retrieval, odd)
        cpu_ms = (tree.cpu_seconds() - before) * 1000 / len(odd)
        figures += [
            Figure(AREA, f"search, {what}, 95th percentile", "hybrid", percentile(found.spent_ms, 95), "ms"),
            Figure(AREA, f"PostgreSQL's CPU for a search, {what}", "hybrid", cpu_ms, "ms"),
        ]
    return figures
