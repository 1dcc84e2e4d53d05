"""What the console reads out of recorded bodies, and how it compares releases."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from headway.console.difference import Change, compare
from headway.console.texts import read_answer, read_question
from headway.domain.release import Bundle, Endpoint, Retrieval

ENDPOINT = Endpoint("openai", "http://127.0.0.1:9/v1", "small")


@pytest.mark.parametrize(
    ("request_body", "question"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "a"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "c"}]}, "c"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]}, "a"),
        ({"messages": [{"role": "system", "content": "s"}]}, None),
        ({"input": "a"}, "a"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}, "a"),
        ({"input": [1, 2]}, None),
        ({"messages": "a"}, "a"),
        ({}, None),
        ([], None),
        ({"messages": [{"role": "user", "content": 5}]}, None),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "x" * 4000 + " …"),
    ],
)
def test_questions(request_body: Any, question: str | None) -> None:
    assert read_question(json.dumps(request_body)) == question


@pytest.mark.parametrize(
    ("answer_body", "answer"),
    [
        ({"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}, "a"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "no"),
        (
            {"choices": [{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]},
            "calls f({})",
        ),
        ({"choices": [{"message": {"tool_calls": [1, {"function": 2}]}}]}, None),
        ({"choices": [{"message": 1}]}, None),
        ({"choices": [1]}, None),
        ({"choices": []}, None),
        ({"output": [{"content": [{"type": "output_text", "text": "a"}]}, {"type": "reasoning"}, 3]}, "a"),
        ({"error": {"message": "x"}}, None),
        (7, None),
    ],
)
def test_answers(answer_body: Any, answer: str | None) -> None:
    assert read_answer(json.dumps(answer_body)) == answer


@pytest.mark.parametrize("body", [None, "", "{", "[" * 100_000])
def test_what_cannot_be_read(body: str | None) -> None:
    assert read_question(body) is None
    assert read_answer(body) is None


def test_the_same_release_has_no_difference() -> None:
    bundle = Bundle((("main", ENDPOINT),), "Be kind.", {"temperature": 0.5})
    found = compare(bundle, bundle)
    assert (found.changes, found.prompt) == ((), ())


def test_everything_that_differs_is_named() -> None:
    stable = Bundle((("main", ENDPOINT),), "One.\nTwo.\nThree.\n", {"temperature": 0.5, "stop": ["a"]})
    other = msgspec.structs.replace(ENDPOINT, model="large", api_version="2")
    candidate = Bundle(
        (("next", other), ("spare", ENDPOINT)),
        "One.\n-- Two.\nThree.\n",
        {"temperature": 0.5},
        ("temperature",),
        Retrieval("handbook", 3, 5),
    )
    found = compare(stable, candidate)
    assert found.changes == (
        Change("deployment", "main", "next"),
        Change("model", "small", "large"),
        Change("endpoint", "openai at http://127.0.0.1:9/v1", "openai at http://127.0.0.1:9/v1 (2)"),
        Change("stop", '["a"]', None),
        Change("fallbacks", None, "spare (small)"),
        Change("client may override", None, "temperature"),
        Change("index", None, "handbook@3"),
        Change("passages", None, "5"),
    )
    assert found.prompt == (("same", "One."), ("removed", "Two."), ("added", "-- Two."), ("same", "Three."))


def test_far_changes_of_a_prompt_are_apart() -> None:
    lines = [f"line {number}" for number in range(20)]
    changed = ["first", *lines[1:-1], "last"]
    found = compare(Bundle((("main", ENDPOINT),), "\n".join(lines)), Bundle((("main", ENDPOINT),), "\n".join(changed)))
    assert [sign for sign, _ in found.prompt] == [
        "removed", "added", "same", "same", "gap", "same", "same", "removed", "added",
    ]  # fmt: skip


def test_a_prompt_that_begins_with_dashes_is_not_lost() -> None:
    found = compare(Bundle((("main", ENDPOINT),), "-- a"), Bundle((("main", ENDPOINT),)))
    assert found.prompt == (("removed", "-- a"),)
