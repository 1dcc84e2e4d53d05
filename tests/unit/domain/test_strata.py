"""Sums by bucket: the same as the methods that they stand for, exact, and rarely closed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.evidence import BUCKETS
from headway.domain.strata import BucketSums, MeanComparison, Prior, Strata, pack, unpack
from headway.stats import (
    Contrast,
    RatioStatistics,
    clustered_contrast,
    normal_mixture_log_e,
    ratio_contrast,
)


def make_sums(seed: int, buckets: int = BUCKETS, worse: float = 1.0) -> BucketSums:
    chance = np.random.default_rng(seed)
    sums = BucketSums.empty(2)
    sums.denominators[:, :buckets] = chance.integers(1, 9, (2, buckets))
    sums.numerators[:, :, :buckets] = chance.poisson(3.0, (2, 2, buckets))
    sums.numerators[:, 1] = np.floor(sums.numerators[:, 1] * worse)
    return sums


@pytest.mark.parametrize("factor", [1.0, 1.1, 3.0])
@pytest.mark.parametrize("prior", [None, Prior(0.8, 4.0, 2.0), Prior(0.8, 4.0, 1.0), Prior(0.8, 4.0, 0.0)])
def test_a_comparison_is_that_of_the_stratified_and_clustered_method(factor: float, prior: Prior | None) -> None:
    strata = [make_sums(1, worse=1.3), make_sums(2), make_sums(3, buckets=40)]
    found = MeanComparison.of(strata, 1, prior)
    arms, contrasts = [], []
    for sums in strata:
        pairs = [(sums.numerators[1, arm], sums.denominators[arm]) for arm in (0, 1)]
        spread = None
        if prior is not None:
            sizes = [float(m.sum() / (m > 0).sum()) for _, m in pairs]
            spread = (0.8 * 4.0 / sizes[0], 0.8 * 4.0 / sizes[1] * factor**prior.power)
        stable, candidate = (RatioStatistics.from_units(y, m) for y, m in pairs)
        contrasts.append(ratio_contrast(stable, candidate, factor, spread))
        arms.append([np.column_stack([y * scale, m]) for (y, m), scale in zip(pairs, (factor, 1.0), strict=True)])
    expected = clustered_contrast([arm[0] for arm in arms], [arm[1] for arm in arms], contrasts)
    contrast = found.contrast(factor)
    assert contrast.information == pytest.approx(expected.information, rel=1e-9)
    assert contrast.weighted_sum == pytest.approx(expected.weighted_sum, rel=1e-9)
    rho = 0.3
    weighed = normal_mixture_log_e(-expected.weighted_sum, expected.information, rho)
    assert found.weigh(-1.0, factor, rho) == pytest.approx(weighed)


def test_strata_with_too_few_buckets_say_nothing() -> None:
    assert MeanComparison.of([make_sums(1, buckets=29)], 0, None).contrast(1.0) == Contrast()
    assert MeanComparison.of([], 0, Prior(1.0, 1.0)).contrast(1.0) == Contrast()
    both = MeanComparison.of([make_sums(1, buckets=29), make_sums(2)], 0, None)
    assert both.contrast(1.0) == MeanComparison.of([make_sums(2)], 0, None).contrast(1.0)


def test_swapped_arms_turn_the_comparison_round() -> None:
    sums = make_sums(4, worse=0.5)
    straight, swapped = MeanComparison.of([sums], 0, None), MeanComparison.of([sums], 0, None, swapped=True)
    assert swapped.contrast(1.0).information == pytest.approx(straight.contrast(1.0).information)
    assert swapped.contrast(1.0).weighted_sum == pytest.approx(-straight.contrast(1.0).weighted_sum)


def test_the_prior_of_a_swapped_candidate_shrinks_with_the_ratio_that_is_tested() -> None:
    sums, prior = make_sums(4), Prior(50.0, 4.0)
    straight, swapped = MeanComparison.of([sums], 0, prior), MeanComparison.of([sums], 0, prior, swapped=True)
    # R_A - 2 R_B < 0 is R_B - R_A / 2 > 0, at half the scale.
    assert swapped.contrast(2.0).information == pytest.approx(straight.contrast(0.5).information / 4)


def test_users_who_come_back_in_every_stage_are_not_new_information() -> None:
    sums = make_sums(5)
    once, twice = MeanComparison.of([sums], 0, None), MeanComparison.of([sums, sums], 0, None)
    assert twice.contrast(1.0).information == pytest.approx(once.contrast(1.0).information, rel=0.05)


def test_an_offset_moves_the_difference() -> None:
    means = MeanComparison.of([make_sums(6)], 0, None)
    plain, moved = means.contrast(1.0), means.contrast(1.0, 0.25)
    assert moved.information == plain.information
    assert moved.weighted_sum == pytest.approx(plain.weighted_sum - 0.25 * plain.information)


@given(st.lists(st.integers(0, 2**40) | st.floats(0, 1e9), max_size=20))
def test_sums_are_kept_exactly(values: list[float]) -> None:
    arms = np.zeros((2, BUCKETS))
    arms.flat[: len(values)] = values
    assert (unpack(pack(arms)) == arms).all()


@pytest.mark.parametrize(("largest", "size"), [(255, 1), (256, 2), (65_536, 4), (2**32, 8), (0.5, 8), (2**60, 8)])
def test_whole_numbers_are_kept_small(largest: float, size: int) -> None:
    arms = np.zeros((2, BUCKETS))
    arms[1, 3] = largest
    assert len(pack(arms)) == 1 + 2 * BUCKETS * size
    assert (unpack(pack(arms)) == arms).all()


def fill(strata: Strata, seed: int = 1, buckets: int = BUCKETS) -> None:
    strata.open("cost", 1, 2).add(make_sums(seed, buckets))


def close(strata: Strata, now_ms: int) -> int:
    sums, histograms = strata.close(now_ms)
    strata.post(sums, histograms)
    return len(sums)


def test_sums_close_when_they_are_old_enough_and_there_is_something() -> None:
    strata = Strata(60_000)
    fill(strata)
    assert [close(strata, now_ms) for now_ms in (0, 59_999, 60_000, 130_000)] == [0, 0, 1, 0]
    fill(strata)
    assert close(strata, 131_000) == 1


def test_sums_of_an_old_stage_close_more_rarely() -> None:
    strata = Strata(60_000)
    day_ms = 86_400_000
    fill(strata)
    assert [close(strata, now_ms) for now_ms in (0, day_ms)] == [0, 1]
    fill(strata)
    assert [close(strata, day_ms + waited) for waited in (60_000, 430_000, 435_000)] == [0, 0, 1]


def test_a_stratum_is_followed_by_another_after_a_day_once_it_is_large_enough() -> None:
    strata = Strata(1_000)
    for hour, buckets in enumerate([10] * 30 + [40] * 30):
        fill(strata, hour, buckets)
        close(strata, hour * 3_600_000)
    parts = [sums for _, sums in strata.closed("cost", [1])]
    assert len(parts) == 3
    # Small for a day and six hours: the first part goes on until it is large.
    assert [int((part.denominators[0] > 0).sum()) for part in parts] == [40, 40, 40]
    assert strata.closed("cost", [2]) == []


def test_strata_survive_being_written() -> None:
    strata = Strata(1_000)
    for hour in range(30):
        fill(strata, hour)
        strata.add_bins("latency", 1, 1, {300: 4})
        close(strata, hour * 3_600_000)
    fill(strata)
    strata.add_bins("latency", 1, 1, {301: 1})
    other = Strata(1_000)
    other.restore(strata.state())
    for each in (strata, other):
        fill(each, 99)
        close(each, 40 * 3_600_000)
    assert other.state() == strata.state()
    assert other.histogram("latency", 1, 1) == {300: 120, 301: 1}
