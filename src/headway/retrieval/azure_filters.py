"""Filters and access groups as Azure AI Search takes them: OData expressions.

An index that Headway builds has a document's metadata as a list of entries, of any keys: ``key``, ``value`` (as JSON,
so that a text is not taken for a number), and where the value stands alone ``text`` or ``number``, which have an order.
An index that exists has fields of its own, each of one type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from headway.domain.filters import Condition, Scalar

_SIGNS = {"gt": "gt", "gte": "ge", "lt": "lt", "lte": "le"}
_DELIMITERS = "|;,~^"  # for values in one text; the first that none of them has
_LONGEST_VALUE = 4000  # characters; the service takes 32 kB at most
_MOST_ENTRIES = 1000  # of a document; the service takes 3,000 at most
_WHOLE = ("Edm.Int16", "Edm.Int32", "Edm.Int64", "Edm.Byte", "Edm.SByte")
_FRACTIONAL = ("Edm.Double", "Edm.Single", "Edm.Half")
_LIST = "Collection(Edm.String)"


class Field(msgspec.Struct, frozen=True):
    """A field of an index: its type in OData's words, and what may be done with it."""

    type: str
    filterable: bool = False
    searchable: bool = False


def write_groups(field: str, groups: frozenset[str]) -> str:
    """Write who may see a document: everybody where it has no group, else who is in one of its groups.

    Args:
        field: With the document's groups.
        groups: The caller's.
    """
    public = f"not {field}/any()"
    if not groups:
        return public
    return f"({public} or {field}/any(g: search.in(g, {_quote(','.join(sorted(groups)))}, ',')))"


# --- indexes that Headway builds ------------------------------------------------------------------------------------


def make_entries(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lay a document's metadata out as entries. What is too long to filter by, and what lies deeper, is left out."""
    return list(_entries(metadata))[:_MOST_ENTRIES]


def _entries(metadata: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key, given in metadata.items():
        values = given if isinstance(given, list) else [given]
        for value in values:
            if not isinstance(value, Scalar) or len(_json(value)) > _LONGEST_VALUE or len(key) > _LONGEST_VALUE:
                continue
            alone = values is not given
            number = isinstance(value, int | float) and not isinstance(value, bool)
            yield {
                "key": key,
                "value": _json(value),
                "text": value if alone and isinstance(value, str) else None,
                "number": float(value) if alone and number else None,
            }


def write_entries_filter(field: str, conditions: Sequence[Condition]) -> list[str]:
    """Write conditions on entries; all of them must hold.

    Args:
        field: With the entries.
        conditions: On metadata; of any key.
    """
    return [_write_entry(field, condition) for condition in conditions]


def _write_entry(field: str, condition: Condition) -> str:
    value, negation = condition.values[0], ""
    if condition.operator in ("in", "not"):
        wanted = _among("m/value", [_json(each) for each in condition.values])
        negation = "not " if condition.operator == "not" else ""
    elif condition.operator == "prefix":
        wanted = _between("m/text", str(value))
    elif isinstance(value, str):
        wanted = f"m/text {_SIGNS[condition.operator]} {_quote(value)}"
    else:
        wanted = f"m/number {_SIGNS[condition.operator]} {_number(value)}"
    return f"{negation}{field}/any(m: m/key eq {_quote(condition.key)} and {wanted})"


def _json(value: Scalar) -> str:
    """Write a value so that equal ones are equal texts: 1 and 1.0 are, 1 and "1" are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return msgspec.json.encode(value).decode()


# --- indexes that exist ---------------------------------------------------------------------------------------------


def write_fields_filter(
    names: Mapping[str, str], fields: Mapping[str, Field], conditions: Sequence[Condition]
) -> list[str]:
    """Write conditions on the fields of an index; all of them must hold.

    Args:
        names: The field for each key that a filter may name.
        fields: The index's, by name.
        conditions: On metadata.

    Raises:
        ValueError: There is no field for a key, it cannot be filtered by, or its type does not go with the value.
    """
    return [_write_field(names, fields, condition) for condition in conditions]


def _write_field(names: Mapping[str, str], fields: Mapping[str, Field], condition: Condition) -> str:
    name = names.get(condition.key, "")
    field = fields.get(name)
    if field is None:
        known = ", ".join(sorted(names)) or "none"
        raise ValueError(f"the index has no field for {condition.key!r}; filters may name: {known}")
    if not field.filterable:
        raise ValueError(f"{condition.key}: the field {name!r} is not filterable")
    write = _literal(field.type, condition.key)
    operator, value = condition.operator, condition.values[0]
    if operator in ("in", "not"):
        wanted = _equal(name, field.type, condition.values, write)
        return f"not {_group(wanted)}" if operator == "not" else _group(wanted)
    if field.type in (_LIST, "Edm.Boolean"):
        raise ValueError(f"{condition.key}: the field {name!r} has no order")
    if operator == "prefix":
        if field.type != "Edm.String":
            raise ValueError(f"{condition.key}: the field {name!r} is no text")
        return f"({_between(name, str(value))})"
    return f"{name} {_SIGNS[operator]} {write(value)}"


def _equal(name: str, kind: str, values: Sequence[Scalar], write: Callable[[Scalar], str]) -> str:
    literals = [write(value) for value in values]
    if kind == _LIST:
        return f"{name}/any(x: {_among('x', [str(value) for value in values])})"
    if kind == "Edm.String":
        return _among(name, [str(value) for value in values])
    return " or ".join(f"{name} eq {literal}" for literal in literals)


def _group(expression: str) -> str:
    return f"({expression})"


def _literal(kind: str, key: str) -> Callable[[Scalar], str]:
    """Give what writes values for fields of a type."""

    def write(value: Scalar) -> str:
        if kind in ("Edm.String", _LIST) and isinstance(value, str):
            return _quote(value)
        if kind == "Edm.Boolean" and isinstance(value, bool):
            return "true" if value else "false"
        if kind == "Edm.DateTimeOffset" and isinstance(value, str):
            return _moment(key, value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (kind in _FRACTIONAL or (kind in _WHOLE and float(value).is_integer())):
            return _number(value)
        raise ValueError(f"{key}: {value!r} does not go with a field of type {kind}")

    return write


def _moment(key: str, text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{key}: {text!r} is no date such as 2026-01-31") from error
    utc = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    return utc.isoformat().replace("+00:00", "Z")


# --- both -----------------------------------------------------------------------------------------------------------


def _among(variable: str, values: Sequence[str]) -> str:
    """Write that a text is one of these."""
    if len(values) == 1:
        return f"{variable} eq {_quote(values[0])}"
    joined = "".join(values)
    delimiter = next((each for each in _DELIMITERS if each not in joined), None)
    if delimiter is None or "" in values:
        return _group(" or ".join(f"{variable} eq {_quote(value)}" for value in values))
    return f"search.in({variable}, {_quote(delimiter.join(values))}, {_quote(delimiter)})"


def _between(variable: str, prefix: str) -> str:
    """Write that a text begins with this: OData has no such function here, but texts have an order."""
    least = f"{variable} ge {_quote(prefix)}"
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return least
    code = ord(stem[-1]) + 1
    after = stem[:-1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
    return f"{least} and {variable} lt {_quote(after)}"


def _number(value: Scalar) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
