"""Searches by themselves: limits, what a key may search, bad input, and what is counted of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from headway.domain.release import Retrieval
from headway.gateway.measurements import REJECTED, SEARCH_SECONDS, SEARCHES
from headway.storage import keys
from headway.storage.keys import Grant
from tests.integration.gateway.conftest import Reply, WorkerStand
from tests.integration.gateway.grounded import QUESTION, SECRET, add_key, ground, prepare

PATH = "/v1/search"


@pytest.fixture
async def grounded(worker_stand: WorkerStand) -> WorkerStand:
    await prepare(worker_stand)
    await worker_stand.start()
    return worker_stand


async def search(stand: WorkerStand, key: str = "developer", **fields: Any) -> Reply:
    return await stand.ask(PATH, key=key, **{"query": QUESTION, **fields})


def found(reply: Reply) -> set[str]:
    assert reply.status == 200, reply.body
    return {passage["document"] for passage in json.loads(reply.body)["passages"]}


async def counted(stand: WorkerStand, expected: float, *labels: str) -> None:
    """Wait until so many searches are counted; the measurements are saved once a second."""
    for _ in range(150):
        if await stand.measured(SEARCHES, *labels) == expected:
            return
        await asyncio.sleep(0.02)
    assert await stand.measured(SEARCHES, *labels) == expected


@pytest.mark.parametrize(
    "grant",
    [
        Grant("narrow", scopes=("invoke",), requests_per_minute=2),
        Grant("narrow", scopes=("invoke",), monthly_usd=0.000001),
        Grant("narrow", scopes=("invoke",), concurrency=1),
    ],
)
async def test_a_search_counts_as_a_request_of_its_key(grounded: WorkerStand, grant: Grant) -> None:
    async with grounded.world.database.connection() as connection:
        grounded.world.secrets["narrow"] = (await keys.create(connection, grant, author="ann"))[1]
    await grounded.publish()
    assert found(await search(grounded, "narrow", application="support"))
    if grant.requests_per_minute:
        assert found(await search(grounded, "narrow", application="support"))
        refused = await search(grounded, "narrow", application="support")
        assert (refused.status, json.loads(refused.body)["code"]) == (429, "rate_limit_exceeded")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await grounded.ask(key="narrow")).status == 429  # answers and searches are counted together
    elif grant.monthly_usd:
        assert (await grounded.ask(key="narrow")).status == 200  # it costs more than the cap
        refused = await search(grounded, "narrow", application="support")
        assert (refused.status, json.loads(refused.body)["code"]) == (429, "cost_cap_reached")
    else:
        replies = await asyncio.gather(*(search(grounded, "narrow", application="support") for _ in range(8)))
        assert {reply.status for reply in replies} == {200, 429}
        assert found(await search(grounded, "narrow", application="support"))  # and its places are free again


async def test_a_search_that_is_refused_or_fails_gives_its_place_back(grounded: WorkerStand) -> None:
    async with grounded.world.database.connection() as connection:
        grant = Grant("narrow", scopes=("invoke",), concurrency=1)
        grounded.world.secrets["narrow"] = (await keys.create(connection, grant, author="ann"))[1]
        await connection.execute("UPDATE index_version SET state = 'dropped' WHERE number = 1")
    await grounded.publish()
    for _ in range(3):
        assert (await search(grounded, "narrow", index="handbook@9")).status == 404
        failed = await search(grounded, "narrow", application="support")
        assert (failed.status, json.loads(failed.body)["code"]) == (503, "retrieval_failed")
        assert b"dropped" not in failed.body  # callers are not told what is behind it


async def test_searches_are_counted_by_version_and_result_and_nothing_else_is_kept(
    grounded: WorkerStand, capfd: pytest.CaptureFixture[str]
) -> None:
    await search(grounded, application="support")
    await search(grounded, index="handbook@1", key="hr", query=SECRET)
    await ground(grounded, 1, Retrieval("handbook", 1, minimum_score=1.0))
    await grounded.publish()
    await search(grounded, application="support")
    await ground(grounded, 1, Retrieval("handbook", 7))
    await grounded.publish()
    assert (await search(grounded, application="support", query=SECRET)).status == 503
    await search(grounded, application="support", query=" ")
    for expected, labels in (
        (2.0, ("handbook@1", "found")),
        (1.0, ("handbook@1", "empty")),
        (1.0, ("handbook@7", "retrieval_failed")),
        (4.0, ()),
    ):
        await counted(grounded, expected, *labels)
    assert await grounded.measured(REJECTED, "retrieval_failed") == 1
    assert await grounded.measured(REJECTED, "invalid_request") == 1
    assert await grounded.measured(SEARCH_SECONDS, "handbook@1") >= 0
    assert await grounded.interactions(0) == []
    captured = capfd.readouterr()
    assert SECRET not in captured.out + captured.err
    files = [path for path in grounded.home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


async def test_by_index_no_more_is_searched_than_a_release_of_the_key_sees(grounded: WorkerStand) -> None:
    only_travel = Retrieval("handbook", 1, filter={"path": "travel.md"})
    for release in (1, 2):
        await ground(grounded, release, only_travel)
    await grounded.publish()
    for fields in ({"application": "support"}, {"index": "handbook@1"}, {"index": "handbook"}):
        assert found(await search(grounded, **fields)) == {"travel.md"}
    await ground(grounded, 2, Retrieval("handbook", 1))
    await grounded.publish()
    assert found(await search(grounded, application="support")) == {"travel.md"}
    assert found(await search(grounded, index="handbook@1")) == {"leave.md", "travel.md"}


async def test_only_who_may_pin_searches_by_index_what_no_other_request_is_answered_from(grounded: WorkerStand) -> None:
    await add_key(grounded, "pinner", "invoke", "pin")
    await ground(grounded, 1, Retrieval("handbook", 2))
    await grounded.publish()
    assert found(await search(grounded, index="handbook@1")) == {"leave.md", "travel.md"}  # it is the candidate's
    for ended in ("share = 0", "state = 'rolled_back', share = 0, ended_at = now()"):
        await grounded.rows(f"UPDATE rollout SET {ended} WHERE id = 1 RETURNING 1")
        await grounded.publish()
        refused = await search(grounded, index="handbook@1")
        assert (refused.status, json.loads(refused.body)["code"]) == (404, "index_not_found")
        assert json.loads(refused.body)["detail"].endswith("(known: handbook@2)")
        assert found(await search(grounded, "pinner", index="handbook@1")) == {"leave.md", "travel.md"}
        assert (await grounded.ask(model="support@bold")).status == 403


BAD: tuple[dict[str, Any], ...] = (
    {},
    {"application": ""},
    {"index": ""},
    {"application": "", "index": ""},
    {"application": None, "index": None},
    {"application": 3},
    {"application": ["support"]},
    {"application": "support", "query": None},
    {"application": "support", "query": 7},
    {"application": "support", "query": ""},
    {"application": "support", "query": "\n\t "},
    {"application": "support", "query": "\x00"},
    {"application": "support", "query": "x" * 100_000},
    {"application": "support", "top_k": -1},
    {"application": "support", "top_k": 101},
    {"application": "support", "top_k": 2.5},
    {"application": "support", "top_k": True},
    {"application": "support", "top_k": "3"},
    {"application": "support", "top_k": 10**30},
    {"application": "support", "groups": ["hr"]},
    {"application": "support", "filter": {}},
    {"index": "handbook@1@2"},
    {"index": "handbook@0"},
    {"index": "handbook@" + "9" * 300},
    {"index": "' OR 1=1 --"},
    {"application": "support@calm"},
    {"application": "\x00"},
)
QUERIES = ("the of and", "' & | ! <-> :*", "a\x00b", "\ud800 leave", "\U0001f4a9" * 2000, "%s %(x)s")


async def test_bad_input_is_refused_and_says_what_is_wrong(grounded: WorkerStand) -> None:
    for fields in BAD:
        reply = await search(grounded, **fields)
        problem = json.loads(reply.body)
        assert reply.status in (400, 403, 404), (fields, problem)
        assert reply.headers["content-type"] == "application/problem+json"
        assert problem["detail"]
        assert len(reply.body) < 2000
    assert await grounded.measured(SEARCHES) == 0


async def test_no_query_breaks_a_search(grounded: WorkerStand) -> None:
    for query in QUERIES:
        reply = await search(grounded, application="support", query=query, top_k=100)
        assert reply.status == (400 if "\ud800" in query else 200), (query[:20], reply.body)


async def test_only_a_key_that_may_call_searches(grounded: WorkerStand) -> None:
    async with grounded.world.database.connection() as connection:
        grant = Grant("rater", scopes=("feedback",))
        grounded.world.secrets["rater"] = (await keys.create(connection, grant, author="ann"))[1]
    await grounded.publish()
    refused = await search(grounded, "rater", application="support")
    assert (refused.status, json.loads(refused.body)["code"]) == (403, "insufficient_scope")
