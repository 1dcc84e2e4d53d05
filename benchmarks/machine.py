"""The machine: which core is measured, which one carries everything else, and a description without names."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class MissingToolError(Exception):
    """Something the benchmark needs is not installed; the message says what to do."""


@dataclass(frozen=True)
class Cores:
    """Two cores: ``measured`` carries the measured process tree alone, ``others`` all the rest."""

    measured: int
    others: int


def choose_cores(wanted: str | None = None) -> Cores:
    """Take the first two cores this process may use, or the two that are wanted as ``measured,others``.

    Raises:
        MissingToolError: Fewer than two cores, or a wanted one that may not be used.
    """
    usable = sorted(os.sched_getaffinity(0))
    chosen = [int(core) for core in wanted.split(",")] if wanted else usable[:2]
    if len(set(chosen)) != 2 or not set(chosen) <= set(usable):
        raise MissingToolError(
            f"the benchmark needs two different cores out of {usable}: one alone for what it measures"
        )
    return Cores(measured=chosen[0], others=chosen[1])


def find_tool(name: str, package: str) -> str:
    """Find a program on the path or where Debian keeps daemons.

    Raises:
        MissingToolError: It is not there; the message names the Debian package.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise MissingToolError(f"{name} is not installed: apt-get install {package}")
    return found


def find_nginx() -> str:
    """Find nginx; where it is missing, unpack Debian's package beside this Python, without installing a service.

    Raises:
        MissingToolError: It is not there, and apt-get cannot fetch it.
    """
    unpacked = Path(sys.prefix) / "nginx"
    program = unpacked / "usr" / "sbin" / "nginx"
    try:
        return find_tool("nginx", "nginx-light")
    except MissingToolError as missing:
        if program.exists():
            return str(program)
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise
        with tempfile.TemporaryDirectory(prefix="headway-bench-") as folder:
            if os.geteuid() == 0:
                subprocess.run(["apt-get", "update"], check=False, capture_output=True)
                Path(folder).chmod(0o777)  # apt-get fetches as a user of its own
            subprocess.run(["apt-get", "download", "nginx"], cwd=folder, check=False, capture_output=True)
            for package in Path(folder).glob("nginx_*.deb"):
                subprocess.run(["dpkg-deb", "--extract", str(package), str(unpacked)], check=True)
        if not program.exists():
            raise missing from None
        return str(program)


def pin(core: int, command: Sequence[str]) -> list[str]:
    """Prefix a command so that it and its children run on one core only."""
    return [find_tool("taskset", "util-linux"), "--cpu-list", str(core), *command]


def read_busy_seconds(cores: Cores) -> float:
    """Add up how long the two cores have been busy, with whatever, a hypervisor's other guests included."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in {f"cpu{cores.measured}", f"cpu{cores.others}"}:
            user, nice, system, _idle, _wait, interrupts, soft_interrupts, stolen = map(int, fields[:8])
            ticks += user + nice + system + interrupts + soft_interrupts + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str]:
    """Describe the machine in general terms: nothing in it identifies the machine."""
    memory_kib = int(_read_field(Path("/proc/meminfo"), "MemTotal").split()[0])
    release = platform.release().split(".")
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{round(memory_kib / 1024**2)} GiB",
        "kernel": f"{platform.system()} {'.'.join(release[:2])}, {platform.machine()}",
        "python": platform.python_version(),
    }


def _read_field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.partition(":")[2].strip()
    raise MissingToolError(f"{path} has no {name}: the benchmark needs Linux")
