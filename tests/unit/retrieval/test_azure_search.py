"""What becomes of the answers of Azure AI Search: passages, and scores from 0 to 1 whatever the service ranked by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from headway.config.azure_search import AzureFields, AzureSearchSpec
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.errors import ProviderError
from headway.providers.azure_search import SearchServices
from headway.retrieval.azure_search import AzureSearch, Remote, Sought, number_key

SERVICE = AzureSearchSpec("https://c.search.windows.net", api_key="env:KEY")
FOUND = AzureSearchSpec("https://c", index="wiki", fields=AzureFields("text", vector="vector"))
VECTOR = [1.0, 0.0]


class Canned:
    """Answers with what it was given."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self._results = results

    async def search(self, _service: Any, _name: str, request: Mapping[str, Any], *, seconds: float) -> Any:
        assert seconds
        assert request["top"]
        return self._results


def result(key: str, score: float = 1.0, points: float | None = None, **more: Any) -> dict[str, Any]:
    more["@search.rerankerScore"] = points
    document = {"id": key, "path": f"{key}.md", "title": "T", "heading": "", "content": "text", "tokens": 3}
    return {"@search.score": score, **document, "position": 0, **more}


def similar(similarity: float) -> dict[str, Any]:
    vectors = {"subscores": {"text": None, "vectors": [{"vector": {"vectorSimilarity": similarity}}]}}
    return {"@search.documentDebugInfo": {"vectors": vectors}}


async def read(
    *results: dict[str, Any], service: AzureSearchSpec = SERVICE, metric: str = "cosine", **parameters: Any
) -> list[Passage]:
    search = AzureSearch(cast(SearchServices, Canned(list(results))), len)
    remote = Remote("wiki", "id", metric=metric)
    sought = Sought("handbook@1", service, remote, Retrieval("handbook", 1, **parameters), frozenset())
    return await search(sought, "text", VECTOR if parameters.get("hybrid_weight", 0.5) else None, seconds=1.0)


@pytest.mark.parametrize(
    ("weight", "words", "meaning", "score"),
    [
        (0.5, 0, 0, 1.0),
        (0.8, 0, 0, 1.0),
        (0.8, None, 0, 0.8),
        (0.8, 0, None, 0.2),
        (0.5, 1, 2, 0.5 * 60 / 61 + 0.5 * 60 / 62),
    ],
)
async def test_fused_ranks(weight: float, words: int | None, meaning: int | None, score: float) -> None:
    fused = sum(part / (60 + rank) for part, rank in ((1, words), (weight / (1 - weight), meaning)) if rank is not None)
    (passage,) = await read(result("7", fused, **similar(0.6)), hybrid_weight=weight)
    assert passage.score == pytest.approx(score)
    assert (passage.chunk, passage.similarity, passage.vector_rank, passage.text_rank) == (7, 0.6, None, None)


async def test_meaning_alone() -> None:
    best, other = await read(result("1", 1 / 1.1), result("2", 1 / 2.5), hybrid_weight=1.0)
    assert [each.score for each in (best, other)] == pytest.approx([0.9, 0.0])
    assert [each.similarity for each in (best, other)] == pytest.approx([0.9, -0.5])
    assert [each.vector_rank for each in (best, other)] == [1, 2]


async def test_meaning_compared_in_another_way() -> None:
    found = await read(result("1", 17.0), result("2", 16.0), hybrid_weight=1.0, metric="dotProduct")
    assert [(each.score, each.similarity) for each in found] == [(1.0, None), (60 / 61, None)]


async def test_words_alone() -> None:
    found = await read(result("1", 17.0), result("2", 0.1), hybrid_weight=0.0)
    assert [(each.score, each.text_rank) for each in found] == [(1.0, 1), (60 / 61, 2)]


async def test_the_semantic_ranker() -> None:
    service = AzureSearchSpec("https://c", api_key="env:KEY", semantic="best")
    results = [result("1", points=3.0), result("2")]
    found = await read(*results, service=service)
    assert [each.score for each in found] == [0.75, 0.0]  # it ranks fifty, and no more
    with pytest.raises(ProviderError):
        await read(results[1], service=service)
    assert len(await read(*results, service=service, minimum_score=0.5)) == 1


async def test_an_index_that_exists_says_less() -> None:
    (passage,) = await read({"@search.score": 1 / 60, "id": "a/b", "text": "four"}, service=FOUND)
    assert (passage.chunk, passage.document, passage.title, passage.tokens) == (number_key("a/b"), "a/b", "", 4)
    assert await read({"@search.score": 1 / 60, "id": "a", "text": None}, service=FOUND) == []


def test_the_number_of_a_key_never_changes() -> None:
    assert number_key("doc_1") == 4250265617840677261
