"""OData filters of the search service simulator: read as documented, refused where the service would, and evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

Test = Callable[[Mapping[str, Any]], bool]
Fields = Mapping[str, Mapping[str, Any]]

_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')"
    r"|(?P<moment>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d))"
    r"|(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_.]*(?:/[A-Za-z_][A-Za-z0-9_]*)*)"
    r"|(?P<mark>[(),:]))"
)
_NUMBERS = ("Edm.Int32", "Edm.Int64", "Edm.Double")
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a is not None and b is not None and a > b,
    "ge": lambda a, b: a is not None and b is not None and a >= b,
    "lt": lambda a, b: a is not None and b is not None and a < b,
    "le": lambda a, b: a is not None and b is not None and a <= b,
}


class FilterError(ValueError):
    """The filter is none, or names what cannot be filtered by."""


def read_filter(text: str, fields: Fields) -> Test:
    """Read a filter.

    Args:
        text: The OData expression.
        fields: The index's fields, by name.

    Raises:
        FilterError: It is none, or names what cannot be filtered by.
    """
    reader = _Reader(text, fields)
    test = reader.either({})
    if reader.at < len(reader.tokens):
        raise FilterError(f"syntax error at {reader.tokens[reader.at][1]!r}")
    return test


class _Reader:
    def __init__(self, text: str, fields: Fields) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        self._fields = fields
        end = 0
        while end < len(text.rstrip()):
            found = _TOKEN.match(text, end)
            if found is None:
                raise FilterError(f"syntax error at position {end}")
            kind = found.lastgroup or ""
            self.tokens.append((kind, found[kind]))
            end = found.end()

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end")

    def _take(self, *wanted: str) -> str:
        kind, text = self._peek()
        if wanted and text not in wanted and kind not in wanted:
            raise FilterError(f"expected {' or '.join(wanted)}, not {text!r}")
        self.at += 1
        return text

    def either(self, scope: Mapping[str, Mapping[str, Any]]) -> Test:
        test = self._both(scope)
        while self._peek()[1] == "or":
            self._take()
            test = _or(test, self._both(scope))
        return test

    def _both(self, scope: Mapping[str, Mapping[str, Any]]) -> Test:
        test = self._one(scope)
        while self._peek()[1] == "and":
            self._take()
            test = _and(test, self._one(scope))
        return test

    def _one(self, scope: Mapping[str, Mapping[str, Any]]) -> Test:
        kind, text = self._peek()
        if text == "not":
            self._take()
            inner = self._one(scope)
            return lambda item: not inner(item)
        if text == "(":
            self._take()
            test = self.either(scope)
            self._take(")")
            return test
        if text == "search.in":
            return self._search_in(scope)
        if kind != "name":
            raise FilterError(f"expected a field, not {text!r}")
        path = self._take()
        if path.endswith(("/any", "/all")):
            return self._lambda(path, scope)
        field = self._field(path, scope)
        if field["type"].startswith("Collection"):
            raise FilterError(f"{path} is a collection: any or all is needed")
        operator = self._take(*_COMPARE)
        value = self._literal(field["type"], path)
        return lambda item: _COMPARE[operator](_value(item, path, field["type"]), value)

    def _field(self, path: str, scope: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        first, *rest = path.split("/")
        field: Mapping[str, Any] | None = scope[first] if first in scope else self._fields.get(first)
        for name in rest:
            field = None if field is None else next((e for e in field.get("fields", ()) if e["name"] == name), None)
        if field is None:
            raise FilterError(f"could not find a property named {path!r}")
        if not field.get("filterable") and "fields" not in field:
            raise FilterError(f"{path} is not a filterable field; only filterable fields can be used in filters")
        return field

    def _lambda(self, path: str, scope: Mapping[str, Mapping[str, Any]]) -> Test:
        name, quantifier = path.rsplit("/", 1)
        field = self._field(name, scope)
        kind = field["type"]
        if not kind.startswith("Collection("):
            raise FilterError(f"{name} is no collection")
        self._take("(")
        if self._peek()[1] == ")":
            self._take()
            return lambda item: bool(_raw(item, name))
        variable = self._take("name")
        self._take(":")
        inner = self.either({**scope, variable: {**field, "type": kind[len("Collection(") : -1]}})
        self._take(")")
        some = any if quantifier == "any" else all
        return lambda item: some(inner({**item, variable: each}) for each in _raw(item, name) or ())

    def _search_in(self, scope: Mapping[str, Mapping[str, Any]]) -> Test:
        self._take()
        self._take("(")
        path = self._take("name")
        if self._field(path, scope)["type"] != "Edm.String":
            raise FilterError("search.in takes a text")
        self._take(",")
        values, delimiters = self._take("text"), "' ,'"
        if self._peek()[1] == ",":
            self._take()
            delimiters = self._take("text")
        self._take(")")
        wanted = set(filter(None, re.split(f"[{re.escape(_unquote(delimiters))}]", _unquote(values))))
        return lambda item: _raw(item, path) in wanted

    def _literal(self, kind: str, path: str) -> Any:
        form, text = self._peek()
        self.at += 1
        if text == "null":
            return None
        if form == "text" and kind == "Edm.String":
            return _unquote(text)
        if form == "number" and kind in _NUMBERS:
            return float(text)
        if form == "moment" and kind == "Edm.DateTimeOffset":
            return datetime.fromisoformat(text)
        if text in ("true", "false") and kind == "Edm.Boolean":
            return text == "true"
        raise FilterError(f"a binary operator with incompatible types was detected: {path} is {kind}, not {text}")


def _and(a: Test, b: Test) -> Test:
    return lambda item: a(item) and b(item)


def _or(a: Test, b: Test) -> Test:
    return lambda item: a(item) or b(item)


def _unquote(text: str) -> str:
    return text[1:-1].replace("''", "'")


def _raw(item: Mapping[str, Any], path: str) -> Any:
    value: Any = item
    for name in path.split("/"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _value(item: Mapping[str, Any], path: str, kind: str) -> Any:
    value = _raw(item, path)
    if kind == "Edm.DateTimeOffset" and isinstance(value, str):
        return datetime.fromisoformat(value)
    return value
