"""Blocks of counts and means of E-values: what the E-processes share.

An E-process here is a mean over a grid of bets; each bet is a product over blocks. So the state of a process is one
number per bet, its log wealth: add the log factors of every block that has closed, take ``log_mean_exp`` to read it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BlockRows = npt.ArrayLike | Sequence[Sequence[float | None]]


def log_mean_exp(log_wealth: npt.ArrayLike) -> FloatArray:
    """Read an E-process: the log of the mean of E-values, over the last axis, from their logs.

    The mean of E-values is an E-value whatever their dependence.

    Args:
        log_wealth: natural logs, one per bet on the last axis.

    Returns:
        The log of the mean; an array of one dimension less (of none for a vector: ``float`` makes it a number).

    Example:
        >>> float(log_mean_exp([0.0, 0.0, 0.0])), round(float(log_mean_exp([5000.0, 0.0])), 4)
        (0.0, 4999.3069)
    """
    values = np.asarray(log_wealth, dtype=np.float64)
    if values.shape[-1:] in ((), (0,)):
        raise ValueError("A mean of E-values needs at least one bet.")
    top = values.max(axis=-1, keepdims=True)
    mean = np.exp(values - top).mean(axis=-1)
    result: FloatArray = np.asarray(top[..., 0] + np.log(mean))
    return result


def count_rows(blocks: BlockRows, columns: str) -> FloatArray:
    """Check blocks given as rows of counts with a share at the end.

    Args:
        blocks: one row per block; the last column, the candidate's share, may be None. No rows are no data.
        columns: the names of the columns, for the message.

    Returns:
        An array of shape (blocks, columns), the share nan where it was None.
    """
    rows = np.asarray(blocks, dtype=np.float64)
    width = columns.count(",") + 1
    if rows.size == 0:
        return np.zeros((0, width))
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"Blocks must be rows of ({columns}), got an array of shape {rows.shape}.")
    check_counts(rows[:, :-1])
    return rows


def check_counts(counts: FloatArray) -> None:
    """Refuse counts that are negative or not finite."""
    if not ((counts >= 0) & (counts < math.inf)).all():
        raise ValueError("Counts must be finite and not negative.")


def resolve_shares(shares: FloatArray, stable: FloatArray, candidate: FloatArray) -> FloatArray:
    """Fill in the realised share where none is given, and check the shares against who was observed.

    Args:
        shares: the candidate's share per block; nan stands for the realised one.
        stable: observations in the stable arm, per block.
        candidate: observations in the candidate arm, per block.

    Returns:
        The shares, in [0, 1]; 0.5 for a block with no observations at all.
    """
    total = stable + candidate
    realised = np.where(total > 0, candidate / np.maximum(total, 1e-300), 0.5)
    filled: FloatArray = np.where(np.isnan(shares), realised, shares)
    if not ((filled >= 0) & (filled <= 1)).all():
        raise ValueError("A candidate's share must be between 0 and 1.")
    if ((filled == 0) & (candidate > 0)).any() or ((filled == 1) & (stable > 0)).any():
        raise ValueError("An arm with a share of 0 cannot have observations.")
    return filled


def check_alpha(alpha: float) -> None:
    """Refuse an error probability outside (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, both excluded, got {alpha}.")


def check_positive(name: str, value: npt.ArrayLike) -> None:
    """Refuse a value, or any element of an array, that is not a positive finite number."""
    array = np.asarray(value, dtype=np.float64)
    if not ((array > 0) & (array < math.inf)).all():
        raise ValueError(f"{name} must be positive and finite, got {array.tolist()}.")
