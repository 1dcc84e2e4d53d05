"""Transcripts: a streamed answer, put together as the JSON it would have been as a whole; and the cutting of events."""

from __future__ import annotations

import re
from typing import Any

import msgspec

_FOLDED_BYTES = 64 * 1024
EVENT_END = re.compile(rb"\r?\n\r?\n")
# A chunk that adds text and nothing else: nearly all are. Inside a text the quotes would be escaped.
_TEXT = re.compile(rb'"delta":\s?\{"content":\s?"([^"\\]*(?:\\.[^"\\]*)*)"\}', re.DOTALL)
_DELTA = b'"delta":'
_FINISH = re.compile(rb'"finish_reason":\s?"')
_FIRST_CHOICE = (b'"index":0,', b'"index": 0,')


class Delta(msgspec.Struct, frozen=True):
    """What a chunk adds to a choice. Text by the API; some servers send lists of parts, which pass as they are."""

    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    tool_calls: Any = None


class StreamChoice(msgspec.Struct, frozen=True):
    """What a chunk says of one choice."""

    index: int = 0
    delta: Delta | None = None
    finish_reason: str | None = None


class _Said(msgspec.Struct, frozen=True):
    """A chunk as far as the transcript needs it."""

    choices: list[StreamChoice] | None = None


_decode_said = msgspec.json.Decoder(_Said).decode


def split_events(data: bytes) -> list[bytes]:
    """The events, each with the blank line behind it: joined they are the data again."""
    events = []
    start = 0
    for blank in EVENT_END.finditer(data):
        events.append(data[start : blank.end()])
        start = blank.end()
    if start < len(data):
        events.append(data[start:])
    return events


def payload_of(event: bytes) -> bytes | None:
    """The data of one event; None for a comment."""
    text = event.rstrip(b"\r\n")
    if text.startswith(b"data:") and b"\n" not in text:
        return text[5:].removeprefix(b" ")
    lines = [line[5:].removeprefix(b" ") for line in text.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


class ChatTranscript:
    """Puts the chunks of a chat completion together, as they come and in little memory."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._waiting: list[bytes] = []
        self._size = 0

    def add(self, events: bytes) -> None:
        """Add whole events as the provider sent them."""
        self._waiting.append(events)
        self._size += len(events)
        if self._size >= _FOLDED_BYTES:
            self._fold()

    def whole(self, model: str | None) -> bytes:
        """Give the completion as JSON; ``model`` is what the provider says it used."""
        self._fold()
        body = {
            "object": "chat.completion",
            "model": model,
            "choices": [{"index": index, **choice.whole()} for index, choice in sorted(self._choices.items())],
        }
        return msgspec.json.encode(body)

    def _fold(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if not _add_text(self._choices, data):
            _add_events(self._choices, data)


def _add_text(choices: dict[int, _Choice], data: bytes) -> bool:
    """Add events of one choice, their run of plain text by bytes; False, and nothing added, where that is not safe."""
    deltas = data.count(_DELTA)
    if b"\r" in data or sum(map(data.count, _FIRST_CHOICE)) != deltas:
        return False
    finish = _FINISH.search(data)
    last = len(data) if finish is None else data.rfind(b"\n\n", 0, finish.start()) + 2
    texts = _TEXT.findall(data, 0, last)
    opening = _TEXT.search(data, 0, last)
    closing = _TEXT.match(data, max(0, data.rfind(_DELTA, 0, last)), last)
    if opening is None or closing is None:
        return False
    if data.count(_DELTA, 0, opening.start()) + len(texts) + data.count(_DELTA, closing.end()) != deltas:
        return False  # something else is said in between
    try:
        text = msgspec.json.decode(b'"' + b"".join(texts) + b'"', type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    _add_events(choices, data[: data.rfind(b"\n\n", 0, opening.start()) + 2])
    choices.setdefault(0, _Choice()).add(StreamChoice(delta=Delta(content=text)))
    end = data.find(b"\n\n", closing.end())
    _add_events(choices, data[end:] if end >= 0 else b"")
    return True


def _add_events(choices: dict[int, _Choice], data: bytes) -> None:
    for event in split_events(data):
        payload = payload_of(event)
        if payload is None:
            continue
        try:
            said = _decode_said(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            continue  # [DONE]
        for part in said.choices or ():
            choices.setdefault(part.index, _Choice()).add(part)


class _Choice:
    """One choice of a chat completion, put together from its chunks."""

    def __init__(self) -> None:
        self._texts: dict[str, list[Any]] = {}
        self._calls: dict[Any, dict[str, Any]] = {}
        self._finish_reason: str | None = None

    def add(self, part: StreamChoice) -> None:
        """Add what one chunk says."""
        delta = part.delta
        if delta is not None:
            if delta.content is not None:
                self._texts.setdefault("content", []).append(delta.content)
            if delta.refusal is not None:
                self._texts.setdefault("refusal", []).append(delta.refusal)
            if delta.reasoning_content is not None:
                self._texts.setdefault("reasoning_content", []).append(delta.reasoning_content)
            if isinstance(delta.tool_calls, list):
                for call in delta.tool_calls:
                    if isinstance(call, dict):
                        self._add_call(call)
        self._finish_reason = part.finish_reason or self._finish_reason

    def _add_call(self, fragment: dict[str, Any]) -> None:
        index = fragment.get("index")
        if not isinstance(index, int):  # Some servers number no calls, and send each as a whole.
            index = len(self._calls)
        call = self._calls.setdefault(index, {})
        for name, value in fragment.items():
            if name == "function" and isinstance(value, dict):
                function = call.setdefault("function", {})
                for field, text in value.items():
                    known = function.get(field)
                    function[field] = known + text if isinstance(known, str) and isinstance(text, str) else text
            elif name != "index" and value:
                call[name] = value

    def whole(self) -> dict[str, Any]:
        """Give the choice's message and finish reason."""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for name, parts in self._texts.items():
            # Text by the API; a server that sends lists of parts gets one list.
            if all(isinstance(part, str) for part in parts):
                message[name] = "".join(parts)
            else:
                message[name] = [item for part in parts for item in (part if isinstance(part, list) else [part])]
        if self._calls:
            message["tool_calls"] = list(self._calls.values())
        if self._calls or "refusal" in message:
            message["content"] = message["content"] or None  # Streams begin with an empty text, whatever follows.
        return {"message": message, "finish_reason": self._finish_reason}
