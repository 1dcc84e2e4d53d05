"""Roots of monotone functions of one variable."""

from __future__ import annotations

from collections.abc import Callable


def find_root(f: Callable[[float], float], low: float, high: float, *, tolerance: float = 1e-13) -> float:
    """Find where a continuous function changes its sign between two points (regula falsi, Illinois variant).

    Args:
        f: a function with f(low) and f(high) of opposite signs.
        low: one end.
        high: the other end.
        tolerance: absolute, on the root.

    Raises:
        ValueError: the signs are the same.
    """
    f_low, f_high = f(low), f(high)
    if f_low == 0:
        return low
    if (f_low < 0) == (f_high < 0) and f_high != 0:
        raise ValueError("The function has the same sign at both ends.")
    for turn in range(300):
        middle = (low * f_high - high * f_low) / (f_high - f_low)
        if turn % 8 == 7 or not min(low, high) <= middle <= max(low, high):
            middle = (low + high) / 2  # a guard against slow one-sided approach
        f_middle = f(middle)
        if (f_middle < 0) == (f_high < 0):
            f_low /= 2  # Illinois: the end that stays counts half
        else:
            low, f_low = high, f_high
        moved = abs(middle - high)
        high, f_high = middle, f_middle
        if f_middle == 0 or abs(high - low) <= tolerance or moved == 0:
            return high
    return (low + high) / 2
