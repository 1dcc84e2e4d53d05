"""The only place that builds objects from settings, and knows in which order things start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from headway.config.settings import Settings
from headway.storage import embedded
from headway.storage.database import Database, migrate


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """Give the URL of the database while the block runs; the embedded server is held up for that long."""
    if settings.database_url:
        yield settings.database_url
        return
    with embedded.start(settings.home) as server:
        yield server.url


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database, migrated to this version, while the block runs.

    Raises:
        StorageError: It cannot be reached, or the embedded server cannot be started.
    """
    with database_url(settings) as url:
        await asyncio.to_thread(migrate, url)
        database = Database(url)
        try:
            await database.open()
            yield database
        finally:
            await database.close()
