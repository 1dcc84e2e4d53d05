"""What stands between a worker and a deployment: places, a bounded queue, a circuit breaker."""

from __future__ import annotations

import asyncio
from collections import deque

from headway.clock import Clock
from headway.domain.release import Deployment
from headway.errors import OverloadedError


class Gate:
    """Lets so many calls in at a time; the others queue in order, and not too many of them.

    Args:
        places: Calls at a time; 0 is no limit.
        queue_size: How many may wait.
        queue_seconds: How long one may wait.
    """

    def __init__(self, places: int, queue_size: int, queue_seconds: float) -> None:
        self._places = places
        self._queue_size = queue_size
        self._queue_seconds = queue_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    async def enter(self, name: str) -> None:
        """Wait for a place.

        Raises:
            OverloadedError: The queue is full, or the wait was too long.
        """
        if not self._places or self.in_flight < self._places:
            self.in_flight += 1
            return
        if len(self._waiting) >= self._queue_size:
            raise OverloadedError(f"deployment {name!r} is busy and its queue is full", retry_after_seconds=1)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._queue_seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                self.leave()  # The place was given in the very moment that the caller gave up.
            elif place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, TimeoutError):
                message = f"deployment {name!r} is busy: no place within {self._queue_seconds:g} s"
                raise OverloadedError(message, retry_after_seconds=1) from None
            raise

    def is_half_empty(self, others: int) -> bool:
        """Say whether the calls that are in and so many others leave half of the places free."""
        return not self._places or self.in_flight + others < self._places / 2

    def leave(self) -> None:
        """Give the place to the next in the queue."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.in_flight -= 1


class CircuitBreaker:
    """Stops calling a deployment that keeps failing, then lets one call at a time find out.

    Args:
        failures: Consecutive failures that open the circuit; 0 never opens it.
        seconds: How long it stays open before one call may try.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._limit = failures
        self._seconds = seconds
        self._failures = 0
        self._open_until: float | None = None

    def allows(self, now: float) -> bool:
        """Say whether a call may go now; when the time is up, only one may, until it ends."""
        if self._open_until is None:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + self._seconds
        return True

    def wait_seconds(self, now: float) -> float:
        """How long until a call may try."""
        return max(0.0, (self._open_until or now) - now)

    def succeed(self) -> None:
        """Note a call that was answered."""
        self._failures = 0
        self._open_until = None

    def fail(self, now: float) -> None:
        """Note a call that failed by the deployment's fault."""
        self._failures += 1
        if self._limit and self._failures >= self._limit:
            self._open_until = now + self._seconds


class DeploymentState:
    """One deployment's gate and breaker in this worker, and what it was found not to take.

    ``takes_usage_option``: it can be asked for usage at the end of a stream; some servers refuse that.
    """

    def __init__(self, deployment: Deployment, workers: int, *, gated: bool) -> None:
        operation = deployment.operation
        places = -(-operation.max_concurrency // workers) if gated else 0
        self.gate = Gate(places, operation.queue_size, operation.queue_seconds)
        self.breaker = CircuitBreaker(operation.breaker_failures, operation.breaker_seconds)
        self.takes_usage_option = True


class Deployments:
    """The states of all deployments in this worker. They outlive snapshots as long as a deployment stays as it is.

    Args:
        clock: Gives the monotonic time.
        workers: Among how many workers a deployment's concurrency is shared out.
        gated: Whether calls wait for a place.
    """

    def __init__(self, clock: Clock, workers: int, *, gated: bool = True) -> None:
        self._clock = clock
        self._workers = workers
        self._gated = gated
        self._states: dict[Deployment, DeploymentState] = {}

    def state(self, deployment: Deployment) -> DeploymentState:
        """Give a deployment's state."""
        state = self._states.get(deployment)
        if state is None:
            if len(self._states) >= 1000:
                self._states = {known: state for known, state in self._states.items() if state.gate.in_flight}
            state = self._states[deployment] = DeploymentState(deployment, self._workers, gated=self._gated)
        return state

    def now(self) -> float:
        """The monotonic time that breakers go by."""
        return self._clock.monotonic_seconds()
