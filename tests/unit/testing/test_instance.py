import random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.testing.instance import make_instance
from headway.testing.question import RequestError

_LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, *[st.integers(0, 30)] * 2
    ),
    st.sampled_from(["date-time", "date", "email", "uuid", "ipv4", "uri"]).map(
        lambda f: {"type": "string", "format": f}
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-1000, 1000),
        st.integers(0, 1000),
    ),
    st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.integers(-5, 5)),
    st.builds(lambda high: {"type": "integer", "maximum": high}, st.integers(-5, 5)),
    st.builds(lambda step: {"type": "integer", "multipleOf": step, "minimum": 1}, st.integers(1, 7)),
    st.just({"type": "boolean"}),
    st.just({"type": ["string", "null"]}),
    st.just({"const": 5}),
    st.lists(st.integers(), min_size=1, max_size=3).map(lambda values: {"enum": values}),
)


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner).map(
            lambda parts: {
                "type": "object",
                "properties": parts,
                "required": list(parts),
                "additionalProperties": False,
            }
        ),
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {"anyOf": schemas}),
    )


@settings(max_examples=200)
@given(st.recursive(_LEAVES, _nested, max_leaves=8), st.integers())
def test_an_instance_fits_its_schema(schema: dict[str, Any], seed: int) -> None:
    jsonschema_rs.validate(schema, make_instance(schema, random.Random(seed)), validate_formats=True)


@pytest.mark.parametrize("seed", range(20))
def test_recursive_schemas_end(seed: int) -> None:
    schema = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["name", "next", "children"],
            }
        },
        "$ref": "#/$defs/node",
    }
    jsonschema_rs.validate(schema, make_instance(schema, random.Random(seed)))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/nowhere"},
        {"type": "integer", "minimum": "low"},
        {"type": "array", "minItems": "many"},
        {"type": "object", "properties": [1]},
    ],
)
def test_unusable_schemas_are_refused_as_openai_does(schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        make_instance(schema, random.Random(1))
    assert caught.value.status == 400


def test_without_a_schema_it_is_an_object() -> None:
    assert isinstance(make_instance({}, random.Random(1)), dict)
