"""F7, the sample ratio: whether units arrive in the arms at the shares that were set."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headway.stats.counts import FloatArray, check_counts, check_positive

CONCENTRATION = 1000.0
"""How many units' worth of belief the mixture puts on shares near those that were set."""


def sample_ratio_log_e(n: npt.ArrayLike, p: npt.ArrayLike, conc: float = CONCENTRATION) -> float:
    """Weigh the evidence that units do not arrive at the shares set: the log E-value of a sample-ratio mismatch.

    Guarantee: with units assigned at the shares p, E ever reaches 1/alpha with probability at most alpha, however
    often one looks; exact. Assumption: independent units, each counted once per rollout, at the shares of its
    first exposure. The alarm is at E >= 1000. Source: Lindon & Malek, NeurIPS 2022, arXiv 2011.03567.

    Args:
        n: units per arm, or one row of them per stratum.
        p: the shares set, positive and adding up to 1; a row per stratum, or one for all.
        conc: concentration of the Dirichlet mixture; smaller looks for larger deviations.

    Returns:
        The natural log of E, the product over the strata; 0 without units: no evidence.

    Raises:
        ValueError: counts that cannot be, shares that are not positive or do not add up to 1, shapes that do not fit.

    Example:
        >>> round(sample_ratio_log_e([505, 495], [0.5, 0.5]), 4)
        -0.3217
        >>> round(sample_ratio_log_e([(930, 70), (480, 520)], [(0.95, 0.05), (0.5, 0.5)]), 4)
        1.6043
    """
    counts, shares = np.asarray(n, dtype=np.float64), np.asarray(p, dtype=np.float64)
    check_counts(counts)
    check_positive("conc", conc)
    if counts.ndim not in (1, 2) or shares.ndim > counts.ndim or shares.shape[-1:] != counts.shape[-1:]:
        raise ValueError(f"Counts of shape {counts.shape} and shares of shape {shares.shape} do not fit.")
    if shares.ndim == 2 and shares.shape != counts.shape:
        raise ValueError(f"Counts of shape {counts.shape} and shares of shape {shares.shape} do not fit.")
    if not (shares > 0).all() or not np.allclose(shares.sum(axis=-1), 1.0, rtol=0, atol=1e-6):
        raise ValueError("Shares must be positive and add up to 1.")
    return float(dirichlet_multinomial_log_e(counts, shares / shares.sum(axis=-1, keepdims=True), conc).sum())


def dirichlet_multinomial_log_e(counts: FloatArray, shares: FloatArray, concentration: float) -> FloatArray:
    """Compare a Dirichlet mixture of shares around the given ones with the given ones: log E per row of counts.

    lgamma(S) - lgamma(S + n) + sum_i [lgamma(a_i + n_i) - lgamma(a_i) - n_i log p_i] with a_i = S p_i, written so that
    counts of 10^9 lose no digits: by Stirling's formula and its remainder.

    Args:
        counts: n_i on the last axis.
        shares: p_i, positive, adding up to 1; broadcast against the counts.
        concentration: S.

    Returns:
        log E, one dimension less than the counts.
    """
    total = counts.sum(axis=-1, keepdims=True)
    whole = concentration + total
    prior, posterior = concentration * shares, concentration * shares + counts
    excess = (counts - total * shares) / (whole * shares)
    terms = posterior * np.log1p(excess) - np.log(posterior / prior) / 2
    terms += _stirling_remainder(posterior) - _stirling_remainder(prior)
    ends = np.log(whole / concentration) / 2 - _stirling_remainder(whole)
    ends += _stirling_remainder(np.float64(concentration))
    result: FloatArray = terms.sum(axis=-1) + ends[..., 0]
    return result


def _stirling_remainder(z: FloatArray | np.float64) -> FloatArray:
    """lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2), without cancellation for large z."""
    square = 1 / (z * z)
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / z
    if (z > 12).all():
        return np.asarray(series)
    from scipy.special import gammaln  # noqa: PLC0415 - slow to load; gateways and commands never need it

    direct = gammaln(z) - ((z - 0.5) * np.log(z) - z + math.log(2 * math.pi) / 2)
    return np.where(z > 12, series, direct)
