"""Keeps what was accepted: in the database, or on disk until the database is back."""

from __future__ import annotations

import asyncio
import math
import uuid
from dataclasses import dataclass
from typing import Literal

import msgspec

from headway.clock import Clock
from headway.domain.feedback import REVISIONS, Feedback, Report
from headway.domain.protocols import DurableLog
from headway.errors import StorageError
from headway.storage import feedback as feedback_storage
from headway.storage import reports as report_storage
from headway.storage.database import Database

Outcome = Literal["created", "unchanged", "spooled"]

_DATABASE_SECONDS = 3.0  # a database that does not answer within this is away
_AWAY_SECONDS = 2.0  # for so long nobody else waits for it again


@dataclass(frozen=True)
class Kept:
    """What became of a record.

    Attributes:
        id: What stands for it: its own id, or that of the equal one that was there before.
        outcome: created: in the database; unchanged: was there already; spooled: on disk, the database is away.
    """

    id: uuid.UUID
    outcome: Outcome


class Keeper:
    """Returns once a record would survive a power cut.

    Args:
        database: Where records belong.
        log: Where they wait while the database is away. Its records come back through ``replay``.
        clock: Tells how long the database has been away.
    """

    def __init__(self, database: Database, log: DurableLog, clock: Clock) -> None:
        self._database = database
        self._log = log
        self._clock = clock
        self._away_until = -math.inf
        self._late: set[asyncio.Task[Kept]] = set()

    async def keep(self, record: Feedback | Report) -> Kept:
        """Keep a record.

        Raises:
            LimitError: The author's history of this metric and target is full.
            HeadwayError: The database is away and the disk refuses too: nothing was kept.
        """
        now = self._clock.monotonic_seconds()
        if now >= self._away_until:
            if self._away_until > -math.inf:
                self._away_until = now + _AWAY_SECONDS  # one asks whether it is back, the others do not wait for it
            try:
                kept = await self._store_in_time(record)
            except StorageError:
                self._away_until = self._clock.monotonic_seconds() + _AWAY_SECONDS
            else:
                self._away_until = -math.inf
                return kept
        # A commit may have taken effect all the same; the replay will find the record's id there.
        await self._log.append(msgspec.msgpack.encode(record))
        return Kept(uuid.UUID(bytes=record.id), "spooled")

    async def close(self) -> None:
        """Give up what a database that hangs has not answered; it is in the log."""
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def replay(self, body: bytes) -> None:
        """Put a record of the log into the database; one that is there already stays as it is.

        Raises:
            StorageError: The database is still away: try again later.
            msgspec.MsgspecError: It is no record.
        """
        await self._store(msgspec.msgpack.decode(body, type=Feedback | Report), revisions=None)

    async def _store_in_time(self, record: Feedback | Report) -> Kept:
        # A connection that hangs takes long to give up, longer than a caller should wait: that happens behind them.
        task = asyncio.get_running_loop().create_task(self._store(record, revisions=REVISIONS))
        self._late.add(task)
        task.add_done_callback(self._forget)
        done, _ = await asyncio.wait([task], timeout=_DATABASE_SECONDS)
        if not done:
            task.cancel()
            raise StorageError(f"the database did not answer within {_DATABASE_SECONDS:g} s")
        return task.result()

    def _forget(self, task: asyncio.Task[Kept]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # Looked at, so that nothing complains when nobody waited for it.

    async def _store(self, record: Feedback | Report, *, revisions: int | None) -> Kept:
        async with self._database.connection() as connection:
            if isinstance(record, Report):
                new = await report_storage.insert(connection, record)
                return Kept(uuid.UUID(bytes=record.id), "created" if new else "unchanged")
            kept = await feedback_storage.keep(connection, record, revisions=revisions)
            return Kept(kept.id, "created" if kept.new else "unchanged")
