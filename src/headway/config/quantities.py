"""Quantities as people write them: durations ("5s", "30d"), shares ("10%", "0.1"), measures ("5pp", "70%", "800ms")."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Literal, NamedTuple

from headway.domain.display import format_share

__all__ = ["Measure", "format_duration", "format_share", "parse_duration", "parse_measure", "parse_share"]

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_MEASURE = re.compile(r"([+-]?[\d.][\d.eE+-]{0,29}?)\s*(|pp|%|ms|s|m|h|d)", re.ASCII)
_SHARE = re.compile(r"(\d{1,4}(?:\.\d{1,9})?)\s*(%?)", re.ASCII)


def parse_duration(text: str) -> float:
    """Read a duration in seconds: a number and ms, s, m, h or d.

    Raises:
        ValueError: It is not one; the message says what it should look like.

    Example:
        >>> parse_duration("1.5m")
        90.0
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError("a duration is a number and a unit (ms, s, m, h or d), such as 5s or 30d")
    return float(Decimal(found[1]) * _SECONDS[found[2]])


def format_duration(seconds: float) -> str:
    """Write a duration so that ``parse_duration`` reads it back, in the largest unit that keeps it whole.

    Example:
        >>> format_duration(7200)
        '2h'
    """
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        size = int(_SECONDS[unit] * 1000)
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def parse_share(text: str) -> float:
    """Read a share of traffic, 0 to 1: a percentage, or a fraction below 1.

    Raises:
        ValueError: It is neither. "1" is refused: it could mean 1 % as well as everything.

    Example:
        >>> parse_share("10%"), parse_share("0.1")
        (0.1, 0.1)
    """
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        raise ValueError("a share is a percentage such as 10% or a fraction such as 0.1")
    number = Decimal(found[1])
    if found[2]:
        if number > 100:
            raise ValueError(f"a share is at most 100%, not {text.strip()}")
        return float(number / 100)
    if number >= 1:
        meant = f"{number.normalize():f}% or 100%" if number < 100 else "100%"
        raise ValueError(f"{text.strip()} is not clear: write {meant}")
    return float(number)


class Measure(NamedTuple):
    """A number with what stands behind it: ``pp`` and ``%`` are divided by 100, times are in seconds."""

    value: float
    form: Literal["plain", "pp", "%", "time"]


def parse_measure(text: str) -> Measure:
    """Read a number, percentage points, a percentage or a duration. It may have a sign, so that one can say what of it.

    Raises:
        ValueError: It is none of them.

    Example:
        >>> parse_measure("5pp"), parse_measure("0.15"), parse_measure("800ms")
        (Measure(value=0.05, form='pp'), Measure(value=0.15, form='plain'), Measure(value=0.8, form='time'))
    """
    found = _MEASURE.fullmatch(text.strip())
    try:
        number = Decimal(found[1] if found else "NaN")
    except ArithmeticError:
        number = Decimal("NaN")
    if found is None or not math.isfinite(float(number)):
        raise ValueError("a measure is a number, with pp, % or a unit of time behind it if it is none of its own")
    if found[2] in _SECONDS:
        return Measure(float(number * _SECONDS[found[2]]), "time")
    if found[2] == "pp":
        return Measure(float(number / 100), "pp")
    return Measure(float(number / 100), "%") if found[2] else Measure(float(number), "plain")
