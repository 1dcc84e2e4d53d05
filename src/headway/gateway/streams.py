"""Answers that come as server-sent events: passed on byte for byte, event by event, as they come.

Only the id is replaced and hidden usage taken out, by bytes; an event is parsed where bytes alone cannot tell.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import msgspec

from headway.domain.interaction import Interaction
from headway.gateway.answers import Body, JunkError, Usage, decode_body, note_body, note_finish, note_usage

_MAX_EVENT_BYTES = 16 * 1024 * 1024
_CONTENT = re.compile(rb'"(?:content|refusal|reasoning_content|reasoning|arguments|name|delta|text)":\s?"[^"]')
_NULL_USAGE = re.compile(rb',\s?"usage":\s?null')
_DONE = b"data: [DONE]"
# Events that must be read: they finish, tell usage, or end the stream.
_SPECIAL = re.compile(rb'"finish_reason":\s?"|"usage":\s?\{|data:\s?\[DONE\]')

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None
    role: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _StreamChoice(msgspec.Struct, frozen=True):
    index: int = 0
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    id: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[_StreamChoice] | None = None
    usage: Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class StreamRewriter(Protocol):
    """Rewrites one stream: fed with what comes, it gives what goes out."""

    saw_content: bool
    error: str | None

    def feed(self, piece: bytes) -> bytes:
        """Take what came and give what can go out: whole events.

        Raises:
            JunkError: It is not a stream of this API.
        """
        ...

    def finish(self) -> bytes:
        """Take the end of the stream and give what is left.

        Raises:
            JunkError: The stream ended too early.
        """
        ...

    def transcript(self) -> bytes:
        """Give the whole answer as the JSON it would have been without streaming."""
        ...


class _Events:
    """Cuts a byte stream at the blank lines between events."""

    def __init__(self) -> None:
        self._tail = b""

    def cut(self, piece: bytes) -> bytes:
        data = self._tail + piece if self._tail else piece
        lines = data.rfind(b"\n\n")
        crlf = data.rfind(b"\r\n\r\n") if b"\r" in data else -1
        end = max(lines + 2 if lines >= 0 else 0, crlf + 4 if crlf >= 0 else 0)
        if not end and len(data) > _MAX_EVENT_BYTES:
            raise JunkError("the provider sent an event larger than 16 MB")
        self._tail = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        rest, self._tail = self._tail, b""
        return rest


def _split(data: bytes) -> list[bytes]:
    return [event for event in re.split(rb"\r?\n\r?\n", data) if event.strip()]


def _payload(event: bytes) -> bytes | None:
    """The data of one event; None for a comment."""
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


class ChatStream:
    """Rewrites a stream of chat completion chunks.

    Args:
        interaction: Is filled in with what the chunks say.
        answer_id: The interaction id.
        hide_usage: The client did not ask for usage: it is recorded, then taken out.
        keep: Whether the chunks are kept for ``transcript``.
    """

    def __init__(self, interaction: Interaction, answer_id: bytes, hide_usage: bool, keep: bool) -> None:
        self._interaction = interaction
        self._new = b'"' + answer_id + b'"'
        self._hide = hide_usage
        self._kept: list[bytes] | None = [] if keep else None
        self._events = _Events()
        self._token = b""
        self._complete = False
        self.saw_content = False
        self.error: str | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take what came and give the whole events in it, rewritten."""
        data = self._events.cut(piece)
        if not data:
            return b""
        if not self.saw_content and _CONTENT.search(data):
            self.saw_content = True
        if self._kept is not None:
            self._kept.append(data)
        out = b""
        if not self._token:
            first, _, data = data.partition(b"\n\n")
            out = self._rewrite(first) if first.strip() else b""
        special = _SPECIAL.search(data)
        if special is None:
            return out + self._pass(data)
        start = data.rfind(b"\n\n", 0, special.start()) + 2
        if start < 2:
            start = 0
        return out + self._pass(data[:start]) + self._rewrite_all(data[start:])

    def _pass(self, data: bytes) -> bytes:
        """Rewrite by bytes alone where every event carries the known id."""
        if self._token and data.count(self._token) == data.count(b"data:"):
            data = data.replace(self._token, self._new)
            return _NULL_USAGE.sub(b"", data) if self._hide and b"null" in data else data
        return self._rewrite_all(data)

    def _rewrite_all(self, data: bytes) -> bytes:
        return b"".join(self._rewrite(event) for event in _split(data))

    def _rewrite(self, event: bytes) -> bytes:
        payload = _payload(event)
        if payload is None:
            return event + b"\n\n"
        if payload.strip() == b"[DONE]":
            self._complete = True
            return _DONE + b"\n\n"
        try:
            chunk = _decode_chunk(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise JunkError(f"the provider sent an event that is not a chat completion chunk: {error}") from error
        if chunk.error is not None:
            self.error = str(chunk.error)[:500]
            return event + b"\n\n"
        self._note(chunk)
        if chunk.id:
            token = b'"' + chunk.id.encode() + b'"'
            if event.count(token) == 1 and not (self._hide and chunk.usage is not None):
                self._token = token
                event = event.replace(token, self._new)
                return (_NULL_USAGE.sub(b"", event) if self._hide else event) + b"\n\n"
        if self._hide and chunk.usage is not None and not chunk.choices:
            return b""
        fields = _decode_fields(payload)
        fields["id"] = msgspec.Raw(self._new)
        if self._hide:
            fields.pop("usage", None)
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _note(self, chunk: _Chunk) -> None:
        interaction = self._interaction
        interaction.provider_id = chunk.id or interaction.provider_id
        interaction.provider_model = chunk.model or interaction.provider_model
        interaction.provider_fingerprint = chunk.system_fingerprint or interaction.provider_fingerprint
        if chunk.usage is not None:
            note_usage(interaction, chunk.usage)
        for choice in chunk.choices or ():
            if choice.finish_reason:
                note_finish(interaction, choice.finish_reason)
                self._complete = True
            if choice.delta.refusal:
                interaction.refused = True

    def finish(self) -> bytes:
        """Take the end of the stream and give what is left; it must have come to a finish reason or [DONE]."""
        rest = self._events.rest()
        out = b""
        if rest.strip():
            if self._kept is not None:
                self._kept.append(rest)
            out = b"".join(self._rewrite(event) for event in _split(rest))
        if not self._complete and self.error is None:
            raise JunkError("the provider ended the stream before the answer was complete")
        return out

    def transcript(self) -> bytes:
        """Assemble the chunks into the completion that they would have been."""
        choices: dict[int, dict[str, Any]] = {}
        for event in _split(b"".join(self._kept or ())):
            payload = _payload(event)
            if payload is None or payload.strip() == b"[DONE]":
                continue
            try:
                chunk = _decode_chunk(payload)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                continue  # A torn last event: what came before it is the answer.
            for choice in chunk.choices or ():
                _assemble(choices.setdefault(choice.index, {"index": choice.index}), choice)
        body = {
            "object": "chat.completion",
            "model": self._interaction.provider_model,
            "choices": [
                {
                    "index": index,
                    "message": {
                        "role": "assistant",
                        **{name: "".join(choice[name]) for name in ("content", "refusal") if name in choice},
                        **({"tool_calls": list(choice["tool_calls"].values())} if "tool_calls" in choice else {}),
                    },
                    "finish_reason": choice.get("finish_reason"),
                }
                for index, choice in sorted(choices.items())
            ],
        }
        return msgspec.json.encode(body)


def _assemble(choice: dict[str, Any], part: _StreamChoice) -> None:
    delta = part.delta
    if delta.content is not None:
        choice.setdefault("content", []).append(delta.content)
    if delta.refusal is not None:
        choice.setdefault("refusal", []).append(delta.refusal)
    if part.finish_reason is not None:
        choice["finish_reason"] = part.finish_reason
    for call in delta.tool_calls or ():
        known = choice.setdefault("tool_calls", {}).setdefault(call.get("index", 0), {"function": {}})
        function = call.get("function")
        if isinstance(function, dict):
            for name, value in function.items():
                known["function"][name] = known["function"].get(name, "") + (value or "")
        known.update({name: value for name, value in call.items() if name not in ("function", "index") and value})


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    response: msgspec.Raw | None = None
    delta: Any = None
    sequence_number: int | None = None
    message: str | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_FINAL = frozenset(("response.completed", "response.incomplete", "response.failed"))


class ResponsesStream:
    """Rewrites a stream of Responses API events.

    Args:
        interaction: Is filled in with what the events say.
        answer_id: The interaction id.
        previous: The client's ``previous_response_id``, put back in the place of the provider's.
        keep: Whether the text is kept for ``transcript``.
    """

    def __init__(self, interaction: Interaction, answer_id: bytes, previous: bytes | None, keep: bool) -> None:
        self._interaction = interaction
        self._new = b'"' + answer_id + b'"'
        self._previous = previous
        self._keep = keep
        self._final: bytes | None = None
        self._text: list[str] = []
        self._events = _Events()
        self._tokens: list[tuple[bytes, bytes]] = []
        self._complete = False
        self.sequence_number = -1
        self.saw_content = False
        self.error: str | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take what came and give the whole events in it, rewritten."""
        data = self._events.cut(piece)
        return self._pass(data) if data else b""

    def _pass(self, data: bytes) -> bytes:
        for event in _split(data):
            payload = _payload(event)
            if payload is not None and payload.strip() != b"[DONE]":
                self._read(payload)
        for old, new in self._tokens:
            data = data.replace(old, new)
        return data

    def _read(self, payload: bytes) -> None:
        try:
            event = _decode_event(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise JunkError(f"the provider sent an event that is not of the Responses API: {error}") from error
        if event.sequence_number is not None:
            self.sequence_number = event.sequence_number
        if event.type.endswith(".delta"):
            self.saw_content = True
            if self._keep and event.type == "response.output_text.delta" and isinstance(event.delta, str):
                self._text.append(event.delta)
        if event.response is not None:
            body = decode_body(event.response)
            self._learn(body)
            if event.type in _FINAL:
                self._complete = True
                note_body(self._interaction, body)
                if self._keep:
                    self._final = bytes(event.response)
                if event.type == "response.failed":
                    self.error = "the provider reports that the response failed"
        if event.type == "error":
            self.error = (event.message or "the provider reports an error")[:500]
            self._complete = True

    def _learn(self, body: Body) -> None:
        if self._tokens or not body.id:
            return
        self._interaction.provider_id = body.id
        self._interaction.provider_model = body.model
        self._tokens.append((b'"' + body.id.encode() + b'"', self._new))
        if body.previous_response_id and self._previous is not None:
            self._tokens.append((b'"' + body.previous_response_id.encode() + b'"', b'"' + self._previous + b'"'))

    def finish(self) -> bytes:
        """Take the end of the stream and give what is left; it must have come to a final event."""
        rest = self._events.rest()
        out = self._pass(rest + b"\n\n") if rest.strip() else b""
        if not self._complete:
            raise JunkError("the provider ended the stream before the response was complete")
        return out

    def transcript(self) -> bytes:
        """Give the final response object, or the text that came if there was none."""
        if self._final is not None:
            return self._final
        part = {"type": "output_text", "text": "".join(self._text)}
        return msgspec.json.encode({"object": "response", "output": [{"type": "message", "content": [part]}]})
