"""Headway as a user runs it: a folder, headway.yaml, `headway run`; with what a test needs to look behind it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import psycopg
import yaml
from psycopg.rows import dict_row

from headway.domain.snapshot import Snapshot, decode_snapshot
from headway.ids import InteractionId
from headway.storage.layout import Layout, read_pid_file

T = TypeVar("T")

_COMMAND = Path(sys.executable).with_name("headway")
_START_SECONDS = 60.0
_STOP_SECONDS = 45.0


def wait_for(what: str, probe: Callable[[], T], seconds: float = 30.0) -> T:
    """Poll until the probe gives something true, and give it; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}; last seen: {found!r}")
        time.sleep(0.01)


def free_port() -> int:
    """A free loopback port from below the range that the kernel gives to outgoing connections."""
    choose = random.SystemRandom()
    for _ in range(100):
        port = choose.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port found")


class Headway:
    """One Headway in a folder of its own.

    Args:
        folder: Where headway.yaml and the data are.
        database_url: PostgreSQL to use; None for the embedded server.
        workers: Worker processes of the data plane.
        environment: More variables for all its processes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str | None = None,
        workers: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port = free_port()
        self.admin_port = free_port()
        self.first_key = ""
        self._database_url = database_url
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")} | {
            "HEADWAY_HOME": str(self.home),
            "HEADWAY_PORT": str(self.port),
            "HEADWAY_ADMIN_PORT": str(self.admin_port),
            "HEADWAY_WORKERS": str(workers),
            **({"HEADWAY_DATABASE_URL": database_url} if database_url else {}),
            **(environment or {}),
        }

    # --- addresses --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The data plane."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """What OpenAI's clients call ``base_url``."""
        return f"{self.url}/v1"

    @property
    def admin_url(self) -> str:
        """The control plane."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def is_running(self) -> bool:
        """Whether `headway run` runs, as far as the test has started and stopped it."""
        return self._process is not None

    # --- life -------------------------------------------------------------------------------------------------------

    def write(self, configuration: Mapping[str, Any]) -> None:
        """Write headway.yaml."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "headway.yaml").write_text(yaml.safe_dump(dict(configuration), sort_keys=False))

    def start(self) -> None:
        """Run `headway run` and return when it says that it runs."""
        self._starts += 1
        with self._output("wb") as output, self._log("ab") as log:
            self._process = subprocess.Popen(
                [str(_COMMAND), "run"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )
        try:
            wait_for("the greeting of `headway run`", self._greeted, _START_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output()}\n{self.log()[-4000:]}") from None
        lines = [line.strip() for line in self.output().splitlines()]
        self.first_key = next((line for line in lines if line.startswith("hw-")), self.first_key)

    def _greeted(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError("`headway run` ended at once")
        return "Headway runs." in self.output()

    def stop(self) -> int:
        """Stop it as an operator does, and give its exit status; what does not end in time is killed."""
        process = self._process
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"`headway run` did not end on SIGTERM:\n{self.log()[-4000:]}") from None
        finally:
            self._process = None
            self.end_all()

    def terminate(self) -> None:
        """Ask it to stop, and do not wait."""
        assert self._process is not None
        self._process.terminate()

    def kill_all(self) -> None:
        """Kill all of its processes at once, as a power cut would."""
        victims = self.processes()
        for each in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()  # so that none of them notices that another is gone and does something about it
        for each in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(victims, timeout=10)
        if self._process is not None:
            self._process.wait(10)
            self._process = None

    def kill_supervisor(self) -> None:
        """Kill `headway run` itself and nothing else."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)
        self._process = None

    def end_all(self) -> None:
        """Wait until none of its processes is left; fail, and kill them, when some do not end."""
        try:
            wait_for("the end of all processes", lambda: not self.processes(), _STOP_SECONDS)
        except AssertionError:
            left = [_describe(each) for each in self.processes()]
            self.kill_all()
            raise AssertionError(f"processes were left behind: {left}") from None

    # --- processes --------------------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """All processes of this Headway, the embedded PostgreSQL's included, whoever their parent is."""
        mark = str(self.home)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                arguments = process.cmdline()
                ours = process.environ().get("HEADWAY_HOME") == mark or any(mark in each for each in arguments)
                if ours and process.pid != os.getpid():
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The worker processes of the data plane; none while its server is being started."""
        assert self._process is not None
        supervisor = psutil.Process(self._process.pid)
        found = []
        for server in supervisor.children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if server.cmdline()[-2:] == ["headway.runtime.serve", "data"]:
                    found += server.children()
        return found

    def is_serving(self, worker: psutil.Process) -> bool:
        """Whether a worker takes connections."""
        try:
            sockets = worker.net_connections()
        except psutil.NoSuchProcess:
            return False
        return any(each.status == psutil.CONN_LISTEN and each.laddr.port == self.port for each in sockets)

    def kill_postgres(self) -> None:
        """Kill the embedded PostgreSQL's main process."""
        found = read_pid_file(Layout(self.home).data)
        assert found is not None, "the embedded PostgreSQL does not run"
        os.kill(found.pid, signal.SIGKILL)

    # --- the command line -------------------------------------------------------------------------------------------

    def run(self, *arguments: str, status: int = 0) -> str:
        """Run a `headway` command in the folder and give its standard output."""
        done = subprocess.run(
            [str(_COMMAND), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, f"headway {' '.join(arguments)}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def run_json(self, *arguments: str) -> Any:
        """Run a `headway` command with --json and give what it prints."""
        return json.loads(self.run(*arguments, "--json"))

    def create_key(self, name: str, *arguments: str) -> str:
        """Create an API key and wait until every worker knows it."""
        created = self.run_json("keys", "create", name, *arguments)
        self.wait_for_snapshot()
        return cast("str", created["key"])

    # --- what it said -----------------------------------------------------------------------------------------------

    def _output(self, mode: str) -> Any:
        return (self.folder / f"output-{self._starts}.txt").open(mode)

    def _log(self, mode: str) -> Any:
        return (self.folder / "headway.log").open(mode)

    def output(self) -> str:
        """Standard output of the last start."""
        return (self.folder / f"output-{self._starts}.txt").read_text()

    def log(self) -> str:
        """Standard error of all starts."""
        return (self.folder / "headway.log").read_text()

    # --- the database -----------------------------------------------------------------------------------------------

    @property
    def database_url(self) -> str:
        """Where its database is."""
        if self._database_url:
            return self._database_url
        layout = Layout(self.home)
        folder = layout.socket.readlink() if layout.socket.is_symlink() else layout.socket
        return f"postgresql://headway@/headway?host={folder}&port=5432"

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        """Ask its database; one that has just been killed is waited for."""
        deadline = time.monotonic() + 15
        while True:
            try:
                with psycopg.connect(self.database_url, row_factory=dict_row, autocommit=True) as connection:
                    return connection.execute(query.encode(), parameters).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def value(self, query: str, *parameters: Any) -> Any:
        """Ask its database for one value."""
        (row,) = self.rows(query, *parameters)
        (found,) = row.values()
        return found

    def snapshot(self) -> Snapshot:
        """The newest routing snapshot, as every worker should have it."""
        return decode_snapshot(bytes(self.value("SELECT body FROM routing_snapshot ORDER BY number DESC LIMIT 1")))

    def wait_for_snapshot(self) -> None:
        """Wait until every worker serves the newest snapshot."""
        newest = self.snapshot().number
        wait_for("the new snapshot in all workers", lambda: self.snapshot_numbers() == {newest}, 5)

    def snapshot_numbers(self) -> set[int]:
        """The numbers of the snapshots served now, asked often enough to have met every worker."""
        numbers = set()
        for _ in range(16):
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nhost: headway\r\nconnection: close\r\n\r\n")
                with connection.makefile("rb") as answer:
                    body = answer.read().rpartition(b"\r\n\r\n")[2]
            numbers.add(json.loads(body)["snapshot"])
        return numbers

    def read_id(self, answer_id: str) -> InteractionId:
        """What an interaction id says."""
        return self.snapshot().signing.signer().read(answer_id)

    def interaction(self, answer_id: str) -> dict[str, Any]:
        """The record of an interaction, with the names of its release and application; waits for it."""
        query = (
            "SELECT i.*, r.name AS release_name, a.name AS application_name FROM interaction i"
            " JOIN release r ON r.id = i.release JOIN application a ON a.id = i.application WHERE i.id = %s"
        )
        identity = uuid.UUID(bytes=self.read_id(answer_id).uuid)
        (found,) = wait_for(f"the record of {answer_id}", lambda: self.rows(query, identity))
        return found

    def feedback(self, answer_id: str) -> list[dict[str, Any]]:
        """The feedback on an interaction that is in force, oldest first, with the names of its release."""
        return self.rows(
            "SELECT f.*, r.name AS release_name FROM feedback f JOIN release r ON r.id = f.release"
            " WHERE f.target_id = %s AND f.superseded_at IS NULL ORDER BY f.at, f.id",
            str(uuid.UUID(bytes=self.read_id(answer_id).uuid)),
        )


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone)"


@contextlib.contextmanager
def running(headway: Headway, configuration: Mapping[str, Any] | None = None) -> Iterator[Headway]:
    """Run a Headway while the block runs; nothing of it is left afterwards, whatever happens."""
    if configuration is not None:
        headway.write(configuration)
    try:
        headway.start()
        yield headway
        if headway.is_running:
            headway.stop()
    finally:
        headway.kill_all()


def openai_deployment(base_url: str, model: str, **more: Any) -> dict[str, Any]:
    """A deployment of the simulator."""
    return {"provider": "openai", "base_url": base_url, "model": model, **more}


def application(deployment: str, release: str = "first", **more: Any) -> dict[str, Any]:
    """An application with one release; keys that are not the release's are the application's."""
    own: dict[str, Any] = {
        name: more.pop(name) for name in ("unit", "policy", "record", "retention", "metrics") if name in more
    }
    return {**own, "release": {"name": release, "deployment": deployment, **more}}
