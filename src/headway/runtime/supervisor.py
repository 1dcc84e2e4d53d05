"""The supervisor: brings up the database and the two planes, keeps them up, and takes them down in order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import structlog

from headway.clock import Clock
from headway.config.settings import Settings
from headway.errors import ConfigurationError, StorageError
from headway.runtime.serve import PLANES
from headway.storage import embedded
from headway.storage.database import Database, migrate

_log = structlog.get_logger("headway.runtime.supervisor")
_WATCH_SECONDS = 1.0
_STEADY_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 30.0
_MARGIN_SECONDS = 15.0


@dataclass
class _Child:
    """One server process, and how often it failed lately."""

    plane: str
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0
    start_again_at: float | None = None


class Supervisor:
    """Runs Headway on this machine.

    Args:
        settings: How to run.
        clock: Times restarts.
        prepare: Run once with the open database before anything serves: configuration, snapshot, first key.
    """

    def __init__(self, settings: Settings, clock: Clock, prepare: Callable[[Database], object]) -> None:
        self._settings = settings
        self._clock = clock
        self._prepare = prepare
        self._stop = threading.Event()
        self._children: list[_Child] = []

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            ready: Called when both planes answer.

        Raises:
            HeadwayError: Something cannot start; the message says what to do.
        """
        settings = self._settings
        for name, host, port in (
            ("HEADWAY_PORT", settings.host, settings.port),
            ("HEADWAY_ADMIN_PORT", settings.admin_host, settings.admin_port),
        ):
            _check_free(name, host, port)
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts, answers and signing keys are in there
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, lambda *_: self._stop.set()))
            server = None if settings.database_url else stack.enter_context(embedded.start(settings.home))
            url = settings.database_url or (server.url if server is not None else "")
            migrate(url)
            asyncio.run(self._prepared(url))
            stack.callback(self._stop_children)
            self._children = [self._start(plane, url) for plane in PLANES]
            waiting = True
            while not self._stop.wait(0.05 if waiting else _WATCH_SECONDS):
                if waiting and all(_answers(host, port) for host, port in self._addresses()):
                    waiting = False
                    ready()
                self._watch(server, url)

    async def _prepared(self, url: str) -> None:
        database = Database(url)
        try:
            await database.open()
            result = self._prepare(database)
            if asyncio.iscoroutine(result):
                await result
        finally:
            await database.close()

    def _addresses(self) -> list[tuple[str, int]]:
        settings = self._settings
        return [(settings.host, settings.port), (settings.admin_host, settings.admin_port)]

    def _start(self, plane: str, url: str) -> _Child:
        environment = {
            **os.environ,
            **_as_environment(self._settings),
            "HEADWAY_DATABASE_URL": url,
        }
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "headway.runtime.serve", plane],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops them in order
        )
        return _Child(plane, process, self._clock.monotonic_seconds())

    def _watch(self, server: embedded.EmbeddedServer | None, url: str) -> None:
        if server is not None:
            try:
                server.ensure()
            except StorageError as error:
                _log.exception("database_down", detail=error.message)
        now = self._clock.monotonic_seconds()
        for position, child in enumerate(self._children):
            if child.process.poll() is None:
                if now - child.started > _STEADY_SECONDS:
                    child.failures = 0
            elif child.start_again_at is None:
                child.failures += 1
                pause = min(_LONGEST_PAUSE_SECONDS, 0.2 * 2.0**child.failures)
                child.start_again_at = now + pause
                _log.error("server_died", plane=child.plane, exit_code=child.process.returncode, again_in_seconds=pause)
            elif now >= child.start_again_at:
                again = self._start(child.plane, url)
                again.failures = child.failures
                self._children[position] = again

    def _stop_children(self) -> None:
        """Stop the planes gracefully; whoever does not end in time is killed."""
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        deadline = self._clock.monotonic_seconds() + self._settings.drain_seconds + _MARGIN_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.1, deadline - self._clock.monotonic_seconds()))
            except subprocess.TimeoutExpired:
                _log.error("server_killed", plane=child.plane)
                child.process.kill()
                child.process.wait()


def _as_environment(settings: Settings) -> dict[str, str]:
    values = {name: getattr(settings, name) for name in settings.__struct_fields__}
    return {f"HEADWAY_{name.upper()}": str(value) for name, value in values.items() if value is not None}


def _check_free(name: str, host: str, port: int) -> None:
    """Refuse a port that is taken: the kernel would share it out between two Headways without a word."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            message = f"{host}:{port} cannot be used ({error.strerror}): stop what listens there, or set {name}"
            raise ConfigurationError(message) from error


def _answers(host: str, port: int) -> bool:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        with socket.create_connection((reached, port), timeout=0.5) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False
