"""False alarms of the sample-ratio check and of the change detector, against the rates published with the methods."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.stats import detector_step, log_mean_exp, quantile_rank_bounds
from headway.stats.allocation import CONCENTRATION, dirichlet_multinomial_log_e
from headway.stats.detector import ODDS
from tests.statistical.montecarlo import Array, Rate, simulate

# --- F7: 200,000 units, a look every 100; alarm at 1000 ---


def sample_ratio_paths(rng: np.random.Generator, runs: int, peeks: int, design: float, truth: float) -> Array:
    candidate = np.cumsum(rng.binomial(100, truth, (runs, peeks)), axis=1)
    total = 100.0 * np.arange(1, peeks + 1)
    counts = np.stack([total - candidate, candidate], axis=-1)
    return dirichlet_multinomial_log_e(counts, np.array([1 - design, design]), CONCENTRATION)


@pytest.mark.parametrize(("design", "published"), [(0.5, 0.0004), (0.05, 0.00095), (0.01, 0.00095)])
def test_sample_ratio(design: float, published: float, proof: bool) -> None:
    rng = np.random.default_rng([20, int(1000 * design)])
    alarms: list[Array] = []

    def one_chunk(size: int) -> Array:
        paths = sample_ratio_paths(rng, size, 2000, design, design)
        alarms.append(paths.max(axis=1))
        return paths

    runs = simulate(20_000 if proof else 1000, one_chunk, math.log(1000))
    print(f"F7 at {design}: {runs.rate}")
    runs.rate.check_agrees(published, 20_000)
    runs.rate.check_at_most(0.001)
    at_twenty = Rate(int((np.concatenate(alarms) >= math.log(20)).sum()), runs.rate.runs)
    at_twenty.check_at_most(0.05)
    assert at_twenty.hits > 0  # the check can alarm


@pytest.mark.parametrize(("design", "truth", "median"), [(0.5, 0.55, 2200), (0.05, 0.06, 8400), (0.01, 0.015, 7800)])
def test_sample_ratio_sees_a_mismatch(design: float, truth: float, median: float, proof: bool) -> None:
    rng = np.random.default_rng([21, int(1000 * design)])
    runs = simulate(
        2000 if proof else 300, lambda size: sample_ratio_paths(rng, size, 600, design, truth), math.log(1000)
    )
    assert runs.rate.value == 1.0
    assert runs.median * 100 == pytest.approx(median, rel=0.12)


# --- F5: where the 95th percentile lies, looked at after every 10 values ---


def test_quantile_ranks(proof: bool) -> None:
    rng, runs, peeks = np.random.default_rng(26), 4000 if proof else 1000, 1000
    bounds = [quantile_rank_bounds(10 * (peek + 1), 0.95, 0.025) for peek in range(peeks)]
    low, high = np.array(bounds).T
    below = np.cumsum(rng.binomial(10, 0.95, (runs, peeks)), axis=1)  # values at or below the true quantile
    missed = Rate(int(((below <= low) | (below >= high)).any(axis=1).sum()), runs)
    print(f"F5: {missed}")
    missed.check_at_most(0.05)
    assert missed.hits > 0


# --- F8: slow calls of 5 %, 100 requests a minute, volume +-60 % and rate +-30 % over the day; A = 43,200 ---

DAY = 1440
THRESHOLD = 43_200


def volume_and_rate(minute: int) -> tuple[float, float]:
    phase = 2 * math.pi * minute / DAY
    return 100 * (1 + 0.6 * math.sin(phase)), 0.05 * (1 + 0.3 * math.sin(phase + 1))


def alarm_minutes(
    rng: np.random.Generator, runs: int, minutes: int, threshold: float, *, odds: float = 1.0, flat: float | None = None
) -> Array:
    """The minute of each run's first alarm, inf if none: with the profile as the baseline or a flat one."""
    state = np.full((runs, len(ODDS)), -np.inf)
    first = np.full(runs, np.inf)
    for minute in range(minutes):
        volume, rate = volume_and_rate(minute)
        changed = odds * rate / (odds * rate + 1 - rate)
        total = rng.poisson(volume, runs)
        state = detector_step(state, rng.binomial(total, changed), total, flat or rate)
        alarm = (log_mean_exp(state) >= math.log(threshold)) & np.isinf(first)
        first[alarm] = minute + 1
        if not np.isinf(first).any():
            break
    return first


def test_detector_in_control(proof: bool) -> None:
    days, published, of = (30, 0.23, 200) if proof else (10, 0.08, 100)
    first = alarm_minutes(np.random.default_rng(22), 400 if proof else 200, days * DAY, THRESHOLD)
    alarms = Rate(int(np.isfinite(first).sum()), first.size)
    print(f"F8 in {days} days: {alarms}")
    alarms.check_agrees(published, of)


def test_detector_runs_as_long_as_promised(proof: bool) -> None:
    """Average run length without a change: at least the threshold, in minutes."""
    threshold = 1000 if proof else 100
    first = alarm_minutes(np.random.default_rng(23), 1000 if proof else 300, 40 * threshold, threshold)
    capped = np.minimum(first, 40 * threshold)
    error = float(capped.std()) / math.sqrt(first.size)
    print(f"F8 average run length at {threshold}: {capped.mean():.0f} +- {error:.0f} minutes")
    assert capped.mean() >= threshold - 3 * error
    assert np.isfinite(first).any()  # it does alarm


def test_detector_sees_a_change(proof: bool) -> None:
    # Twice the slow calls: odds of 2.03 / (1 - 0.05 x 2.03) over 1 / (1 - 0.05)
    odds = 2.03 * 0.95 / (1 - 0.05 * 2.03)
    first = alarm_minutes(np.random.default_rng(24), 1000 if proof else 200, 200, THRESHOLD, odds=odds)
    assert np.median(first) == pytest.approx(8, abs=3)


def test_a_flat_baseline_below_the_peak_alarms_without_a_change() -> None:
    """Why the baseline must be the upper seasonal profile."""
    first = alarm_minutes(np.random.default_rng(25), 50, 2 * DAY, THRESHOLD, flat=0.05)
    assert np.isfinite(first).mean() > 0.9
