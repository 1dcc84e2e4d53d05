"""Search in small versions, where it must give what looking at every chunk gives: filters, groups, odd queries."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.exact import Library, read_library, read_words
from headway.clock import SystemClock
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.errors import InvalidRequestError, NotFoundError, RetrievalError
from headway.retrieval.retriever import Query, Version, VersionRetriever, Versions
from headway.retrieval.searching import VersionSearch
from headway.storage import partitions, search
from headway.storage.database import Database
from tests.indexes import SPEC, Page, publish
from tests.lakes import CountingEmbedder

WORDS = ("leave", "travel", "invoice", "server", "budget", "safety", "review", "holiday", "laptop", "contract", "naïve")
GROUPS = ("hr", "legal", "board")
FOLDERS = ("policies", "guides", "notes/2024")
EXACT = 0.01  # how often a word comes is told from its rank, which is off by up to 5 %


def make_pages(count: int) -> list[Page]:
    draw = random.Random(7)
    pages = []
    for number in range(count):
        text = " ".join(draw.choices(WORDS, k=draw.randint(3, 40))) + f" number{number}"
        groups = tuple(sorted(draw.sample(GROUPS, draw.choice((0, 0, 1, 2)))))
        pages.append(Page(f"{draw.choice(FOLDERS)}/{number:03}.md", f"Page {number % 9}", text, groups, len(text) // 5))
    return pages


class Stand:
    """A version of 150 pages, its search, and all it holds."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.embedder = CountingEmbedder()
        self.search = VersionSearch()
        self.version = Version(0, SPEC, self.embedder.dimensions)
        self.library: Library

    async def open(self) -> None:
        async with self.database.connection() as connection:
            number = await publish(connection, "handbook", 1, make_pages(150), self.embedder.embed)
        self.version = Version(number, SPEC, self.embedder.dimensions)
        async with self.database.connection() as connection:
            self.library = await read_library(connection, await search.read_searched(connection, number))

    async def ask(self, text: str, groups: Sequence[str] = GROUPS, **retrieval: Any) -> list[Passage]:
        vector = (await self.embedder.embed([text.replace("\ud800", "")]))[0]
        query = Query(text, vector, Retrieval("handbook", 1, **retrieval), frozenset(groups))
        async with self.database.connection() as connection:
            return list(await self.search(connection, self.version, query))


@pytest.fixture
async def stand(database: Database) -> Stand:
    made = Stand(database)
    await made.open()
    return made


def passes(wanted: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """What the filters that are drawn below mean, said once more."""
    for key, value in wanted.items():
        own = metadata.get(key)
        match value:
            case {"not": other}:
                good = own != other
            case {"prefix": beginning}:
                good = str(own).startswith(beginning)
            case {"gte": least}:
                good = str(own) >= least
            case {"lt": limit}:
                good = str(own) < limit
            case _:
                good = own in (value if isinstance(value, list) else [value])
        if not good:
            return False
    return True


PATHS = st.sampled_from([f"{folder}/{number:03}.md" for folder in FOLDERS for number in range(0, 150, 7)])
TITLES = st.sampled_from([f"Page {number}" for number in range(10)])
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "path": st.one_of(
            st.sampled_from(FOLDERS).map(lambda folder: {"prefix": folder}),
            PATHS.map(lambda path: {"gte": path}),
            PATHS.map(lambda path: {"lt": path}),
            st.lists(PATHS, min_size=1, max_size=5),
        ),
        "title": st.one_of(TITLES, TITLES.map(lambda title: {"not": title}), st.lists(TITLES, min_size=1, max_size=4)),
        "author": st.just({"not": "ann"}),  # no page has one
    },
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from([*WORDS, "the", "number7", "unheard"]), min_size=1, max_size=5).map(" ".join),
    wanted=FILTERS,
    groups=st.sets(st.sampled_from(GROUPS)),
    weight=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
    top_k=st.integers(1, 20),
)
async def test_filtered_search_equals_exact_search_among_what_is_allowed(
    stand: Stand, text: str, wanted: dict[str, Any], groups: set[str], weight: float, top_k: int
) -> None:
    found = await stand.ask(text, tuple(groups), filter=wanted, hybrid_weight=weight, top_k=top_k)

    def allow(_: str, labels: Sequence[str], metadata: Mapping[str, Any]) -> bool:
        return passes(wanted, metadata) and (not labels or bool(groups & set(labels)))

    allowed = stand.library.allow(allow)
    vector = (await stand.embedder.embed([text]))[0]
    unit = vector / np.linalg.norm(vector) if weight and vector.any() else None
    async with stand.database.connection() as connection:
        words = await read_words(connection, "english", text)
    scores = stand.library.score(words, unit, weight)
    best = stand.library.best(scores, allowed, top_k)
    if weight == 0:
        best = [place for place in best if scores.coverage[place] > 0]
    places = [stand.library.chunks.index(passage.chunk) for passage in found]
    assert all(allowed[place] for place in places)
    assert len(places) == len(set(places)) == len(best)
    assert [passage.score for passage in found] == pytest.approx(scores.score[places], abs=EXACT)
    assert [passage.score for passage in found] == pytest.approx(scores.score[best], abs=EXACT)


async def test_nothing_of_another_group_is_found(stand: Stand) -> None:
    labels = dict(zip(stand.library.chunks, stand.library.groups, strict=True))
    for groups in ((), ("hr",), ("hr", "board"), ("nobody",), ("h", "r", "hr,legal", "HR", "{hr}")):
        found = await stand.ask("leave travel invoice", groups, top_k=150)
        assert found
        for passage in found:
            assert not labels[passage.chunk] or set(groups) & set(labels[passage.chunk])
    everything = await stand.ask("leave travel invoice", GROUPS, top_k=150)
    assert {group for passage in everything for group in labels[passage.chunk]} == set(GROUPS)


@pytest.mark.parametrize(
    "text",
    [
        "the of and is",
        "' OR 1=1 --",
        "\"quoted 'leave' \\ phrase\" & ! | ( ) <-> :* leave:A",
        "nul\0nul leave",
        "\ud800 leave",
        "naïve 日本語 ☃ leave",
        "leave " * 333,
        " ".join(f"word{number}" for number in range(300)),
        "x" * 2000,
        "?",
    ],
)
async def test_odd_queries_are_searched_for(stand: Stand, text: str) -> None:
    for weight in (0.0, 0.5, 1.0):
        found = await stand.ask(text, hybrid_weight=weight)
        assert all(0 <= passage.score <= 1.0001 for passage in found)
        if "leave" in text:
            assert found
            assert weight == 1 or "leave" in found[0].text


async def test_a_query_of_stop_words_goes_by_its_meaning_alone(stand: Stand) -> None:
    found = await stand.ask("the of and", hybrid_weight=0.5)
    assert len(found) == 5
    assert all(passage.coverage is None and passage.similarity is not None for passage in found)
    assert await stand.ask("the of and", hybrid_weight=0.0) == []


async def test_a_query_without_meaning_goes_by_its_words_alone(stand: Stand) -> None:
    retrieval = Retrieval("handbook", 1, hybrid_weight=0.5)
    query = Query("leave", np.zeros(stand.embedder.dimensions, np.float32), retrieval, frozenset())
    async with stand.database.connection() as connection:
        found = await stand.search(connection, stand.version, query)
    assert found
    assert all("leave" in passage.text and passage.similarity is None for passage in found)
    query = Query("unheard", np.zeros(stand.embedder.dimensions, np.float32), retrieval, frozenset())
    async with stand.database.connection() as connection:
        assert await stand.search(connection, stand.version, query) == []


async def test_a_passage_says_why_it_was_found(stand: Stand) -> None:
    first, *rest = await stand.ask("number7 leave", top_k=10)
    assert first.document.endswith("/007.md")
    assert first.text_rank == 1
    assert any(passage.vector_rank == 1 for passage in rest)
    assert first.coverage is not None
    assert first.similarity is not None
    assert [passage.score for passage in rest] == sorted((passage.score for passage in rest), reverse=True)
    least = rest[3].score
    fewer = await stand.ask("number7 leave", top_k=10, minimum_score=least)
    assert [passage.chunk for passage in fewer] == [first.chunk, *(each.chunk for each in rest if each.score >= least)]


async def test_a_filter_that_is_none_is_refused(stand: Stand) -> None:
    with pytest.raises(InvalidRequestError, match="path: 'like' is none of"):
        await stand.ask("leave", filter={"path": {"like": "%"}})


async def test_only_what_is_published_is_searched(stand: Stand) -> None:
    stand.version = stand.version._replace(number=stand.version.number + 1)
    with pytest.raises(NotFoundError):
        await stand.ask("leave")


async def test_searches_side_by_side_find_the_same(stand: Stand) -> None:
    texts = [f"{one} {other}" for one in WORDS[:6] for other in WORDS[5:]]
    alone = [[passage.chunk for passage in await stand.ask(text)] for text in texts]
    versions_ = Versions(lambda _: stand.embedder)
    retriever = VersionRetriever(stand.database, versions_, stand.search, SystemClock(), seconds=60)
    found = await asyncio.gather(
        *(retriever.retrieve(text, Retrieval("handbook", 1), frozenset(GROUPS)) for text in texts)
    )
    await retriever.close()
    assert [[passage.chunk for passage in each.passages] for each in found] == alone


async def test_a_version_dropped_between_two_searches_fails_as_a_search(stand: Stand) -> None:
    retriever = VersionRetriever(stand.database, Versions(lambda _: stand.embedder), stand.search, SystemClock())
    assert (await retriever.retrieve("leave", Retrieval("handbook", 1), frozenset())).passages
    async with stand.database.connection() as connection:
        await partitions.drop(connection, stand.version.number)
        await connection.execute("UPDATE index_version SET state = 'dropped' WHERE id = %s", (stand.version.number,))
    for _ in range(2):  # what it knew, and then what it finds out anew
        with pytest.raises(RetrievalError):
            await retriever.retrieve("leave", Retrieval("handbook", 1), frozenset())
    await retriever.close()


async def test_a_search_that_takes_too_long_is_given_up(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_STATEMENT_MS", 100)
    async with stand.database.connection() as other:
        await other.execute(f"LOCK TABLE index_chunk_{stand.version.number}")
        retriever = VersionRetriever(stand.database, Versions(lambda _: stand.embedder), stand.search, SystemClock())
        with pytest.raises(RetrievalError) as caught:
            await retriever.retrieve("leave", Retrieval("handbook", 1), frozenset())
        assert caught.value.error_code == "retrieval_timeout"
    # The database is not taken for being away: the next search is not refused.
    assert (await retriever.retrieve("leave", Retrieval("handbook", 1), frozenset())).passages
    await retriever.close()


async def test_a_search_leaves_no_settings_behind(stand: Stand) -> None:
    names = ("enable_seqscan", "enable_hashjoin", "statement_timeout", "jit", "hnsw.ef_search")
    query = Query("leave", None, Retrieval("handbook", 1, hybrid_weight=0), frozenset())
    async with stand.database.connection() as connection:
        await connection.execute("SELECT NULL::vector")  # its settings are known from now on

        async def read() -> list[Any]:
            cursor = await connection.execute(
                "SELECT current_setting(name) FROM unnest(%s::text[]) AS name", (list(names),)
            )
            rows = await cursor.fetchall()
            await connection.commit()
            return rows

        before = await read()
        await stand.search(connection, stand.version, query)
        await connection.commit()
        assert await read() == before


async def test_a_version_is_dropped_while_it_is_searched(stand: Stand) -> None:
    async with stand.database.connection() as searching, stand.database.connection() as dropping:
        query = Query("leave", None, Retrieval("handbook", 1, hybrid_weight=0), frozenset())
        assert await stand.search(searching, stand.version, query)  # its transaction goes on
        dropped = asyncio.create_task(partitions.drop(dropping, stand.version.number))
        assert await stand.search(searching, stand.version, query)
        assert not dropped.done()
        await searching.rollback()
        await asyncio.wait_for(dropped, 30)
    with pytest.raises(psycopg.errors.UndefinedTable):
        await stand.ask("leave", (), hybrid_weight=0)
