"""Prospects of evidence: how fast the tests of a policy grow, on average, when the candidate is so much worse.

A loss is measured in the metric's unit where its margin is in points, and as ratio - 1 where it is a ratio (that of the
worse over the better way round): 0 is a candidate equal to stable, the margin's own loss is one at the margin.

The logs of bets grow linearly in what is observed, so their means and variances per hour are enough; the normal mixture
follows from the information per hour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from headway.domain.metric import find_metric
from headway.domain.policy import MetricRule
from headway.domain.recording import MetricBaseline, Terms, slow_test_name
from headway.stats import (
    GAMMA,
    betting_log_factors,
    event_ratio_log_factors,
    log_mean_exp,
    normal_mixture_log_e,
    two_sample_log_factors,
)
from headway.stats.events import HARM_RATIOS, PROMOTE_EXPONENTS, SLOW_CALL_PROMOTE_RATIOS
from headway.stats.two_sample import HARM_MULTIPLES, PROMOTE_MULTIPLES
from headway.storage.baselines import Traffic

Array = npt.NDArray[np.float64]

_USUAL_SPREAD = 0.6  # of log latency, where a baseline tells one quantile only
_LARGEST_DELTA = 0.1


class Prospect(Protocol):
    """What is expected of one test.

    Its state is an array that adds up over hours and stages.
    """

    def growth(self, share: float) -> Array:
        """Give what an hour at a share adds to the state."""
        ...

    def log_e(self, state: Array, deviations: float = 0.0) -> float:
        """Read the log of E from a state, ``deviations`` standard deviations below the mean."""
        ...


@dataclass(frozen=True)
class Bets:
    """A mean over bets: F2 to F5.

    Attributes:
        per_hour: Observations per hour, both arms.
        rates: Of each outcome, per observation of stable, then of the candidate.
        factors: Log factor of an outcome under each bet, at a share: arms, outcomes, bets.
        exchanged: The arms are exchanged: what is tested is stable over the candidate.
    """

    per_hour: float
    rates: tuple[Sequence[float], Sequence[float]]
    factors: Factors
    exchanged: bool = False

    def growth(self, share: float) -> Array:
        """Give means and variances of the log factors, per hour."""
        pi = 1 - share if self.exchanged else share
        stable, candidate = self.rates[::-1] if self.exchanged else self.rates
        weights = self.per_hour * np.array([*np.multiply(1 - pi, stable), *np.multiply(pi, candidate)])
        factors = self.factors(pi).reshape(weights.size, -1)
        return np.stack([weights @ factors, weights @ factors**2])

    def log_e(self, state: Array, deviations: float = 0.0) -> float:
        """Read the mean over the bets."""
        mean, variance = state
        return float(log_mean_exp(mean - deviations * np.sqrt(variance)))


class Factors(Protocol):
    """Prices the outcomes of both arms."""

    def __call__(self, pi: float, /) -> Array:
        """Give the log factors: outcomes of arm A, then of B; bets on the last axis."""
        ...


@dataclass(frozen=True)
class Mixture:
    """The normal mixture, F1 with F6.

    Attributes:
        per_hour: Observations per hour, both arms.
        theta: How far the truth is from what is tested, towards the alternative.
        variances: Of an observation of stable (with the contrast's factor in it) and of the candidate.
        rho: Scale of the alternatives.
    """

    per_hour: float
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


class Rule(Protocol):
    """The tests of one metric."""

    def harm(self, loss: float) -> Prospect:
        """Give the test of harm, when the candidate is so much worse."""
        ...

    def safe(self, share: float, loss: float) -> list[list[Prospect]]:
        """Give the ways to show that a share is safe to enter; a way is gone when all its tests are through."""
        ...

    def superior(self, loss: float) -> list[Prospect]:
        """Give the tests of being better than stable."""
        ...

    @property
    def vacuous_share(self) -> float:
        """Up to this share the tolerance is as wide as the metric, and entering needs no evidence."""
        ...


def prospects_of(rule: MetricRule, terms: Terms, traffic: Traffic) -> Rule | None:
    """Work out what is expected of a metric's tests; None where nothing is known of it.

    Args:
        rule: What the policy asks of the metric.
        terms: With baseline and recording.
        traffic: What arrives.
    """
    known = terms.baseline.metrics.get(rule.metric)
    metric = find_metric(rule.metric, terms.feedback)
    if known is None:
        return None
    per_hour, per_unit = traffic.interactions_per_hour, 1.0
    if metric.per == "interaction":
        per_unit = 1.0 if terms.unit == "request" else max(per_hour / traffic.units_per_hour, 1.0)
    else:
        per_hour = traffic.units_per_hour
        if metric.per == "rater":
            per_hour *= traffic.ratings_per_unit.get(rule.metric, 0.0)
    if per_hour <= 0:
        return None
    if rule.method == "two_sample":
        return _TwoRates(rule, per_hour, known.level)
    if rule.method == "betting":
        return _Bounded(rule, per_hour, known, (metric.minimum, metric.maximum))
    if rule.method == "event_ratio":
        return _Events(
            rule, per_hour, known, per_unit, clustered=metric.per == "interaction" and terms.unit != "request"
        )
    if rule.method == "slow_calls":
        return _Slow(rule, per_hour, known, per_unit, _Latencies.of(rule.metric, terms))
    return _Means(rule, per_hour, known)


# --- one class per method --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TwoRates:
    """F2: raters with a good value."""

    rule: MetricRule
    per_hour: float
    level: float

    @property
    def _good(self) -> float:
        return self.level if self.rule.direction == "higher" else 1 - self.level

    def harm(self, loss: float) -> Prospect:
        deltas = [self.rule.margin * multiple for multiple in HARM_MULTIPLES]
        rows = ((1, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 1), (0, 0, 1, 0))
        return self._bets(loss, lambda pi: two_sample_log_factors(_at(rows, pi), self._good, deltas, self.rule.harm))

    def safe(self, share: float, loss: float) -> list[list[Prospect]]:
        return [[self._promote(self.rule.margin / share, loss)]]

    def superior(self, loss: float) -> list[Prospect]:
        return [self._promote(0.0, loss)]

    @property
    def vacuous_share(self) -> float:
        return self.rule.margin / self._good if self._good > 0 else 1.0

    def _promote(self, tolerance: float, loss: float) -> Prospect:
        deltas = [min(tolerance or self.rule.margin, _LARGEST_DELTA) * multiple for multiple in PROMOTE_MULTIPLES]
        rows = ((1, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 0), (0, 0, 1, 1))
        return self._bets(loss, lambda pi: two_sample_log_factors(_at(rows, pi), 1 - self._good, deltas, -tolerance))

    def _bets(self, loss: float, factors: Factors) -> Bets:
        good = min(max(self._good - loss, 0.0), 1.0)
        return Bets(self.per_hour, ((self._good, 1 - self._good), (good, 1 - good)), factors)


@dataclass(frozen=True)
class _Bounded:
    """F4: values of a range, here two of them with the mean and the variance of stable's."""

    rule: MetricRule
    per_hour: float
    known: MetricBaseline
    bounds: tuple[float, float]

    def harm(self, loss: float) -> Prospect:
        return self._bets(loss, -self.rule.harm, sign=1.0)

    def safe(self, share: float, loss: float) -> list[list[Prospect]]:
        return [[self._bets(loss, self.rule.margin / share, sign=-1.0)]]

    def superior(self, loss: float) -> list[Prospect]:
        return [self._bets(loss, 0.0, sign=-1.0)]

    @property
    def vacuous_share(self) -> float:
        low, high = self.bounds
        room = self.known.level - low if self.rule.direction == "higher" else high - self.known.level
        return self.rule.margin / room if room > 0 else 1.0

    def _bets(self, loss: float, theta0: float, *, sign: float) -> Bets:
        low, high = self.bounds
        center, towards = self.known.level, -1.0 if self.rule.direction == "higher" else 1.0
        stable = _two_points(center, self.known.unit_variance or 0.0, self.bounds)
        worse = min(max(center + towards * loss, low), high)
        candidate = _two_points(worse, self.known.unit_variance or 0.0, self.bounds)
        support = np.array([low, *(value for value, _ in stable), *(value for value, _ in candidate), high])
        # Higher is better in the test; promotion is the same on negated values.
        facing = sign if self.rule.direction == "higher" else -sign
        counts = np.eye(6)
        none = np.zeros(6)
        rows = [*((counts[each], none) for each in (1, 2)), *((none, counts[each]) for each in (3, 4))]

        def factors(pi: float) -> Array:
            return betting_log_factors([(*row, pi) for row in rows], facing * support, facing * center, theta0)

        return Bets(self.per_hour, ([weight for _, weight in stable], [weight for _, weight in candidate]), factors)


@dataclass(frozen=True)
class _Events:
    """F3: a unit's first events, and for promotion all events with their clusters; or a floor."""

    rule: MetricRule
    per_hour: float
    known: MetricBaseline
    per_unit: float
    clustered: bool

    @property
    def _exchanged(self) -> bool:
        return self.rule.direction == "higher"

    def harm(self, loss: float) -> Prospect:
        return self._bets(loss, _worse(self.rule.harm), HARM_RATIOS)

    def safe(self, share: float, loss: float) -> list[list[Prospect]]:
        tolerance = 1 + (_worse(self.rule.margin) - 1) / share
        ways = [self._promote(tolerance, loss)]
        if self._has_floor:
            ways.append([self._below(self.rule.floor / share, loss)])
        return ways

    def superior(self, loss: float) -> list[Prospect]:
        return self._promote(1.0, loss)

    @property
    def vacuous_share(self) -> float:
        return self.rule.floor if self._has_floor else 0.0

    @property
    def _has_floor(self) -> bool:
        return self.rule.floor > 0 and not self._exchanged

    def _promote(self, tolerance: float, loss: float) -> list[Prospect]:
        base = tolerance if tolerance > 1 else _worse(self.rule.margin)
        tests: list[Prospect] = [self._bets(loss, tolerance, [base**-exponent for exponent in PROMOTE_EXPONENTS])]
        if self.clustered:
            theta = self.known.level * (tolerance - 1 - loss)
            variance = _per_observation(self.known)
            rho = 2 * (_worse(self.rule.margin) - 1) * self.known.level
            tests.append(Mixture(self.per_hour, theta, (tolerance**2 * variance, (1 + loss) * variance), rho))
        return tests

    def _rates(self, loss: float) -> tuple[float, float]:
        worse = self.known.level / (1 + loss) if self._exchanged else min(self.known.level * (1 + loss), 1.0)
        return _first(self.known.level, self.per_unit), _first(worse, self.per_unit)

    def _bets(self, loss: float, r0: float, ratios: Sequence[float]) -> Bets:
        stable, candidate = self._rates(loss)
        return Bets(self.per_hour, ((stable,), (candidate,)), _event_factors(r0, ratios), self._exchanged)

    def _below(self, floor: float, loss: float) -> Bets:
        _, candidate = self._rates(loss)
        quiet = math.log1p(-floor / 10) - math.log1p(-floor)
        factors = np.array([[0.0], [0.0], [math.log(0.1)], [quiet]])
        return Bets(self.per_hour, ((0.0, 0.0), (candidate, 1 - candidate)), lambda _: factors)


@dataclass(frozen=True)
class _Latencies:
    """Latencies about their quantile: log-normal, with the thresholds that are recorded.

    Attributes:
        rate: How many are above it.
        spread: Standard deviation of their logs.
        thresholds: Of the candidate over stable's, by name of the test.
    """

    rate: float
    spread: float
    thresholds: dict[str, float]

    @classmethod
    def of(cls, name: str, terms: Terms) -> _Latencies:
        metric = find_metric(name, terms.feedback)
        assert metric.quantile is not None
        levels = {quantile: terms.baseline.metrics.get(f"{metric.value}_p{quantile}") for quantile in (50, 95)}
        middle, high = levels[50], levels[95]
        spread = _USUAL_SPREAD
        if middle is not None and high is not None and high.level > middle.level:
            spread = math.log(high.level / middle.level) / float(ndtri(0.95))
        tests = {test.name: GAMMA ** (test.candidate_bin - test.stable_bin) for test in terms.recording.slow}
        return cls(1 - metric.quantile, spread, tests)

    def slow(self, threshold: float, loss: float) -> float:
        """How many calls of a candidate that takes 1 + loss times as long are above so many times the threshold."""
        return float(ndtr(ndtri(self.rate) - math.log(threshold / (1 + loss)) / self.spread))


@dataclass(frozen=True)
class _Slow:
    """F5: calls slower than a threshold; F3 on first ones, and for promotion all of them with their clusters."""

    rule: MetricRule
    per_hour: float
    known: MetricBaseline
    per_unit: float
    latencies: _Latencies
    vacuous_share: float = 0.0  # a ratio never is

    def harm(self, loss: float) -> Prospect:
        threshold = self.latencies.thresholds.get(slow_test_name(self.rule.metric, None), self.rule.harm)
        return self._bets(self.latencies.slow(threshold, loss), HARM_RATIOS)

    def safe(self, share: float, loss: float) -> list[list[Prospect]]:
        tolerance = 1 + (self.rule.margin - 1) / share
        threshold = self.latencies.thresholds.get(slow_test_name(self.rule.metric, share), tolerance)
        return [self._promote(self.latencies.slow(threshold, loss))]

    def superior(self, loss: float) -> list[Prospect]:
        return self._promote(self.latencies.slow(1.0, loss))

    def _promote(self, candidate: float) -> list[Prospect]:
        tests: list[Prospect] = [self._bets(candidate, SLOW_CALL_PROMOTE_RATIOS)]
        if self.per_unit > 1:
            rate = self.latencies.rate
            variance = _per_observation(self.known)
            rho = 2 * (self.rule.margin - 1) * rate
            tests.append(Mixture(self.per_hour, rate - candidate, (variance, variance * candidate / rate), rho))
        return tests

    def _bets(self, candidate: float, ratios: Sequence[float]) -> Bets:
        rates = (_first(self.latencies.rate, self.per_unit),), (_first(candidate, self.per_unit),)
        return Bets(self.per_hour, rates, _event_factors(1.0, ratios))


@dataclass(frozen=True)
class _Means:
    """F1 on values cut off at a limit."""

    rule: MetricRule
    per_hour: float
    known: MetricBaseline
    vacuous_share: float = 0.0

    def harm(self, loss: float) -> Prospect:
        line = _worse(self.rule.harm)
        return self._mixture(line, 1 + loss - line, loss)

    def safe(self, share: float, loss: float) -> list[list[Prospect]]:
        tolerance = 1 + (_worse(self.rule.margin) - 1) / share
        return [[self._mixture(tolerance, tolerance - 1 - loss, loss)]]

    def superior(self, loss: float) -> list[Prospect]:
        return [self._mixture(1.0, -loss, loss)]

    def _mixture(self, factor: float, distance: float, loss: float) -> Prospect:
        variance = _per_observation(self.known)
        variances = (factor**2 * variance, (1 + loss) ** 2 * variance)
        theta, rho = self.known.level * distance, 2 * (_worse(self.rule.margin) - 1) * self.known.level
        if self.rule.direction == "lower":
            return Mixture(self.per_hour, theta, variances, rho)
        # Arms exchanged: the candidate is the smaller one, and carries the factor.
        worse = 1 / (1 + loss)
        return Mixture(self.per_hour, theta * worse, (variance, (factor * worse) ** 2 * variance), rho)


# --- parts -----------------------------------------------------------------------------------------------------------


def _at(rows: Sequence[tuple[int, int, int, int]], pi: float) -> list[tuple[float, ...]]:
    return [(*row, pi) for row in rows]


def _event_factors(r0: float, ratios: Sequence[float]) -> Factors:
    return lambda pi: event_ratio_log_factors([(1, 0, pi), (0, 1, pi)], r0, ratios)


def _worse(ratio: float) -> float:
    """A ratio as that of the worse over the better."""
    return max(ratio, 1 / ratio)


def _first(rate: float, per_unit: float) -> float:
    """First events per interaction: a unit that comes back has but one."""
    return float((1 - (1 - rate) ** per_unit) / per_unit)


def _per_observation(known: MetricBaseline) -> float:
    """The variance that one observation stands for, clusters included."""
    return (known.unit_variance or 0.0) * (known.bucket_interactions or 1.0)


def _two_points(mean: float, variance: float, bounds: tuple[float, float]) -> list[tuple[float, float]]:
    """Two values within bounds and their weights, with a mean and, where the bounds allow it, a variance."""
    low, high = bounds
    below = max(mean - math.sqrt(variance), low)
    if variance == 0 or mean in (below, high):
        return [(mean, 0.5), (mean, 0.5)]
    above = mean + variance / (mean - below)
    if above > high:
        above, below = high, max(mean - variance / (high - mean), low)
    weight = (above - mean) / (above - below)
    return [(below, weight), (above, 1 - weight)]
