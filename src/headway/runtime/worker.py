"""A worker process: an ASGI application with a beginning and an end, and background tasks in between."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import structlog

from headway.clock import Clock
from headway.config.settings import Settings

_log = structlog.get_logger("headway.runtime.worker")
_PARENT_POLL_SECONDS = 0.5
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SETTLED_SECONDS = 0.1
_CANCELLED_SECONDS = 3.0  # after which a task that was cancelled is cancelled again
CLOSING_SECONDS = 10
"""How long a worker may take to record and close, after its last request has ended or was cut off."""

Message = dict[str, Any]
Application = Callable[[Message, Any, Any], Awaitable[None]]


def hold_stop_signals() -> None:
    """Let a signal to stop wait until the worker has started; Granian would lose it before, and kill the worker later.

    To be called before the process is there: a forked worker begins with the signals that its parent held.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)


def heed_stop_signals() -> None:
    """Let signals to stop, those that waited too, come through."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


class Service(Protocol):
    """What a worker process runs: an ASGI application with a beginning and an end."""

    async def start(self) -> Application:
        """Start everything and give the application."""
        ...

    async def close(self) -> None:
        """Stop everything, in the reverse order, losing nothing."""
        ...


class Worker:
    """An ASGI application that starts and stops a service with its lifespan, and ends when its parent is killed."""

    def __init__(self, service: Service, settings: Settings, clock: Clock) -> None:
        self._service = service
        self._settings = settings
        self._clock = clock
        self._application: Application | None = None
        self._in_flight: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "http":
            assert self._application is not None, "lifespan first"
            task = asyncio.current_task()
            assert task is not None, "Granian runs each request in a task"
            self._in_flight.add(task)
            try:
                await self._application(scope, receive, send)
            finally:
                self._in_flight.discard(task)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        watch = asyncio.create_task(self._watch_parent(os.getppid()))
        try:
            self._application = await self._service.start()
        except Exception as error:
            _log.exception("start_failed")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        # What was made until now stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        await send({"type": "lifespan.startup.complete"})
        # The loop stops now, and runs again once Granian serves; a moment later Granian listens.
        loop = asyncio.get_running_loop()
        loop.call_later(_SETTLED_SECONDS, loop.call_later, _SETTLED_SECONDS, self._heed_signals, loop)
        await receive()
        watch.cancel()
        await self._service.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _heed_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        # Granian has one handler for both signals: SIGTERM starts the clock here, and reaches Granian as SIGINT.
        loop.add_signal_handler(signal.SIGTERM, self._drain, loop)
        heed_stop_signals()

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let requests in flight finish; those that take too long are cut off, and recorded, before the end."""
        loop.call_later(self._settings.drain_seconds, self._cut_off)
        signal.raise_signal(signal.SIGINT)

    def _cut_off(self) -> None:
        if self._in_flight:
            _log.warning("requests_cut_off", count=len(self._in_flight))
        for task in self._in_flight:
            task.cancel()

    async def _watch_parent(self, parent: int) -> None:
        """End gracefully, but end, when the parent was killed: nobody would ever stop this process otherwise."""
        while os.getppid() == parent:
            await self._clock.sleep(_PARENT_POLL_SECONDS)
        _log.warning("parent_gone")
        os.kill(os.getpid(), signal.SIGTERM)
        await self._clock.sleep(self._settings.drain_seconds + CLOSING_SECONDS)
        os._exit(1)


class Tasks:
    """Background tasks that run until closed; one that fails is logged and started again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: list[asyncio.Task[None]] = []

    def run(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task that makes its work anew whenever it ends."""
        self._running.append(asyncio.create_task(self._keep_running(name, work), name=name))

    async def _keep_running(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except Exception:  # noqa: BLE001 - a background task must not end because of one bad moment
                _log.exception("task_failed", task=name)
            await self._clock.sleep(1.0)

    async def close(self) -> None:
        """Cancel all tasks and wait for their end.

        More than once, as a cancellation can get lost: before Python 3.12 ``asyncio.wait_for`` forgets one that comes
        at the moment at which it has what it waited for.
        """
        left = set(self._running)
        while left:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=_CANCELLED_SECONDS)
        await asyncio.gather(*self._running, return_exceptions=True)
