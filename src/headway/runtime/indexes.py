"""What index versions are built with, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from headway.clock import Clock
from headway.config.indexes import VersionSpec
from headway.providers.client import ProviderClient
from headway.providers.credentials import Credentials, resolve_secret
from headway.retrieval.building import Tools
from headway.retrieval.embedding import Embedder, make_embedder
from headway.storage.database import Database


@asynccontextmanager
async def open_tools(database: Database, clock: Clock) -> AsyncIterator[Tools]:
    """Give what index versions are built with while the block runs."""
    client = ProviderClient(Credentials(clock))
    await client.start()

    @asynccontextmanager
    async def open_embedder(spec: VersionSpec) -> AsyncIterator[Embedder]:
        embedder = make_embedder(spec, client, clock)
        await embedder.open()
        yield embedder

    try:
        yield Tools(database, clock, resolve_secret, open_embedder)
    finally:
        await client.close()
