"""Index versions in Azure AI Search, built there or found there, against a simulator of its documented REST API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from headway.clock import SystemClock
from headway.config.azure_search import AzureFields, AzureSearchSpec
from headway.config.indexes import ChunkSpec, IndexReference, IndexSpec, LakeSpec, VersionSpec
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.errors import ConfigurationError, HeadwayError, ProviderUnavailableError, RetrievalError
from headway.providers.azure_search import SearchServices
from headway.providers.credentials import Credentials
from headway.retrieval import azure_index
from headway.retrieval.azure_search import AzureSearch, number_key
from headway.retrieval.building import Tools, resume, start
from headway.retrieval.chunking import approximate_tokens
from headway.retrieval.retriever import VersionRetriever, Versions
from headway.retrieval.searching import VersionSearch
from headway.retrieval.worker import BuildWorker
from headway.storage import builds, versions
from headway.storage.builds import Build
from headway.storage.database import Database
from headway.testing.search_service import Scripted, SearchServiceSimulator
from tests.lakes import CountingEmbedder, make_tools, write_documents

HANDBOOK = {
    "leave.md": "---\ndepartment: hr\nyear: 2024\ntags: [people, rules]\n---\n# Annual leave\n\n"
    "Everybody has 25 days.\n",
    "it/laptops.md": "---\ndepartment: it\nyear: 2021\nquote: it's ours\n---\n# Laptops\n\n"
    "Every laptop is encrypted.\n",
    "it/c++.md": "# C++ style\n\nUse C++ for the kernel, not for scripts.\n",
    "hr/salaries.md": "# Salaries\n\nThe salary of a manager is zanzibar.\n",
}


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SearchServiceSimulator]:
    monkeypatch.setenv("SEARCH_KEY", "admin-key")
    async with SearchServiceSimulator() as simulator:
        yield simulator


@pytest.fixture
async def services() -> AsyncIterator[SearchServices]:
    opened = SearchServices(Credentials(SystemClock()), SystemClock())
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def tools(database: Database, services: SearchServices) -> Tools:
    return replace(make_tools(database), services=services)


@asynccontextmanager
async def open_retriever(database: Database, services: SearchServices) -> AsyncIterator[VersionRetriever]:
    known = Versions(lambda _: CountingEmbedder(), AzureSearch(services, approximate_tokens))
    opened = VersionRetriever(database, known, VersionSearch(), SystemClock())
    yield opened
    await opened.close()


@pytest.fixture
async def retriever(database: Database, services: SearchServices) -> AsyncIterator[VersionRetriever]:
    async with open_retriever(database, services) as opened:
        yield opened


def write_handbook(folder: Path) -> None:
    for path, text in HANDBOOK.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def built_in(service: SearchServiceSimulator, folder: Path, **fields: Any) -> VersionSpec:
    azure = AzureSearchSpec(service.endpoint, api_key="env:SEARCH_KEY", semantic=fields.pop("semantic", ""))
    wanted: dict[str, Any] = {
        "lake": LakeSpec(f"file:{folder}", include=("**/*.md",)),
        "chunk": ChunkSpec(96, 8),
        "labels": (("hr/**", ("hr", "it's")),),
        "azure_ai_search": azure,
    }
    return VersionSpec(IndexSpec(**{**wanted, **fields}))


async def build(tools: Tools, spec: VersionSpec, index: str = "handbook") -> Build:
    return await start(tools, index, spec, author="ann", tell=lambda _: None)


async def found(retriever: VersionRetriever, query: str, *groups: str, **parameters: Any) -> list[Passage]:
    retrieval = Retrieval("handbook", parameters.pop("version", 1), **parameters)
    return list((await retriever.retrieve(query, retrieval, frozenset(groups))).passages)


def paths(passages: Sequence[Passage]) -> list[str]:
    return [passage.document for passage in passages]


async def manifest(database: Database, version: int) -> dict[str, Any]:
    async with database.connection() as connection:
        row = await (
            await connection.execute("SELECT manifest FROM index_version WHERE id = %s", (version,))
        ).fetchone()
    assert row is not None
    return dict(row[0])


class TestBuilt:
    async def test_a_version_gets_an_index_of_its_own(
        self, tools: Tools, service: SearchServiceSimulator, database: Database, tmp_path: Path
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
        self, tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
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
        self, tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
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
        self, tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
    ) -> None:
        write_handbook(tmp_path)
        await build(tools, built_in(service, tmp_path))
        for groups, seen in (((), False), (("it",), False), (("hr",), True), (("sales", "it's"), True)):
            for weight in (0.0, 0.5, 1.0):
                passages = await found(retriever, "salary manager zanzibar", *groups, hybrid_weight=weight)
                assert ("hr/salaries.md" in paths(passages)) is seen, (groups, weight)

    async def test_filters(
        self, tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
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
        self, tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
    ) -> None:
        write_handbook(tmp_path)
        await build(tools, built_in(service, tmp_path))
        for query in ("C++", "-kernel", '"kernel', "kernel*", "(kernel | scripts", "kernel's \\"):
            passages = await found(retriever, f"{query} kernel", hybrid_weight=0.0)
            assert paths(passages) == ["it/c++.md"], query

    async def test_the_semantic_ranker_gives_scores(
        self, tools: Tools, retriever: VersionRetriever, service: SearchServiceSimulator, tmp_path: Path
    ) -> None:
        write_handbook(tmp_path)
        await build(tools, built_in(service, tmp_path, semantic="ranking"))
        for weight in (0.0, 0.5, 1.0):
            passages = await found(retriever, "laptop is encrypted nowhere", hybrid_weight=weight, minimum_score=0.6)
            assert [(each.document, each.score) for each in passages] == [("it/laptops.md", 0.75)]

    async def test_a_rebuild_embeds_what_changed(
        self, database: Database, services: SearchServices, service: SearchServiceSimulator, tmp_path: Path
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
            one, two = [
                await versions.find_version(connection, IndexReference("handbook", number)) for number in (1, 2)
            ]
            changes = await versions.compare(connection, one, two)
        assert [(each.change, each.path) for each in changes] == [("added", "part0/doc00040.md")]

    async def test_a_build_goes_on_where_the_service_stopped_it(
        self,
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
        self, tools: Tools, service: SearchServiceSimulator, tmp_path: Path
    ) -> None:
        write_handbook(tmp_path)
        for number in (1, 2, 3):
            await build(tools, built_in(service, tmp_path, keep=1))
            assert [name.rsplit("-", 1)[0] for name in service.indexes] == [f"handbook-{number}"]

    async def test_dropped_and_failed_versions_leave_nothing_in_the_service(
        self,
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

    async def test_the_control_plane_builds_and_clears_there(
        self, tools: Tools, service: SearchServiceSimulator, database: Database, tmp_path: Path
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
        self,
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

    async def test_a_service_that_refuses_is_found_out_before_anything_is_embedded(
        self,
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
        self, tools: Tools, service: SearchServiceSimulator, tmp_path: Path
    ) -> None:
        write_handbook(tmp_path)

        def tell(build: Build) -> None:
            if build.stage == "verify":
                held = service.indexes[build.progress.remote]
                held.documents["9999"] = next(iter(held.documents.values()))

        with pytest.raises(HeadwayError, match="5 chunks, the version 4: somebody else writes into it"):
            await start(tools, "handbook", built_in(service, tmp_path), author="ann", tell=tell)


class TestFound:
    """An index that exists: made by others, queried as it is."""

    FIELDS = AzureFields(
        "chunk", title="title", document="url", vector="embedding", groups="acl",
        metadata={"department": "dept", "year": "year", "public": "public", "since": "since", "tags": "tags"},
    )  # fmt: skip

    @pytest.fixture
    async def legacy(self, service: SearchServiceSimulator, services: SearchServices) -> SearchServiceSimulator:
        await services.put_index(AzureSearchSpec(service.endpoint, api_key="env:SEARCH_KEY"), LEGACY)
        vectors = await CountingEmbedder().embed([f"{each['title']} {each['chunk']}" for each in LEGACY_DOCUMENTS])
        documents = [
            {**each, "embedding": vector.tolist()} for each, vector in zip(LEGACY_DOCUMENTS, vectors, strict=True)
        ]
        held = service.indexes["legacy"]
        held.documents = {each["docKey"]: each for each in documents}
        return service

    def spec(self, service: SearchServiceSimulator, **fields: Any) -> VersionSpec:
        azure = {"api_key": "env:SEARCH_KEY", "index": "legacy", "fields": self.FIELDS}
        return VersionSpec(
            IndexSpec(LakeSpec(""), azure_ai_search=AzureSearchSpec(service.endpoint, **{**azure, **fields}))
        )

    async def test_it_is_pinned_and_searched(
        self, tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator, database: Database
    ) -> None:
        made = await build(tools, self.spec(legacy))
        kept = await manifest(database, made.version)
        assert (made.state, kept["documents"], kept["dimensions"]) == ("published", 3, 32)
        best = (await found(retriever, "holidays for everybody"))[0]
        assert (best.document, best.title, best.chunk, best.position) == (
            "https://wiki/leave", "Leave", number_key("doc_1"), 0
        )  # fmt: skip
        assert 0 < best.chunk < 2**63
        assert best.tokens == approximate_tokens(best.text)
        assert not any("index" in call.path and call.method == "PUT" for call in legacy.calls[1:])

    async def test_groups_and_filters(
        self, tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator
    ) -> None:
        await build(tools, self.spec(legacy))
        everything = "holidays notebooks salaries for everybody"

        async def seen(*groups: str, **wanted: Any) -> set[str]:
            return {
                path.rsplit("/", 1)[1] for path in paths(await found(retriever, everything, *groups, filter=wanted))
            }

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
        self, tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator
    ) -> None:
        await build(tools, self.spec(legacy))
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
        self, tools: Tools, retriever: VersionRetriever, legacy: SearchServiceSimulator, database: Database
    ) -> None:
        made = await build(tools, self.spec(legacy, fields=AzureFields("chunk")))
        assert (await manifest(database, made.version))["dimensions"] == 0
        for weight in (0.0, 0.5, 1.0):
            passages = await found(retriever, "salaries", hybrid_weight=weight)
            assert paths(passages) == ["doc_3"]  # by its key; without a field of groups everybody sees it

    async def test_what_does_not_go_with_it_is_told(self, tools: Tools, legacy: SearchServiceSimulator) -> None:
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
                await build(tools, self.spec(legacy, fields=fields))
            assert message in raised.value.message

    async def test_what_is_not_there_is_told(self, tools: Tools, legacy: SearchServiceSimulator) -> None:
        with pytest.raises(ConfigurationError, match="no index 'gone'"):
            await build(tools, self.spec(legacy, index="gone"))
        with pytest.raises(ConfigurationError, match="no semantic configuration 'ranking'"):
            await build(tools, self.spec(legacy, semantic="ranking"))

    async def test_a_dropped_version_leaves_it_alone(
        self, tools: Tools, services: SearchServices, legacy: SearchServiceSimulator, database: Database
    ) -> None:
        await build(tools, self.spec(legacy))
        async with database.connection() as connection:
            await versions.drop(
                connection, await versions.find_version(connection, IndexReference("handbook", 1)), author="ann"
            )
        assert await azure_index.sweep(services, database) == 0
        assert "legacy" in legacy.indexes

    async def test_another_definition_is_another_hash(
        self, tools: Tools, legacy: SearchServiceSimulator, database: Database
    ) -> None:
        hashes = []
        for title in ("title", "title", ""):
            made = await build(tools, self.spec(legacy, fields=msgspec.structs.replace(self.FIELDS, title=title)))
            async with database.connection() as connection:
                found = await versions.find_version(connection, IndexReference("handbook", made.number))
            hashes.append(found.manifest_hash)
        assert hashes[0] == hashes[1] != hashes[2]


class TestFailures:
    @pytest.fixture
    async def ready(self, tools: Tools, service: SearchServiceSimulator, tmp_path: Path) -> SearchServiceSimulator:
        write_handbook(tmp_path)
        await build(tools, built_in(service, tmp_path))
        service.calls.clear()
        return service

    async def test_a_moment_of_load_is_tried_again(
        self, retriever: VersionRetriever, ready: SearchServiceSimulator
    ) -> None:
        ready.script("search.post.search", Scripted(503), Scripted(0), Scripted(429, headers={"Retry-After": "0"}))
        assert (await found(retriever, "annual leave"))[0].document == "leave.md"
        assert len(ready.calls) == 4

    async def test_what_fails_is_logged_and_callers_are_told_no_more(
        self, database: Database, services: SearchServices, ready: SearchServiceSimulator
    ) -> None:
        cases = [
            (Scripted(401, "who"), "answers 401: who"),
            (Scripted(403, "'admin-key' is no key"), "answers 403: '***' is no key"),
            (Scripted(404, "gone"), "answers 404: gone"),
            (Scripted(400, "Invalid expression"), "answers 400: Invalid expression"),
            (Scripted(502, headers={"Retry-After": "60"}), "answers 502"),
            (Scripted(200, body=b'{"value": [{"id": "1"'), "no JSON object"),
            (Scripted(200, body=b'{"value": 3}'), "no list of results"),
            (Scripted(200, body=b'{"value": [{"id": "1"}]}'), "without what was asked for"),
            (Scripted(200, body=b'{"value": [{"id": "1", "path": [], "@search.score": 0}]}'), "without what was asked"),
            (Scripted(206, body=b'{"value": []}'), "gave a part of an answer"),
            (Scripted(302, headers={"Location": "http://example.com"}), "answers 302"),
        ]
        for answer, detail in cases:
            ready.script("search.post.search", answer)
            async with open_retriever(database, services) as retriever:
                with capture_logs() as logs, pytest.raises(RetrievalError) as raised:
                    await retriever.retrieve("annual leave", Retrieval("handbook", 1), frozenset())
            assert raised.value.message == "the search in handbook@1 failed; try again", detail
            assert detail in logs[-1]["detail"]
            assert "admin-key" not in f"{logs} {raised.value.__cause__}"

    async def test_a_service_that_is_busy_refuses_one_search_and_not_the_next(
        self, retriever: VersionRetriever, ready: SearchServiceSimulator
    ) -> None:
        for status in (429, 503):
            ready.script("search.post.search", Scripted(status, headers={"Retry-After": "20"}))
            with capture_logs() as logs, pytest.raises(RetrievalError, match="was refused; try again") as raised:
                await found(retriever, "annual leave")
            assert (raised.value.error_code, raised.value.retry_after_seconds) == ("retrieval_overloaded", 20)
            assert f"answers {status}" in logs[-1]["detail"]
            assert (await found(retriever, "annual leave"))[0].document == "leave.md"

    async def test_a_service_that_hangs_costs_its_time_and_no_more(
        self, retriever: VersionRetriever, ready: SearchServiceSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retriever, "_seconds", 0.5)
        ready.hang()
        with pytest.raises(RetrievalError, match="failed; try again"):
            await found(retriever, "annual leave")
        asked = len(ready.calls)
        with pytest.raises(RetrievalError, match="failed; try again"):
            await found(retriever, "annual leave")
        assert len(ready.calls) == asked  # one caller at a time finds out


LEGACY: dict[str, Any] = {
    "name": "legacy",
    "fields": [
        {"name": "docKey", "type": "Edm.String", "key": True},
        {"name": "chunk", "type": "Edm.String", "searchable": True, "analyzer": "en.microsoft"},
        {"name": "title", "type": "Edm.String", "filterable": False},
        {"name": "url", "type": "Edm.String", "filterable": True},
        {"name": "acl", "type": "Collection(Edm.String)", "filterable": True},
        {"name": "dept", "type": "Edm.String", "filterable": True, "searchable": False},
        {"name": "year", "type": "Edm.Int32", "filterable": True},
        {"name": "public", "type": "Edm.Boolean", "filterable": True},
        {"name": "since", "type": "Edm.DateTimeOffset", "filterable": True},
        {"name": "tags", "type": "Collection(Edm.String)", "filterable": True},
        *(
            {
                "name": name,
                "type": "Collection(Edm.Single)",
                "searchable": True,
                "dimensions": dimensions,
                "vectorSearchProfile": "p",
            }
            for name, dimensions in (("embedding", 32), ("small", 8))
        ),
    ],
    "vectorSearch": {
        "algorithms": [{"name": "a", "kind": "exhaustiveKnn", "exhaustiveKnnParameters": {"metric": "cosine"}}],
        "profiles": [{"name": "p", "algorithm": "a"}],
    },
}
LEGACY_DOCUMENTS: list[dict[str, Any]] = [
    {
        "docKey": "doc_1", "chunk": "Holidays are for everybody.", "title": "Leave", "url": "https://wiki/leave",
        "acl": [], "dept": "hr", "year": 2024, "public": True, "since": "2024-01-01T00:00:00Z", "tags": ["new"],
    },
    {
        "docKey": "doc_2", "chunk": "Notebooks are encrypted.", "title": "Laptops", "url": "https://wiki/laptops",
        "acl": [], "dept": "it", "year": 2021, "public": False, "since": "2021-01-01T00:00:00Z", "tags": ["old"],
    },
    {
        "docKey": "doc_3", "chunk": "The salaries of managers.", "title": "Pay", "url": "https://wiki/pay",
        "acl": ["hr"], "dept": "hr", "year": 2024, "public": False, "since": "2024-01-01T00:00:00Z", "tags": [],
    },
]  # fmt: skip
