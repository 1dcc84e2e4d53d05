"""Where the demo takes place: a folder with its own configuration, database and ports, and Headway running in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import msgspec

from headway.cli.demo.documents import LEFT_OUT
from headway.cli.run import RUNNING
from headway.clock import SystemClock
from headway.config.settings import Settings
from headway.errors import ConfigurationError, HeadwayError

APPLICATION = "support"
FIRST_RELEASE, SECOND_RELEASE = "plain", "facts"
_GUIDE = "guide"

_HOST = "127.0.0.1"
_READY_SECONDS = 60.0
_STOP_SECONDS = 45.0
_PR_SET_PDEATHSIG = 1
_TAIL_CHARACTERS = 2000


class Ports(msgspec.Struct, frozen=True):
    """Loopback ports of the models, the data plane and the control plane, kept from one demo to the next."""

    model: int
    data: int
    control: int
    simulator: int = 0  # demos from before there were rollouts have none


class CommandError(HeadwayError):
    """A command of the demo failed; its own words say why."""

    code = "demo_failed"


@dataclass(frozen=True)
class Site:
    """The demo's folder, and what is to be known about it."""

    home: Path
    ports: Ports

    @property
    def base_url(self) -> str:
        """What an OpenAI client calls ``base_url``."""
        return f"http://{_HOST}:{self.ports.data}/v1"

    @property
    def control_url(self) -> str:
        """Where the control plane answers."""
        return f"http://{_HOST}:{self.ports.control}"

    @property
    def config(self) -> Path:
        """The demo's headway.yaml."""
        return self.home / "headway.yaml"

    @property
    def documents(self) -> Path:
        """The demo's data lake."""
        return self.home / "documents"

    @property
    def questions(self) -> Path:
        """What users ask of the documents, with what answers it: a file to compare index versions by."""
        return self.home / "questions.jsonl"

    @property
    def variables(self) -> Path:
        """A shell file that points commands and OpenAI clients at this demo."""
        return self.home / "env"

    @property
    def log(self) -> Path:
        """What Headway writes while it runs."""
        return self.home / "headway.log"

    def settings(self) -> Settings:
        """Settings of a process that works on this demo."""
        return Settings(home=self.home, config=self.config, port=self.ports.data, admin_port=self.ports.control)

    def environment(self) -> dict[str, str]:
        """The environment of a command of this demo; whatever Headway of yours is configured is left out of it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
        return kept | self._own_variables()

    def _own_variables(self) -> dict[str, str]:
        return {
            "HEADWAY_HOME": str(self.home),
            "HEADWAY_CONFIG": str(self.config),
            "HEADWAY_PORT": str(self.ports.data),
            "HEADWAY_ADMIN_PORT": str(self.ports.control),
            "HEADWAY_TICK_SECONDS": "1",
        }

    def run(self, *arguments: str) -> str:
        """Run a `headway` command in this demo and give what it printed.

        Raises:
            CommandError: It failed.
        """
        command = [*_headway(), *arguments]
        done = subprocess.run(  # noqa: S603 - our own commands
            command, env=self.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise CommandError(f"`headway {shlex.join(arguments)}` failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def write_configuration(self, support: str, simulated: int) -> None:
        """Write headway.yaml so that it wants these releases (see ``configuration``), and the prompts."""
        prompts = self.home / "prompts"
        prompts.mkdir(exist_ok=True)
        for name in (FIRST_RELEASE, SECOND_RELEASE, _GUIDE):
            prompt = prompts / f"{name}.j2"
            if not prompt.exists():
                prompt.write_text(_bundled(f"prompts/{name}.j2"), encoding="utf-8")
        self.config.write_text(self.configuration(support, simulated), encoding="utf-8")

    def configuration(self, support: str, simulated: int) -> str:
        """The bundled headway.yaml that wants a release of ``support`` and the first or second simulated ones."""
        return Template(_bundled("headway.yaml")).substitute(
            model_port=self.ports.model,
            simulator_port=self.ports.simulator,
            support=support,
            simulated=simulated,
            left_out=", ".join(LEFT_OUT if simulated > 1 else ()),
        )

    def write_variables(self, key: str) -> None:
        """Write the shell file; it holds the API key, so it is for this user only."""
        values = self._own_variables() | {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": key}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
        self.variables.unlink(missing_ok=True)
        self.variables.touch(mode=0o600)
        self.variables.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def read_key(self) -> str | None:
        """The API key of an earlier demo in this folder, if there is one."""
        if not self.variables.exists():
            return None
        for line in self.variables.read_text(encoding="utf-8").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            if name == "OPENAI_API_KEY":
                return "".join(shlex.split(value)) or None
        return None

    @contextlib.contextmanager
    def serve(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run Headway in this folder while the block runs; it is ready when the block begins.

        Raises:
            CommandError: It does not start; with the end of its log.
        """
        with self.log.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(  # noqa: S603 - our own command
                [*_headway(), "run"],
                env={"HEADWAY_LOG_FORMAT": "console"} | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for the demo, which then stops Headway in order.
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
            )
        try:
            self._await_ready(process, begin)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _await_ready(self, process: subprocess.Popen[bytes], begin: int) -> None:
        """Wait until this Headway says that it runs: an answer on its ports could be that of another one."""
        clock = SystemClock()
        deadline = clock.monotonic_seconds() + _READY_SECONDS
        while RUNNING.encode() not in self.log.read_bytes()[begin:]:
            if process.poll() is not None or clock.monotonic_seconds() > deadline:
                tail = self.log.read_text("utf-8", "replace")[-_TAIL_CHARACTERS:].strip()
                raise CommandError(f"Headway did not start; its log {self.log} ends with:\n{tail}")
            time.sleep(0.05)


def open_site(home: Path) -> Site:
    """Make the demo's folder, or take up the one that is there, and choose the ports.

    Raises:
        ConfigurationError: The model's port of an earlier demo is taken: releases name it, so it cannot change.
    """
    home = home.resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    memory = home / "ports.json"
    if memory.exists():
        ports = msgspec.json.decode(memory.read_bytes(), type=Ports)
        for taken in (port for port in (ports.model, ports.simulator) if port and not _is_free(port)):
            message = (
                f"port {taken} is taken, and this demo's releases name it: is another `headway demo` running in {home}?"
                f" Stop it, or start afresh elsewhere with --home, or delete {home}"
            )
            raise ConfigurationError(message)
        data = ports.data if _is_free(ports.data) else _free_port()
        control = ports.control if _is_free(ports.control) else _free_port()
        ports = Ports(ports.model, data, control, ports.simulator or _free_port())
    else:
        usual = Settings()
        data = usual.port if _is_free(usual.port) else _free_port()
        control = usual.admin_port if _is_free(usual.admin_port) else _free_port()
        ports = Ports(_free_port(), data, control, _free_port())
    memory.write_bytes(msgspec.json.encode(ports))
    return Site(home, ports)


def _headway() -> list[str]:
    return [sys.executable, "-P", "-m", "headway"]


def _bundled(name: str) -> str:
    return resources.files(__package__).joinpath("files", *name.split("/")).read_text(encoding="utf-8")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, or a port whose last connections are still closing would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Ask the kernel to stop this process when the demo is killed; runs between fork and exec."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
