"""The only place that reads the time: wall clock, monotonic clock, waiting.

Everything that needs time takes a ``Clock``, so a test can hand it a ``ManualClock`` and no test has to sleep.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits."""

    def unix_ms(self) -> int:
        """Wall clock in milliseconds since 1970, UTC."""
        ...

    def monotonic_seconds(self) -> float:
        """A clock that never goes back, in seconds from an arbitrary start."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds`` of this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    def unix_ms(self) -> int:
        """Wall clock in milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_seconds(self) -> float:
        """The machine's monotonic clock in seconds."""
        return time.perf_counter()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock that stands still until a test advances it.

    Example:
        >>> clock = ManualClock(unix_ms=0)
        >>> clock.advance(1.5)
        >>> clock.unix_ms()
        1500
    """

    def __init__(self, unix_ms: int = 1_790_000_000_000) -> None:
        self._unix_ms = float(unix_ms)
        self._monotonic = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def unix_ms(self) -> int:
        """Wall clock in milliseconds since 1970, as set."""
        return int(self._unix_ms)

    def monotonic_seconds(self) -> float:
        """Seconds advanced since the clock was made."""
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        """Return once the clock has been advanced by ``seconds``."""
        if seconds <= 0:
            return
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), done))
        await done

    @property
    def sleepers(self) -> int:
        """How many are waiting on this clock."""
        return sum(not done.done() for _, _, done in self._sleepers)

    def advance(self, seconds: float) -> None:
        """Move both clocks on by ``seconds`` and wake whoever is due, in order."""
        self._monotonic += seconds
        self._unix_ms += seconds * 1000
        while self._sleepers and self._sleepers[0][0] <= self._monotonic + 1e-9:
            _, _, done = heapq.heappop(self._sleepers)
            if not done.done():
                done.set_result(None)


def utc(unix_ms: int) -> datetime:
    """Turn milliseconds since 1970 into an aware UTC datetime."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def elapsed_ms(since: float, until: float) -> float:
    """Milliseconds between two readings of a monotonic clock."""
    return (until - since) * 1000.0
