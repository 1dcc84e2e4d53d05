"""F1, the normal mixture: sequential tests and confidence sequences for a difference, in information time.

With an estimate of a difference theta from data worth information I (the inverse of its variance) and W = I x estimate,
the score against theta0 is U = W - theta0 I. Without a true difference from theta0 it behaves like a Brownian motion
at time I, and mixing the likelihood ratio over normal alternatives of scale rho gives an E-process.

Guarantee: valid at all times at once (Ville's inequality). Assumption: U is approximately normal given I, so it is
asymptotic; it fails for small samples with a raw plug-in variance (shrink it: ``ratio_variance``) and for rare
events (use ``event_ratio_log_e``).

Source: Robbins 1970; Johari et al., arXiv 1512.04922; Waudby-Smith et al., Annals of Statistics 2024, arXiv 2103.06476.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.stats.counts import FloatArray, check_alpha, check_positive
from headway.stats.roots import find_root


class ConfidenceSequence(NamedTuple):
    """An interval that holds at all times at once, around its estimate; (-inf, nan, inf) is no data."""

    lower: float
    estimate: float
    upper: float


def normal_mixture_log_e(
    score: npt.ArrayLike, information: npt.ArrayLike, rho: float, *, two_sided: bool = False
) -> float | FloatArray:
    """Weigh the evidence against theta = theta0 (two-sided) or theta <= theta0 (one-sided): the log E-value.

    Guarantee: with no difference beyond theta0, the probability that E ever reaches 1/alpha, however often one
    looks, is at most alpha. Assumption and source: see the module.

    Args:
        score: U = W - theta0 I; positive speaks for theta > theta0.
        information: I, 0 or more. Where it is 0 the score must be 0 too and log E is 0: no data, no evidence.
        rho: scale of the alternatives, in the unit of theta; about twice the margin. Positive.
        two_sided: test theta = theta0 instead of theta <= theta0.

    Returns:
        The natural log of E, a float for numbers and an array for arrays (they are broadcast).

    Raises:
        ValueError: rho is not positive, information is negative, or there is a score without information.

    Example:
        >>> round(normal_mixture_log_e(400.0, 10_000.0, 0.06, two_sided=True), 5)
        5.97832
    """
    u, i = np.asarray(score, dtype=np.float64), _informations(information)
    check_positive("rho", rho)
    if not np.isfinite(u).all() or ((i == 0) & (u != 0)).any():
        raise ValueError("A score must be finite, and 0 where there is no information.")
    spread = rho * rho * i
    z = rho * u / np.sqrt(1 + spread)
    exponent = z * z / 2
    if not two_sided:
        from scipy.special import erfcx, log_ndtr  # noqa: PLC0415 - slow to load; gateways and commands never need it

        # z^2/2 + log(2 Phi(z)); for z < 0 the two terms cancel, and the scaled erfc says what is left.
        left = np.log(erfcx(np.maximum(-z, 0) / math.sqrt(2)))
        exponent = np.where(z < 0, left, exponent + math.log(2) + log_ndtr(np.maximum(z, 0)))
    log_e = exponent - np.log1p(spread) / 2
    return log_e if np.ndim(log_e) else float(log_e)


def normal_mixture_boundary(
    information: npt.ArrayLike, rho: float, alpha: float, *, two_sided: bool = False
) -> float | FloatArray:
    """Tell how large the score U must be to reject at level alpha, at a given information.

    Guarantee: the score of a true null ever crosses the boundary with probability at most alpha (the absolute score,
    two-sided). The two-sided boundary is exactly where E reaches 1/alpha; the one-sided one lies slightly beyond it
    (from Phi(x) >= 1 - exp(-x^2/2)/2), in exchange for a closed form. Assumption and source: see the module.

    Args:
        information: I, 0 or more.
        rho: scale of the alternatives, in the unit of theta.
        alpha: error probability, in (0, 1).
        two_sided: for |U| instead of U.

    Returns:
        The boundary, in the unit of U: a float for a number and an array for an array.

    Example:
        >>> round(normal_mixture_boundary(10_000.0, rho=0.06, alpha=0.05), 2)
        290.88
    """
    check_alpha(alpha)
    check_positive("rho", rho)
    spread = 1 + rho * rho * _informations(information)
    log_odds = np.log(np.sqrt(spread) / alpha) if two_sided else np.log(0.5 + np.sqrt(spread) / (2 * alpha))
    boundary = np.sqrt(2 * spread * log_odds) / rho
    return boundary if np.ndim(boundary) else float(boundary)


def information_to_decide(theta: float, rho: float, alpha: float) -> float:
    """Foretell the information at which a true difference theta meets the one-sided boundary: theta I = boundary(I).

    This is a plan, not a guarantee: about half of the runs decide earlier. Divide by the information that one
    observation brings to get observations: for a rate p at a share w it is w (1 - w) / (p (1 - p)).

    Args:
        theta: distance of the truth from the value tested, in the direction of the alternative.
        rho: scale of the alternatives, in the unit of theta.
        alpha: error probability, in (0, 1).

    Returns:
        I; infinite for a theta that is 0 or negative: such a difference never decides.

    Example:
        >>> round(information_to_decide(0.05, rho=0.06, alpha=0.05), 2)
        3108.73
    """
    check_alpha(alpha)
    check_positive("rho", rho)
    if math.isnan(theta):
        raise ValueError("theta must be a number.")
    if theta <= 0:
        return math.inf

    def shortfall(log_information: float) -> float:
        # On the log scale, where the root is found to the same relative accuracy at every size.
        boundary = float(normal_mixture_boundary(math.exp(log_information), rho, alpha))
        return math.log(boundary) - math.log(theta) - log_information

    guess = 2 * math.log(1 / theta)
    low, high = guess, guess
    while shortfall(low) < 0:
        low -= 4.0
    while shortfall(high) > 0:
        high += 4.0
    return math.exp(find_root(shortfall, low, high)) if high > low else math.exp(low)


def confidence_sequence(
    information: float, weighted_sum: float, rho: float, alpha: float, *, two_sided: bool = True
) -> ConfidenceSequence:
    """Enclose a difference at all times at once, given its information I and W = I x estimate.

    Guarantee: with probability at least 1 - alpha the interval holds the true difference at every look (two-sided:
    both limits; otherwise each limit by itself). It is made of the values that the test at the same rho has not
    rejected. Assumption and source: see the module.

    Args:
        information: I, 0 or more.
        weighted_sum: W, the sum over strata of information x difference; 0 where I is 0.
        rho: scale of the alternatives, in the unit of the difference.
        alpha: error probability, in (0, 1).
        two_sided: whether the two limits hold together.

    Returns:
        Lower limit, estimate, upper limit; (-inf, nan, inf) without information: no data.

    Example:
        >>> confidence_sequence(0.0, 0.0, rho=0.06, alpha=0.05)
        ConfidenceSequence(lower=-inf, estimate=nan, upper=inf)
    """
    radius = float(normal_mixture_boundary(information, rho, alpha, two_sided=two_sided))
    if not math.isfinite(weighted_sum) or (information == 0 and weighted_sum != 0):
        raise ValueError("A weighted sum must be finite, and 0 where there is no information.")
    if information == 0:
        return ConfidenceSequence(-math.inf, math.nan, math.inf)
    estimate = weighted_sum / information
    return ConfidenceSequence(estimate - radius / information, estimate, estimate + radius / information)


def _informations(information: npt.ArrayLike) -> FloatArray:
    values = np.asarray(information, dtype=np.float64)
    if not ((values >= 0) & (values < math.inf)).all():
        raise ValueError("Information must be finite and not negative.")
    return values
