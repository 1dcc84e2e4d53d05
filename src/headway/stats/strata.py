"""Differences between the arms, stratum by stratum, added up in information time for the normal mixture (F1, F6).

A stratum is a period of constant share (and, where the assignment probability differs by it, a segment). Pooling the
arms over strata instead is Simpson's paradox: with a drifting mix of traffic it rolled back every good candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.stats.counts import FloatArray
from headway.stats.mixture import ConfidenceSequence, confidence_sequence
from headway.stats.ratio import KAPPA, MIN_UNITS, RatioStatistics, ratio_variance


@dataclass(frozen=True, slots=True)
class Contrast:
    """A difference in information time: its information I and W = I x difference. Add those of independent strata."""

    information: float = 0.0
    weighted_sum: float = 0.0

    def __add__(self, other: Contrast) -> Contrast:
        return Contrast(self.information + other.information, self.weighted_sum + other.weighted_sum)


class StratifiedEstimate(NamedTuple):
    """A difference over strata: its information I, W = I x difference, and the confidence sequence around it."""

    information: float
    weighted_sum: float
    interval: ConfidenceSequence


def ratio_contrast(
    stable: RatioStatistics,
    candidate: RatioStatistics,
    factor: float = 1.0,
    prior_var: float | tuple[float, float] | None = None,
    kappa: float = KAPPA,
    min_units: float = MIN_UNITS,
) -> Contrast:
    """Compare two arms in one stratum: d = R_B - factor R_A, weighted by its information 1 / var(d).

    Guarantee: the normal mixture on the sum over strata is valid asymptotically. Assumption: units independent,
    strata of different units (else ``clustered_contrast``). Source: as ``normal_mixture_log_e``; guards by simulation.

    Args:
        stable: sums of the stable arm (A); numbers, not arrays.
        candidate: sums of the candidate (B).
        factor: 1 for a difference; 1 + m to test against a relative margin m (then add nothing to W later).
        prior_var: s0^2 of ``ratio_variance``, one for both arms or one for each.
        kappa: units the prior counts for.
        min_units: units per arm below which the stratum contributes nothing.

    Returns:
        I and W; both 0, no data, with too few units or without any variance.

    Example:
        >>> arm = RatioStatistics.from_counts
        >>> ratio_contrast(arm(500, 352), arm(500, 340), prior_var=0.21)
        Contrast(information=1172.47..., weighted_sum=-28.13...)
    """
    prior_stable, prior_candidate = prior_var if isinstance(prior_var, tuple) else (prior_var, prior_var)
    before = ratio_variance(stable, prior_stable, kappa)
    after = ratio_variance(candidate, prior_candidate, kappa)
    variance = float(after.variance) + factor * factor * float(before.variance)
    enough = min(float(np.asarray(stable.n)), float(np.asarray(candidate.n))) >= min_units
    if not enough or not 0 < variance < np.inf:
        return Contrast()
    difference = float(after.ratio) - factor * float(before.ratio)
    return Contrast(1 / variance, difference / variance)


def stratified_confidence_sequence(
    strata: npt.ArrayLike,
    rho: float,
    alpha: float,
    prior_var: float | None = None,
    kappa: float = KAPPA,
    min_n: float = MIN_UNITS,
    *,
    two_sided: bool = True,
) -> StratifiedEstimate:
    """Enclose the difference of two rates, candidate minus stable, over strata, at all times at once.

    Guarantee: with probability at least 1 - alpha the interval holds the difference at every look, also when shares
    and base rates change between strata. Assumption: one observation per unit, independent units; asymptotic.
    Source: as ``normal_mixture_log_e``.

    Args:
        strata: one row (n_A, k_A, n_B, k_B) per stratum: observations and successes of stable and candidate.
        rho: scale of the alternatives, about twice the margin.
        alpha: error probability, in (0, 1).
        prior_var: p (1 - p) at the stable arm's frozen rate; None: no shrinkage.
        kappa: observations the prior counts for.
        min_n: observations per arm below which a stratum contributes nothing.
        two_sided: whether both limits hold together.

    Returns:
        I, W and the interval; (0, 0, (-inf, nan, inf)) where no stratum has enough: no data.

    Example:
        >>> stratified_confidence_sequence([(500, 352, 500, 340)], rho=0.06, alpha=0.05, prior_var=0.21).interval
        ConfidenceSequence(lower=-0.113..., estimate=-0.0239..., upper=0.0658...)
    """
    rows = np.asarray(strata, dtype=np.float64)
    if rows.size == 0:
        rows = np.zeros((0, 4))
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"Strata must be rows of (n_A, k_A, n_B, k_B), got an array of shape {rows.shape}.")
    stable = ratio_variance(RatioStatistics.from_counts(rows[:, 0], rows[:, 1]), prior_var, kappa)
    candidate = ratio_variance(RatioStatistics.from_counts(rows[:, 2], rows[:, 3]), prior_var, kappa)
    variance = np.asarray(stable.variance) + np.asarray(candidate.variance)
    usable = (np.minimum(rows[:, 0], rows[:, 2]) >= min_n) & (variance > 0) & (variance < np.inf)
    difference = (np.asarray(candidate.ratio) - np.asarray(stable.ratio))[usable]
    information = float((1 / variance[usable]).sum())
    weighted_sum = float((difference / variance[usable]).sum())
    interval = confidence_sequence(information, weighted_sum, rho, alpha, two_sided=two_sided)
    return StratifiedEstimate(information, weighted_sum, interval)


def clustered_contrast(stable: npt.ArrayLike, candidate: npt.ArrayLike, contrasts: list[Contrast]) -> Contrast:
    """Add up strata that share units: users who come back after the share has changed.

    The score of each hash bucket over all strata, L_b = sum_s I_s (e_bs^B / m_B,s - e_bs^A / m_A,s) with
    e_bs = y_bs - R_s m_bs, gives the variance of the whole, V = max(sum_b L_b^2, I); W I / V and I^2 / V take the
    place of W and I. With one stratum and independent users it changes next to nothing.

    Guarantee: the normal mixture on the result is valid asymptotically. Assumption: buckets are independent, and a
    user is in the same bucket in every stratum. Source: influence functions; measured in simulation.

    Args:
        stable: totals (y, m) per stratum and bucket, of shape (strata, buckets, 2).
        candidate: the same for the candidate; with a factor in the contrast, give the stable y times that factor.
        contrasts: one per stratum, from ``ratio_contrast``; those without information are left out.

    Returns:
        Information and weighted sum; both 0 where no stratum has information.

    Raises:
        ValueError: the shapes do not fit one another.

    Example:
        >>> stable, candidate = [[[3, 9], [7, 11]]] * 2, [[[1, 9], [8, 11]]] * 2  # twice the same two buckets
        >>> clustered_contrast(stable, candidate, [Contrast(100, -5), Contrast(100, -5)])
        Contrast(information=83.246..., weighted_sum=-4.162...)
    """
    before, after = np.asarray(stable, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 3 or before.shape[::2] != (len(contrasts), 2):
        raise ValueError("Bucket totals must have the shape (strata, buckets, 2), one contrast per stratum.")
    information = np.array([contrast.information for contrast in contrasts])
    total = Contrast(float(information.sum()), float(sum(contrast.weighted_sum for contrast in contrasts)))
    if total.information == 0:
        return Contrast()
    influence = information[:, None] * (_influences(after) - _influences(before))
    variance = max(float((influence.sum(axis=0) ** 2).sum()), total.information)
    scale = total.information / variance
    return Contrast(total.information * scale, total.weighted_sum * scale)


def _influences(buckets: FloatArray) -> FloatArray:
    """What each bucket adds to its stratum's ratio, (y - R m) / sum m."""
    y, m = buckets[..., 0], buckets[..., 1]
    denominator = np.maximum(m.sum(axis=1, keepdims=True), 1e-300)
    result: FloatArray = (y - y.sum(axis=1, keepdims=True) / denominator * m) / denominator
    return result
