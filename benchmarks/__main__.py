"""Measure the gateway against bare Envoy, each alone on one core, the controller and search; all stays on loopback."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import uvloop
from rich.console import Console

from benchmarks import machine, report
from benchmarks.bench import Bench, Starter
from benchmarks.building import measure_building
from benchmarks.cost import measure_cost
from benchmarks.decision import measure_decision
from benchmarks.exchange import MODEL, Endpoint, count_requests
from benchmarks.figures import Figure, VoidRunError
from benchmarks.latency import measure_latency
from benchmarks.memory import measure_memory
from benchmarks.processes import ProcessError
from benchmarks.profiling import profile
from benchmarks.retrieval import measure_retrieval
from benchmarks.sizes import DEFAULT, FULL, QUICK
from benchmarks.streaming import measure_streaming
from benchmarks.targets import External, start_envoy, start_headway, start_reference, use_external

AREAS: Mapping[str, Callable[[Bench], list[Figure]]] = {
    "cost": measure_cost,
    "latency": measure_latency,
    "streaming": measure_streaming,
    "memory": measure_memory,
    "decision": measure_decision,
    "building": measure_building,
    "retrieval": measure_retrieval,
}
STARTERS: Mapping[str, Starter] = {"envoy": start_envoy, "reference": start_reference, "headway": start_headway}


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when every figure was taken (bars may be missed), 1 when an area is void or could not run."""
    options = _read_options(arguments)
    sizes = QUICK if options.quick else FULL if options.full else DEFAULT
    starters = {name: STARTERS[name] for name in options.targets}
    if options.url is not None:
        starters["url"] = partial(use_external, options.url)
    console = Console()
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    try:
        cores = machine.choose_cores(options.cores)
        os.sched_setaffinity(0, {cores.others})
        with (
            tempfile.TemporaryDirectory(prefix="headway-bench-", ignore_cleanup_errors=True) as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            Path(folder).chmod(0o755)  # a database server that may not run as root must reach what is below
            bench = Bench(cores, sizes, Path(folder), runner, count_requests(), starters, options.upstream_port)
            if options.profile:
                profile(bench, console, stream=options.only == ["streaming"])
                return 0
            figures, voids = _measure(bench, options.only, console)
    except machine.MissingToolError as error:
        console.print(f"[bold red]{error}[/]", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130
    report.show(console, figures, voids)
    if options.write and figures:
        how = f"{'quick' if options.quick else 'full' if options.full else 'default'} sizes, {sizes.rounds} rounds"
        for path in report.write(figures, machine.describe(), how, time.strftime("%Y-%m-%d", time.gmtime())):
            console.print(f"Wrote {path.name}")
    return 1 if voids else 0


def _measure(bench: Bench, areas: list[str], console: Console) -> tuple[list[Figure], dict[str, str]]:
    figures: list[Figure] = []
    voids: dict[str, str] = {}
    for area in areas:
        started = time.monotonic()
        try:
            bench.foreign_shares.clear()
            figures += AREAS[area](bench)
            if bench.foreign_shares:
                note = f"median of {len(bench.foreign_shares)} rounds; at most {max(bench.foreign_shares):.0%}"
                share = median(bench.foreign_shares) * 100
                figures.append(Figure(area, "the two cores used by others", "machine", share, "%", note=note))
        except (VoidRunError, ProcessError) as error:
            voids[area] = str(error)
        console.print(f"{area}: {time.monotonic() - started:.0f} s", highlight=False)
    return figures, voids


def _read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--only", type=partial(_choose, AREAS), default=list(AREAS), help="areas, separated by commas")
    add("--targets", type=partial(_choose, STARTERS), default=list(STARTERS), help="targets, separated by commas")
    add("--quick", action="store_true", help="small sizes: shows that it works, not what it costs")
    add("--full", action="store_true", help="long rounds, and memory up to the 1,000,000th request")
    add("--write", action="store_true", help="update RESULTS.md and results.json")
    add(
        "--profile",
        action="store_true",
        help="rank functions by CPU instead, of chats or --only streaming (needs py-spy)",
    )
    add("--cores", metavar="MEASURED,OTHERS", help="the two cores to use; the first two by default")
    add("--url", help="measure the running gateway at this loopback URL, too (http://127.0.0.1:8080/v1)")
    add("--process-id", type=int, default=0, help="root process of the gateway at --url")
    add("--key", help="API key for --url")
    add("--model", default=MODEL, help="model to ask for at --url")
    add("--upstream-port", type=int, help="fixed port of the upstream, for the gateway at --url to forward to")
    options = parser.parse_args(arguments)
    if options.url is not None:
        try:
            options.url = _read_external(options)
        except ValueError as error:
            parser.error(str(error))
    return options


def _choose(known: Mapping[str, object], wanted: str) -> list[str]:
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


def _read_external(options: argparse.Namespace) -> External:
    parts = urlsplit(options.url)
    if parts.hostname not in {"127.0.0.1", "localhost"} or parts.port is None or options.process_id <= 0:
        raise ValueError("--url takes a loopback address with its port, and --process-id beside it")
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    path = parts.path.rstrip("/") + "/chat/completions"
    return External(Endpoint(parts.port, path=path, model=options.model, headers=headers), options.process_id)


if __name__ == "__main__":
    sys.exit(main())
