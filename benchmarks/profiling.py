"""Where the CPU of a target goes: py-spy samples its process tree under load, functions are ranked by own samples."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.bench import Bench, check_answer, check_stream
from benchmarks.machine import find_tool
from benchmarks.processes import start
from benchmarks.upstreams import Burst, StreamUpstream, serve_answers

_RATE = 500
_SECONDS = 8
_ROWS = 40
_NATIVE = "threads without Python"


def profile(bench: Bench, console: Console, *, stream: bool) -> None:
    """Print for each target, under a closed loop, the functions in which it spends its time.

    Sampling another process's children takes root, or a system that allows tracing.

    Args:
        bench: The run.
        console: Where to print.
        stream: The load is bursts of events in one write; otherwise plain answers.
    """
    with ExitStack() as stack:
        if stream:
            upstream = StreamUpstream(Burst(bench.sizes.events, one_write=True))
            port = bench.runner.run(upstream.open(bench.upstream_port))
        else:
            port = stack.enter_context(serve_answers(bench.folder / "profile" / "nginx", bench.upstream_port))
        for target in bench.open_targets(stack, "profile", port):
            check = check_stream(target, bench.sizes.events) if stream else check_answer(target)
            load = bench.close_loop(target, bench.sizes.warm_up, check, stream=stream)
            per_second = bench.sizes.warm_up / bench.run(load, target.name).elapsed_seconds
            stacks = bench.folder / f"{target.name}.stacks"
            with start(_sample(target.tree.root, stacks), bench.folder / f"{target.name}-py-spy.log") as sampler:
                count = int(per_second * _SECONDS)
                bench.run(bench.close_loop(target, count, check, stream=stream), target.name)
                deadline = time.monotonic() + 30
                while sampler.child.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.1)
                if not stacks.exists():
                    console.print(f"{target.name}: {sampler.last_lines(3)}", highlight=False)
                    continue
            for table in _rank(target.name, stacks):
                console.print(table)


def _sample(root: int, stacks: Path) -> list[str]:
    beside = Path(sys.executable).with_name("py-spy")
    tool = str(beside) if beside.exists() else find_tool("py-spy", "py-spy (from PyPI)")
    command = [tool, "record", "--pid", str(root), "--subprocesses", "--function", "--rate", str(_RATE)]
    return [*command, "--duration", str(_SECONDS), "--format", "raw", "--output", str(stacks)]


def _rank(name: str, stacks: Path) -> list[Table]:
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [frame for frame in stack.split(";") if not frame.startswith("process ")] or [_NATIVE]
        own[frames[-1]] += int(samples)
        for frame in set(frames):
            within[frame] += int(samples)
    packages: Counter[str] = Counter()
    for frame, samples_here in own.items():
        packages[_find_package(frame)] += samples_here
    return [
        _write_table(f"{name}: {own.total()} samples by package", packages, own.total()),
        _write_table(f"{name}: by function, native code counted to its Python caller", own, own.total(), within),
    ]


def _find_package(frame: str) -> str:
    """Give the folder of a frame, two levels deep: ``headway/gateway``, ``aiohttp``."""
    if frame == _NATIVE:
        return frame
    path = frame.rpartition("(")[2].partition(":")[0]
    return "/".join(path.split("/")[:-1][:2]) or path.rstrip(")")


def _write_table(title: str, own: Counter[str], total: int, within: Counter[str] | None = None) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("where")
    table.add_column("own", justify="right")
    if within is not None:
        table.add_column("with what it calls", justify="right")
    for frame, samples in own.most_common(_ROWS):
        beyond = [] if within is None else [f"{within[frame] / total:.1%}"]
        table.add_row(frame, f"{samples / total:.1%}", *beyond)
    return table
