"""The control plane, put together: one process per replica."""

from __future__ import annotations

from contextlib import AsyncExitStack

import structlog

from headway.api.control_parts import ControlServices
from headway.api.controlplane import create_app
from headway.api.metrics import render_metrics
from headway.clock import Clock, utc
from headway.config.settings import Settings
from headway.domain.snapshot import Snapshot
from headway.errors import StorageError
from headway.gateway.feed import SnapshotFeed
from headway.runtime.worker import Application, Tasks
from headway.storage.database import Database
from headway.storage.retention import enforce

_log = structlog.get_logger("headway.runtime.controlplane")
_RETENTION_SECONDS = 3600.0


class ControlPlaneService:
    """The control plane's one worker."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._stack = AsyncExitStack()
        self._snapshot: Snapshot | None = None

    async def start(self) -> Application:
        """Start everything."""
        settings, clock, stack = self._settings, self._clock, self._stack
        assert settings.database_url, "the supervisor gives every worker the database's URL"
        database = Database(settings.database_url)
        stack.push_async_callback(database.close)
        await database.open()
        feed = SnapshotFeed(database, settings.home / "snapshot-control.json", clock, self._take)
        await feed.start()
        tasks = Tasks(clock)
        stack.push_async_callback(tasks.close)
        tasks.run("feed", feed.run)
        tasks.run("retention", lambda: self._retain(database))
        return create_app(ControlServices(database, clock, self._current, lambda: render_metrics(settings)))

    def _take(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def _current(self) -> Snapshot:
        if self._snapshot is None:
            raise StorageError("there is no routing snapshot yet")
        return self._snapshot

    async def _retain(self, database: Database) -> None:
        """Make the coming days' partitions and drop what is past retention, every hour."""
        while True:
            try:
                async with database.connection() as connection:
                    await enforce(connection, utc(self._clock.unix_ms()), spool_hours=self._settings.spool_hours)
            except StorageError as error:
                _log.warning("retention_waits", detail=error.message)
            await self._clock.sleep(_RETENTION_SECONDS)

    async def close(self) -> None:
        """Stop everything, in the reverse order."""
        await self._stack.aclose()
