"""Builds in the background what is to be built, and clears away what is not needed any more."""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from headway.errors import ConflictError, HeadwayError, StorageError
from headway.retrieval import azure_index
from headway.retrieval.building import Tools, resume
from headway.storage import builds, versions
from headway.storage.builds import Build

_log = structlog.get_logger("headway.retrieval.worker")

_LOOK_SECONDS = 1.0
_CLEAR_SECONDS = 60.0
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 300.0


class BuildWorker:
    """Takes up builds that nobody works on: those asked for over the API, and those whose builder is gone.

    Any number may run; each build is one worker's at a time. A build that waits, for something that is away or that
    refuses it, is tried again after a pause, which grows.

    Args:
        tools: What builds are done with.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._pauses: dict[int, float] = {}
        self._due: dict[int, float] = {}
        self._clear_at = 0.0
        self._seen: dict[int, Build] = {}
        self._results = {"published": 0, "waits": 0, "failed": 0}

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of this worker, for Prometheus: how far builds are, and what came of its own."""
        documents = GaugeMetricFamily(
            "headway_index_build_documents", "Documents of a version that is being built.", labels=("index", "state")
        )
        waiting = GaugeMetricFamily(
            "headway_index_build_waits", "Whether a build waits: something is away, or refuses it.", labels=("index",)
        )
        for build in self._seen.values():
            progress = build.progress
            documents.add_metric([build.index, "listed"], progress.documents - progress.done)
            documents.add_metric([build.index, "loaded"], progress.loaded)
            documents.add_metric([build.index, "skipped"], progress.skipped)
            waiting.add_metric([build.index], build.problem is not None)
        results = CounterMetricFamily("headway_index_builds", "What came of taking up a build.", labels=("result",))
        for result, count in self._results.items():
            results.add_metric([result], count)
        yield from (documents, waiting, results)

    async def run(self) -> None:
        """Build and clear until cancelled, whatever happens to the database."""
        away = False
        while True:
            try:
                await self.look()
                away = False
            except StorageError as error:
                if not away:
                    _log.warning("builds_wait", detail=error.message)
                away = True
            await self._tools.clock.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Build once all that is due, and clear away when it is time.

        Raises:
            StorageError: The database is away.
        """
        async with self._tools.database.connection() as connection:
            unfinished = await builds.list_unfinished(connection)
        self._seen = {build.version: build for build in unfinished}
        now = self._tools.clock.monotonic_seconds()
        self._due = {each.version: self._due[each.version] for each in unfinished if each.version in self._due}
        for build in unfinished:
            if now >= self._due.get(build.version, now):
                await self._build(build)
        if self._tools.clock.monotonic_seconds() >= self._clear_at:
            await self._clear()
            self._clear_at = self._tools.clock.monotonic_seconds() + _CLEAR_SECONDS

    async def _build(self, build: Build) -> None:
        try:
            built = await resume(self._tools, build.version, tell=self._look_at)
            self._seen.pop(build.version, None)
            self._results["published"] += 1
            _log.info("index_published", index=built.label, documents=built.progress.loaded)
        except ConflictError as error:  # it is another's, or was cancelled
            _log.debug("build_left", index=build.label, detail=error.message)
        except StorageError as error:
            self._postpone(build, error)
            raise
        except HeadwayError as error:
            async with self._tools.database.connection() as connection:
                build = await builds.find(connection, build.version)
            if build.state == "building":
                self._postpone(build, error)
            else:
                self._results["failed"] += 1
                _log.error("build_failed", index=build.label, detail=error.message)
        except Exception:  # noqa: BLE001 - the others can be built all the same
            self._results["failed"] += 1
            _log.exception("build_failed", index=build.label)

    def _look_at(self, build: Build) -> None:
        self._seen[build.version] = build

    def _postpone(self, build: Build, error: HeadwayError) -> None:
        pause = min(2 * self._pauses.get(build.version, _FIRST_PAUSE_SECONDS / 2), _LONGEST_PAUSE_SECONDS)
        self._pauses[build.version] = pause
        self._results["waits"] += 1
        self._due[build.version] = self._tools.clock.monotonic_seconds() + pause
        _log.warning("build_waits", index=build.label, detail=error.message, again_in_seconds=pause)

    async def _clear(self) -> None:
        async with self._tools.database.connection() as connection:
            await versions.sweep(connection)
        async with self._tools.database.connection() as connection:
            await versions.forget_documents(connection)
        if self._tools.services is not None:
            await azure_index.sweep(self._tools.services, self._tools.database)
