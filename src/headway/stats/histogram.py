"""Log-histograms: counts of a positive quantity in bins of constant relative width, mergeable by adding."""

from __future__ import annotations

import math
from collections.abc import Iterable

GAMMA = 1.02
"""Ratio of a bin's edges: a quantile read from the histogram is off by at most 1 %."""

_SMALLEST = 1e-6
_LOG_GAMMA = math.log(GAMMA)


def log_histogram_bin(x: float, gamma: float = GAMMA) -> int:
    """Number the bin of a value: bin i holds gamma^(i-1) < x <= gamma^i.

    Guarantee: gamma^(i - 1/2) is off by at most a factor of the root of gamma, 1 % for 1.02. Values up to 1e-6, zero
    and negative ones included, share the lowest bin.

    Raises:
        ValueError: the value is infinite or not a number, or gamma is not above 1.

    Example:
        >>> log_histogram_bin(1.0), log_histogram_bin(250.0)
        (0, 279)
    """
    if not x < math.inf or not gamma > 1:
        raise ValueError(f"A bin needs a finite value and a gamma above 1, got {x} and {gamma}.")
    return math.ceil(math.log(max(x, _SMALLEST)) / math.log(gamma))


def log_histogram_bins(values: Iterable[float]) -> list[int]:
    """Number the bins of many values, with the usual gamma; see ``log_histogram_bin``."""
    log, ceil = math.log, math.ceil
    return [ceil(log(x if x > _SMALLEST else _SMALLEST) / _LOG_GAMMA) for x in values]  # noqa: FURB136 - max() is slow
