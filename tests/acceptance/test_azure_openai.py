"""The unmodified `AzureOpenAI` client, in front of deployments of either provider."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.acceptance.stand import Stand, unique
from tests.acceptance.test_openai_python import WEATHER, user

VERSION = "2024-10-21"


@pytest.fixture
def client(stand: Stand) -> Iterator[openai.AzureOpenAI]:
    with openai.AzureOpenAI(
        azure_endpoint=stand.headway.url, api_key=stand.key, api_version=VERSION, max_retries=0
    ) as opened:
        yield opened


def test_chat(stand: Stand, client: openai.AzureOpenAI) -> None:
    """The application is in the path, the key in `api-key`; the answer is rated by its id."""
    answer = client.chat.completions.create(model="support", messages=[user(unique("azure"))])
    stand.check_attribution(answer.id, text=answer.choices[0].message.content)


def test_stream(stand: Stand, client: openai.AzureOpenAI) -> None:
    """A stream carries the interaction id; Azure's opening chunk, which has no id, does not confuse anyone."""
    for application in ("support", "azure"):
        chunks = list(client.chat.completions.create(model=application, messages=[user(unique("stream"))], stream=True))
        (answer_id,) = {chunk.id for chunk in chunks}
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
        assert text
        stand.check_attribution(answer_id, release=stand.headway.interaction(answer_id)["release_name"])
        assert stand.headway.interaction(answer_id)["output_tokens"] > 0


def test_tools(stand: Stand, client: openai.AzureOpenAI) -> None:
    """A streamed tool call through an Azure deployment."""
    with client.chat.completions.stream(model="azure", messages=[user(unique("rain"))], tools=[WEATHER]) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.tool_calls
    stand.check_attribution(answer.id, release="first")


def test_azure_deployment(stand: Stand, client: openai.AzureOpenAI) -> None:
    """What Headway sends to Azure: the deployment in the path, the version in the query, the key in `api-key`."""
    question = unique("which path?")
    answer = client.chat.completions.create(model="azure", messages=[user(question)])
    stand.check_attribution(answer.id, release="first")
    (received,) = stand.provider.received(question)
    assert received.path == "/openai/deployments/azure-model/chat/completions"
    assert received.query == {"api-version": VERSION}
    assert received.headers["api-key"] == stand.provider_secret
    assert "authorization" not in received.headers
    question = unique("which one now?")
    client.chat.completions.create(model="azure-v1", messages=[user(question)])
    (received,) = stand.provider.received(question)
    assert (received.path, received.body["model"]) == ("/openai/v1/chat/completions", "azure-model")


def test_responses(stand: Stand, client: openai.AzureOpenAI) -> None:
    """Responses, continued and streamed, on the paths that Azure's client takes."""
    first = client.responses.create(model="support", input=unique("azure response"))
    release = stand.check_attribution(first.id, text=first.output_text)
    with client.responses.stream(model="support", input="more", previous_response_id=first.id) as stream:
        second = stream.get_final_response()
    assert second.previous_response_id == first.id
    assert stand.check_attribution(second.id, text=second.output_text) == release


def test_embeddings(stand: Stand, client: openai.AzureOpenAI) -> None:
    """Embeddings of either kind of deployment."""
    for application in ("support", "azure"):
        raw = client.embeddings.with_raw_response.create(model=application, input="one")
        assert raw.parse().data[0].embedding
        stand.check_attribution(raw.headers["x-headway-interaction"], release=raw.headers["x-headway-release"])


def test_versionless(stand: Stand) -> None:
    """The versionless `/openai/v1` API is the plain client with another base URL."""
    with openai.OpenAI(base_url=f"{stand.headway.url}/openai/v1", api_key=stand.key, max_retries=0) as client:
        answer = client.chat.completions.create(model="support", messages=[user(unique("v1"))])
        stand.check_attribution(answer.id, text=answer.choices[0].message.content)
        assert client.responses.create(model="support", input=unique("v1")).output_text
        assert client.embeddings.create(model="support", input="v1").data
        assert "support" in {model.id for model in client.models.list()}


def test_errors(stand: Stand, client: openai.AzureOpenAI) -> None:
    """Errors come in OpenAI's shape on Azure's paths too."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=[user("hello")])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(model="support", messages=[user("hello")])
