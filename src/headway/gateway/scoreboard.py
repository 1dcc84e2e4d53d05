"""The scoreboard: a small file that the workers of one host map into memory and count on.

Each worker claims one slot and is the only writer of its cells; readers add up over the slots, so nobody waits for a
lock. The kernel gives a slot free when its worker dies, however it dies; what the dead worker had accepted and neither
recorded nor dropped is then known, and is what was lost.

Layout, in cells of 8 bytes: a page of header, the slots' columns, then per API key a row of four cells for each slot:
minute, requests in it, requests in the minute before, requests in flight.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import uuid
from pathlib import Path
from typing import NamedTuple, Self

from headway.errors import ConfigurationError, StorageError

SLOTS = 64
"""Most workers on one host."""

_MAGIC = int.from_bytes(b"headway1", "little", signed=True)
_USED = 1  # cell of the header: slots that have ever been claimed
_PAGE_CELLS = 512
_COLUMNS = 16
_ROW_CELLS = SLOTS * 4
_FIRST_ROW = _PAGE_CELLS + SLOTS * _COLUMNS
_FIRST_KEYS = 64
_CELL_BYTES = 8
_MINUTE_MS = 60_000


class Column:
    """Columns of a worker's slot; all but the gauges grow for ever, over all workers that have had the slot."""

    PID, WORKER_HIGH, WORKER_LOW = range(3)
    SEQUENCE, PENDING, PENDING_SINCE = range(3, 6)  # the batch being written: number, size, RECORDED before it
    ACCEPTED, RECORDED, DROPPED, LOST = range(6, 10)
    SPOOL_BYTES, SPOOL_RECORDS, IN_FLIGHT = range(10, 13)  # gauges


class Predecessor(NamedTuple):
    """A dead worker that left interactions unaccounted for.

    Attributes:
        worker: Its instance.
        sequence: Number of the batch it was writing, or had last written.
        pending: Interactions of that batch if it was still being written; they may be in the database.
        missing: Interactions it had accepted and neither recorded nor dropped, ``pending`` included.
    """

    worker: uuid.UUID
    sequence: int
    pending: int
    missing: int


class WorkerState(NamedTuple):
    """One slot as others see it.

    Attributes:
        slot: Which slot.
        alive: Whether a worker holds it; the gauges of a dead one are 0.
        pid: Process of the worker.
        accepted, recorded, dropped, lost: Interactions, since the scoreboard was made.
        queue: Interactions accepted of which it is not settled yet what becomes of them.
        spool_bytes, spool_records, in_flight: As of now.
    """

    slot: int
    alive: bool
    pid: int
    accepted: int
    recorded: int
    dropped: int
    lost: int
    queue: int = 0
    spool_bytes: int = 0
    spool_records: int = 0
    in_flight: int = 0


class Scoreboard:
    """This process's view of the scoreboard, and its slot if it has claimed one."""

    def __init__(self, descriptor: int, slot: int | None) -> None:
        self.worker = uuid.uuid4()
        self.predecessors: list[Predecessor] = []
        self._descriptor = descriptor
        self._map()
        self._dead: frozenset[int] = frozenset()
        self._slot = slot
        self._base = 0
        if slot is not None:
            self._base = _PAGE_CELLS + slot * _COLUMNS
            self._take_slot(slot)
            self._inherit()
        self.refresh()

    @classmethod
    def open(cls, home: Path) -> Self:
        """Open the scoreboard under ``home`` and claim a slot, for as long as this process lives.

        Raises:
            ConfigurationError: All slots are claimed.
            StorageError: The file cannot be made.
        """
        descriptor = _open_file(home)
        for slot in range(SLOTS):
            if _try_lock(descriptor, slot):
                return cls(descriptor, slot)
        os.close(descriptor)
        raise ConfigurationError(f"more than {SLOTS} workers share {home}: give some a HEADWAY_HOME of their own")

    @classmethod
    def watch(cls, home: Path) -> Self:
        """Open the scoreboard under ``home`` to read it.

        Raises:
            StorageError: The file cannot be made.
        """
        return cls(_open_file(home), None)

    @property
    def slot(self) -> int:
        """The slot that this process has claimed."""
        assert self._slot is not None, "opened to watch"
        return self._slot

    def close(self) -> None:
        """Give the slot back."""
        if self._descriptor >= 0:
            if self._slot is not None:
                for column in (Column.PID, Column.SPOOL_BYTES, Column.SPOOL_RECORDS, Column.IN_FLIGHT):
                    self._cells[self._base + column] = 0
            self._cells.release()
            self._memory.close()
            os.close(self._descriptor)
            self._descriptor = -1

    # --- this worker's columns ---

    def add(self, column: int, count: int = 1) -> None:
        """Add to a column of this worker."""
        self._cells[self._base + column] += count

    def put(self, column: int, value: int) -> None:
        """Set a column of this worker."""
        self._cells[self._base + column] = value

    def expect(self, sequence: int, interactions: int) -> None:
        """Note which batch is about to be written; it is booked as soon as RECORDED grows."""
        self.put(Column.PENDING, 0)
        self.put(Column.PENDING_SINCE, self._cells[self._base + Column.RECORDED])
        self.put(Column.SEQUENCE, sequence)
        self.put(Column.PENDING, interactions)

    # --- quotas ---

    def begin(self, key: int, unix_ms: int) -> None:
        """Count a request of an API key, and that it is in flight."""
        cell = _FIRST_ROW + key * _ROW_CELLS + self._slot * 4  # type: ignore[operator] # a worker has claimed
        if cell >= self._size:
            self._grow(key)
        cells = self._cells
        minute = unix_ms // _MINUTE_MS
        counted = cells[cell]
        if counted != minute:
            cells[cell + 2] = cells[cell + 1] if counted == minute - 1 else 0
            cells[cell + 1] = 0
            cells[cell] = minute
        cells[cell + 1] += 1
        cells[cell + 3] += 1
        cells[self._base + Column.IN_FLIGHT] += 1

    def end(self, key: int) -> None:
        """Count that a request of an API key is no longer in flight."""
        cells = self._cells
        cells[_FIRST_ROW + key * _ROW_CELLS + self._slot * 4 + 3] -= 1  # type: ignore[operator] # see begin
        cells[self._base + Column.IN_FLIGHT] -= 1

    def requests_per_minute(self, key: int, unix_ms: int) -> float:
        """Estimate a key's requests in the last 60 seconds, on all workers of this host.

        The minute before counts by the part of it that the last 60 seconds still cover.
        """
        minute, passed = divmod(unix_ms, _MINUTE_MS)
        current = previous = 0
        row = self._row(key)
        for cell in range(0, len(row), 4):
            counted = row[cell]
            if counted == minute:
                current += row[cell + 1]
                previous += row[cell + 2]
            elif counted == minute - 1:
                previous += row[cell + 1]
        return current + previous * (1.0 - passed / _MINUTE_MS)

    def in_flight(self, key: int) -> int:
        """Count a key's requests in flight on all living workers of this host."""
        row = self._row(key)
        if not self._dead:
            return sum(row[3::4])
        return sum([count for slot, count in enumerate(row[3::4]) if slot not in self._dead])

    # --- everybody's ---

    def refresh(self) -> None:
        """Find out which workers have died; to be called about once a second."""
        self._dead = frozenset(slot for slot in range(self._cells[_USED]) if not self._is_alive(slot))

    def workers(self) -> list[WorkerState]:
        """Read all slots that have ever been claimed."""
        self.refresh()
        states = []
        for slot in range(self._cells[_USED]):
            base = _PAGE_CELLS + slot * _COLUMNS
            row = self._cells[base : base + _COLUMNS].tolist()
            alive = slot not in self._dead
            gauges = (self._missing(base), *row[Column.SPOOL_BYTES : Column.IN_FLIGHT + 1]) if alive else ()
            states.append(WorkerState(slot, alive, row[Column.PID], *row[Column.ACCEPTED : Column.LOST + 1], *gauges))
        return states

    def _map(self) -> None:
        self._memory = mmap.mmap(self._descriptor, 0)
        self._cells = memoryview(self._memory).cast("q")
        self._size = len(self._cells)

    def _grow(self, key: int) -> None:
        _allocate(self._descriptor, 1 << (key + 1).bit_length())
        self._cells.release()
        self._memory.close()
        self._map()

    def _row(self, key: int) -> list[int]:
        start = _FIRST_ROW + key * _ROW_CELLS
        if start >= self._size:
            self._grow(key)
        return self._cells[start : start + self._cells[_USED] * 4].tolist()

    def _is_alive(self, slot: int) -> bool:
        if slot == self._slot:
            return True  # a lock does not conflict with its own holder
        asked = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, _lock_request(slot))
        return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)

    def _take_slot(self, slot: int) -> None:
        cells, base = self._cells, self._base
        self._note_dead(base)
        for cell in range(_FIRST_ROW + slot * 4 + 3, self._size, _ROW_CELLS):
            cells[cell] = 0
        for column in range(Column.SPOOL_BYTES, _COLUMNS):
            cells[base + column] = 0
        high, low = struct.unpack("=qq", self.worker.bytes)
        for column, value in enumerate((os.getpid(), high, low, 0, 0, 0)):
            cells[base + column] = value
        cells[_USED] = max(cells[_USED], slot + 1)

    def _inherit(self) -> None:
        """Take over what is open in other dead workers' slots: there may be fewer workers now, and no next one."""
        for slot in range(self._cells[_USED]):
            base = _PAGE_CELLS + slot * _COLUMNS
            if slot == self._slot or not self._missing(base) or not _try_lock(self._descriptor, slot):
                continue
            missing = self._note_dead(base)
            self.add(Column.ACCEPTED, missing)
            self._cells[base + Column.ACCEPTED] -= missing
            _unlock(self._descriptor, slot)

    def _missing(self, base: int) -> int:
        row = self._cells[base : base + _COLUMNS].tolist()
        return int(row[Column.ACCEPTED] - row[Column.RECORDED] - row[Column.DROPPED] - row[Column.LOST])

    def _note_dead(self, base: int) -> int:
        """Remember a dead worker that left interactions unaccounted for; says how many."""
        missing = self._missing(base)
        if missing > 0:
            row = self._cells[base : base + _COLUMNS].tolist()
            worker = uuid.UUID(bytes=struct.pack("=qq", row[Column.WORKER_HIGH], row[Column.WORKER_LOW]))
            unbooked = row[Column.RECORDED] == row[Column.PENDING_SINCE]
            pending = min(row[Column.PENDING], missing) if unbooked else 0
            self.predecessors.append(Predecessor(worker, row[Column.SEQUENCE], pending, missing))
        return missing


_FLOCK = struct.Struct("@hhqqi4x")


def _lock_request(slot: int, kind: int = fcntl.F_WRLCK) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, slot, 1, 0)


def _try_lock(descriptor: int, slot: int) -> bool:
    # Of the open file, not of the process: closing another descriptor of the file elsewhere must not release it.
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock_request(slot))
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int, slot: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock_request(slot, fcntl.F_UNLCK))


def _open_file(home: Path) -> int:
    path = home / "scoreboard"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _allocate(descriptor, _FIRST_KEYS)
        found = os.pread(descriptor, _CELL_BYTES, 0)
        magic = _MAGIC.to_bytes(_CELL_BYTES, "little", signed=True)
        if found == bytes(_CELL_BYTES):
            os.pwrite(descriptor, magic, 0)
        elif found != magic:
            os.close(descriptor)
            path.unlink(missing_ok=True)  # of another version: whoever still uses it keeps it
            return _open_file(home)
        return descriptor
    except OSError as error:
        raise StorageError(f"the scoreboard {path} cannot be used: {error}") from error


def _allocate(descriptor: int, keys: int) -> None:
    # Real blocks, not a hole: a full disk is an error here and not a signal that kills the worker later.
    os.posix_fallocate(descriptor, 0, (_FIRST_ROW + keys * _ROW_CELLS) * _CELL_BYTES)
