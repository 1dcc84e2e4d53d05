"""Refusals: the fixed answer of a release that answers only from passages, when there are none. Nobody is asked."""

from __future__ import annotations

from typing import Any

import msgspec

from headway.gateway.parsing import ParsedRequest

NOTHING_FOUND = "I found nothing about that in the documents that I answer from."

_DONE = b"data: [DONE]\n\n"
_NO_CHAT_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def refuse(parsed: ParsedRequest, answer_id: str, model: str, unix_seconds: int) -> bytes:
    """Write the answer as a whole.

    Args:
        parsed: The request.
        answer_id: The interaction id.
        model: What the answer says it comes from: the application.
        unix_seconds: Now.
    """
    if parsed.operation == "responses":
        return msgspec.json.encode(_response(answer_id, model, unix_seconds, "completed"))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": NOTHING_FOUND,
        "refusal": None,
        "context": {"citations": []},
    }
    return msgspec.json.encode(
        {
            **_chat(answer_id, model, unix_seconds, "chat.completion"),
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": _NO_CHAT_USAGE,
        }
    )


def refuse_streamed(parsed: ParsedRequest, answer_id: str, model: str, unix_seconds: int) -> bytes:
    """Write the answer as the events of a stream, for the same arguments as ``refuse``."""
    if parsed.operation == "responses":
        return _response_events(answer_id, model, unix_seconds)
    chunk = _chat(answer_id, model, unix_seconds, "chat.completion.chunk")
    opening = {"role": "assistant", "content": "", "context": {"citations": []}}
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": opening, "finish_reason": None},
        {"index": 0, "delta": {"content": NOTHING_FOUND}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    chunks = [{**chunk, "choices": [choice]} for choice in choices]
    if parsed.include_usage:
        chunks.append({**chunk, "choices": [], "usage": _NO_CHAT_USAGE})
    return b"".join([b"data: " + msgspec.json.encode(each) + b"\n\n" for each in chunks]) + _DONE


def _chat(answer_id: str, model: str, unix_seconds: int, kind: str) -> dict[str, Any]:
    return {"id": answer_id, "object": kind, "created": unix_seconds, "model": model}


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _item(answer_id: str, status: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{answer_id}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _response(answer_id: str, model: str, unix_seconds: int, status: str) -> dict[str, Any]:
    is_done = status == "completed"
    return {
        "id": answer_id,
        "object": "response",
        "created_at": unix_seconds,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": model,
        "output": [_item(answer_id, status, _text(NOTHING_FOUND))] if is_done else [],
        "parallel_tool_calls": True,
        "store": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": _NO_USAGE if is_done else None,
    }


def _response_events(answer_id: str, model: str, unix_seconds: int) -> bytes:
    begun = _response(answer_id, model, unix_seconds, "in_progress")
    item: dict[str, Any] = {"output_index": 0}
    part: dict[str, Any] = {"item_id": f"msg_{answer_id}", "output_index": 0, "content_index": 0}
    events: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": begun}),
        ("in_progress", {"response": begun}),
        ("output_item.added", {**item, "item": _item(answer_id, "in_progress")}),
        ("content_part.added", {**part, "part": _text("")}),
        ("output_text.delta", {**part, "delta": NOTHING_FOUND, "logprobs": []}),
        ("output_text.done", {**part, "text": NOTHING_FOUND, "logprobs": []}),
        ("content_part.done", {**part, "part": _text(NOTHING_FOUND)}),
        ("output_item.done", {**item, "item": _item(answer_id, "completed", _text(NOTHING_FOUND))}),
        ("completed", {"response": _response(answer_id, model, unix_seconds, "completed")}),
    ]
    return b"".join(
        [
            b"event: response.%b\ndata: %b\n\n"
            % (name.encode(), msgspec.json.encode({"type": f"response.{name}", "sequence_number": number, **fields}))
            for number, (name, fields) in enumerate(events)
        ]
    )
