"""Searches in Azure AI Search that fail: what is tried again, what is told, and to whom."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from headway.domain.release import Retrieval
from headway.errors import RetrievalError
from headway.providers.azure_search import SearchServices
from headway.retrieval.building import Tools
from headway.retrieval.retriever import VersionRetriever
from headway.storage.database import Database
from headway.testing.search_service import Scripted, SearchServiceSimulator
from tests.search_services import (
    build,
    built_in,
    found,
    open_retriever,
    write_handbook,
)


@pytest.fixture
async def ready(tools: Tools, service: SearchServiceSimulator, tmp_path: Path) -> SearchServiceSimulator:
    write_handbook(tmp_path)
    await build(tools, built_in(service, tmp_path))
    service.calls.clear()
    return service


async def test_a_moment_of_load_is_tried_again(retriever: VersionRetriever, ready: SearchServiceSimulator) -> None:
    ready.script("search.post.search", Scripted(503), Scripted(0), Scripted(429, headers={"Retry-After": "0"}))
    assert (await found(retriever, "annual leave"))[0].document == "leave.md"
    assert len(ready.calls) == 4


async def test_what_fails_is_logged_and_callers_are_told_no_more(
    database: Database, services: SearchServices, ready: SearchServiceSimulator
) -> None:
    cases = [
        (Scripted(401, "who"), "answers 401: who"),
        (Scripted(403, "'admin-key' is no key"), "answers 403: '***' is no key"),
        (Scripted(404, "gone"), "answers 404: gone"),
        (Scripted(400, "Invalid expression"), "answers 400: Invalid expression"),
        (Scripted(502, headers={"Retry-After": "60"}), "answers 502"),
        (Scripted(200, body=b'{"value": [{"id": "1"'), "no JSON object"),
        (Scripted(200, body=b'{"value": 3}'), "no list of results"),
        (Scripted(200, body=b'{"value": [{"id": "1"}]}'), "without what was asked for"),
        (Scripted(200, body=b'{"value": [{"id": "1", "path": [], "@search.score": 0}]}'), "without what was asked"),
        (Scripted(206, body=b'{"value": []}'), "gave a part of an answer"),
        (Scripted(302, headers={"Location": "http://example.com"}), "answers 302"),
    ]
    for answer, detail in cases:
        ready.script("search.post.search", answer)
        async with open_retriever(database, services) as retriever:
            with capture_logs() as logs, pytest.raises(RetrievalError) as raised:
                await retriever.retrieve("annual leave", Retrieval("handbook", 1), frozenset())
        assert raised.value.message == "the search in handbook@1 failed; try again", detail
        assert detail in logs[-1]["detail"]
        assert "admin-key" not in f"{logs} {raised.value.__cause__}"


async def test_a_service_that_is_busy_refuses_one_search_and_not_the_next(
    retriever: VersionRetriever, ready: SearchServiceSimulator
) -> None:
    for status in (429, 503):
        ready.script("search.post.search", Scripted(status, headers={"Retry-After": "20"}))
        with capture_logs() as logs, pytest.raises(RetrievalError, match="was refused; try again") as raised:
            await found(retriever, "annual leave")
        assert (raised.value.error_code, raised.value.retry_after_seconds) == ("retrieval_overloaded", 20)
        assert f"answers {status}" in logs[-1]["detail"]
        assert (await found(retriever, "annual leave"))[0].document == "leave.md"


async def test_a_service_that_hangs_costs_its_time_and_no_more(
    retriever: VersionRetriever, ready: SearchServiceSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retriever, "_seconds", 0.5)
    ready.hang()
    with pytest.raises(RetrievalError, match="failed; try again"):
        await found(retriever, "annual leave")
    asked = len(ready.calls)
    with pytest.raises(RetrievalError, match="failed; try again"):
        await found(retriever, "annual leave")
    assert len(ready.calls) == asked  # one caller at a time finds out
