"""Many runs of many scenarios, side by side on several processes; the same for the same seed, however many."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from types import MappingProxyType

import numpy.typing as npt

from headway.domain.recording import Terms
from headway.rollouts.simulation.comparisons import check_thresholds, look_at_every_peek
from headway.rollouts.simulation.history import agree_terms
from headway.rollouts.simulation.report import Summary, summarise
from headway.rollouts.simulation.run import Run, play
from headway.rollouts.simulation.scenarios import Scenario

Method = Callable[[Scenario, Terms, npt.ArrayLike], Run]

HEADWAY = "headway"
METHODS: Mapping[str, Method] = MappingProxyType(
    {HEADWAY: play, "z-test at every peek": look_at_every_peek, "interval thresholds": check_thresholds}
)
"""Ways to decide; the first is the real one."""

_RUNS_PER_TASK = 4


def run_scenarios(
    scenarios: Sequence[Scenario], runs: int, seed: int, *, jobs: int = 1, methods: Sequence[str] = tuple(METHODS)
) -> Iterator[Summary]:
    """Run scenarios under each method, and give their rows in order, each as soon as it is complete.

    Args:
        scenarios: What to play.
        runs: How often; run i of every scenario and method is played on the stream of (seed, i).
        seed: Any whole number from 0.
        jobs: Processes; with 1 it all happens in this one.
        methods: Names in ``METHODS``; a wrong wiring is shown to the real one only.
    """
    rows = [(each, method) for each in scenarios for method in methods if method == HEADWAY or each.wiring == "right"]
    terms = {scenario.name: agree_terms(scenario) for scenario in scenarios}
    if jobs <= 1:
        for scenario, method in rows:
            yield summarise(scenario, method, _play(scenario, terms[scenario.name], method, seed, range(runs)))
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _follow_parent) as pool:
        try:
            parts = [_submit(pool, scenario, terms[scenario.name], method, seed, runs) for scenario, method in rows]
            for (scenario, method), futures in zip(rows, parts, strict=True):
                yield summarise(scenario, method, [run for future in futures for run in future.result()])
        except BaseException:  # nobody wants the rest any more: do not wait for it
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _follow_parent() -> None:
    """Leave interrupts to the parent process, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is not a child"
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _submit(
    pool: ProcessPoolExecutor, scenario: Scenario, terms: Terms, method: str, seed: int, runs: int
) -> list[Future[list[Run]]]:
    firsts = range(0, runs, _RUNS_PER_TASK)
    parts = [range(first, min(first + _RUNS_PER_TASK, runs)) for first in firsts]
    return [pool.submit(_play, scenario, terms, method, seed, part) for part in parts]


def _play(scenario: Scenario, terms: Terms, method: str, seed: int, numbers: range) -> list[Run]:
    return [METHODS[method](scenario, terms, (seed, number)) for number in numbers]
