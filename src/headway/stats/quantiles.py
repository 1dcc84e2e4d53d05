"""F5, quantiles for display: which ranks enclose a quantile, at all times at once.

Decisions on quantiles go by slow calls, ``event_ratio_log_e`` at frozen thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.stats.allocation import dirichlet_multinomial_log_e
from headway.stats.counts import FloatArray, check_alpha, check_positive

CONCENTRATION = 100.0
"""How many observations' worth of belief the mixture puts on ranks near the quantile."""


class RankBounds(NamedTuple):
    """Counts that place a quantile: at most ``low`` at or below x prove it above x, ``high`` or more at or below x."""

    low: int
    high: int


def quantile_rank_bounds(n: int, p: float, alpha: float, s: float = CONCENTRATION) -> RankBounds:
    """Bound a quantile by ranks: how few, or how many, of n values at or below x place the p-quantile above x or not.

    They are where the beta-binomial mixture B(sp + k, s(1-p) + n - k) / B(sp, s(1-p)) p^-k (1-p)^-(n-k) reaches
    1/alpha.

    Guarantee: each bound is wrong at some look, however many there are, with probability at most alpha; exact.
    Assumption: independent values of one distribution. Source: Howard et al., Annals of Statistics 2021; Howard &
    Ramdas, Bernoulli 28(3) 2022.

    Args:
        n: number of values.
        p: the quantile, in (0, 1): 0.95 for the 95th percentile.
        alpha: error probability of each bound, in (0, 1); half of it for an interval.
        s: concentration of the mixture; larger is tighter at large n.

    Returns:
        ``low``: count(<= x) <= low proves the quantile above x; -1 where no count does.
        ``high``: count(<= x) >= high proves it at or below x; n + 1 where no count does.

    Example:
        >>> quantile_rank_bounds(10_000, 0.95, 0.025)
        RankBounds(low=9421, high=9574)
        >>> quantile_rank_bounds(0, 0.95, 0.025)
        RankBounds(low=-1, high=1)
    """
    check_alpha(alpha)
    check_positive("s", s)
    if not 0 < p < 1:
        raise ValueError(f"A quantile must be between 0 and 1, both excluded, got {p}.")
    if n < 0 or int(n) != n:
        raise ValueError(f"The number of values must be a whole number, 0 or more, got {n}.")
    shares = np.array([p, 1 - p])

    def proves(below: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        counts: FloatArray = np.stack([below, n - below], axis=-1).astype(np.float64)
        result: npt.NDArray[np.bool_] = dirichlet_multinomial_log_e(counts, shares, s) >= math.log(1 / alpha)
        return result

    # The mixture is convex in k with its minimum near n p, where it proves nothing.
    middle = min(max(round(n * p), 0), n)
    low = _last(proves, middle)
    high = n - _last(lambda above: proves(n - above), n - middle)
    return RankBounds(low, high)


def _last(holds: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]], end: int) -> int:
    """The last number in 0 .. end - 1 for which something holds that ends to hold somewhere there; -1 if none."""
    start = -1
    while end - start > 1:
        probes = np.unique(np.linspace(start, end, 34).astype(np.int64)[1:-1])
        probes = probes[(probes > start) & (probes < end)]
        true = int(holds(probes).sum())
        start, end = (
            int(probes[true - 1]) if true else start,
            int(probes[true]) if true < probes.size else end,
        )
    return start
