"""Processes around the embedded PostgreSQL: who uses it, who guards it, who serves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
import psycopg

from headway.storage.embedded import EmbeddedServer
from headway.storage.layout import read_pid_file

ROOT = os.geteuid() == 0
NOBODY = 65534

# Uses the server until its standard input ends, and tells what it found. With a user id, as that user: python itself
# may lie where only root may pass, then it keeps the capability to read there, as the server would.
CHILD = """
import json, os, sys
home, uid, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if os.geteuid() == 0 and uid:
    from headway.storage.account import Account
    import headway
    def reach():
        for path in (sys.executable, headway.__file__):
            with open(path, "rb"):
                pass
    Account(uid, uid).fitted(reach).assume()
    os.execv(sys.executable, [sys.executable, "-c", sys.orig_argv[2], home, "0", str(limit)])
import psycopg, resource
from pathlib import Path
from headway.errors import EmbeddedPostgresError
from headway.storage.embedded import start
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    server = start(Path(home))
except EmbeddedPostgresError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit()
with server, psycopg.connect(server.url, autocommit=True) as connection:
    row = connection.execute("SELECT pg_postmaster_start_time()::text, current_user, current_database()").fetchone()
    print(json.dumps({"url": server.url, "started": row[0], "uid": os.geteuid()}), flush=True)
    sys.stdin.read()
"""


class User:
    """Another process that uses the server."""

    def __init__(self, home: Path, *, uid: int = 0, limit: int = 0, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(home), str(uid), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )

    def found(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the child has ended without a word"
        result: dict[str, Any] = json.loads(line)
        return result

    def kill(self) -> None:
        self.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Guardians and servers whose command line names something in ``folder``, and the servers' children."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if f"{folder}/" in "\0".join(line) and ("headway.storage.guardian" in line or "postgres" in line[0]):
                found += [process, *process.children(recursive=True)]
    return found


def guardian_of(home: Path) -> psutil.Process:
    (found,) = [process for process in psutil.process_iter(["cmdline"]) if is_guardian(process, home)]
    return found


def is_guardian(process: psutil.Process, home: Path) -> bool:
    line = process.info["cmdline"] or []
    return "headway.storage.guardian" in line and str(home) in line


def postmaster_of(home: Path) -> int:
    """The process id in ``postmaster.pid``, 0 without one."""
    found = read_pid_file(home / "postgres")
    return found.pid if found else 0


def kill_postmaster(home: Path) -> None:
    """Kill it and wait until another one has taken its place, ready or not."""
    old = postmaster_of(home)
    os.kill(old, signal.SIGKILL)
    eventually(lambda: postmaster_of(home) not in (0, old))


def stopped(home: Path) -> bool:
    return not (home / "postgres" / "postmaster.pid").exists() and not processes_of(home.parent)


def ask(server: EmbeddedServer, query: str) -> Any:
    with psycopg.connect(server.url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def write(server: EmbeddedServer, value: int) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value integer)")
        connection.execute("INSERT INTO kept VALUES (%s)", (value,))


def owner_and_mode(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Everything from the root down to ``folder``, and what lies in it."""
    paths = [folder, *folder.parents, *folder.iterdir()]
    return {path: (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in paths}


def is_guarded(home: Path) -> bool:
    return any(is_guardian(process, home) for process in psutil.process_iter(["cmdline"]))
