"""What is known of a simulated stable release before the rollout: its baseline, from traffic of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headway.domain.metric import FEEDBACK_RATE, SLOW_RATE, Metric, find_metric
from headway.domain.recording import Baseline, MetricBaseline, Terms, plan_recording
from headway.rollouts.simulation.population import CHUNK, Floats, Population
from headway.rollouts.simulation.scenarios import Scenario
from headway.stats.ratio import RatioStatistics, ratio_variance

_CHUNKS = 5
_SEED = (20, 24)
_BUCKETS = 256


def agree_terms(scenario: Scenario) -> Terms:
    """Freeze what a scenario's rollouts are decided by; every run of it starts from the same baseline."""
    policy, feedback = scenario.policy, scenario.feedback
    baseline = measure(scenario)
    return Terms(policy, scenario.traffic.unit, feedback, baseline, plan_recording(policy, baseline))


def measure(scenario: Scenario) -> Baseline:
    """Measure the stable release on 100,000 interactions from before the rollout; declared levels come first."""
    metrics = {
        name: MetricBaseline(0, each.level, each.limit, each.level * (1 - each.level) if each.level < 1 else None, 1.0)
        for name, each in scenario.policy.baselines.items()
    }
    wanted = [rule.metric for rule in scenario.policy.rules if rule.metric not in metrics]
    if "slow_rate" in wanted and "latency_p95" not in metrics:
        wanted.append("latency_p95")
    if wanted:
        history = _History(scenario)
        metrics |= {name: history.describe(find_metric(name, scenario.feedback)) for name in wanted}
    return Baseline(_CHUNKS * CHUNK, metrics)


class _History:
    """The stable release's traffic before the rollout."""

    def __init__(self, scenario: Scenario) -> None:
        first_hard = scenario.traffic.hard[0]
        before = replace(scenario, traffic=replace(scenario.traffic, hard=(first_hard, first_hard)))
        population = Population(before, _SEED)
        chunks = [population.draw() for _ in range(_CHUNKS)]
        self._outcomes = [chunk.outcomes[0] for chunk in chunks]
        self._numbers = np.concatenate([chunk.numbers for chunk in chunks])
        self._buckets = np.concatenate([np.frombuffer(chunk.units, dtype=np.uint8)[7::8] for chunk in chunks])

    def describe(self, metric: Metric) -> MetricBaseline:
        """Say what is known of a metric."""
        values = np.concatenate([each.read(metric.name) for each in self._outcomes])
        if metric == FEEDBACK_RATE or metric.per == "rater":
            return self._first_of_units(metric, values)
        if metric.kind == "positive":
            return self._mean(values)
        if metric.value is None:
            return self._rate(values, float(values.mean()))
        level = float(np.quantile(values[np.isfinite(values)], metric.quantile or 0.95, method="inverted_cdf"))
        slow = (values > level).astype(np.float64)
        return self._rate(slow, float(slow.mean()) if metric == SLOW_RATE else level)

    def _rate(self, events: Floats, level: float) -> MetricBaseline:
        variance, size = self._unit_variance(events, np.ones(events.size))
        least = float(events.mean() * (1 - events.mean())) / size
        return MetricBaseline(events.size, level, None, max(variance, least), size)

    def _mean(self, values: Floats) -> MetricBaseline:
        known = ~np.isnan(values)
        limit = float(np.quantile(values[known], 0.999, method="inverted_cdf"))
        cut = np.where(known, np.minimum(values, limit), 0.0)
        variance, size = self._unit_variance(cut, known.astype(np.float64))
        return MetricBaseline(int(known.sum()), float(cut.sum() / known.sum()), limit, variance, size)

    def _first_of_units(self, metric: Metric, values: Floats) -> MetricBaseline:
        """Of units: their first rating, or whether they rate at all."""
        spoken = values > 0 if metric == FEEDBACK_RATE else ~np.isnan(values)
        raters, first = np.unique(self._numbers[spoken], return_index=True)
        if metric == FEEDBACK_RATE:
            level, observations = raters.size / np.unique(self._numbers).size, self._numbers.size
        else:
            level, observations = float(values[spoken][first].mean()), raters.size
        return MetricBaseline(observations, level, None, level * (1 - level), 1.0)

    def _unit_variance(self, y: Floats, m: Floats) -> tuple[float, float]:
        """Measure the variance of a bucket's ratio, and how many interactions a bucket has."""
        cells = [np.bincount(self._buckets, each, _BUCKETS) for each in (y, m)]
        variance = _BUCKETS * float(ratio_variance(RatioStatistics.from_units(*cells)).variance)
        return variance, float(m.sum() / _BUCKETS)
