"""How well real questions find their answers: hybrid search against either of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.library import Quality, build_index, measure_quality, open_search, specify
from benchmarks.minilm import MiniLm
from headway.domain.release import Retrieval
from headway.retrieval.embedding import Embedder, StaticEmbedder
from headway.storage.database import Database
from headway.testing.faq import Faq, Question, load_faq

WEIGHTS = {"words": 0.0, "hybrid": Retrieval("", 0).hybrid_weight, "vectors": 1.0}
NOISE = 0.01


@pytest.fixture(scope="module")
def faq() -> Faq:
    return load_faq()


async def measure(
    database: Database, folder: Path, faq: Faq, embedder: Embedder, asked: Sequence[Question]
) -> dict[str, Quality]:
    """Build an index of the answers and ask the questions, each way."""
    answers = {question.path for question in faq.questions}
    faq.write_answers(folder, without=answers - {question.path for question in asked})
    await build_index(database, "faq", specify(folder), embedder)
    async with open_search(database, embedder) as retriever:
        return {
            way: await measure_quality(retriever, Retrieval("faq", 1, top_k=10, hybrid_weight=weight), asked)
            for way, weight in WEIGHTS.items()
        }


async def test_hybrid_search_beats_each_of_its_parts(database: Database, tmp_path: Path, faq: Faq) -> None:
    found = await measure(database, tmp_path, faq, StaticEmbedder(), faq.questions)
    print(found)
    for part in ("words", "vectors"):
        assert found["hybrid"].recall > found[part].recall
        assert found["hybrid"].reciprocal_rank > found[part].reciprocal_rank
    assert found["hybrid"].recall > 0.80
    assert found["hybrid"].reciprocal_rank > 0.58


@pytest.mark.timeout(1200)
async def test_a_good_embedder_loses_nothing_in_hybrid_search(
    database: Database, tmp_path: Path, faq: Faq, proof: bool
) -> None:
    # The embedder takes a minute or more for all; those with the shortest answers take seconds.
    asked = faq.questions if proof else sorted(faq.questions, key=lambda each: len(each.answer))[:80]
    embedder = MiniLm()
    try:
        found = await measure(database, tmp_path, faq, embedder, asked)
    finally:
        embedder.close()
    print(found)
    assert found["hybrid"].recall >= found["vectors"].recall - NOISE
    assert found["hybrid"].reciprocal_rank >= found["vectors"].reciprocal_rank - NOISE
