"""The command behind ``make bench``."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvloop
from rich.console import Console

from benchmarks import machine, report
from benchmarks.bench import Bench, Starter
from benchmarks.cost import measure_cost
from benchmarks.exchange import MODEL, Endpoint, count_requests
from benchmarks.figures import Figure, VoidRunError
from benchmarks.latency import measure_latency
from benchmarks.memory import measure_memory
from benchmarks.processes import ProcessError
from benchmarks.sizes import DEFAULT, FULL, QUICK
from benchmarks.streaming import measure_streaming
from benchmarks.targets import External, start_envoy, start_reference, use_external

AREAS: Mapping[str, Callable[[Bench], list[Figure]]] = {
    "cost": measure_cost,
    "latency": measure_latency,
    "streaming": measure_streaming,
    "memory": measure_memory,
}
STARTERS: Mapping[str, Starter] = {"envoy": start_envoy, "reference": start_reference}


def run(
    only: Annotated[str, typer.Option(help="Areas, separated by commas.")] = ",".join(AREAS),
    targets: Annotated[str, typer.Option(help="Targets, separated by commas.")] = ",".join(STARTERS),
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: shows that it works, not what it costs.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Memory up to the 1,000,000th request.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Update RESULTS.md and results.json.")] = False,
    cores: Annotated[str | None, typer.Option(help="Cores to use, MEASURED,OTHERS.")] = None,
    url: Annotated[str | None, typer.Option(help="Also measure the gateway at this loopback URL.")] = None,
    process_id: Annotated[int, typer.Option(help="Root process of the gateway at --url.")] = 0,
    key: Annotated[str | None, typer.Option(help="API key for --url.")] = None,
    model: Annotated[str, typer.Option(help="Model to ask for at --url.")] = MODEL,
    upstream_port: Annotated[
        int | None, typer.Option(help="Fixed port of the upstream, which --url forwards to.")
    ] = None,
) -> None:
    """Measure the gateway against bare Envoy, each alone on one core; everything stays on loopback.

    Ends with 0 when every figure was taken (bars may be missed), with 1 when an area is void or could not run.
    """
    console = Console()
    starters = {name: STARTERS[name] for name in _choose(targets, STARTERS)}
    if url is not None:
        starters["url"] = partial(use_external, _read_external(url, process_id, key, model))
    sizes = QUICK if quick else FULL if full else DEFAULT
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        chosen_cores = machine.choose_cores(cores)
        os.sched_setaffinity(0, {chosen_cores.others})
        with (
            tempfile.TemporaryDirectory(prefix="headway-bench-", ignore_cleanup_errors=True) as folder,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            Path(folder).chmod(0o755)  # a database server that may not run as root must reach what is below
            bench = Bench(chosen_cores, sizes, Path(folder), runner, count_requests(), starters, upstream_port)
            figures, voids = _measure(bench, _choose(only, AREAS), console)
    except machine.MissingToolError as error:
        console.print(f"[bold red]{error}[/]")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        raise typer.Exit(130) from None
    report.show(console, figures, voids)
    if write and figures:
        how = f"{'quick' if quick else 'full' if full else 'default'} sizes, median of {sizes.rounds} rounds"
        for path in report.write(figures, machine.describe(), how, time.strftime("%Y-%m-%d", time.gmtime())):
            console.print(f"Wrote {path.name}")
    raise typer.Exit(1 if voids else 0)


def _measure(bench: Bench, areas: list[str], console: Console) -> tuple[list[Figure], dict[str, str]]:
    figures: list[Figure] = []
    voids: dict[str, str] = {}
    for area in areas:
        started = time.monotonic()
        try:
            figures += AREAS[area](bench)
        except (VoidRunError, ProcessError) as error:
            voids[area] = str(error)
        console.print(f"{area}: {time.monotonic() - started:.0f} s", highlight=False)
    return figures, voids


def _choose(wanted: str, known: Mapping[str, object]) -> list[str]:
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return names


def _read_external(url: str, process_id: int, key: str | None, model: str) -> External:
    parts = urlsplit(url)
    if parts.hostname not in {"127.0.0.1", "localhost"} or parts.port is None or process_id <= 0:
        raise typer.BadParameter("--url takes a loopback address with its port, and --process-id beside it")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    path = parts.path.rstrip("/") + "/chat/completions"
    return External(Endpoint(parts.port, path=path, model=model, headers=headers), process_id)


if __name__ == "__main__":
    typer.run(run)
