"""F5, F7 and F8: quantile ranks, the sample ratio, the change detector."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from headway.stats import change_detector, detector_step, log_mean_exp, quantile_rank_bounds, sample_ratio_log_e
from headway.stats.allocation import dirichlet_multinomial_log_e
from headway.stats.detector import ODDS


def by_the_formula(counts: list[int], shares: list[float], concentration: float) -> float:
    lg = math.lgamma
    terms = (
        lg(concentration * p + n) - lg(concentration * p) - n * math.log(p) for n, p in zip(counts, shares, strict=True)
    )
    return lg(concentration) - lg(concentration + sum(counts)) + sum(terms)


# --- F7 ---


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=4), st.floats(1, 5000))
def test_the_sample_ratio_is_its_formula(counts: list[int], concentration: float) -> None:
    shares = [1 / len(counts)] * len(counts)
    expected = by_the_formula(counts, shares, concentration)
    assert sample_ratio_log_e(counts, shares, concentration) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("p", [0.5, 0.05, 0.01, 0.001])
@pytest.mark.parametrize("n", [1, 10, 1000])
@pytest.mark.parametrize("concentration", [1000.0, 100.0, 2.0])
def test_the_expectation_under_the_shares_is_one(n: int, p: float, concentration: float) -> None:
    k = np.arange(n + 1)
    log_e = dirichlet_multinomial_log_e(
        np.stack([n - k, k], axis=-1).astype(float), np.array([1 - p, p]), concentration
    )
    assert np.exp(binom.logpmf(k, n, p) + log_e).sum() == pytest.approx(1.0, abs=1e-9)


def test_a_thousand_million_units_lose_no_digits() -> None:
    # Against the same sum in integer steps: E(n + 1) / E(n) = (a + k) / (S + n) / p for one more unit.
    n, p, s = 10**9, 0.3, 1000.0
    counts = np.array([[n * 0.7, n * 0.3], [n * 0.7, n * 0.3 + 1]])
    log_e = dirichlet_multinomial_log_e(counts, np.array([0.7, 0.3]), s)
    step = math.log1p((s * p + n * p) / (p * (s + n)) - 1)
    assert log_e[1] - log_e[0] == pytest.approx(step, abs=2e-7)
    # and against Stirling's formula at the expected counts: half the log of (S / N) x sum of small terms
    assert log_e[0] == pytest.approx(0.5 * math.log(s / (s + n)), abs=2e-3)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=5), st.randoms())
def test_strata_multiply_in_any_order(strata: list[tuple[int, int]], random: Any) -> None:
    whole = sample_ratio_log_e(strata, [0.9, 0.1])
    shuffled = list(strata)
    random.shuffle(shuffled)
    assert sample_ratio_log_e(shuffled, [[0.9, 0.1]] * len(strata)) == pytest.approx(whole, abs=1e-9)
    assert sum(sample_ratio_log_e(row, [0.9, 0.1]) for row in strata) == pytest.approx(whole, abs=1e-9)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0.001, 0.999))
def test_the_arms_may_be_named_either_way(a: int, b: int, p: float) -> None:
    there = sample_ratio_log_e([a, b], [1 - p, p])
    assert math.isfinite(there)
    assert sample_ratio_log_e([b, a], [p, 1 - p]) == pytest.approx(there, rel=1e-9, abs=1e-6)


def test_a_mismatch_is_seen_and_a_match_is_not() -> None:
    assert sample_ratio_log_e([94_000, 6_000], [0.95, 0.05]) > math.log(1000)
    assert sample_ratio_log_e([95_000, 5_000], [0.95, 0.05]) < 0
    assert sample_ratio_log_e([0, 0], [0.95, 0.05]) == 0.0
    assert sample_ratio_log_e([0, 10**9], [0.5, 0.5]) == pytest.approx(10**9 * math.log(2), rel=1e-4)


# --- F5 ---


@given(st.integers(0, 10**9), st.floats(0.01, 0.99), st.floats(1e-6, 0.4), st.sampled_from([10.0, 100.0, 1000.0]))
def test_ranks_are_the_outermost_that_prove_something(n: int, p: float, alpha: float, s: float) -> None:
    low, high = quantile_rank_bounds(n, p, alpha, s)
    assert -1 <= low < n * p < high or n == 0
    assert high <= n + 1

    def log_e(k: int) -> float:
        return float(dirichlet_multinomial_log_e(np.array([float(k), float(n - k)]), np.array([p, 1 - p]), s))

    threshold = math.log(1 / alpha)
    for proved, first_not in ((low, low + 1), (high, high - 1)):
        if 0 <= proved <= n:
            assert log_e(proved) >= threshold
        if 0 <= first_not <= n:
            assert log_e(first_not) < threshold


@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_a_smaller_alpha_gives_wider_ranks(n: int, p: float) -> None:
    wide, narrow = quantile_rank_bounds(n, p, 0.001), quantile_rank_bounds(n, p, 0.05)
    assert wide.low <= narrow.low
    assert wide.high >= narrow.high


# --- F8 ---

minutes = st.lists(
    st.integers(0, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=30
)


@given(minutes, st.floats(1e-6, 0.9), st.sampled_from([1.0, 2.5]))
def test_steps_make_the_stream(stream: list[tuple[int, int]], p: float, phi: float) -> None:
    state = np.full(len(ODDS), -np.inf)
    expected = change_detector(stream, p, phi=phi)
    assert np.isfinite(expected).all()
    for (bad, total), after in zip(stream, expected, strict=True):
        state = detector_step(state, bad, total, p, phi=phi)
        assert float(log_mean_exp(state)) == after
    assert change_detector(stream, [p] * len(stream), phi=phi).tolist() == expected.tolist()


def test_detectors_run_side_by_side() -> None:
    state = np.full((3, len(ODDS)), -np.inf)
    bad = np.array([0, 1, 5])
    together = detector_step(state, bad, 100, np.array([0.01, 0.02, 0.03]))
    for row, (k, p) in zip(together, [(0, 0.01), (1, 0.02), (5, 0.03)], strict=True):
        assert row.tolist() == detector_step(state[0], k, 100, p).tolist()


@pytest.mark.parametrize("p", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("odds", [*ODDS, 0.5])
@pytest.mark.parametrize("share_of_p", [1.0, 0.8])
def test_a_minute_has_expectation_at_most_one_up_to_the_baseline(p: float, odds: float, share_of_p: float) -> None:
    n, k = 40, np.arange(41)
    # M after one minute is L (1 + 0).
    factors = np.exp([change_detector([(int(i), n)], p, [odds])[0] for i in k])
    expected = binom.pmf(k, n, p * share_of_p) @ factors
    assert expected <= 1 + 1e-9 or odds < 1
    if share_of_p == 1.0:
        assert expected == pytest.approx(1.0, abs=1e-9)


def test_a_quiet_minute_counts_as_a_minute() -> None:
    assert change_detector([(0, 0)] * 3, 0.01).tolist() == pytest.approx([0.0, math.log(2), math.log(3)])
    assert change_detector([], 0.01).tolist() == []


@given(minutes)
def test_more_bad_events_raise_the_alarm_sooner(stream: list[tuple[int, int]]) -> None:
    worse = [(min(bad + 1, total), total) for bad, total in stream]
    assert (change_detector(worse, 0.01) >= change_detector(stream, 0.01) - 1e-6).all()


# --- bad input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_ratio_log_e([1, -1], [0.5, 0.5]), "not negative"),
        (lambda: sample_ratio_log_e([1, 1], [0.5, 0.4]), "add up to 1"),
        (lambda: sample_ratio_log_e([1, 1], [1.0, 0.0]), "positive"),
        (lambda: sample_ratio_log_e([1, 1, 1], [0.5, 0.5]), "do not fit"),
        (lambda: sample_ratio_log_e([[1, 1]], [[0.5, 0.5]] * 2), "do not fit"),
        (lambda: sample_ratio_log_e(3, 1.0), "do not fit"),
        (lambda: sample_ratio_log_e([1, 1], [0.5, 0.5], 0), "conc"),
        (lambda: quantile_rank_bounds(-1, 0.5, 0.05), "whole number"),
        (lambda: quantile_rank_bounds(10.5, 0.5, 0.05), "whole number"),  # type: ignore[arg-type]  # on purpose
        (lambda: quantile_rank_bounds(10, 1.0, 0.05), "quantile"),
        (lambda: quantile_rank_bounds(10, 0.5, 0.0), "alpha"),
        (lambda: quantile_rank_bounds(10, 0.5, 0.05, 0.0), "s must be positive"),
        (lambda: change_detector([(2, 1)], 0.1), "more bad events than events"),
        (lambda: change_detector([(-1, 1)], 0.1), "not negative"),
        (lambda: change_detector([(1, 1, 1)], 0.1), "rows of"),
        (lambda: change_detector([(1, 1)], 0.0), "baseline"),
        (lambda: change_detector([(1, 1)], [0.1, 0.2]), "one for each"),
        (lambda: change_detector([(1, 1)], 0.1, [1.0]), "no bet"),
        (lambda: change_detector([(1, 1)], 0.1, phi=0), "phi"),
        (lambda: detector_step([0.0], 2, 1, 0.1, [2.0]), "more bad events than events"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
