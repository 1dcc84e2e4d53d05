"""Measures of rankings, their agreement, and intervals of means over queries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from headway.domain.relevance import (
    churn,
    compare,
    estimate,
    ndcg,
    overlap,
    rank_biased_overlap,
    recall,
    reciprocal_rank,
)

Ranking = st.lists(st.sampled_from("abcdefgh"), max_size=8)
Depth = st.integers(1, 10)


def test_recall() -> None:
    assert recall({"a"}, ["x", "y", "a"], 2) == 0
    assert recall({"a"}, ["x", "y", "a"], 3) == 1
    assert recall({"a", "b", "c"}, ["a", "a", "b"], 10) == pytest.approx(2 / 3)
    assert recall(["a", "a"], ["a"], 1) == 1
    assert recall({"a"}, [], 10) == 0


def test_reciprocal_rank() -> None:
    assert reciprocal_rank({"a", "b"}, ["x", "b", "a"], 10) == 0.5
    assert reciprocal_rank({"a"}, ["x", "y", "a"], 2) == 0
    assert reciprocal_rank({"a"}, [], 3) == 0


def test_ndcg() -> None:
    # By hand: gains 3, 0, 2 at places 1, 2, 3; ideal 3, 2, 1.
    got = 3 + 2 / math.log2(4)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert ndcg({"a": 3, "b": 2, "c": 1}, ["a", "x", "b"], 3) == pytest.approx(got / ideal)
    assert ndcg({"a", "b"}, ["a", "b"], 10) == 1
    assert ndcg({"a", "b", "c"}, ["a", "b"], 2) == 1, "no more than k can be found among k"
    assert ndcg({"a"}, ["x", "a"], 10) == pytest.approx(1 / math.log2(3))


def test_what_is_found_again_brings_nothing() -> None:
    assert ndcg({"a", "b"}, ["a", "a", "a"], 3) == pytest.approx(1 / (1 + 1 / math.log2(3)))


def test_rankings_that_agree_and_that_do_not() -> None:
    assert overlap(["a", "b", "c"], ["b", "c", "d"], 2) == pytest.approx(1 / 3)
    assert churn(["a", "b"], ["b", "x"], 2) == 0.5
    assert churn([], ["b"], 2) == 0
    assert churn(["a"], [], 2) == 1
    # By hand, to depth 2: agreement 0 at depth 1, 1 at depth 2.
    assert rank_biased_overlap(["a", "b"], ["b", "a"], 2) == pytest.approx(0.81 / (0.9 + 0.81))
    # What changes first changes most.
    first, last = [rank_biased_overlap("abcd", changed, 4) for changed in ("xbcd", "abcx")]
    assert first < last < 1


@given(Ranking, Ranking, Depth)
def test_agreement_is_of_two_equals(one: list[str], other: list[str], k: int) -> None:
    for measure in (overlap, rank_biased_overlap):
        assert 0 <= measure(one, other, k) <= 1
        assert measure(one, other, k) == pytest.approx(measure(other, one, k))
        assert measure(one, one, k) == pytest.approx(1)
    assert churn(one, one, k) == 0


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0.1, 5), min_size=1), Ranking, Depth)
def test_no_ranking_is_better_than_the_best(relevant: dict[str, float], ranked: list[str], k: int) -> None:
    best = sorted(relevant, key=lambda name: -relevant[name])
    assert 0 <= ndcg(relevant, ranked, k) <= 1
    assert ndcg(relevant, best, k) == pytest.approx(1)
    assert (ndcg(relevant, ranked, k) > 0) == (reciprocal_rank(relevant, ranked, k) > 0)
    assert (recall(relevant, ranked, k) > 0) == (reciprocal_rank(relevant, ranked, k) > 0)


@pytest.mark.parametrize("measure", [recall, reciprocal_rank, ndcg])
def test_nothing_relevant_and_no_depth_are_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(ValueError, match="nothing is relevant"):
        measure(set(), ["a"], 10)
    with pytest.raises(ValueError, match="k is at least 1"):
        measure({"a"}, ["a"], 0)


def test_other_wrong_arguments_are_refused() -> None:
    for grade in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive number"):
            ndcg({"a": grade}, ["a"], 10)
    with pytest.raises(ValueError, match="persistence"):
        rank_biased_overlap(["a"], ["a"], 10, persistence=1.0)
    for values in ([1.1], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="not between 0"):
            estimate(values)
    with pytest.raises(ValueError, match="confidence"):
        estimate([1.0], confidence=1.0)
    with pytest.raises(ValueError, match="shorter"):
        compare([1.0, 0.0], [1.0])


def test_no_queries_are_no_figure() -> None:
    assert estimate([]) is None
    assert compare([], []) is None


@pytest.mark.parametrize(("hits", "count"), [(0, 12), (3, 12), (12, 12), (40, 100), (569, 570), (1, 1)])
def test_of_zeros_and_ones_the_interval_is_exact(hits: int, count: int) -> None:
    found = estimate([1.0] * hits + [0.0] * (count - hits))
    assert found is not None
    lower = 0.0 if not hits else beta.ppf(0.025, hits, count - hits + 1)
    upper = 1.0 if hits == count else beta.ppf(0.975, hits + 1, count - hits)
    assert (found.mean, found.queries) == (hits / count, count)
    assert found.lower == pytest.approx(lower, abs=0.006)
    assert found.upper == pytest.approx(upper, abs=0.006)


def test_of_many_values_the_interval_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.1, 0.2, 2000).clip(-1, 1)
    found = estimate(values, -1, 1)
    assert found is not None
    normal = 2 * 1.96 * values.std() / math.sqrt(values.size)
    assert found.upper - found.lower == pytest.approx(normal, rel=0.12)
    assert found.lower < found.mean < found.upper


def test_the_order_of_queries_does_not_matter() -> None:
    values = [0.1, 0.5, 0.5, 1.0, 0.0]
    assert estimate(values) == estimate(values[::-1]) == estimate(iter(values))


def test_queries_that_agree_do_not_prove_that_all_do() -> None:
    found = compare([1.0] * 30, [1.0] * 30)
    assert found is not None
    assert found.difference.mean == 0
    assert found.difference.lower < -0.1 < 0.1 < found.difference.upper
    assert (found.better, found.worse, found.equal) == (0, 0, 30)


def test_pairs_tell_more_than_the_two_means() -> None:
    draws = np.random.default_rng(2)
    before = draws.uniform(0.2, 1, 200)
    after = before - draws.uniform(0, 0.1, 200)
    found = compare(before.tolist(), after.tolist())
    assert found is not None
    assert found.before.lower < found.after.upper, "the two intervals overlap"
    assert found.difference.upper < 0, "and yet it is worse"
    assert found.difference.mean == pytest.approx(found.after.mean - found.before.mean)
    assert found.worse == 200
