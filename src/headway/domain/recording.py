"""What a rollout is measured by, frozen at its start: terms, baselines, and what the recorder must count for them."""

from __future__ import annotations

import math

import msgspec

from headway.domain.difference import Difference
from headway.domain.metric import MEASURED, SLOW_RATE, VALUE_METRICS, FeedbackMetric
from headway.domain.policy import Policy
from headway.domain.snapshot import Unit
from headway.stats.histogram import GAMMA

_LATENCY_P95 = "latency_p95"
_ROUNDING = 1e-6  # bins: a level that is an edge already stays one


class MetricBaseline(msgspec.Struct, frozen=True):
    """The stable release's level of a metric before the rollout.

    Attributes:
        observations: Interactions, or raters, that it comes from; 0 for a declared one.
        level: Rate (0 to 1), mean in the metric's unit, or quantile in milliseconds, by the kind of metric.
        limit: Of positive values: their 99.9th percentile; they are cut off there, times the margin.
        unit_variance: s0^2 of F6: the variance of a bucket's ratio, measured on windows of at most 24 hours.
        bucket_interactions: Interactions per bucket in those windows; s0^2 is scaled by it.
    """

    observations: int
    level: float
    limit: float | None = None
    unit_variance: float | None = None
    bucket_interactions: float | None = None


class Baseline(msgspec.Struct, frozen=True):
    """What the stable release was like before the rollout; never evidence.

    Attributes:
        interactions: How many it comes from.
        metrics: By name of the metric; what could not be observed is left out.
    """

    interactions: int = 0
    metrics: dict[str, MetricBaseline] = {}


class SlowTest(msgspec.Struct, frozen=True):
    """An event made of thresholds: an interaction slower than its arm's threshold (statistics, F5).

    Attributes:
        name: Name of the event in ``Counts.events``: ``latency_p95:harm``, ``latency_p95:0.05`` (to enter that
            share), ``latency_p95:superior``.
        value: The value metric: ``latency`` or ``first_token``.
        stable_bin: A stable interaction is slow in a log-histogram bin above this.
        candidate_bin: The same of a candidate's.
    """

    name: str
    value: str
    stable_bin: int
    candidate_bin: int


class Recording(msgspec.Struct, frozen=True):
    """What the recorder must know of a rollout to count its interactions.

    Attributes:
        period_seconds: Exposure periods; see ``Policy.period_seconds``.
        slow: Events made of thresholds.
        limits: Where values are cut off, in the value metric's small unit, by its name.
    """

    period_seconds: int = 3600
    slow: tuple[SlowTest, ...] = ()
    limits: dict[str, int] = {}


class Terms(msgspec.Struct, frozen=True):
    """What a rollout is decided by.

    Attributes:
        policy: Its policy.
        unit: What is assigned to an arm.
        feedback: The feedback metrics that the policy's rules name.
        baseline: Of the stable release; empty in the state ``baseline``.
        recording: What follows from the two for the recorder.
        difference: By which parts the two releases differ.
    """

    policy: Policy
    unit: Unit
    feedback: dict[str, FeedbackMetric]
    baseline: Baseline = Baseline()
    recording: Recording = Recording()
    difference: Difference = Difference()


def plan_recording(policy: Policy, baseline: Baseline) -> Recording:
    """Say what the recorder must count: thresholds on edges of the log-histogram, limits in small units.

    A threshold is rounded so that a rounding never makes a claim easier: up for harm, down for entering a share. The
    plain slow rate is counted above the baseline's 95th percentile of latency. What the baseline does not tell is left
    out, and then never has data.
    """
    slow: list[SlowTest] = []
    for rule in policy.rules:
        metric = MEASURED.get(rule.metric)
        if metric is None or metric.value is None or metric.kind not in ("quantile", "event"):
            continue
        known = baseline.metrics.get(_LATENCY_P95 if metric is SLOW_RATE else rule.metric)
        if known is None or known.level <= 0:
            continue
        edge = math.ceil(_bins(known.level) - _ROUNDING)
        if metric is SLOW_RATE:
            slow.append(SlowTest(metric.name, metric.value, edge, edge))
            continue
        up = math.ceil(_bins(rule.harm) - _ROUNDING)
        slow.append(SlowTest(slow_test_name(rule.metric, "harm"), metric.value, edge, edge + up))
        for stage in policy.stages[1:]:  # the first stage is entered without evidence
            down = math.floor(_bins(1 + (rule.margin - 1) / stage.share) + _ROUNDING)
            slow.append(SlowTest(slow_test_name(rule.metric, repr(stage.share)), metric.value, edge, edge + down))
        if rule.require == "superior":
            slow.append(SlowTest(slow_test_name(rule.metric, "superior"), metric.value, edge, edge))
    margins = {rule.metric: rule.margin for rule in policy.rules}
    limits = {
        metric.name: round(cut_off(known.limit, margins.get(metric.name, 1.0)) * metric.per_unit)
        for metric in VALUE_METRICS
        if (known := baseline.metrics.get(metric.name)) is not None and known.limit is not None
    }
    return Recording(policy.period_seconds, tuple(slow), limits)


def cut_off(limit: float, margin: float) -> float:
    """Give where values are cut off: as far above stable's limit as the margin allows the mean to grow.

    Where stable's values are much alike, most values of a candidate beyond its margin lie above that limit; cut off
    there, it would pass for equal.

    Args:
        limit: Stable's 99.9th percentile.
        margin: The ratio of the metric's rule.
    """
    return limit * max(margin, 1.0)


def slow_test_name(metric: str, test: str) -> str:
    """Name a slow test of a quantile metric: ``harm``, ``superior``, or the ``repr`` of the share to enter."""
    return f"{metric}:{test}"


def _bins(ratio: float) -> float:
    return math.log(ratio) / math.log(GAMMA)
