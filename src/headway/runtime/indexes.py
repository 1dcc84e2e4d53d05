"""What index versions are built and searched with, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from headway.clock import Clock
from headway.config.indexes import VersionSpec
from headway.providers.azure_search import SearchServices
from headway.providers.client import ProviderClient
from headway.providers.credentials import Credentials, resolve_secret
from headway.retrieval import azure_index
from headway.retrieval.azure_search import AzureSearch
from headway.retrieval.chunking import approximate_tokens
from headway.retrieval.embedding import Embedder, make_embedder, make_query_embedder
from headway.retrieval.retriever import PLACES, SECONDS, VersionRetriever, Versions
from headway.retrieval.searching import VersionSearch
from headway.storage.database import Database

if TYPE_CHECKING:
    from headway.retrieval.building import Tools


@asynccontextmanager
async def open_tools(database: Database, clock: Clock) -> AsyncIterator[Tools]:
    """Give what index versions are built with while the block runs; it needs the extra ``knowledge``."""
    from headway.retrieval.building import Tools  # noqa: PLC0415 - needs the extra; searching does not

    async with _open_clients(clock) as (client, services):

        @asynccontextmanager
        async def open_embedder(spec: VersionSpec) -> AsyncIterator[Embedder]:
            embedder = make_embedder(spec, client, clock)
            await embedder.open()
            yield embedder

        yield Tools(database, clock, resolve_secret, open_embedder, services=services)


@asynccontextmanager
async def open_retriever(
    database: Database, clock: Clock, *, places: int = PLACES, seconds: float = SECONDS
) -> AsyncIterator[VersionRetriever]:
    """Give what searches index versions while the block runs, for tools and pages: callers have their gateway.

    It opens without the extra ``knowledge``, and loads the embedded model with the first search that needs it: such a
    search fails without the extra, and the error's cause says what to install.

    Args:
        database: Where the versions are.
        clock: Tells the time.
        places: Searches at a time.
        seconds: How long one may take.
    """
    async with _open_clients(clock) as (client, services):
        versions = make_versions(client, services, clock)
        retriever = make_retriever(database, versions, clock, places=places, seconds=seconds)
        try:
            yield retriever
        finally:
            await retriever.close()


def make_versions(client: ProviderClient, services: SearchServices, clock: Clock) -> Versions:
    """Make what knows index versions and their embedders; one for all retrievers of a process."""
    search = AzureSearch(services, approximate_tokens)
    return Versions(lambda spec: make_query_embedder(spec, client, clock), search)


def make_retriever(
    database: Database, versions: Versions, clock: Clock, *, places: int = PLACES, seconds: float = SECONDS
) -> VersionRetriever:
    """Make a retriever with places of its own; who makes it closes it."""
    return VersionRetriever(database, versions, VersionSearch(), clock, places=places, seconds=seconds)


async def sweep_services(database: Database, clock: Clock) -> None:
    """Delete in search services what no version needs any more; what cannot be now is left to the control plane."""
    async with _open_clients(clock) as (_, services):
        await azure_index.sweep(services, database)


@asynccontextmanager
async def _open_clients(clock: Clock) -> AsyncIterator[tuple[ProviderClient, SearchServices]]:
    credentials = Credentials(clock)
    client, services = ProviderClient(credentials), SearchServices(credentials, clock)
    await client.start()
    await services.start()
    try:
        yield client, services
    finally:
        await services.close()
        await client.close()
