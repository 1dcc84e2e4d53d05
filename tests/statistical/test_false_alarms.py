"""False alarms of each method when somebody looks at every peek, against the rates published with the methods.

Reduced sizes by default, full ones with HEADWAY_PROOF=1. Seeds are fixed; -s shows the figures.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headway.stats import (
    RatioStatistics,
    betting_log_factors,
    event_ratio_log_factors,
    log_mean_exp,
    normal_mixture_log_e,
    ratio_variance,
    two_sample_log_e,
    two_sample_log_factors,
)
from headway.stats.events import HARM_RATIOS, PROMOTE_EXPONENTS
from headway.stats.two_sample import HARM_MULTIPLES, PROMOTE_MULTIPLES
from tests.statistical.montecarlo import Array, Runs, at_shares, binary_outcomes, chunks, ramp, simulate, wealth

ALPHA = 0.05
THRESHOLD = math.log(1 / ALPHA)
MARGIN = 0.03
HARM_DELTAS = [MARGIN * multiple for multiple in HARM_MULTIPLES]
PROMOTE_DELTAS = [MARGIN * multiple for multiple in PROMOTE_MULTIPLES]


def share_of(name: str, peeks: int) -> Array:
    return ramp(peeks) if name == "ramp" else np.full(peeks, float(name))


def show(what: str, runs: Runs) -> None:
    print(f"{what}: {runs.rate}")


# --- F1, normal mixture: thumbs of 70 %, ramp, 20,000 ratings, a peek every 10; shrunk variance, from 30 units ---


def mixture_log_e(counts: Array, shares: Array, side: str) -> Array:
    """Log E at every peek: strata are stages, and the stage under way counts with what it has so far."""
    information, score = np.zeros(counts.shape[:2]), np.zeros(counts.shape[:2])
    for share in np.unique(shares):
        so_far = np.cumsum(counts * (shares == share)[None, :, None], axis=1)
        n_a, n_b = so_far[..., 0] + so_far[..., 1], so_far[..., 2] + so_far[..., 3]
        stable = ratio_variance(RatioStatistics.from_counts(n_a, so_far[..., 0]), 0.21)
        candidate = ratio_variance(RatioStatistics.from_counts(n_b, so_far[..., 2]), 0.21)
        enough = np.minimum(n_a, n_b) >= 30
        inverse = np.where(enough, 1 / (np.asarray(stable.variance) + np.asarray(candidate.variance)), 0.0)
        difference = np.where(enough, np.asarray(candidate.ratio) - np.asarray(stable.ratio), 0.0)
        information += inverse
        score += inverse * difference
    u = -score if side == "harm" else score + MARGIN * information
    return np.asarray(normal_mixture_log_e(u, information, 2 * MARGIN))


@pytest.mark.parametrize(("side", "published"), [("harm", 0.033), ("promote", 0.043)])
def test_normal_mixture(side: str, published: float, proof: bool) -> None:
    rng, shares = np.random.default_rng([1, len(side)]), ramp(2000)
    rates = (0.7, 0.7 if side == "harm" else 0.7 - MARGIN)

    def one_chunk(size: int) -> Array:
        return mixture_log_e(binary_outcomes(rng, size, shares, 10, rates), shares, side)

    runs = simulate(4000 if proof else 600, one_chunk, THRESHOLD)
    show(f"F1 {side}", runs)
    runs.rate.check_agrees(published, 2000)
    runs.rate.check_at_most(ALPHA)


def test_normal_mixture_sees_ten_points(proof: bool) -> None:
    rng, shares = np.random.default_rng(2), ramp(2000)

    def one_chunk(size: int) -> Array:
        return mixture_log_e(binary_outcomes(rng, size, shares, 10, (0.7, 0.6)), shares, "harm")

    runs = simulate(1000 if proof else 100, one_chunk, THRESHOLD)
    assert runs.rate.value == 1.0
    assert runs.median * 10 == pytest.approx(4330, rel=0.07)


# --- F2, safe 2x2: the same, at the assignment probability and at the realised share of each block ---


def thumbs_factors(side: str, share: float) -> Any:
    """The factors of a success and a failure in stable, then in the candidate."""
    rows = [(1, 1, 0, 0, share), (1, 0, 0, 0, share), (0, 0, 1, 1, share), (0, 0, 1, 0, share)]
    if side == "harm":
        return two_sample_log_factors(rows, 0.7, HARM_DELTAS)
    swapped = [(n_a, n_a - k_a, n_b, n_b - k_b, pi) for n_a, k_a, n_b, k_b, pi in rows]
    return two_sample_log_factors(swapped, 0.3, PROMOTE_DELTAS, -MARGIN)


@pytest.mark.parametrize(
    ("share", "side", "published"),
    [
        ("0.5", "harm", 0.028),
        ("0.5", "promote", 0.039),
        ("0.05", "harm", 0.025),
        ("0.01", "promote", 0.011),
        ("ramp", "harm", 0.040),
        ("ramp", "promote", 0.037),
    ],
)
def test_safe_2x2(share: str, side: str, published: float, proof: bool) -> None:
    rng, shares = np.random.default_rng([3, len(share), len(side)]), share_of(share, 2000)
    factors = at_shares(shares, lambda one: thumbs_factors(side, one))
    rates = (0.7, 0.7 if side == "harm" else 0.7 - MARGIN)
    runs = simulate(
        5000 if proof else 600,
        lambda size: wealth(binary_outcomes(rng, size, shares, 10, rates), factors),
        THRESHOLD,
    )
    show(f"F2 {side} at {share}", runs)
    runs.rate.check_agrees(published, 1000)
    runs.rate.check_at_most(ALPHA)


@pytest.mark.parametrize(("share", "worse", "median"), [("0.5", 0.05, 2190), ("0.5", 0.1, 610), ("0.01", 0.1, 14_310)])
def test_safe_2x2_sees_harm(share: str, worse: float, median: float, proof: bool) -> None:
    rng, shares = np.random.default_rng([4, len(share)]), share_of(share, 2000)
    factors = at_shares(shares, lambda one: thumbs_factors("harm", one))
    runs = simulate(
        2000 if proof else 300,
        lambda size: wealth(binary_outcomes(rng, size, shares, 10, (0.7, 0.7 - worse)), factors),
        THRESHOLD,
    )
    assert runs.median * 10 == pytest.approx(median, rel=0.1 if proof else 0.2)


@pytest.mark.parametrize(
    ("feedback", "rate", "nominal", "realised"),
    [(1.0, 0.7, 0.045, 0.035), (0.7, 0.7, 0.150, 0.037), (0.7, 0.8, 1.0, 0.020), (0.4, 0.8, 1.0, 0.033)],
)
def test_only_the_realised_share_survives_a_candidate_that_gets_less_feedback(
    feedback: float, rate: float, nominal: float, realised: float, proof: bool
) -> None:
    """50/50, blocks of 20 ratings of which the candidate attracts fewer; 20,000 ratings; p0 is 0.7, true or not."""
    rng = np.random.default_rng([5, int(feedback * 10), int(rate * 10)])
    shares = np.full(1000, feedback / (1 + feedback))
    factors: dict[bool, list[Array]] = {False: [], True: []}
    for size in chunks(2000 if proof else 200, 50):
        counts = binary_outcomes(rng, size, shares, 20, (rate, rate))
        n_a, n_b = counts[..., :2].sum(axis=-1), counts[..., 2:].sum(axis=-1)
        for own, pi in ((False, np.full(n_a.shape, 0.5)), (True, np.full(n_a.shape, np.nan))):
            rows = np.stack([n_a, counts[..., 0], n_b, counts[..., 2], pi], axis=-1).reshape(-1, 5)
            factors[own].append(two_sample_log_factors(rows, 0.7, HARM_DELTAS).reshape(size, shares.size, -1))
    for own, published in ((False, nominal), (True, realised)):
        log_e = log_mean_exp(np.cumsum(np.concatenate(factors[own]), axis=1))
        runs = simulate(log_e.shape[0], iter_rows(log_e), THRESHOLD)
        show(f"F2 feedback x{feedback} at {rate}, {'realised' if own else 'nominal'} share", runs)
        runs.rate.check_agrees(published, 400)
        if own:
            runs.rate.check_at_most(ALPHA)


def iter_rows(log_e: Array) -> Any:
    """Hand out rows that are there already, so many at a time."""
    position = 0

    def take(size: int) -> Array:
        nonlocal position
        position += size
        return log_e[position - size : position]

    return take


def test_harm_lines_of_half_the_margin_keep_their_promise(proof: bool) -> None:
    """At the harm line itself, blocks closed by the booking rule (one stable and five candidate ratings), share 5 %."""
    rng, hits, total = np.random.default_rng(6), 0, 1000 if proof else 100
    for _ in range(total):
        candidate = rng.random(6000) < 0.05
        good = rng.random(6000) < np.where(candidate, 0.7 - MARGIN / 2, 0.7)
        closing = np.flatnonzero(candidate)[4::5]
        edges = np.concatenate([[0], closing + 1])
        sums = [np.add.reduceat(x, edges[:-1]) for x in (~candidate, ~candidate & good, candidate, candidate & good)]
        rows = np.stack([*sums, np.full(closing.size, np.nan)], axis=-1)[: closing.size].astype(float)
        rows = rows[rows[:, 0] >= 1]
        log_e = log_mean_exp(np.cumsum(two_sample_log_factors(rows, 0.7, HARM_DELTAS, MARGIN / 2), axis=0))
        assert log_e[-1] == pytest.approx(two_sample_log_e(rows, 0.7, HARM_DELTAS, MARGIN / 2))
        hits += bool((log_e >= THRESHOLD).any())
    assert hits / total <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / total)


# --- F3, events: errors of 0.5 %, 500,000 interactions, a peek every 100 ---

PROMOTE_RATIO = 1.5


def event_factors(side: str, share: float) -> Any:
    rows = [(1, 0, share), (0, 1, share)]
    if side == "harm":
        return event_ratio_log_factors(rows, 1.0, HARM_RATIOS)
    return event_ratio_log_factors(rows, PROMOTE_RATIO, [PROMOTE_RATIO**-a for a in PROMOTE_EXPONENTS])


@pytest.mark.parametrize(
    ("share", "side", "published"),
    [
        ("0.5", "harm", 0.035),
        ("0.5", "promote", 0.055),
        ("0.01", "harm", 0.020),
        ("0.01", "promote", 0.013),
        ("ramp", "harm", 0.020),
        ("ramp", "promote", 0.043),
    ],
)
def test_event_ratio(share: str, side: str, published: float, proof: bool) -> None:
    rng, shares = np.random.default_rng([7, len(share), len(side)]), share_of(share, 5000)
    factors = at_shares(shares, lambda one: event_factors(side, one))
    rates = (0.005, 0.005 if side == "harm" else 0.005 * PROMOTE_RATIO)

    def one_chunk(size: int) -> Array:
        return wealth(binary_outcomes(rng, size, shares, 100, rates)[..., ::2], factors)

    runs = simulate(4000 if proof else 300, one_chunk, THRESHOLD)
    show(f"F3 {side} at {share}", runs)
    runs.rate.check_agrees(published, 400)
    runs.rate.check_at_most(ALPHA)


@pytest.mark.parametrize(("share", "rate", "median"), [("0.5", 0.05, 400), ("0.01", 0.05, 5600), ("0.5", 0.02, 1500)])
def test_event_ratio_sees_errors(share: str, rate: float, median: float, proof: bool) -> None:
    rng, shares = np.random.default_rng([8, len(share)]), share_of(share, 800)
    factors = at_shares(shares, lambda one: event_factors("harm", one))
    runs = simulate(
        2000 if proof else 400,
        lambda size: wealth(binary_outcomes(rng, size, shares, 100, (0.005, rate))[..., ::2], factors),
        THRESHOLD,
    )
    assert runs.median * 100 == pytest.approx(median, rel=0.15, abs=100)


@pytest.mark.parametrize(
    ("retries", "nominal", "realised"), [(1.0, 0.007, 0.007), (1.1, 0.102, 0.020), (1.25, 0.67, 0.025)]
)
def test_only_the_realised_share_survives_retries(retries: float, nominal: float, realised: float, proof: bool) -> None:
    """Errors of 2 % in both arms, 5 % assigned to a candidate whose users call more often; 200 blocks of 1,000."""
    rng = np.random.default_rng([9, int(retries * 100)])
    share = 0.05 * retries / (0.05 * retries + 0.95)
    total = 3000 if proof else 400
    counts = binary_outcomes(rng, total, np.full(200, share), 1000, (0.02, 0.02))
    own = counts[..., 2:].sum(axis=-1) / 1000
    for name, pi, published in (("nominal", np.full(own.shape, 0.05), nominal), ("realised", own, realised)):
        rows = np.stack([counts[..., 0], counts[..., 2], pi], axis=-1).reshape(-1, 3)
        log_e = log_mean_exp(np.cumsum(event_ratio_log_factors(rows).reshape(total, 200, -1), axis=1))
        runs = simulate(total, iter_rows(log_e), THRESHOLD)
        show(f"F3 retries x{retries}, {name} share", runs)
        runs.rate.check_agrees(published, 400)
        if name == "realised":
            runs.rate.check_at_most(ALPHA)


# --- F4, stars: margin 0.15 of a star, 10,000 ratings, a peek every 10 ---

STARS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
STABLE_STARS = np.array([0.05, 0.07, 0.13, 0.33, 0.42])
STAR_MARGIN = 0.15 / 4


def star_outcomes(rng: np.random.Generator, runs: int, shares: Array, shift: float) -> Array:
    """Counts (runs, peeks, 10): the five values in stable, then in the candidate, whose mean is lower by ``shift``."""
    worse = STABLE_STARS + shift * np.array([1.0, 0.0, 0.0, 0.0, -1.0])
    n_b = rng.binomial(10, shares, (runs, shares.size))
    return np.concatenate([rng.multinomial(10 - n_b, STABLE_STARS), rng.multinomial(n_b, worse)], axis=-1).astype(float)


def star_factors(side: str, share: float) -> Any:
    unit, nothing, center = np.eye(5), np.zeros(5), float(STARS @ STABLE_STARS)
    rows = [(one, nothing, share) for one in unit] + [(nothing, one, share) for one in unit]
    if side == "harm":
        return betting_log_factors(rows, STARS, center)
    return betting_log_factors(rows, -STARS, -center, STAR_MARGIN)


@pytest.mark.parametrize(
    ("share", "side", "published"),
    [("0.5", "harm", 0.030), ("0.5", "promote", 0.022), ("ramp", "harm", 0.030), ("ramp", "promote", 0.030)],
)
def test_betting(share: str, side: str, published: float, proof: bool) -> None:
    rng, shares = np.random.default_rng([10, len(share), len(side)]), share_of(share, 1000)
    factors = at_shares(shares, lambda one: star_factors(side, one))
    shift = 0.0 if side == "harm" else STAR_MARGIN
    runs = simulate(
        4000 if proof else 500, lambda size: wealth(star_outcomes(rng, size, shares, shift), factors), THRESHOLD
    )
    show(f"F4 {side} at {share}", runs)
    runs.rate.check_agrees(published, 400)
    runs.rate.check_at_most(ALPHA)


def test_betting_at_the_realised_share_of_each_block(proof: bool) -> None:
    """The candidate gets 0.7 times the feedback; blocks of 20."""
    rng, hits, total = np.random.default_rng(11), 0, 1500 if proof else 150
    center = float(STARS @ STABLE_STARS)
    for _ in range(total):
        n_b = rng.binomial(20, 0.7 / 1.7, 500)
        stable, candidate = rng.multinomial(20 - n_b, STABLE_STARS), rng.multinomial(n_b, STABLE_STARS)
        rows = [(a, b, None) for a, b in zip(stable, candidate, strict=True)]
        log_e = log_mean_exp(np.cumsum(betting_log_factors(rows, STARS, center), axis=0))
        hits += bool((log_e >= THRESHOLD).any())
    assert hits / total <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / total)


def test_betting_sees_half_a_star(proof: bool) -> None:
    rng, shares = np.random.default_rng(12), share_of("0.5", 400)
    factors = at_shares(shares, lambda one: star_factors("harm", one))
    runs = simulate(
        1000 if proof else 200, lambda size: wealth(star_outcomes(rng, size, shares, 0.125), factors), THRESHOLD
    )
    assert runs.rate.value == 1.0
    assert 100 <= runs.median * 10 <= 320  # published for other stars: 210
