"""Figures that people look at: levels, estimates with intervals that hold at all times, what is still to go.

They decide nothing. Arms are never pooled over stages: stable's levels are weighted as the candidate's stages are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from headway.domain.assessment import MetricFigures
from headway.domain.processes import CATEGORIES, HARM
from headway.domain.weighing import Weighing
from headway.stats import (
    RatioStatistics,
    confidence_sequence,
    event_floor_log_e,
    event_ratio_confidence_sequence,
    information_to_decide,
    quantile_rank_bounds,
    ratio_contrast,
    stratified_confidence_sequence,
)
from headway.stats.histogram import GAMMA

_ALPHA = 0.05


class _Shown(NamedTuple):
    """Levels per arm, the estimate, and its interval; what is not finite is not shown."""

    stable: float | None = None
    candidate: float | None = None
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None


class _Stage(NamedTuple):
    """Observations and the sum of their values, of stable and of the candidate, in one stage."""

    stable: float
    stable_total: float
    candidate: float
    candidate_total: float


def describe(figures: MetricFigures, weighing: Weighing, stage: int) -> MetricFigures:
    """Add to what decides what people look at.

    Args:
        figures: What decides.
        weighing: Where it comes from.
        stage: The running stage, for what is to go.
    """
    show: Mapping[str, Callable[[Weighing], _Shown]] = {
        "event_ratio": _show_ratio,
        "slow_calls": _show_quantile,
        "two_sample": _show_rates,
        "betting": _show_means,
        "normal_mixture": _show_mean_ratio,
    }
    shown = _Shown(*(_finite(value) for value in show[weighing.plan.rule.method](weighing)))
    return msgspec.structs.replace(
        figures,
        stable_level=shown.stable,
        candidate_level=shown.candidate,
        estimate=shown.estimate,
        lower=shown.lower,
        upper=shown.upper,
        interactions_to_go=_to_go(figures, weighing, stage),
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _levels(stages: Sequence[_Stage]) -> tuple[float | None, float | None]:
    """Give the level of both arms, stable's in the candidate's mix of stages."""
    seen = sum(each.candidate for each in stages)
    candidate = sum(each.candidate_total for each in stages) / seen if seen else None
    both = [each for each in stages if each.stable and (each.candidate or not seen)]
    weights = [each.candidate if seen else each.stable for each in both]
    if not both:
        return None, candidate
    rates = [each.stable_total / each.stable for each in both]
    return sum(weight * rate for weight, rate in zip(weights, rates, strict=True)) / sum(weights), candidate


# --- by method -----------------------------------------------------------------------------------------------------


def _show_ratio(weighing: Weighing) -> _Shown:
    stages = [_Stage(*row) for _, row in weighing.books.rows(weighing.stream)]
    stages = [each for each in stages if each.stable and each.candidate]
    sizes = [each.stable + each.candidate for each in stages]
    more = sum(each.candidate_total * each.stable / size for each, size in zip(stages, sizes, strict=True))
    fewer = sum(each.stable_total * each.candidate / size for each, size in zip(stages, sizes, strict=True))
    if more and not fewer:  # half an event, where stable had none
        fewer = sum(each.candidate for each in stages) / sum(sizes) / 2
    blocks = [
        (each.stable_total, each.candidate_total, each.candidate / size)
        for each, size in zip(stages, sizes, strict=True)
    ]
    interval = event_ratio_confidence_sequence(blocks, _ALPHA)
    return _Shown(*_levels(stages), more / fewer if fewer else None, interval.lower or None, interval.upper)


def _show_rates(weighing: Weighing) -> _Shown:
    stages = [_Stage(*row) for _, row in weighing.books.rows(weighing.stream)]
    level = weighing.plan.level
    found = stratified_confidence_sequence(
        [tuple(each) for each in stages], 2 * weighing.plan.margin, _ALPHA, level * (1 - level)
    ).interval
    return _Shown(*_levels(stages), _difference(stages), found.lower, found.upper)


def _show_means(weighing: Weighing) -> _Shown:
    plan = weighing.plan
    values = np.linspace(plan.metric.minimum, plan.metric.maximum, CATEGORIES)
    known = None if plan.known is None else plan.known.unit_variance
    information = weighted = 0.0
    stages = []
    for _, row in weighing.books.rows(weighing.stream):
        arms = [np.array(row[start + 1 : start + 1 + CATEGORIES], dtype=np.float64) for start in (0, len(row) // 2)]
        sums = [(float(arm.sum()), float(arm @ values), float(arm @ values**2)) for arm in arms]
        stable, candidate = (RatioStatistics(n, total, n, squares, n, total) for n, total, squares in sums)
        contrast = ratio_contrast(stable, candidate, prior_var=known)
        information, weighted = information + contrast.information, weighted + contrast.weighted_sum
        stages.append(_Stage(sums[0][0], sums[0][1], sums[1][0], sums[1][1]))
    found = confidence_sequence(information, weighted, 2 * plan.margin, _ALPHA)
    return _Shown(*_levels(stages), _difference(stages), found.lower, found.upper)


def _difference(stages: Sequence[_Stage]) -> float | None:
    """Give the difference of the means, stage by stage, each weighted by how many it compares."""
    both = [each for each in stages if each.stable and each.candidate]
    weights = [each.stable * each.candidate / (each.stable + each.candidate) for each in both]
    differences = [each.candidate_total / each.candidate - each.stable_total / each.stable for each in both]
    if not both:
        return None
    return sum(weight * each for weight, each in zip(weights, differences, strict=True)) / sum(weights)


def _show_mean_ratio(weighing: Weighing) -> _Shown:
    plan = weighing.plan
    stages = []
    for _, sums in weighing.books.strata.closed(weighing.stream, weighing.books.stages):
        counts, totals = sums.denominators.sum(axis=1), sums.numerators[0].sum(axis=1) / weighing.small_unit
        stages.append(_Stage(float(counts[0]), float(totals[0]), float(counts[1]), float(totals[1])))
    levels = _levels(stages)
    estimate = levels[1] / levels[0] if levels[0] and levels[1] is not None else None
    found = weighing.means(HARM).log_ratio(2 * math.log(plan.margin), _ALPHA)
    if math.isnan(found.estimate):
        return _Shown(*levels, estimate)
    low, middle, high = (_power(-end if plan.swapped else end) for end in found)
    return _Shown(*levels, middle, *((high, low) if plan.swapped else (low, high)))


def _power(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf


# --- quantiles -----------------------------------------------------------------------------------------------------


class _Quantile(NamedTuple):
    """A quantile with its limits; None where nothing can be said."""

    lower: float | None = None
    level: float | None = None
    upper: float | None = None


def _show_quantile(weighing: Weighing) -> _Shown:
    plan, books = weighing.plan, weighing.books
    quantile, time = plan.metric.quantile or 0.5, plan.metric.value or ""
    histograms = [[books.strata.histogram(time, stage, arm) for stage in books.stages] for arm in (0, 1)]
    counts = [[sum(each.values()) for each in arm] for arm in histograms]
    both = [index for index in range(len(books.stages)) if counts[0][index] and counts[1][index]]
    if not both:
        return _Shown()
    weights = [counts[1][index] / counts[0][index] for index in both]
    # Kish: how many equally weighted observations stable's are worth.
    total = sum(weight * counts[0][index] for weight, index in zip(weights, both, strict=True))
    worth = total**2 / sum(weight**2 * counts[0][index] for weight, index in zip(weights, both, strict=True))
    stable = _quantile([histograms[0][index] for index in both], weights, worth, quantile)
    candidate = _quantile([histograms[1][index] for index in both], [1.0] * len(both), total, quantile)
    ratio = [_divide(candidate.lower, stable.upper), _divide(candidate.level, stable.level)]
    return _Shown(stable.level, candidate.level, ratio[1], ratio[0], _divide(candidate.upper, stable.lower))


def _quantile(
    histograms: Sequence[Mapping[int, int]], weights: Sequence[float], worth: float, quantile: float
) -> _Quantile:
    """Read a quantile and its limits from weighted histograms that are worth so many observations."""
    merged: dict[int, float] = {}
    for histogram, weight in zip(histograms, weights, strict=True):
        for place, count in histogram.items():
            merged[place] = merged.get(place, 0.0) + weight * count
    edges = sorted(merged)
    below = np.cumsum([merged[edge] for edge in edges])
    below *= worth / below[-1]
    bounds = quantile_rank_bounds(int(worth), quantile, _ALPHA / 4)  # two limits of two arms
    middle = edges[min(int(np.searchsorted(below, quantile * worth)), len(edges) - 1)]
    low = int(np.searchsorted(below, bounds.low, side="right")) - 1  # the last edge with so few at or below it
    high = int(np.searchsorted(below, bounds.high))  # the first with so many
    return _Quantile(
        GAMMA ** edges[low] if low >= 0 else None,
        GAMMA ** (middle - 0.5),
        GAMMA ** edges[high] if high < len(edges) else None,
    )


def _divide(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


# --- what is still to go -------------------------------------------------------------------------------------------


def _to_go(figures: MetricFigures, weighing: Weighing, stage: int) -> float | None:
    """Foretell the interactions of both arms until the next share is shown safe, if all goes on as in this stage."""
    if not figures.safe or figures.safe[0].vacuous:
        return None
    following = figures.safe[0]
    if following.log_e >= figures.safe_threshold:
        return 0.0
    share, threshold = following.share, figures.safe_threshold
    all_needed = []
    if weighing.plan.rule.method != "normal_mixture":
        all_needed.append(_blocks_to_go(weighing, repr(share), threshold, stage))
    if weighing.plan.rule.method == "normal_mixture" or weighing.needs_means:
        all_needed.append(_means_to_go(weighing, share, threshold))
    ways = [max(all_needed), _floor_to_go(weighing, share, threshold, stage)]
    return _finite(min(ways))


def _blocks_to_go(weighing: Weighing, test: str, threshold: float, stage: int) -> float:
    """Price what a stage has shown so far once more: evidence grows by as much per interaction, bet by bet."""
    books = weighing.books
    stream, bank = weighing.plan.bank(test)
    row, wealth = books.totals.get(stream, {}).get(stage), books.wealth.get((books.phase, stream))
    interactions = books.interactions(stage)
    if row is None or wealth is None or not interactions:
        return math.inf
    bets = bank.tests[test]
    growth = bank.price(np.array([row], dtype=np.float64))[0, bets] / interactions
    lacking = threshold + math.log(growth.size) - wealth[bets]
    return min((float(lack / pace) for lack, pace in zip(lacking, growth, strict=True) if pace > 0), default=math.inf)


def _means_to_go(weighing: Weighing, share: float, threshold: float) -> float:
    """Foretell when information suffices, growing as it has grown so far."""
    books = weighing.books
    means = weighing.means(repr(share))
    contrast = means.contrast(weighing.tolerance(share))
    interactions = sum(map(books.interactions, books.stages))
    if contrast.information <= 0 or not interactions:
        return math.inf
    distance = -contrast.weighted_sum / contrast.information
    needed = information_to_decide(distance, weighing.rho(), math.exp(-threshold))
    return max(needed - contrast.information, 0.0) * interactions / contrast.information


def _floor_to_go(weighing: Weighing, share: float, threshold: float, stage: int) -> float:
    """Foretell when the candidate is shown below the floor, by first events."""
    row = weighing.books.totals.get(weighing.stream, {}).get(stage)
    if not weighing.floor or row is None:
        return math.inf
    floor = weighing.floor_at(share)
    rows = weighing.books.rows(weighing.stream)
    have = event_floor_log_e(sum(each[3] for _, each in rows), sum(each[2] for _, each in rows), floor)
    growth = event_floor_log_e(row[3], row[2], floor) / weighing.books.interactions(stage)
    return max(threshold - have, 0.0) / growth if growth > 0 else math.inf
