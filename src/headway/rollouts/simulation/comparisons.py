"""Naive practice, on the same streams: what a dashboard and a threshold do.

These are models, not runs of any product. Both walk through 1, 5, 25 and 50 % at a fixed pace, look at the metrics that
the policy names, and see each outcome when it arrives. A question that is asked twice counts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.domain.policy import MetricRule
from headway.domain.recording import Terms
from headway.rollouts.simulation.population import CHUNK, Chunk, Floats, Population
from headway.rollouts.simulation.run import Run
from headway.rollouts.simulation.scenarios import Scenario

SHARES = (0.01, 0.05, 0.25, 0.5)
Z_STAGE = 10_000
"""Interactions per stage under the z-test."""
CHECK = 5_000
"""Interactions between two checks of the thresholds; ten checks are a stage, five failed ones end it."""

_CHECKS, _FAILURES = 10, 5
_LEAST_Z, _LEAST_CHECK, _LEAST_RATINGS = 50, 50, 10
_Z = 1.6448536269514722

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Column:
    """One metric of some interactions, written so that lower is better; ``seen`` is when each is known."""

    values: Floats
    arms: Places
    seen: Places
    tolerated: float
    least: int


def look_at_every_peek(scenario: Scenario, terms: Terms, seed: npt.ArrayLike) -> Run:
    """Roll back when any metric is worse by a one-sided z-test at 5 %, looking at every tick; else promote."""
    chunks = list(_draw(scenario, seed, len(SHARES) * Z_STAGE))
    arms = np.concatenate([_arms(chunk, Z_STAGE) for chunk in chunks])
    per_tick = scenario.traffic.per_tick
    peeks = arms.size // per_tick
    found = np.zeros(peeks, dtype=bool)
    for rule in terms.policy.rules:
        column = _read(rule, scenario, terms, chunks, arms)
        stable, candidate = (_running_sums(column, arm, per_tick, peeks) for arm in (0, 1))
        found |= _is_worse(stable, candidate)
    if not found.any():
        return Run("promoted", arms.size, int(arms.sum()), "z")
    seen = (int(found.argmax()) + 1) * per_tick
    return Run("rolled_back", seen, int(arms[:seen].sum()), "z")


def check_thresholds(scenario: Scenario, terms: Terms, seed: npt.ArrayLike) -> Run:
    """Check at intervals whether the candidate's own rates are beyond the margins; too many failures roll back."""
    arms, chunks = np.empty(0, dtype=np.int64), list[Chunk]()
    failures = checks = 0
    for chunk in _draw(scenario, seed, len(SHARES) * _CHECKS * CHECK):
        chunks.append(chunk)
        arms = np.append(arms, _arms(chunk, _CHECKS * CHECK))
        columns = [_read(rule, scenario, terms, chunks, arms) for rule in terms.policy.rules]
        while (checks + 1) * CHECK <= arms.size:
            if checks % _CHECKS == 0:
                failures = 0
            failures += any(_is_beyond(column, checks * CHECK, (checks + 1) * CHECK) for column in columns)
            checks += 1
            if failures == _FAILURES:
                return Run("rolled_back", checks * CHECK, int(arms[: checks * CHECK].sum()), "threshold")
    return Run("promoted", arms.size, int(arms.sum()), "threshold")


def _draw(scenario: Scenario, seed: npt.ArrayLike, interactions: int) -> Iterator[Chunk]:
    population = Population(scenario, seed)
    for _ in range(interactions // CHUNK):
        yield population.draw()


def _arms(chunk: Chunk, stage: int) -> Places:
    shares = np.array(SHARES)[(chunk.first + np.arange(CHUNK)) // stage]
    return (chunk.positions < shares).astype(np.int64)


def _read(rule: MetricRule, scenario: Scenario, terms: Terms, chunks: list[Chunk], arms: Places) -> _Column:
    """Read a metric of all interactions so far, as each arm's release answers them."""
    baseline = terms.baseline.metrics
    stable, candidate = (np.concatenate([chunk.outcomes[arm].read(rule.metric) for chunk in chunks]) for arm in (0, 1))
    values = np.where(arms == 1, candidate, stable)
    seen = np.arange(arms.size)
    level = baseline[rule.metric].level
    tolerated = level * rule.margin
    if rule.metric in ("slow_rate", "latency_p95"):
        is_rate = rule.metric == "slow_rate"
        values = (values > baseline["latency_p95"].level * (1.0 if is_rate else rule.margin)).astype(np.float64)
        tolerated = 0.05 * rule.margin if is_rate else 0.05
    if rule.metric == "thumbs_up":
        before, after = (np.concatenate([chunk.delay_seconds[arm] for chunk in chunks]) for arm in (0, 1))
        seen = seen + (np.where(arms == 1, after, before) * scenario.traffic.per_hour / 3600).astype(np.int64)
        tolerated = level - rule.margin
    if rule.direction == "higher":
        values, tolerated = 1 - values, 1 - tolerated
    known = ~np.isnan(values)
    least = _LEAST_RATINGS if rule.metric == "thumbs_up" else _LEAST_CHECK
    return _Column(values[known], arms[known], seen[known], tolerated, least)


def _running_sums(column: _Column, arm: int, per_tick: int, peeks: int) -> tuple[Floats, Floats, Floats]:
    """Observations, their sum and their sum of squares, of one arm, as known at each peek."""
    own = (column.arms == arm) & (column.seen < peeks * per_tick)
    peek, values = column.seen[own] // per_tick, column.values[own]
    sums = (np.bincount(peek, each, peeks) for each in (np.ones(values.size), values, values**2))
    n, total, squares = (np.cumsum(each.astype(np.float64)) for each in sums)
    return n, total, squares


def _is_worse(stable: tuple[Floats, Floats, Floats], candidate: tuple[Floats, Floats, Floats]) -> npt.NDArray[np.bool_]:
    """The z-test of two means, at each peek."""
    enough = (stable[0] >= _LEAST_Z) & (candidate[0] >= _LEAST_Z)
    (mean_a, error_a), (mean_b, error_b) = _mean_and_error(*stable), _mean_and_error(*candidate)
    return enough & (mean_b - mean_a > _Z * np.sqrt(error_a + error_b))


def _mean_and_error(n: Floats, total: Floats, squares: Floats) -> tuple[Floats, Floats]:
    """The mean, and the square of its standard error."""
    n = np.maximum(n, 1)
    mean = total / n
    return mean, np.maximum(squares / n - mean**2, 0.0) / n


def _is_beyond(column: _Column, first: int, last: int) -> bool:
    """Whether what was seen of the candidate in an interval is beyond what is tolerated; too little is not."""
    values = column.values[(column.arms == 1) & (column.seen >= first) & (column.seen < last)]
    return values.size >= column.least and float(values.mean()) > column.tolerated
