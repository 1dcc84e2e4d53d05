"""F1 and F6: the normal mixture, its confidence sequence, ratio variances, strata, clusters, CUPED."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.stats import (
    Contrast,
    CovariateSums,
    RatioStatistics,
    clustered_contrast,
    confidence_sequence,
    cuped_adjustment,
    information_to_decide,
    normal_mixture_boundary,
    normal_mixture_log_e,
    ratio_contrast,
    ratio_variance,
    stratified_confidence_sequence,
)

informations = st.floats(1e-3, 1e9)
scales = st.floats(1e-3, 10.0)
alphas = st.floats(1e-6, 0.5)
counts = st.integers(0, 10**9)


# --- the mixture ---


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("spread", [1e-6, 0.1, 1.0, 37.0, 1e6])
def test_expectation_under_the_null_is_one(spread: float, two_sided: bool) -> None:
    information, rho = 1.0, math.sqrt(spread)
    # Between -9 and 9 standard deviations; E grows there like a density of variance 1 + spread.
    u = np.linspace(-60, 60, 400_001)
    log_density = -u * u / 2 - math.log(2 * math.pi) / 2
    total = np.exp(normal_mixture_log_e(u, information, rho, two_sided=two_sided) + log_density).sum() * (u[1] - u[0])
    assert total <= 1 + 1e-9
    if spread <= 37:
        assert total == pytest.approx(1.0, rel=1e-6)  # beyond, its weight lies outside of the range summed


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3), informations, scales)
def test_evidence_grows_with_the_score(u: float, more: float, information: float, rho: float) -> None:
    assert normal_mixture_log_e(u + more, information, rho) >= normal_mixture_log_e(u, information, rho) - 1e-9


@given(st.floats(-1e6, 1e6), informations, scales)
def test_two_sided_evidence_is_symmetric_and_the_mean_of_both_sides(u: float, information: float, rho: float) -> None:
    both = normal_mixture_log_e(u, information, rho, two_sided=True)
    assert normal_mixture_log_e(-u, information, rho, two_sided=True) == both
    up, down = normal_mixture_log_e(u, information, rho), normal_mixture_log_e(-u, information, rho)
    assert np.logaddexp(up, down) - math.log(2) == pytest.approx(both, abs=1e-9, rel=1e-9)


@given(informations, scales, alphas)
def test_the_two_sided_boundary_is_where_e_reaches_one_over_alpha(i: float, rho: float, alpha: float) -> None:
    boundary = normal_mixture_boundary(i, rho, alpha, two_sided=True)
    assert normal_mixture_log_e(boundary, i, rho, two_sided=True) == pytest.approx(math.log(1 / alpha), abs=1e-8)


@given(informations, scales, alphas)
def test_the_one_sided_boundary_is_safe_and_nearer(i: float, rho: float, alpha: float) -> None:
    boundary = float(normal_mixture_boundary(i, rho, alpha))
    at_boundary = float(normal_mixture_log_e(boundary, i, rho))
    assert at_boundary >= math.log(1 / alpha) - 1e-9
    assert at_boundary <= math.log(1 / alpha) + 0.3  # and hardly later than E itself
    assert boundary <= normal_mixture_boundary(i, rho, alpha, two_sided=True)


@given(st.floats(1e-4, 1e3), scales, alphas, st.floats(1.01, 10))
def test_information_to_decide_meets_the_boundary(theta: float, rho: float, alpha: float, factor: float) -> None:
    information = information_to_decide(theta, rho, alpha)
    assert theta * information == pytest.approx(normal_mixture_boundary(information, rho, alpha), rel=1e-9)
    assert information_to_decide(theta * factor, rho, alpha) < information
    assert information_to_decide(theta, rho, alpha / factor) > information


@pytest.mark.parametrize("theta", [0.0, -0.1])
def test_no_effect_never_decides(theta: float) -> None:
    assert information_to_decide(theta, 0.06, 0.05) == math.inf


@given(informations, st.floats(-10, 10), scales, alphas, st.booleans())
def test_a_confidence_sequence_inverts_the_test(
    i: float, estimate: float, rho: float, alpha: float, two_sided: bool
) -> None:
    lower, center, upper = confidence_sequence(i, i * estimate, rho, alpha, two_sided=two_sided)
    assert lower < center < upper
    assert center == pytest.approx(estimate, rel=1e-9, abs=1e-12)
    for limit, sign in ((lower, 1), (upper, -1)):
        step = (upper - lower) * 1e-6
        just_outside = sign * i * (center - limit + sign * step)
        just_inside = sign * i * (center - limit - sign * step)
        threshold = math.log(1 / alpha)
        assert normal_mixture_log_e(just_outside, i, rho, two_sided=two_sided) >= threshold - 1e-9
        if two_sided:
            assert normal_mixture_log_e(just_inside, i, rho, two_sided=True) < threshold + 1e-9


def test_no_information_is_no_data() -> None:
    assert normal_mixture_log_e(0, 0, 0.06) == 0.0
    lower, estimate, upper = confidence_sequence(0, 0, 0.06, 0.05)
    assert (lower, upper) == (-math.inf, math.inf)
    assert math.isnan(estimate)


def test_arrays_are_broadcast() -> None:
    result = normal_mixture_log_e([[1.0], [2.0]], [10.0, 20.0, 30.0], 0.1)
    assert isinstance(result, np.ndarray)
    assert result.shape == (2, 3)
    assert result[1, 2] == normal_mixture_log_e(2.0, 30.0, 0.1)


def test_extreme_scores_have_a_log() -> None:
    assert normal_mixture_log_e(1e9, 1e9, 0.06) == pytest.approx(5e8, rel=1e-3)
    spread = 1 + 0.06**2 * 1e9
    z = 0.06 * 1e9 / math.sqrt(spread)  # 2 Phi(-z) exp(z^2 / 2) is sqrt(2 / pi) / z there
    tail = math.log(math.sqrt(2 / math.pi) / z) - math.log(spread) / 2
    assert normal_mixture_log_e(-1e9, 1e9, 0.06) == pytest.approx(tail, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_mixture_log_e(1, 0, 0.06), "no information"),
        (lambda: normal_mixture_log_e(math.nan, 1, 0.06), "finite"),
        (lambda: normal_mixture_log_e(1, -1, 0.06), "not negative"),
        (lambda: normal_mixture_log_e(1, math.inf, 0.06), "finite"),
        (lambda: normal_mixture_log_e(1, 1, 0), "rho must be positive"),
        (lambda: normal_mixture_boundary(1, 0.06, 0), "alpha must be between 0 and 1"),
        (lambda: normal_mixture_boundary(1, 0.06, 1), "alpha must be between 0 and 1"),
        (lambda: confidence_sequence(0, 1, 0.06, 0.05), "no information"),
        (lambda: information_to_decide(math.nan, 0.06, 0.05), "theta must be a number"),
    ],
)
def test_bad_input_of_the_mixture(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- ratios ---

units = st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 50)), min_size=1, max_size=30)


@given(units, units)
def test_sums_merge(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    def sums(of: list[tuple[int, int]]) -> RatioStatistics:
        return RatioStatistics.from_units([y for y, _ in of], [m for _, m in of])

    assert sums(first) + sums(second) == sums(first + second) == sums(second) + sums(first)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=60))
def test_one_value_per_unit_is_the_usual_variance(values: list[int]) -> None:
    estimate = ratio_variance(RatioStatistics.from_units(values, 1))
    assert estimate.ratio == pytest.approx(np.mean(values))
    assert estimate.variance == pytest.approx(np.var(values, ddof=1) / len(values), abs=1e-15)
    assert estimate == ratio_variance(RatioStatistics.from_counts(len(values), sum(values)))


@given(counts, st.floats(0, 1), st.floats(1e-6, 1.0), st.floats(1, 1e3))
def test_shrinkage_lies_between_the_sample_and_the_prior(n: int, rate: float, prior: float, kappa: float) -> None:
    k = math.floor(n * rate)
    stats = RatioStatistics.from_counts(n, k)
    variance = float(ratio_variance(stats, prior, kappa).variance)
    if n == 0:
        assert variance == math.inf
    elif n > 1:
        unit = n * (k / n) * (1 - k / n) / (n - 1)
        assert min(unit, prior) * (1 - 1e-6) - 1e-15 <= variance * n <= max(unit, prior) * (1 + 1e-6)


def test_variance_is_that_of_repeated_samples_of_clustered_users() -> None:
    rng = np.random.default_rng(3)
    ratios, variances = [], []
    for _ in range(2000):
        m = rng.integers(1, 20, 200)
        y = rng.binomial(m, rng.beta(2, 1, 200))
        estimate = ratio_variance(RatioStatistics.from_units(y, m))
        ratios.append(float(estimate.ratio))
        variances.append(float(estimate.variance))
    assert np.mean(variances) == pytest.approx(np.var(ratios), rel=0.12)  # four standard errors


def test_arrays_give_arrays_and_no_data_stays_no_data_beside_data() -> None:
    estimate = ratio_variance(RatioStatistics.from_counts([0, 1, 50], [0, 1, 25]))
    assert np.isnan(np.asarray(estimate.ratio)[0])
    assert np.isinf(np.asarray(estimate.variance)[:2]).all()
    assert np.asarray(estimate.variance)[2] == pytest.approx(0.25 / 49)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ratio_variance(RatioStatistics(-1, 0, 1, 0, 0, 0)), "n and sm not negative"),
        (lambda: ratio_variance(RatioStatistics(1, math.nan, 1, 0, 0, 0)), "finite"),
        (lambda: ratio_variance(RatioStatistics(1, 1, 1, 1, 1, 1), -0.1), "prior_var"),
        (lambda: ratio_variance(RatioStatistics(1, 1, 1, 1, 1, 1), 0.1, -1), "kappa"),
        (lambda: RatioStatistics.from_counts(1, 2), "more successes than observations"),
        (lambda: RatioStatistics.from_units([1], [-1]), "not negative"),
    ],
)
def test_bad_input_of_ratios(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- strata ---

strata = st.lists(
    st.tuples(st.integers(0, 2000), st.floats(0, 1), st.integers(0, 2000), st.floats(0, 1)), min_size=1, max_size=6
).map(lambda rows: [(n, math.floor(n * p), m, math.floor(m * q)) for n, p, m, q in rows])


@given(strata, st.randoms())
def test_order_of_strata_does_not_matter_and_contrasts_add_up(rows: list[tuple[int, ...]], random: Any) -> None:
    whole = stratified_confidence_sequence(rows, 0.06, 0.05, prior_var=0.2)
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = stratified_confidence_sequence(shuffled, 0.06, 0.05, prior_var=0.2)
    assert again.information == pytest.approx(whole.information)
    assert again.weighted_sum == pytest.approx(whole.weighted_sum, abs=1e-9)
    arm = RatioStatistics.from_counts
    total = sum((ratio_contrast(arm(a, b), arm(c, d), prior_var=0.2) for a, b, c, d in rows), Contrast())
    assert total.information == pytest.approx(whole.information)
    assert total.weighted_sum == pytest.approx(whole.weighted_sum, abs=1e-9)


@given(strata)
def test_swapping_the_arms_changes_the_sign(rows: list[tuple[int, ...]]) -> None:
    there = stratified_confidence_sequence(rows, 0.06, 0.05)
    back = stratified_confidence_sequence([(c, d, a, b) for a, b, c, d in rows], 0.06, 0.05)
    assert back.information == pytest.approx(there.information)
    assert back.weighted_sum == pytest.approx(-there.weighted_sum, abs=1e-9)


def test_pooling_would_be_simpsons_paradox() -> None:
    # Both arms: 90 % on easy traffic, 50 % on hard; the candidate got its share when traffic was hard.
    rows = [(990, 891, 10, 9), (500, 250, 500, 250)]
    assert stratified_confidence_sequence(rows, 0.06, 0.05, prior_var=0.2, min_n=5).interval.estimate == pytest.approx(
        0
    )


@pytest.mark.parametrize("rows", [[], [(0, 0, 0, 0)], [(1000, 700, 29, 20)], [(100, 100, 100, 100)]])
def test_too_few_units_or_no_variance_is_no_data(rows: list[tuple[int, ...]]) -> None:
    estimate = stratified_confidence_sequence(rows, 0.06, 0.05)
    assert (estimate.information, estimate.weighted_sum) == (0.0, 0.0)
    assert estimate.interval[::2] == (-math.inf, math.inf)
    assert math.isnan(estimate.interval.estimate)
    arm = RatioStatistics.from_counts
    assert [ratio_contrast(arm(a, b), arm(c, d)) for a, b, c, d in rows] == [Contrast()] * len(rows)


def test_a_relative_margin_enters_once() -> None:
    stable = RatioStatistics(1000, 2000, 1000, 5000, 1000, 2000)
    candidate = RatioStatistics(1000, 2200, 1000, 6000, 1000, 2200)
    contrast = ratio_contrast(stable, candidate, factor=1.1, prior_var=(1.0, 1.2))
    assert contrast.weighted_sum == pytest.approx(0.0, abs=1e-6)  # exactly 10 % dearer
    plain = ratio_contrast(stable, candidate, prior_var=(1.0, 1.2))
    assert plain.information > contrast.information
    assert plain.weighted_sum / plain.information == pytest.approx(0.2)


@pytest.mark.parametrize("rows", [[(1, 2, 3)], [(1, 2, 1, 1)], [(-1, 0, 1, 1)], [(math.nan, 0, 1, 1)]])
def test_bad_strata(rows: list[tuple[float, ...]]) -> None:
    with pytest.raises(ValueError):
        stratified_confidence_sequence(rows, 0.06, 0.05)


# --- clusters over strata ---


def bucket_totals(rng: np.random.Generator, strata: int, icc: float) -> np.ndarray[Any, Any]:
    """Totals (y, m) of 256 buckets that bring 40 ratings each in every stratum, correlated over the strata."""
    concentration = (1 - icc) / icc
    rate = rng.beta(0.7 * concentration, 0.3 * concentration, 256)
    y = rng.binomial(40, np.broadcast_to(rate, (strata, 256)))
    return np.stack([y, np.full_like(y, 40)], axis=-1).astype(float)


def contrasts_of(stable: Any, candidate: Any) -> list[Contrast]:
    sums = RatioStatistics.from_units
    pairs = zip(stable, candidate, strict=True)
    return [ratio_contrast(sums(a[:, 0], a[:, 1]), sums(b[:, 0], b[:, 1])) for a, b in pairs]


def test_one_stratum_stays_as_it_is() -> None:
    rng = np.random.default_rng(5)
    stable, candidate = bucket_totals(rng, 1, 0.1), bucket_totals(rng, 1, 0.1)
    contrasts = contrasts_of(stable, candidate)
    result = clustered_contrast(stable, candidate, contrasts)
    assert result.information == pytest.approx(contrasts[0].information, rel=0.15)
    estimate = contrasts[0].weighted_sum / contrasts[0].information
    assert result.weighted_sum / result.information == pytest.approx(estimate)


def test_users_that_come_back_bring_no_new_information() -> None:
    rng = np.random.default_rng(6)
    stable, candidate = bucket_totals(rng, 4, 0.5), bucket_totals(rng, 4, 0.5)
    contrasts = contrasts_of(stable, candidate)
    naive = sum(contrasts, Contrast())
    result = clustered_contrast(stable, candidate, contrasts)
    assert result.information < naive.information / 3  # four strata of the same users are hardly more than one
    assert result.weighted_sum / result.information == pytest.approx(naive.weighted_sum / naive.information)


def test_no_information_in_any_stratum_is_no_data() -> None:
    nothing = np.zeros((2, 256, 2))
    assert clustered_contrast(nothing, nothing, [Contrast(), Contrast()]) == Contrast()


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="strata, buckets, 2"):
        clustered_contrast(np.zeros((2, 256, 2)), np.zeros((2, 255, 2)), [Contrast(), Contrast()])
    with pytest.raises(ValueError, match="one contrast per stratum"):
        clustered_contrast(np.zeros((2, 256, 2)), np.zeros((2, 256, 2)), [Contrast()])


# --- CUPED ---


def sums_of(x: Any, y: Any) -> CovariateSums:
    return CovariateSums(float(len(x)), y.sum(), x.sum(), y @ y, x @ x, x @ y)


def test_adjustment_removes_what_the_covariate_explains() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(2, 5000))
    y = 0.8 * x + 0.6 * rng.normal(size=(2, 5000)) + np.array([[0.0], [0.1]])
    result = cuped_adjustment(sums_of(x[0], y[0]), sums_of(x[1], y[1]))
    assert result.slope == pytest.approx(0.8, abs=0.04)
    assert result.removed == pytest.approx(0.64, abs=0.04)
    assert abs(result.difference - 0.1) < 5 * math.sqrt(result.variance)
    assert result.variance == pytest.approx(2 * 0.36 / 5000, rel=0.1)


def test_sums_of_a_covariate_merge() -> None:
    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 9, (2, 100)).astype(float)
    assert sums_of(x[:40], y[:40]) + sums_of(x[40:], y[40:]) == sums_of(x, y)


def test_a_constant_covariate_changes_nothing() -> None:
    y = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    x = np.ones(5)
    result = cuped_adjustment(sums_of(x, y), sums_of(x, 1 - y))
    assert (result.slope, result.removed) == (0.0, 0.0)
    assert result.difference == pytest.approx(-0.2)
    assert result.variance == pytest.approx(2 * np.var(y, ddof=1) / 5)


def test_few_units_are_no_data() -> None:
    none, one = CovariateSums(0, 0, 0, 0, 0, 0), CovariateSums(1, 1, 1, 1, 1, 1)
    assert [math.isnan(figure) for figure in cuped_adjustment(none, one)] == [True, False, True, True]
    assert cuped_adjustment(none, one).variance == math.inf
    assert cuped_adjustment(one, one)[:2] == (0.0, math.inf)
    with pytest.raises(ValueError, match="finite"):
        cuped_adjustment(one, CovariateSums(1, math.nan, 1, 1, 1, 1))
