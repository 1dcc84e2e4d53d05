"""Refusals: the fixed answer of a release that answers only from passages, when there are none. Nobody is asked.

Where JSON was asked for, it is a refusal in the API's sense, as a model's own would be: the sentence is no JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from headway.domain.interaction import Operation
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


class Refusal(NamedTuple):
    """What a refusal says of itself.

    Attributes:
        parsed: The request.
        answer_id: The interaction id.
        model: What the answer says it comes from: the application.
        unix_seconds: Now.
        json_wanted: Whether the answer was to be JSON.
    """

    parsed: ParsedRequest
    answer_id: str
    model: str
    unix_seconds: int
    json_wanted: bool = False

    def whole(self) -> bytes:
        """Write the answer as a whole."""
        if self.parsed.operation == "responses":
            return msgspec.json.encode(self._response("completed"))
        said = {"content": NOTHING_FOUND, "refusal": None}
        if self.json_wanted:
            said = {"content": None, "refusal": NOTHING_FOUND}
        message: dict[str, Any] = {"role": "assistant", **said, "context": {"citations": []}}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return msgspec.json.encode({**self._chat("chat.completion"), "choices": [choice], "usage": _NO_CHAT_USAGE})

    def streamed(self) -> bytes:
        """Write the answer as the events of a stream."""
        if self.parsed.operation == "responses":
            return self._response_events()
        chunk = self._chat("chat.completion.chunk")
        choices: list[dict[str, Any]] = [
            {"index": 0, "delta": {"role": "assistant", "content": "", "context": {"citations": []}}},
            {"index": 0, "delta": {"refusal" if self.json_wanted else "content": NOTHING_FOUND}},
            {"index": 0, "delta": {}, "finish_reason": "stop"},
        ]
        chunks = [{**chunk, "choices": [{"finish_reason": None, **choice}]} for choice in choices]
        if self.parsed.include_usage:
            chunks.append({**chunk, "choices": [], "usage": _NO_CHAT_USAGE})
        return b"".join([b"data: " + msgspec.json.encode(each) + b"\n\n" for each in chunks]) + _DONE

    def _chat(self, kind: str) -> dict[str, Any]:
        return {"id": self.answer_id, "object": kind, "created": self.unix_seconds, "model": self.model}

    def _part(self, text: str) -> dict[str, Any]:
        if self.json_wanted:
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": []}

    def _item(self, status: str, *content: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"msg_{self.answer_id}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _response(self, status: str) -> dict[str, Any]:
        is_done = status == "completed"
        return {
            "id": self.answer_id,
            "object": "response",
            "created_at": self.unix_seconds,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "model": self.model,
            "output": [self._item(status, self._part(NOTHING_FOUND))] if is_done else [],
            "parallel_tool_calls": True,
            "store": False,
            "tool_choice": "auto",
            "tools": [],
            "usage": _NO_USAGE if is_done else None,
        }

    def _response_events(self) -> bytes:
        begun = self._response("in_progress")
        item: dict[str, Any] = {"output_index": 0}
        part: dict[str, Any] = {"item_id": f"msg_{self.answer_id}", "output_index": 0, "content_index": 0}
        kind, done, more = "output_text", "text", {"logprobs": list[Any]()}
        if self.json_wanted:
            kind, done, more = "refusal", "refusal", {}
        events: list[tuple[str, dict[str, Any]]] = [
            ("created", {"response": begun}),
            ("in_progress", {"response": begun}),
            ("output_item.added", {**item, "item": self._item("in_progress")}),
            ("content_part.added", {**part, "part": self._part("")}),
            (f"{kind}.delta", {**part, "delta": NOTHING_FOUND, **more}),
            (f"{kind}.done", {**part, done: NOTHING_FOUND, **more}),
            ("content_part.done", {**part, "part": self._part(NOTHING_FOUND)}),
            ("output_item.done", {**item, "item": self._item("completed", self._part(NOTHING_FOUND))}),
            ("completed", {"response": self._response("completed")}),
        ]
        return b"".join(
            [
                b"event: response.%b\ndata: %b\n\n"
                % (
                    name.encode(),
                    msgspec.json.encode({"type": f"response.{name}", "sequence_number": number, **fields}),
                )
                for number, (name, fields) in enumerate(events)
            ]
        )


class _Format(msgspec.Struct):
    type: str = "text"


class _Text(msgspec.Struct):
    format: _Format | None = None


def wants_json(operation: Operation, fields: Mapping[str, msgspec.Raw]) -> bool:
    """Say whether a request, with its release's parameters applied, wants JSON: any, or such as fits a schema."""
    try:
        if operation == "responses":
            text = msgspec.json.decode(fields.get("text", b"null"), type=_Text | None)
            wanted = text.format if text is not None else None
        else:
            wanted = msgspec.json.decode(fields.get("response_format", b"null"), type=_Format | None)
    except msgspec.DecodeError:  # nothing that a provider would take
        return False
    return wanted is not None and wanted.type != "text"
