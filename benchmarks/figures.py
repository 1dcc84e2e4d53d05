"""Figures: percentiles, medians, and a measured figure held against its bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


class VoidRunError(Exception):
    """The run measured something else than it claims, so none of its figures count."""


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the nearest-rank percentile: the smallest value that at least ``percent`` % of the values do not exceed.

    Args:
        values: The sample, in any order.
        percent: Above 0, up to 100.

    Raises:
        ValueError: No values, or a percentage out of range. An empty sample has no percentile.
    """
    if not values:
        raise ValueError("no data")
    if not 0 < percent <= 100:
        raise ValueError(f"a percentile lies above 0 and up to 100, not at {percent}")
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * percent / 100)) - 1]


def median_ratio(values: Sequence[float], baselines: Sequence[float]) -> float:
    """Give the median of the ratios round by round, so that a machine that drifts between rounds cancels out."""
    return median(value / baseline for value, baseline in zip(values, baselines, strict=True))


def median_difference(values: Sequence[float], baselines: Sequence[float]) -> float:
    """Give the median of the differences round by round."""
    return median(value - baseline for value, baseline in zip(values, baselines, strict=True))


@dataclass(frozen=True)
class Figure:
    """One measured figure, with the bar it must not exceed where there is one."""

    area: str
    name: str
    target: str
    value: float
    unit: str
    at_most: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the bar is met; None where there is no bar."""
        return None if self.at_most is None else self.value <= self.at_most
