"""The unmodified `openai` package, asynchronous, with many conversations at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from tests.acceptance.stand import BLUNT, KIND, Stand, unique
from tests.acceptance.test_openai_python import RESPONSE_WEATHER, WEATHER, Verdict, user


@pytest.fixture
async def client(stand: Stand) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=stand.headway.base_url, api_key=stand.key, max_retries=0) as opened:
        yield opened


async def test_many_at_once(stand: Stand, client: openai.AsyncOpenAI) -> None:
    """Forty streams side by side: none is mixed up with another, each is recorded under the release that gave it."""

    async def converse(number: int) -> tuple[str, str]:
        stream = await client.chat.completions.create(
            model="support", messages=[user(unique(f"number {number}"))], stream=True
        )
        ids, text = set(), ""
        async for chunk in stream:
            ids.add(chunk.id)
            text += chunk.choices[0].delta.content or ""
        (answer_id,) = ids
        return answer_id, text

    answers = await asyncio.gather(*(converse(number) for number in range(40)))
    assert len({answer_id for answer_id, _ in answers}) == 40
    releases = {await asyncio.to_thread(stand.check_attribution, answer_id, text=text) for answer_id, text in answers}
    assert releases == {KIND, BLUNT}


async def test_tools_and_structure(stand: Stand, client: openai.AsyncOpenAI) -> None:
    """Tools, JSON and streamed, and structured output."""
    whole = await client.chat.completions.create(model="support", messages=[user(unique("rain?"))], tools=[WEATHER])
    assert whole.choices[0].message.tool_calls
    async with client.chat.completions.stream(
        model="support", messages=[user(unique("snow?"))], tools=[WEATHER]
    ) as stream:
        streamed = await stream.get_final_completion()
    assert streamed.choices[0].message.tool_calls
    for answer_id in (whole.id, streamed.id):
        stand.check_attribution(answer_id, release=stand.headway.interaction(answer_id)["release_name"])
    parsed = await client.chat.completions.parse(
        model="support", messages=[user(unique("polite?"))], response_format=Verdict
    )
    assert isinstance(parsed.choices[0].message.parsed, Verdict)


async def test_responses(stand: Stand, client: openai.AsyncOpenAI) -> None:
    """A response and its streamed continuation, with a tool in between."""
    first = await client.responses.create(model="support", input=unique("weather"), tools=[RESPONSE_WEATHER])
    (tool_call,) = [item for item in first.output if item.type == "function_call"]
    async with client.responses.stream(
        model="support",
        input=[{"type": "function_call_output", "call_id": tool_call.call_id, "output": "21"}],
        previous_response_id=first.id,
    ) as stream:
        second = await stream.get_final_response()
    release = stand.check_attribution(second.id, text=second.output_text)
    stand.check_attribution(first.id, release=release)


async def test_embeddings_and_errors(stand: Stand, client: openai.AsyncOpenAI) -> None:
    """Embeddings; and an unknown application is the exception that users catch."""
    answer = await client.embeddings.create(model="support", input="one", encoding_format="float")
    assert isinstance(answer.data[0].embedding[0], float)
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nobody", messages=[user("hello")], stream=True)


async def test_leaving_a_stream(stand: Stand, client: openai.AsyncOpenAI) -> None:
    """A client that closes its stream is recorded as gone; the provider's work is not paid for to the end."""
    stream = await client.chat.completions.create(
        model="support", messages=[user(unique("leave"))], stream=True, max_completion_tokens=3
    )
    chunk = await anext(aiter(stream))
    await stream.close()
    record = await asyncio.to_thread(stand.headway.interaction, chunk.id)
    assert record["stream"]
    assert record["status"] in (200, 499)
