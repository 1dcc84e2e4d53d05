"""A small process that keeps the embedded PostgreSQL running while anybody uses it, and stops it afterwards.

``python -m headway.storage.guardian HOME [create]`` prints one report, ``ready``, ``busy`` or ``failed`` with the
reason, and goes on in the background. Each user of the server holds a shared lock; the guardian stops the server once
it gets the exclusive one. So a user that was killed counts as gone, and one that comes meanwhile waits for the lock.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

from headway.errors import EmbeddedPostgresError
from headway.storage.account import adopt_orphans
from headway.storage.cluster import Cluster
from headway.storage.layout import Layout, try_lock

READY, BUSY, FAILED = "ready", "busy", "failed"

_TICK_SECONDS = 0.25
_SHORT_LIFE_TICKS = 40  # a server that lives shorter than this is started again only after a pause


def main() -> None:
    """Run the guardian of the home given on the command line, in the background."""
    if os.fork() != 0:  # an orphan at once: the process that wanted the server need not reap it
        os._exit(0)
    layout = Layout(Path(sys.argv[1]))
    with layout.open(layout.guardian) as lock:
        if not try_lock(lock, exclusive=True):
            _report(BUSY)
            return
        try:
            _guard(layout, create="create" in sys.argv[2:])
        except (EmbeddedPostgresError, OSError) as error:
            _report(f"{FAILED} {error}\n")
            sys.exit(1)


def _guard(layout: Layout, *, create: bool) -> None:
    wakeup = _prepare_signals()
    adopt_orphans()
    cluster = Cluster(layout)
    if not cluster.exists():
        if not create:
            raise EmbeddedPostgresError(f"the data folder {layout.data} has gone: restore it, or start Headway anew")
        cluster.create()
    # Both are opened before the report: whoever reads it may remove everything at once.
    with layout.open(layout.users) as users, layout.open(layout.log) as log:
        postmaster = cluster.running() or cluster.start()
        _report(READY)
        os.dup2(log.fileno(), sys.stdout.fileno())  # the report ends here
        os.dup2(log.fileno(), sys.stderr.fileno())
        age_ticks = _SHORT_LIFE_TICKS
        while not try_lock(users, exclusive=True):
            if not postmaster.alive():
                _report("guardian: PostgreSQL has ended unasked; it is started again\n")
                if age_ticks < _SHORT_LIFE_TICKS:
                    _sleep(wakeup)
                postmaster = cluster.start()
                age_ticks = 0
            _reap()
            cluster.bound_log()
            _sleep(wakeup)
            age_ticks += 1
        postmaster.stop()
        cluster.tidy()


def _prepare_signals() -> int:
    # Not ignored but handled, so that they are back to normal in the server. A service manager that sends SIGTERM to
    # everything must not take the database from a Headway that is still draining; its end ends the guardian too.
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _sleep(wakeup: int) -> None:
    # Until the next tick, or until a child ends.
    if select.select([wakeup], [], [], _TICK_SECONDS)[0]:
        os.read(wakeup, 4096)


def _reap() -> None:
    # What a killed postmaster left behind has become our child. (The postmaster itself was waited for before this.)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


def _report(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody need be listening any more
        os.write(sys.stdout.fileno(), text.encode(errors="replace"))


if __name__ == "__main__":
    main()
