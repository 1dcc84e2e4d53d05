"""Versions that get an index of their own in Azure AI Search: built, searched, filtered, resumed, deleted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from headway.config.indexes import IndexReference
from headway.errors import ConfigurationError, HeadwayError, ProviderUnavailableError
from headway.providers import azure_search
from headway.providers.azure_search import SearchServices
from headway.retrieval import azure_index
from headway.retrieval.building import Tools, resume, start
from headway.retrieval.chunking import approximate_tokens
from headway.retrieval.retriever import VersionRetriever
from headway.retrieval.worker import BuildWorker
from headway.storage import builds, versions
from headway.storage.builds import Build
from headway.storage.database import Database
from headway.testing.search_service import Scripted, SearchServiceSimulator
from tests.lakes import CountingEmbedder, make_tools, specify, write_documents
from tests.search_services import (
    build,
    built_in,
    found,
    manifest,
    paths,
    write_handbook,
)


async def test_a_version_gets_an_index_of_its_own(
    tools: Tools, service: SearchServiceSimulator, database: Database, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    service.lag = 2  # the service indexes behind its answer
    made = await build(tools, built_in(service, tmp_path, language="german"))
    (name,) = service.indexes
    held = service.indexes[name]
    assert name.startswith("handbook-1-")
    assert (made.state, made.progress.remote, made.progress.uploaded) == ("published", name, 4)
    content = held.fields["content"]
    assert content["analyzer"] == "de.lucene"
    assert [content[use] for use in ("filterable", "sortable", "facetable")] == [False] * 3  # of any length
    assert held.fields["vector"]["dimensions"] == 32
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT id::text, text FROM index_chunk")
        assert {key: each["content"] for key, each in held.documents.items()} == dict(await cursor.fetchall())
    pinned = (await manifest(database, made.version))["azure_ai_search"]
    assert (pinned["index"], pinned["key"], pinned["metric"]) == (name, "id", "cosine")


async def test_it_is_searched_as_any_other(
    tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    await build(tools, built_in(service, tmp_path))
    best, *others = await found(retriever, "how many days of annual leave?", top_k=3)
    assert (best.document, best.title, best.text, best.position) == (
        "leave.md", "Annual leave", "Everybody has 25 days.", 0
    )  # fmt: skip
    assert best.tokens == approximate_tokens(best.text)
    assert best.similarity is not None
    assert 0 < best.similarity < 1
    assert 0.5 < best.score <= 1
    assert all(each.score <= best.score for each in others)
    assert "hr/salaries.md" not in paths([best, *others])
    sent = service.calls[-1]
    assert (sent.body["vectorFilterMode"], sent.body["top"]) == ("preFilter", 3)
    assert sent.body["vectorQueries"][0]["weight"] == 1.0


async def test_one_side_alone(
    tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    await build(tools, built_in(service, tmp_path))
    words = await found(retriever, "laptop nonsense", hybrid_weight=0.0)
    assert [(each.document, each.score, each.text_rank, each.similarity) for each in words] == [
        ("it/laptops.md", 1.0, 1, None)
    ]
    assert "vectorQueries" not in service.calls[-1].body
    meaning = await found(retriever, "Every laptop is encrypted.", hybrid_weight=1.0)
    assert meaning[0].document == "it/laptops.md"
    assert meaning[0].vector_rank == 1
    assert meaning[0].score == pytest.approx(meaning[0].similarity)
    assert "search" not in service.calls[-1].body
    assert await found(retriever, "...", hybrid_weight=0.0) == []


async def test_labelled_documents_are_for_their_groups(
    tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    await build(tools, built_in(service, tmp_path))
    for groups, seen in (((), False), (("it",), False), (("hr",), True), (("sales", "it's"), True)):
        for weight in (0.0, 0.5, 1.0):
            passages = await found(retriever, "salary manager zanzibar", *groups, hybrid_weight=weight)
            assert ("hr/salaries.md" in paths(passages)) is seen, (groups, weight)


async def test_filters(
    tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    await build(tools, built_in(service, tmp_path))
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"department": "hr"}, {"leave.md"}),
        ({"department": ["hr", "it"]}, {"leave.md", "it/laptops.md"}),
        ({"department": {"not": "hr"}}, {"it/laptops.md", "it/c++.md"}),
        ({"tags": "people"}, {"leave.md"}),
        ({"tags": {"not": ["people", "a|b"]}}, {"it/laptops.md", "it/c++.md"}),
        ({"year": 2024}, {"leave.md"}),
        ({"year": "2024"}, set()),
        ({"year": {"gte": 2021, "lt": 2024}}, {"it/laptops.md"}),
        ({"department": {"gt": "hr"}}, {"it/laptops.md"}),
        ({"path": {"prefix": "it/"}}, {"it/laptops.md", "it/c++.md"}),
        ({"path": {"prefix": "it/"}, "department": "it"}, {"it/laptops.md"}),
        ({"quote": "it's ours"}, {"it/laptops.md"}),
        ({"quote": "x' or 1 eq 1 or 'x"}, set()),
        ({"it's": "x"}, set()),
        ({"nowhere": 1}, set()),
    ]
    for wanted, expected in cases:
        passages = await found(retriever, "everybody every use", top_k=10, filter=wanted)
        assert set(paths(passages)) == expected, wanted


async def test_what_is_an_operator_of_the_service_is_none_of_callers(
    tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    await build(tools, built_in(service, tmp_path))
    for query in ("C++", "-kernel", '"kernel', "kernel*", "(kernel | scripts", "kernel's \\"):
        passages = await found(retriever, f"{query} kernel", hybrid_weight=0.0)
        assert paths(passages) == ["it/c++.md"], query


async def test_the_semantic_ranker_gives_scores(
    tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    await build(tools, built_in(service, tmp_path, semantic="ranking"))
    for weight in (0.0, 0.5, 1.0):
        passages = await found(retriever, "laptop is encrypted: nowhere?", hybrid_weight=weight, minimum_score=0.6)
        assert service.calls[-1].body["semanticQuery"] == "laptop is encrypted: nowhere?"
        assert [(each.document, each.score) for each in passages] == [("it/laptops.md", 0.75)]


async def test_a_rebuild_embeds_what_changed(
    database: Database, services: SearchServices, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_documents(tmp_path, 40)
    embedder = CountingEmbedder()
    tools = replace(make_tools(database, embedder), services=services)
    await build(tools, built_in(service, tmp_path))
    before = embedder.embedded
    write_documents(tmp_path, 1, first=40)
    second = await build(tools, built_in(service, tmp_path))
    assert embedder.embedded - before == second.progress.embedded < 5
    assert len(service.indexes) == 2
    assert second.progress.uploaded == second.progress.chunks
    async with database.connection() as connection:
        one, two = [await versions.find_version(connection, IndexReference("handbook", number)) for number in (1, 2)]
        changes = await versions.compare(connection, one, two)
    assert [(each.change, each.path) for each in changes] == [("added", "part0/doc00040.md")]


async def test_a_build_goes_on_where_the_service_stopped_it(
    tools: Tools,
    service: SearchServiceSimulator,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_documents(tmp_path, 40)
    monkeypatch.setattr(azure_index, "_READ_CHUNKS", 16)
    whole = await build(tools, built_in(service, tmp_path), index="whole")
    first = built_in(service, tmp_path)
    stopped: list[Build] = []

    def tell(build: Build) -> None:
        if build.progress.uploaded == 32 and not stopped:
            stopped.append(build)
            service.script("/docs/search.index", Scripted(503, headers={"Retry-After": "3600"}))

    with pytest.raises(ProviderUnavailableError, match="503: scripted"):
        await start(tools, "handbook", first, author="ann", tell=tell)
    async with database.connection() as connection:
        waiting = await builds.find(connection, stopped[0].version)
        await connection.execute(  # as if it had been killed before it booked what it wrote
            "UPDATE index_version SET progress = jsonb_set(progress, '{uploaded}', '16') WHERE state = 'building'"
        )
    assert (waiting.state, waiting.stage, waiting.progress.uploaded) == ("building", "index", 32)
    service.calls.clear()
    done = await resume(tools, waiting.version, tell=lambda _: None)
    uploads = [call for call in service.calls if call.path.endswith("search.index")]
    assert sum(len(call.body["value"]) for call in uploads) == done.progress.chunks - 16
    held = next(each.documents for name, each in service.indexes.items() if name.startswith("handbook-"))
    other = service.indexes[whole.progress.remote].documents
    assert sorted(each["content"] for each in held.values()) == sorted(each["content"] for each in other.values())
    one, two = await manifest(database, whole.version), await manifest(database, done.version)
    assert (one["documents"], one["chunks"]) == (two["documents"], two["chunks"])


async def test_versions_beyond_those_kept_are_gone_there_too(
    tools: Tools, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    for number in (1, 2, 3):
        await build(tools, built_in(service, tmp_path, keep=1))
        assert [name.rsplit("-", 1)[0] for name in service.indexes] == [f"handbook-{number}"]


async def test_dropped_and_failed_versions_leave_nothing_in_the_service(
    tools: Tools,
    services: SearchServices,
    service: SearchServiceSimulator,
    database: Database,
    tmp_path: Path,
) -> None:
    write_handbook(tmp_path)
    made = await build(tools, built_in(service, tmp_path))
    async with database.connection() as connection:
        await versions.drop(
            connection, await versions.find_version(connection, IndexReference("handbook", 1)), author="ann"
        )
    service.script(f"/indexes('{made.progress.remote}')", Scripted(403, "no"))
    with capture_logs() as logs:
        assert await azure_index.sweep(services, database) == 0
    assert [entry["event"] for entry in logs] == ["index_left"]
    assert await azure_index.sweep(services, database) == 1
    assert service.indexes == {}
    assert await azure_index.sweep(services, database) == 0


async def test_a_service_that_is_away_holds_up_nobody(
    tools: Tools,
    service: SearchServiceSimulator,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_handbook(tmp_path)
    for _ in range(2):
        await build(tools, built_in(service, tmp_path))
    async with database.connection() as connection:
        for version in await versions.list_versions(connection):
            await versions.drop(connection, version, author="ann")
    service.calls.clear()
    service.hang()
    monkeypatch.setattr(azure_search, "_DELETE_SECONDS", 0.5)
    await start(tools, "local", specify(tmp_path), author="ann", tell=lambda _: None)
    assert service.calls == []
    assert tools.services is not None
    sweeping = asyncio.create_task(azure_index.sweep(tools.services, database))
    while not service.calls:
        await asyncio.wait([sweeping], timeout=0.01)
    async with database.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in trans%'"
        )
        assert await cursor.fetchone() == (0,)
    with capture_logs() as logs:
        assert await sweeping == 0
    assert len(service.calls) == len(logs) == 1  # of two indexes


async def test_the_control_plane_builds_and_clears_there(
    tools: Tools, service: SearchServiceSimulator, database: Database, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    async with database.connection() as connection:
        await builds.begin(connection, "handbook", built_in(service, tmp_path), author="ann")
    await BuildWorker(tools).look()
    assert len(service.indexes) == 1
    async with database.connection() as connection:
        made = await versions.find_version(connection, IndexReference("handbook", 1))
        assert made.state == "published"
        await versions.drop(connection, made, author="ann")
    await BuildWorker(tools).look()
    assert service.indexes == {}


async def test_a_service_that_is_slow_to_index_is_waited_for(
    tools: Tools,
    service: SearchServiceSimulator,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_handbook(tmp_path)
    monkeypatch.setattr(azure_index, "_COUNT_SECONDS", 0.0)
    service.lag = 1
    with pytest.raises(ProviderUnavailableError, match="has indexed 3 of 4 chunks so far"):
        await build(tools, built_in(service, tmp_path))
    async with database.connection() as connection:
        waiting = await versions.find_version(connection, IndexReference("handbook", 1))
    assert (waiting.state, waiting.stage) == ("building", "verify")
    assert (await resume(tools, waiting.version, tell=lambda _: None)).state == "published"


async def test_a_service_that_is_away_is_waited_for_from_the_start(
    tools: Tools, service: SearchServiceSimulator, database: Database, tmp_path: Path
) -> None:
    write_handbook(tmp_path)
    service.script("", Scripted(503, headers={"Retry-After": "3600"}))
    with pytest.raises(ProviderUnavailableError, match="answers 503"):
        await build(tools, built_in(service, tmp_path))
    async with database.connection() as connection:
        waiting = await versions.find_version(connection, IndexReference("handbook", 1))
    assert (waiting.state, waiting.stage, waiting.problem) == (
        "building", "snapshot", "the search service answers 503: scripted"
    )  # fmt: skip
    done = await build(tools, built_in(service, tmp_path))
    assert (done.label, done.state, done.progress.loaded) == ("handbook@1", "published", 4)


async def test_a_service_that_refuses_is_found_out_before_anything_is_embedded(
    database: Database,
    services: SearchServices,
    service: SearchServiceSimulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_handbook(tmp_path)
    monkeypatch.setenv("SEARCH_KEY", "wrong-key")
    embedder = CountingEmbedder()
    with pytest.raises(ConfigurationError, match="answers 403: authorization failed") as raised:
        await build(replace(make_tools(database, embedder), services=services), built_in(service, tmp_path))
    assert embedder.embedded == 0
    assert "wrong-key" not in str(raised.value)


async def test_an_index_that_others_write_into_is_not_published(
    tools: Tools, service: SearchServiceSimulator, tmp_path: Path
) -> None:
    write_handbook(tmp_path)

    def tell(build: Build) -> None:
        if build.stage == "verify":
            held = service.indexes[build.progress.remote]
            held.documents["9999"] = next(iter(held.documents.values()))

    with pytest.raises(HeadwayError, match="5 chunks, the version 4: somebody else writes into it"):
        await start(tools, "handbook", built_in(service, tmp_path), author="ann", tell=tell)
