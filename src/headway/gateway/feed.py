"""The feed of routing snapshots: listens, polls, and keeps the last one on disk for days without a database.

Who has heard nothing for too long is cut off from the controller: nobody could tell it to take a candidate back. Until
it hears again, rollouts that ask for that (``on_lost_control: stable``) are left out of the snapshot that it serves.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from headway.clock import Clock
from headway.domain.snapshot import Snapshot, decode_snapshot, encode_snapshot
from headway.errors import ConfigurationError, StorageError
from headway.storage.database import Connection, Database
from headway.storage.routing import CHANNEL, latest

_log = structlog.get_logger("headway.gateway.feed")
_POLL_SECONDS = 1.0
_READ_SECONDS = 5.0
_WATCH_SECONDS = 1.0


class SnapshotFeed:
    """Holds the newest snapshot known to this worker, and tells of each new one.

    Args:
        database: Where snapshots come from.
        path: The file that keeps the last one.
        clock: For waiting between polls.
        on_change: Called with what is to be served: each new snapshot, the first included; and when the database has
            been lost for too long, and when it is back.
        lost_seconds: How long is too long.
    """

    def __init__(
        self,
        database: Database,
        path: Path,
        clock: Clock,
        on_change: Callable[[Snapshot], None],
        lost_seconds: float = 60.0,
    ) -> None:
        self._database = database
        self._path = path
        self._clock = clock
        self._on_change = on_change
        self._lost_seconds = lost_seconds
        self._snapshot: Snapshot | None = None
        self._heard_at: float | None = None
        self._lost = False
        self._number = 0
        self._away = False
        self._unreadable = False

    async def start(self) -> None:
        """Take the newest snapshot: from the database, or, when that is away, from disk.

        Raises:
            ConfigurationError: There is none in either.
        """
        try:
            async with self._database.connection() as connection:
                snapshot = await self._read(connection)
        except StorageError as error:
            snapshot = self._load()
            self._away = True
            _log.warning("database_away", detail=str(error), snapshot=snapshot.number if snapshot else None)
        else:
            snapshot = snapshot or (self._load() if self._unreadable else None)
        if snapshot is None:
            raise ConfigurationError("no routing snapshot yet: run `headway apply`, or start with `headway run`")
        self._take(snapshot)

    async def run(self) -> None:
        """Follow the snapshots until cancelled. Whatever happens to the database, the last one stays."""
        while True:
            try:
                async with self._database.connection() as connection:
                    try:
                        await connection.set_autocommit(True)
                        await connection.execute(f"LISTEN {CHANNEL}")
                        await self._follow(connection)
                    finally:
                        await connection.close()  # It listens, so it is not one to lend to others.
            except StorageError as error:
                if not self._away:
                    _log.warning("database_away", detail=str(error), snapshot=self._number)
                self._away = True
                await self._clock.sleep(_POLL_SECONDS)

    async def watch(self) -> None:
        """See, until cancelled, whether the database is heard of; apart from ``run``, which may be waiting for it."""
        while True:
            await self._clock.sleep(_WATCH_SECONDS)
            self._look()

    def _look(self) -> None:
        heard_at = self._heard_at
        lost = heard_at is None or self._clock.monotonic_seconds() - heard_at > self._lost_seconds
        if lost == self._lost or self._snapshot is None:
            return
        self._lost = lost
        if not lost:
            _log.info("control_back", snapshot=self._number)
        else:
            _log.warning("control_lost", snapshot=self._number, seconds=self._lost_seconds)
        self._serve(self._snapshot)

    def _serve(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._on_change(without_control(snapshot) if self._lost else snapshot)

    async def _follow(self, connection: Connection) -> None:
        while True:
            snapshot = await self._read(connection)
            if self._away:
                self._away = False
                _log.info("database_back", snapshot=self._number)
            if snapshot is not None:
                self._take(snapshot)
            async for _ in connection.notifies(timeout=_POLL_SECONDS, stop_after=1):
                pass

    async def _read(self, connection: Connection) -> Snapshot | None:
        """Read what is newer; what a newer Headway wrote and this one cannot read is left alone."""
        try:
            async with asyncio.timeout(_READ_SECONDS):
                snapshot = await latest(connection, after=self._number)
        except TimeoutError as error:
            raise StorageError(f"the database did not answer within {_READ_SECONDS:g} s") from error
        except msgspec.DecodeError as error:
            if not self._unreadable:
                _log.error("snapshot_unreadable", detail=str(error), snapshot=self._number)
            self._unreadable = True
            return None
        self._heard_at = self._clock.monotonic_seconds()
        if snapshot is not None:
            self._unreadable = False
        elif self._lost:
            self._look()
        return snapshot

    def _take(self, snapshot: Snapshot) -> None:
        self._number = snapshot.number
        # One that comes from disk says nothing of how long ago the database was there.
        self._lost = self._heard_at is None
        self._serve(snapshot)
        try:
            self._save(snapshot)
        except OSError as error:
            _log.warning("snapshot_not_saved", detail=str(error))

    def _save(self, snapshot: Snapshot) -> None:
        # Private: it holds the keys that sign interaction ids. Whole or not at all: renamed into place.
        descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=".snapshot-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode_snapshot(snapshot))
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _load(self) -> Snapshot | None:
        try:
            return decode_snapshot(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("snapshot_unreadable", detail=str(error), file=str(self._path))
            return None


def without_control(snapshot: Snapshot) -> Snapshot:
    """Leave out the rollouts that return to stable when nobody controls them."""
    applications = {
        name: msgspec.structs.replace(each, rollout=None)
        if each.rollout is not None and each.rollout.stable_when_lost
        else each
        for name, each in snapshot.applications.items()
    }
    return msgspec.structs.replace(snapshot, applications=applications)
