"""Answers that clients send back in the next turn, as they got them: without what Headway put into them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headway.domain.knowledge import Passage
from headway.gateway.citations import Citations
from headway.gateway.parsing import parse_request

CITATIONS = Citations(
    [Passage(chunk, "leave.md", "Leave", "", "Leave is 25 days.", 10, chunk, 0.5) for chunk in (7, 8)], "handbook@3"
)


def resend(operation: str, **fields: Any) -> Any:
    body = json.dumps({"model": "support", **fields}).encode()
    return parse_request(operation, body)  # type: ignore[arg-type] # an operation


def test_an_answer_that_is_sent_back_goes_on_without_its_citations() -> None:
    answer = CITATIONS.put_in(
        "chat", json.dumps({"choices": [{"message": {"role": "assistant", "content": "25 [1]"}}]}).encode()
    )
    message = json.loads(answer)["choices"][0]["message"]
    assert "context" in message
    question, more = {"role": "user", "content": 'a "citation"'}, {"role": "user", "content": "And now?"}
    parsed = resend("chat", messages=[question, message, more], n=1)
    assert json.loads(bytes(parsed.fields["messages"])) == [question, {"role": "assistant", "content": "25 [1]"}, more]
    assert json.loads(parsed.body) == {
        "model": "support",
        "messages": json.loads(bytes(parsed.fields["messages"])),
        "n": 1,
    }
    assert "Leave" not in parsed.body.decode()


def test_a_response_that_is_sent_back_goes_on_without_its_annotations() -> None:
    own = {"type": "url_citation", "url": "https://example.com", "title": "citation"}
    part = {"type": "output_text", "text": "25 [1]", "annotations": [own]}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
    raw = json.dumps({"output": [{"type": "reasoning", "summary": []}, item]}).encode()
    reasoning, cited = json.loads(CITATIONS.put_in("responses", raw))["output"]
    assert len(cited["content"][0]["annotations"]) == 3
    parsed = resend("responses", input=[reasoning, cited, {"role": "user", "content": "And now?"}])
    assert json.loads(bytes(parsed.fields["input"]))[:2] == [reasoning, item]
    assert "Leave" not in parsed.body.decode()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "hi", "context": {"citation": 1}},
        {"role": "assistant", "content": "hi", "context": '"citations"'},
        {"role": "assistant", "content": 'the "citations" field'},
        {"role": "user", "content": [{"type": "text", "text": '"citation"', "annotations": ["citation"]}]},
        "citation",
        5,
    ],
)
@pytest.mark.parametrize("operation", ["chat", "responses"])
def test_what_is_not_ours_goes_on_byte_for_byte(operation: str, message: Any) -> None:
    name = "messages" if operation == "chat" else "input"
    body = json.dumps(
        {"model": "support", name: [message, {"role": "user", "content": '"citation"'}]}, indent=1
    ).encode()
    assert parse_request(operation, body).body == body  # type: ignore[arg-type] # an operation
