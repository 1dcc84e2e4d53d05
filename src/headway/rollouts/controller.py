"""The controller: one replica leads, and takes a tick of every running rollout every few seconds."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import LiteralString

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from headway.clock import Clock
from headway.errors import StorageError
from headway.rollouts.ticks import Ticks
from headway.storage.database import Connection, Database

_log = structlog.get_logger("headway.rollouts.controller")

_TRY_LOCK: LiteralString = "SELECT pg_try_advisory_lock(x'6865616477617C'::bigint)"
_STANDBY_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
_EDGES_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# The server must notice a leader's machine that is gone without a word: its own default is two hours.
_LIVENESS = (
    "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '1', false),"
    " set_config('tcp_keepalives_count', '3', false)"
)
_RUNNING = "SELECT id FROM rollout WHERE ended_at IS NULL AND terms IS NOT NULL ORDER BY id"


class Controller(Collector):
    """Decides on all rollouts under a policy. Any number may run: one leads, the others wait for its end.

    Leading saves work and is not what makes it right: a tick locks its rollout, so that two leaders, or a person's
    command in between, come one after the other.

    Args:
        database: Where rollouts and evidence are.
        clock: Says when.
        tick_seconds: Time from tick to tick.
    """

    def __init__(self, database: Database, clock: Clock, tick_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._ticks = Ticks(clock, tick_seconds)
        self._leads = False
        self._failures = 0
        self._seconds = 0.0
        self._slower = [0] * (len(_EDGES_SECONDS) + 1)  # ticks by the edge that they did not exceed, the last without

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of this controller, for Prometheus."""
        yield GaugeMetricFamily(
            "headway_controller_leading", "Whether this replica's controller leads.", value=self._leads
        )
        yield CounterMetricFamily(
            "headway_rollout_failures", "Ticks of a rollout that failed; the log says why.", value=self._failures
        )
        edges = [*map(str, _EDGES_SECONDS), "+Inf"]
        histogram = HistogramMetricFamily("headway_rollout_tick_seconds", "Time that a tick of one rollout took.")
        histogram.add_metric([], list(zip(edges, accumulate(self._slower), strict=True)), self._seconds)
        yield histogram

    async def run(self) -> None:
        """Wait until this replica leads, and then tick, until cancelled; whatever happens to the database."""
        away = False
        while True:
            try:
                await self._stand()
                away = False
            except StorageError as error:
                if not away:
                    _log.warning("controller_waits", detail=error.message)
                away = True
            finally:
                self._leads = False
            await self._clock.sleep(_STANDBY_SECONDS)

    async def tick(self) -> None:
        """Take one tick of every running rollout; one that fails is logged and counted, and does not stop the others.

        Raises:
            StorageError: The database is away.
        """
        async with self._database.connection() as connection:
            running = [number for (number,) in await (await connection.execute(_RUNNING)).fetchall()]
        self._ticks.forget(running)
        for number in running:
            began = self._clock.monotonic_seconds()
            lent = False
            try:
                async with self._database.connection() as connection:
                    lent = True
                    await self._ticks.take(connection, number)
            except Exception:
                if not lent:
                    raise  # the database is away, for all of them
                self._failures += 1
                _log.exception("rollout_failed", rollout=number)
            self._note(self._clock.monotonic_seconds() - began)

    def _note(self, seconds: float) -> None:
        self._seconds += seconds
        self._slower[bisect_left(_EDGES_SECONDS, seconds)] += 1

    async def _stand(self) -> None:
        """Lead as long as the connection lives that holds the lock."""
        async with self._database.connection() as connection:
            try:
                await connection.set_autocommit(True)
                await connection.execute(_LIVENESS)
                while not await _ask(connection, _TRY_LOCK):
                    await self._clock.sleep(_STANDBY_SECONDS)
                _log.info("controller_leads")
                self._leads = True
                await self._lead(connection)
            finally:
                await connection.close()  # it holds the lock, so it is not one to lend to others

    async def _lead(self, connection: Connection) -> None:
        while True:
            began = self._clock.monotonic_seconds()
            await _ask(connection, "SELECT true")  # does it still hold the lock?
            await self.tick()
            spent = self._clock.monotonic_seconds() - began
            await self._clock.sleep(max(0.0, self._tick_seconds - spent))


async def _ask(connection: Connection, query: LiteralString) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            row = await (await connection.execute(query)).fetchone()
    except TimeoutError as error:
        raise StorageError(f"the database did not answer within {_ANSWER_SECONDS:g} s") from error
    return row is not None and bool(row[0])
