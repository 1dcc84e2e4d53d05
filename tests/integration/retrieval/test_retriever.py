"""The retriever of a worker: what it reads once, how many searches it runs, and what callers hear when it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from headway.clock import ManualClock, SystemClock
from headway.config.indexes import EmbedderSpec, VersionSpec
from headway.config.spec import Specification
from headway.domain.knowledge import Passage
from headway.domain.release import Deployment, Endpoint, Operation, Retrieval
from headway.errors import RetrievalError
from headway.retrieval.retriever import Query, Search, Version, VersionRetriever, Versions
from headway.storage.database import Connection, Database
from tests.indexes import SPEC, Page, publish
from tests.lakes import CountingEmbedder

HANDBOOK = Retrieval("handbook", 1)
AWAY = VersionSpec(SPEC.index, Deployment("vectors", Endpoint("openai", "http://127.0.0.1:9/v1", "m")))
PAGES = (
    Page("leave.md", "Leave", "Leave is 25 days."),
    Page("pay.md", "Pay", "Pay comes on the first.", groups=("hr",)),
)


async def find_all(connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
    """What the groups may see, in order."""
    cursor = await connection.execute(
        "SELECT c.id, d.path, d.title, c.heading, c.text, c.tokens, c.position, 1.0 FROM index_chunk c"
        " JOIN index_document d ON d.id = c.document"
        " WHERE c.version = %s AND (c.groups = '{}' OR c.groups && %s) ORDER BY c.id",
        (version.number, list(query.groups)),
    )
    return [Passage(*row) async for row in cursor]


class Stand:
    """A database with ``handbook@1``, and what is asked of it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.embedder = CountingEmbedder()
        self.embedders: list[VersionSpec] = []
        self.versions = Versions(self._make)
        self.queries: list[Query] = []
        self.running = self.most = 0

    def _make(self, spec: VersionSpec) -> CountingEmbedder:
        self.embedders.append(spec)
        return self.embedder

    async def search(self, connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        self.queries.append(query)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await find_all(connection, version, query)
        finally:
            self.running -= 1

    def retriever(self, search: Search | None = None, **limits: float) -> VersionRetriever:
        return VersionRetriever(self.database, self.versions, search or self.search, SystemClock(), **limits)  # type: ignore[arg-type] # places is whole


@pytest.fixture
async def stand(database: Database) -> Stand:
    made = Stand(database)
    async with database.connection() as connection:
        await publish(connection, "handbook", 1, PAGES, made.embedder.embed)
    made.embedder.embedded = 0
    return made


async def ask(retriever: VersionRetriever, *groups: str, retrieval: Retrieval = HANDBOOK) -> list[str]:
    found = await retriever.retrieve("How many days?", retrieval, frozenset(groups))
    return [passage.document for passage in found.passages]


async def test_a_search_knows_the_words_their_vector_and_who_asks(stand: Stand) -> None:
    retriever = stand.retriever()
    assert await ask(retriever) == ["leave.md"]
    assert await ask(retriever, "it", "hr") == ["leave.md", "pay.md"]
    first, second = stand.queries
    assert (first.text, first.retrieval, first.groups, second.groups) == (
        "How many days?",
        HANDBOOK,
        frozenset(),
        frozenset(("it", "hr")),
    )
    assert first.vector is not None
    assert np.array_equal(first.vector, (await CountingEmbedder().embed(["How many days?"]))[0])


async def test_what_never_changes_is_read_once_for_all_retrievers_of_a_worker(stand: Stand) -> None:
    retrievers = [stand.retriever(), stand.retriever()]
    for retriever in retrievers * 2:
        await ask(retriever)
    assert len(stand.embedders) == 1
    assert stand.embedder.embedded == 4
    async with stand.database.connection() as connection:
        await connection.execute("UPDATE index_version SET spec = '{}'")
    assert await ask(retrievers[0]) == ["leave.md"]


async def test_an_embedder_is_called_as_the_file_says_now_where_it_is_at_the_same_place(stand: Stand) -> None:
    """A version outlives the secret that it was built with; but no secret follows a name to another host."""
    there, elsewhere = (Endpoint("openai", f"http://127.0.0.1:{port}/v1", "m") for port in (9, 10))
    old, new = Operation(api_key="env:OLD"), Operation(api_key="env:NEW", max_concurrency=3)
    built = VersionSpec(replace(SPEC.index, embedder=EmbedderSpec("vectors")), Deployment("vectors", there, old))
    wanted, retriever = Retrieval("remote", 1), stand.retriever()
    async with stand.database.connection() as connection:
        await publish(connection, "remote", 1, PAGES, stand.embedder.embed, spec=built)
    for place, expected in ((there, new), (elsewhere, old)):
        applied = Specification({"vectors": Deployment("vectors", place, new)}, {}, {}, indexes={"remote": built.index})
        async with stand.database.connection() as connection:
            await connection.execute(
                "INSERT INTO configuration (applied_by, source, spec, hash) VALUES ('ann', '', %s, 'h')",
                (applied.encode().decode(),),
            )
        await retriever.prepare(wanted)  # as with each new snapshot
        await ask(retriever, retrieval=wanted)
        assert stand.embedders[-1].deployment == Deployment("vectors", there, expected)


async def test_words_alone_need_no_vector(stand: Stand) -> None:
    await ask(stand.retriever(), retrieval=Retrieval("handbook", 1, hybrid_weight=0.0))
    assert stand.queries[0].vector is None
    assert stand.embedders == []


async def test_getting_ready_saves_the_first_caller_the_wait_and_never_fails(stand: Stand) -> None:
    retriever = stand.retriever()
    await retriever.prepare(Retrieval("nothing", 1))
    await retriever.prepare(HANDBOOK)
    assert stand.versions.known(HANDBOOK) is not None
    assert stand.embedder.embedded == 1


@pytest.mark.parametrize("retrieval", [Retrieval("handbook", 2), Retrieval("nothing", 1)])
async def test_a_version_that_is_not_there_cannot_be_searched(stand: Stand, retrieval: Retrieval) -> None:
    with pytest.raises(RetrievalError, match=f"the search in {retrieval.label} failed") as caught:
        await ask(stand.retriever(), retrieval=retrieval)
    assert caught.value.error_code == "retrieval_failed"


async def test_a_version_is_searched_only_while_it_is_published(stand: Stand) -> None:
    async with stand.database.connection() as connection:
        await connection.execute("UPDATE index_version SET state = 'building'")
    retriever = stand.retriever()
    with pytest.raises(RetrievalError):
        await ask(retriever)
    async with stand.database.connection() as connection:
        await connection.execute("UPDATE index_version SET state = 'published'")
    assert await ask(retriever) == ["leave.md"]


async def test_a_version_that_was_dropped_meanwhile_fails_and_is_looked_up_anew(stand: Stand) -> None:
    retriever = stand.retriever()
    await ask(retriever)
    async with stand.database.connection() as connection:
        await connection.execute("DROP TABLE index_chunk")
    with pytest.raises(RetrievalError) as caught:
        await ask(retriever)
    assert "index_chunk" not in caught.value.message
    assert stand.versions.known(HANDBOOK) is None


async def test_a_search_that_takes_too_long_is_given_up(stand: Stand) -> None:
    asked = asyncio.Event()

    async def hang(connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        asked.set()
        await connection.execute("SELECT pg_sleep(60)")
        return ()

    retriever = stand.retriever(hang, seconds=0.3)
    began = time.monotonic()
    with pytest.raises(RetrievalError) as caught:
        await ask(retriever)
    assert asked.is_set()
    assert time.monotonic() - began < 5
    assert caught.value.error_code in ("retrieval_timeout", "retrieval_failed")
    assert caught.value.retry_after_seconds == 1
    await retriever.close()


async def test_an_embedder_that_hangs_is_given_up(stand: Stand) -> None:
    class Hanging(CountingEmbedder):
        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            await asyncio.sleep(60)
            return await super().embed(texts)

    retriever = VersionRetriever(
        stand.database, Versions(lambda _: Hanging()), stand.search, SystemClock(), seconds=0.3
    )
    with pytest.raises(RetrievalError) as caught:
        await ask(retriever)
    assert caught.value.error_code == "retrieval_timeout"
    assert await ask(stand.retriever()) == ["leave.md"]


async def test_only_a_few_searches_run_at_once_and_only_some_may_wait(stand: Stand) -> None:
    released = asyncio.Event()

    async def slow(connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        found = await stand.search(connection, version, query)
        stand.running += 1
        stand.most = max(stand.most, stand.running)
        await released.wait()
        stand.running -= 1
        return found

    retriever = stand.retriever(slow, places=2)
    asking = [asyncio.create_task(ask(retriever)) for _ in range(70)]
    done, _ = await asyncio.wait(asking, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 4:
        more, _ = await asyncio.wait(set(asking) - done, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    released.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, RetrievalError)]
    assert [each.error_code for each in refused] == ["retrieval_overloaded"] * 4
    assert outcomes.count(["leave.md"]) == 66
    assert stand.most == 2
    assert await ask(retriever) == ["leave.md"]


async def test_a_caller_who_leaves_gives_the_place_back(stand: Stand) -> None:
    async def hang(connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        await asyncio.sleep(60)
        return ()

    retriever = stand.retriever(hang, places=1)
    for _ in range(3):
        asking = asyncio.create_task(ask(retriever))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert retriever._places._value == 1
    await retriever.close()


async def test_the_search_of_a_caller_who_leaves_ends_in_the_database(stand: Stand) -> None:
    async def count() -> int:
        async with stand.database.connection() as connection:
            cursor = await connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query = 'SELECT pg_sleep(2)' AND state = 'active'"
            )
            (running,) = await cursor.fetchone() or (0,)
        return int(running)

    async def sleep(connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        await connection.execute("SELECT pg_sleep(2)")
        return ()

    retriever = stand.retriever(sleep)
    asking = asyncio.create_task(ask(retriever))
    while not await count():
        assert not asking.done()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    began = time.monotonic()
    while await count():
        pass
    assert time.monotonic() - began < 1
    await retriever.close()


async def test_a_slow_search_fails_alone(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.retrieval.retriever._SEARCH_SECONDS", 0.2)

    async def search(connection: Connection, version: Version, query: Query) -> Sequence[Passage]:
        if query.retrieval.top_k == 1:
            await connection.execute("SET LOCAL statement_timeout = 50")
        if query.retrieval.top_k <= 2:
            await connection.execute("SELECT pg_sleep(60)")
        return await find_all(connection, version, query)

    retriever = stand.retriever(search)
    for top_k in (1, 2):
        with pytest.raises(RetrievalError) as caught:
            await ask(retriever, retrieval=Retrieval("handbook", 1, top_k=top_k))
        assert caught.value.error_code == "retrieval_timeout"
        assert await ask(retriever) == ["leave.md"]  # the database is not away
    await retriever.close()


async def test_an_embedder_that_hangs_holds_up_no_other_index(stand: Stand) -> None:
    class Hanging(CountingEmbedder):
        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            await asyncio.sleep(60)
            return await super().embed(texts)

    async with stand.database.connection() as connection:
        await publish(connection, "handbook", 2, PAGES, stand.embedder.embed, AWAY)
    versions = Versions(lambda spec: Hanging() if spec.deployment is not None else stand.embedder)
    retriever = VersionRetriever(stand.database, versions, stand.search, SystemClock(), places=1)
    waiting = [asyncio.create_task(ask(retriever, retrieval=Retrieval("handbook", 2))) for _ in range(100)]
    await asyncio.sleep(0.2)
    assert await ask(retriever) == ["leave.md"]
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_embedder_that_is_away_is_asked_by_one_caller_at_a_time(stand: Stand) -> None:
    class Failing(CountingEmbedder):
        calls = 0
        hangs = True

        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            self.calls += 1
            if self.hangs:
                await asyncio.sleep(60)
            return await super().embed(texts)

    async with stand.database.connection() as connection:
        await publish(connection, "handbook", 2, PAGES, stand.embedder.embed, AWAY)
    embedder, clock = Failing(), ManualClock()
    versions = Versions(lambda _: embedder)
    retriever = VersionRetriever(stand.database, versions, stand.search, clock, seconds=0.3)
    second = Retrieval("handbook", 2)
    for _ in range(10):
        with pytest.raises(RetrievalError) as caught:
            await ask(retriever, retrieval=second)
        assert "vectors" not in caught.value.message
    assert embedder.calls == 1
    assert versions.known(second) is not None  # and the database is left in peace
    embedder.hangs = False
    clock.advance(1.1)
    assert await ask(retriever, retrieval=second) == ["leave.md"]
    assert await ask(retriever, retrieval=second) == ["leave.md"]
    await retriever.close()


async def test_vectors_of_another_length_are_not_searched_for(stand: Stand) -> None:
    class Changed(CountingEmbedder):
        async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return np.ones((len(texts), 3), np.float32)

    retriever = VersionRetriever(stand.database, Versions(lambda _: Changed()), stand.search, SystemClock())
    with pytest.raises(RetrievalError) as caught:
        await ask(retriever)
    assert "gives vectors of 3 dimensions, the version has" in str(caught.value.__cause__)
    assert stand.queries == []


async def test_a_database_that_is_away_fails_at_once_and_the_message_names_no_host(stand: Stand) -> None:
    database = Database("postgresql://127.0.0.1:9/nowhere", wait_seconds=0.2)
    await database.open(wait=False)
    retriever = VersionRetriever(database, stand.versions, stand.search, SystemClock())
    try:
        with pytest.raises(RetrievalError) as caught:
            await ask(retriever)
        assert "127.0.0.1" not in caught.value.message
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(RetrievalError):
                await ask(retriever)
        assert time.monotonic() - began < 0.5
    finally:
        await retriever.close()
        await database.close()
