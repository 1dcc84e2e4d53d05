"""The recorder: takes interactions off the request path and sees to it that each of them is kept, once."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path

import msgspec
import structlog

from headway.clock import Clock
from headway.config.settings import Settings
from headway.domain.interaction import Interaction
from headway.errors import HeadwayError, StorageError
from headway.gateway.measurements import (
    CONTENT_DROPPED,
    MIRRORS_DROPPED,
    REFUSED,
    REJECTED,
    SEARCH_SECONDS,
    SEARCHES,
    SPOOL_DROPPED,
    Measurements,
)
from headway.gateway.quota import Quota
from headway.gateway.scoreboard import Column, Predecessor, Scoreboard
from headway.storage.batches import Batch, BatchRefusedError, BatchWriter, KeyUsage
from headway.storage.database import Database
from headway.storage.spool import Spool

_log = structlog.get_logger("headway.gateway.recorder")

_INTERVAL_SECONDS = 0.2
_BATCH_INTERACTIONS = 300  # preparing a batch keeps requests waiting: about 3 ms for so many
_BATCH_BYTES = 8 * 1024 * 1024
_QUEUE_BYTES = 128 * 1024 * 1024  # of prompts and answers; beyond, interactions are recorded without theirs
_WRITE_SECONDS = 5.0
_HOUSEKEEPING_SECONDS = 1.0


def measurements_folder(home: Path) -> Path:
    """Say where the workers of a home keep their measurements."""
    return home / "metrics"


class Recorder:
    """Keeps the interactions of one worker: in the database, or in the spool while that is away.

    Args:
        database: Where they belong.
        spool: Where batches wait; ``replay`` is its handler.
        scoreboard: Tells the other processes how many were accepted, recorded and dropped.
        clock: Says when it is time.
        settings: ``home`` and ``queue_size``.
        quota: Learns what keys have cost.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        scoreboard: Scoreboard,
        clock: Clock,
        settings: Settings,
        quota: Quota,
    ) -> None:
        self._writer = BatchWriter(database)
        self._spool = spool
        self._scoreboard = scoreboard
        self._measurements = Measurements(measurements_folder(settings.home), scoreboard.slot)
        self._clock = clock
        self._quota = quota
        self._queue_size = settings.queue_size
        self._queue: deque[Interaction] = deque()
        self._queue_bytes = 0
        self._sequence = 0
        self._away = False
        self._closing = False
        self._sleeping = False
        self._turn = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None
        self._predecessors: list[Predecessor] = list(scoreboard.predecessors)
        self._spool_dropped = 0
        self._kept_house_at = 0.0

    def record(self, interaction: Interaction) -> None:
        """Take an interaction; returns at once. What does not fit into memory any more is dropped and counted."""
        scoreboard = self._scoreboard
        scoreboard.add(Column.ACCEPTED)
        if len(self._queue) >= self._queue_size or self._closing:
            scoreboard.add(Column.DROPPED)
            return
        size = _content_bytes(interaction)
        if self._queue_bytes + size > _QUEUE_BYTES:
            interaction.request = interaction.answer = None
            self._measurements.count(CONTENT_DROPPED, (), 1)
            size = 0
        self._queue_bytes += size
        self._queue.append(interaction)

    def note_rejected(self, code: str) -> None:
        """Count a request that was turned away before it became an interaction, by the code of its error."""
        self._measurements.count(REJECTED, (code,), 1)

    def note_searched(self, index: str, result: str, seconds: float) -> None:
        """Count a search by itself, by its index version and what came of it; nothing else of it is recorded."""
        self._measurements.count(SEARCHES, (index, result), 1)
        self._measurements.observe_seconds(SEARCH_SECONDS, (index,), seconds)

    def note_mirror_dropped(self, application: int, release: int) -> None:
        """Count a request that should have been mirrored to a release, and was not."""
        self._measurements.count(MIRRORS_DROPPED, (str(application), str(release)), 1)

    async def start(self) -> None:
        """Begin to write what is recorded."""
        self._loop = asyncio.get_running_loop().create_task(self._run(), name="recorder")

    async def close(self) -> None:
        """Write or spool everything that was recorded, and stop."""
        self._closing = True
        if self._loop is not None:
            if self._sleeping:
                self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        await self.flush()
        await self._keep_house()

    async def flush(self) -> None:
        """Return once everything recorded so far has been written or spooled."""
        async with self._turn:
            due = len(self._queue)  # not what comes meanwhile: batches would get ever smaller
            while due > 0:
                batch = self._next_batch()
                due -= len(batch.interactions)
                await self._keep(batch)
            self._show()

    async def replay(self, record: bytes) -> None:
        """Write a batch of the spool; that is also how the database is found to be back.

        Raises:
            StorageError: The database is still away.
            msgspec.MsgspecError: It is no batch.
        """
        batch = msgspec.msgpack.decode(record, type=Batch)
        try:
            refused = await self._write(batch)
        except StorageError:
            self._away = True
            raise
        if self._away:
            self._away = False
            _log.info("database_back", waiting=self._spool.records_waiting)
        if refused:
            self._measurements.count(REFUSED, (), refused)

    async def _run(self) -> None:
        while not self._closing:
            self._sleeping = True
            await self._clock.sleep(_INTERVAL_SECONDS)
            self._sleeping = False
            try:
                await self.flush()
                if self._clock.monotonic_seconds() - self._kept_house_at >= _HOUSEKEEPING_SECONDS:
                    await self._keep_house()
            except Exception:  # noqa: BLE001 - recording must go on, whatever a batch or the disk did
                _log.exception("recorder_failed")

    def _next_batch(self) -> Batch:
        """Take the next interactions off the queue; there must be one."""
        queue, interactions, size = self._queue, list[Interaction](), 0
        while queue and len(interactions) < _BATCH_INTERACTIONS and size < _BATCH_BYTES:
            interaction = queue.popleft()
            size += _content_bytes(interaction)
            interactions.append(interaction)
        self._queue_bytes -= size
        self._sequence += 1
        return Batch(self._scoreboard.worker, self._sequence, interactions)

    async def _keep(self, batch: Batch) -> None:
        """Write or spool a batch, and count what became of it."""
        size = len(batch.interactions)
        self._scoreboard.expect(batch.sequence, size)
        lost = size
        try:
            lost = await self._store(batch)
            self._measurements.observe(batch.interactions)
        except Exception:  # noqa: BLE001 - the batches behind it must go on
            _log.exception("batch_failed")
        finally:
            self._scoreboard.add(Column.RECORDED, size - lost)
            self._scoreboard.add(Column.DROPPED, lost)
            self._scoreboard.expect(batch.sequence, 0)

    async def _store(self, batch: Batch) -> int:
        """Write a batch, or spool it; returns how many interactions could not be kept."""
        # While batches wait in the spool, their replay finds out when the database is back.
        if not self._away or not self._spool.records_waiting:
            try:
                refused = await self._write(batch)
                self._away = False
                if refused:
                    self._measurements.count(REFUSED, (), refused)
                return refused
            except StorageError as error:
                if not self._away:
                    _log.warning("database_away", detail=error.message)
                self._away = True
        try:
            await self._spool.append(msgspec.msgpack.encode(batch), len(batch.interactions))
            return 0
        except HeadwayError as error:
            _log.error("interactions_dropped", count=len(batch.interactions), detail=error.message)
            return len(batch.interactions)

    async def _write(self, batch: Batch) -> int:
        """Write a batch to the database; returns how many interactions it refused.

        Raises:
            StorageError: The database is away, or too slow.
        """
        try:
            async with asyncio.timeout(_WRITE_SECONDS):
                usage = await self._writer.write(batch)
        except TimeoutError as error:
            raise StorageError(f"the database took longer than {_WRITE_SECONDS:g} s for a batch") from error
        except StorageError:
            raise
        except Exception as error:  # noqa: BLE001 - one interaction that nobody foresaw must not cost all the others
            if len(batch.interactions) > 1:
                first, second = batch.split()
                return await self._write(first) + await self._write(second)
            detail = error.message if isinstance(error, BatchRefusedError) else repr(error)
            _log.error("interaction_refused", interaction=batch.interactions[0].id.hex(), detail=detail[:500])
            return 1
        self._note_usage(batch, usage)
        return 0

    def _note_usage(self, batch: Batch, usage: list[KeyUsage]) -> None:
        own = batch.worker == self._scoreboard.worker
        for used in usage:
            self._quota.note_recorded(used if own else used._replace(batch_usd=0.0))

    async def _keep_house(self) -> None:
        """Do what is due once a second: look for the dead, count, save the measurements."""
        self._kept_house_at = self._clock.monotonic_seconds()
        self._scoreboard.refresh()
        dropped, self._spool_dropped = self._spool.dropped - self._spool_dropped, self._spool.dropped
        if dropped:
            self._measurements.count(SPOOL_DROPPED, (), dropped)
        self._show()
        while self._predecessors and not self._away and not self._spool.records_waiting:
            if not await self._bury(self._predecessors[0]):
                break
            del self._predecessors[0]
        try:
            await self._measurements.save()
        except OSError as error:
            _log.warning("measurements_not_saved", detail=str(error))

    async def _bury(self, dead: Predecessor) -> bool:
        """Count what a killed worker lost, now that its last batch either arrived or never will.

        Returns:
            False when the database cannot tell yet.
        """
        written = False
        if dead.pending:
            try:
                async with asyncio.timeout(_WRITE_SECONDS):
                    written = await self._writer.has_written(dead.worker, dead.sequence)
            except (StorageError, TimeoutError):
                return False
        recorded = dead.pending if written else 0
        lost = dead.missing - recorded
        self._scoreboard.add(Column.RECORDED, recorded)
        self._scoreboard.add(Column.LOST, lost)
        if lost:
            _log.error("interactions_lost", count=lost, worker=str(dead.worker))
        return True

    def _show(self) -> None:
        scoreboard = self._scoreboard
        scoreboard.put(Column.SPOOL_BYTES, self._spool.bytes_waiting)
        scoreboard.put(Column.SPOOL_RECORDS, self._spool.records_waiting)


def _content_bytes(interaction: Interaction) -> int:
    request, answer = interaction.request, interaction.answer
    return (len(request) if request is not None else 0) + (len(answer) if answer is not None else 0)
