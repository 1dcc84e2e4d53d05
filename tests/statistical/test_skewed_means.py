"""False promotion on costs, which are skewed, while the candidate has few of them and its tolerance is wide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.domain.evidence import BUCKETS
from headway.domain.recording import cut_off
from headway.domain.strata import BucketSums, MeanComparison, Prior
from tests.statistical.montecarlo import Rate

RATIO = 1.1  # the margin
SHARES = {1 + 0.1 / 0.05: 0.01, 1 + 0.1 / 0.25: 0.05}  # tolerance to enter the next share, by the share it is tested at
INTERACTIONS, LOOKS = 2_000, 100


def falsely_safe(rng: np.random.Generator, sigma: float, tolerance: float) -> tuple[bool, bool]:
    """Whether a candidate just at its tolerance is ever shown safe: with the prior as measured, and as tested."""
    limit = math.exp(-(sigma**2) / 2 + 3.09 * sigma)
    spread = math.exp(sigma**2) - 1
    priors = [Prior(spread / 30, 30.0, power) for power in (0.0, 2.0)]
    sums, found = BucketSums.empty(1), [False, False]
    candidates = round(INTERACTIONS * SHARES[tolerance])
    for _ in range(LOOKS):
        for arm, size in enumerate((INTERACTIONS - candidates, candidates)):
            cells = rng.integers(0, BUCKETS, size)
            costs = np.minimum(rng.lognormal(-(sigma**2) / 2, sigma, size), limit) * (tolerance if arm else 1.0)
            sums.denominators[arm] += np.bincount(cells, minlength=BUCKETS)
            sums.numerators[0, arm] += np.bincount(cells, costs, BUCKETS)
        for index, prior in enumerate(priors):
            log_e = MeanComparison.of([sums], 0, prior).weigh(-1.0, tolerance, 2 * (RATIO - 1))
            found[index] |= log_e >= math.log(20)
    return found[0], found[1]


@pytest.mark.parametrize("sigma", [0.6, 1.2])
@pytest.mark.parametrize("tolerance", list(SHARES))
def test_a_candidate_at_its_tolerance_enters_no_share(proof: bool, sigma: float, tolerance: float) -> None:
    rng, runs = np.random.default_rng(40), 1_000 if proof else 60
    found = [falsely_safe(rng, sigma, tolerance) for _ in range(runs)]
    as_measured, as_tested = (Rate(sum(one), runs) for one in zip(*found, strict=True))
    print(f"F1 on costs, sigma {sigma}, x{tolerance:g}: prior as measured {as_measured}; as tested {as_tested}")
    assert as_tested.value <= as_measured.value
    as_tested.check_at_most(0.05)


@pytest.mark.parametrize("sigma", [0.3, 1.2])
@pytest.mark.parametrize("margin", [1.1, 1.5, 3.0])
def test_a_candidate_at_its_margin_is_not_cut_down_to_stable(proof: bool, sigma: float, margin: float) -> None:
    """Cut off at stable's limit itself, it is shown safe in 7 of 10 runs at sigma 0.3 and 1.5, and in all at 3."""
    rng, runs = np.random.default_rng(41), 1_000 if proof else 60
    limit = cut_off(math.exp(-(sigma**2) / 2 + 3.09 * sigma), margin)
    prior = Prior((math.exp(sigma**2) - 1) / 30, 30.0, 2.0)
    found = 0
    for _ in range(runs):
        sums, safe = BucketSums.empty(1), False
        for _ in range(LOOKS // 4):
            for arm, ratio in enumerate((1.0, margin)):
                cells = rng.integers(0, BUCKETS, INTERACTIONS // 2)
                costs = np.minimum(ratio * rng.lognormal(-(sigma**2) / 2, sigma, len(cells)), limit)
                sums.denominators[arm] += np.bincount(cells, minlength=BUCKETS)
                sums.numerators[0, arm] += np.bincount(cells, costs, BUCKETS)
            log_e = MeanComparison.of([sums], 0, prior).weigh(-1.0, margin, 2 * (margin - 1))
            safe |= log_e >= math.log(20)
        found += safe
    Rate(found, runs).check_at_most(0.05)
