"""Simulated streams of counts, and rates of false alarms with their Monte-Carlo error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.stats import log_mean_exp

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """In how many of so many runs something happened."""

    hits: int
    runs: int

    @property
    def value(self) -> float:
        return self.hits / self.runs

    def check_at_most(self, bound: float) -> None:
        """The true rate may be the bound: three standard errors are allowed."""
        allowed = bound + 3 * math.sqrt(bound * (1 - bound) / self.runs)
        assert self.value <= allowed, f"{self} is above {bound} by more than chance"

    def check_agrees(self, published: float, published_runs: int) -> None:
        """The same rate as one published from so many runs, within three standard errors of the difference."""
        hits = self.hits + published * published_runs
        pooled = max(hits, 1.0) / (self.runs + published_runs)
        error = math.sqrt(pooled * (1 - pooled) * (1 / self.runs + 1 / published_runs))
        assert abs(self.value - published) <= 3 * error, f"{self} is not {published} (of {published_runs} runs)"

    def __str__(self) -> str:
        error = math.sqrt(max(self.hits, 1) * max(self.runs - self.hits, 1) / self.runs**3)
        return f"{self.value:.4f} +- {error:.4f} ({self.hits} of {self.runs} runs)"


@dataclass(frozen=True)
class Runs:
    """When each run was decided: the number of the peek, from 1; 0 if never."""

    peeks: npt.NDArray[np.int64]

    @property
    def rate(self) -> Rate:
        return Rate(int((self.peeks > 0).sum()), self.peeks.size)

    @property
    def median(self) -> float:
        return float(np.median(np.where(self.peeks > 0, self.peeks, np.inf)))


def ramp(peeks: int) -> Array:
    """The candidate's share at each peek: 1, 5 and 25 % for a tenth of the time each, then 50 %."""
    stage = np.minimum(np.arange(peeks) * 10 // peeks, 3)
    return np.array([0.01, 0.05, 0.25, 0.5])[stage]


def chunks(runs: int, size: int = 100) -> Iterator[int]:
    for start in range(0, runs, size):
        yield min(size, runs - start)


def first_crossing(log_e: Array, threshold: float) -> npt.NDArray[np.int64]:
    """Of each run (a row), the first peek at which it is at or above the threshold, from 1; 0 if never."""
    crossed = log_e >= threshold
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, 0)


def simulate(runs: int, one_chunk: Callable[[int], Array], threshold: float) -> Runs:
    """Look at every peek of every run: ``one_chunk`` gives the log E-values (runs, peeks) of so many runs."""
    return Runs(np.concatenate([first_crossing(one_chunk(size), threshold) for size in chunks(runs)]))


def wealth(counts: Array, unit_factors: Array) -> Array:
    """Log E at every peek, from counts (runs, peeks, outcomes) and factors of one outcome (peeks, outcomes, bets)."""
    factors = np.einsum("rto,toj->rtj", counts, unit_factors, optimize=True)
    return log_mean_exp(np.cumsum(factors, axis=1))


def at_shares(shares: Array, unit_factors: Callable[[float], Any]) -> Array:
    """The factors of each outcome at each peek's share, computed once per share."""
    values, index = np.unique(shares, return_inverse=True)
    result: Array = np.stack([unit_factors(float(share)) for share in values])[index]
    return result


def binary_outcomes(
    rng: np.random.Generator, runs: int, shares: Array, per_peek: int, rates: tuple[float, float]
) -> Array:
    """Counts (runs, peeks, 4) of stable and candidate: success and failure in stable, then in the candidate."""
    n_b = rng.binomial(per_peek, shares, (runs, shares.size))
    n_a = per_peek - n_b
    k_a, k_b = rng.binomial(n_a, rates[0]), rng.binomial(n_b, rates[1])
    return np.stack([k_a, n_a - k_a, k_b, n_b - k_b], axis=-1).astype(np.float64)
