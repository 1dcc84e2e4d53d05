"""F2, F3 and F4: the safe 2x2 test, the event ratio, bets on bounded values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom

from headway.stats import (
    betting_log_e,
    betting_log_factors,
    event_floor_log_e,
    event_ratio_confidence_sequence,
    event_ratio_log_e,
    event_ratio_log_factors,
    log_mean_exp,
    reverse_information_projection,
    two_sample_log_e,
    two_sample_log_factors,
)
from headway.stats.betting import FRACTIONS
from headway.stats.events import HARM_RATIOS, PROMOTE_EXPONENTS, SLOW_CALL_PROMOTE_RATIOS
from headway.stats.two_sample import HARM_MULTIPLES, PROMOTE_MULTIPLES

HARM_DELTAS = [0.03 * multiple for multiple in HARM_MULTIPLES]
PROMOTE_DELTAS = [0.03 * multiple for multiple in PROMOTE_MULTIPLES]
STARS = [0.0, 0.25, 0.5, 0.75, 1.0]
SHARES = [1e-4, 0.01, 0.05, 0.25, 0.5, 0.9]

arms = st.tuples(st.integers(0, 10**9), st.floats(0, 1)).map(lambda arm: (arm[0], math.floor(arm[0] * arm[1])))
small_arms = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
rates = st.floats(0.01, 0.99)


def expectation(log_factors: Callable[..., Any], pi: float, outcomes: list[tuple[Any, float, Any, float]]) -> Any:
    """(1 - pi) E_A + pi E_B per bet: of each outcome the block and the chance in stable, then in the candidate."""
    total: Any = 0.0
    for block_a, chance_a, block_b, chance_b in outcomes:
        factors = np.exp(log_factors([block_a, block_b]))
        total = total + (1 - pi) * chance_a * factors[0] + pi * chance_b * factors[1]
    return total


# --- means of E-values ---


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=9))
def test_a_mean_of_e_values_lies_among_them(logs: list[float]) -> None:
    mean = float(log_mean_exp(logs))
    assert max(logs) - math.log(len(logs)) - 1e-6 <= mean <= max(logs) + 1e-6
    assert mean == pytest.approx(float(log_mean_exp(logs[::-1])), abs=1e-6)


@pytest.mark.parametrize("nothing", [[], 1.0, np.zeros((3, 0))])
def test_a_mean_of_nothing_is_refused(nothing: Any) -> None:
    with pytest.raises(ValueError, match="at least one bet"):
        log_mean_exp(nothing)


# --- F2: expectation under the null, on its border and inside ---


@pytest.mark.parametrize("pi", SHARES)
@pytest.mark.parametrize(
    ("p0", "h", "deltas"),
    [
        (0.7, 0.0, HARM_DELTAS),
        (0.7, 0.015, HARM_DELTAS),
        (0.02, 0.01, [0.004, 0.01, 0.5]),
        (0.3, -0.03, PROMOTE_DELTAS),
        (0.05, -0.2, [0.05, 0.1, 0.4]),
        (0.95, -0.2, [0.05, 0.1, 0.4]),  # the alternative is clipped at 1
        (0.02, 0.05, HARM_DELTAS),  # the alternative is clipped at 0, inside of the null
    ],
)
def test_2x2_factors_have_expectation_at_most_one_under_the_null(
    p0: float, h: float, deltas: list[float], pi: float
) -> None:
    def factors(blocks: Any) -> Any:
        return two_sample_log_factors(blocks, p0, deltas, h)

    largest: Any = 0.0
    for p_b in np.linspace(0, 1, 41):
        for p_a in np.linspace(0, min(1.0, max(0.0, p_b + h)), 9):
            if p_b < p_a - h - 1e-12:
                continue
            outcomes = [
                ((1, 1, 0, 0, pi), p_a, (0, 0, 1, 1, pi), p_b),
                ((1, 0, 0, 0, pi), 1 - p_a, (0, 0, 1, 0, pi), 1 - p_b),
            ]
            largest = np.maximum(largest, expectation(factors, pi, outcomes))
    assert (largest <= 1 + 1e-9).all()
    assert (largest > 0.9).all()  # the bound is met: nothing is thrown away


@given(small_arms, small_arms, rates, st.floats(-0.3, 0.3), st.floats(0.005, 0.3), rates, rates)
def test_2x2_blocks_have_expectation_at_most_one_for_fixed_arm_counts(
    stable: tuple[int, int], candidate: tuple[int, int], p0: float, h: float, delta: float, p_a: float, p_b: float
) -> None:
    (n_a, _), (n_b, _) = stable, candidate
    p_b = max(p_b, p_a - h)
    assume(p_b <= 1)
    k_a, k_b = np.meshgrid(np.arange(n_a + 1), np.arange(n_b + 1))
    blocks = [(n_a, int(i), n_b, int(j), None) for i, j in zip(k_a.ravel(), k_b.ravel(), strict=True)]
    chances = binom.pmf(k_a.ravel(), n_a, p_a) * binom.pmf(k_b.ravel(), n_b, p_b)
    e = np.exp(two_sample_log_factors(blocks, p0, [delta], h)[:, 0])
    assert chances @ e <= 1 + 1e-7


@given(rates, rates, st.one_of(st.sampled_from(SHARES), st.floats(0, 1)), st.floats(-0.9, 0.9))
def test_the_projection_is_the_nearest_point_of_the_null(a: float, b: float, pi: float, h: float) -> None:
    q_a, q_b = reverse_information_projection(a, b, pi, h)
    if b >= a - h:
        assert (q_a, q_b) == pytest.approx((a, b), abs=1e-15)  # inside: its own projection
        return
    assert q_a - q_b == pytest.approx(h, abs=1e-12)
    assert -1e-12 <= q_b <= 1 + 1e-12
    low, high = max(0.0, h), min(1.0, 1.0 + h)

    def slope(q: float) -> float:
        return (1 - pi) * (q - a) * (q - h) * (1 - q + h) + pi * (q - h - b) * q * (1 - q)

    if 1e-6 < pi < 1 - 1e-6:
        span = (max(low, b + h), min(high, a))
        if slope(span[0]) < 0 < slope(span[1]):
            assert q_a == pytest.approx(brentq(slope, *span, xtol=1e-15), abs=1e-9)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(-0.999, 0.999))
def test_the_projection_exists_at_the_edges(a: float, b: float, pi: float, h: float) -> None:
    q_a, q_b = reverse_information_projection(a, b, pi, h)
    assert -1e-8 <= q_a <= 1 + 1e-8
    assert -1e-8 <= q_b <= 1 + 1e-8
    assert q_b >= q_a - h - 1e-8


def test_the_published_null_points() -> None:
    assert reverse_information_projection(0.7, 0.6, 0.5) == pytest.approx((0.65, 0.65))
    assert reverse_information_projection(0.7, 0.6, 0.0, 0.03) == pytest.approx((0.7, 0.67))
    assert reverse_information_projection(0.7, 0.6, 1.0, 0.03) == pytest.approx((0.63, 0.6))


# --- F2: how evidence moves ---


@given(arms, arms, st.sampled_from([None, *SHARES]), st.sampled_from([0.0, 0.015, -0.03]))
def test_2x2_evidence_of_any_counts_is_finite(
    stable: tuple[int, int], candidate: tuple[int, int], pi: float | None, h: float
) -> None:
    log_e = two_sample_log_e([(*stable, *candidate, pi)], 0.7, HARM_DELTAS, h)
    assert math.isfinite(log_e)


@given(arms, arms, st.sampled_from(SHARES))
def test_2x2_evidence_falls_with_each_success_of_the_candidate(
    stable: tuple[int, int], candidate: tuple[int, int], pi: float
) -> None:
    n_b, k_b = candidate
    assume(k_b < n_b)
    before = two_sample_log_e([(*stable, n_b, k_b, pi)], 0.7, HARM_DELTAS, 0.01)
    assert two_sample_log_e([(*stable, n_b, k_b + 1, pi)], 0.7, HARM_DELTAS, 0.01) < before + 1e-6


blocks_2x2 = st.lists(st.tuples(small_arms, small_arms).map(lambda b: (*b[0], *b[1], None)), min_size=1, max_size=20)


@given(blocks_2x2, st.randoms())
def test_2x2_blocks_add_up_in_any_order(blocks: list[Any], random: Any) -> None:
    state = np.zeros(len(HARM_DELTAS))
    shuffled = list(blocks)
    random.shuffle(shuffled)
    for block in shuffled:  # as a tick does: one closed block after the other
        state = state + two_sample_log_factors([block], 0.7, HARM_DELTAS, 0.015)[0]
    assert float(log_mean_exp(state)) == pytest.approx(two_sample_log_e(blocks, 0.7, HARM_DELTAS, 0.015), abs=1e-9)


@given(blocks_2x2)
def test_a_realised_share_is_that_of_the_block(blocks: list[Any]) -> None:
    spelled = [(n_a, k_a, n_b, k_b, n_b / (n_a + n_b)) for n_a, k_a, n_b, k_b, _ in blocks]
    assert two_sample_log_e(blocks, 0.7, HARM_DELTAS) == two_sample_log_e(spelled, 0.7, HARM_DELTAS)


@pytest.mark.parametrize(
    "blocks", [[], [(0, 0, 0, 0, None)], [(9, 4, 0, 0, None), (0, 0, 7, 7, None)], [(9, 4, 0, 0, 0.0)]]
)
@pytest.mark.parametrize("h", [0.0, 0.02])
def test_2x2_without_two_arms_says_nothing(blocks: list[Any], h: float) -> None:
    assert two_sample_log_e(blocks, 0.7, HARM_DELTAS, h) == 0.0


def test_no_harm_is_possible_below_the_harm_line() -> None:
    assert two_sample_log_e([(500, 20, 500, 0, None)], 0.04, HARM_DELTAS, 0.05) == 0.0


def test_2x2_sees_harm_and_its_absence() -> None:
    assert two_sample_log_e([(2000, 1400, 2000, 1200, None)], 0.7, HARM_DELTAS) > math.log(20)
    assert two_sample_log_e([(2000, 1400, 2000, 1400, None)], 0.7, HARM_DELTAS) < 0
    swapped = [(20_000, 6000, 20_000, 6000, None)]  # failures for successes: promotion
    assert two_sample_log_e(swapped, 0.3, PROMOTE_DELTAS, -0.03) > math.log(20)


# --- F3 ---


@pytest.mark.parametrize("pi", SHARES)
@pytest.mark.parametrize(
    ("r0", "ratios"),
    [
        (1.0, HARM_RATIOS),
        (1.25, HARM_RATIOS),
        (1.5, [1.5**-a for a in PROMOTE_EXPONENTS]),
        (1.0, SLOW_CALL_PROMOTE_RATIOS),
    ],
)
def test_event_factors_have_expectation_one_at_the_ratio_and_less_inside_the_null(
    r0: float, ratios: Any, pi: float
) -> None:
    def factors(blocks: Any) -> Any:
        return event_ratio_log_factors(blocks, r0, ratios)

    nothing, in_stable, in_candidate = (0, 0, pi), (1, 0, pi), (0, 1, pi)
    harm = min(ratios) > 1
    for rate in (1e-4, 0.005, 0.3):
        for relative in (1.0, 0.9, 0.3, 0.0):
            ratio = r0 * relative if harm else r0 / max(relative, 0.5)
            chance = min(rate * ratio, 1.0)
            outcomes = [(in_stable, rate, in_candidate, chance), (nothing, 1 - rate, nothing, 1 - chance)]
            total = expectation(factors, pi, outcomes)
            assert (total <= 1 + 1e-12).all()
            if relative == 1.0:
                assert total == pytest.approx(np.ones(len(ratios)), abs=1e-12)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(1e-9, 1 - 1e-9), st.floats(1e-3, 1e3))
def test_event_evidence_of_any_counts_is_finite_and_grows_with_candidate_events(
    x_a: int, x_b: int, pi: float, r0: float
) -> None:
    before, after = (event_ratio_log_e([(x_a, x, pi)], r0) for x in (x_b, x_b + 1))
    assert math.isfinite(before)
    assert after > before - 1e-5
    assert event_ratio_log_e([(x_a + 1, x_b, pi)], r0) < before + 1e-5


events = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from(SHARES)), min_size=1, max_size=20)


@given(events, st.randoms())
def test_event_blocks_add_up_in_any_order(blocks: list[Any], random: Any) -> None:
    shuffled = list(blocks)
    random.shuffle(shuffled)
    state = np.zeros(len(HARM_RATIOS))
    for block in shuffled:
        state = state + event_ratio_log_factors([block])[0]
    assert float(log_mean_exp(state)) == pytest.approx(event_ratio_log_e(blocks), abs=1e-9)
    merged = {pi: [sum(b[arm] for b in blocks if b[2] == pi) for arm in (0, 1)] for *_, pi in blocks}
    assert event_ratio_log_e([(*x, pi) for pi, x in merged.items()]) == pytest.approx(
        event_ratio_log_e(blocks), abs=1e-9
    )  # blocks of one share are one block


@given(events)
def test_swapping_the_arms_inverts_the_event_ratio(blocks: list[Any]) -> None:
    below = [1 / g for g in HARM_RATIOS]
    swapped = [(x_b, x_a, 1 - pi) for x_a, x_b, pi in blocks]
    assert event_ratio_log_e(swapped, 0.5, below) == pytest.approx(event_ratio_log_e(blocks, 2.0), abs=1e-6)


@given(events, st.floats(0.001, 0.3))
def test_a_rate_ratio_interval_inverts_the_tests_and_holds_the_estimate(blocks: list[Any], alpha: float) -> None:
    lower, upper = event_ratio_confidence_sequence(blocks, alpha)
    threshold = math.log(2 / alpha)
    assert 0 <= lower < upper
    if 1e-3 < lower < 1e3:
        assert event_ratio_log_e(blocks, lower) == pytest.approx(threshold, abs=1e-6)
        assert event_ratio_log_e(blocks, lower * 1.01) < threshold
    if 1e-3 < upper < 1e3:
        assert event_ratio_log_e(blocks, upper, [1 / g for g in HARM_RATIOS]) == pytest.approx(threshold, abs=1e-6)
    score = sum(x_a + x_b for x_a, x_b, _ in blocks)
    if score and len({pi for *_, pi in blocks}) == 1:
        pi, x_a, x_b = blocks[0][2], sum(b[0] for b in blocks), sum(b[1] for b in blocks)
        estimate = x_b * (1 - pi) / (x_a * pi) if x_a else math.inf
        assert lower <= max(estimate, 1e-3) * (1 + 1e-9)
        assert upper >= min(estimate, 1e3) * (1 - 1e-9)
    wider = event_ratio_confidence_sequence(blocks, alpha / 2)
    assert wider[0] <= lower
    assert wider[1] >= upper


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([], (0.0, math.inf)),
        ([(0, 0, 0.01)], (0.0, math.inf)),
        ([(0, 10**9, 0.001)], (1e3, math.inf)),  # beyond what is looked at: what is proved all the same
        ([(10**9, 0, 0.999)], (0.0, 1e-3)),
    ],
)
def test_intervals_at_the_ends(blocks: list[Any], expected: tuple[float, float]) -> None:
    assert event_ratio_confidence_sequence(blocks) == expected


def test_a_rate_ratio_interval_narrows_around_the_truth() -> None:
    lower, upper = event_ratio_confidence_sequence([(10**6, 2 * 10**6, 0.5)])
    assert 1.88 < lower < 2.0 < upper < 2.12  # no bet is smaller than 1.1


@pytest.mark.parametrize("blocks", [[], [(0, 0, 0.3)], [(7, 0, 0.0)], [(0, 7, 1.0)]])
def test_no_events_or_one_arm_say_nothing(blocks: list[Any]) -> None:
    assert event_ratio_log_e(blocks) == pytest.approx(0.0, abs=1e-12)


@given(st.integers(0, 200), st.floats(1e-4, 0.5), st.floats(1.0, 5.0))
def test_the_floor_has_expectation_at_most_one_at_and_above_it(n: int, floor: float, factor: float) -> None:
    rate = min(floor * factor, 1.0)
    x = np.arange(n + 1)
    e = np.exp([event_floor_log_e(int(k), n, floor) for k in x])
    assert binom.pmf(x, n, rate) @ e <= 1 + 1e-9
    assert event_floor_log_e(0, 0, floor) == 0.0


# --- F4 ---

distributions = st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5).map(lambda w: np.array(w) / sum(w))


@given(distributions, distributions, st.sampled_from(SHARES), st.floats(0, 1), st.booleans())
def test_bets_have_expectation_at_most_one_under_the_null(a: Any, b: Any, pi: float, center: float, up: bool) -> None:
    values = np.array(STARS) if up else -np.array(STARS)
    theta0 = float(values @ (b - a)) - (0.0 if up else 0.01)  # on the border, or inside
    c = center if up else -center
    unit = np.eye(5)

    def factors(blocks: Any) -> Any:
        return betting_log_factors(blocks, values, c, theta0)

    nothing = np.zeros(5)
    outcomes = [((unit[i], nothing, pi), a[i], (nothing, unit[i], pi), b[i]) for i in range(5)]
    total = expectation(factors, pi, outcomes)
    assert (total <= 1 + 1e-9).all()
    if up:
        assert total == pytest.approx(np.ones(len(FRACTIONS)), abs=1e-9)


five = st.lists(st.integers(0, 30), min_size=5, max_size=5)
blocks_stars = st.lists(st.tuples(five, five, st.sampled_from([None, *SHARES])), min_size=1, max_size=10)


@given(blocks_stars, st.randoms())
def test_star_blocks_add_up_in_any_order(blocks: list[Any], random: Any) -> None:
    shuffled = list(blocks)
    random.shuffle(shuffled)
    state = np.zeros(len(FRACTIONS))
    for block in shuffled:
        state = state + betting_log_factors([block], STARS, 0.75, -0.02)[0]
    assert float(log_mean_exp(state)) == pytest.approx(betting_log_e(blocks, STARS, 0.75, -0.02), abs=1e-9)


@given(blocks_stars)
def test_negating_everything_changes_nothing_but_the_side(blocks: list[Any]) -> None:
    swapped = [(b, a, None if pi is None else 1 - pi) for a, b, pi in blocks]
    negated = [-v for v in STARS]
    there = betting_log_factors(blocks, STARS, 0.7, 0.0)
    assert betting_log_factors(swapped, negated, -0.7, 0.0) == pytest.approx(there, abs=1e-9)


@pytest.mark.parametrize(
    "blocks", [[], [([0] * 5, [0] * 5, None)], [([1] * 5, [0] * 5, None), ([0] * 5, [3] * 5, None)]]
)
def test_stars_without_two_arms_say_nothing(blocks: list[Any]) -> None:
    assert betting_log_e(blocks, STARS, 0.75) == 0.0


def test_values_that_are_all_alike_say_nothing() -> None:
    assert betting_log_e([([5], [5], None)], [0.5], 0.5) == 0.0


@given(five, five)
def test_star_evidence_falls_when_the_candidate_does_better(a: list[int], b: list[int]) -> None:
    assume(b[0] > 0)
    better = [b[0] - 1, *b[1:4], b[4] + 1]
    before = betting_log_e([(a, b, 0.2)], STARS, 0.75)
    assert betting_log_e([(a, better, 0.2)], STARS, 0.75) < before


def test_stars_of_extreme_counts() -> None:
    big = 10**9
    assert betting_log_e([([big] * 5, [big] * 5, None)], STARS, 0.5, -0.01) < 0
    assert betting_log_e([([0, 0, 0, 0, big], [big, 0, 0, 0, 0], None)], STARS, 0.5) > 1e6


# --- bad input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_sample_log_e([(1, 2, 1, 1, 0.5)], 0.7, [0.1]), "more successes"),
        (lambda: two_sample_log_e([(-1, 0, 1, 1, 0.5)], 0.7, [0.1]), "not negative"),
        (lambda: two_sample_log_e([(math.nan, 0, 1, 1, 0.5)], 0.7, [0.1]), "finite"),
        (lambda: two_sample_log_e([(1, 1, 1, 0.5)], 0.7, [0.1]), "rows of"),
        (lambda: two_sample_log_e([(1, 1, 1, 1, 1.5)], 0.7, [0.1]), "between 0 and 1"),
        (lambda: two_sample_log_e([(1, 1, 1, 1, 0.0)], 0.7, [0.1]), "share of 0"),
        (lambda: two_sample_log_e([(1, 1, 1, 1, 0.5)], 1.7, [0.1]), "rate"),
        (lambda: two_sample_log_e([(1, 1, 1, 1, 0.5)], 0.7, [0.0]), "delta"),
        (lambda: two_sample_log_e([(1, 1, 1, 1, 0.5)], 0.7, []), "at least one"),
        (lambda: two_sample_log_e([(1, 1, 1, 1, 0.5)], 0.7, [0.1], 1.0), "harm line"),
        (lambda: reverse_information_projection(0.5, 0.4, -0.1), "share"),
        (lambda: reverse_information_projection(math.nan, 0.4, 0.1), "rate"),
        (lambda: event_ratio_log_e([(1, 1, None)]), "needs the candidate's share"),
        (lambda: event_ratio_log_e([(1, 1, 2.0)]), "between 0 and 1"),
        (lambda: event_ratio_log_e([(1, 1, 1.0)]), "share of 0"),
        (lambda: event_ratio_log_e([(1, 1, 0.5)], 0.0), "r0"),
        (lambda: event_ratio_log_e([(1, 1, 0.5)], 1.0, [0.5, 2.0]), "all above 1"),
        (lambda: event_ratio_log_e([(1, 1, 0.5)], 1.0, [1.0]), "all above 1"),
        (lambda: event_ratio_confidence_sequence([(1, 1, None)]), "needs the candidate's share"),
        (lambda: event_ratio_confidence_sequence([(1, 1, 0.5)], 0.0), "alpha"),
        (lambda: event_ratio_confidence_sequence([(1, 1, 0.5)], 0.05, [0.5]), "above 1"),
        (lambda: event_floor_log_e(2, 1, 0.1), "between 0 and the exposures"),
        (lambda: event_floor_log_e(0, 1, 0.0), "floor"),
        (lambda: betting_log_e([([1, 1], [1], None)], [0, 1], 0.5), "2 counts"),
        (lambda: betting_log_e([([1, 1, 1], [1, 1, 1], None)], [0, 1], 0.5), "2 counts"),
        (lambda: betting_log_e([([1, 1], [1, 1])], [0, 1], 0.5), "rows of"),
        (lambda: betting_log_e([([1, -1], [1, 1], None)], [0, 1], 0.5), "not negative"),
        (lambda: betting_log_e([([1, 1], [1, 1], None)], [0, math.inf], 0.5), "finite"),
        (lambda: betting_log_e([([1, 1], [1, 1], None)], [0, 1], 0.5, 0.0, [1.0]), "fraction"),
        (lambda: betting_log_e([([1, 1], [1, 1], 0.0)], [0, 1], 0.5), "share of 0"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
