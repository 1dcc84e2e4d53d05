"""Two index versions, compared over the API: by given queries, and by what an application was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from headway.clock import SystemClock
from headway.domain.knowledge import Found
from headway.domain.release import Retrieval
from headway.retrieval.embedding import make_embedder
from headway.storage import keys, routing
from tests.asked import ask, found_application
from tests.indexes import SPEC
from tests.integration.api.conftest import Control

PATH = "/admin/v1/index-comparisons"
TRAINS = {"query": "how are trains booked?", "relevant": ["travel.md"]}
LEAVE = {"query": "days of leave", "relevant": [{"document": "leave.md", "heading": "Leave", "grade": 2}]}
BANDS = {"query": "salary bands of managers", "relevant": ["salary/bands.md"]}
VERSIONS = {"before": "handbook@1", "after": "handbook"}


async def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    embedder = make_embedder(SPEC, None, SystemClock())  # type: ignore[arg-type]  # the embedded one calls nobody
    return await embedder.embed(texts)


@pytest.fixture(autouse=True)
async def grounded(control: Control) -> None:
    async with control.world.database.connection() as connection:
        await found_application(connection, embed, retrieval=Retrieval("handbook", 1, top_k=2))


async def compare(control: Control, expected: int = 200, *, key: str = "viewer", **wish: Any) -> Any:
    status, body = await control.call("POST", PATH, key=key, json=VERSIONS | wish)
    assert status == expected, body
    return body


async def test_by_given_queries(control: Control) -> None:
    found = await compare(control, queries=[TRAINS, LEAVE, {"query": "who pays?"}], top_k=3)
    assert (found["before"], found["after"], found["queries"], found["labelled"]) == ("handbook@1", "handbook@2", 3, 2)
    assert found["relevance"]["recall"]["before"]["mean"] == 1.0
    assert found["relevance"]["recall"]["difference"]["mean"] == -0.5
    assert found["relevance"]["recall"]["worse"] == 1
    lost = {each["document"]: each["state"] for each in found["lost"]["documents"]}
    assert lost["travel.md"] == "removed"
    assert (found["top_k"], found["asked"]) == (3, None)


async def test_by_what_an_application_was_asked(control: Control) -> None:
    async with control.world.database.connection() as connection:
        await ask(connection, "how are trains booked?", times=2, ago="1 minute")
        await ask(connection, "days of leave", ago="2 minutes")
        await ask(connection, "not stored", request=None, ago="3 minutes")
    found = await compare(control, from_interactions="help")
    assert found["asked"] == {"interactions": 4, "without_content": 1, "without_query": 0, "repeated": 1}
    assert (found["queries"], found["relevance"], found["top_k"]) == (2, None, 2)
    assert found["documents"]["churn"]["queries"] == 2
    assert (await compare(control, from_interactions="help", limit=1, top_k=4))["top_k"] == 4
    refused = await compare(control, 404, from_interactions="sales")
    assert refused["detail"] == "sales has no queries: it was not asked anything yet"


async def test_nobody_finds_what_is_for_others(control: Control) -> None:
    database = control.world.database
    async with database.connection() as connection:
        _, control.world.secrets["clerk"] = await keys.create(
            connection, keys.Grant("clerk", ("view",), (), groups=("hr",)), author="ann"
        )
    await control.follow()
    cases: list[tuple[str, list[str] | None, float]] = [
        ("viewer", None, 0.0),
        ("viewer", [], 0.0),
        ("clerk", None, 1.0),
        ("clerk", [], 0.0),
        ("operator", None, 1.0),
        ("operator", ["hr"], 1.0),
        ("operator", ["it"], 0.0),
    ]
    for key, groups, recall in cases:
        found = await compare(control, key=key, queries=[BANDS], groups=groups)
        assert found["relevance"]["recall"]["before"]["mean"] == recall, (key, groups)
    refused = await compare(control, 403, queries=[BANDS], groups=["hr"])
    assert (refused["code"], refused["param"]) == ("insufficient_scope", "groups")


async def test_without_a_scope_nothing_is_compared(control: Control) -> None:
    assert (await compare(control, 403, key="caller", queries=[TRAINS]))["code"] == "insufficient_scope"


class Waiting:
    """Finds nothing, and that only when it may."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.free = asyncio.Event()

    async def retrieve(self, query: str, retrieval: Retrieval, groups: frozenset[str]) -> Found:
        self.asked.put_nowait(query)
        await self.free.wait()
        return Found(())


@pytest.fixture
def waiting(control: Control) -> Waiting:
    """Searches wait until this lets them go on."""
    made = Waiting()
    control.app.state.services = replace(control.services, retriever=made)
    return made


async def test_two_run_at_a_time(control: Control, waiting: Waiting) -> None:
    running = [asyncio.create_task(compare(control, queries=[LEAVE])) for _ in range(2)]
    for _ in running:
        await waiting.asked.get()
    refused = await control.answer("POST", PATH, key="viewer", json=VERSIONS | {"queries": [LEAVE]})
    assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
    assert refused.headers["retry-after"] == "10"
    waiting.free.set()
    for found in await asyncio.gather(*running):
        assert found["relevance"]["recall"]["before"]["mean"] == 0
    await compare(control, queries=[LEAVE])


async def test_what_takes_too_long_is_given_up(
    control: Control, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.api.comparison_routes._SECONDS", 0.2)
    for _ in range(3):  # and gives its place back
        refused = await compare(control, 429, queries=[LEAVE])
        assert refused["code"] == "comparison_too_long"
        assert refused["detail"].startswith("comparing by 1 queries took more than 0.2 s: give fewer")


@pytest.mark.parametrize(
    ("wish", "status", "message"),
    [
        ({}, 400, "give either queries or from_interactions"),
        ({"queries": [TRAINS], "from_interactions": "help"}, 400, "give either queries or from_interactions"),
        ({"queries": []}, 400, "queries: "),
        ({"queries": [{"query": "a"}] * 501}, 400, "queries: "),
        ({"queries": [{"query": " "}]}, 400, "queries.0: query is empty"),
        ({"queries": [{"query": "a"}, {"query": "a", "relevant": ["#x"]}]}, 400, "queries.1: relevant: a document has"),
        ({"queries": [{"query": "a", "relevant": [{"document": "x", "grade": 0}]}]}, 400, "queries.0.relevant.0"),
        ({"queries": [TRAINS], "before": "handbook@x"}, 400, "before: expected the name of an index"),
        ({"queries": [TRAINS], "after": "handbook@9"}, 404, "there is no handbook@9; the newest is handbook@2"),
        ({"queries": [TRAINS], "application": "hlep"}, 404, "no application is called 'hlep'; did you mean 'help'?"),
        ({"queries": [TRAINS], "application": "sales"}, 404, "the stable release of sales has no search index"),
        ({"queries": [TRAINS], "groups": ["a,b"]}, 400, "groups: a group has"),
        ({"queries": [TRAINS], "top_k": 101}, 400, "top_k: "),
        ({"queries": [TRAINS], "topk": 1}, 400, "topk: is not known here"),
    ],
)
async def test_what_is_wrong_is_told(control: Control, wish: dict[str, Any], status: int, message: str) -> None:
    body = await compare(control, status, key="operator", **wish)
    assert body["detail"].startswith(message), body


async def test_a_version_that_was_dropped(control: Control) -> None:
    async with control.world.database.connection() as connection:
        await connection.execute("UPDATE index_version SET state = 'dropped' WHERE number = 2")
    refused = await compare(control, 404, queries=[TRAINS], after="handbook@2")
    assert refused["detail"] == "handbook@2 was dropped: only published versions can be searched"


async def test_labels_that_no_version_has_and_the_applications_filter(control: Control) -> None:
    async with control.world.database.connection() as connection:
        await connection.execute(
            "UPDATE release SET bundle = jsonb_set(bundle, '{retrieval,filter}', %s) WHERE name = 'on-1'",
            (Jsonb({"path": "leave.md"}),),
        )
        assert await routing.latest(connection) is not None
    found = await compare(control, queries=[TRAINS, {"query": "x", "relevant": ["y.md"]}], application="help")
    assert found["unknown_labels"] == ["y.md"]
    assert found["relevance"]["recall"]["before"]["mean"] == 0.0, "the stable release finds leave.md alone"
