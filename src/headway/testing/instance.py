"""JSON values that fit a JSON schema: what structured output and tool calls are made of."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from headway.testing.question import RequestError

__all__ = ["make_instance"]

_STRINGS = ("plain", "café", "東京", 'a "quoted" word', "two\nlines", "C:\\path", "🙂")
_MAX_DEPTH = 6
_END_DEPTH = 60


def make_instance(schema: Any, rng: random.Random) -> Any:
    """Make a JSON value that fits a JSON schema, as structured output does.

    Knows what OpenAI's structured output allows: types, ``properties``, ``items``, ``enum``, ``const``, ``anyOf``,
    ``$ref`` and the usual bounds. Recursive schemas end, by taking the alternative that is not recursive.

    Raises:
        RequestError: The schema is not usable; OpenAI's 400.

    Example:
        >>> make_instance({"type": "object", "properties": {"ok": {"type": "boolean"}}}, random.Random(1))
        {'ok': True}
    """
    if not schema:
        return {"answer": rng.choice(_STRINGS)}
    try:
        return _Instance(schema, rng).make(schema, depth=0)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"Invalid schema: {error!r}", code="invalid_json_schema") from error


class _Instance:
    """Makes values of one schema; keeps its root for references."""

    def __init__(self, root: Mapping[str, Any], rng: random.Random) -> None:
        self._root = root
        self._rng = rng

    def make(self, schema: Any, depth: int) -> Any:
        if depth > _END_DEPTH:
            return None
        if not isinstance(schema, dict) or not schema:
            return self._rng.choice(_STRINGS)
        if "$ref" in schema:
            return self.make(self._resolve(str(schema["$ref"])), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._rng.choice(schema["enum"])
        for combined in ("anyOf", "oneOf", "allOf"):
            if schema.get(combined):
                return self.make(self._alternative(schema[combined], depth), depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = "null" if "null" in kind and depth > _MAX_DEPTH else next(k for k in kind if k != "null")
        return self._value(str(kind), schema, depth)

    def _value(self, kind: str, schema: Mapping[str, Any], depth: int) -> Any:
        if kind == "object":
            properties = schema.get("properties", {})
            return {name: self.make(part, depth + 1) for name, part in properties.items()}
        if kind == "array":
            fewest = int(schema.get("minItems", 0))
            count = fewest if depth > _MAX_DEPTH else max(fewest, min(2, int(schema.get("maxItems", 2))))
            return [self.make(schema.get("items", {}), depth + 1) for _ in range(count)]
        if kind in ("integer", "number"):
            return self._number(kind, schema)
        if kind == "boolean":
            return self._rng.random() < 0.5
        if kind == "null":
            return None
        return self._string(schema)

    def _number(self, kind: str, schema: Mapping[str, Any]) -> float:
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        step = schema.get("multipleOf") or (1 if kind == "integer" else 0.5)
        low = schema.get("minimum", above + step if above is not None else None)
        high = schema.get("maximum", below - step if below is not None else None)
        if low is None:
            low = high - 100 * step if high is not None else 0
        if high is None:
            high = low + 100 * step
        first = -(-low // step)
        value = step * self._rng.randint(int(first), max(int(first), int(high // step)))
        return int(value) if kind == "integer" else float(value)

    def _string(self, schema: Mapping[str, Any]) -> str:
        formats = {
            "date-time": "2026-01-31T12:00:00Z",
            "date": "2026-01-31",
            "time": "12:00:00Z",
            "duration": "P1D",
            "email": "someone@example.com",
            "hostname": "example.com",
            "ipv4": "192.0.2.1",
            "ipv6": "2001:db8::1",
            "uuid": "123e4567-e89b-42d3-a456-426614174000",
            "uri": "https://example.com/",
        }
        known = formats.get(str(schema.get("format")))
        if known:
            return known
        text = self._rng.choice(_STRINGS)
        fewest, most = int(schema.get("minLength", 0)), schema.get("maxLength")
        text = text if len(text) >= fewest else text + "x" * (fewest - len(text))
        return text if most is None else text[: int(most)]

    def _alternative(self, schemas: Sequence[Any], depth: int) -> Any:
        """Choose one; deep inside, one that does not lead deeper, so that recursion ends."""
        if depth <= _MAX_DEPTH:
            return self._rng.choice(schemas)
        return min(schemas, key=lambda schema: json.dumps(schema).count("$ref") * 1000 + len(json.dumps(schema)))

    def _resolve(self, reference: str) -> Any:
        found: Any = self._root
        for part in reference.lstrip("#").strip("/").split("/") if reference != "#" else ():
            found = found[part.replace("~1", "/").replace("~0", "~")]
        return found
