"""What clients may send to a grounded application: whole conversations, tools, several choices, JSON, Azure's paths."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from headway.domain.release import Retrieval
from headway.gateway.refusals import NOTHING_FOUND
from headway.retrieval.wordvectors import WordVectors
from headway.testing import Behaviour, overloaded
from tests.integration.gateway.conftest import CANDIDATE, STABLE, Reply, WorkerStand
from tests.integration.gateway.grounded import (
    LEAVE,
    PATHS,
    QUESTION,
    TRAVEL,
    citations,
    events,
    fields,
    ground,
    prepare,
    told,
)

AZURE = "/openai/deployments/support/chat/completions"
SAID: list[dict[str, Any]] = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": "25 [1]."},
]


@pytest.fixture
async def grounded(worker_stand: WorkerStand) -> WorkerStand:
    await prepare(worker_stand)
    await worker_stand.start()
    return worker_stand


async def use(stand: WorkerStand, retrieval: Retrieval) -> None:
    for release in (1, 2):
        await ground(stand, release, retrieval)
    await stand.publish()


def documents(reply: Reply) -> list[str]:
    return [each["document"] for each in citations(reply)]


@pytest.mark.parametrize(
    ("turns", "text", "first"),
    [
        (1, "In which class are trains booked?", "travel.md"),
        (2, "Are you sure?", "leave.md"),
        (20, "Are you sure?", "leave.md"),
    ],
)
async def test_the_latest_messages_make_the_query(grounded: WorkerStand, turns: int, text: str, first: str) -> None:
    await use(grounded, Retrieval("handbook", 1, top_k=1, turns=turns))
    said = [*SAID, {"role": "user", "content": text}]
    assert documents(await grounded.ask(messages=said)) == [first]
    assert documents(await grounded.ask("/v1/responses", input=said)) == [first]


async def test_several_parts_are_read_as_far_as_they_are_text(grounded: WorkerStand) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [{"type": "text", "text": "How many days of"}, picture, {"type": "text", "text": "annual leave?"}]
    messages = [{"role": "user", "content": parts}]
    assert documents(await grounded.ask(messages=messages))[0] == "leave.md"
    assert grounded.provider.received[-1].body["messages"][1:] == messages
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    given = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}, image]}]
    assert documents(await grounded.ask("/v1/responses", input=given))[0] == "leave.md"


@pytest.mark.parametrize("policy", ["answer", "refuse"])
async def test_a_conversation_in_which_no_user_speaks_finds_nothing(grounded: WorkerStand, policy: Any) -> None:
    await use(grounded, Retrieval("handbook", 1, nothing_found=policy))
    conversations: list[list[dict[str, Any]]] = [
        [{"role": "system", "content": QUESTION}],
        [{"role": "assistant", "content": QUESTION}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}],
        [{"role": "user", "content": " \n"}],
    ]
    for messages in conversations:
        reply = await grounded.ask(messages=messages)
        assert (reply.status, documents(reply)) == (200, [])
        assert (NOTHING_FOUND in reply.body.decode()) is (policy == "refuse")
    for row in await grounded.interactions(len(conversations)):
        assert (row["passages"], row["retrieved"], row["retrieval_error"]) == (0, [], None)


async def test_several_choices_share_the_citations_of_the_first(grounded: WorkerStand) -> None:
    whole = json.loads((await grounded.ask(**fields("", n=3))).body)
    assert ["context" in each["message"] for each in whole["choices"]] == [True, False, False]
    streamed = await grounded.ask(**fields("", n=3, stream=True))
    told_of = [
        (choice["index"], "context" in choice["delta"]) for each in events(streamed) for choice in each["choices"]
    ]
    assert told_of.count((0, True)) == 1
    assert next(index for index, has in told_of if has) == 0
    assert {index for index, _ in told_of} == {0, 1, 2}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_a_call_of_a_tool_is_grounded_and_is_neither_cited_nor_not(
    grounded: WorkerStand, path: str, stream: bool
) -> None:
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    tool: dict[str, Any] = {"name": "book", "description": "Book leave.", "parameters": schema}
    for model in (STABLE, CANDIDATE):
        grounded.provider.set_behaviour(model, Behaviour())
    tools = [{"type": "function", **tool} if path == PATHS[1] else {"type": "function", "function": tool}]
    reply = await grounded.ask(path, **fields(path, tools=tools, stream=stream))
    assert b"book" in reply.body
    assert LEAVE.text in told(grounded)
    if path == PATHS[0]:
        assert documents(reply)[0] == "leave.md"
    (row,) = await grounded.interactions(1)
    assert (row["cited"], row["passages"], row["status"]) == (None, 2, 200)


async def test_what_a_tool_found_is_no_query(grounded: WorkerStand) -> None:
    await use(grounded, Retrieval("handbook", 1, top_k=1))
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": TRAVEL.text},
    ]
    assert documents(await grounded.ask(messages=messages)) == ["leave.md"]
    assert grounded.provider.received[-1].body["messages"][1:] == messages


@pytest.mark.parametrize("stream", [False, True])
async def test_azures_older_path_is_grounded_too(grounded: WorkerStand, stream: bool) -> None:
    reply = await grounded.ask(AZURE, **fields("", model="ignored", stream=stream))
    assert documents(reply)[0] == "leave.md"


@pytest.mark.parametrize("path", PATHS)
async def test_structured_answers_have_citations_beside_them(grounded: WorkerStand, path: str) -> None:
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    form: dict[str, Any] = {"name": "leave", "strict": True, "schema": schema}
    wanted: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": form}}
    if path == PATHS[1]:
        wanted = {"text": {"format": {"type": "json_schema", **form}}}
    for model in (STABLE, CANDIDATE):
        grounded.provider.set_behaviour(model, Behaviour(answer_text='{"days": 25}'))
    reply = await grounded.ask(path, **fields(path, **wanted))
    assert documents(reply)[0] == "leave.md"
    assert r"{\"days\": 25}" in reply.body.decode()
    await use(grounded, Retrieval("handbook", 2, nothing_found="refuse"))
    refused = json.loads((await grounded.ask(path, **fields(path, **wanted))).body)
    said = refused["choices"][0]["message"] if path == PATHS[0] else refused["output"][0]["content"][0]
    assert (said["refusal"], said.get("content"), said.get("text")) == (NOTHING_FOUND, None, None)


async def test_a_release_that_sets_the_format_refuses_in_it(grounded: WorkerStand) -> None:
    await use(grounded, Retrieval("handbook", 2, nothing_found="refuse"))
    wanted = Jsonb({"response_format": {"type": "json_object"}})
    await grounded.rows(
        "UPDATE release SET bundle = jsonb_set(bundle, '{parameters}', %s) RETURNING 1",
        wanted,
    )
    await grounded.publish()
    for path in PATHS:
        assert b'"refusal":"' + NOTHING_FOUND.encode() in (await grounded.ask(path, **fields(path))).body


@pytest.mark.parametrize("path", PATHS)
async def test_a_fallback_is_told_the_same_passages(grounded: WorkerStand, path: str) -> None:
    for release, model in ((1, STABLE), (2, CANDIDATE)):
        await grounded.deploy(release, model, model)
        spare = "jsonb_set(deployments->0, '{name}', '\"spare\"')"
        await grounded.rows(
            f"UPDATE release SET deployments = deployments || {spare} WHERE id = %s RETURNING 1", release
        )
        grounded.provider.play(model, Behaviour(errors=(overloaded(),)))
    await grounded.publish()
    reply = await grounded.ask(path, **fields(path))
    assert (reply.status, documents(reply)[0]) == (200, "leave.md")
    first, second = (each.body for each in grounded.provider.received)
    assert first == second
    assert LEAVE.text in told(grounded)
    (row,) = await grounded.interactions(1)
    assert (row["fallback"], row["passages"], row["deployment"]) == (True, 2, "spare")


async def test_what_is_not_stored_cannot_be_gone_on_from(grounded: WorkerStand) -> None:
    kept = await grounded.ask("/v1/responses", **fields("/v1/responses"))
    loose = await grounded.ask("/v1/responses", **fields("/v1/responses", store=False))
    assert documents(loose)[0] == "leave.md"
    for earlier, status in ((kept, 200), (loose, 404)):
        previous = json.loads(earlier.body)["id"]
        later = await grounded.ask("/v1/responses", input="And trains?", previous_response_id=previous)
        assert later.status == status
    assert TRAVEL.text in told(grounded)  # a later turn is searched for itself


async def test_the_same_question_again_is_searched_for_again(grounded: WorkerStand) -> None:
    """Nothing is kept of answers: what a caller may see changes with its key."""
    question = "What is the salary of a manager?"
    found = [documents(await grounded.ask(key=key, **fields("", question))) for key in ("developer", "hr", "developer")]
    assert [("hr/salaries.md" in each) for each in found] == [False, True, False]


async def test_many_at_once(grounded: WorkerStand) -> None:
    """More than the retriever's places: they wait their turn, and nobody gets another's passages."""
    questions = [QUESTION, "Which class are trains booked in?"] * 20
    await use(grounded, Retrieval("handbook", 1, top_k=1))
    replies = await asyncio.gather(*[grounded.ask(**fields("", each)) for each in questions])
    assert [documents(reply) for reply in replies] == [["leave.md"], ["travel.md"]] * 20


@pytest.mark.parametrize("release", [1, 2])
async def test_a_worker_gets_ready_for_a_new_index_before_anybody_asks(
    worker_stand: WorkerStand, monkeypatch: pytest.MonkeyPatch, release: int
) -> None:
    """That of the stable release, and that of a candidate: its first callers must not make it look slow."""
    loaded = asyncio.Event()
    load = WordVectors.load

    def note() -> WordVectors:
        loop.call_soon_threadsafe(loaded.set)
        return load()

    loop = asyncio.get_running_loop()
    await prepare(worker_stand)
    await worker_stand.rows("UPDATE release SET bundle = bundle - 'retrieval' RETURNING 1")
    await worker_stand.publish()
    await worker_stand.start()
    monkeypatch.setattr(WordVectors, "load", note)
    await ground(worker_stand, release, Retrieval("handbook", 1))
    assert not loaded.is_set()
    await worker_stand.publish()
    await asyncio.wait_for(loaded.wait(), 5)
