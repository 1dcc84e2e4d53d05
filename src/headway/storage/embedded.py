"""The embedded PostgreSQL: started for the first process that uses it, stopped after the last one.

The server belongs to no process of Headway. Each of them calls :func:`start` and holds a shared lock while it uses the
server; a guardian (``headway.storage.guardian``) keeps the server running meanwhile, whoever of them is killed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote

from psycopg.pq import PGconn, Ping

from headway.clock import Clock, SystemClock
from headway.errors import EmbeddedPostgresError
from headway.storage.cluster import log_tail
from headway.storage.guardian import BUSY, FAILED, READY
from headway.storage.layout import Layout, process_exists, read_pid_file, try_lock

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class EmbeddedServer:
    """This process's use of the embedded server; the server runs at least until it is closed.

    Attributes:
        home: Headway's home; the data is in ``home/postgres``.
        url: Where to connect: database and role ``headway``. The role owns the database and may create others, but is
            no superuser.
    """

    home: Path
    url: str
    _use: BinaryIO = field(repr=False, compare=False)

    def ensure(self, *, timeout_seconds: float = 60.0) -> None:
        """Return when the server accepts connections; bring it and its guardian back if either was killed.

        Cheap while all is well (no connection is made), so it may be called every second.

        Raises:
            EmbeddedPostgresError: The server does not come back; with the last lines of its log.
        """
        if self._use.closed:
            raise EmbeddedPostgresError("this use of the embedded PostgreSQL is closed: start it again")
        layout = Layout(self.home)
        try:
            if not _has_guardian(layout) or not _seems_ready(layout):
                _bring_up(layout, timeout_seconds, SystemClock(), create=False)
        except OSError as error:
            raise _unusable(layout, error) from error

    def close(self, *, wait_seconds: float = 0.0) -> None:
        """Give the server up; it stops within seconds when nobody else uses it. Closing twice is harmless.

        A process that was forked meanwhile counts as a user until it ends.

        Args:
            wait_seconds: How long to wait for the server to stop, before its files are copied or removed.
        """
        self._use.close()
        clock = SystemClock()
        deadline = clock.monotonic_seconds() + wait_seconds
        while clock.monotonic_seconds() < deadline and _has_guardian(Layout(self.home)):
            time.sleep(_POLL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def start(home: Path, *, timeout_seconds: float = 60.0, clock: Clock | None = None) -> EmbeddedServer:
    """Use the server under ``home``: make its data, start or join it, and return when it accepts connections.

    Blocks: 0.2 s for data that exists, 1 s for the first start, longer after a crash that left much to recover.

    Args:
        home: Headway's folder; made, for this user alone, if it does not exist. Nothing outside it is changed, but for
            a private folder under the system's temporary one when the path is too long for a socket.
        timeout_seconds: Longest wait.
        clock: Where the time comes from; the machine's clock by default.

    Raises:
        EmbeddedPostgresError: It cannot run here; the message says why and what to do.
    """
    clock = clock or SystemClock()
    layout = Layout(home.resolve())
    try:
        layout.home.mkdir(mode=0o700, exist_ok=True)
        use = layout.open(layout.users)
        try:
            _join(layout, use, timeout_seconds, clock)
            _bring_up(layout, timeout_seconds, clock, create=True)
            return EmbeddedServer(layout.home, _url(layout), use)
        except BaseException:
            use.close()
            raise
    except OSError as error:
        raise _unusable(layout, error) from error


def _join(layout: Layout, use: BinaryIO, timeout_seconds: float, clock: Clock) -> None:
    # The lock is not free only while a guardian stops the server.
    deadline = clock.monotonic_seconds() + timeout_seconds
    while not try_lock(use, exclusive=False):
        if clock.monotonic_seconds() > deadline:
            raise EmbeddedPostgresError(
                f"the server under {layout.home} is still stopping after {timeout_seconds:g} s:\n{log_tail(layout)}"
            )
        time.sleep(_POLL_SECONDS)


def _bring_up(layout: Layout, timeout_seconds: float, clock: Clock, *, create: bool) -> None:
    deadline = clock.monotonic_seconds() + timeout_seconds
    while True:
        if not _has_guardian(layout):
            _start_guardian(layout, max(1.0, deadline - clock.monotonic_seconds()), create=create)
        # Asked only once it says so itself: each question to a server that still recovers leaves a line in its log.
        if _has_guardian(layout) and _says_ready(layout) and PGconn.ping(_url(layout).encode()) == Ping.OK:
            return
        if clock.monotonic_seconds() > deadline:
            raise _late(layout)
        time.sleep(_POLL_SECONDS)


def _start_guardian(layout: Layout, timeout_seconds: float, *, create: bool) -> None:
    command = [sys.executable, "-P", "-m", "headway.storage.guardian", str(layout.home)]
    try:
        guardian = subprocess.run(  # noqa: S603 (our own module)
            [*command, "create"] if create else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _late(layout) from error
    report = guardian.stdout.decode(errors="replace").strip()
    # Busy: another process was quicker, its guardian is ours too. No report: it was killed, and is started again.
    if report not in (READY, BUSY, ""):
        raise EmbeddedPostgresError(report.removeprefix(FAILED).strip())


def _has_guardian(layout: Layout) -> bool:
    with layout.open(layout.guardian) as lock:
        return not try_lock(lock, exclusive=False)


def _says_ready(layout: Layout) -> bool:
    found = read_pid_file(layout.data)
    return found is not None and found.status == "ready"


def _seems_ready(layout: Layout) -> bool:
    found = read_pid_file(layout.data)
    return found is not None and found.status == "ready" and process_exists(found.pid)


def _url(layout: Layout) -> str:
    folder = layout.socket.readlink() if layout.socket.is_symlink() else layout.socket
    return f"postgresql://headway@/headway?host={quote(str(folder), safe='')}&port=5432"


def _late(layout: Layout) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"the server under {layout.home} does not accept connections yet. It may still be recovering from a crash; its"
        f" log {layout.log} ends with:\n{log_tail(layout)}"
    )


def _unusable(layout: Layout, error: OSError) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"the embedded PostgreSQL cannot use {layout.home}: {error}. Set HEADWAY_HOME to a folder of your own, or"
        " HEADWAY_DATABASE_URL to a PostgreSQL of your own."
    )
