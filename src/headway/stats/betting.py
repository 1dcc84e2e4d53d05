"""F4, means of bounded values with few categories, such as stars: bets on inverse-probability-weighted outcomes.

With c the frozen mean of stable, xi = (1_B / pi - 1_A / (1 - pi)) (x - c) has mean theta, candidate minus stable. Bets
pay 1 + lambda (theta0 - xi) per observation; lambda is a fraction of what cannot lose everything. With pi the realised
share of a block, (1 - pi) E_A + pi E_B = 1 + lambda (theta0 - theta) <= 1 under H0: theta >= theta0, and the
inequality of the means makes the block's product at most 1 for fixed arm counts.

Guarantee: exact at every sample size; false alarm over all looks at most alpha at E >= 1/alpha. Assumption: one value
per independent unit, means constant inside a block, pi realised (or the true assignment probability where every unit is
observed). Source: Waudby-Smith & Ramdas, JRSSB 2024, arXiv 2010.09686; weighting: arXiv 2210.10768.

The test for promotion, H0: theta <= -m, is the same on negated values: -values, -center, theta0 = m.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.stats.counts import FloatArray, check_counts, log_mean_exp, resolve_shares

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Bets: the fraction of the wealth that the worst outcome would cost."""


def betting_log_factors(
    blocks: Sequence[Sequence[Any]],
    values: npt.ArrayLike,
    center: float,
    theta0: float = 0.0,
    fractions: npt.ArrayLike = FRACTIONS,
) -> FloatArray:
    """Price closed blocks: the log factor by which each multiplies the wealth of each bet.

    Factors of blocks add up in any order; a block's own counts must be complete, for its factor depends on its share.
    Guarantee, assumption and source: see the module.

    Args:
        blocks: rows (counts A, counts B, pi): how often stable and candidate had each value, and the candidate's
            share; None for the realised share.
        values: the value of each category, the whole possible range (bets depend on it), at least one.
        center: c, near the frozen mean of stable; a wrong one costs power, never validity.
        theta0: the difference tested, H0: theta >= theta0; minus the harm line.
        fractions: sizes of the bets, each in (0, 1).

    Returns:
        An array of shape (blocks, fractions). A block with one arm only, at its realised share, has factors 0.

    Example:
        >>> betting_log_factors([([1, 9], [4, 6], None)], [0, 1], 0.9, fractions=[0.1, 0.4]).round(4)
        array([[0.3083, 0.9537]])
    """
    support, bets = np.asarray(values, dtype=np.float64), np.atleast_1d(np.asarray(fractions, dtype=np.float64))
    if support.ndim != 1 or support.size == 0 or not np.isfinite([*support, center, theta0]).all():
        raise ValueError("Values must be a list of finite numbers; center and theta0 finite too.")
    if not ((bets > 0) & (bets < 1)).all():
        raise ValueError("Each fraction must be between 0 and 1, both excluded.")
    stable, candidate, given = _split(blocks, support.size)
    pi = resolve_shares(given, stable.sum(axis=1), candidate.sum(axis=1))
    one_armed = (pi == 0) | (pi == 1)
    share = np.where(one_armed, 0.5, pi)[:, None]
    deviation = support - center
    gain = np.stack([theta0 + deviation / (1 - share), theta0 - deviation / share], axis=1)  # block, arm, category
    worst = np.abs(gain).max(axis=(1, 2), keepdims=True)
    gain /= np.where(worst > 0, worst, 1.0)
    counts = np.stack([stable, candidate], axis=1)
    factors: FloatArray = np.einsum("nac,nacj->nj", counts, np.log1p(gain[..., None] * bets))
    if one_armed.any():
        factors[one_armed] = 0.0
    return factors


def betting_log_e(
    blocks: Sequence[Sequence[Any]],
    values: npt.ArrayLike,
    center: float,
    theta0: float = 0.0,
    fractions: npt.ArrayLike = FRACTIONS,
) -> float:
    """Weigh the evidence that the candidate's mean lies below the stable one by more than -theta0: the log E-value.

    Guarantee: if theta >= theta0, E ever reaches 1/alpha with probability at most alpha, however often one looks (at
    closed blocks); exact at every sample size. Assumption and source: see the module.

    Args:
        blocks: rows (counts A, counts B, pi); see ``betting_log_factors``.
        values: the value of each category.
        center: c, near the frozen mean of stable.
        theta0: the difference tested: minus the harm line.
        fractions: sizes of the bets, each in (0, 1).

    Returns:
        The natural log of E; 0 without data: no evidence.

    Raises:
        ValueError: counts that cannot be, or not one per value; a share outside [0, 1]; a fraction outside (0, 1).

    Example:
        >>> stable, candidate = (40, 60, 120, 400, 380), (3, 3, 2, 1, 1)
        >>> round(betting_log_e([(stable, candidate, 0.01)], values=[0, 0.25, 0.5, 0.75, 1], center=0.75), 4)
        1.7487
    """
    return float(log_mean_exp(betting_log_factors(blocks, values, center, theta0, fractions).sum(axis=0)))


def _split(blocks: Sequence[Sequence[Any]], categories: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Counts of stable, counts of the candidate, shares (nan for the realised one)."""
    if any(len(block) != 3 for block in blocks):
        raise ValueError("Blocks must be rows of (counts A, counts B, pi).")
    if any(len(arm) != categories for block in blocks for arm in block[:2]):
        raise ValueError(f"Each arm of a block needs {categories} counts, one per value.")
    counts = np.array([block[:2] for block in blocks], dtype=np.float64).reshape(len(blocks), 2, categories)
    check_counts(counts)
    return counts[:, 0], counts[:, 1], np.array([block[2] for block in blocks], dtype=np.float64)
