"""F2, two rates: the safe test of a 2x2 table, block by block.

Null hypothesis: p_B >= p_A - h, candidate B not worse than stable A by more than h. Each bet j names an alternative
(a, b) = (p0, p0 - h - delta_j) and pays the likelihood ratio of it to the point of the null that is nearest to it (its
reverse information projection). With pi the realised share n_B / (n_A + n_B) of a block, every null has
(1 - pi) E_A + pi E_B <= 1 per observation, hence by the inequality of the means E_A^n_A E_B^n_B <= 1 for fixed counts.

Guarantee: exact at every sample size; false alarm over all looks at most alpha at E >= 1/alpha. Assumption: one
value per independent unit, a base rate that is constant inside a block (it may change between blocks), pi realised
(or the true assignment probability where every unit is observed). Source: Turner, Ly, Grunwald, JSPI 2024,
arXiv 2106.02693.

The test for promotion, H0: p_B <= p_A - m, is the same on swapped outcomes: failures for successes, 1 - p0 for p0, and
h = -m.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.stats.counts import BlockRows, FloatArray, check_positive, count_rows, log_mean_exp, resolve_shares

HARM_MULTIPLES = (1 / 3, 2 / 3, 1.0, 5 / 3, 8 / 3, 4.0, 7.0, 12.0)
"""Bets of the harm test: delta as multiples of the margin."""

PROMOTE_MULTIPLES = (0.5, 1.0, 1.5, 2.0, 4.0)
"""Bets of the promotion test: delta as multiples of min(tolerance, 0.1)."""

_EDGE = 1e-9


class NullPoint(NamedTuple):
    """The point (q_A, q_B) of a null hypothesis."""

    stable: float
    candidate: float


def reverse_information_projection(a: float, b: float, pi: float, h: float = 0.0) -> NullPoint:
    """Find the rates under H0: p_B >= p_A - h that are hardest to tell from the alternative (a, b).

    They minimise (1 - pi) kl(a | q_A) + pi kl(b | q_B) over the null; for an alternative outside of it that is on the
    border q_B = q_A - h. An alternative inside the null is its own projection. Source and use: see the module.

    Args:
        a: the alternative's rate in the stable arm, in [0, 1], clipped to [1e-9, 1 - 1e-9].
        b: its rate in the candidate, likewise.
        pi: the candidate's share, in [0, 1].
        h: harm line, in (-1, 1); negative for the promotion test.

    Returns:
        The null point (q_A, q_B).

    Example:
        >>> reverse_information_projection(0.7, 0.62, pi=0.5, h=0.03)
        NullPoint(stable=0.67553..., candidate=0.64553...)
    """
    _check_rates(a, b)
    _check_line(h)
    if not 0 <= pi <= 1:
        raise ValueError(f"The candidate's share must be between 0 and 1, got {pi}.")
    left, right = np.array([_clip(a)]), np.array([_clip(b)])
    step, rest = _project(left, right, np.array([pi]), h)
    return NullPoint(float((left - step)[0]), float((right + rest)[0]))


def two_sample_log_factors(blocks: BlockRows, p0: float, deltas: npt.ArrayLike, h: float = 0.0) -> FloatArray:
    """Price closed blocks: the log factor by which each multiplies the wealth of each bet.

    Factors of blocks add up in any order; a block's own counts must be complete, for its factor depends on its share.
    Guarantee, assumption and source: see the module.

    Args:
        blocks: rows (n_A, k_A, n_B, k_B, pi): observations and successes of stable and candidate, and the candidate's
            share; None for the realised share.
        p0: the stable arm's frozen rate.
        deltas: distances of the alternatives beyond h, positive.
        h: harm line, in (-1, 1).

    Returns:
        An array of shape (blocks, deltas). A block with one arm only, at its realised share, has factors 0: it says
        nothing. So has a bet whose alternative lies within the null (p0 <= h: no harm is possible).

    Example:
        >>> two_sample_log_factors([(9, 6, 11, 5, None)], 0.7, [0.05, 0.1]).round(4)
        array([[0.2059, 0.3405]])
    """
    rows = count_rows(blocks, "n_A, k_A, n_B, k_B, pi")
    distances = np.atleast_1d(np.asarray(deltas, dtype=np.float64))
    check_positive("Each delta", distances)
    _check_rates(p0)
    _check_line(h)
    n_a, k_a, n_b, k_b = rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]
    if (k_a > n_a).any() or (k_b > n_b).any():
        raise ValueError("There cannot be more successes than observations.")
    pi = resolve_shares(rows[:, 4], n_a, n_b)
    one_armed = (pi == 0) | (pi == 1)
    a = _clip(p0)
    b = np.clip(p0 - h - distances, _EDGE, 1 - _EDGE)
    step, rest = _project(np.full_like(b, a), b, np.where(one_armed, 0.5, pi)[:, None], h)
    factors: FloatArray = -(
        k_a[:, None] * np.log1p(-step / a)
        + (n_a - k_a)[:, None] * np.log1p(step / (1 - a))
        + k_b[:, None] * np.log1p(rest / b)
        + (n_b - k_b)[:, None] * np.log1p(-rest / (1 - b))
    )
    if one_armed.any():
        factors[one_armed] = 0.0
    return factors


def two_sample_log_e(blocks: BlockRows, p0: float, deltas: npt.ArrayLike, h: float = 0.0) -> float:
    """Weigh the evidence that the candidate's rate is below the stable arm's by more than h: the log E-value.

    Guarantee: if p_B >= p_A - h, E ever reaches 1/alpha with probability at most alpha, however often one looks (at
    closed blocks); exact at every sample size. Assumption and source: see the module.

    Args:
        blocks: rows (n_A, k_A, n_B, k_B, pi); pi None for the realised share. See ``two_sample_log_factors``.
        p0: the stable arm's frozen rate; a wrong one costs power, never validity.
        deltas: distances of the alternatives beyond h: margin x ``HARM_MULTIPLES``.
        h: harm line, in (-1, 1).

    Returns:
        The natural log of E; 0 without data: no evidence.

    Raises:
        ValueError: counts that cannot be, a share outside [0, 1], a delta that is not positive.

    Example:
        >>> round(two_sample_log_e([(500, 350, 500, 290, 0.5)], 0.7, [0.01, 0.05, 0.12]), 4)
        6.8217
        >>> two_sample_log_e([], 0.7, [0.01, 0.05, 0.12])
        0.0
    """
    return float(log_mean_exp(two_sample_log_factors(blocks, p0, deltas, h).sum(axis=0)))


def _project(a: FloatArray, b: FloatArray, pi: FloatArray, h: float) -> tuple[FloatArray, FloatArray]:
    """How far the null point lies below a, and how far above b: q_A = a - x, q_B = b + y with x + y = a - b - h.

    Both are 0 for an alternative within the null, so that all its factors become 1.
    """
    gap = np.maximum(a - b - h, 0.0)
    if h == 0:
        return pi * gap, (1 - pi) * gap
    if (
        b.max(initial=0.0) > 1 - 1e-6
    ):  # 1 - q_B may be tiny: look for y, the same problem with arms and outcomes swapped
        y = _root(1 - b, 1 - a, gap, 1 - pi, h)
        return gap - y, y
    x = _root(a, b, gap, pi, h)
    return x, gap - x


def _root(a: FloatArray, b: FloatArray, gap: FloatArray, pi: FloatArray, h: float) -> FloatArray:
    """Solve (1 - pi) x q_B (1 - q_B) = pi (gap - x) q_A (1 - q_A), where the divergence to the null is smallest.

    It is the one root in the feasible range of -x^3 + c2 x^2 + c1 x + c0: Newton steps, kept in a bracket.
    """
    end = b + gap
    va, ve = a * (1 - a), end * (1 - end)
    c2 = (1 - pi) * (2 * end - 1) + pi * (gap + (2 * a - 1))
    c1 = (1 - pi) * ve + pi * (va - gap * (2 * a - 1))
    c0 = -pi * va * gap
    low: FloatArray = np.broadcast_to(np.maximum(0.0, a - h - 1), c0.shape)  # q_B <= 1
    high: FloatArray = np.broadcast_to(np.minimum(gap, a), c0.shape)  # q_A >= 0
    x: FloatArray = np.clip(-c0 / ((1 - pi) * b * (1 - b) + pi * va), low, high)
    for turn in range(200):
        value = ((c2 - x) * x + c1) * x + c0
        slope = (2 * c2 - 3 * x) * x + c1
        following = x - value / np.maximum(slope, 1e-30)
        outside = (following < low) | (following > high)
        if turn >= 8 or outside.any():
            low, high = np.where(value < 0, x, low), np.where(value > 0, x, high)
            outside = (following < low) | (following > high)
            following = np.where(outside, (low + high) / 2, following)
        # Newton's error squares with each step: after one of 1e-9 nothing is left to gain.
        done = (np.abs(following - x) <= 1e-9 * x).all()
        x = following
        if done:
            break
    return x


def _clip(rate: float) -> float:
    return min(max(float(rate), _EDGE), 1 - _EDGE)


def _check_rates(*rates: float) -> None:
    if not all(0 <= rate <= 1 for rate in rates):
        raise ValueError("A rate must be between 0 and 1.")


def _check_line(h: float) -> None:
    if not -1 < h < 1:
        raise ValueError(f"The harm line h must be between -1 and 1, both excluded, got {h}.")
