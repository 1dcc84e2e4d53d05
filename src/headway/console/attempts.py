"""Attempts to sign in: ten failures a minute from one address, then it waits."""

from __future__ import annotations

from headway.clock import Clock
from headway.errors import RateLimitError

FAILURES = 10
WINDOW_SECONDS = 60.0
_LARGEST_TABLE = 10_000


class Attempts:
    """Counts failures by address. Keys cannot be guessed; this keeps the log and the processor free of who tries."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[float, int]] = {}

    def require_patience(self, address: str) -> None:
        """Let an attempt pass.

        Raises:
            RateLimitError: There were too many failures from this address within a minute.
        """
        began, count = self._recent(address)
        if count >= FAILURES:
            wait = began + WINDOW_SECONDS - self._clock.monotonic_seconds()
            raise RateLimitError("too many failed attempts to sign in: wait a minute", retry_after_seconds=wait)

    def fail(self, address: str) -> None:
        """Count a failure."""
        if len(self._failures) >= _LARGEST_TABLE:
            self._failures.clear()
        began, count = self._recent(address)
        self._failures[address] = (began, count + 1)

    def _recent(self, address: str) -> tuple[float, int]:
        now = self._clock.monotonic_seconds()
        began, count = self._failures.get(address, (now, 0))
        return (began, count) if now - began < WINDOW_SECONDS else (now, 0)
