"""F3, rare events: the ratio of two event rates from event counts alone.

Null hypothesis: lambda_B / lambda_A <= r0. Under it an event comes from the candidate with probability at most
p = pi r0 / (pi r0 + 1 - pi), pi being the candidate's share of the exposure at risk. Each bet names a larger ratio
r0 g (or smaller, g < 1, for H0: ratio >= r0) and pays q/p for an event in the candidate and (1-q)/(1-p) for one in
stable; what has no event pays 1. With pi the realised share of a block,
(1 - pi) E_A + pi E_B = 1 at the ratio r0, and the inequality of the means makes the block's product at most 1.

Guarantee: exact at every sample size; false alarm over all looks at most alpha at E >= 1/alpha. Assumption: a unit's
first event only, pi the realised share of interactions by units without an event so far, base rate constant inside a
block. Source: Lindon & Malek, NeurIPS 2022, arXiv 2011.03567; first events: Grunwald, Ly, Perez-Ortiz,
ter Schure 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.stats.counts import (
    BlockRows,
    FloatArray,
    check_alpha,
    check_positive,
    count_rows,
    log_mean_exp,
    resolve_shares,
)
from headway.stats.roots import find_root

HARM_RATIOS = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""Bets of the harm test: g, how many times r0 the ratio is."""

PROMOTE_EXPONENTS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.75)
"""Bets of the promotion test against a ratio r: g = r ** -exponent."""

SLOW_CALL_PROMOTE_RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Bets of the promotion test of slow calls (F5), where r0 is 1: g."""

_SMALLEST_RATIO, _LARGEST_RATIO = 1e-3, 1e3


class RatioInterval(NamedTuple):
    """Limits of a ratio that hold at all times at once; (0, inf) is no data."""

    lower: float
    upper: float


def event_ratio_log_factors(
    blocks: BlockRows, r0: npt.ArrayLike = 1.0, ratios: npt.ArrayLike = HARM_RATIOS
) -> FloatArray:
    """Price closed blocks: the log factor by which each multiplies the wealth of each bet.

    Factors of blocks add up in any order. Guarantee, assumption and source: see the module.

    Args:
        blocks: rows (x_A, x_B, pi): events of stable and candidate, and the candidate's share of the exposure at risk
            (it cannot be left out: counts of events do not tell it).
        r0: the ratio tested; positive. One per bet prices the bets of several tests at once.
        ratios: g of each bet; positive, not 1.

    Returns:
        An array of shape (blocks, ratios); 0 for a block without events.

    Example:
        >>> event_ratio_log_factors([(3, 5, 0.01)], ratios=[2.0, 10.0]).round(4)
        array([[ 3.3861, 10.8235]])
    """
    rows = count_rows(blocks, "x_A, x_B, pi")
    if np.isnan(rows[:, 2]).any():
        raise ValueError("Each block of events needs the candidate's share of the exposure at risk.")
    return _log_factors(rows[:, 0], rows[:, 1], resolve_shares(rows[:, 2], rows[:, 0], rows[:, 1]), r0, ratios)


def event_ratio_log_e(blocks: BlockRows, r0: float = 1.0, ratios: npt.ArrayLike = HARM_RATIOS) -> float:
    """Weigh the evidence that the rate ratio is beyond r0: the log E-value.

    Guarantee: if lambda_B / lambda_A <= r0 (>= r0 for ratios below 1), E ever reaches 1/alpha with probability at
    most alpha, however often one looks (at closed blocks); exact, from the first event. Assumption and source: see
    the module.

    Args:
        blocks: rows (x_A, x_B, pi), see ``event_ratio_log_factors``.
        r0: the ratio tested: 1 or the harm line; the tolerated ratio for promotion.
        ratios: g of each bet, all above 1 or all below 1.

    Returns:
        The natural log of E; 0 without events (E of rare events moves by events alone).

    Raises:
        ValueError: counts that cannot be, a share missing or outside [0, 1], ratios on both sides of 1.

    Example:
        >>> round(event_ratio_log_e([(3, 5, 0.01)]), 4)
        15.3998
        >>> margin = 1.5
        >>> round(event_ratio_log_e([(120, 118, 0.5)], margin, [margin**-a for a in PROMOTE_EXPONENTS]), 4)
        4.5213
    """
    return float(log_mean_exp(event_ratio_log_factors(blocks, r0, ratios).sum(axis=0)))


def event_floor_log_e(events: float, exposures: float, floor: float) -> float:
    """Weigh the evidence that the candidate's event rate is below an absolute floor: the log E-value.

    log E = x log(q/f) + (n - x) log((1-q)/(1-f)) at q = f/10. Guarantee: if the rate is f or more, E ever reaches
    1/alpha with probability at most alpha; exact. Assumption: first events among at-risk interactions, independent
    units. Source: the likelihood ratio of a Bernoulli rate (Wald).

    Args:
        events: x, first events of the candidate.
        exposures: n, its at-risk interactions, those with the events included.
        floor: f, in (0, 1).

    Returns:
        The natural log of E; 0 without exposures. No events among many exposures is evidence.

    Example:
        >>> round(event_floor_log_e(0, 5_000, 0.001), 4)
        4.5025
    """
    if not 0 < floor < 1:
        raise ValueError(f"A floor must be between 0 and 1, both excluded, got {floor}.")
    if not 0 <= events <= exposures < math.inf:
        raise ValueError("Events must be between 0 and the exposures, and exposures finite.")
    return events * math.log(0.1) + (exposures - events) * (math.log1p(-floor / 10) - math.log1p(-floor))


def event_ratio_confidence_sequence(
    blocks: BlockRows, alpha: float = 0.05, ratios: npt.ArrayLike = HARM_RATIOS
) -> RatioInterval:
    """Enclose the ratio of two event rates, candidate over stable, at all times at once.

    Guarantee: with probability at least 1 - alpha the interval holds the ratio at every look; each limit is the
    inversion of a one-sided test at alpha/2. Assumption and source: see the module.

    Args:
        blocks: rows (x_A, x_B, pi), see ``event_ratio_log_factors``.
        alpha: error probability, in (0, 1).
        ratios: bets g above 1 for the lower limit; their reciprocals are those for the upper one.

    Returns:
        Limits; with the smallest bet of 1.1 they come as near as 5 % to the ratio, however many events. They are
        looked for between 1e-3 and 1e3: a lower limit below that range is 0 and above it 1e3, an upper limit above it
        is infinite and below it 1e-3. Without events (0, inf): no data.

    Example:
        >>> event_ratio_confidence_sequence([(3, 5, 0.01)])
        RatioInterval(lower=15.981..., upper=inf)
    """
    check_alpha(alpha)
    rows = count_rows(blocks, "x_A, x_B, pi")
    above = np.atleast_1d(np.asarray(ratios, dtype=np.float64))
    if not (above > 1).all():
        raise ValueError("The bets of a confidence sequence must be ratios above 1.")
    if np.isnan(rows[:, 2]).any():
        raise ValueError("Each block of events needs the candidate's share of the exposure at risk.")
    pi = resolve_shares(rows[:, 2], rows[:, 0], rows[:, 1])
    shares, index = np.unique(pi, return_inverse=True)
    x_a: FloatArray = np.bincount(index, rows[:, 0], shares.size).astype(np.float64)
    x_b: FloatArray = np.bincount(index, rows[:, 1], shares.size).astype(np.float64)

    def excess(log_r0: float, bets: FloatArray) -> float:
        factors = _log_factors(x_a, x_b, shares, math.exp(log_r0), bets)
        return float(log_mean_exp(factors.sum(axis=0))) - math.log(2 / alpha)

    # The evidence for "above r0" falls as r0 grows, that for "below r0" rises.
    low, high = math.log(_SMALLEST_RATIO), math.log(_LARGEST_RATIO)
    lower, upper = 0.0, math.inf
    if excess(low, above) >= 0:
        lower = _limit(lambda r: excess(r, above), low, high, _LARGEST_RATIO)
    if excess(high, 1 / above) >= 0:
        upper = _limit(lambda r: excess(r, 1 / above), high, low, _SMALLEST_RATIO)
    return RatioInterval(lower, upper)


def _limit(excess: Callable[[float], float], start: float, end: float, beyond: float) -> float:
    """Where the evidence stops to suffice on the way from start to end; ``beyond`` if it suffices even at the end."""
    return beyond if excess(end) >= 0 else math.exp(find_root(excess, start, end))


def _log_factors(
    x_a: FloatArray, x_b: FloatArray, pi: FloatArray, r0: npt.ArrayLike, ratios: npt.ArrayLike
) -> FloatArray:
    bets, null = np.atleast_1d(np.asarray(ratios, dtype=np.float64)), np.asarray(r0, dtype=np.float64)
    check_positive("The ratio r0", null)
    check_positive("Each ratio", bets)
    if not null.shape and not ((bets > 1).all() or (bets < 1).all()):
        raise ValueError("The ratios of a test must be all above 1 or all below 1.")
    if null.shape not in ((), bets.shape):
        raise ValueError("There must be one r0, or one per bet.")
    share = pi[:, None]
    p = share * null / (share * null + (1 - share))
    # log(q/p) = log g - d and log((1-q)/(1-p)) = -d with d = log(1 + p (g - 1)).
    spread = np.log1p(p * (bets - 1))
    factors: FloatArray = x_b[:, None] * np.log(bets) - (x_a + x_b)[:, None] * spread
    return factors
