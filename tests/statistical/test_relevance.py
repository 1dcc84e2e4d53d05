"""How often intervals of means over queries miss the true mean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from headway.domain.relevance import CONFIDENCE, estimate
from tests.statistical.montecarlo import Array, Rate

Draw = Callable[[np.random.Generator, int], Array]


def few_differ(draws: np.random.Generator, size: int) -> Array:
    """Differences of recall: of 100 queries 4 are lost, 1 is won."""
    return draws.choice([-1.0, 0.0, 1.0], size, p=[0.04, 0.95, 0.01])


def places_change(draws: np.random.Generator, size: int) -> Array:
    """Differences of reciprocal ranks: most queries keep their place."""
    places = np.array([1, 1 / 2, 1 / 3, 1 / 4, 0.0])
    before = draws.choice(places, size, p=[0.5, 0.2, 0.1, 0.1, 0.1])
    changed = draws.choice(places, size, p=[0.4, 0.2, 0.1, 0.1, 0.2])
    return np.where(draws.random(size) < 0.3, changed - before, 0.0)


def skewed(draws: np.random.Generator, size: int) -> Array:
    """Values most of which lie near 0, a few near 1."""
    return draws.choice(SKEWED, size, p=SKEWED_PARTS)


def halves(draws: np.random.Generator, size: int) -> Array:
    """Recall of queries with two relevant documents."""
    return draws.binomial(2, 0.97, size) / 2


SKEWED = np.linspace(0, 1, 21) ** 4
SKEWED_PARTS = 0.7 ** np.arange(21) / (0.7 ** np.arange(21)).sum()
PLACES_MEAN = 0.3 * (0.4 + 0.1 + 1 / 30 + 1 / 40 - (0.5 + 0.1 + 1 / 30 + 1 / 40))
CASES: dict[str, tuple[Draw, float, float]] = {
    "few differ": (few_differ, -0.03, -1.0),
    "places change": (places_change, PLACES_MEAN, -1.0),
    "skewed": (skewed, float(SKEWED @ SKEWED_PARTS), 0.0),
    "halves": (halves, 0.97, 0.0),
}


@pytest.mark.parametrize("size", [5, 20, 100])
@pytest.mark.parametrize("case", list(CASES))
def test_intervals_hold_the_mean(proof: bool, case: str, size: int) -> None:
    draw, mean, lowest = CASES[case]
    draws, runs = np.random.default_rng(size), 4_000 if proof else 300
    missed = 0
    for _ in range(runs):
        found = estimate(draw(draws, size), lowest)
        assert found is not None
        missed += not found.lower <= mean <= found.upper
    rate = Rate(missed, runs)
    print(f"{case}, {size} queries: the interval misses the mean in {rate}")
    rate.check_at_most(1 - CONFIDENCE)
