"""Processes the benchmark starts: accounted for as a tree, and ended as a tree."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import find_tool

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_STOP_SECONDS = 15.0


class ProcessError(Exception):
    """A process did not start, or ended before it should; the message ends with what it printed last."""


@dataclass(frozen=True)
class _Stat:
    """What accounting needs of /proc/PID/stat; CPU in seconds."""

    state: str
    parent: int
    session: int
    started: int
    own_seconds: float
    reaped_seconds: float


@dataclass(frozen=True)
class Tree:
    """A process and all that descends from it; what it leads in a session of its own, too. Root 0: no processes."""

    root: int

    def members(self) -> list[int]:
        """List the live processes: descendants, and orphans that stayed in the session. Children before parents."""
        if self.root == 0:  # what belongs to no session has session 0
            return []
        stats = {pid: stat for pid in _list_pids() if (stat := _read_stat(pid)) is not None}
        found = [self.root] if self.root in stats else []
        for pid in found:  # grows while it is walked: breadth first
            found.extend(child for child, stat in stats.items() if stat.parent == pid)
        orphans = [pid for pid, stat in stats.items() if stat.session == self.root and pid not in found]
        return [*orphans, *reversed(found)]

    def cpu_seconds(self) -> float:
        """Add up the CPU time, user and system, of the whole tree since it started, ended children included.

        Two readings of each process are lower bounds of what it used: the kernel's ticks (10 ms; threads that ended
        are included) and the nanoseconds of its live threads. The larger one is taken.
        """
        return sum(_used_seconds(pid) for pid in self.members())

    def memory_bytes(self) -> int:
        """Add up the memory of the tree; a page shared by several processes counts once (PSS)."""
        return sum(_read_pss_bytes(pid) for pid in self.members())


@dataclass(frozen=True)
class Process:
    """A child that leads a session of its own."""

    child: subprocess.Popen[bytes]
    log: Path

    @property
    def tree(self) -> Tree:
        """The child and all that descends from it."""
        return Tree(self.child.pid)

    def wait_until(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        """Return once ``ready`` says so.

        Raises:
            ProcessError: The process ended first, or the time is up.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.child.poll() is not None:
                raise ProcessError(f"{what} ended with code {self.child.returncode}:\n{self.last_lines()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{what} was not ready after {seconds:.0f} s:\n{self.last_lines()}")
            time.sleep(0.02)

    def last_lines(self, count: int = 8) -> str:
        """Give the last lines it printed, long ones cut."""
        return "\n".join(line[:400] for line in self.log.read_text(errors="replace").splitlines()[-count:])

    def stop(self, first_signal: int) -> None:
        """End the process, politely first; what is left of its tree is killed."""
        family = {pid: stat.started for pid in self.tree.members() if (stat := _read_stat(pid)) is not None}
        self.child.send_signal(first_signal)
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(_STOP_SECONDS)
        for pid, started in family.items():
            if _is_running(pid, started):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.child.wait()
        deadline = time.monotonic() + _STOP_SECONDS
        while any(_is_running(pid, started) for pid, started in family.items()) and time.monotonic() < deadline:
            time.sleep(0.01)


@contextmanager
def start(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    stop_signal: int = signal.SIGTERM,
) -> Iterator[Process]:
    """Start a command, and end it with all its children on the way out.

    It leads its own session, so Ctrl-C reaches the benchmark alone, which then ends its children in order; should the
    benchmark itself be killed, the kernel kills the child (parent-death signal); its children must see to themselves.
    """
    guarded = [find_tool("setpriv", "util-linux"), "--pdeathsig", "KILL", *command]
    with log.open("ab") as output:
        child = subprocess.Popen(
            guarded,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else {**os.environ, **environment},
            cwd=folder,
            start_new_session=True,
        )
    process = Process(child, log)
    try:
        yield process
    finally:
        process.stop(stop_signal)


def choose_port() -> int:
    """Find a loopback port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_listening(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _list_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything; this starts at field 3, state
    ticks = [int(field) for field in fields[11:15]]
    return _Stat(
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        own_seconds=(ticks[0] + ticks[1]) / _TICKS_PER_SECOND,
        reaped_seconds=(ticks[2] + ticks[3]) / _TICKS_PER_SECOND,
    )


def _is_running(pid: int, started: int) -> bool:
    """Whether the process of this number is the one that started then, and has not ended."""
    stat = _read_stat(pid)
    return stat is not None and stat.started == started and stat.state != "Z"


def _used_seconds(pid: int) -> float:
    nanoseconds = 0
    for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            nanoseconds += int(schedstat.read_text().split()[0])
    stat = _read_stat(pid)
    if stat is None:  # ended while it was read: its parent, read after it, has its time
        return 0.0
    return max(nanoseconds / 1e9, stat.own_seconds) + stat.reaped_seconds


def _read_pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
