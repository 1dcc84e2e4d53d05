"""False alarms of the normal mixture when users rate many times, and come back after the share has changed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.stats import Contrast, RatioStatistics, clustered_contrast, normal_mixture_log_e, ratio_contrast
from headway.stats.ratio import ratio_variance
from tests.statistical.montecarlo import Array, Rate

USERS, BUCKETS = 3000, 256
RHO = 0.06
LOOKS = 40


class Ratings(NamedTuple):
    """Ratings in the order in which they came."""

    bucket: npt.NDArray[np.int64]
    stage: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.bool_]
    good: npt.NDArray[np.bool_]


def rate(rng: np.random.Generator, per_user: npt.NDArray[np.int64], shares: list[float]) -> Ratings:
    """Both arms alike, 70 % good, correlated within users by 0.2; stages take a tenth of the time each but the last."""
    user = np.repeat(np.arange(USERS), per_user)
    time = np.sort(rng.random(user.size))
    user = rng.permutation(user)
    stage = np.minimum((time * 10).astype(np.int64), len(shares) - 1)
    position = rng.random(USERS)  # candidate iff below the share: who is in stays in
    liking = rng.beta(0.7 * 4, 0.3 * 4, USERS)
    return Ratings(
        user % BUCKETS, stage, position[user] < np.array(shares)[stage], rng.random(user.size) < liking[user]
    )


def bucket_totals(ratings: Ratings, until: int, stages: int, *, candidate: bool) -> Array:
    """(y, m) per stage and bucket of one arm."""
    chosen = ratings.candidate[:until] == candidate
    cell = ratings.stage[:until][chosen] * BUCKETS + ratings.bucket[:until][chosen]
    good = np.bincount(cell, ratings.good[:until][chosen], stages * BUCKETS)
    totals = np.stack([good, np.bincount(cell, minlength=stages * BUCKETS)], axis=-1).astype(np.float64)
    return totals.reshape(stages, BUCKETS, 2)


def stage_contrasts(stable: Array, candidate: Array) -> list[Contrast]:
    contrasts = []
    for a, b in zip(stable, candidate, strict=True):
        before, after = RatioStatistics.from_units(a[:, 0], a[:, 1]), RatioStatistics.from_units(b[:, 0], b[:, 1])
        unit = float(np.asarray(before.n)) * float(ratio_variance(before).variance)
        # A stable unit variance per bucket, scaled to the ratings that a bucket of the arm holds.
        scale = float(np.asarray(before.sm)) / max(float(np.asarray(after.sm)), 1.0)
        scale *= float(np.asarray(after.n)) / max(float(np.asarray(before.n)), 1.0)
        prior = (unit, unit * scale) if math.isfinite(unit) else None
        contrasts.append(ratio_contrast(before, after, prior_var=prior))
    return contrasts


def ignoring_users(stable: Array, candidate: Array) -> Contrast:
    total = Contrast()
    for a, b in zip(stable.sum(axis=1), candidate.sum(axis=1), strict=True):
        arms = RatioStatistics.from_counts(a[1], a[0]), RatioStatistics.from_counts(b[1], b[0])
        total += ratio_contrast(*arms, prior_var=0.21)
    return total


def false_alarms(ratings: Ratings, stages: int) -> tuple[bool, bool]:
    """Whether harm was found at any look: with users ignored, with buckets."""
    naive, clustered = False, False
    for until in np.linspace(0, ratings.good.size, LOOKS + 1).astype(int)[1:]:
        stable = bucket_totals(ratings, until, stages, candidate=False)
        candidate = bucket_totals(ratings, until, stages, candidate=True)
        whole = clustered_contrast(stable, candidate, stage_contrasts(stable, candidate))
        naive |= harmful(ignoring_users(stable, candidate))
        clustered |= harmful(whole)
    return naive, clustered


def harmful(contrast: Contrast) -> bool:
    return float(normal_mixture_log_e(-contrast.weighted_sum, contrast.information, RHO)) >= math.log(20)


def test_users_who_rate_many_times(proof: bool) -> None:
    rng, runs = np.random.default_rng(30), 600 if proof else 60
    found = [false_alarms(rate(rng, rng.integers(1, 21, USERS), [0.5]), 1) for _ in range(runs)]
    naive, clustered = (Rate(sum(one), runs) for one in zip(*found, strict=True))
    print(f"F6 ignored: {naive}; buckets: {clustered}")
    assert naive.value > clustered.value  # published 0.25, with more looks
    assert naive.value > 0.08
    clustered.check_agrees(0.007, 300)
    clustered.check_at_most(0.05)


def test_users_who_come_back_after_the_share_has_changed(proof: bool) -> None:
    rng, runs = np.random.default_rng(31), 600 if proof else 60
    shares = [0.01, 0.05, 0.25, 0.5]
    found = [
        false_alarms(rate(rng, np.maximum(rng.lognormal(1.6, 1.0, USERS), 1).astype(np.int64), shares), 4)
        for _ in range(runs)
    ]
    naive, clustered = (Rate(sum(one), runs) for one in zip(*found, strict=True))
    print(f"F6 over stages, ignored: {naive}; buckets: {clustered}")
    clustered.check_agrees(0.020, 300)
    clustered.check_at_most(0.05)
    assert naive.value > clustered.value
