"""Filters for Azure AI Search: what is written, and that it keeps and leaves out what the filter says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.filters import parse_filter
from headway.retrieval.azure_filters import Field, make_entries, write_entries_filter, write_fields_filter, write_groups
from headway.retrieval.azure_search import escape
from headway.testing.search_engine import read_simple_query
from headway.testing.search_filter import read_filter

LABEL = {"type": "Edm.String", "filterable": True}
ENTRIES = [{"name": name, **LABEL} for name in ("key", "value", "text")]
FIELDS: dict[str, dict[str, Any]] = {
    "metadata": {
        "name": "metadata",
        "type": "Collection(Edm.ComplexType)",
        "fields": [*ENTRIES, {"name": "number", "type": "Edm.Double", "filterable": True}],
    },
    "groups": {"name": "groups", "type": "Collection(Edm.String)", "filterable": True},
    "name": {"name": "name", **LABEL},
    "size": {"name": "size", "type": "Edm.Double", "filterable": True},
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
SCALARS = st.one_of(TEXTS, st.integers(-(2**31), 2**31), st.booleans(), st.floats(-1e9, 1e9))


def keeps(expression: str, **document: Any) -> bool:
    return read_filter(expression, FIELDS)(document)


def entries_keep(wanted: dict[str, Any], metadata: dict[str, Any]) -> bool:
    (expression,) = write_entries_filter("metadata", parse_filter(wanted))
    return keeps(expression, metadata=make_entries(metadata))


@pytest.mark.parametrize(
    ("wanted", "expression"),
    [
        ({"a": "x"}, "metadata/any(m: m/key eq 'a' and m/value eq '\"x\"')"),
        ({"it's": "o'x"}, "metadata/any(m: m/key eq 'it''s' and m/value eq '\"o''x\"')"),
        ({"a": ["x", 1]}, "metadata/any(m: m/key eq 'a' and search.in(m/value, '\"x\"|1', '|'))"),
        ({"a": {"not": ["x|", "y"]}}, "not metadata/any(m: m/key eq 'a' and search.in(m/value, '\"x|\";\"y\"', ';'))"),
        ({"a": {"gte": 1.5}}, "metadata/any(m: m/key eq 'a' and m/number ge 1.5)"),
        ({"a": {"prefix": "it/"}}, "metadata/any(m: m/key eq 'a' and m/text ge 'it/' and m/text lt 'it0')"),
    ],
)
def test_what_is_written(wanted: dict[str, Any], expression: str) -> None:
    assert write_entries_filter("metadata", parse_filter(wanted)) == [expression]


@given(SCALARS, SCALARS)
def test_equal_is_equal_and_nothing_else(wanted: Any, had: Any) -> None:
    same = wanted == had and isinstance(wanted, bool) == isinstance(had, bool)
    assert entries_keep({"a": wanted}, {"a": had}) is same
    assert entries_keep({"a": {"not": wanted}}, {"a": had}) is not same
    assert entries_keep({"a": [wanted, "x|;,~^"]}, {"a": ["y", had]}) is (same or had == "x|;,~^")


@given(TEXTS, TEXTS)
def test_a_prefix_is_what_a_text_begins_with(prefix: str, text: str) -> None:
    assert entries_keep({"a": {"prefix": prefix}}, {"a": text}) is text.startswith(prefix)
    assert entries_keep({"a": {"prefix": prefix}}, {"a": prefix + text})
    assert not entries_keep({"a": {"prefix": prefix}}, {"a": [prefix + text]})  # a list has no beginning


@given(
    st.frozensets(st.sampled_from(["hr", "it's", "a b", "x|y"])), st.lists(st.sampled_from(["hr", "it's", "a b", "z"]))
)
def test_groups(callers: frozenset[str], documents: list[str]) -> None:
    expression = write_groups("groups", callers)
    assert keeps(expression, groups=documents) is (not documents or not callers.isdisjoint(documents))


@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS)
def test_fields_of_texts(wanted: list[str], had: str) -> None:
    fields = {"name": Field("Edm.String", filterable=True)}
    (expression,) = write_fields_filter({"who": "name"}, fields, parse_filter({"who": wanted}))
    assert keeps(expression, name=had) is (had in wanted)
    (negated,) = write_fields_filter({"who": "name"}, fields, parse_filter({"who": {"not": wanted}}))
    assert keeps(negated, name=had) is (had not in wanted)
    assert keeps(negated)


def test_entries_leave_out_what_cannot_be_filtered_by() -> None:
    metadata = {"a": None, "b": {"c": 1}, "d": ["x", None, ["y"]], "e": "z" * 5000, "f": list(range(2000))}
    entries = make_entries(metadata)
    assert entries[0] == {"key": "d", "value": '"x"', "text": None, "number": None}
    assert {entry["key"] for entry in entries} == {"d", "f"}
    assert len(entries) == 1000


@given(st.text("ab +-|\"()*'\\~", max_size=30))
def test_no_character_of_a_query_is_an_operator(text: str) -> None:
    query = read_simple_query(escape(text))
    assert query.required == query.excluded == ()
    assert re.sub(r"\W", "", "".join(query.words)) == re.sub(r"\W", "", text)


def test_a_query_is_as_long_as_the_service_takes() -> None:
    assert len(escape("word " * 10_000).split()) == 200
    assert len(escape("x" * 10_000)) == 4000
