"""F6, ratios of sums over units that may bring several observations each: sums that merge, estimate and variance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.stats.counts import FloatArray, check_counts

KAPPA = 30.0
"""How many units the stable arm's variance counts for in that of a small sample."""

MIN_UNITS = 30.0
"""Units per arm from which a stratum contributes to a normal mixture."""


class RatioEstimate(NamedTuple):
    """A ratio and the variance of its estimate: floats, or arrays of one shape; (nan, inf) is no data."""

    ratio: float | FloatArray
    variance: float | FloatArray


@dataclass(frozen=True, slots=True)
class RatioStatistics:
    """Sums over units of a numerator y and a denominator m; add two to merge them.

    A unit is what is independent of the others: a user with all its observations, or one of 256 hash buckets of users
    (count the non-empty ones). For one observation per unit m is 1. Fields are numbers, or arrays of one shape.

    Example:
        >>> a = RatioStatistics.from_units([1, 3], [2, 4])
        >>> a + a == RatioStatistics.from_units([1, 3, 1, 3], [2, 4, 2, 4])
        True
    """

    n: npt.ArrayLike
    """Units."""
    sy: npt.ArrayLike
    """Sum of y."""
    sm: npt.ArrayLike
    """Sum of m."""
    syy: npt.ArrayLike
    """Sum of y squared."""
    smm: npt.ArrayLike
    """Sum of m squared."""
    sym: npt.ArrayLike
    """Sum of y times m."""

    @classmethod
    def from_units(cls, y: npt.ArrayLike, m: npt.ArrayLike) -> RatioStatistics:
        """Sum up units from their totals; those with m = 0, such as empty buckets, are left out."""
        ys, ms = np.broadcast_arrays(np.asarray(y, dtype=np.float64), np.asarray(m, dtype=np.float64))
        check_counts(ms)
        ys, ms = ys[ms > 0], ms[ms > 0]
        return cls(
            float(ys.size), float(ys.sum()), float(ms.sum()), float(ys @ ys), float(ms @ ms), float(ys @ ms)
        )  # fmt: skip

    @classmethod
    def from_counts(cls, n: npt.ArrayLike, k: npt.ArrayLike) -> RatioStatistics:
        """Sum up n units with one yes or no each, k of them yes."""
        total, hits = np.asarray(n, dtype=np.float64), np.asarray(k, dtype=np.float64)
        check_counts(hits)
        if not (hits <= total).all():
            raise ValueError("There cannot be more successes than observations.")
        return cls(total, hits, total, hits, total, hits)

    def __add__(self, other: RatioStatistics) -> RatioStatistics:
        pairs = zip(self._fields(), other._fields(), strict=True)
        return RatioStatistics(*(np.add(mine, theirs)[()] for mine, theirs in pairs))

    def _fields(self) -> tuple[npt.ArrayLike, ...]:
        return (self.n, self.sy, self.sm, self.syy, self.smm, self.sym)


def ratio_variance(
    stats: RatioStatistics, prior_var: npt.ArrayLike | None = None, kappa: float = KAPPA
) -> RatioEstimate:
    """Estimate a ratio of sums, R = sum y / sum m, and the variance of that estimate across units (delta method).

    var(R) = (SS + kappa s0^2) / (n - 1 + kappa) / n with SS = (syy - 2 R sym + R^2 smm) / mbar^2: the variance of a
    small sample is drawn towards that of the stable arm, without which a normal mixture fails at small shares.

    Guarantee: consistent as the number of units grows, whatever the dependence inside a unit. Assumption: units are
    independent. Source: Deng, Knoblich, Lu, KDD 2018.

    Args:
        stats: sums over units; numbers or arrays of one shape.
        prior_var: s0^2, the variance of one unit's share in R, measured on the stable arm (p (1 - p) for a rate with
            one value per unit). None: no shrinkage.
        kappa: how many units the prior counts for; unused without one.

    Returns:
        Ratio and variance. No unit or no denominator: (nan, inf). One unit and no prior: variance inf.

    Example:
        >>> estimate = ratio_variance(RatioStatistics(n=5, sy=11, sm=15, syy=39, smm=55, sym=44))
        >>> round(estimate.ratio, 6), round(estimate.variance, 7)
        (0.733333, 0.0224691)
    """
    n, sy, sm, syy, smm, sym = (np.asarray(field, dtype=np.float64) for field in stats._fields())
    prior = np.float64(0.0) if prior_var is None else np.asarray(prior_var, dtype=np.float64)
    weight = 0.0 if prior_var is None else kappa
    if not (np.isfinite(n + sy + sm + syy + smm + sym) & (n >= 0) & (sm >= 0)).all():
        raise ValueError("Sums over units must be finite, and n and sm not negative.")
    if not ((prior >= 0) & np.isfinite(prior)).all() or not 0 <= weight < np.inf:
        raise ValueError("prior_var and kappa must be finite and not negative.")
    known = (n > 0) & (sm > 0)
    units, denominators = np.where(known, n, 1.0), np.where(known, sm, 1.0)
    ratio = sy / denominators
    squares = np.maximum(syy - 2 * ratio * sym + ratio * ratio * smm, 0.0) * (units / denominators) ** 2
    freedom = units - 1 + weight
    spread = known & (freedom > 0)
    variance = np.where(spread, (squares + weight * prior) / np.where(spread, freedom, 1.0) / units, np.inf)
    ratio = np.where(known, ratio, np.nan)
    return RatioEstimate(ratio, variance) if ratio.ndim else RatioEstimate(float(ratio), float(variance))
