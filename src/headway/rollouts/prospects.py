"""Prospects of evidence: how fast the tests of a policy grow, on average, when the candidate is so much worse.

A loss is measured in the metric's unit where its margin is in points, and as ratio - 1 where it is a ratio (that of the
worse over the better): 0 is a candidate equal to stable, a negative one a better candidate.

The tests are those that decide (``headway.domain.processes``), fed with what is to be expected of an hour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headway.domain.blocks import LEAST_CANDIDATE
from headway.domain.metric import Metric
from headway.domain.policy import MetricRule
from headway.domain.processes import CATEGORIES, HARM, SUPERIOR, Bank, RulePlan, plan_rule
from headway.domain.recording import MetricBaseline, Terms, slow_test_name
from headway.stats import GAMMA, event_floor_log_e, log_mean_exp, normal_mixture_log_e
from headway.stats.ratio import MIN_UNITS
from headway.storage.baselines import Traffic

Array = npt.NDArray[np.float64]

_NORMAL = NormalDist()
_USUAL_SPREAD = 0.6  # of log latency, where a baseline tells one quantile only
_HIGHEST_FLOOR = 0.5
_YES_OR_NO = np.array([[1.0, 0.0], [1.0, 1.0]])  # an observation without the event, and one with it


class Prospect(Protocol):
    """What is expected of one test. Its state is an array that adds up over hours and stages."""

    def growth(self, share: float) -> Array:
        """Give what an hour at a share adds to the state."""
        ...

    def log_e(self, state: Array, deviations: float = 0.0) -> float:
        """Read the log of E from a state, so many standard deviations below the mean."""
        ...

    def least_hours(self, share: float) -> float:
        """Give how long a stage must last before anything of it counts."""
        ...


@dataclass(frozen=True)
class Bets:
    """A mean over bets, of which each grows linearly in what is observed: F2 to F5.

    Attributes:
        bank: Prices blocks.
        test: Which of its tests.
        per_hour: Observations per hour, both arms.
        outcomes: Counts of one observation of each kind, of shape (kinds, counts).
        stable, candidate: How often each kind is observed in an arm.
    """

    bank: Bank
    test: str
    per_hour: float
    outcomes: Array
    stable: Array
    candidate: Array

    def growth(self, share: float) -> Array:
        """Give means and variances of the log wealth of each bet, per hour."""
        arms = ((1 - share, self.stable), (share, self.candidate))
        expected = [part * (rates @ self.outcomes) for part, rates in arms]
        rows = [np.concatenate(expected)]
        for arm, (part, _) in enumerate(arms):  # then all observations of an arm are of one kind
            other = expected[1 - arm]
            pairs = ((part * kind, other) if arm == 0 else (other, part * kind) for kind in self.outcomes)
            rows += map(np.concatenate, pairs)
        prices = self.bank.price(np.array(rows))[:, self.bank.tests[self.test]]
        variance, start = np.zeros_like(prices[0]), 1
        for part, rates in arms:
            factors = prices[start : start + rates.size] / part
            variance += part * np.maximum(rates @ factors**2 - (rates @ factors) ** 2, 0.0)
            start += rates.size
        result: Array = self.per_hour * np.stack([prices[0], variance])
        return result

    def log_e(self, state: Array, deviations: float = 0.0) -> float:
        """Read the mean over the bets."""
        mean, variance = state
        return float(log_mean_exp(mean - deviations * np.sqrt(variance)))

    def least_hours(self, share: float) -> float:
        """Give how long the first block takes to close."""
        return LEAST_CANDIDATE / (self.per_hour * share)


@dataclass(frozen=True)
class Floor:
    """The test that the candidate's events are rarer than a floor.

    Attributes:
        per_hour: Interactions per hour, both arms.
        rate: Of the candidate's first events.
        floor: The floor.
    """

    per_hour: float
    rate: float
    floor: float

    def growth(self, share: float) -> Array:
        """Give mean and variance of the log of E, per hour."""
        event, quiet = event_floor_log_e(1, 1, self.floor), event_floor_log_e(0, 1, self.floor)
        mean = self.rate * event + (1 - self.rate) * quiet
        variance = self.rate * (1 - self.rate) * (event - quiet) ** 2
        return self.per_hour * share * np.array([mean, variance])

    def log_e(self, state: Array, deviations: float = 0.0) -> float:
        """Read the test."""
        mean, variance = state
        return float(mean - deviations * math.sqrt(variance))

    def least_hours(self, share: float) -> float:
        """Give how long the first block takes to close."""
        return LEAST_CANDIDATE / (self.per_hour * share)


@dataclass(frozen=True)
class Mixture:
    """The normal mixture: F1 with F6.

    Attributes:
        per_hour: Observations per hour, both arms.
        per_unit: Of them, per unit.
        theta: How far the truth is from what is tested, towards the alternative.
        variances: Of an observation of stable and of the candidate, the contrast's factor in it.
        rho: Scale of the alternatives.
    """

    per_hour: float
    per_unit: float
    theta: float
    variances: tuple[float, float]
    rho: float

    def growth(self, share: float) -> Array:
        """Give information and score per hour."""
        stable, candidate = self.variances
        spread = stable / (1 - share) + candidate / share
        information = self.per_hour / spread if spread > 0 else 0.0
        return np.array([information, information * self.theta])

    def log_e(self, state: Array, deviations: float = 0.0) -> float:
        """Read the one-sided test."""
        information, score = state
        if information <= 0 or self.rho <= 0:
            return 0.0
        return float(normal_mixture_log_e(score - deviations * math.sqrt(information), information, self.rho))

    def least_hours(self, share: float) -> float:
        """Give how long it takes until both arms have units enough for a variance."""
        return MIN_UNITS * self.per_unit / (self.per_hour * min(share, 1 - share))


def compared_level(known: MetricBaseline) -> float:
    """Give the level that ratios are told of: that of stable, or half an event where there has been none."""
    return known.level if known.level > 0 else 0.5 / (known.observations + 1)


@dataclass(frozen=True)
class Prospects:
    """What is expected of the tests of one rule.

    Attributes:
        plan: The tests.
        known: Stable's level and variance.
        per_hour: Observations per hour, both arms.
        per_unit: Observations per unit.
        needs_means: For promotion all events have to agree with the first ones (booking rule 3).
        latencies: Of quantiles.
    """

    plan: RulePlan
    known: MetricBaseline
    per_hour: float
    per_unit: float
    needs_means: bool
    latencies: Latencies | None = None

    @classmethod
    def of(cls, rule: MetricRule, terms: Terms, traffic: Traffic) -> Prospects | None:
        """Work out what is expected of a metric's tests; None where nothing is known of it.

        Args:
            rule: What the policy asks of the metric.
            terms: With baseline and recording.
            traffic: What arrives.
        """
        plan = plan_rule(terms, rule, "ramp")
        known, metric = plan.known, plan.metric
        if known is None:
            return None
        if metric.per == "interaction":
            alone = terms.unit == "request"
            per_hour, needs_means = traffic.interactions_per_hour, not alone and rule.method != "normal_mixture"
            per_unit = 1.0 if alone else max(per_hour / traffic.units_per_hour, 1.0)
        else:
            per_hour, per_unit, needs_means = traffic.units_per_hour, 1.0, False
            if metric.per == "rater":
                per_hour *= traffic.ratings_per_unit.get(rule.metric, 0.0)
        if per_hour <= 0:
            return None
        latencies = Latencies.of(metric, terms) if rule.method == "slow_calls" else None
        return cls(plan, known, per_hour, per_unit, needs_means, latencies)

    def harm(self, loss: float) -> Prospect:
        """Give the test of harm, when the candidate is so much worse."""
        if self.plan.rule.method == "normal_mixture":
            return self._means(self.plan.harm, loss, sign=1.0)
        return self._bets(HARM, loss)

    def safe(self, share: float, loss: float) -> list[list[Prospect]]:
        """Give the ways to show that a share is safe to enter; a way is gone when all its tests are through."""
        test = repr(share)
        if test in self.plan.vacuous:
            return [[]]
        tolerance = 1.0 if self.latencies is not None else 1 + (self.plan.margin - 1) / share
        if self.plan.rule.method == "normal_mixture":
            return [[self._means(tolerance, loss, sign=-1.0)]]
        ways = [self._first_and_all(test, tolerance, loss)]
        if self.has_floor:
            floor = min(self.plan.rule.floor / share, _HIGHEST_FLOOR)
            way: list[Prospect] = [Floor(self.per_hour, self._first(self._rate(test, loss)), floor)]
            if self.needs_means:
                variance = max(self._variance, floor * (1 - floor))
                distance = floor - self._rate(test, loss)
                way.append(Mixture(self.per_hour, self.per_unit, distance, (0.0, variance), floor))
            ways.append(way)
        return ways

    def superior(self, loss: float) -> list[Prospect]:
        """Give the tests of being better than stable."""
        if self.plan.rule.method == "normal_mixture":
            return [self._means(1.0, loss, sign=-1.0)]
        return self._first_and_all(SUPERIOR, 1.0, loss)

    @property
    def has_floor(self) -> bool:
        """Whether there is a second way to be safe."""
        return self.plan.rule.method == "event_ratio" and not self.plan.swapped and self.plan.rule.floor > 0

    @property
    def level(self) -> float:
        """Stable's level, of which losses are told."""
        if self.latencies is not None:
            return self.latencies.rate
        return compared_level(self.known) if self.plan.rule.form == "ratio" else self.known.level

    @property
    def _variance(self) -> float:
        """What one observation varies by, clusters included."""
        return (self.known.unit_variance or 0.0) * (self.known.bucket_interactions or 1.0)

    def _first_and_all(self, test: str, tolerance: float, loss: float) -> list[Prospect]:
        tests: list[Prospect] = [self._bets(test, loss)]
        if self.needs_means:
            rate, variance = self._rate(test, loss), self._variance
            variances = (tolerance**2 * variance, variance * rate / self.level)
            tests.append(Mixture(self.per_hour, self.per_unit, tolerance * self.level - rate, variances, self._rho()))
        return tests

    def _bets(self, test: str, loss: float) -> Bets:
        _, bank = self.plan.bank(test)
        if self.plan.rule.method == "betting":
            outcomes, stable, candidate = self._stars(loss)
        else:
            rates = [self.level, self._rate(test, loss)]
            if self.plan.rule.form == "ratio":
                rates = [self._first(rate) for rate in rates]
            outcomes = _YES_OR_NO
            stable, candidate = (np.array([1 - rate, rate]) for rate in rates)
        return Bets(bank, test, self.per_hour, outcomes, stable, candidate)

    def _rate(self, test: str, loss: float) -> float:
        """The candidate's rate, of what a test counts."""
        if self.latencies is not None:
            return self.latencies.slow(test, loss)
        if self.plan.rule.form == "ratio":
            return self.level / (1 + loss) if self.plan.swapped else min(self.level * (1 + loss), 1.0)
        lost = -loss if self.plan.rule.direction == "higher" else loss
        return min(max(self.level + lost, 0.0), 1.0)

    def _first(self, rate: float) -> float:
        """First events per interaction: a unit that comes back has but one."""
        return float((1 - (1 - rate) ** self.per_unit) / self.per_unit)

    def _stars(self, loss: float) -> tuple[Array, Array, Array]:
        """Take values of a range to be two, with the mean and the variance of stable's, or a mean that is worse."""
        metric = self.plan.metric
        lost = -loss if self.plan.rule.direction == "higher" else loss
        mean = min(max(self.level + lost, metric.minimum), metric.maximum)
        arms = [_categories(metric, each, self._variance) for each in (self.level, mean)]
        kinds = np.flatnonzero(arms[0] + arms[1])
        outcomes = np.column_stack([np.ones(kinds.size), np.eye(CATEGORIES)[kinds]])
        return outcomes, arms[0][kinds], arms[1][kinds]

    def _means(self, factor: float, loss: float, *, sign: float) -> Mixture:
        """Compare means: of the candidate with ``factor`` times stable's, or the other way round where they swap."""
        level, variance, worse = self.level, self._variance, 1 + loss
        if not self.plan.swapped:
            theta, variances = level * (worse - factor), (factor**2 * variance, worse**2 * variance)
        else:
            theta, variances = level * (1 - factor / worse), (variance, (factor / worse) ** 2 * variance)
        return Mixture(self.per_hour, self.per_unit, sign * theta, variances, self._rho())

    def _rho(self) -> float:
        if self.latencies is not None:
            return self.latencies.rate * min(4 * (self.plan.margin - 1), 1.0)
        level = self.known.level if self.known.level > 0 else self.plan.rule.floor
        return 2 * (self.plan.margin - 1) * level


@dataclass(frozen=True)
class Latencies:
    """Times about their quantile: log-normal, held against the thresholds that are recorded.

    Attributes:
        metric: Name of the metric.
        rate: How many are above the quantile.
        spread: Standard deviation of their logs.
        thresholds: Of the candidate over stable's, by name of the slow test.
    """

    metric: str
    rate: float
    spread: float
    thresholds: dict[str, float]

    @classmethod
    def of(cls, metric: Metric, terms: Terms) -> Latencies:
        """Read them from a baseline."""
        assert metric.quantile is not None
        middle, high = (terms.baseline.metrics.get(f"{metric.value}_p{percent}") for percent in (50, 95))
        spread = _USUAL_SPREAD
        if middle is not None and high is not None and high.level > middle.level:
            spread = math.log(high.level / middle.level) / _NORMAL.inv_cdf(0.95)
        tests = {test.name: GAMMA ** (test.candidate_bin - test.stable_bin) for test in terms.recording.slow}
        return cls(metric.name, 1 - metric.quantile, spread, tests)

    def slow(self, test: str, loss: float) -> float:
        """Give how many calls of a candidate that takes 1 + loss times as long count as slow in a test."""
        threshold = self.thresholds[slow_test_name(self.metric, test)]
        return _NORMAL.cdf(_NORMAL.inv_cdf(self.rate) - math.log(threshold / (1 + loss)) / self.spread)


def _categories(metric: Metric, mean: float, variance: float) -> Array:
    """Spread a mean and, where the range allows it, a variance over the values that a bounded metric is counted in."""
    weights = np.zeros(CATEGORIES)
    step = (metric.maximum - metric.minimum) / (CATEGORIES - 1)
    for value, weight in _two_points(mean, variance, (metric.minimum, metric.maximum)):
        place = (value - metric.minimum) / step
        below = min(int(place), CATEGORIES - 2)
        weights[below] += weight * (1 - (place - below))
        weights[below + 1] += weight * (place - below)
    return weights


def _two_points(mean: float, variance: float, bounds: tuple[float, float]) -> list[tuple[float, float]]:
    low, high = bounds
    below = max(mean - math.sqrt(variance), low)
    if variance == 0 or mean in (below, high):
        return [(mean, 1.0)]
    above = mean + variance / (mean - below)
    if above > high:
        above, below = high, max(mean - variance / (high - mean), low)
    weight = (above - mean) / (above - below)
    return [(below, weight), (above, 1 - weight)]
