"""The unmodified `langchain-openai`: invoke, stream, tools, structured output."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr

from tests.acceptance.stand import Stand, unique
from tests.acceptance.test_openai_python import Verdict


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"21 degrees in {city}"


@pytest.fixture
def model(stand: Stand) -> ChatOpenAI:
    return ChatOpenAI(
        model="support", base_url=stand.headway.base_url, api_key=SecretStr(stand.key), max_retries=0, stream_usage=True
    )


def answer_id(message: Any) -> str:
    """The id of an answer where LangChain keeps it; that of a streamed chat completion is only in the headers."""
    metadata = message.response_metadata
    found = metadata.get("id") or metadata.get("headers", {}).get("x-headway-interaction")
    assert isinstance(found, str), metadata
    return found


def test_invoke(stand: Stand, model: ChatOpenAI) -> None:
    """The id that LangChain returns attributes a rating."""
    message = model.invoke(unique("hello"))
    assert isinstance(message.content, str)
    stand.check_attribution(answer_id(message), text=message.content)
    assert message.usage_metadata is not None


def test_stream(stand: Stand, model: ChatOpenAI) -> None:
    """Streamed pieces add up to a message with, as LangChain asked for it, usage."""
    pieces = list(model.model_copy(update={"include_response_headers": True}).stream(unique("stream")))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    assert len(pieces) > 2
    assert isinstance(whole.content, str)
    stand.check_attribution(answer_id(whole), text=whole.content)
    assert isinstance(whole, AIMessage)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


def test_tools(stand: Stand, model: ChatOpenAI) -> None:
    """A tool call and its result, as an agent makes them; one conversation, one release."""
    armed = model.bind_tools([get_weather])
    question = HumanMessage(unique("weather?"))
    asked = armed.invoke([question])
    assert isinstance(asked, AIMessage)
    (tool_call,) = asked.tool_calls
    result = get_weather.invoke(tool_call)
    assert isinstance(result, ToolMessage)
    told = armed.invoke([question, asked, result])
    assert isinstance(told.content, str)
    release = stand.check_attribution(answer_id(told), text=told.content)
    stand.check_attribution(answer_id(asked), release=release)


def test_structured_output(stand: Stand, model: ChatOpenAI) -> None:
    """Structured output by JSON schema."""
    found = model.with_structured_output(Verdict).invoke(unique("polite?"))
    assert isinstance(found, Verdict)


def test_responses(stand: Stand, model: ChatOpenAI) -> None:
    """LangChain over the Responses API, continued by id."""
    responses = ChatOpenAI(
        model="support",
        base_url=stand.headway.base_url,
        api_key=SecretStr(stand.key),
        max_retries=0,
        use_responses_api=True,
        use_previous_response_id=True,
    )
    question = HumanMessage(unique("hello"))
    first = responses.invoke([question])
    second = responses.invoke([question, first, HumanMessage("and now?")])
    release = stand.check_attribution(answer_id(first), text=str(first.text))
    assert stand.check_attribution(answer_id(second), text=str(second.text)) == release


def test_embeddings(stand: Stand) -> None:
    """Embeddings, in batches."""
    embeddings = OpenAIEmbeddings(
        model="support",
        base_url=stand.headway.base_url,
        api_key=SecretStr(stand.key),
        max_retries=0,
        check_embedding_ctx_length=False,
    )
    assert len(embeddings.embed_documents(["one", "two", "three"])) == 3
