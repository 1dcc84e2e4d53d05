from __future__ import annotations

from typing import Any

import pytest

from headway.domain.filters import Condition, parse_filter


@pytest.mark.parametrize(
    ("given", "conditions"),
    [
        ({}, ()),
        ({"department": "hr"}, (Condition("department", "in", ("hr",)),)),
        ({"language": ["de", "en"]}, (Condition("language", "in", ("de", "en")),)),
        ({"year": {"gte": 2020, "lt": 2024}}, (Condition("year", "gte", (2020,)), Condition("year", "lt", (2024,)))),
        ({"status": {"not": ["draft", True]}}, (Condition("status", "not", ("draft", True)),)),
        ({"path": {"prefix": "policies/"}}, (Condition("path", "prefix", ("policies/",)),)),
        ({"b": 1, "a": 2}, (Condition("a", "in", (2,)), Condition("b", "in", (1,)))),
    ],
)
def test_a_filter_is_read(given: dict[str, Any], conditions: tuple[Condition, ...]) -> None:
    assert parse_filter(given) == conditions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"year": {}}, "year: expected in, not"),
        ({"year": {"above": 3}}, "year: 'above' is none of"),
        ({"year": {"gt": [1, 2]}}, "year: gt takes one"),
        ({"year": {"gt": True}}, "year: gt takes one"),
        ({"path": {"prefix": 3}}, "path: prefix takes a text"),
        ({"path": None}, "path: expected texts"),
        ({"path": []}, "path: a list has 1 to 1000"),
        ({"path": ["x"] * 1001}, "path: a list has 1 to 1000"),
        ({"path": [["x"]]}, "path: expected texts"),
        ({"path": "a\0b"}, "path: a text holds no NUL"),
        ({"a\0b": "x"}, "a metadata key holds no NUL"),
        ({"score": float("nan")}, "score: expected texts"),
        ({"score": {"lt": float("inf")}}, "score: expected texts"),
    ],
)
def test_what_is_no_filter_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_filter(given)
