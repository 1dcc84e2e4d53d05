"""F8, change of a rate on a live stream: a mixture e-Shiryaev-Roberts detector, minute by minute.

Source: Shin, Ramdas, Rinaldo, NEJSDS 2023, arXiv 2203.03532.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headway.stats.counts import FloatArray, check_counts, check_positive, log_mean_exp

ODDS = (1.3, 1.6, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Bets: how many times the baseline's the odds are after the change."""


def detector_step(
    log_state: npt.ArrayLike,
    bad: npt.ArrayLike,
    total: npt.ArrayLike,
    p: npt.ArrayLike,
    odds: npt.ArrayLike = ODDS,
    phi: float = 1.0,
) -> FloatArray:
    """Take one more minute into a detector: M_j <- L_j (1 + M_j), in logs; ``log_mean_exp`` of it against log A.

    Guarantee, assumption and source: see ``change_detector``.

    Args:
        log_state: log M_j on the last axis, one per bet; -inf at the start. Leading axes are detectors side by side.
        bad: bad events of the minute; a number, or one per detector.
        total: all events of the minute.
        p: baseline rate of the minute, in (0, 1).
        odds: bets, each above 1 (below 1: a detector of a fall).
        phi: variance over that of a Bernoulli stream; 1 is exact, more is a heuristic.

    Returns:
        The new log M_j, in the shape of ``log_state``.

    Example:
        >>> detector_step([-float("inf")], bad=1, total=100, p=0.005, odds=[2.0]).round(4)
        array([0.1944])
    """
    bets = np.atleast_1d(np.asarray(odds, dtype=np.float64))
    hits, events = np.asarray(bad, dtype=np.float64)[..., None], np.asarray(total, dtype=np.float64)[..., None]
    rate = np.asarray(p, dtype=np.float64)[..., None]
    _check(hits, events, rate, bets, phi)
    return _step(np.asarray(log_state, dtype=np.float64), _log_ratio(hits, events, rate, bets) / phi)


def change_detector(
    minutes: npt.ArrayLike,
    p: npt.ArrayLike,
    odds: npt.ArrayLike = ODDS,
    phi: float = 1.0,
) -> FloatArray:
    """Watch a stream of counts for a rate that has risen above its baseline: the log statistic after each minute.

    L_j = (q_j/p)^(k/phi) ((1-q_j)/(1-p))^((n-k)/phi) with q_j of odds_j times the baseline's odds;
    M_j <- L_j (1 + M_j). Alarm where mean_j M_j >= A, that is where the result reaches log A.

    Guarantee: with no change an alarm comes after A minutes or more on average. Assumption: the true rate is at or
    below p in every minute (give an upper seasonal profile) and events are independent; phi > 1 for over-dispersed
    streams is a heuristic. Source: see the module.

    Args:
        minutes: rows (k, n): bad events and all events of each minute.
        p: baseline rate, in (0, 1): one number or one per minute.
        odds: bets, each above 1 (below 1: a detector of a fall).
        phi: variance over that of a Bernoulli stream, positive.

    Returns:
        The log of the mean over j of M_j, one per minute; empty without minutes.

    Raises:
        ValueError: counts that cannot be, a baseline outside (0, 1), odds of 1, a phi that is not positive.

    Example:
        >>> change_detector([(0, 100), (1, 100), (9, 100)], 0.005).round(4)
        array([-0.9419,  0.1974, 15.5633])
    """
    rows = np.asarray(minutes, dtype=np.float64)
    if rows.size == 0:
        rows = np.zeros((0, 2))
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ValueError(f"Minutes must be rows of (k, n), got an array of shape {rows.shape}.")
    bets = np.atleast_1d(np.asarray(odds, dtype=np.float64))
    rates = np.asarray(p, dtype=np.float64)
    if rates.ndim > 1 or (rates.ndim == 1 and rates.size != rows.shape[0]):
        raise ValueError(f"The baseline must be one rate, or one for each of the {rows.shape[0]} minutes.")
    rates = np.broadcast_to(rates, rows.shape[:1])[:, None]
    _check(rows[:, :1], rows[:, 1:], rates, bets, phi)
    increments = _log_ratio(rows[:, :1], rows[:, 1:], rates, bets) / phi
    states = np.empty_like(increments)
    state = np.full(bets.size, -np.inf)
    for minute, increment in enumerate(increments):
        states[minute] = state = _step(state, increment)
    return log_mean_exp(states)


def _log_ratio(bad: FloatArray, total: FloatArray, p: FloatArray, odds: FloatArray) -> FloatArray:
    ratio: FloatArray = bad * np.log(odds) - total * np.log1p(p * (odds - 1))
    return ratio


def _step(log_state: FloatArray, increment: FloatArray) -> FloatArray:
    state: FloatArray = increment + np.logaddexp(0.0, log_state)
    return state


def _check(bad: FloatArray, total: FloatArray, p: FloatArray, odds: FloatArray, phi: float) -> None:
    check_counts(bad)
    check_counts(total)
    check_positive("Each of the odds", odds)
    check_positive("phi", phi)
    if (bad > total).any():
        raise ValueError("There cannot be more bad events than events.")
    if not ((p > 0) & (p < 1)).all():
        raise ValueError("A baseline rate must be between 0 and 1, both excluded.")
    if (odds == 1).any():
        raise ValueError("Odds of 1 are no bet.")
