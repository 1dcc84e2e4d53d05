"""Simulated traffic: who calls, and what each call would bring under either release.

Everything is drawn beforehand and for both releases, so that policies can be compared on one stream: what they decide
changes which of the two outcomes is seen, never the outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from headway.domain.assignment import position
from headway.rollouts.simulation.scenarios import LATENCY_SIGMA, STABLE_MEDIAN_MS, Release, Scenario

CHUNK = 20_000
"""Interactions drawn at a time. A stream depends on it."""
START_MS = 1_767_225_600_000
"""When simulated rollouts begin: the start of an hour."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_COST_USD = 0.002
_HARD_DISLIKE = 0.3
_COST_SIGMA = 0.6
_GRID = np.linspace(0.0, 1.0, 2049)


@dataclass(frozen=True)
class Outcomes:
    """What interactions would bring under one release; arrays of one length."""

    failed: Flags
    refused: Flags
    filtered: Flags
    attempt_failed: Flags
    fell_back: Flags
    total_ms: Floats
    cost_usd: Floats
    rates: Flags
    likes: Flags
    repeats: Flags

    def read(self, metric: str) -> Floats:
        """Read a metric of each interaction: 0 or 1, ms (infinite for failures) or USD; nan where there is none."""
        return np.asarray(_READERS[metric](self), dtype=np.float64)


_READERS: Mapping[str, Callable[[Outcomes], npt.ArrayLike]] = MappingProxyType(
    {
        "error_rate": lambda each: each.failed,
        "attempt_error_rate": lambda each: each.attempt_failed | each.fell_back | each.failed,
        "fallback_rate": lambda each: each.fell_back,
        "refusal_rate": lambda each: each.refused,
        "content_filter_rate": lambda each: each.filtered,
        "slow_rate": lambda each: np.where(each.failed, np.inf, each.total_ms),
        "latency_p95": lambda each: np.where(each.failed, np.inf, each.total_ms),
        "cost": lambda each: np.where(each.failed, np.nan, each.cost_usd),
        "feedback_rate": lambda each: each.rates & ~each.failed,
        "thumbs_up": lambda each: np.where(each.rates & ~each.failed, each.likes, np.nan),
    }
)


MEASURABLE = tuple(_READERS)
"""Metrics that simulated traffic has."""


@dataclass(frozen=True)
class Chunk:
    """Interactions in their order.

    Attributes:
        first: Number of the first one, from 0.
        numbers: Number of each one's unit.
        positions: Where the unit lies in [0, 1) (``headway.domain.assignment``).
        units: Hashed units, 8 bytes each.
        outcomes: Under stable and under the candidate.
        repeated: What a second call would bring, under either; None where nobody calls twice.
        delay_seconds: From the answer to its rating, under stable and under the candidate.
        slips: Raters who first hit the wrong button, under stable and under the candidate.
        changes: Raters who change their minds later.
    """

    first: int
    numbers: npt.NDArray[np.int64]
    positions: Floats
    units: bytes
    outcomes: tuple[Outcomes, Outcomes]
    repeated: tuple[Outcomes, Outcomes] | None
    delay_seconds: tuple[Floats, Floats]
    slips: tuple[Flags, Flags]
    changes: Flags

    def __len__(self) -> int:
        return self.numbers.size


class Population:
    """Draws a scenario's traffic, chunk by chunk: the same for the same scenario and seed.

    Args:
        scenario: Who calls, and what the two releases are like.
        seed: One per run.
    """

    def __init__(self, scenario: Scenario, seed: npt.ArrayLike) -> None:
        self._scenario = scenario
        self._rng = np.random.default_rng(np.random.SeedSequence(np.atleast_1d(np.asarray(seed)).tolist()))
        self._salt = self._rng.bytes(16)
        self._drawn = 0
        self._units = 0
        self._slots = np.full(scenario.traffic.active_units, -1, dtype=np.int64)
        self._positions = np.empty(0)
        self._liking = np.empty(0)
        self._trouble = np.empty(0)
        self._hashes = np.empty((0, 8), dtype=np.uint8)
        self._tastes = [_tastes(each.thumbs_up, scenario.traffic.correlation) for each in scenario.releases]

    @property
    def salt(self) -> bytes:
        """The rollout's salt."""
        return self._salt

    def draw(self) -> Chunk:
        """Draw the next interactions."""
        traffic, rng = self._scenario.traffic, self._rng
        first = self._drawn
        self._drawn += CHUNK
        numbers = np.arange(first, first + CHUNK) if traffic.per_unit <= 1 else self._callers()
        self._meet(int(numbers.max()) + 1)
        hard = rng.random(CHUNK) < self._hard_share(first + np.arange(CHUNK))
        outcomes = self._outcomes(numbers, hard)
        again = self._scenario.stable.calls > 1 or self._scenario.candidate.calls > 1
        return Chunk(
            first=first,
            numbers=numbers,
            positions=self._positions[numbers],
            units=self._hashes[numbers].tobytes(),
            outcomes=outcomes,
            repeated=self._outcomes(numbers, hard) if again else None,
            delay_seconds=self._delays(outcomes),
            slips=self._slips(),
            changes=rng.random(CHUNK) < self._scenario.raters.changes,
        )

    def _callers(self) -> npt.NDArray[np.int64]:
        """Let a random one of the active units call each time; after some calls it leaves, and a new one comes."""
        traffic, rng = self._scenario.traffic, self._rng
        slots = rng.integers(traffic.active_units, size=CHUNK)
        leaves = rng.random(CHUNK) < 1 / traffic.per_unit
        order = np.argsort(slots, kind="stable")
        slot, left = slots[order], leaves[order]
        enters = np.ones(CHUNK, dtype=bool)  # the first of its slot here, or the one before has left
        enters[1:] = (slot[1:] != slot[:-1]) | left[:-1]
        goes_on = np.zeros(CHUNK, dtype=bool)
        goes_on[0] = True
        goes_on[1:] = slot[1:] != slot[:-1]
        goes_on &= self._slots[slot] >= 0
        new = enters & ~goes_on
        stays = np.where(goes_on, self._slots[slot], 0)
        stays[new] = self._units + np.arange(np.count_nonzero(new))
        self._units += int(np.count_nonzero(new))
        starts = np.flatnonzero(enters)
        unit = stays[starts][np.cumsum(enters) - 1]
        last = np.flatnonzero(np.append(slot[1:] != slot[:-1], True))
        self._slots[slot[last]] = np.where(left[last], -1, unit[last])
        numbers = np.empty(CHUNK, dtype=np.int64)
        numbers[order] = unit
        return numbers

    def _meet(self, until: int) -> None:
        """Give new units their place, their name's hash and their liking."""
        known = self._positions.size
        if until <= known:
            return
        salt = self._salt
        fresh = [position(salt, f"unit-{number}") for number in range(known, until)]
        self._positions = np.concatenate([self._positions, fresh])
        self._liking = np.concatenate([self._liking, self._rng.random(until - known)])
        self._trouble = np.concatenate([self._trouble, self._rng.random(until - known)])
        hashes = self._rng.integers(256, size=(until - known, 8), dtype=np.uint8)
        self._hashes = np.concatenate([self._hashes, hashes])

    def _hard_share(self, numbers: npt.NDArray[np.int64]) -> Floats:
        first, last = self._scenario.traffic.hard
        return first + (last - first) * np.minimum(numbers / self._scenario.traffic.hard_interactions, 1.0)

    def _outcomes(self, numbers: npt.NDArray[np.int64], hard: Flags) -> tuple[Outcomes, Outcomes]:
        """Draw what interactions would bring under either release, from the same luck."""
        rng, scenario = self._rng, self._scenario
        luck = rng.random((8, CHUNK), dtype=np.float32)
        waits = np.exp(LATENCY_SIGMA * rng.standard_normal(CHUNK)) * STABLE_MEDIAN_MS * np.where(hard, 1.5, 1.0)
        costs = np.exp(_COST_SIGMA * rng.standard_normal(CHUNK)) * _COST_USD
        troubled = scenario.traffic.troubled
        risk = np.where(hard, 3.0, 1.0) * ((self._trouble[numbers] < troubled) / troubled)
        liking = self._liking[numbers]

        def under(release: Release, taste: Floats) -> Outcomes:
            return Outcomes(
                failed=luck[0] < release.errors * risk,
                refused=luck[1] < release.refusals,
                filtered=luck[2] < release.filtered,
                attempt_failed=luck[3] < release.attempt_errors,
                fell_back=luck[4] < release.fallbacks,
                total_ms=waits * release.latency,
                cost_usd=costs * release.cost,
                rates=luck[5] < release.feedback,
                likes=luck[6] < np.interp(liking, _GRID, taste) - _HARD_DISLIKE * hard,
                repeats=luck[7] < release.calls - 1,
            )

        stable, candidate = scenario.releases
        return under(stable, self._tastes[0]), under(candidate, self._tastes[1])

    def _delays(self, outcomes: tuple[Outcomes, Outcomes]) -> tuple[Floats, Floats]:
        raters = self._scenario.raters
        delay = raters.delay_seconds * np.exp(raters.delay_sigma * self._rng.standard_normal(CHUNK))
        stable, candidate = (np.where(each.likes, delay, delay * raters.quick_dislike) for each in outcomes)
        return stable, candidate

    def _slips(self) -> tuple[Flags, Flags]:
        raters, luck = self._scenario.raters, self._rng.random(CHUNK)
        return luck < raters.slips, luck < raters.slips * raters.candidate_slips


def _tastes(mean: float, correlation: float) -> Floats:
    """Tabulate how many answers units like, by the rank of the unit: a beta distribution, or all the same."""
    if correlation == 0:
        return np.full(_GRID.size, mean)
    size = 1 / correlation - 1
    table: Floats = betaincinv(mean * size, (1 - mean) * size, _GRID)
    return table
