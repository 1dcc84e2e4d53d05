"""Streaming: CPU of bursts and of paced events, the first event's delay, and how soon a disconnect reaches upstream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from benchmarks.bench import Bench, Load, Spend, check_stream
from benchmarks.cost import describe_spends
from benchmarks.exchange import PROVIDER_MODEL, Endpoint
from benchmarks.figures import Figure, percentile
from benchmarks.probes import probe_disconnects, probe_first_events
from benchmarks.processes import Tree
from benchmarks.targets import Target
from benchmarks.upstreams import Burst, Paced, StreamUpstream

AREA = "streaming"
_GAP_SECONDS = 0.01
_BURST_AT_MOST_ENVOYS = 4.0
_PACED_AT_MOST_US = 60.0
_FIRST_AT_MOST_MS = 1.0
_CANCELLED_WITHIN_MS = 50.0


def measure_streaming(bench: Bench) -> list[Figure]:
    """Measure streams through every target, round by round in turn, then probe each.

    Raises:
        VoidRunError: A stream was not whole, or not recorded exactly once.
    """
    with ExitStack() as stack:
        upstream = StreamUpstream(Burst(bench.sizes.events, one_write=True))
        port = bench.runner.run(upstream.open(bench.upstream_port))
        stack.callback(lambda: bench.runner.run(upstream.close()))
        targets = bench.open_targets(stack, AREA, port)
        direct = Target("direct", Endpoint(port, model=PROVIDER_MODEL), Tree(0))
        return [
            *_measure_bursts(bench, upstream, targets, one_write=True),
            *_measure_bursts(bench, upstream, targets, one_write=False),
            *_measure_paced(bench, upstream, targets),
            *_measure_first_events(bench, upstream, [direct, *targets]),
            *_measure_disconnects(bench, upstream, targets),
        ]


def _run_rounds(bench: Bench, targets: list[Target], load: Callable[[Target], Load]) -> dict[str, list[Spend]]:
    rounds: dict[str, list[Spend]] = {target.name: [] for target in targets}
    for _ in range(bench.sizes.rounds):
        for target in targets:
            rounds[target.name].append(bench.measure(target, load(target)))
    return rounds


def _measure_bursts(bench: Bench, upstream: StreamUpstream, targets: list[Target], *, one_write: bool) -> list[Figure]:
    sizes = bench.sizes
    upstream.script = Burst(sizes.events, one_write=one_write)
    count = sizes.bursts if one_write else sizes.bursts // 4

    def burst(target: Target, count: int) -> Load:
        return bench.close_loop(target, count, check_stream(target, sizes.events), stream=True)

    for target in targets:
        bench.measure(target, burst(target, count // 4))
    rounds = _run_rounds(bench, targets, lambda target: burst(target, count))
    return describe_spends(
        AREA,
        f"burst of {sizes.events} events, {'one write' if one_write else 'a write each'}",
        rounds,
        _BURST_AT_MOST_ENVOYS,
    )


def _measure_paced(bench: Bench, upstream: StreamUpstream, targets: list[Target]) -> list[Figure]:
    sizes = bench.sizes
    paced = Paced(sizes.events, _GAP_SECONDS)
    upstream.script = paced
    # Streams start one after the other, in no common rhythm, until as many are open as shall be; then as many again.
    starts_per_second = sizes.paced / (sizes.events * _GAP_SECONDS) * 1.013

    def pace(target: Target) -> Load:
        check = check_stream(target, sizes.events)
        return bench.open_loop(target.endpoint, 2 * sizes.paced, starts_per_second, check, stream=True)

    rounds = _run_rounds(bench, targets, pace)
    paced.close()
    figures = []
    for name, spends in rounds.items():
        per_event = [spend.cpu_us / sizes.events for spend in spends]
        at_most = _PACED_AT_MOST_US if name == "headway" else None
        note = f"{min(per_event):.1f} to {max(per_event):.1f}; 10 ms apart, {sizes.paced} streams open"
        figures.append(Figure(AREA, "CPU per paced event", name, median(per_event), "us", at_most, note))
    return figures


def _measure_first_events(bench: Bench, upstream: StreamUpstream, targets: list[Target]) -> list[Figure]:
    figures = []
    baseline = 0.0
    for target in targets:
        delays_ms = bench.runner.run(probe_first_events(target.endpoint, upstream, bench.numbers, bench.sizes.probes))
        middle = percentile(delays_ms, 50)
        note = f"at most {max(delays_ms):.2f} ms of {len(delays_ms)}"
        if target.name == "direct":
            baseline = middle
            figures.append(Figure(AREA, "first event, upstream to client", "direct", middle, "ms", note=note))
            continue
        at_most = _FIRST_AT_MOST_MS if target.name == "headway" else None
        figures.append(Figure(AREA, "first event held back", target.name, middle - baseline, "ms", at_most, note))
    return figures


def _measure_disconnects(bench: Bench, upstream: StreamUpstream, targets: list[Target]) -> list[Figure]:
    figures = []
    for target in targets:
        for headers_sent, when in ((False, "before headers"), (True, "after headers")):
            delays_ms = bench.runner.run(
                probe_disconnects(
                    target.endpoint, upstream, bench.numbers, bench.sizes.probes, headers_sent=headers_sent
                )
            )
            at_most = _CANCELLED_WITHIN_MS if target.name == "headway" else None
            note = f"the slowest of {len(delays_ms)}; median {median(delays_ms):.2f} ms"
            figures.append(
                Figure(AREA, f"provider call cancelled, {when}", target.name, max(delays_ms), "ms", at_most, note)
            )
    return figures
