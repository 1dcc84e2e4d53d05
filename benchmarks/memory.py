"""Memory: growth between two requests far apart, and what a client costs that never reads its stream."""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median

from benchmarks.bench import Bench, check_answer
from benchmarks.figures import Figure
from benchmarks.probes import StalledClients, wait_until_stuck
from benchmarks.processes import Tree
from benchmarks.targets import Target
from benchmarks.upstreams import Flood, StreamUpstream, serve_answers

AREA = "memory"
_GROWTH_AT_MOST = 5.0
_STALLED_AT_MOST_MB = 2.0
_FLOOD_BYTES = 32 * 1024**2
_MB = 1024**2


def measure_memory(bench: Bench) -> list[Figure]:
    """Measure growth and stalled clients for every target.

    Raises:
        VoidRunError: A request was not answered, or not recorded exactly once.
    """
    return [*_measure_growth(bench), *_measure_stalled_clients(bench)]


def _measure_growth(bench: Bench) -> list[Figure]:
    sizes = bench.sizes
    figures = []
    with ExitStack() as stack:
        port = stack.enter_context(serve_answers(bench.folder / AREA / "nginx", bench.upstream_port))
        for target in bench.open_targets(stack, AREA, port):
            idle = _sample_bytes(target.tree)
            bench.measure(target, bench.close_loop(target, sizes.memory_from, check_answer(target)))
            early = _sample_bytes(target.tree)
            bench.measure(target, bench.close_loop(target, sizes.memory_to - sizes.memory_from, check_answer(target)))
            late = _sample_bytes(target.tree)
            note = f"{early / _MB:.1f} to {late / _MB:.1f} MB; {idle / _MB:.1f} MB at the start"
            name = f"growth, request {sizes.memory_from:,} to {sizes.memory_to:,}"
            at_most = _GROWTH_AT_MOST if target.name == "headway" else None
            figures.append(Figure(AREA, name, target.name, (late / early - 1) * 100, "%", at_most, note))
    return figures


def _measure_stalled_clients(bench: Bench) -> list[Figure]:
    with ExitStack() as stack:
        upstream = StreamUpstream(Flood(_FLOOD_BYTES))
        port = bench.runner.run(upstream.open(bench.upstream_port))
        stack.callback(lambda: bench.runner.run(upstream.close()))
        targets = bench.open_targets(stack, f"{AREA}-stalled", port)
        return [_measure_stalled_client(bench, upstream, target) for target in targets]


def _measure_stalled_client(bench: Bench, upstream: StreamUpstream, target: Target) -> Figure:
    count = bench.sizes.stalled
    clients = StalledClients()
    # The first ones make the gateway take what it keeps for any stream; only the later ones are counted.
    grown = []
    try:
        for _ in range(2):
            flood = Flood(_FLOOD_BYTES)
            upstream.script = flood
            before = _sample_bytes(target.tree)
            bench.runner.run(clients.connect(target.endpoint, bench.numbers, count))
            bench.runner.run(wait_until_stuck(flood))
            grown.append((_sample_bytes(target.tree) - before, flood.written_bytes))
    finally:
        clients.close()
    cost, taken = grown[-1]
    note = (
        f"of {count} clients; the provider could write {taken / count / _MB:.2f} MB for each, of {_FLOOD_BYTES // _MB}"
    )
    at_most = _STALLED_AT_MOST_MB if target.name == "headway" else None
    return Figure(AREA, "a client that never reads", target.name, cost / count / _MB, "MB", at_most, note)


def _sample_bytes(tree: Tree) -> float:
    """Take the median of a few readings, a little apart."""
    readings = []
    for _ in range(5):
        time.sleep(0.2)
        readings.append(tree.memory_bytes())
    return median(readings)
