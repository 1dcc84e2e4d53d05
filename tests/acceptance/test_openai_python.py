"""The unmodified `openai` package, synchronous: everything that it can ask for, and what it makes of errors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import ToolParam

from headway.testing import Behaviour, Fault
from tests.acceptance.stand import BLUNT, KIND, Stand, unique

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    },
}
PIXEL = "data:image/png;base64," + base64.b64encode(b"\x89PNG not really").decode()


class Verdict(pydantic.BaseModel):
    """Structured output."""

    polite: bool
    reasons: list[str]


@pytest.fixture
def client(stand: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stand.headway.base_url, api_key=stand.key, max_retries=0) as opened:
        yield opened


def user(text: str) -> ChatCompletionMessageParam:
    return {"role": "user", "content": text}


def test_chat(stand: Stand, client: openai.OpenAI) -> None:
    """Both releases answer; each rating goes to the one that gave the answer."""
    met = set()
    for _ in range(40):
        raw = client.chat.completions.with_raw_response.create(model="support", messages=[user(unique("hello"))])
        answer = raw.parse()
        text = answer.choices[0].message.content
        assert text
        assert raw.headers["x-headway-interaction"] == answer.id
        release = stand.check_attribution(answer.id, text=text)
        assert raw.headers["x-headway-release"] == release
        assert answer.object == "chat.completion"
        assert answer.usage is not None
        record = stand.headway.interaction(answer.id)
        assert (record["input_tokens"], record["output_tokens"]) == (
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
        )
        assert record["cached_tokens"] == answer.usage.prompt_tokens_details.cached_tokens  # type: ignore[union-attr] # checked by it
        assert record["cost_usd"] > 0
        assert (record["provider_model"], record["provider_fingerprint"]) == ("chatty", "fp_headway")
        assert record["overhead_ms"] < record["total_ms"]
        met.add(release)
        if met == {KIND, BLUNT}:
            return
    raise AssertionError(f"only {met} answered 40 conversations at a share of 50%")


def test_stream(stand: Stand, client: openai.OpenAI) -> None:
    """A stream carries one id and no usage that nobody asked for; what it cost is recorded all the same."""
    chunks = list(client.chat.completions.create(model="support", messages=[user(unique("stream"))], stream=True))
    (answer_id,) = {chunk.id for chunk in chunks}
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    stand.check_attribution(answer_id, text=text)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    record = stand.headway.interaction(answer_id)
    assert record["stream"]
    assert record["output_tokens"] > 0
    assert record["cost_usd"] > 0
    assert 0 < record["first_token_ms"] <= record["total_ms"]
    assert json.loads(record["answer"])["choices"][0]["message"]["content"] == text


def test_stream_with_usage(stand: Stand, client: openai.OpenAI) -> None:
    """Who asks for usage gets it, once, at the end."""
    chunks = list(
        client.chat.completions.create(
            model="support", messages=[user(unique("usage"))], stream=True, stream_options={"include_usage": True}
        )
    )
    (answer_id,) = {chunk.id for chunk in chunks}
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == 1
    assert chunks[-1].usage is usages[0]
    record = stand.headway.interaction(answer_id)
    assert record["output_tokens"] == usages[0].completion_tokens


def test_stream_helper(stand: Stand, client: openai.OpenAI) -> None:
    """The client's own accumulation of a stream gives the recorded answer."""
    with client.chat.completions.stream(model="support", messages=[user(unique("helper"))]) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text
    stand.check_attribution(final.id, text=text)


def test_tools(stand: Stand, client: openai.OpenAI) -> None:
    """A tool is called, its result sent back; the whole conversation stays on one release."""
    messages: list[ChatCompletionMessageParam] = [user(unique("What is the weather in Zürich?"))]
    asked = client.chat.completions.create(model="support", messages=messages, tools=[WEATHER])
    message = asked.choices[0].message
    assert message.tool_calls
    (tool_call,) = message.tool_calls
    assert tool_call.type == "function"
    assert set(json.loads(tool_call.function.arguments)) == {"city", "days"}
    messages += [
        message.to_dict(),  # type: ignore[list-item] # the client's own way to send a message back
        {"role": "tool", "tool_call_id": tool_call.id, "content": '{"degrees": 21}'},
    ]
    told = client.chat.completions.create(model="support", messages=messages, tools=[WEATHER])
    release = stand.check_attribution(told.id, text=told.choices[0].message.content)
    stand.check_attribution(asked.id, release=release)
    first, second = stand.headway.interaction(asked.id), stand.headway.interaction(told.id)
    assert first["conversation"] == second["conversation"]
    assert first["finish_reason"] == "tool_calls"


def test_streamed_tools(stand: Stand, client: openai.OpenAI) -> None:
    """The pieces of a streamed tool call come through untouched and are recorded whole."""
    question = unique("Weather, streamed")
    with client.chat.completions.stream(model="support", messages=[user(question)], tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls
    (tool_call,) = final.choices[0].message.tool_calls
    arguments = tool_call.function.arguments
    assert "city" in json.loads(arguments)
    (received,) = stand.provider.received(question)
    assert received.body["tools"] == [WEATHER]
    record = stand.headway.interaction(final.id)
    stand.check_attribution(final.id, release=record["release_name"])
    (recorded,) = json.loads(record["answer"])["choices"][0]["message"]["tool_calls"]
    assert (recorded["id"], recorded["function"]["arguments"]) == (tool_call.id, arguments)


def test_structured_output(stand: Stand, client: openai.OpenAI) -> None:
    """An answer that must fit a schema comes back parsed."""
    answer = client.chat.completions.parse(
        model="support", messages=[user(unique("Was I polite?"))], response_format=Verdict
    )
    assert isinstance(answer.choices[0].message.parsed, Verdict)
    stand.check_attribution(answer.id, release=stand.headway.interaction(answer.id)["release_name"])


def test_choices_and_logprobs(stand: Stand, client: openai.OpenAI) -> None:
    """`n` and `logprobs` pass through; feedback can mean one of the choices."""
    answer = client.chat.completions.create(
        model="support", messages=[user(unique("three"))], n=3, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert stand.rate(answer.id, choice=2, value=False).status == 201
    assert stand.rate(answer.id, choice=0).status == 201
    feedback = {row["choice"]: row["number"] for row in stand.headway.feedback(answer.id)}
    assert feedback == {0: 1.0, 2: 0.0}


def test_streamed_choices(stand: Stand, client: openai.OpenAI) -> None:
    """The chunks of several choices, interleaved, all carry the id and end in as many recorded choices."""
    chunks = list(
        client.chat.completions.create(model="support", messages=[user(unique("two"))], n=2, stream=True, logprobs=True)
    )
    (answer_id,) = {chunk.id for chunk in chunks}
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    recorded = json.loads(stand.headway.interaction(answer_id)["answer"])["choices"]
    assert [choice["message"]["content"] for choice in recorded] == texts


def test_images(stand: Stand, client: openai.OpenAI) -> None:
    """An image in a message arrives at the provider as it was sent, and so do fields that nobody has heard of."""
    question = unique("What is this?")
    content: list[Any] = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
    ]
    answer = client.chat.completions.create(
        model="support",
        messages=[{"role": "user", "content": content}],
        seed=7,
        extra_body={"field_of_tomorrow": {"deep": [1, 2.5, "ü"]}},
    )
    (received,) = stand.provider.received(question)
    assert received.body["messages"][-1] == {"role": "user", "content": content}
    assert (received.body["seed"], received.body["field_of_tomorrow"]) == (7, {"deep": [1, 2.5, "ü"]})
    stand.check_attribution(answer.id, text=answer.choices[0].message.content)


def test_embeddings(stand: Stand, client: openai.OpenAI) -> None:
    """Embeddings come back decoded; their interaction id is in the header, for they have none of their own."""
    raw = client.embeddings.with_raw_response.create(model="support", input=["one", "two"])
    answer = raw.parse()
    assert [item.index for item in answer.data] == [0, 1]
    assert all(isinstance(item.embedding[0], float) for item in answer.data)
    release = stand.check_attribution(raw.headers["x-headway-interaction"], release=raw.headers["x-headway-release"])
    assert release in (KIND, BLUNT)
    record = stand.headway.interaction(raw.headers["x-headway-interaction"])
    assert (record["operation"], record["input_tokens"]) == ("embeddings", answer.usage.prompt_tokens)


def test_models(stand: Stand, client: openai.OpenAI) -> None:
    """Applications are listed as models, and for a key that may pin their releases too."""
    listed = {model.id for model in client.models.list()}
    assert {"support", f"support@{KIND}", f"support@{BLUNT}", "narrow", "narrow@first"} <= listed
    assert client.models.retrieve("support").id == "support"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


def test_pinned(stand: Stand, client: openai.OpenAI) -> None:
    """`application@release` asks for one release; its interactions are booked as pinned."""
    for release in (KIND, BLUNT):
        answer = client.chat.completions.create(model=f"support@{release}", messages=[user(unique("pin"))])
        assert stand.check_attribution(answer.id, text=answer.choices[0].message.content) == release
        record = stand.headway.interaction(answer.id)
        assert (record["rollout"], record["kind"]) == (0, 2)


RESPONSE_WEATHER: ToolParam = {
    "type": "function",
    "name": "get_weather",
    "parameters": WEATHER["function"]["parameters"],
    "strict": False,
}


def test_responses(stand: Stand, client: openai.OpenAI) -> None:
    """A response, its continuation, and one that streams, all of one conversation on one release."""
    question = unique("Tell me more")
    first = client.responses.create(model="support", input=question)
    release = stand.check_attribution(first.id, text=first.output_text)
    second = client.responses.create(model="support", input="and more", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert stand.check_attribution(second.id, text=second.output_text) == release
    with client.responses.stream(model="support", input="and then", previous_response_id=second.id) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        third = stream.get_final_response()
    assert (third.output_text, third.previous_response_id) == (text, second.id)
    assert stand.check_attribution(third.id, text=text) == release
    records = [stand.headway.interaction(each) for each in (first.id, second.id, third.id)]
    assert len({(record["conversation"], record["unit"]) for record in records}) == 1
    assert records[2]["input_tokens"] == third.usage.input_tokens  # type: ignore[union-attr] # the simulator reports it
    # The provider was asked for its own ids, and never saw one of ours.
    asked = stand.provider.received("previous_response_id")
    told = [each.body["previous_response_id"] for each in asked if each.body.get("previous_response_id")]
    assert records[0]["provider_id"] in told
    assert records[1]["provider_id"] in told
    assert not any(each.startswith("hw_") for each in told)


def test_responses_tools_and_structure(stand: Stand, client: openai.OpenAI) -> None:
    """Tools and structured output of the Responses API."""
    asked = client.responses.create(model="support", input=unique("weather"), tools=[RESPONSE_WEATHER])
    (tool_call,) = [item for item in asked.output if item.type == "function_call"]
    told = client.responses.create(
        model="support",
        input=[{"type": "function_call_output", "call_id": tool_call.call_id, "output": "21"}],
        previous_response_id=asked.id,
        tools=[RESPONSE_WEATHER],
    )
    release = stand.check_attribution(told.id, text=told.output_text)
    stand.check_attribution(asked.id, release=release)
    parsed = client.responses.parse(model="support", input=unique("polite?"), text_format=Verdict)
    assert isinstance(parsed.output_parsed, Verdict)


def test_errors_become_the_clients_own(stand: Stand, client: openai.OpenAI) -> None:
    """Each status becomes the exception class that users of the client catch."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=[user("hello")])
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert "support" in unknown.value.message  # names what there is
    with pytest.raises(openai.NotFoundError) as release:
        client.chat.completions.create(model="support@never", messages=[user("hello")])
    assert release.value.code == "release_not_found"
    with pytest.raises(openai.AuthenticationError) as stranger:
        client.with_options(api_key="hw-wrong").chat.completions.create(model="support", messages=[user("hello")])
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as conversation:
        client.chat.completions.create(
            model="support", messages=[user("hello")], extra_body={"metadata": {"conversation_id": 7}}
        )
    assert conversation.value.param == "metadata.conversation_id"
    with pytest.raises(openai.BadRequestError) as provider:  # the provider's own words about the client's mistake
        client.chat.completions.create(model="support", messages=[user("hello")], max_completion_tokens=-1)
    assert provider.value.param == "max_completion_tokens"
    with pytest.raises(openai.NotFoundError) as previous:
        client.responses.create(model="support", input="more", previous_response_id="resp_unheard_of")
    assert previous.value.code == "previous_response_not_found"


def test_limits_and_scopes_become_the_clients_own(stand: Stand, client: openai.OpenAI) -> None:
    """A key that may not, and a key that may not so often."""
    poster = stand.headway.create_key("poster", "--scope", "feedback")
    with pytest.raises(openai.PermissionDeniedError) as scope:
        client.with_options(api_key=poster).chat.completions.create(model="support", messages=[user("hello")])
    assert scope.value.code == "insufficient_scope"
    slow = client.with_options(api_key=stand.headway.create_key("slow", "--requests-per-minute", "1"))

    def ask_often() -> None:
        for _ in range(3):  # more than twice: a minute may end between two of them
            slow.chat.completions.create(model="support", messages=[user(unique("often"))])

    with pytest.raises(openai.RateLimitError) as limited:
        ask_often()
    assert limited.value.code == "rate_limit_exceeded"
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60


def test_provider_failures_become_the_clients_own(stand: Stand, client: openai.OpenAI) -> None:
    """A provider that breaks is a server error to the client, before a stream and in the middle of one."""
    stand.provider.play("fragile", Behaviour(fault=Fault.RESET_BEFORE_HEADERS))
    with pytest.raises(openai.InternalServerError) as broken:
        client.chat.completions.create(model="fragile", messages=[user(unique("break"))])
    assert broken.value.code == "provider_cut"
    stand.provider.play("fragile", Behaviour(fault=Fault.CLOSE_MID_STREAM))
    seen: list[ChatCompletionChunk] = []
    stream = client.chat.completions.create(model="fragile", messages=[user(unique("cut"))], stream=True)
    with pytest.raises(openai.APIError) as cut:
        seen.extend(stream)
    assert seen
    assert cut.value.code == "provider_cut"
    assert stand.headway.interaction(seen[0].id)["error"] == "provider_cut"
