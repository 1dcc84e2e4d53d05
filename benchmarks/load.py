"""Load on one endpoint: closed loop (as fast as it answers) and open loop (arrivals at a constant rate)."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from benchmarks.exchange import ResponseReader
from benchmarks.timer import Timer

Check = Callable[[ResponseReader], str | None]
"""Says what is wrong with a whole answer, or None."""


@dataclass
class Outcome:
    """What one load did. Latencies in milliseconds: closed loop from the send, open loop from the scheduled time."""

    sent: int = 0
    answered: int = 0
    elapsed_seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)


class Connection(asyncio.Protocol):
    """A keep-alive connection that carries one exchange at a time."""

    def __init__(self, on_answer: Callable[[Connection], None], on_loss: Callable[[Connection, str], None]) -> None:
        self.reader = ResponseReader()
        self.since = 0.0
        self._busy = False
        self._on_answer = on_answer
        self._on_loss = on_loss
        self._transport: asyncio.Transport | None = None

    def send(self, request: bytes, since: float) -> None:
        """Send a request whose latency counts from ``since`` (seconds, monotonic)."""
        assert self._transport is not None
        self.since = since
        self._busy = True
        self.reader.start()
        self._transport.write(request)

    def close(self) -> None:
        """Close; what comes after counts no more."""
        self._busy = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        try:
            whole = self.reader.feed(data)
        except ValueError as error:
            self._fail(str(error))
            return
        if whole:
            self._busy = False
            self._on_answer(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._busy:
            self._fail(f"connection lost: {exc or 'closed'}")

    def _fail(self, fault: str) -> None:
        self.close()
        self._on_loss(self, fault)


class _Load:
    """What both loops share: the connections, the count, and the end."""

    def __init__(self, requests: Iterator[bytes], count: int, check: Check) -> None:
        self.outcome = Outcome()
        self._requests = requests
        self._count = count
        self._check = check
        self._done = asyncio.get_running_loop().create_future()
        self._connections: list[Connection] = []

    async def open(self, port: int, connections: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self._take_answer, self._take_loss), "127.0.0.1", port
            )
            self._connections.append(connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    async def wait(self, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._done
        except TimeoutError:
            unanswered = self._count - self.outcome.answered
            self.outcome.faults[f"not answered within {timeout_seconds:.0f} s"] += unanswered

    def _take_answer(self, connection: Connection) -> None:
        outcome = self.outcome
        outcome.answered += 1
        outcome.latencies_ms.append((time.monotonic() - connection.since) * 1000)
        fault = self._check(connection.reader)
        if fault is not None:
            outcome.faults[fault] += 1
        self._go_on(connection)
        self._end_if_done()

    def _take_loss(self, connection: Connection, fault: str) -> None:
        self._connections.remove(connection)
        self.outcome.faults[fault] += 1
        if not self._done.done():  # one lost connection already voids the round: end it
            self._done.set_result(None)

    def _end_if_done(self) -> None:
        if self.outcome.answered == self._count and not self._done.done():
            self._done.set_result(None)

    def _send(self, connection: Connection, since: float) -> None:
        self.outcome.sent += 1
        connection.send(next(self._requests), since)

    def _go_on(self, connection: Connection) -> None:
        raise NotImplementedError


class _ClosedLoop(_Load):
    """Each connection sends its next request when the last one is answered."""

    def start(self) -> None:
        for connection in list(self._connections):
            self._go_on(connection)

    def _go_on(self, connection: Connection) -> None:
        if self.outcome.sent < self._count:
            self._send(connection, time.monotonic())


class _OpenLoop(_Load):
    """Requests are due at fixed times, whatever the answers do; one that finds no free connection waits, and its
    latency counts from when it was due, so a stall is not hidden by the requests it held up (coordinated omission)."""

    _timer: Timer | None = None

    def start(self, requests_per_second: float) -> None:
        self._free = deque(self._connections)
        self._schedule = Schedule(time.monotonic() + 0.02, requests_per_second, self._count)
        self._timer = Timer(self._send_due)
        self._timer.arm(self._schedule.start_at, 1 / requests_per_second)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.close()

    def _send_due(self) -> None:
        self._fill(self._schedule.count_due(time.monotonic()))

    def _go_on(self, connection: Connection) -> None:
        self._free.append(connection)
        self._fill(self._schedule.count_due(time.monotonic()))

    def _fill(self, due: int) -> None:
        while self._free and self.outcome.sent < due:
            self._send(self._free.popleft(), self._schedule.due_at(self.outcome.sent))


@dataclass(frozen=True)
class Schedule:
    """When each of ``count`` requests is due, at a constant rate; times in seconds of the monotonic clock."""

    start_at: float
    per_second: float
    count: int

    def due_at(self, index: int) -> float:
        """Say when request ``index``, from 0, is due."""
        return self.start_at + index / self.per_second

    def count_due(self, now: float) -> int:
        """Count the requests that are due by ``now``."""
        elapsed = now - self.start_at
        return 0 if elapsed < 0 else min(self.count, int(elapsed * self.per_second) + 1)


async def run_closed_loop(
    port: int, requests: Iterator[bytes], count: int, connections: int, check: Check, timeout_seconds: float = 120.0
) -> Outcome:
    """Send ``count`` requests as fast as they are answered, one at a time on each connection.

    The load ends by itself: all answered, a connection lost, or the time up; the last two leave a fault.
    """
    load = _ClosedLoop(requests, count, check)
    await load.open(port, min(connections, count))
    try:
        with _garbage_kept():
            started = time.monotonic()
            load.start()
            await load.wait(timeout_seconds)
            load.outcome.elapsed_seconds = time.monotonic() - started
    finally:
        load.close()
    return load.outcome


async def run_open_loop(
    port: int, requests: Iterator[bytes], count: int, requests_per_second: float, check: Check, connections: int = 256
) -> Outcome:
    """Send ``count`` requests at a constant rate; latencies count from the time each one was due."""
    load = _OpenLoop(requests, count, check)
    await load.open(port, connections)
    try:
        with _garbage_kept():
            started = time.monotonic()
            load.start(requests_per_second)
            await load.wait(count / requests_per_second + 30)
            load.outcome.elapsed_seconds = time.monotonic() - started
    finally:
        load.stop()
        load.close()
    return load.outcome


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Keep the collector from stopping the load generator in the middle of a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
