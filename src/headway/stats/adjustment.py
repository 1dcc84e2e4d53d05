"""CUPED: less noise in a difference by what was known about each unit before."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import NamedTuple


class AdjustedDifference(NamedTuple):
    """A difference of means after adjustment; (nan, inf, nan, nan) is no data."""

    difference: float
    """Candidate minus stable."""
    variance: float
    """Of the difference."""
    slope: float
    """Of the outcome on the covariate, within the arms."""
    removed: float
    """Share of the variance that the adjustment has removed; nan if there is none."""


@dataclass(frozen=True, slots=True)
class CovariateSums:
    """Sums over the units of an arm of an outcome y and a covariate x from before the exposure; add two to merge."""

    n: float
    y: float
    x: float
    yy: float
    xx: float
    xy: float

    def __add__(self, other: CovariateSums) -> CovariateSums:
        return CovariateSums(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def cuped_adjustment(stable: CovariateSums, candidate: CovariateSums) -> AdjustedDifference:
    """Compare two means after taking out what a covariate from before the exposure explains.

    Guarantee: the difference stays unbiased up to order 1/n, and its variance is at most about that without
    adjustment; use 1/variance as information in the normal mixture. Assumption: the covariate was measured before
    exposure, so that it is the same in both arms up to chance; independent units. Source: Deng, Xu, Kohavi, Walker,
    WSDM 2013.

    Args:
        stable: sums of the stable arm.
        candidate: sums of the candidate.

    Returns:
        Difference, its variance, the pooled slope within arms, and the share of variance removed. Without units in an
        arm (nan, inf, nan, nan); with one, no variance (inf) and no slope; slope 0 if the covariate is constant.

    Example:
        >>> a = CovariateSums(n=1000, y=700, x=690, yy=560, xx=540, xy=520)
        >>> b = CovariateSums(n=1000, y=680, x=705, yy=545, xx=560, xy=515)
        >>> [round(figure, 6) for figure in cuped_adjustment(a, b)]
        [-0.028583, 0.000111, 0.572217, 0.272234]
    """
    arms = (stable, candidate)
    if not all(math.isfinite(value) for arm in arms for value in astuple(arm)) or min(stable.n, candidate.n) < 0:
        raise ValueError("Sums must be finite, and the number of units not negative.")
    if stable.n == 0 or candidate.n == 0:
        return AdjustedDifference(math.nan, math.inf, math.nan, math.nan)
    raw = candidate.y / candidate.n - stable.y / stable.n
    if min(stable.n, candidate.n) <= 1:
        return AdjustedDifference(raw, math.inf, math.nan, math.nan)
    # Centred sums of squares and products, per arm.
    yy = [max(arm.yy - arm.y * arm.y / arm.n, 0.0) for arm in arms]
    xx = [max(arm.xx - arm.x * arm.x / arm.n, 0.0) for arm in arms]
    xy = [arm.xy - arm.x * arm.y / arm.n for arm in arms]
    slope = sum(xy) / sum(xx) if sum(xx) > 0 else 0.0
    scales = [arm.n * (arm.n - 1) for arm in arms]
    rest = [max(v - 2 * slope * c + slope * slope * u, 0.0) for v, c, u in zip(yy, xy, xx, strict=True)]
    variance = sum(value / scale for value, scale in zip(rest, scales, strict=True))
    before = sum(value / scale for value, scale in zip(yy, scales, strict=True))
    difference = raw - slope * (candidate.x / candidate.n - stable.x / stable.n)
    return AdjustedDifference(difference, variance, slope, 1 - variance / before if before > 0 else math.nan)
