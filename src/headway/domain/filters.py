"""Filters on the metadata of documents: what a release, or a search, leaves out.

::

    filter:
      department: hr                        # equal; where the document has a list, one of it
      language: [de, en]                    # one of these
      year: {gte: 2020, lt: 2024}           # a range of numbers, or of texts such as dates
      status: {not: draft}                  # also where there is none
      path: {prefix: policies/}             # beginning; path, title and modified are always there
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Operator = Literal["in", "not", "gt", "gte", "lt", "lte", "prefix"]
Scalar = str | int | float | bool

_MOST_VALUES = 1000
_ORDERED = ("gt", "gte", "lt", "lte")
_OPERATORS = ("in", "not", *_ORDERED, "prefix")


class Condition(msgspec.Struct, frozen=True):
    """What a document's metadata must be under a key; ``in`` and ``not`` take several values, all others one."""

    key: str
    operator: Operator
    values: tuple[Scalar, ...]


def parse_filter(given: Mapping[str, Any]) -> tuple[Condition, ...]:
    """Read a filter; all of its conditions must hold.

    Raises:
        ValueError: It is not one; the message says where.

    Example:
        >>> parse_filter({"year": {"gte": 2020}})
        (Condition(key='year', operator='gte', values=(2020,)),)
    """
    return tuple(condition for key in sorted(given) for condition in _parse(key, given[key]))


def _parse(key: str, wanted: Any) -> list[Condition]:
    if "\0" in key:
        raise ValueError("a metadata key holds no NUL character")
    if not isinstance(wanted, Mapping):
        return [Condition(key, "in", _values(key, wanted))]
    if not wanted:
        raise ValueError(f"{key}: expected {', '.join(_OPERATORS)}")
    conditions = []
    for operator, value in wanted.items():
        if operator not in _OPERATORS:
            raise ValueError(f"{key}: {operator!r} is none of {', '.join(_OPERATORS)}")
        values = _values(key, value)
        if operator not in ("in", "not") and (len(values) != 1 or isinstance(values[0], bool)):
            raise ValueError(f"{key}: {operator} takes one text or number")
        if operator == "prefix" and not isinstance(values[0], str):
            raise ValueError(f"{key}: prefix takes a text")
        conditions.append(Condition(key, operator, values))
    return conditions


def _values(key: str, given: Any) -> tuple[Scalar, ...]:
    values = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not 1 <= len(values) <= _MOST_VALUES:
        raise ValueError(f"{key}: a list has 1 to {_MOST_VALUES} values")
    for value in values:
        if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{key}: expected texts, numbers, true or false, a list of them, or a range")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{key}: a text holds no NUL character")
    return tuple(values)
