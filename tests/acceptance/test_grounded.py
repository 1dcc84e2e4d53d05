"""Grounded answers end to end: OpenAI's unmodified client, a real index, keys that see different documents."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import psycopg
import pydantic
import pytest

from headway.gateway.refusals import NOTHING_FOUND
from headway.retrieval.embedding import StaticEmbedder
from headway.storage.database import Database, migrate
from headway.testing import Behaviour, Lognormal
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.stand import Provider, Stand, call, simulated_provider, unique
from tests.indexes import Page, publish

LEAVE = Page("leave.md", "Annual leave", "Everybody has 25 days of annual leave.")
TRAVEL = Page("travel.md", "Travel", "Trains are booked in second class.")
SALARIES = Page("hr/salaries.md", "Salaries", "The salary of a manager is 90,000: zanzibar.", groups=("hr",))
CITED = Behaviour(answer_text="You have 25 days [1].")


def configuration(provider: Provider) -> dict[str, Any]:
    grounded: dict[str, Any] = {"index": "handbook@1", "top_k": 2}
    closed: dict[str, Any] = {"index": "payroll@1", "retrieval": {"nothing_found": "refuse"}}
    return {
        "deployments": {"main": openai_deployment(provider.base_url, "model")},
        "indexes": {name: {"lake": "file:./docs"} for name in ("handbook", "payroll")},
        "applications": {
            "support": application("main", **grounded, prompt={"text": "Be brief.\n{{ passages }}"}),
            "payroll": application("main", **closed),
            "plain": application("main"),
        },
    }


async def load(database_url: str) -> None:
    database = Database(database_url)
    await database.open()
    embed = StaticEmbedder().embed
    async with database.connection() as connection:
        await publish(connection, "handbook", 1, (LEAVE, TRAVEL, SALARIES), embed)
        await publish(connection, "payroll", 1, (SALARIES,), embed)
    await database.close()


@pytest.fixture(scope="module")
def stand(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Headway with two workers, and two indexes."""
    migrate(module_database_url)
    asyncio.run(load(module_database_url))
    headway = Headway(tmp_path_factory.mktemp("grounded"), database_url=module_database_url)
    with simulated_provider({"model": CITED}) as provider, running(headway, configuration(provider)):
        yield Stand(headway, provider, headway.create_key("web", "--scope", "invoke"), "")


@pytest.fixture
def client(stand: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stand.headway.base_url, api_key=stand.key, max_retries=0) as opened:
        yield opened


def context_of(message: Any) -> Any:
    """What a message or a delta has beside OpenAI's own fields; None where it has none."""
    return message.model_extra.get("context")


def annotations_of(response: Any) -> list[Any]:
    """The annotations of a response's first text."""
    return list(response.output[0].content[0].annotations)


def check(stand: Stand, answer_id: str, citations: list[dict[str, Any]], question: str) -> None:
    """The answer cites the document that can answer, and the interaction says so."""
    assert citations[0]["chunk_id"] == str(citations[0]["chunk"])
    assert citations[0] | {"chunk": 0, "chunk_id": "0", "score": 0} == {
        "title": "Annual leave",
        "document": "leave.md",
        "filepath": "leave.md",
        "url": None,
        "heading": "Annual leave",
        "chunk": 0,
        "chunk_id": "0",
        "score": 0,
        "index": "handbook@1",
        "content": LEAVE.text,
    }
    (received,) = stand.provider.received(question)
    prompt = received.body.get("instructions") or received.body["messages"][0]["content"]
    assert prompt.startswith("Be brief.\n")
    assert LEAVE.text in prompt
    record = stand.headway.interaction(answer_id)
    assert (record["passages"], record["cited"]) == (len(citations), True)
    assert record["retrieved"] == [each["chunk"] for each in citations]


def test_chat(stand: Stand, client: openai.OpenAI) -> None:
    question = unique("How many days of annual leave do I have?")
    answer = client.chat.completions.create(model="support", messages=[{"role": "user", "content": question}])
    assert answer.choices[0].message.content == "You have 25 days [1]."
    check(stand, answer.id, context_of(answer.choices[0].message)["citations"], question)


def test_streamed_chat(stand: Stand, client: openai.OpenAI) -> None:
    question = unique("How many days of annual leave do I have?")
    chunks = list(
        client.chat.completions.create(model="support", messages=[{"role": "user", "content": question}], stream=True)
    )
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == "You have 25 days [1]."
    contexts = [context_of(each.choices[0].delta) for each in chunks]
    assert contexts[0] is not None
    assert contexts[1:] == [None] * (len(chunks) - 1)
    check(stand, chunks[0].id, contexts[0]["citations"], question)


def test_the_clients_own_accumulation_keeps_them(stand: Stand, client: openai.OpenAI) -> None:
    question = unique("How many days of annual leave do I have?")
    with client.chat.completions.stream(model="support", messages=[{"role": "user", "content": question}]) as stream:
        final = stream.get_final_completion()
    check(stand, final.id, context_of(final.choices[0].message)["citations"], question)


@pytest.mark.parametrize("streamed", [False, True])
def test_responses(stand: Stand, client: openai.OpenAI, streamed: bool) -> None:
    question = unique("How many days of annual leave do I have?")
    if streamed:
        with client.responses.stream(model="support", input=question) as stream:
            events = list(stream)
            answer: Any = stream.get_final_response()
        added: Any = next(event for event in events if event.type == "response.content_part.added")
        assert len(added.part.annotations) == 2
    else:
        answer = client.responses.create(model="support", input=question)
    assert answer.output_text == "You have 25 days [1]."
    annotations = annotations_of(answer)
    assert [(each.type, each.index) for each in annotations] == [("file_citation", 0), ("file_citation", 1)]
    check(stand, answer.id, [each.citation for each in annotations], question)


def test_a_later_turn_of_a_stored_response_is_searched_for_anew(stand: Stand, client: openai.OpenAI) -> None:
    first = client.responses.create(model="support", input=unique("How many days of annual leave do I have?"))
    question = unique("Which class of trains?")
    second = client.responses.create(model="support", input=question, previous_response_id=first.id)
    assert annotations_of(second)[0].filename == "travel.md"
    (received,) = stand.provider.received(question)
    assert TRAVEL.text in received.body["instructions"]


def test_conversations_that_are_sent_back(stand: Stand, client: openai.OpenAI) -> None:
    """Clients append an answer as they got it: its citations reach neither providers, which may refuse, nor records."""
    question, more = unique("How many days of annual leave do I have?"), unique("And which class of trains?")
    conversation: list[Any] = [{"role": "user", "content": question}]
    first = client.chat.completions.create(model="support", messages=conversation)
    assert context_of(first.choices[0].message)["citations"]
    conversation += [first.choices[0].message, {"role": "user", "content": more}]
    second = client.chat.completions.create(model="support", messages=conversation)
    said: list[Any] = [{"role": "user", "content": question}]
    response: Any = client.responses.create(model="support", input=said)
    assert annotations_of(response)
    said += [*response.output, {"role": "user", "content": more}]
    later = client.responses.create(model="support", input=said)
    chat, responded = (each.body for each in stand.provider.received(more))
    assert chat["messages"][2]["content"] == first.choices[0].message.content
    assert "context" not in chat["messages"][2]
    assert responded["input"][1]["content"][0]["annotations"] == []
    for answer_id in (second.id, later.id):
        assert LEAVE.text not in str(stand.headway.interaction(answer_id)["request"])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_release_that_answers_only_from_documents(stand: Stand, client: openai.OpenAI, streamed: bool) -> None:
    question = unique("What is the salary of a manager?")
    if streamed:
        with client.chat.completions.stream(
            model="payroll", messages=[{"role": "user", "content": question}]
        ) as stream:
            answer: Any = stream.get_final_completion()
        with client.responses.stream(model="payroll", input=question) as responding:
            response: Any = responding.get_final_response()
    else:
        answer = client.chat.completions.create(model="payroll", messages=[{"role": "user", "content": question}])
        response = client.responses.create(model="payroll", input=question)
    assert answer.choices[0].message.content == response.output_text == NOTHING_FOUND
    assert context_of(answer.choices[0].message) == {"citations": []}
    assert stand.provider.received(question) == []
    for answer_id in (answer.id, response.id):
        record = stand.headway.interaction(answer_id)
        assert (record["passages"], record["cited"], record["cost_usd"], record["status"]) == (0, False, 0.0, 200)


class Leave(pydantic.BaseModel):
    days: int


def test_structured_answers_and_refusals(stand: Stand, client: openai.OpenAI) -> None:
    """What the client's own parser makes of them: an object, or a refusal, as a model's own would be."""
    question = unique("How many days of annual leave do I have?")
    stand.provider.play("model", Behaviour(answer_text='{"days": 25}'), Behaviour(answer_text='{"days": 25}'))
    answer = client.chat.completions.parse(
        model="support", messages=[{"role": "user", "content": question}], response_format=Leave
    )
    assert answer.choices[0].message.parsed == Leave(days=25)
    assert context_of(answer.choices[0].message)["citations"][0]["document"] == "leave.md"
    response = client.responses.parse(model="support", input=question, text_format=Leave)
    assert response.output_parsed == Leave(days=25)
    assert annotations_of(response)[0].filename == "leave.md"

    refused = client.chat.completions.parse(
        model="payroll", messages=[{"role": "user", "content": question}], response_format=Leave
    )
    assert (refused.choices[0].message.parsed, refused.choices[0].message.refusal) == (None, NOTHING_FOUND)
    with client.chat.completions.stream(
        model="payroll", messages=[{"role": "user", "content": question}], response_format=Leave
    ) as stream:
        assert stream.get_final_completion().choices[0].message.refusal == NOTHING_FOUND
    with client.responses.stream(model="payroll", input=question, text_format=Leave) as responding:
        said: Any = responding.get_final_response()
    assert (said.output_parsed, said.output[0].content[0].refusal) == (None, NOTHING_FOUND)


@pytest.mark.parametrize("streamed", [False, True])
def test_azures_client(stand: Stand, streamed: bool) -> None:
    question = unique("How many days of annual leave do I have?")
    with openai.AzureOpenAI(
        azure_endpoint=stand.headway.url, api_key=stand.key, api_version="2024-10-21", max_retries=0
    ) as azure:
        answer: Any = azure.chat.completions.create(
            model="support", messages=[{"role": "user", "content": question}], stream=streamed
        )
        first = next(iter(answer)) if streamed else answer
        if streamed:
            answer.close()
    message = first.choices[0].delta if streamed else first.choices[0].message
    assert context_of(message)["citations"][0]["document"] == "leave.md"


def test_retrieval_is_measured_apart(stand: Stand) -> None:
    answer = stand.chat("support", unique("How many days of annual leave do I have?"))

    def is_counted() -> bool:
        text = call(f"{stand.headway.admin_url}/metrics", key=stand.headway.first_key).body.decode()
        names = ("headway_retrieval_seconds_count", "headway_context_tokens_total")
        return all(re.search(rf'^{name}{{application="support".*}} [1-9]', text, re.MULTILINE) for name in names)

    wait_for("the metrics of retrieval", is_counted, 15)
    record = stand.headway.interaction(answer.json["id"])
    assert record["overhead_ms"] + record["retrieval_ms"] <= record["total_ms"]


def test_a_labelled_document_is_for_its_group_alone(stand: Stand) -> None:
    """Not in answers, citations, search or logs of others."""
    hr = stand.headway.run_json("keys", "create", "hr", "--scope", "invoke")
    stand.headway.run("keys", "groups", str(hr["number"]), "hr")
    proxy = stand.headway.create_key("proxy", "--scope", "invoke", "--scope", "delegate")
    cases: list[tuple[str, dict[str, str], bool]] = [
        (stand.key, {}, False),
        (hr["key"], {}, True),
        (proxy, {}, False),
        (proxy, {"x-headway-groups": "it,hr"}, True),
        (proxy, {"x-headway-groups": "it"}, False),
    ]
    for key, headers, sees in cases:
        question = unique("What is the salary of a manager?")
        answer = stand.chat("support", question, key=key, headers=headers)
        streamed = stand.chat("support", f"{question}?", key=key, headers=headers, stream=True)
        search = {"application": "support", "query": question}
        searched = call(f"{stand.headway.base_url}/search", search, key=key, headers=headers)
        prompts = str([received.body for received in stand.provider.received(question)])
        assert (answer.status, streamed.status, searched.status) == (200, 200, 200)
        for text in (answer.body.decode(), streamed.body.decode(), searched.body.decode(), prompts):
            assert ("zanzibar" in text) is sees
        assert "zanzibar" not in str(stand.headway.interaction(answer.json["id"]))
    assert stand.chat("support", "hi", headers={"x-headway-groups": "hr"}).status == 403
    assert "zanzibar" not in stand.headway.log()


def test_an_application_without_an_index_has_no_citations(stand: Stand, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="plain", messages=[{"role": "user", "content": unique("hi")}])
    assert context_of(answer.choices[0].message) is None
    record = stand.headway.interaction(answer.id)
    assert record["retrieval_ms"] is record["passages"] is record["retrieved"] is None


@pytest.mark.fault
def test_a_search_that_hangs(stand: Stand) -> None:
    """A client that leaves meanwhile is let go at once; one that stays hears after a while; nobody else notices."""
    headway = stand.headway
    gone = (
        "SELECT status, aborted, retrieval_ms, total_ms FROM interaction WHERE request::text LIKE %s AND status = 499"
    )
    with psycopg.connect(headway.database_url) as connection:
        connection.execute("LOCK TABLE index_chunk IN ACCESS EXCLUSIVE MODE")
        question = unique("How many days of annual leave do I have?")
        with pytest.raises(TimeoutError):
            stand.chat("support", question, timeout_seconds=0.5)
        (left,) = wait_for("the record of who left", lambda: headway.rows(gone, f"%{question}%"), 3)
        assert left["aborted"]
        assert 300 < left["retrieval_ms"] <= left["total_ms"] < 2000
        began = time.monotonic()
        refused = stand.chat("support", question)
        assert (refused.status, refused.code, time.monotonic() - began < 6) == (503, "retrieval_timeout", True)
        assert int(refused.headers["retry-after"]) >= 1
        began = time.monotonic()
        assert stand.chat("plain", unique("hi")).status == 200
        assert time.monotonic() - began < 1
        assert stand.provider.received(question) == []
    assert stand.chat("support", question).status == 200


@pytest.mark.fault
def test_a_worker_is_killed_while_it_streams(stand: Stand) -> None:
    """The client of that stream hears of it; a new worker searches from its first request on."""
    headway = stand.headway
    before = headway.workers()
    slow = Behaviour(answer_text="Days [1] " * 40, inter_token_ms=Lognormal(100))
    question = unique("How many days of annual leave do I have?")
    stand.provider.play("model", slow)
    broken: list[Exception] = []
    with openai.OpenAI(base_url=headway.base_url, api_key=stand.key, max_retries=0) as leaving:
        stream = leaving.chat.completions.create(
            model="support", messages=[{"role": "user", "content": question}], stream=True
        )
        assert context_of(next(iter(stream)).choices[0].delta)["citations"][0]["document"] == "leave.md"
        for worker in before:
            if any(
                each.status == "ESTABLISHED" and each.laddr.port == headway.port for each in worker.net_connections()
            ):
                worker.kill()
        try:
            for _ in stream:
                pass
        except (openai.APIError, httpx.TransportError) as error:
            broken.append(error)
    assert broken
    serving = lambda: sum(map(headway.is_serving, headway.workers())) == len(before)  # noqa: E731
    wait_for("workers in the places of those killed", serving, 20)
    for _ in range(10):
        answer = stand.chat("support", unique("How many days of annual leave do I have?"))
        assert answer.json["choices"][0]["message"]["context"]["citations"][0]["document"] == "leave.md"
