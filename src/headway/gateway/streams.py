"""Answers that come as server-sent events: passed on byte for byte, event by event, as they come.

Only the id is replaced and hidden usage taken out, by bytes; an event is parsed where bytes alone cannot tell.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol

import msgspec

from headway.domain.interaction import Interaction
from headway.gateway.answers import Body, JunkError, Usage, decode_body, note_body, note_finish, note_usage, spell
from headway.gateway.citations import Citations, Item, first_text, is_text, output_of
from headway.gateway.transcripts import EVENT_END, ChatTranscript, StreamChoice, payload_of, split_events

_MAX_EVENT_BYTES = 16 * 1024 * 1024
_CONTENT = re.compile(rb'"(?:content|refusal|reasoning_content|reasoning|arguments|name|delta|text)":\s?"[^"]')

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Chunk(msgspec.Struct, frozen=True):
    id: str | None = None
    object: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[StreamChoice] | None = None
    usage: Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class StreamRewriter(Protocol):
    """Rewrites one stream: fed with what comes, it gives what goes out."""

    saw_content: bool
    ended: bool
    """The client has been given the last event: it may leave."""
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
        crlf = data.rfind(b"\n\r\n") if b"\r" in data else -1
        end = max(lines + 2 if lines >= 0 else 0, crlf + 3 if crlf >= 0 else 0)
        if not end and len(data) > _MAX_EVENT_BYTES:
            raise JunkError("the provider sent an event larger than 16 MB")
        self._tail = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What came after the last blank line, with a blank line behind it."""
        rest, self._tail = self._tail.rstrip(b"\r\n"), b""
        return rest + b"\n\n" if rest.strip() else b""


def _with_payload(event: bytes, payload: bytes) -> bytes:
    """The event with other data; its other lines stay."""
    others = [line for line in event.strip(b"\r\n").splitlines() if not line.startswith(b"data:")]
    end = event[len(event.rstrip(b"\r\n")) :]
    newline = b"\r\n" if end.startswith(b"\r") else b"\n"
    return _blank(event) + newline.join([*others, b"data: " + payload]) + end


def _blank(event: bytes) -> bytes:
    """The line ends in front of an event."""
    return event[: len(event) - len(event.lstrip(b"\r\n"))]


class _Spelling(NamedTuple):
    """How a provider writes JSON, compact or with blanks: what bytes to look for.

    Attributes:
        id: What stands before the value of an id.
        special: Marks of events that must be read: they finish, refuse, fail, tell usage, or end the stream.
        null_usage: The usage that is no usage.
        usage: What stands before the value of usage behind another field.
    """

    id: bytes
    special: tuple[bytes, ...]
    null_usage: bytes
    usage: bytes


def _spelling(comma: bytes, colon: bytes) -> _Spelling:
    marks = (b'"finish_reason"%b"', b'"refusal"%b"', b'"usage"%b{', b'"error"%b{', b'"error"%b"')
    return _Spelling(
        id=b'"id"' + colon,
        special=(*(mark % colon for mark in marks), b"[DONE]"),
        null_usage=comma + b'"usage"' + colon + b"null",
        usage=comma + b'"usage"' + colon,
    )


_SPELLINGS = (_spelling(b",", b":"), _spelling(b", ", b": "))


class ChatStream:
    """Rewrites a stream of chat completion chunks.

    Args:
        interaction: Is filled in with what the chunks say.
        answer_id: The interaction id.
        hide_usage: The client did not ask for usage: it is recorded, then taken out.
        keep: Whether the chunks are kept for ``transcript``.
        citations: Of a grounded answer; they go out with the first chunk.
    """

    def __init__(
        self,
        interaction: Interaction,
        answer_id: bytes,
        hide_usage: bool,
        keep: bool,
        citations: Citations | None = None,
    ) -> None:
        self._interaction = interaction
        self._answer_id = answer_id
        self._hide = hide_usage
        self._citations = citations  # until they have gone out
        self._transcript = ChatTranscript() if keep else None
        self._events = _Events()
        self._spelling = _SPELLINGS[0]
        self._token = self._new = b""
        self._complete = self.ended = False
        self.saw_content = False
        self.error: str | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take what came and give the whole events in it, rewritten."""
        data = self._events.cut(piece)
        if not data or self.ended:
            return b""
        if not self.saw_content and _CONTENT.search(data):
            self.saw_content = True
        out = self._rewrite_events(data)
        if self._transcript is not None:
            self._transcript.add(data)
        return out

    def _rewrite_events(self, data: bytes) -> bytes:
        out = b""
        # Until a chunk has told the provider's id, and one has taken the citations.
        while data and (not self._token or self._citations is not None):
            blank = EVENT_END.search(data)
            end = blank.end() if blank is not None else len(data)
            out += self._rewrite(data[:end])
            data = data[end:]
        special = [at for mark in self._spelling.special if (at := data.find(mark)) >= 0]
        if not special:
            return out + self._pass(data)
        first = min(special)
        start = max(data.rfind(b"\n\n", 0, first) + 2, data.rfind(b"\n\r\n", 0, first) + 3)
        if start <= 2:
            start = 0
        return out + self._pass(data[:start]) + self._rewrite_all(data[start:])

    def _pass(self, data: bytes) -> bytes:
        """Rewrite by bytes alone where every event carries the known id."""
        if data.count(self._token) != data.count(b"data:"):
            return self._rewrite_all(data)
        data = data.replace(self._token, self._new)
        return data.replace(self._spelling.null_usage, b"") if self._hide else data

    def _rewrite_all(self, data: bytes) -> bytes:
        return b"".join(self._rewrite(event) for event in split_events(data))

    def _rewrite(self, event: bytes) -> bytes:
        if self.ended:
            return b""  # Nobody reads behind the end.
        payload = payload_of(event)
        if payload is None:
            return event
        if payload.strip() == b"[DONE]":
            self._complete = self.ended = True
            return event
        try:
            chunk = _decode_chunk(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise JunkError(f"the provider sent an event that is not a chat completion chunk: {error}") from error
        self._note(chunk)
        if self._hide and chunk.usage is not None:
            if not chunk.choices:
                return _blank(event)
            event = _without_usage(event, payload)
        if chunk.id is None and chunk.choices is None:
            return event  # Not a chunk, most likely an error.
        event = self._put_id(event, chunk.id)
        first = chunk.choices[0] if chunk.choices else None
        if self._citations is not None and first is not None and first.index == 0 and first.delta is not None:
            event = self._citations.put_in_chunk(event, payload_of(event) or b"")
            self._citations = None
        return event

    def _put_id(self, event: bytes, provider_id: str | None) -> bytes:
        if provider_id is not None:
            value = b'"' + provider_id.encode() + b'"'
            for spelling in _SPELLINGS:
                token = spelling.id + value
                found = event.count(token)
                if found == 1 or (found and provider_id):
                    new = spelling.id + b'"' + self._answer_id + b'"'
                    if provider_id:  # An empty one, as Azure's first, tells nothing of the others.
                        self._token, self._new, self._spelling = token, new, spelling
                    event = event.replace(token, new)
                    return event.replace(spelling.null_usage, b"") if self._hide else event
        fields = {"id": msgspec.Raw(), **_decode_fields(payload_of(event) or b"{}")}
        fields["id"] = msgspec.Raw(b'"' + self._answer_id + b'"')
        if self._hide:
            fields.pop("usage", None)
        return _with_payload(event, msgspec.json.encode(fields))

    def _note(self, chunk: _Chunk) -> None:
        interaction = self._interaction
        interaction.provider_id = chunk.id or interaction.provider_id
        interaction.provider_model = chunk.model or interaction.provider_model
        interaction.provider_fingerprint = chunk.system_fingerprint or interaction.provider_fingerprint
        if chunk.error is not None or chunk.object == "error":
            self.error = _error_text(chunk.error)
        if chunk.usage is not None:
            note_usage(interaction, chunk.usage)
        for choice in chunk.choices or ():
            if choice.finish_reason:
                note_finish(interaction, choice.finish_reason, first=choice.index == 0)
                self._complete = True
            if choice.delta is not None and choice.delta.refusal:
                interaction.refused = True

    def finish(self) -> bytes:
        """Take the end of the stream and give what is left; it must have come to a finish reason or [DONE]."""
        rest = self._events.rest()
        out = self._rewrite_all(rest)
        if not self._complete and self.error is None:
            raise JunkError("the provider ended the stream before the answer was complete")
        if self._transcript is not None:
            self._transcript.add(rest)
        return out

    def transcript(self) -> bytes:
        """Give the completion that the chunks would have been; an empty one where nothing was kept."""
        return (self._transcript or ChatTranscript()).whole(self._interaction.provider_model)


def _without_usage(event: bytes, payload: bytes) -> bytes:
    """The event without its usage, by bytes where these are unmistakable."""
    fields = _decode_fields(payload)
    usage = bytes(fields.pop("usage"))
    for spelling in _SPELLINGS:
        if event.count(spelling.usage + usage) == 1:
            return event.replace(spelling.usage + usage, b"")
    return _with_payload(event, msgspec.json.encode(fields))


def _error_text(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "the provider reports an error")[:500]


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    response: msgspec.Raw = msgspec.Raw()  # not `| None`: msgspec then takes nothing but null
    delta: Any = None
    sequence_number: int | None = None
    message: str | None = None
    error: Any = None
    output_index: int | None = None
    content_index: int | None = None
    part: msgspec.Raw = msgspec.Raw()
    item: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode
_FINAL = frozenset(("response.completed", "response.incomplete", "response.failed"))
_PARTS = frozenset(("response.content_part.added", "response.content_part.done"))
_ITEM = "response.output_item.done"


class ResponsesStream:
    """Rewrites a stream of Responses API events.

    Args:
        interaction: Is filled in with what the events say.
        answer_id: The interaction id.
        previous: The client's ``previous_response_id``, put back in the place of the provider's.
        keep: Whether the text is kept for ``transcript``.
        citations: Of a grounded answer: annotations of its first text, wherever that comes as a whole.
    """

    def __init__(
        self,
        interaction: Interaction,
        answer_id: bytes,
        previous: bytes | None,
        keep: bool,
        citations: Citations | None = None,
    ) -> None:
        self._interaction = interaction
        self._answer_id = answer_id
        self._previous = previous
        self._keep = keep
        self._citations = citations
        self._annotated: tuple[int | None, int | None] | None = None  # output and content that are the first text
        self._final: bytes | None = None
        self._text: list[str] = []
        self._events = _Events()
        self._known: set[str] = set()
        self._tokens: list[tuple[bytes, bytes]] = []
        self.ended = False
        self.sequence_number = -1
        self.saw_content = False
        self.error: str | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take what came and give the whole events in it, rewritten."""
        data = self._events.cut(piece)
        return self._pass(data) if data else b""

    def _pass(self, data: bytes) -> bytes:
        for event in split_events(data):
            payload = payload_of(event)
            if payload is not None and payload.strip() != b"[DONE]":
                part = self._read(payload)
                if part is not None and self._citations is not None:
                    data = data.replace(event, self._citations.annotate(event, part), 1)
        return self._replace(data)

    def _replace(self, data: bytes) -> bytes:
        for old, new in self._tokens:
            data = data.replace(old, new)
        return data

    def _read(self, payload: bytes) -> bytes | None:
        """Take what an event says; gives the text part in it that is to be annotated, if there is one."""
        try:
            event = _decode_event(payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise JunkError(f"the provider sent an event that is not of the Responses API: {error}") from error
        if event.sequence_number is not None:
            self.sequence_number = event.sequence_number
        if event.type.endswith(".delta"):
            self.saw_content = True
            if event.type == "response.refusal.delta":
                self._interaction.refused = True
            elif self._keep and event.type == "response.output_text.delta" and isinstance(event.delta, str):
                self._text.append(event.delta)
        if bytes(event.response) not in (b"", b"null"):
            body = decode_body(event.response)
            self._learn(body, bytes(event.response))
            if event.type in _FINAL:
                self.ended = True
                note_body(self._interaction, body)
                if self._keep:
                    self._final = self._replace(bytes(event.response))
                if event.type == "response.failed":
                    self.error = "the provider reports that the response failed"
        if event.type == "error" or event.error is not None:
            self.error = (event.message or _error_text(event.error))[:500]
            self.ended = True
        return None if self._citations is None else self._first_text(event)

    def _first_text(self, event: _Event) -> bytes | None:
        try:
            if event.type in _FINAL:
                return first_text(output_of(event.response))
            place = (event.output_index, event.content_index)
            if event.type in _PARTS and is_text(event.part) and self._annotated in (None, place):
                self._annotated = place
                return bytes(event.part)
            if event.type == _ITEM and self._annotated is not None and self._annotated[0] == event.output_index:
                return first_text([msgspec.json.decode(event.item, type=Item)])
        except msgspec.DecodeError:  # of a shape of its own
            return None
        return None

    def _learn(self, body: Body, response: bytes) -> None:
        if not body.id or body.id in self._known:
            return
        self._known.add(body.id)
        self._interaction.provider_id = body.id
        self._interaction.provider_model = body.model
        self._tokens += spell(response, "id", body.id, self._answer_id)
        if body.previous_response_id and self._previous is not None:
            self._tokens += spell(response, "previous_response_id", body.previous_response_id, self._previous)

    def finish(self) -> bytes:
        """Take the end of the stream and give what is left; it must have come to a final event."""
        out = self._pass(self._events.rest())
        if not self.ended:
            raise JunkError("the provider ended the stream before the response was complete")
        return out

    def transcript(self) -> bytes:
        """Give the final response object, or the text that came if there was none."""
        if self._final is not None:
            return self._final
        part = {"type": "output_text", "text": "".join(self._text)}
        return msgspec.json.encode({"object": "response", "output": [{"type": "message", "content": [part]}]})
