"""Calls to Azure AI Search over real sockets: what is sent, what is tried again, what is told, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from headway.clock import ManualClock, SystemClock
from headway.config.azure_search import AzureSearchSpec
from headway.errors import (
    ConfigurationError,
    NotFoundError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from headway.providers import azure_search
from headway.providers.azure_search import SCOPE, SearchServices
from headway.providers.credentials import Credentials
from headway.testing import refusing_port
from headway.testing.search_service import Scripted, SearchServiceSimulator

DEFINITION: dict[str, Any] = {
    "name": "handbook-1",
    "fields": [
        {"name": "id", "type": "Edm.String", "key": True},
        {"name": "content", "type": "Edm.String", "filterable": False, "sortable": False, "facetable": False},
        {"name": "department", "type": "Edm.String", "searchable": False},
    ],
}


class Tokens:
    """Gives Entra tokens for the scopes that it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def get_token(self, *scopes: str) -> Any:
        self.asked += scopes
        return SimpleNamespace(token="entra-token", expires_on=4e9)

    async def close(self) -> None:
        pass


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
async def services(tokens: Tokens) -> AsyncIterator[SearchServices]:
    opened = SearchServices(Credentials(SystemClock(), tokens), SystemClock())
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def simulator(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SearchServiceSimulator]:
    monkeypatch.setenv("SEARCH_KEY", "admin-key")
    async with SearchServiceSimulator(tokens=["entra-token"]) as opened:
        yield opened


@pytest.fixture
async def spec(simulator: SearchServiceSimulator, services: SearchServices) -> AzureSearchSpec:
    """A service that has an index."""
    found = AzureSearchSpec(simulator.endpoint, api_key="env:SEARCH_KEY")
    await services.put_index(found, DEFINITION)
    simulator.calls.clear()
    return found


def document(key: str, content: str = "text") -> dict[str, Any]:
    return {"id": key, "content": content, "department": None}


async def search(services: SearchServices, spec: AzureSearchSpec, *, seconds: float = 5.0, **more: Any) -> Any:
    return await services.search(spec, "handbook-1", {"search": "text", **more}, seconds=seconds)


class TestAuthentication:
    async def test_a_key_goes_into_its_header(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator
    ) -> None:
        await search(services, spec)
        (call,) = simulator.calls
        assert call.headers["api-key"] == "admin-key"
        assert "Authorization" not in call.headers

    async def test_entra_gives_a_token_for_the_service(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator, tokens: Tokens
    ) -> None:
        await search(services, AzureSearchSpec(spec.endpoint, auth="entra"))
        (call,) = simulator.calls
        assert call.headers["Authorization"] == "Bearer entra-token"
        assert "api-key" not in call.headers
        assert tokens.asked == [SCOPE] == ["https://search.azure.com/.default"]

    @pytest.mark.parametrize(
        ("endpoint", "scope"),
        [
            ("https://c.search.windows.net", SCOPE),
            ("https://c.search.azure.us", "https://search.azure.us/.default"),
            ("https://c.search.azure.cn", "https://search.azure.cn/.default"),
            ("https://c.search.azure.us.example", SCOPE),
        ],
    )
    def test_each_cloud_has_tokens_of_its_own(self, endpoint: str, scope: str) -> None:
        assert azure_search.choose_scope(endpoint) == scope

    async def test_a_rotated_key_is_read_again(
        self, simulator: SearchServiceSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = ManualClock()
        services = SearchServices(Credentials(clock), clock)
        await services.start()
        found = AzureSearchSpec(simulator.endpoint, api_key="env:SEARCH_KEY")
        await services.put_index(found, DEFINITION)
        monkeypatch.setenv("SEARCH_KEY", "query-key")
        clock.advance(6)
        with pytest.raises(ConfigurationError, match="403"):
            await services.delete_index(found, "handbook-1")
        await services.close()

    @pytest.mark.parametrize("status", [401, 403])
    async def test_a_refusal_says_what_to_look_at(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator, status: int
    ) -> None:
        simulator.script("search.post.search", Scripted(status, "no"))
        with pytest.raises(ConfigurationError, match=f"answers {status}: no; is the key, or the role"):
            await search(services, spec)
        assert len(simulator.calls) == 1

    async def test_a_secret_that_is_missing_is_told(self, services: SearchServices, spec: AzureSearchSpec) -> None:
        with pytest.raises(ConfigurationError, match="env:NOWHERE: the environment variable is not set"):
            await search(services, AzureSearchSpec(spec.endpoint, api_key="env:NOWHERE"))


class TestTryingAgain:
    @pytest.mark.parametrize("status", [0, 429, 500, 503])
    async def test_what_may_pass(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator, status: int
    ) -> None:
        simulator.script("search.post.search", Scripted(status), Scripted(status))
        assert await search(services, spec) == []
        assert len(simulator.calls) == 3

    async def test_not_longer_than_there_is_time(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator
    ) -> None:
        simulator.script("search.post.search", Scripted(503, headers={"Retry-After": "30"}))
        with pytest.raises(ProviderUnavailableError, match="503") as raised:
            await search(services, spec)
        assert raised.value.retry_after_seconds == 30
        assert len(simulator.calls) == 1

    async def test_a_service_that_hangs(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator
    ) -> None:
        simulator.hang()
        with pytest.raises(ProviderTimeoutError, match="does not answer in time"):
            await search(services, spec, seconds=0.3)

    async def test_nobody_there(self, services: SearchServices, spec: AzureSearchSpec) -> None:
        with refusing_port() as port:
            there = AzureSearchSpec(f"http://127.0.0.1:{port}", api_key="env:SEARCH_KEY")
            with pytest.raises(ProviderUnavailableError, match="cannot be reached"):
                await search(services, there, seconds=0.1)


class TestIndexes:
    async def test_making_reading_counting_deleting(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator
    ) -> None:
        assert (await services.get_index(spec, "handbook-1"))["@odata.etag"]
        await services.put_index(spec, DEFINITION)  # harmless
        await services.upload(spec, "handbook-1", [document("1"), document("2")])
        assert await services.count(spec, "handbook-1") == 2
        await services.delete_index(spec, "handbook-1")
        await services.delete_index(spec, "handbook-1")  # harmless too
        with pytest.raises(NotFoundError, match="404: The index 'handbook-1' was not found"):
            await services.get_index(spec, "handbook-1")

    async def test_a_definition_that_the_service_refuses(self, services: SearchServices, spec: AzureSearchSpec) -> None:
        wrong = {"name": "other", "fields": [{"name": "id", "type": "Edm.String", "key": True, "colour": "red"}]}
        with pytest.raises(ConfigurationError, match="400: The property 'colour' does not exist"):
            await services.put_index(spec, wrong)


class TestUploads:
    async def test_as_many_batches_as_the_service_asks_for(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator
    ) -> None:
        await services.upload(spec, "handbook-1", [document(str(number)) for number in range(2500)])
        assert [len(call.body["value"]) for call in simulator.calls] == [1000, 1000, 500]
        simulator.calls.clear()
        large = "x" * (5 * 2**20)
        await services.upload(spec, "handbook-1", [document(str(number), large) for number in range(3)])
        assert [len(call.body["value"]) for call in simulator.calls] == [2, 1]
        assert len(simulator.indexes["handbook-1"].documents) == 2500

    @pytest.mark.parametrize("status", [409, 422, 503])
    async def test_documents_that_the_service_was_too_busy_for_are_sent_again(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator, status: int
    ) -> None:
        simulator.fail_document("3", status, times=2)
        simulator.fail_document("5", status)
        await services.upload(spec, "handbook-1", [document(str(number)) for number in range(10)])
        sent = [[each["id"] for each in call.body["value"]] for call in simulator.calls]
        assert [len(each) for each in sent] == [10, 2, 1]
        assert sent[1:] == [["3", "5"], ["3"]]
        assert len(simulator.indexes["handbook-1"].documents) == 10

    async def test_a_document_that_it_refuses_is_named(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator
    ) -> None:
        simulator.fail_document("3", 400)
        with pytest.raises(ConfigurationError, match="refuses the document '3': scripted 400"):
            await services.upload(spec, "handbook-1", [document("3"), document("4")])

    async def test_a_document_that_stays_refused_ends_it_in_time(
        self,
        services: SearchServices,
        spec: AzureSearchSpec,
        simulator: SearchServiceSimulator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(azure_search, "_WORK_SECONDS", 0.0)
        simulator.fail_document("3", 503, times=100)
        with pytest.raises(ProviderUnavailableError, match="too busy to take 1 documents"):
            await services.upload(spec, "handbook-1", [document("3"), document("4")])

    @pytest.mark.parametrize(
        "body", [b'{"value": []}', b'{"value": [{"key": "9", "status": true, "statusCode": 200}]}']
    )
    async def test_each_document_is_answered_for(
        self, services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator, body: bytes
    ) -> None:
        simulator.script("search.index", Scripted(200, body=body))
        with pytest.raises(ProviderError, match="says not of each document"):
            await services.upload(spec, "handbook-1", [document("3")])


class TestTheSimulator:
    """It refuses what the documented format does not allow."""

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ({"tops": 3}, "The property 'tops' does not exist on type 'SearchRequest'"),
            ({"top": "3"}, "top: wrong type"),
            ({"searchMode": "some"}, "searchMode: 'some' is not supported"),
            ({"select": "colour"}, "could not find a property named 'colour'"),
            ({"searchFields": "department"}, "'department' is not a searchable field"),
            ({"filter": "content eq 'x'"}, "content is not a filterable field"),
            ({"filter": "department eq 3"}, "incompatible types"),
            ({"filter": "department eq 'it's'"}, "Invalid expression"),
            ({"filter": "department = 'x'"}, "Invalid expression"),
            ({"vectorQueries": [{"kind": "vector", "vector": [1.0], "fields": "content"}]}, "is no vector field"),
            ({"queryType": "semantic", "semanticConfiguration": "x"}, "unknown semantic configuration"),
        ],
    )
    async def test_searches(
        self, services: SearchServices, spec: AzureSearchSpec, request_: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"answers 400: ") as raised:
            await search(services, spec, **request_)
        assert message in raised.value.message

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"id": "a/b"}, "invalid document key"),
            ({"id": "_a"}, "invalid document key"),
            ({"id": "a", "colour": "red"}, "The property 'colour' does not exist"),
            ({"id": "a", "content": 3}, "cannot convert the value to Edm.String"),
            ({"id": "a", "department": "x" * 40_000}, "the term is longer than"),
        ],
    )
    async def test_documents(
        self, services: SearchServices, spec: AzureSearchSpec, wrong: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            await services.upload(spec, "handbook-1", [wrong])


async def test_callers_who_leave_leave_nothing_open(
    services: SearchServices, spec: AzureSearchSpec, simulator: SearchServiceSimulator
) -> None:
    simulator.hang()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(search(services, spec), 0.2)
    simulator.go_on()
    assert await search(services, spec) == []
