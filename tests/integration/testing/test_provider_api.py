"""The simulator speaks OpenAI's API: judged by OpenAI's own client, with strict validation of all it gets."""

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jsonschema_rs
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from headway.testing import Behaviour, Lognormal, ProviderSimulator, read_quality

_HELLO: list[Any] = [{"role": "user", "content": "hello"}]
_WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
_TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": _WEATHER}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.fixture
async def client(provider: ProviderSimulator) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=provider.base_url, api_key="any", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


async def _chunks(client: openai.AsyncOpenAI, **asked: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(model="m", messages=_HELLO, stream=True, **asked)
    return [chunk async for chunk in stream]


async def _raw_events(provider: ProviderSimulator, path: str, body: dict[str, Any]) -> list[str]:
    async with aiohttp.ClientSession() as session, session.post(provider.azure_endpoint + path, json=body) as answer:
        text = await answer.text()
        assert answer.content_type == "text/event-stream"
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


class TestChat:
    async def test_answers_with_a_complete_body(self, client: openai.AsyncOpenAI, provider: ProviderSimulator) -> None:
        answer = await client.chat.completions.create(model="m", messages=_HELLO, extra_body={"colour": "blue"})
        choice = answer.choices[0]
        assert choice.message.content
        assert choice.finish_reason == "stop"
        assert answer.model == "m"
        assert answer.system_fingerprint == "fp_headway"
        usage = answer.usage
        assert usage is not None
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == 0
        received = provider.received[0]
        assert received.answer_id == answer.id
        assert received.body["colour"] == "blue"
        assert received.headers["authorization"] == "Bearer any"

    async def test_streams_the_same_text_that_it_would_send_whole(self) -> None:
        texts = []
        for stream in (False, True):
            async with (
                ProviderSimulator({"m": Behaviour()}, seed=7) as simulator,
                openai.AsyncOpenAI(base_url=simulator.base_url, api_key="any") as client,
            ):
                if stream:
                    chunks = await _chunks(client)
                    texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
                else:
                    answer = await client.chat.completions.create(model="m", messages=_HELLO)
                    texts.append(answer.choices[0].message.content or "")
        assert texts[0] == texts[1] != ""

    async def test_usage_comes_in_an_extra_last_chunk_only_when_asked_for(self, provider: ProviderSimulator) -> None:
        asked = {"model": "m", "messages": _HELLO, "stream": True}
        *plain, done = await _raw_events(provider, "/v1/chat/completions", asked)
        assert done == "[DONE]"
        assert all("usage" not in json.loads(event) for event in plain)
        assert all(json.loads(event)["choices"] for event in plain)
        asked["stream_options"] = {"include_usage": True}
        *chunks, last, done = await _raw_events(provider, "/v1/chat/completions", asked)
        assert done == "[DONE]"
        assert all(json.loads(event)["usage"] is None for event in chunks)
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "stop"
        assert json.loads(last)["choices"] == []
        usage = json.loads(last)["usage"]
        assert usage["completion_tokens"] == len(chunks) - 2

    async def test_a_server_may_report_no_usage_even_when_asked(self, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(reports_usage=False))
        asked = {"model": "m", "messages": _HELLO, "stream": True, "stream_options": {"include_usage": True}}
        *chunks, _ = await _raw_events(provider, "/v1/chat/completions", asked)
        assert all("usage" not in json.loads(event) for event in chunks)

    async def test_n_choices_are_interleaved_in_a_stream(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=_HELLO, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert len({choice.message.content for choice in answer.choices}) == 3
        chunks = await _chunks(client, n=3)
        assert [chunk.choices[0].index for chunk in chunks[:6]] == [0, 1, 2, 0, 1, 2]
        finished = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason]
        assert sorted(finished) == [0, 1, 2]

    async def test_logprobs_cover_the_text(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=_HELLO, logprobs=True, top_logprobs=2)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
        assert all(len(token.top_logprobs) == 2 and math.exp(token.logprob) <= 1 for token in logprobs.content)
        chunks = await _chunks(client, logprobs=True)
        assert all(chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].delta.content)

    async def test_calls_tools_and_then_answers(self, client: openai.AsyncOpenAI, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(tool_calls=2))
        answer = await client.chat.completions.create(model="m", messages=_HELLO, tools=_TOOLS)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        calls = choice.message.tool_calls
        assert calls is not None
        assert [call.function.name for call in calls if call.type == "function"] == ["weather", "time"]
        for call in calls:
            assert call.type == "function"
            if call.function.name == "weather":
                jsonschema_rs.validate(_WEATHER, json.loads(call.function.arguments))
        results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
        messages = [*_HELLO, choice.message.model_dump(exclude_none=True), *results]
        answer = await client.chat.completions.create(model="m", messages=messages, tools=_TOOLS)
        assert answer.choices[0].message.content

    async def test_streams_tool_calls_in_fragments(self, client: openai.AsyncOpenAI) -> None:
        names, arguments = [], ""
        chunks = await _chunks(client, tools=_TOOLS, tool_choice="required")
        for chunk in chunks:
            for call in chunk.choices[0].delta.tool_calls or ():
                assert call.function is not None
                if call.id:
                    names.append(call.function.name)
                arguments += call.function.arguments or ""
        assert names == ["weather"]
        jsonschema_rs.validate(_WEATHER, json.loads(arguments))
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    async def test_a_named_tool_is_called_and_none_is_respected(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="m", messages=_HELLO, tools=_TOOLS, tool_choice={"type": "function", "function": {"name": "time"}}
        )
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        assert [call.function.name for call in calls if call.type == "function"] == ["time"]
        assert answer.choices[0].finish_reason == "stop"
        answer = await client.chat.completions.create(model="m", messages=_HELLO, tools=_TOOLS, tool_choice="none")
        assert answer.choices[0].message.content

    async def test_structured_output_fits_its_schema(self, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="m",
            messages=_HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": _WEATHER, "strict": True}},
        )
        jsonschema_rs.validate(_WEATHER, json.loads(answer.choices[0].message.content or ""))
        answer = await client.chat.completions.create(
            model="m", messages=_HELLO, response_format={"type": "json_object"}
        )
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)

    async def test_refuses_filters_and_cuts(self, client: openai.AsyncOpenAI, provider: ProviderSimulator) -> None:
        provider.play("m", Behaviour(refusal_ratio=1), Behaviour(refusal_ratio=1), Behaviour(content_filter_ratio=1))
        answer = await client.chat.completions.create(model="m", messages=_HELLO)
        assert answer.choices[0].message.content is None
        assert answer.choices[0].message.refusal
        chunks = await _chunks(client)
        assert "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks) == answer.choices[0].message.refusal
        answer = await client.chat.completions.create(model="m", messages=_HELLO)
        assert answer.choices[0].finish_reason == "content_filter"
        answer = await client.chat.completions.create(model="m", messages=_HELLO, max_completion_tokens=2)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 2

    async def test_token_counts_are_scripted(self, client: openai.AsyncOpenAI, provider: ProviderSimulator) -> None:
        behaviour = Behaviour(answer_tokens=Lognormal(50), prompt_tokens=1000, cached_ratio=0.6, reasoning_tokens=30)
        provider.set_behaviour("m", behaviour)
        answer = await client.chat.completions.create(model="m", messages=_HELLO)
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.completion_tokens_details is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (1000, 80)
        assert usage.prompt_tokens_details.cached_tokens == 600
        assert usage.completion_tokens_details.reasoning_tokens == 30

    async def test_quality_is_written_into_the_text(
        self, client: openai.AsyncOpenAI, provider: ProviderSimulator
    ) -> None:
        provider.set_behaviour("m", Behaviour(quality=0.5, quality_by_prompt={"Be kind": 0.9}))
        answer = await client.chat.completions.create(model="m", messages=_HELLO)
        assert read_quality(answer.choices[0].message.content or "") == 0.5
        kind: list[Any] = [{"role": "system", "content": "Be kind and brief."}, *_HELLO]
        answer = await client.chat.completions.create(model="m", messages=kind)
        assert read_quality(answer.choices[0].message.content or "") == 0.9

    @pytest.mark.parametrize(
        "style",
        [
            Behaviour(write_bytes=3),
            Behaviour(crlf=True, comments=True),
            Behaviour(spaced_json=True, obfuscation=True),
            Behaviour(event_tokens=5, answer_tokens=Lognormal(5000)),
        ],
    )
    async def test_other_ways_to_write_a_stream_read_the_same(
        self, client: openai.AsyncOpenAI, provider: ProviderSimulator, style: Behaviour
    ) -> None:
        provider.set_behaviour("m", style)
        chunks = await _chunks(client, stream_options={"include_usage": True})
        assert chunks[-1].usage is not None
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert len(text.split()) >= chunks[-1].usage.completion_tokens * 0.9


class TestResponses:
    async def test_answers_stores_and_continues(self, client: openai.AsyncOpenAI, provider: ProviderSimulator) -> None:
        first = await client.responses.create(model="m", input="hello", instructions="Be brief.")
        assert first.output_text
        assert first.status == "completed"
        assert first.instructions == "Be brief."
        assert (await client.responses.retrieve(first.id)).output_text == first.output_text
        second = await client.responses.create(model="m", input="and then?", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert first.usage is not None
        assert second.usage is not None
        assert second.usage.input_tokens > first.usage.total_tokens
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)

    async def test_unknown_and_unstored_responses_cannot_be_continued(self, client: openai.AsyncOpenAI) -> None:
        unstored = await client.responses.create(model="m", input="hello", store=False)
        for response_id in ("resp_unknown", unstored.id):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.create(model="m", input="hello", previous_response_id=response_id)
            assert caught.value.code == "previous_response_not_found"
            assert caught.value.param == "previous_response_id"

    async def test_streams_typed_events(self, client: openai.AsyncOpenAI) -> None:
        stream = await client.responses.create(model="m", input="hello", stream=True)
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        assert kinds[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert kinds[-4:] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
        assert set(kinds[4:-4]) == {"response.output_text.delta"}
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        last = events[-1]
        assert last.type == "response.completed"
        assert last.response.output_text == text
        assert last.response.usage is not None
        assert last.response.usage.output_tokens == len(kinds) - 8

    async def test_calls_tools_and_then_answers(self, client: openai.AsyncOpenAI) -> None:
        tools: list[Any] = [{"type": "function", "name": "weather", "parameters": _WEATHER, "strict": True}]
        answer = await client.responses.create(model="m", input="hello", tools=tools)
        call = answer.output[0]
        assert call.type == "function_call"
        jsonschema_rs.validate(_WEATHER, json.loads(call.arguments))
        result: list[Any] = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
        answer = await client.responses.create(model="m", input=result, tools=tools, previous_response_id=answer.id)
        assert answer.output_text
        stream = await client.responses.create(model="m", input="hello", tools=tools, stream=True)
        events = [event async for event in stream]
        deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
        jsonschema_rs.validate(_WEATHER, json.loads(deltas))

    async def test_structured_output_refusals_and_limits(
        self, client: openai.AsyncOpenAI, provider: ProviderSimulator
    ) -> None:
        wanted: Any = {"format": {"type": "json_schema", "name": "w", "schema": _WEATHER}}
        answer = await client.responses.create(model="m", input="hello", text=wanted)
        jsonschema_rs.validate(_WEATHER, json.loads(answer.output_text))
        answer = await client.responses.create(model="m", input="hello", max_output_tokens=2)
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        stream = await client.responses.create(model="m", input="hello", max_output_tokens=2, stream=True)
        assert [event.type async for event in stream][-1] == "response.incomplete"
        provider.set_behaviour("m", Behaviour(refusal_ratio=1))
        stream = await client.responses.create(model="m", input="hello", stream=True)
        events = [event async for event in stream]
        refusal = "".join(event.delta for event in events if event.type == "response.refusal.delta")
        assert refusal
        answer = await client.responses.create(model="m", input="hello")
        assert answer.output[0].model_dump()["content"][0]["refusal"] == refusal


class TestOthers:
    async def test_embeddings_of_similar_texts_are_similar(self, client: openai.AsyncOpenAI) -> None:
        # The client asks for base64 and decodes it after its validation, which therefore cannot be strict.
        client = client.with_options(_extra_kwargs={"_strict_response_validation": False})
        texts = ["reset the password", "how to reset a password", "shipping costs to Norway"]
        answer = await client.embeddings.create(model="m", input=texts, dimensions=256)
        vectors = [item.embedding for item in answer.data]
        assert [len(vector) for vector in vectors] == [256] * 3
        near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
        assert near > far + 0.2
        plain = await client.embeddings.create(model="m", input=texts[0], dimensions=256, encoding_format="float")
        assert plain.data[0].embedding == pytest.approx(vectors[0], abs=1e-6)
        assert answer.usage.prompt_tokens > 0

    async def test_models_are_listed(self, client: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == ["m"]
        assert (await client.models.retrieve("m")).id == "m"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")

    async def test_speaks_azure(self, provider: ProviderSimulator) -> None:
        provider.set_behaviour("deployment", Behaviour(answers_as="gpt-5-mini-2025-08-07"))
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=provider.azure_endpoint,
            api_key="secret",
            api_version="2024-10-21",
            _strict_response_validation=True,
        ) as client:
            answer = await client.chat.completions.create(model="deployment", messages=_HELLO)
            assert answer.model == "gpt-5-mini-2025-08-07"
            received = provider.received[0]
            assert received.path == "/openai/deployments/deployment/chat/completions"
            assert received.query == {"api-version": "2024-10-21"}
            assert received.model == "deployment"
            assert received.headers["api-key"] == "secret"
            asked = {"messages": _HELLO, "stream": True}
            path = "/openai/deployments/deployment/chat/completions?api-version=1"
            first, *_ = await _raw_events(provider, path, asked)
            assert json.loads(first)["choices"] == []
            assert json.loads(first)["prompt_filter_results"]
            embedded = await client.embeddings.create(model="deployment", input="hello", encoding_format="float")
            assert len(embedded.data[0].embedding) == 1536
        async with openai.AsyncOpenAI(base_url=f"{provider.azure_endpoint}/openai/v1/", api_key="token") as plain:
            response = await plain.responses.create(model="deployment", input="hello")
            assert response.model == "gpt-5-mini-2025-08-07"
