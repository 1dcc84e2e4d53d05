"""Latency added: the same percentile through a gateway and directly, at a constant rate of arrivals."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks.bench import Bench, check_answer
from benchmarks.exchange import PROVIDER_MODEL, Endpoint
from benchmarks.figures import Figure, median_difference, percentile
from benchmarks.processes import Tree
from benchmarks.targets import Target
from benchmarks.upstreams import serve_answers

AREA = "latency"
_BARS_MS = {50.0: 1.0, 99.0: 5.0}


def measure_latency(bench: Bench) -> list[Figure]:
    """Measure what each target adds to the latency of the upstream, round by round in turn.

    Raises:
        VoidRunError: A request was not answered, or not recorded exactly once.
    """
    sizes = bench.sizes
    count = int(sizes.open_loop_seconds * sizes.requests_per_second)
    with ExitStack() as stack:
        port = stack.enter_context(serve_answers(bench.folder / AREA / "nginx", bench.upstream_port))
        direct = Target("direct", Endpoint(port, model=PROVIDER_MODEL), Tree(0))
        targets = [direct, *bench.open_targets(stack, AREA, port)]
        for target in targets:
            bench.measure(target, bench.close_loop(target, sizes.warm_up, check_answer(target)))
        rounds: dict[str, list[list[float]]] = {target.name: [] for target in targets}
        for _ in range(sizes.rounds):
            for target in targets:
                load = bench.open_loop(target.endpoint, count, sizes.requests_per_second, check_answer(target))
                rounds[target.name].append(bench.measure(target, load).latencies_ms)
    return _describe(rounds, sizes.requests_per_second)


def _describe(rounds: dict[str, list[list[float]]], requests_per_second: float) -> list[Figure]:
    figures = []
    for percent, bar in _BARS_MS.items():
        name = f"p{percent:.0f}"
        reached = {target: [percentile(sample, percent) for sample in samples] for target, samples in rounds.items()}
        for target, values in reached.items():
            if target == "direct":
                note = f"at {requests_per_second:.0f} requests/s, from when each was due"
                figures.append(Figure(AREA, f"{name} of the upstream", target, median(values), "ms", note=note))
                continue
            added = median_difference(values, reached["direct"])
            note = f"{median(values):.2f} ms in all"
            at_most = bar if target == "headway" else None
            figures.append(Figure(AREA, f"{name} added", target, added, "ms", at_most, note))
    return figures
