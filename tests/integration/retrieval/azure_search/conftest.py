"""A search service, and what builds and searches in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from headway.clock import SystemClock
from headway.providers.azure_search import SearchServices
from headway.providers.credentials import Credentials
from headway.retrieval.building import Tools
from headway.retrieval.retriever import VersionRetriever
from headway.storage.database import Database
from headway.testing.search_service import SearchServiceSimulator
from tests.lakes import make_tools
from tests.search_services import (
    open_retriever,
)


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SearchServiceSimulator]:
    monkeypatch.setenv("SEARCH_KEY", "admin-key")
    async with SearchServiceSimulator() as simulator:
        yield simulator


@pytest.fixture
async def services() -> AsyncIterator[SearchServices]:
    opened = SearchServices(Credentials(SystemClock()), SystemClock())
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def tools(database: Database, services: SearchServices) -> Tools:
    return replace(make_tools(database), services=services)


@pytest.fixture
async def retriever(database: Database, services: SearchServices) -> AsyncIterator[VersionRetriever]:
    async with open_retriever(database, services) as opened:
        yield opened
