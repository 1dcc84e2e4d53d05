"""An index of Azure AI Search that exists: made by others, pinned and queried as it is."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headway.config.azure_search import AzureFields, AzureSearchSpec
from headway.config.indexes import IndexReference, IndexSpec, LakeSpec, VersionSpec
from headway.errors import ConfigurationError, RetrievalError
from headway.providers.azure_search import SearchServices
from headway.retrieval import azure_index
from headway.retrieval.azure_search import number_key
from headway.retrieval.building import Tools
from headway.retrieval.chunking import approximate_tokens
from headway.retrieval.retriever import VersionRetriever
from headway.storage import versions
from headway.storage.database import Database
from headway.testing.search_service import SearchServiceSimulator
from tests.lakes import CountingEmbedder
from tests.search_services import (
    LEGACY,
    LEGACY_DOCUMENTS,
    build,
    found,
    manifest,
    paths,
)

FIELDS = AzureFields(
    "chunk", title="title", document="url", vector="embedding", groups="acl",
    metadata={"department": "dept", "year": "year", "public": "public", "since": "since", "tags": "tags"},
)  # fmt: skip


@pytest.fixture
async def legacy(service: SearchServiceSimulator, services: SearchServices) -> SearchServiceSimulator:
    await services.put_index(AzureSearchSpec(service.endpoint, api_key="env:SEARCH_KEY"), LEGACY)
    vectors = await CountingEmbedder().embed([f"{each['title']} {each['chunk']}" for each in LEGACY_DOCUMENTS])
    documents = [{**each, "embedding": vector.tolist()} for each, vector in zip(LEGACY_DOCUMENTS, vectors, strict=True)]
    held = service.indexes["legacy"]
    held.documents = {each["docKey"]: each for each in documents}
    return service


def spec(service: SearchServiceSimulator, **fields: Any) -> VersionSpec:
    azure = {"api_key": "env:SEARCH_KEY", "index": "legacy", "fields": FIELDS}
    return VersionSpec(
        IndexSpec(LakeSpec(""), azure_ai_search=AzureSearchSpec(service.endpoint, **{**azure, **fields}))
    )


async def test_it_is_pinned_and_searched(
    tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator, database: Database
) -> None:
    made = await build(tools, spec(legacy))
    kept = await manifest(database, made.version)
    assert (made.state, kept["documents"], kept["dimensions"]) == ("published", 3, 32)
    best = (await found(retriever, "holidays for everybody"))[0]
    assert (best.document, best.title, best.chunk, best.position) == (
        "https://wiki/leave", "Leave", number_key("doc_1"), 0
    )  # fmt: skip
    assert 0 < best.chunk < 2**63
    assert best.tokens == approximate_tokens(best.text)
    assert not any("index" in call.path and call.method == "PUT" for call in legacy.calls[1:])


async def test_groups_and_filters(tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator) -> None:
    await build(tools, spec(legacy))
    everything = "holidays notebooks salaries for everybody"

    async def seen(*groups: str, **wanted: Any) -> set[str]:
        return {path.rsplit("/", 1)[1] for path in paths(await found(retriever, everything, *groups, filter=wanted))}

    assert await seen() == {"leave", "laptops"}
    assert await seen("hr") == {"leave", "laptops", "pay"}
    assert await seen(department="it") == {"laptops"}
    assert await seen(department={"not": "it"}) == {"leave"}
    assert await seen(year={"gte": 2024}) == {"leave"}
    assert await seen(year=[2021, 2022]) == {"laptops"}
    assert await seen(public=True) == {"leave"}
    assert await seen(since={"lt": "2023-01-01"}) == {"laptops"}
    assert await seen(tags=["old", "odd"]) == {"laptops"}
    assert await seen(tags=["old", "new"]) == {"laptops", "leave"}
    assert await seen(tags={"not": "old"}) == {"leave"}
    assert await seen(path={"prefix": "https://wiki/l"}, department="hr") == {"leave"}


async def test_filters_that_do_not_go_with_it(
    tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator
) -> None:
    await build(tools, spec(legacy))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"colour": "red"}, "has no field for 'colour'; filters may name: department, path, public, since"),
        ({"title": "Leave"}, "title: the field 'title' is not filterable"),
        ({"department": 3}, "department: 3 does not go with a field of type Edm.String"),
        ({"year": "2024"}, "year: '2024' does not go with a field of type Edm.Int32"),
        ({"tags": {"gt": "a"}}, "tags: the field 'tags' has no order"),
        ({"year": {"prefix": "20"}}, "year: the field 'year' is no text"),
        ({"since": "today"}, "since: 'today' is no date such as"),
    ]
    for wanted, message in cases:
        with pytest.raises(RetrievalError) as raised:
            await found(retriever, "holidays", filter=wanted)
        assert raised.value.message.startswith("the filter does not go with handbook@1: ")
        assert message in raised.value.message


async def test_words_only(
    tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator, database: Database
) -> None:
    made = await build(tools, spec(legacy, fields=AzureFields("chunk")))
    assert (await manifest(database, made.version))["dimensions"] == 0
    for weight in (0.0, 0.5, 1.0):
        passages = await found(retriever, "salaries", hybrid_weight=weight)
        assert paths(passages) == ["doc_3"]  # by its key; without a field of groups everybody sees it


async def test_what_does_not_go_with_it_is_told(tools: Tools, legacy: SearchServiceSimulator) -> None:
    cases = [
        (AzureFields("text"), "content: there is no field 'text', only acl, chunk"),
        (AzureFields("dept"), "content: the field 'dept' is not searchable"),
        (AzureFields("chunk", title="year"), "title: the field 'year' is no retrievable Edm.String"),
        (AzureFields("chunk", vector="chunk"), "vector: the field 'chunk' is none of vectors"),
        (AzureFields("chunk", vector="small"), "the field 'small' has 8 dimensions, the embedder's vectors 32"),
        (AzureFields("chunk", groups="dept"), "groups: the field 'dept' is no filterable Collection"),
        (AzureFields("chunk", metadata={"a": "title"}), "metadata.a: the field 'title' is not filterable"),
    ]
    for fields, message in cases:
        with pytest.raises(ConfigurationError) as raised:
            await build(tools, spec(legacy, fields=fields))
        assert message in raised.value.message


async def test_what_is_not_there_is_told(tools: Tools, legacy: SearchServiceSimulator) -> None:
    with pytest.raises(ConfigurationError, match="no index 'gone'"):
        await build(tools, spec(legacy, index="gone"))
    with pytest.raises(ConfigurationError, match="no semantic configuration 'ranking'"):
        await build(tools, spec(legacy, semantic="ranking"))


async def test_a_dropped_version_leaves_it_alone(
    tools: Tools, services: SearchServices, legacy: SearchServiceSimulator, database: Database
) -> None:
    await build(tools, spec(legacy))
    async with database.connection() as connection:
        await versions.drop(
            connection, await versions.find_version(connection, IndexReference("handbook", 1)), author="ann"
        )
    assert await azure_index.sweep(services, database) == 0
    assert "legacy" in legacy.indexes


async def test_another_definition_is_another_hash(
    tools: Tools, legacy: SearchServiceSimulator, database: Database
) -> None:
    hashes = []
    for title in ("title", "title", ""):
        made = await build(tools, spec(legacy, fields=msgspec.structs.replace(FIELDS, title=title)))
        async with database.connection() as connection:
            found = await versions.find_version(connection, IndexReference("handbook", made.number))
        hashes.append(found.manifest_hash)
    assert hashes[0] == hashes[1] != hashes[2]
