"""Keeps what was accepted: in the database, or on disk until the database is back."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import Literal

import msgspec

from headway.clock import Clock
from headway.domain.feedback import KEYLESS_REVISIONS, REVISIONS, Feedback, Report
from headway.domain.protocols import DurableLog
from headway.errors import StorageError
from headway.storage import feedback as feedback_storage
from headway.storage import reports as report_storage
from headway.storage.attempts import Attempts
from headway.storage.database import Database

Outcome = Literal["created", "unchanged", "spooled"]

_DATABASE_SECONDS = 3.0  # a database that does not answer within this is away


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
        self._attempts = Attempts(clock, answer_seconds=_DATABASE_SECONDS)

    async def keep(self, record: Feedback | Report) -> Kept:
        """Keep a record.

        Raises:
            LimitError: The author's history of this metric and target is full.
            HeadwayError: The database is away and the disk refuses too: nothing was kept.
        """
        with contextlib.suppress(StorageError):
            revisions = REVISIONS if record.key else KEYLESS_REVISIONS
            return await self._attempts.run(lambda: self._store(record, revisions=revisions))
        # A commit may have taken effect all the same; the replay will find the record's id there.
        await self._log.append(msgspec.msgpack.encode(record))
        return Kept(uuid.UUID(bytes=record.id), "spooled")

    async def close(self) -> None:
        """Give up what a database that hangs has not answered; it is in the log."""
        await self._attempts.close()

    async def replay(self, body: bytes) -> None:
        """Put a record of the log into the database; one that is there already stays as it is.

        Raises:
            StorageError: The database is still away: try again later.
            msgspec.MsgspecError: It is no record.
        """
        await self._store(msgspec.msgpack.decode(body, type=Feedback | Report), revisions=None)

    async def _store(self, record: Feedback | Report, *, revisions: int | None) -> Kept:
        async with self._database.connection() as connection:
            if isinstance(record, Report):
                new = await report_storage.insert(connection, record)
                return Kept(uuid.UUID(bytes=record.id), "created" if new else "unchanged")
            kept = await feedback_storage.keep(connection, record, revisions=revisions)
            return Kept(kept.id, "created" if kept.new else "unchanged")
