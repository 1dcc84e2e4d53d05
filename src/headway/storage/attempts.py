"""Asking the database, or something else that may be away, on behalf of callers who cannot wait for it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from headway.clock import Clock
from headway.errors import HeadwayError, StorageError

_AWAY_SECONDS = 1.0

T = TypeVar("T")


class Attempts:
    """Gives the database a short time to answer; while it is away, one caller at a time finds out, others go on.

    A connection that hangs takes more than ten seconds to give up. That happens behind the caller.

    Args:
        clock: Tells how long the database has been away.
        answer_seconds: How long a caller waits for it.
        abandon: What was begun for a caller who is cancelled is cancelled too; else it goes on.
        of: What is asked, if it is not the database.
        away: The error that says that it is away.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        answer_seconds: float = 1.0,
        abandon: bool = False,
        of: str = "the database",
        away: type[HeadwayError] = StorageError,
    ) -> None:
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._abandon = abandon
        self._of = of
        self._away = away
        self._away_until = -math.inf
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do some work with the database.

        What was begun may take effect even when this fails.

        Raises:
            HeadwayError: ``away``: it is, or does not answer in time.
        """
        now = self._clock.monotonic_seconds()
        if now < self._away_until:
            raise self._away(f"{self._of} is away")
        if self._away_until > -math.inf:
            self._away_until = now + _AWAY_SECONDS  # this one asks whether it is back
        task = asyncio.get_running_loop().create_task(work())
        self._running.add(task)
        task.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait((task,), timeout=self._answer_seconds)
        except asyncio.CancelledError:
            if self._abandon:
                task.cancel()
            raise
        try:
            if not done:
                task.cancel()
                raise self._away(f"{self._of} did not answer within {self._answer_seconds:g} s")
            result = task.result()
        except self._away:
            self._away_until = self._clock.monotonic_seconds() + _AWAY_SECONDS
            raise
        self._away_until = -math.inf
        return result

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: nobody may be waiting for it any more

    async def close(self) -> None:
        """Give up what has not been answered."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
