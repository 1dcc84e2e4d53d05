"""The fixed answer of a release that answers only from passages, in every shape that OpenAI's types know."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from headway.gateway.parsing import ParsedRequest
from headway.gateway.refusals import NOTHING_FOUND, Refusal, wants_json
from tests.routes import ask
from tests.streams import payloads


def refusal(parsed: ParsedRequest, *, json_wanted: bool = False) -> Refusal:
    return Refusal(parsed, "hw_1", "support", 1_790_000_000, json_wanted)


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_refusal_is_a_chat_completion(include_usage: bool) -> None:
    whole = ChatCompletion.model_validate_json(refusal(ask()).whole(), strict=True)
    assert (whole.id, whole.model, whole.choices[0].message.content) == ("hw_1", "support", NOTHING_FOUND)
    assert whole.choices[0].message.context == {"citations": []}  # type: ignore[attr-defined] # an extra field
    parsed = ask(stream=True, stream_options={"include_usage": include_usage})
    *events, done = payloads(refusal(parsed).streamed())
    chunks = [ChatCompletionChunk.model_validate(each, strict=True) for each in events]
    assert done == "[DONE]"
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == NOTHING_FOUND
    assert chunks[2].choices[0].finish_reason == "stop"
    assert (chunks[-1].usage is not None) is include_usage


def test_a_refusal_is_a_response() -> None:
    whole = Response.model_validate_json(refusal(ask("responses")).whole())
    assert (whole.id, whole.status, whole.output_text) == ("hw_1", "completed", NOTHING_FOUND)
    events: list[Any] = [
        TypeAdapter(ResponseStreamEvent).validate_python(each)
        for each in payloads(refusal(ask("responses", stream=True)).streamed())
    ]
    assert [each.sequence_number for each in events] == list(range(9))
    assert events[-1].response.output_text == NOTHING_FOUND


def test_where_json_is_wanted_a_refusal_is_one_in_the_apis_sense() -> None:
    chat = ChatCompletion.model_validate_json(refusal(ask(), json_wanted=True).whole(), strict=True)
    assert (chat.choices[0].message.content, chat.choices[0].message.refusal) == (None, NOTHING_FOUND)
    *events, _ = payloads(refusal(ask(stream=True), json_wanted=True).streamed())
    chunks = [ChatCompletionChunk.model_validate(each, strict=True) for each in events]
    assert "".join(each.choices[0].delta.refusal or "" for each in chunks) == NOTHING_FOUND
    assert not any(each.choices[0].delta.content for each in chunks)
    response: Any = Response.model_validate_json(refusal(ask("responses"), json_wanted=True).whole())
    assert (response.output_text, response.output[0].content[0].refusal) == ("", NOTHING_FOUND)
    told: list[Any] = [
        TypeAdapter(ResponseStreamEvent).validate_python(each)
        for each in payloads(refusal(ask("responses", stream=True), json_wanted=True).streamed())
    ]
    assert [each.type for each in told[4:6]] == ["response.refusal.delta", "response.refusal.done"]
    assert (told[4].delta, told[5].refusal) == (NOTHING_FOUND, NOTHING_FOUND)


@pytest.mark.parametrize(
    ("operation", "fields", "wanted"),
    [
        ("chat", {}, False),
        ("chat", {"response_format": None}, False),
        ("chat", {"response_format": {"type": "text"}}, False),
        ("chat", {"response_format": {"type": "json_object"}}, True),
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, True),
        ("chat", {"response_format": 5}, False),
        ("responses", {"text": {"verbosity": "low"}}, False),
        ("responses", {"text": {"format": {"type": "text"}}}, False),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "a"}}}, True),
        ("responses", {"text": []}, False),
    ],
)
def test_whether_json_is_wanted(operation: Any, fields: dict[str, Any], wanted: bool) -> None:
    assert (
        wants_json(operation, {name: msgspec.Raw(msgspec.json.encode(each)) for name, each in fields.items()}) is wanted
    )
