"""A worker whose releases answer from passages: a real index, and keys that see different documents."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from psycopg.types.json import Jsonb

from headway.domain.release import Retrieval
from headway.retrieval.embedding import StaticEmbedder
from headway.storage import keys
from headway.storage.keys import Grant
from headway.testing import Behaviour
from tests.indexes import Page, publish
from tests.integration.gateway.conftest import CANDIDATE, STABLE, Reply, WorkerStand

LEAVE = Page("leave.md", "Annual leave", "Everybody has 25 days of annual leave.")
SALARIES = Page("hr/salaries.md", "Salaries", "The salary of a manager is 90,000: zanzibar.", groups=("hr",))
TRAVEL = Page("travel.md", "Travel", "Trains are booked in second class.")
QUESTION = "How many days of annual leave do I have?"
SECRET = "zanzibar"
HANDBOOK = Retrieval("handbook", 1, top_k=2)
PATHS = ("/v1/chat/completions", "/v1/responses")


async def ground(stand: WorkerStand, release: int, retrieval: Retrieval | None) -> None:
    """Let a release answer from passages; it is served once it is published."""
    await stand.rows(
        "UPDATE release SET bundle = jsonb_set(bundle, '{retrieval}', %s) WHERE id = %s RETURNING 1",
        Jsonb(msgspec.to_builtins(retrieval)),
        release,
    )


async def add_key(stand: WorkerStand, name: str, *scopes: Any, groups: tuple[str, ...] = ()) -> None:
    async with stand.world.database.connection() as connection:
        grant = Grant(name, scopes or ("invoke",), groups=groups)
        stand.world.secrets[name] = (await keys.create(connection, grant, author="ann"))[1]


async def prepare(stand: WorkerStand) -> None:
    """Both releases answer from ``handbook@1``; keys: developer has no group, hr is in hr, proxy speaks for others."""
    async with stand.world.database.connection() as connection:
        await publish(connection, "handbook", 1, (LEAVE, SALARIES, TRAVEL), StaticEmbedder().embed)
        await publish(connection, "handbook", 2, (SALARIES,), StaticEmbedder().embed)
    for release in (1, 2):
        await ground(stand, release, HANDBOOK)
    await add_key(stand, "hr", groups=("hr",))
    await add_key(stand, "proxy", "invoke", "delegate", groups=("it",))
    await stand.publish()
    for model in (STABLE, CANDIDATE):
        stand.provider.set_behaviour(model, Behaviour(answer_text="You have 25 days [1]."))


def fields(path: str, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    asked = {"input": question} if path.endswith("responses") else {"messages": [{"role": "user", "content": question}]}
    return {**asked, **more}


def told(stand: WorkerStand) -> str:
    """What the system message, or the instructions, of the last request to the provider said."""
    body = stand.provider.received[-1].body
    return str(body["instructions"] if "instructions" in body else body["messages"][0]["content"])


def events(reply: Reply) -> list[dict[str, Any]]:
    lines = [line[6:] for line in reply.body.decode().splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def citations(reply: Reply) -> list[dict[str, Any]]:
    """What an answer cites, of either API, streamed or not."""
    bodies = (
        events(reply) if reply.headers["content-type"].startswith("text/event-stream") else [json.loads(reply.body)]
    )
    for body in bodies:
        if body.get("choices"):
            choice = body["choices"][0]
            found: list[dict[str, Any]] = (choice.get("message") or choice["delta"])["context"]["citations"]
            return found
        response = body.get("response", body)
        if response.get("status") == "completed":
            return [each["citation"] for each in response["output"][0]["content"][0]["annotations"]]
    raise AssertionError(reply.body)
