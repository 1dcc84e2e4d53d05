"""What the simulated provider has seen: requests, their ends, connections; and waiting until it has seen something."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headway.clock import Clock

__all__ = ["Counts", "Ledger", "Outcome", "Received"]

_KEPT_REQUESTS = 10_000
_LARGEST_KEPT_BODY_BYTES = 1 << 20
_LOOK_SECONDS = 0.005


class Outcome(StrEnum):
    """How a request ended."""

    OPEN = "open"
    """It has not ended yet."""
    ANSWERED = "answered"
    """The whole answer was sent."""
    ERROR = "error"
    """An HTTP error was sent."""
    FAULT = "fault"
    """It was broken as the behaviour says."""
    CANCELLED = "cancelled"
    """The client closed the connection before the end."""
    STOPPED = "stopped"
    """The simulator was stopped before the end."""


@dataclass(slots=True)
class Received:
    """One request as the simulator got it, filled in further while it is served.

    Times are seconds of the simulator's monotonic clock, which on Linux all processes of a machine share.

    Attributes:
        number: 1 for the first request.
        connection: Number of the connection it came over, 1 for the first one.
        method: ``POST``, ``GET`` or ``DELETE``.
        path: Path without the query.
        query: The query's parameters.
        headers: Names in lower case.
        body: The parsed JSON; ``None`` without a body, where it is not JSON, or above 1 MiB.
        body_bytes: Size of the body.
        model: Model or Azure deployment that was asked for, empty where there is none.
        arrived_seconds: When the whole request had arrived.
        headers_seconds: When the headers of the answer were sent.
        first_event_seconds: When the first event of a stream was sent.
        ended_seconds: When the outcome was known; for a cancelled request, when the disconnect was noticed.
        events_sent: Events of a stream that were sent so far.
        status: HTTP status that was sent, 0 for none.
        outcome: How it ended.
        answer_id: Id in the answer.
    """

    number: int
    connection: int
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    body_bytes: int
    model: str
    arrived_seconds: float
    headers_seconds: float | None = None
    first_event_seconds: float | None = None
    ended_seconds: float | None = None
    events_sent: int = 0
    status: int = 0
    outcome: Outcome = Outcome.OPEN
    answer_id: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals since the start; requests are counted once by their outcome.

    Attributes:
        requests: All requests that arrived.
        open_generations: Requests that are being served now.
        peak_open_generations: Most that were served at the same time.
        answered: See ``Outcome``.
        errors: See ``Outcome``.
        faults: See ``Outcome``.
        cancelled: See ``Outcome``.
        connections: Connections ever accepted.
        open_connections: Connections open now.
    """

    requests: int
    open_generations: int
    peak_open_generations: int
    answered: int
    errors: int
    faults: int
    cancelled: int
    connections: int
    open_connections: int


@dataclass(slots=True)
class Ledger:
    """Keeps the latest 10,000 requests and the totals of all.

    Attributes:
        clock: Gives the times.
        received: The latest requests, oldest first.
        stopping: Ends from now on are the simulator's own doing.
    """

    clock: Clock
    received: deque[Received] = field(default_factory=lambda: deque(maxlen=_KEPT_REQUESTS))
    stopping: bool = False
    _requests: int = 0
    _open: int = 0
    _peak: int = 0
    _ends: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    _connections: int = 0
    _open_connections: dict[object, int] = field(default_factory=dict)
    _waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = field(default_factory=list)

    def counts(self) -> Counts:
        """Return the totals as of now."""
        return Counts(
            requests=self._requests,
            open_generations=self._open,
            peak_open_generations=self._peak,
            answered=self._ends[Outcome.ANSWERED],
            errors=self._ends[Outcome.ERROR],
            faults=self._ends[Outcome.FAULT],
            cancelled=self._ends[Outcome.CANCELLED],
            connections=self._connections,
            open_connections=len(self._open_connections),
        )

    def connect(self, connection: object) -> None:
        """Note a new connection."""
        self._connections += 1
        self._open_connections[connection] = self._connections
        self.notify()

    def disconnect(self, connection: object) -> None:
        """Note the end of a connection."""
        self._open_connections.pop(connection, None)
        self.notify()

    def connection_number(self, connection: object) -> int:
        """Return the number of an open connection, 0 when it is gone."""
        return self._open_connections.get(connection, 0)

    def begin(self, received: Received) -> None:
        """Note a request."""
        self._requests += 1
        received.number = self._requests
        self._open += 1
        self._peak = max(self._peak, self._open)
        if received.body_bytes > _LARGEST_KEPT_BODY_BYTES:
            received.body = None
        self.received.append(received)
        self.notify()

    def end(self, received: Received, outcome: Outcome) -> None:
        """Note how a request ended; only the first end counts."""
        if received.outcome is not Outcome.OPEN:
            return
        received.outcome = outcome
        received.ended_seconds = self.clock.monotonic_seconds()
        self._ends[outcome] += 1
        self._open -= 1
        self.notify()

    def notify(self) -> None:
        """Wake those whose condition holds now."""
        for condition, waiter in self._waiters:
            if waiter.done():
                continue
            try:
                if condition():
                    waiter.set_result(None)
            except Exception as error:  # noqa: BLE001  # the test's mistake: for the test, not for the request
                waiter.set_exception(error)

    async def wait_until(self, condition: Callable[[], bool], timeout_seconds: float) -> None:
        """Return as soon as the condition holds.

        It is looked at whenever something happens at the simulator, and every few milliseconds for the sake of
        conditions that depend on something else.

        Raises:
            TimeoutError: It did not come to hold in time; says what there was instead.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (condition, waiter)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not waiter.done() and not condition():
                    await asyncio.wait([waiter], timeout=_LOOK_SECONDS)
            if waiter.done():
                waiter.result()
        except TimeoutError as error:
            raise TimeoutError(f"waited {timeout_seconds} s in vain; the simulator has seen {self.counts()}") from error
        finally:
            self._waiters.remove(entry)
