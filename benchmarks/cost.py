"""Gateway cost: CPU per proxied chat request, against bare Envoy in the same rounds."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks.bench import Bench, Spend, check_answer
from benchmarks.figures import Figure, median_ratio
from benchmarks.upstreams import serve_answers

AREA = "cost"
_AT_MOST_ENVOYS = 5.0


def measure_cost(bench: Bench) -> list[Figure]:
    """Measure CPU per request of every target, round by round in turn.

    Raises:
        VoidRunError: A request was not answered, or not recorded exactly once.
    """
    sizes = bench.sizes
    with ExitStack() as stack:
        port = stack.enter_context(serve_answers(bench.folder / AREA / "nginx", bench.upstream_port))
        targets = bench.open_targets(stack, AREA, port)
        for target in targets:
            bench.measure(target, bench.close_loop(target, sizes.warm_up, check_answer(target)))
        rounds: dict[str, list[Spend]] = {target.name: [] for target in targets}
        for _ in range(sizes.rounds):
            for target in targets:
                load = bench.close_loop(target, sizes.requests, check_answer(target))
                rounds[target.name].append(bench.measure(target, load))
    return describe_spends(AREA, "chat request", rounds, _AT_MOST_ENVOYS)


def describe_spends(area: str, what: str, rounds: dict[str, list[Spend]], at_most_envoys: float) -> list[Figure]:
    """Turn rounds into figures: CPU per request, database CPU beside it, and the ratio to Envoy under its bar."""
    figures = []
    envoy = [spend.cpu_us for spend in rounds.get("envoy", [])]
    for name, spends in rounds.items():
        rate = median(spend.requests / spend.elapsed_seconds for spend in spends)
        spent = [spend.cpu_us for spend in spends]
        note = f"{min(spent):.1f} to {max(spent):.1f}; {rate:,.0f} per second"
        figures.append(Figure(area, f"CPU per {what}", name, median(spent), "us", note=note))
        database = [spend.database_us for spend in spends if spend.database_us is not None]
        if database:
            lag = max(spend.lag_seconds for spend in spends)
            note = f"not part of the ratio; all recorded within {lag:.1f} s of the last answer"
            figures.append(Figure(area, f"PostgreSQL CPU per {what}", name, median(database), "us", note=note))
        if envoy and name != "envoy":
            bar = at_most_envoys if name == "headway" else None
            figures.append(Figure(area, f"CPU per {what}, in Envoys", name, median_ratio(spent, envoy), "x", bar))
    return figures
