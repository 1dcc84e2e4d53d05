"""The control plane, put together: one process per replica."""

from __future__ import annotations

import importlib.util
from contextlib import AsyncExitStack
from functools import partial

import structlog
from prometheus_client import CollectorRegistry, generate_latest

from headway.api.authentication import authenticate
from headway.api.control_parts import ControlServices
from headway.api.controlplane import create_app
from headway.api.metrics import render_metrics
from headway.api.problems import status_of
from headway.clock import Clock, utc
from headway.config.settings import Settings
from headway.console.services import ConsoleServices
from headway.console.site import create_console
from headway.domain.snapshot import Snapshot
from headway.errors import StorageError
from headway.gateway.feed import SnapshotFeed
from headway.providers.webhooks import WebhookClient
from headway.rollouts.controller import Controller
from headway.rollouts.webhooks import Courier
from headway.runtime.indexes import open_retriever, open_tools
from headway.runtime.worker import Application, Tasks
from headway.storage.database import Database
from headway.storage.retention import enforce

_log = structlog.get_logger("headway.runtime.controlplane")
_RETENTION_SECONDS = 3600.0


def _render_metrics(settings: Settings, registry: CollectorRegistry) -> bytes:
    return render_metrics(settings) + generate_latest(registry)


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
        webhooks = WebhookClient()
        stack.push_async_callback(webhooks.close)
        await webhooks.start()
        controller = Controller(database, clock, settings.tick_seconds)
        courier = Courier(database, clock, webhooks)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(controller)
        registry.register(courier)
        feed = SnapshotFeed(database, settings.home / "snapshot-control.json", clock, self._take)
        await feed.start()
        tasks = Tasks(clock)
        await self._build_indexes(database, tasks, registry)
        stack.push_async_callback(tasks.close)
        tasks.run("feed", feed.run)
        tasks.run("retention", lambda: self._retain(database))
        tasks.run("controller", controller.run)
        tasks.run("webhooks", courier.run)
        metrics = partial(_render_metrics, settings, registry)
        retriever = await stack.enter_async_context(open_retriever(database, clock))
        console = ConsoleServices(database, clock, self._current, authenticate, status_of, retriever)
        return create_console(console, create_app(ControlServices(database, clock, self._current, metrics, retriever)))

    async def _build_indexes(self, database: Database, tasks: Tasks, registry: CollectorRegistry) -> None:
        """Build in the background what is to be built, where the extra for it is installed."""
        if importlib.util.find_spec("fsspec") is None:
            _log.info("builds_off", detail="building indexes needs the extra: pip install 'headway[knowledge]'")
            return
        from headway.retrieval.worker import BuildWorker  # noqa: PLC0415 - needs the extra

        tools = await self._stack.enter_async_context(open_tools(database, self._clock))
        worker = BuildWorker(tools)
        registry.register(worker)
        tasks.run("builds", worker.run)

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
