"""The server processes: Granian over one of the planes; the supervisor starts ``python -m headway.runtime.serve``."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.server import Server

from headway.clock import SystemClock
from headway.config.logs import configure_logs, granian_logging
from headway.config.settings import Settings, load_settings
from headway.runtime.worker import CLOSING_SECONDS, Worker, heed_stop_signals, hold_stop_signals

PLANES = ("data", "control")
_PARENT_POLL_SECONDS = 0.5


def data_worker() -> Worker:
    """Make one worker of the data plane, by the environment; Granian calls this in each worker process."""
    hold_stop_signals()
    from headway.runtime.dataplane import DataPlaneService  # noqa: PLC0415 - each process loads its own plane only

    settings, clock = load_settings(), SystemClock()
    configure_logs(settings)
    return Worker(DataPlaneService(settings, clock), settings, clock)


def control_worker() -> Worker:
    """Make the control plane, by the environment; Granian calls this in its one worker process."""
    hold_stop_signals()
    from headway.runtime.controlplane import ControlPlaneService  # noqa: PLC0415 - see data_worker

    settings, clock = load_settings(), SystemClock()
    configure_logs(settings)
    return Worker(ControlPlaneService(settings, clock), settings, clock)


def make_server(plane: str, settings: Settings) -> Any:
    """Make the Granian server of a plane."""
    data = plane == "data"
    return Server(
        f"headway.runtime.serve:{plane}_worker",
        factory=True,
        address=settings.host if data else settings.admin_host,
        port=settings.port if data else settings.admin_port,
        interface=Interfaces.ASGI,
        workers=settings.workers if data else 1,
        loop=Loops.uvloop,
        http=HTTPModes.http1,
        websockets=False,
        # Both count idle connections too, so they are far above what is ever in flight.
        backlog=4096,
        backpressure=4096,
        http1_settings=HTTP1Settings(header_read_timeout=30_000, max_buffer_size=128 * 1024),
        log_dictconfig=granian_logging(),
        respawn_failed_workers=True,
        respawn_interval=0.1,
        workers_kill_timeout=math.ceil(settings.drain_seconds) + CLOSING_SECONDS,
    )


def _end_with_parent(parent: int) -> None:
    """Stop this server gracefully when the supervisor was killed."""
    pause = threading.Event()
    while os.getppid() == parent:
        pause.wait(_PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def main(plane: str) -> None:
    """Serve a plane until SIGTERM, or until the supervisor is gone."""
    settings = load_settings()
    configure_logs(settings)
    os.register_at_fork(before=hold_stop_signals, after_in_parent=heed_stop_signals)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    make_server(plane, settings).serve()


if __name__ == "__main__":
    main(sys.argv[1])
