"""What the console reads out of recorded bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.console.texts import read_answer, read_question


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
