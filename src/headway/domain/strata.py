"""Sums by bucket of units, and what they say about means (statistics, F1 with F6).

Units come back, so their values are not independent; hash buckets of units nearly are. The sums of a stratum are a
numerator and a denominator per bucket and arm. A stratum is a stage, and a new part of it every 24 hours once both arms
have enough buckets, so that a slow drift in a stage cancels out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from headway.domain.blocks import Histogram, Sums
from headway.domain.evidence import BUCKETS
from headway.stats import (
    ConfidenceSequence,
    Contrast,
    RatioStatistics,
    confidence_sequence,
    normal_mixture_log_e,
    ratio_variance,
)
from headway.stats.ratio import MIN_UNITS

PART_MS = 86_400_000
"""Age from which a stratum is followed by a new one in the same stage."""

_AGE_PER_CLOSING = 1 / 200

FloatArray = npt.NDArray[np.float64]

# Whole numbers as narrow as they fit: most buckets of rare events are 0 or 1.
_TYPES: tuple[str, ...] = ("<u1", "<u2", "<u4", "<f8")


@dataclass
class BucketSums:
    """Sums of one stratum.

    Attributes:
        denominators: Observations, of shape (arms, buckets).
        numerators: Values, of shape (columns, arms, buckets).
    """

    denominators: FloatArray
    numerators: FloatArray

    @classmethod
    def empty(cls, columns: int) -> BucketSums:
        """Begin with nothing."""
        return cls(np.zeros((2, BUCKETS)), np.zeros((columns, 2, BUCKETS)))

    def add(self, other: BucketSums) -> None:
        """Add others of the same columns."""
        self.denominators += other.denominators
        self.numerators += other.numerators

    def count(self, arm: int, buckets: Mapping[int, int]) -> None:
        """Add observations by bucket."""
        if buckets:
            self.denominators[arm, list(buckets)] += list(buckets.values())

    def sum_up(self, column: int, arm: int, buckets: Mapping[int, float]) -> None:
        """Add values by bucket."""
        if buckets:
            self.numerators[column, arm, list(buckets)] += list(buckets.values())

    def is_large(self) -> bool:
        """Say whether both arms have enough buckets for a stratum of their own."""
        return bool(((self.denominators > 0).sum(axis=1) >= MIN_UNITS).all())

    def close(self, stream: str, stage: int, part: int) -> Sums:
        """Pack them."""
        return Sums(stream, stage, part, pack(self.denominators), [pack(column) for column in self.numerators])

    @classmethod
    def read(cls, sums: Sums) -> BucketSums:
        """Undo ``close``."""
        columns = [unpack(column) for column in sums.numerators]
        return cls(unpack(sums.denominators), np.array(columns).reshape(len(columns), 2, BUCKETS))


def pack(arms: FloatArray) -> bytes:
    """Write an array of shape (arms, buckets); whole numbers are kept exactly, in as few bytes as they need."""
    code = len(_TYPES) - 1
    if (arms == np.floor(arms)).all() and arms.min() >= 0:
        largest = arms.max()
        code = next((index for index, limit in enumerate((2**8, 2**16, 2**32)) if largest < limit), code)
    return bytes((code,)) + arms.astype(_TYPES[code]).tobytes()


def unpack(body: bytes) -> FloatArray:
    """Undo ``pack``."""
    return np.frombuffer(body, _TYPES[body[0]], offset=1).astype(np.float64).reshape(2, BUCKETS)


@dataclass(frozen=True)
class Prior:
    """What is known of a bucket's variance before the rollout.

    Attributes:
        variance: s0^2: that of its ratio in the stable arm.
        observations: Where a bucket had so many observations.
        power: How a variance grows with its mean: 1 for counts of events, 2 for values. The candidate's is taken to be
            as it would be at the ratio that is tested: else a small sample of a skewed value passes too easily.
    """

    variance: float
    observations: float
    power: float = 2.0


@dataclass
class MeanComparison:
    """Means of one column in both arms over strata, ready to be compared at any ratio.

    A and B are the arms in the order in which they are compared: for what is better higher they are swapped, so that
    more is always worse.
    """

    ratios: FloatArray
    """(strata, arms): sum of values over sum of observations."""
    variances: FloatArray
    """(strata, arms): what the buckets show."""
    priors: FloatArray
    """(strata, arms): what the prior adds, where the means are equal."""
    influences: FloatArray
    """(strata, arms, buckets): what each bucket adds to the ratio, less what it should."""
    power: float
    swapped: bool
    _weighed: dict[tuple[float, float, float, float], float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, strata: Sequence[BucketSums], column: int, prior: Prior | None, *, swapped: bool = False
    ) -> MeanComparison:
        """Work out what does not depend on the ratio that is tested; strata with too few buckets are left out."""
        strata = [each for each in strata if each.is_large()]
        order = slice(None, None, -1 if swapped else 1)
        m = np.array([each.denominators[order] for each in strata]).reshape(len(strata), 2, BUCKETS)
        y = np.array([each.numerators[column, order] for each in strata]).reshape(len(strata), 2, BUCKETS)
        units, totals = (m > 0).sum(axis=2).astype(np.float64), m.sum(axis=2)
        sums = RatioStatistics(
            units, y.sum(axis=2), totals, (y * y).sum(axis=2), (m * m).sum(axis=2), (y * m).sum(axis=2)
        )
        shown = ratio_variance(sums, None if prior is None else 0.0)
        ratios, variances, priors = np.asarray(shown.ratio), np.asarray(shown.variance), np.zeros(totals.shape)
        if prior is not None:
            spread = prior.variance * prior.observations * units / np.maximum(totals, 1.0)
            priors = np.asarray(ratio_variance(sums, spread).variance) - variances
        influences = (y - ratios[..., None] * m) / np.maximum(totals, 1.0)[..., None]
        return cls(ratios, variances, priors, influences, 0.0 if prior is None else prior.power, swapped)

    def weigh(self, sign: float, factor: float, rho: float, offset: float = 0.0) -> float:
        """Weigh that R_B > factor R_A + offset (sign 1), or that it is below (sign -1): log E of the normal mixture."""
        key = (sign, factor, rho, offset)
        found = self._weighed.get(key)
        if found is None:
            contrast = self.contrast(factor, offset)
            found = float(normal_mixture_log_e(sign * contrast.weighted_sum, contrast.information, rho))
            self._weighed[key] = found
        return found

    def contrast(self, factor: float, offset: float = 0.0) -> Contrast:
        """Compare: R_B - factor R_A - offset, in information time, its variance that of the buckets over all strata."""
        # Candidate over stable, under the hypothesis that is tested.
        ratio = (1 / factor if self.swapped else factor) if factor else 1.0
        growth = ratio**self.power
        scales = (growth, 1.0) if self.swapped else (1.0, growth)
        variances = self.variances + self.priors * scales
        variance = variances[:, 1] + factor * factor * variances[:, 0]
        difference = self.ratios[:, 1] - factor * self.ratios[:, 0] - offset
        return self._combine(variance, difference, self.influences[:, 1] - factor * self.influences[:, 0])

    def log_ratio(self, rho: float, alpha: float) -> ConfidenceSequence:
        """Enclose log(R_B / R_A) at all times at once, for display."""
        if not (self.ratios > 0).all():
            return confidence_sequence(0.0, 0.0, rho, alpha)
        variance = ((self.variances + self.priors) / self.ratios**2).sum(axis=1)
        logs = np.log(self.ratios)
        scaled = self.influences / self.ratios[..., None]
        found = self._combine(variance, logs[:, 1] - logs[:, 0], scaled[:, 1] - scaled[:, 0])
        return confidence_sequence(found.information, found.weighted_sum, rho, alpha)

    def _combine(self, variance: FloatArray, difference: FloatArray, influences: FloatArray) -> Contrast:
        usable = (variance > 0) & (variance < np.inf)
        if not usable.any():
            return Contrast()
        information = 1 / variance[usable]
        total, weighted = float(information.sum()), float((information * difference[usable]).sum())
        by_bucket = information @ influences[usable]
        scale = total / max(float((by_bucket * by_bucket).sum()), total)
        return Contrast(total * scale, weighted * scale)


class Strata:
    """The sums of a rollout by stream and stratum, closed and still open, and the histograms beside them.

    A stage's open sums close together, at the first tick at which they are old enough: how they are grouped never
    matters to sums, only how much there is to store.
    """

    def __init__(self, quickest_ms: float) -> None:
        """Begin with nothing.

        Args:
            quickest_ms: Least time between two closings of a stage; they become rarer as the stage grows old.
        """
        self._quickest_ms = quickest_ms
        self._open: dict[tuple[str, int], BucketSums] = {}
        self._open_bins: dict[tuple[str, int, int], dict[int, int]] = {}
        self._clock: dict[int, tuple[int, int]] = {}
        self._parts: dict[tuple[str, int], tuple[int, int]] = {}
        self._closed: dict[str, dict[tuple[int, int], BucketSums]] = {}
        self._bins: dict[tuple[str, int, int], dict[int, int]] = {}
        self._comparisons: dict[tuple[object, ...], MeanComparison] = {}

    def open(self, stream: str, stage: int, columns: int) -> BucketSums:
        """Give the open sums of a stream and stage, to add to."""
        found = self._open.get((stream, stage))
        if found is None:
            found = self._open[stream, stage] = BucketSums.empty(columns)
        return found

    def add_bins(self, metric: str, stage: int, arm: int, bins: Mapping[int, int]) -> None:
        """Add to the open histogram of a time."""
        _add_bins(self._open_bins.setdefault((metric, stage, arm), {}), bins)

    def close(self, now_ms: int) -> tuple[list[Sums], list[Histogram]]:
        """Close what has been open for long enough."""
        stages = sorted({stage for _, stage in self._open} | {stage for _, stage, _ in self._open_bins})
        sums: list[Sums] = []
        histograms: list[Histogram] = []
        for stage in stages:
            began_ms, closed_ms = self._clock.setdefault(stage, (now_ms, now_ms))
            if now_ms - closed_ms < max(self._quickest_ms, (now_ms - began_ms) * _AGE_PER_CLOSING):
                continue
            self._clock[stage] = (began_ms, now_ms)
            for stream in sorted(stream for stream, place in self._open if place == stage):
                part = self._part(stream, stage, now_ms)
                sums.append(self._open.pop((stream, stage)).close(stream, stage, part))
            bins = sorted(place for place in self._open_bins if place[1] == stage)
            histograms += [Histogram(*place, self._open_bins.pop(place)) for place in bins]
        return sums, histograms

    def post(self, sums: Sequence[Sums], histograms: Sequence[Histogram]) -> None:
        """Add what has closed to its strata."""
        for each in sums:
            strata = self._closed.setdefault(each.stream, {})
            found, more = strata.get((each.stage, each.part)), BucketSums.read(each)
            if found is None:
                strata[each.stage, each.part] = more
            else:
                found.add(more)
        for histogram in histograms:
            place = (histogram.metric, histogram.stage, histogram.arm)
            _add_bins(self._bins.setdefault(place, {}), histogram.bins)
        if sums:
            self._comparisons.clear()

    def closed(self, stream: str, stages: Iterable[int]) -> list[tuple[int, BucketSums]]:
        """Give the closed strata of some stages with their stages."""
        strata = self._closed.get(stream, {})
        wanted = frozenset(stages)
        return [(place[0], strata[place]) for place in sorted(strata) if place[0] in wanted]

    def histogram(self, metric: str, stage: int, arm: int) -> Mapping[int, int]:
        """Give how often an arm of a stage had a time in each bin."""
        return self._bins.get((metric, stage, arm), {})

    def compare(
        self, stream: str, column: int, stages: tuple[int, ...], prior: Prior | None, *, swapped: bool = False
    ) -> MeanComparison:
        """Compare the arms in one column of a stream."""
        key = (stream, column, stages, prior, swapped)
        found = self._comparisons.get(key)
        if found is None:
            strata = [sums for _, sums in self.closed(stream, stages)]
            found = self._comparisons[key] = MeanComparison.of(strata, column, prior, swapped=swapped)
        return found

    def state(self) -> StrataState:
        """Give all of it, to be written."""
        return StrataState(
            [sums.close(*place, 0) for place, sums in self._open.items()],
            [sums.close(stream, *place) for stream, strata in self._closed.items() for place, sums in strata.items()],
            [Histogram(*place, bins) for place, bins in self._open_bins.items()],
            [Histogram(*place, bins) for place, bins in self._bins.items()],
            self._clock,
            [(*place, *part) for place, part in self._parts.items()],
        )

    def restore(self, state: StrataState) -> None:
        """Take over what was written."""
        self._open = {(each.stream, each.stage): BucketSums.read(each) for each in state.open}
        for each in state.closed:
            self._closed.setdefault(each.stream, {})[each.stage, each.part] = BucketSums.read(each)
        self._open_bins = {(each.metric, each.stage, each.arm): dict(each.bins) for each in state.open_histograms}
        self._bins = {(each.metric, each.stage, each.arm): dict(each.bins) for each in state.histograms}
        self._clock = dict(state.clock)
        self._parts = {(stream, stage): (part, began_ms) for stream, stage, part, began_ms in state.parts}

    def _part(self, stream: str, stage: int, now_ms: int) -> int:
        """Say which part of the stage open sums belong to: a new one when the last is old and large."""
        part, began_ms = self._parts.setdefault((stream, stage), (0, now_ms))
        last = self._closed.get(stream, {}).get((stage, part))
        if now_ms - began_ms >= PART_MS and last is not None and last.is_large():
            part += 1
            self._parts[stream, stage] = (part, now_ms)
        return part


class StrataState(msgspec.Struct, array_like=True):
    """Strata as they are written."""

    open: list[Sums] = []
    closed: list[Sums] = []
    open_histograms: list[Histogram] = []
    histograms: list[Histogram] = []
    clock: dict[int, tuple[int, int]] = {}
    parts: list[tuple[str, int, int, int]] = []


def _add_bins(total: dict[int, int], bins: Mapping[int, int]) -> None:
    for place, count in bins.items():
        total[place] = total.get(place, 0) + count
