"""Search in a version that has a graph: approximate, and held against looking at every chunk of real manuals."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.exact import choose_documents, compare_with_exact, read_library
from benchmarks.library import FINE, build_index, specify, write_manuals
from headway.domain.release import Retrieval
from headway.retrieval.embedding import StaticEmbedder
from headway.storage.database import Database
from headway.storage.partitions import GRAPH_CHUNKS
from headway.storage.search import read_searched
from headway.testing.faq import load_faq


@pytest.mark.timeout(1800)
async def test_approximate_search_finds_what_exact_search_finds(
    database: Database, tmp_path: Path, proof: bool
) -> None:
    write_manuals(tmp_path, "*" if proof else "perlf*")
    embedder = StaticEmbedder()
    build = await build_index(database, "manuals", specify(tmp_path, FINE), embedder)
    async with database.connection() as connection:
        library = await read_library(connection, await read_searched(connection, build.version))
    assert len(library.chunks) > (100_000 if proof else GRAPH_CHUNKS)
    questions = load_faq().questions
    texts = [question.text for question in questions[:: 3 if proof else 40]]
    for part in (1.0, 0.05, 0.3, 0.8):
        wanted = {} if part == 1 else {"path": choose_documents(library, part)}
        for weight in (Retrieval("", 0).hybrid_weight, 1.0):
            retrieval = Retrieval("manuals", 1, top_k=10, hybrid_weight=weight, filter=wanted)
            found = await compare_with_exact(database, library, embedder, retrieval, texts)
            print(part, weight, found._replace(spent_ms=sorted(found.spent_ms)[-1:]))
            assert 0.8 * part <= found.chunks / len(library.chunks) <= part
            assert found.recall >= 0.98
