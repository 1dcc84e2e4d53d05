"""The spool: records wait on disk, in order, while the database is away.

Each worker owns a folder with a lock file, and appends to one segment after the other; a record is framed by its
length and a checksum, so a tail torn by a crash is told from a record. What a dead worker leaves behind is adopted by
exactly one live one: the kernel gives its lock away once. Handling must be idempotent: a crash repeats a segment.

Frame: length 4 | CRC-32 of the rest 4 | Unix milliseconds 8 | weight 4 | record.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from headway.clock import Clock
from headway.errors import HeadwayError, OverloadedError, StorageError

_FRAME = struct.Struct(">IIQI")
_STAMP = struct.Struct(">QI")
_SEGMENTS = 16  # the bound is kept by dropping whole segments: at least this many fit
_LARGEST_SEGMENT = 8 * 1024 * 1024
_READ_BYTES = 4 * 1024 * 1024
_REPLAYED_AT_ONCE = 10
_SHORTEST_PAUSE_SECONDS = 0.01
_SUFFIX = ".spool"
_LOCK = "lock"
_REFUSED = "refused"

_log = structlog.get_logger(__name__)

Handler = Callable[[bytes], Awaitable[None]]


class _Frame(NamedTuple):
    record: bytes
    unix_ms: int
    weight: int
    end: int


class _Segment:
    """A file of frames; ``start`` is where the next one to replay begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.records = 0
        self.weight = 0
        self.start = 0
        self.oldest_ms = 0
        self.newest_ms = 0

    def count(self, frame_bytes: int, unix_ms: int, weight: int) -> None:
        self.oldest_ms = self.oldest_ms or unix_ms
        self.newest_ms = unix_ms
        self.bytes += frame_bytes
        self.records += 1
        self.weight += weight

    def done(self, frame: _Frame) -> None:
        self.start = frame.end
        self.records -= 1
        self.weight -= frame.weight


class Spool:
    """Keeps records on disk until they can be handled, oldest first, and survives kill -9 and power cuts.

    Args:
        folder: Shared by the workers of this host that spool the same kind of record.
        clock: Dates the records.
        max_bytes: Most that may wait.
        max_age_seconds: Records older than this are dropped; None keeps them.
        drop_oldest: When full, drop the oldest and count them; otherwise refuse the newest.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        max_bytes: int,
        max_age_seconds: float | None = None,
        drop_oldest: bool = True,
    ) -> None:
        self.dropped = 0
        self._folder = folder
        self._clock = clock
        self._max_bytes = max_bytes
        self._max_age_ms = None if max_age_seconds is None else int(max_age_seconds * 1000)
        self._drop_oldest = drop_oldest
        self._segment_bytes = max(1, min(_LARGEST_SEGMENT, max_bytes // _SEGMENTS))
        self._guard = threading.Lock()  # files are touched in threads
        self._own: Path | None = None
        self._lock = -1
        self._active = -1
        self._segments: list[_Segment] = []  # oldest first; while a file is open it is the last one's
        self._pending: list[tuple[bytes, int, asyncio.Future[None]]] = []
        self._writing: asyncio.Future[list[HeadwayError | None]] | None = None

    @property
    def bytes_waiting(self) -> int:
        """Bytes that wait to be replayed."""
        return sum(segment.bytes - segment.start for segment in self._segments)

    @property
    def records_waiting(self) -> int:
        """Records that wait to be replayed."""
        return sum(segment.records for segment in self._segments)

    async def append(self, record: bytes, weight: int = 1) -> None:
        """Return once the record is on disk; records that come at the same time share one fsync.

        Args:
            record: What is handed to the handler later.
            weight: How much is lost with it, for the count of what was dropped.

        Raises:
            OverloadedError: The spool is full and must not drop what it has.
            StorageError: The disk refuses.
        """
        done = asyncio.get_running_loop().create_future()
        self._pending.append((record, weight, done))
        if self._writing is None:
            self._write_pending()
        await done

    async def replay(self, handle: Handler, limit: int) -> int:
        """Hand over the oldest records, at most ``limit``, and forget each that was handled.

        A record that the handler cannot make sense of is put aside, in the file ``refused``, and logged.

        Returns:
            How many were handled; fewer than ``limit`` when no more wait.

        Raises:
            StorageError: From the handler: the record stays, and those behind it.
        """
        handled = 0
        while handled < limit:
            segment, frames = await asyncio.to_thread(self._read, limit - handled)
            if segment is None:
                break
            for frame in frames:
                if self._expired(frame.unix_ms):
                    self._count_dropped(frame.weight, "too_old")
                else:
                    await self._hand_over(handle, frame)
                    handled += 1
                segment.done(frame)
            if not frames:
                await asyncio.to_thread(self._finish, segment)
        return handled

    async def replay_forever(self, handle: Handler, *, every_seconds: float = 1.0) -> None:
        """Replay, this worker's records and those of dead ones, until cancelled.

        Takes up at most a quarter of the time, so that live traffic does not starve behind what has piled up.
        """
        while True:
            try:
                await self.adopt()
                while self._segments:  # also one whose records are all handled: its file is still there
                    started = self._clock.monotonic_seconds()
                    await self.replay(handle, _REPLAYED_AT_ONCE)
                    took = self._clock.monotonic_seconds() - started
                    await self._clock.sleep(max(_SHORTEST_PAUSE_SECONDS, 3.0 * took))
            except StorageError as error:
                _log.info("replay_waits", folder=self._folder.name, detail=error.message)
            await self._clock.sleep(every_seconds)

    async def adopt(self) -> int:
        """Take over what dead workers of this host left behind; returns how many records."""
        adopted = await asyncio.to_thread(self._adopt)
        if adopted:
            _log.info("spool_adopted", folder=self._folder.name, records=adopted)
        return adopted

    async def close(self) -> None:
        """Finish what is being written and let go; what waits is adopted by others, or by the next start."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
        await asyncio.to_thread(self._release)

    # --- appending ---

    def _write_pending(self) -> None:
        records, self._pending = self._pending, []
        self._writing = asyncio.get_running_loop().run_in_executor(
            None, self._write, [(record, weight) for record, weight, _ in records]
        )
        # A callback, not an await: whoever is cancelled meanwhile, the others learn what became of their records.
        self._writing.add_done_callback(lambda written: self._written(written, [done for _, _, done in records]))

    def _written(
        self, written: asyncio.Future[list[HeadwayError | None]], waiting: Sequence[asyncio.Future[None]]
    ) -> None:
        for done, error in zip(waiting, written.result(), strict=True):
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        self._writing = None
        if self._pending:
            self._write_pending()

    def _write(self, records: Sequence[tuple[bytes, int]]) -> list[HeadwayError | None]:
        """Write records; says for each why it is not on disk, if it is not."""
        unix_ms = self._clock.unix_ms()
        errors: list[HeadwayError | None] = []
        with self._guard:
            for record, weight in records:
                try:
                    self._write_frame(record, unix_ms, weight)
                    errors.append(None)
                except OverloadedError as error:
                    errors.append(error)
                except OSError as error:
                    errors.append(self._unwritable(error))
            try:
                if self._active >= 0:
                    os.fsync(self._active)
            except OSError as error:
                return [self._unwritable(error)] * len(records)
        return errors

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(f"the spool under {self._folder} cannot be written: {error}")

    def _write_frame(self, record: bytes, unix_ms: int, weight: int) -> None:
        stamp = _STAMP.pack(unix_ms, weight)
        frame = b"".join((_FRAME.pack(len(record), zlib.crc32(record, zlib.crc32(stamp)), unix_ms, weight), record))
        self._make_room(len(frame))
        if self._active >= 0 and self._is_full(self._segments[-1], unix_ms):
            self._seal()
        if self._active < 0:
            self._open_segment(unix_ms)
        segment = self._segments[-1]
        try:
            _write_all(self._active, frame)
        except OSError:
            os.ftruncate(self._active, segment.bytes)
            raise
        segment.count(len(frame), unix_ms, weight)

    def _make_room(self, size: int) -> None:
        while self._segments and self._expired(self._segments[0].newest_ms):
            self._drop_segment("too_old")
        while sum(segment.bytes for segment in self._segments) + size > self._max_bytes:
            if size > self._max_bytes or not self._drop_oldest:
                raise OverloadedError(f"the spool under {self._folder} is full", retry_after_seconds=30)
            self._drop_segment("full")

    def _is_full(self, segment: _Segment, unix_ms: int) -> bool:
        if segment.bytes >= self._segment_bytes:
            return True
        return self._max_age_ms is not None and unix_ms - segment.oldest_ms > self._max_age_ms // _SEGMENTS

    def _drop_segment(self, reason: str) -> None:
        if len(self._segments) == 1:
            self._seal()
        oldest = self._segments.pop(0)
        oldest.path.unlink(missing_ok=True)
        self._count_dropped(oldest.weight, reason)

    def _open_segment(self, unix_ms: int) -> None:
        own = self._claim()
        path = own / f"{unix_ms:015d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        self._active = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _sync_folder(own)
        self._segments.append(_Segment(path))

    def _seal(self) -> None:
        if self._active >= 0:
            os.fsync(self._active)
            os.close(self._active)
            self._active = -1

    def _count_dropped(self, weight: int, reason: str) -> None:
        if weight:
            self.dropped += weight
            _log.warning("spool_dropped", folder=self._folder.name, count=weight, reason=reason)

    # --- replaying ---

    def _read(self, limit: int) -> tuple[_Segment | None, list[_Frame]]:
        with self._guard:
            if not self._segments:
                return None, []
            segment = self._segments[0]
            if len(self._segments) == 1:
                self._seal()
            frames: list[_Frame] = []
            for frame in _frames(segment.path, segment.start):
                frames.append(frame)
                if len(frames) >= limit or frame.end - segment.start >= _READ_BYTES:
                    break
            return segment, frames

    async def _hand_over(self, handle: Handler, frame: _Frame) -> None:
        try:
            await handle(frame.record)
        except StorageError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it must not block the records behind it, nor be lost
            _log.exception("spooled_record_refused", folder=self._folder.name)
            await asyncio.to_thread(self._put_aside, frame.record)

    def _put_aside(self, record: bytes) -> None:
        descriptor = os.open(self._folder / _REFUSED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "ab") as refused:
            refused.write(_FRAME.pack(len(record), zlib.crc32(record), self._clock.unix_ms(), 1) + record)
            refused.flush()
            os.fsync(refused.fileno())

    def _finish(self, segment: _Segment) -> None:
        with self._guard:
            if segment in self._segments:
                self._segments.remove(segment)
                segment.path.unlink(missing_ok=True)

    def _expired(self, unix_ms: int) -> bool:
        return self._max_age_ms is not None and self._clock.unix_ms() - unix_ms > self._max_age_ms

    # --- owning and adopting ---

    def _claim(self) -> Path:
        """Give this worker's folder, locked; made on first use."""
        while self._own is None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            own = self._folder / uuid.uuid4().hex
            own.mkdir(mode=0o700)
            lock = _lock(own)
            if lock is None:
                continue  # Somebody took the new folder for a dead worker's.
            self._own, self._lock = own, lock
        return self._own

    def _adopt(self) -> int:
        with self._guard:
            adopted = 0
            for folder in _subfolders(self._folder):
                if folder == self._own:
                    continue
                lock = _lock(folder)
                if lock is not None:
                    try:
                        adopted += self._take_over(folder)
                    finally:
                        os.close(lock)
            return adopted

    def _take_over(self, folder: Path) -> int:
        taken: list[_Segment] = []
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            # A rename moves it at once: killed half way, the rest is somebody's still.
            segment = _Segment(path.rename(self._claim() / path.name))
            for frame in _frames(segment.path, 0):
                segment.count(frame.end - segment.bytes, frame.unix_ms, frame.weight)
            taken.append(segment)
        self._segments[:0] = taken
        (folder / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
        return sum(segment.records for segment in taken)

    def _release(self) -> None:
        with self._guard:
            self._seal()
            if self._own is None:
                return
            if not self._segments:
                (self._own / _LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self._own.rmdir()
            os.close(self._lock)
            self._own, self._lock, self._segments = None, -1, []


def _frames(path: Path, start: int) -> Iterator[_Frame]:
    """Read frames up to the end, or up to where a crash tore the file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        end = start
        size = os.fstat(file.fileno()).st_size
        while head := file.read(_FRAME.size):
            length, checksum, unix_ms, weight = _FRAME.unpack(head.ljust(_FRAME.size, b"\0"))
            record = file.read(min(length, size - end))
            if len(record) < length or zlib.crc32(record, zlib.crc32(_STAMP.pack(unix_ms, weight))) != checksum:
                _log.warning("spool_torn", file=path.name, offset=end)
                return
            end += _FRAME.size + length
            yield _Frame(record, unix_ms, weight, end)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []


def _lock(folder: Path) -> int | None:
    """Lock a worker's folder; None when its worker lives, or the folder is gone."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # else it was adopted and removed meanwhile
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None
