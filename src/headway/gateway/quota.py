"""Quotas of API keys: requests per minute, concurrency, and a hard monthly cost cap.

Requests and concurrency are counted on the scoreboard that the workers of one replica share. Cost is known from the
database (all replicas, as of the last poll) plus what this worker has spent and not yet recorded, so the cap is
overshot at most by what is in flight and by the last second of the other workers.
"""

from __future__ import annotations

import bisect

from headway.clock import Clock, utc
from headway.domain.snapshot import KeyRoute
from headway.errors import ConcurrencyLimitError, CostCapError, RateLimitError
from headway.gateway.scoreboard import Scoreboard
from headway.storage.batches import KeyUsage


class Quota:
    """Admits requests of a key as long as its limits allow."""

    def __init__(self, scoreboard: Scoreboard, clock: Clock) -> None:
        self._scoreboard = scoreboard
        self._clock = clock
        self._month = ""
        self._recorded_usd: dict[int, float] = {}
        self._pending_usd: dict[int, float] = {}

    def admit(self, key: KeyRoute) -> None:
        """Let a request in; ``leave`` must follow once it has ended.

        Raises:
            RateLimitError: The requests of the last minute are used up.
            ConcurrencyLimitError: Too many are in flight.
            CostCapError: The month's cap is reached.
        """
        now = self._clock.unix_ms()
        if key.monthly_usd is not None and self.spent_usd(key.number, now) >= key.monthly_usd:
            message = f"the API key {key.name!r} has reached its monthly cap of ${key.monthly_usd:g}"
            raise CostCapError(message)
        if key.concurrency and self._scoreboard.in_flight(key.number) >= key.concurrency:
            message = f"the API key {key.name!r} has {key.concurrency} requests in flight, as many as it may have"
            raise ConcurrencyLimitError(message, retry_after_seconds=1)
        if key.requests_per_minute and (
            self._scoreboard.requests_per_minute(key.number, now) >= key.requests_per_minute
        ):
            message = f"the API key {key.name!r} has used its {key.requests_per_minute} requests per minute"
            raise RateLimitError(message, retry_after_seconds=self._room_after_seconds(key, now))
        self._scoreboard.begin(key.number, now)

    def _room_after_seconds(self, key: KeyRoute, now_unix_ms: int) -> int:
        """How long until the requests of the last minute are fewer than the limit, if no more come."""
        seconds = range(1, 120)

        def has_room(wait: int) -> bool:
            counted = self._scoreboard.requests_per_minute(key.number, now_unix_ms + wait * 1000)
            return counted < key.requests_per_minute

        return 1 + bisect.bisect_left(seconds, x=True, key=has_room)

    def leave(self, key: KeyRoute, cost_usd: float | None) -> None:
        """Note that a request has ended and what it cost."""
        self._scoreboard.end(key.number)
        if cost_usd and key.monthly_usd is not None:
            self._pending_usd[key.number] = self._pending_usd.get(key.number, 0.0) + cost_usd

    def spent_usd(self, key: int, now_unix_ms: int) -> float:
        """What a key has cost this month, as far as this worker knows."""
        month = month_of(now_unix_ms)
        if month != self._month:
            self._month = month
            self._recorded_usd.clear()
            self._pending_usd.clear()
        return self._recorded_usd.get(key, 0.0) + self._pending_usd.get(key, 0.0)

    def note_recorded(self, usage: KeyUsage) -> None:
        """Take over a batch's cost from this worker's account to the database's.

        A batch may bring the last requests of the month before: these are not part of this month's total.
        """
        spent = self.spent_usd(usage.key, self._clock.unix_ms())
        recorded = self._recorded_usd.get(usage.key, 0.0)
        self._pending_usd[usage.key] = max(0.0, spent - recorded - usage.batch_usd)
        if usage.month == self._month:
            self._recorded_usd[usage.key] = max(usage.cost_usd, recorded)

    def note_totals(self, month: str, totals_usd: dict[int, float]) -> None:
        """Take the database's totals of a month (``YYYY-MM``) as polled."""
        if month == month_of(self._clock.unix_ms()):
            self.spent_usd(0, self._clock.unix_ms())
            for key, total in totals_usd.items():
                self._recorded_usd[key] = max(total, self._recorded_usd.get(key, 0.0))


def month_of(unix_ms: int) -> str:
    """Name the calendar month, UTC: ``YYYY-MM``."""
    return utc(unix_ms).strftime("%Y-%m")
