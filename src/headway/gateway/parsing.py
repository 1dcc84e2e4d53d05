"""Requests of OpenAI's API, parsed as far as routing needs and otherwise left byte for byte as they came."""

from __future__ import annotations

from typing import Any

import msgspec

from headway.domain.interaction import Operation
from headway.errors import InvalidRequestError
from headway.gateway.citations import without_citations

_NULL = msgspec.Raw(b"null")
_TEXT_PARTS = ("text", "input_text")


class _Known(msgspec.Struct, frozen=True):
    """The fields that Headway reads; all others pass through unseen."""

    model: str = ""
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    background: bool | None = None


class _Message(msgspec.Struct, frozen=True):
    role: Any = ""
    content: msgspec.Raw = _NULL


class ParsedRequest(msgspec.Struct, frozen=True):
    """A request as routing sees it.

    Attributes:
        operation: Which route.
        body: The body as it came, but for what earlier answers cited.
        fields: Its top-level fields, each value byte for byte.
        model: ``application`` or ``application@release``.
        stream: Whether a stream is asked for.
        include_usage: Whether the client wants usage in the stream.
        user: ``user`` or ``safety_identifier``.
        conversation: ``metadata.conversation_id``.
        metadata: The request's metadata.
        previous_response_id: For /v1/responses.
    """

    operation: Operation
    body: bytes
    fields: dict[str, msgspec.Raw]
    model: str
    stream: bool
    include_usage: bool
    user: str | None
    conversation: str | None
    metadata: dict[str, Any]
    previous_response_id: str | None

    def first_user_message(self) -> bytes:
        """Give the content of the first user message as it came; empty where there is none.

        Raises:
            InvalidRequestError: ``messages`` or ``input`` has the wrong shape.
        """
        if self.operation == "chat":
            return _first_content(self.fields.get("messages", _NULL), "messages")
        field = self.fields.get("input", _NULL)
        if bytes(field)[:1] == b"[" and self.operation == "responses":
            return _first_content(field, "input")
        return b"" if field == _NULL else bytes(field)

    def user_texts(self) -> list[str]:
        """Give what the user's messages say, in order; messages that say nothing in text are left out.

        Raises:
            InvalidRequestError: ``messages`` or ``input`` has the wrong shape.
        """
        name = "messages" if self.operation == "chat" else "input"
        field = self.fields.get(name, _NULL)
        if bytes(field)[:1] != b"[" and self.operation == "responses":
            return [text for text in (_text_of(bytes(field)),) if text.strip()]
        contents = [bytes(message.content) for message in _messages(field, name) if message.role == "user"]
        return [text for content in contents if (text := _text_of(content)).strip()]

    def roles(self) -> list[str]:
        """Give the roles of the messages, in order."""
        name = "messages" if self.operation == "chat" else "input"
        field = self.fields.get(name, _NULL)
        messages = _messages(field, name) if bytes(field)[:1] == b"[" else []
        return [message.role for message in messages if isinstance(message.role, str)]


_decode_known = msgspec.json.Decoder(_Known).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_messages = msgspec.json.Decoder(list[_Message]).decode


def parse_request(operation: Operation, body: bytes, model: str | None = None) -> ParsedRequest:
    """Parse a request body.

    Args:
        operation: Which route it came to.
        body: The body.
        model: From the path, where that names it; wins over the body's.

    Raises:
        InvalidRequestError: It is not JSON, or a field that Headway reads has the wrong type.
    """
    try:
        if not body.isascii():
            body.decode()  # What passes through unseen is recorded as text.
        known = _decode_known(body)
        fields = _decode_fields(body)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"the request does not fit: {error}", param=_path(error)) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the request body is not valid JSON: {error}", code="invalid_json") from error
    if known.background:
        message = "background responses are not supported: send the request without `background`"
        raise InvalidRequestError(message, param="background", code="unsupported_parameter")
    if not (known.model or model):
        raise InvalidRequestError("`model` is missing: give the name of an application", param="model")
    metadata = known.metadata or {}
    conversation = metadata.get("conversation_id")
    if conversation is not None and not isinstance(conversation, str):
        raise InvalidRequestError("metadata.conversation_id must be a string", param="metadata.conversation_id")
    user = known.user or known.safety_identifier
    for name, value in (("user", user), ("metadata.conversation_id", conversation)):
        if value and "\0" in value:
            raise InvalidRequestError(f"{name} must not contain the character NUL", param=name)
    cleaned = without_citations(operation, body, fields)
    if cleaned is not fields:
        body, fields = msgspec.json.encode(cleaned), cleaned
    return ParsedRequest(
        operation=operation,
        body=body,
        fields=fields,
        model=model or known.model,
        stream=bool(known.stream) and operation != "embeddings",
        include_usage=bool((known.stream_options or {}).get("include_usage")),
        user=user or None,
        conversation=conversation or None,
        metadata=metadata,
        previous_response_id=known.previous_response_id if operation == "responses" else None,
    )


def _messages(field: msgspec.Raw, name: str) -> list[_Message]:
    try:
        return _decode_messages(field)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"`{name}` must be a list of messages: {error}", param=name) from error


def _text_of(content: bytes) -> str:
    """The text of a message's content: a string, or the texts among its parts."""
    said = msgspec.json.decode(content)
    if isinstance(said, str):
        return said
    parts = said if isinstance(said, list) else ()
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in _TEXT_PARTS]
    return "\n".join([text for text in texts if isinstance(text, str)])


def _first_content(field: msgspec.Raw, name: str) -> bytes:
    return next((bytes(message.content) for message in _messages(field, name) if message.role == "user"), b"")


def _path(error: msgspec.ValidationError) -> str | None:
    _, found, path = str(error).rpartition("`$.")
    return path.rstrip("`") if found else None
