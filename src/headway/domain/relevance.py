"""How good rankings are, how far two of them agree, and how sure one can be of a mean over queries.

A ranking is the names of what was found, best first. Names are documents or sections, not passages: the same one may
come several times; a later one takes a place and brings nothing.

Intervals are those of Gaffke (2005; arXiv 1905.06208 for two sides, compared with others in arXiv 2106.03163): the
values and one more at the bound that is feared are weighted at random, by a Dirichlet distribution with all parameters
1, and the quantile of the weighted mean is the limit. Queries are the sampling units. Of zeros and ones the limits are
Clopper and Pearson's, which are exact; of other values no case of too little coverage is known, nor a proof that there
is none; tests/statistical/test_relevance.py measures it. Of many values the interval is as wide as the normal one. A
bootstrap would not do: where no query of thirty differs, which is common, it gives a width of zero, for any difference.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
"""How often an interval holds the true mean, at least."""

PERSISTENCE = 0.9
"""Of rank-biased overlap: how likely somebody who has read a result reads the next."""

_DRAWS = 10_000  # the tail that a limit cuts off is 0.025, give or take 0.0016
_HELD = 1_000_000  # numbers in memory
_SEED = 5


class Mean(msgspec.Struct, frozen=True):
    """A mean over queries, as a sample of all that there could be.

    Attributes:
        mean: Of the sample.
        lower: The mean over all queries is likely to be at least this.
        upper: And at most this.
        queries: Size of the sample.
    """

    mean: float
    lower: float
    upper: float
    queries: int


class Paired(msgspec.Struct, frozen=True):
    """A measure of two versions on the same queries.

    Attributes:
        before: Its mean in the one version.
        after: Its mean in the other.
        difference: Mean of after minus before.
        better: Queries that have more after.
        worse: Queries that have less after.
        equal: Queries that have the same.
    """

    before: Mean
    after: Mean
    difference: Mean
    better: int
    worse: int
    equal: int


def recall(relevant: Collection[str], ranked: Sequence[str], k: int) -> float:
    """Give the part of what is relevant that is among the first k.

    Raises:
        ValueError: Nothing is relevant, or k is below 1.

    Example:
        >>> recall({"a", "b"}, ["x", "a", "b"], 2)
        0.5
    """
    wanted = _wanted(relevant, k)
    return len(wanted.intersection(ranked[:k])) / len(wanted)


def reciprocal_rank(relevant: Collection[str], ranked: Sequence[str], k: int) -> float:
    """Give 1 / the place of the first that is relevant; 0 where none is among the first k. Its mean is MRR@k.

    Raises:
        ValueError: Nothing is relevant, or k is below 1.

    Example:
        >>> reciprocal_rank({"b"}, ["a", "b"], 10)
        0.5
    """
    wanted = _wanted(relevant, k)
    return next((1 / place for place, name in enumerate(ranked[:k], start=1) if name in wanted), 0.0)


def ndcg(relevant: Mapping[str, float] | Collection[str], ranked: Sequence[str], k: int) -> float:
    """Give the normalised discounted cumulative gain of the first k, 0 to 1.

    What is found gains its grade, divided by log2(1 + place), as in trec_eval; of what is only named the grade is 1.

    Raises:
        ValueError: Nothing is relevant, k is below 1, or a grade is not a positive number.

    Example:
        >>> round(ndcg({"a": 2, "b": 1}, ["b", "a"], 10), 4)
        0.8597
    """
    wanted = _wanted(relevant, k)
    grades = {name: float(relevant[name]) if isinstance(relevant, Mapping) else 1.0 for name in wanted}
    if not all(grade > 0 and math.isfinite(grade) for grade in grades.values()):
        raise ValueError("a grade is a positive number")
    ideal = sorted(grades.values(), reverse=True)[:k]
    gained = [grades.pop(name, 0.0) for name in ranked[:k]]
    return min(1.0, _discount(gained) / _discount(ideal))


def overlap(before: Sequence[str], after: Sequence[str], k: int) -> float:
    """Give how much of what either finds among its first k both find: Jaccard's index, 0 to 1; 1 where both are empty.

    Raises:
        ValueError: k is below 1.

    Example:
        >>> overlap(["a", "b"], ["b", "c"], 10)
        0.3333333333333333
    """
    one, other = _first(before, k), _first(after, k)
    return len(one & other) / len(one | other) if one or other else 1.0


def rank_biased_overlap(before: Sequence[str], after: Sequence[str], k: int, persistence: float = PERSISTENCE) -> float:
    """Give how far two rankings agree, early places counting more: 0 to 1; 1 exactly for the same, also for two empty.

    The overlap of the first 1, 2, ... k, divided by the longer one's length, weighted by ``persistence`` to the power
    of the depth (Webber, Moffat, Zobel 2010), the weights made to add up to 1 at depth k. Repeated names count once.

    Raises:
        ValueError: k is below 1, or the persistence not between 0 and 1.
    """
    if not 0 < persistence < 1:
        raise ValueError(f"the persistence is between 0 and 1, not {persistence}")
    one, other = list(dict.fromkeys(before[: _depth(k)])), list(dict.fromkeys(after[:k]))
    total = weights = 0.0
    for depth in range(1, max(len(one), len(other)) + 1):
        weight = persistence**depth
        shared = len(set(one[:depth]).intersection(other[:depth]))
        total += weight * shared / max(len(one[:depth]), len(other[:depth]))
        weights += weight
    return total / weights if weights else 1.0


def churn(before: Sequence[str], after: Sequence[str], k: int) -> float:
    """Give the part of what was among the first k before that no longer is, 0 to 1; 0 where nothing was found before.

    Raises:
        ValueError: k is below 1.
    """
    one = _first(before, k)
    return len(one - _first(after, k)) / len(one) if one else 0.0


def estimate(
    values: Iterable[float], lowest: float = 0.0, highest: float = 1.0, confidence: float = CONFIDENCE
) -> Mean | None:
    """Estimate the mean of which values are a sample, with an interval; see the module.

    Args:
        values: One for each query, independent.
        lowest: What a value is at least.
        highest: What it is at most.
        confidence: How often the interval holds the mean.

    Returns:
        None without values.

    Raises:
        ValueError: A value, or the confidence, is out of its bounds.

    Example:
        >>> estimate([1, 1, 1, 0])
        Mean(mean=0.75, lower=0.19..., upper=0.99..., queries=4)
    """
    sample = np.fromiter(values, np.float64)
    if not sample.size:
        return None
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence is between 0 and 1, not {confidence}")
    if not (lowest <= sample.min() and sample.max() <= highest):  # nan is refused too
        raise ValueError(f"a value is not between {lowest} and {highest}")
    tail = (1 - confidence) / 2
    drawn = _weigh(sample, lowest, highest)
    # Rounding, and the chance in the draws, must not take the mean out of its interval.
    mean = float(sample.mean())
    lower, upper = float(np.quantile(drawn[0], tail)), float(np.quantile(drawn[1], 1 - tail))
    return Mean(mean, max(lowest, min(lower, mean)), min(highest, max(upper, mean)), sample.size)


def compare(
    before: Sequence[float], after: Sequence[float], lowest: float = 0.0, highest: float = 1.0
) -> Paired | None:
    """Compare a measure of two versions, query by query; None without queries.

    Args:
        before: The measure of each query.
        after: The same, of the same queries in the same order.
        lowest: What it is at least.
        highest: What it is at most.

    Raises:
        ValueError: They are not equally many, or a value is out of its bounds.
    """
    changes = [new - old for old, new in zip(before, after, strict=True)]
    span = highest - lowest
    means = estimate(before, lowest, highest), estimate(after, lowest, highest), estimate(changes, -span, span)
    if means[0] is None or means[1] is None or means[2] is None:
        return None
    better, worse = sum(each > 0 for each in changes), sum(each < 0 for each in changes)
    return Paired(means[0], means[1], means[2], better, worse, len(changes) - better - worse)


def _weigh(sample: npt.NDArray[np.float64], lowest: float, highest: float) -> npt.NDArray[np.float64]:
    """Draw weighted means of the sample with one more value: the lowest, and the highest that there can be."""
    values, counts = np.unique(sample, return_counts=True)  # the weights of equal values add up to a gamma variate
    draws = np.random.default_rng(_SEED)
    drawn = np.empty((2, _DRAWS))
    step = max(1, _HELD // values.size)
    for start in range(0, _DRAWS, step):
        size = min(step, _DRAWS - start)
        weights, more = draws.standard_gamma(counts, (size, values.size)), draws.standard_exponential(size)
        total, weighed = weights.sum(axis=1) + more, weights @ values
        drawn[:, start : start + size] = (weighed + more * lowest) / total, (weighed + more * highest) / total
    return drawn


def _wanted(relevant: Collection[str], k: int) -> set[str]:
    _depth(k)
    if not relevant:
        raise ValueError("nothing is relevant: there is nothing to measure")
    return set(relevant)


def _first(ranked: Sequence[str], k: int) -> set[str]:
    return set(ranked[: _depth(k)])


def _depth(k: int) -> int:
    if k < 1:
        raise ValueError(f"k is at least 1, not {k}")
    return k


def _discount(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(1 + place) for place, gain in enumerate(gains, start=1))
