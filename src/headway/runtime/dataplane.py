"""One worker of the data plane, put together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from contextlib import AsyncExitStack

from headway.api.dataplane import DataPlane, reply_to_nobody
from headway.api.feedback_routes import FeedbackRoutes
from headway.api.search_routes import SearchRoutes
from headway.clock import Clock
from headway.config.settings import Settings
from headway.domain.snapshot import Snapshot
from headway.errors import StorageError
from headway.feedback.intake import FeedbackIntake
from headway.feedback.keeping import Keeper
from headway.feedback.reporting import ReportDesk, ReportIntake
from headway.gateway.calls import Caller
from headway.gateway.conversations import Conversations
from headway.gateway.deployments import Deployments
from headway.gateway.exchange import Answerer
from headway.gateway.feed import SnapshotFeed
from headway.gateway.gateway import Gateway
from headway.gateway.grounding import Grounding
from headway.gateway.quota import Quota, month_of
from headway.gateway.recorder import Recorder
from headway.gateway.scoreboard import Scoreboard
from headway.gateway.searching import Searching
from headway.gateway.shadow import Mirrors
from headway.gateway.tracing import Tracing
from headway.providers.azure_search import SearchServices
from headway.providers.client import ProviderClient
from headway.providers.credentials import Credentials
from headway.retrieval.retriever import VersionRetriever
from headway.runtime.indexes import make_retriever, make_versions
from headway.runtime.worker import Application, Tasks
from headway.storage.database import Database
from headway.storage.keys import read_costs
from headway.storage.spool import Spool

_USAGE_SECONDS = 1.0
# At a time: a search is work for the database's processors, and more at once would only take them from everybody else.
_SEARCHES = 2
_MIRRORED_SEARCHES = 1  # beside those of callers


class DataPlaneService:
    """One worker of the data plane."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._stack = AsyncExitStack()

    async def start(self) -> Application:
        """Start everything; a database that is away does not matter while there is a snapshot on disk.

        Raises:
            ConfigurationError: There is no routing snapshot at all.
        """
        settings, clock, stack = self._settings, self._clock, self._stack
        home = settings.home
        database = await self._database()
        scoreboard = Scoreboard.open(home)
        stack.callback(scoreboard.close)
        tracing = Tracing.from_environment(os.environ)
        if tracing is not None:
            stack.callback(tracing.close)
        credentials = Credentials(clock)
        client, services = ProviderClient(credentials), SearchServices(credentials, clock)
        for each in (client, services):
            await each.start()
            stack.push_async_callback(each.close)
        quota = Quota(scoreboard, clock)

        statements = self._spool("statements", keep=True)
        links = self._spool("links", keep=False)
        interactions = self._spool("interactions", keep=False)
        recorder = Recorder(database, interactions, scoreboard, clock, settings, quota)
        conversations = Conversations(database, links, clock)
        stack.push_async_callback(conversations.close)
        versions = make_versions(client, services, clock)
        retriever = make_retriever(database, versions, clock, places=_SEARCHES)
        stack.push_async_callback(retriever.close)
        callers = Deployments(clock, settings.workers)
        caller = Caller(client, callers, clock, random.SystemRandom())
        answerer = Answerer(caller, Grounding(retriever, clock), clock, conversations.keep)
        mirrored = make_retriever(database, versions, clock, places=_MIRRORED_SEARCHES)
        stack.push_async_callback(mirrored.close)
        mirrors = self._mirrors(client, callers, recorder, Grounding(mirrored, clock))
        gateway = Gateway(answerer, mirrors, recorder, quota, conversations, clock, tracing)
        readying = _Readying(gateway, retriever)
        feed = SnapshotFeed(database, home / "snapshot.json", clock, readying.switch, settings.lost_control_seconds)
        await feed.start()
        await self._learn_costs(database, gateway, quota)
        await readying.prepare()
        await recorder.start()
        stack.push_async_callback(recorder.close)
        stack.push_async_callback(mirrors.close)

        keeper = Keeper(database, statements, clock)
        stack.push_async_callback(keeper.close)
        tasks = Tasks(clock)
        stack.push_async_callback(tasks.close)
        tasks.run("feed", feed.run)
        tasks.run("control", feed.watch)
        tasks.run("indexes", readying.run)
        tasks.run("usage", lambda: self._follow_usage(database, gateway, quota))
        tasks.run("statements", lambda: statements.replay_forever(keeper.replay))
        tasks.run("interactions", lambda: interactions.replay_forever(recorder.replay))
        tasks.run("links", lambda: links.replay_forever(conversations.replay))
        searching = Searching(retriever, quota, clock, recorder.note_searched, tracing)
        return self._dataplane(gateway, recorder, searching, database, keeper)

    def _dataplane(
        self, gateway: Gateway, recorder: Recorder, searching: Searching, database: Database, keeper: Keeper
    ) -> DataPlane:
        settings, clock = self._settings, self._clock
        routes = FeedbackRoutes(
            FeedbackIntake(database, keeper, clock),
            ReportIntake(keeper, clock),
            ReportDesk(database, clock),
            lambda: gateway.snapshot,
            clock,
            settings.origins,
        )
        search = SearchRoutes(searching, lambda: gateway.snapshot, clock)
        return DataPlane(
            gateway,
            [*routes.routes, *search.routes],
            clock,
            max_body_bytes=int(settings.max_body_mb * 1e6),
            body_seconds=settings.body_seconds,
            origins=settings.origins,
            note_rejected=recorder.note_rejected,
        )

    def _mirrors(
        self, client: ProviderClient, callers: Deployments, recorder: Recorder, grounding: Grounding
    ) -> Mirrors:
        """Make what runs the shadow stage; it shares no place, no queue and no circuit breaker with callers."""
        clock = self._clock
        deployments = Deployments(clock, self._settings.workers, gated=False)
        answerer = Answerer(Caller(client, deployments, clock, random.SystemRandom()), grounding, clock)
        return Mirrors(answerer, deployments, callers, recorder, clock, reply_to_nobody)

    async def _follow_usage(self, database: Database, gateway: Gateway, quota: Quota) -> None:
        """Learn every second what capped keys have cost on all workers of all replicas."""
        while True:
            await self._clock.sleep(_USAGE_SECONDS)
            await self._learn_costs(database, gateway, quota)

    async def _learn_costs(self, database: Database, gateway: Gateway, quota: Quota) -> None:
        capped = [key.number for key in gateway.snapshot.keys.values() if key.monthly_usd is not None]
        if capped:
            month = month_of(self._clock.unix_ms())
            with contextlib.suppress(StorageError):
                async with database.connection() as connection:
                    quota.note_totals(month, await read_costs(connection, capped, month))

    async def _database(self) -> Database:
        assert self._settings.database_url, "the supervisor gives every worker the database's URL"
        database = Database(self._settings.database_url)
        self._stack.push_async_callback(database.close)
        await database.open(wait=False)  # the feed of snapshots waits for it, and does without
        return database

    def _spool(self, kind: str, *, keep: bool) -> Spool:
        """Make a spool; what people said (``keep``) is never dropped, a full spool refuses instead."""
        settings = self._settings
        spool = Spool(
            settings.home / "spool" / kind,
            self._clock,
            max_bytes=int(settings.spool_mb * 1e6),
            max_age_seconds=None if keep else settings.spool_hours * 3600,
            drop_oldest=not keep,
        )
        self._stack.push_async_callback(spool.close)
        return spool

    async def close(self) -> None:
        """Stop everything, in the reverse order; what was recorded is written or spooled."""
        await self._stack.aclose()


class _Readying:
    """Switches the gateway, and gets ready for what callers search by the new snapshot before they do."""

    def __init__(self, gateway: Gateway, retriever: VersionRetriever) -> None:
        self._gateway = gateway
        self._retriever = retriever
        self._switched = asyncio.Event()

    def switch(self, snapshot: Snapshot) -> None:
        self._gateway.switch(snapshot)
        self._switched.set()

    async def run(self) -> None:
        while True:
            await self._switched.wait()
            await self.prepare()

    async def prepare(self) -> None:
        self._switched.clear()
        snapshot = self._gateway.snapshot
        for application in snapshot.applications.values():
            candidates = () if application.rollout is None else (application.rollout.candidate,)
            for number in (application.stable, *candidates):
                retrieval = snapshot.releases[number].bundle.retrieval
                if retrieval is not None:
                    await self._retriever.prepare(retrieval)
