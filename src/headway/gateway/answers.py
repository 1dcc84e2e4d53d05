"""Answers that come as a whole: read what is recorded, put the interaction id in, leave every other byte alone."""

from __future__ import annotations

import msgspec

from headway.domain.interaction import Interaction, Operation


class JunkError(Exception):
    """The provider's answer is not what its API promises."""


class Details(msgspec.Struct, frozen=True):
    """The part of usage that says how much of the input was cached."""

    cached_tokens: float | None = None


class Usage(msgspec.Struct, frozen=True):
    """Usage in the names of either API; some servers write counts as 12.0."""

    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    prompt_tokens_details: Details | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    input_tokens_details: Details | None = None


class Message(msgspec.Struct, frozen=True):
    """The part of a chat message that says whether the model refused."""

    refusal: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """The part of a choice that is recorded."""

    finish_reason: str | None = None
    message: Message | None = None


class _Incomplete(msgspec.Struct, frozen=True):
    reason: str | None = None


class _Part(msgspec.Struct, frozen=True):
    type: str = ""


class _Item(msgspec.Struct, frozen=True):
    content: list[_Part] | None = None


class Body(msgspec.Struct, frozen=True):
    """The part of an answer's body that is recorded, of either API."""

    id: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    usage: Usage | None = None
    choices: list[Choice] | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    output: list[_Item] | None = None
    previous_response_id: str | None = None
    data: msgspec.Raw = msgspec.Raw()  # not `| None`: msgspec then takes nothing but null


_MOST_TOKENS = 2**31 - 1
_decode_body = msgspec.json.Decoder(Body).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def decode_body(raw: bytes | msgspec.Raw) -> Body:
    """Read the recorded part of an answer.

    Raises:
        JunkError: It is not JSON of that shape.
    """
    try:
        return _decode_body(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise JunkError(f"the provider's answer is not valid: {error}") from error


def check_answer(operation: Operation, raw: bytes) -> Body:
    """Read the recorded part of a whole answer, and see that it is one.

    Raises:
        JunkError: It is not.
    """
    body = decode_body(raw)
    if operation == "embeddings":
        if bytes(body.data) in (b"", b"null"):
            raise JunkError("the provider's answer has no data")
    elif body.choices is None and body.output is None:
        raise JunkError("the provider's answer has neither choices nor output")
    return body


def note_usage(interaction: Interaction, usage: Usage) -> None:
    """Record usage; a count that the provider leaves out stays unknown."""
    if usage.prompt_tokens is not None or usage.completion_tokens is not None:
        given, made, details = usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details
    elif usage.input_tokens is not None:
        given, made, details = usage.input_tokens, usage.output_tokens, usage.input_tokens_details
    else:
        return
    interaction.input_tokens = _count(given)
    interaction.output_tokens = _count(made or 0)
    interaction.cached_tokens = _count(details.cached_tokens) if details is not None else None


def _count(tokens: float | None) -> int | None:
    """A number of tokens as it can be recorded; None where it makes no sense."""
    return int(tokens) if tokens is not None and 0 <= tokens <= _MOST_TOKENS else None


def note_finish(interaction: Interaction, reason: str, *, first: bool = True) -> None:
    """Record why the model stopped; ``first`` says whether it is about the first choice."""
    if first and interaction.finish_reason is None:
        interaction.finish_reason = reason
    if reason == "content_filter":
        interaction.filtered = True


def note_body(interaction: Interaction, body: Body) -> None:
    """Record what an answer says about itself."""
    interaction.provider_id = body.id
    interaction.provider_model = body.model
    interaction.provider_fingerprint = body.system_fingerprint
    if body.usage is not None:
        note_usage(interaction, body.usage)
    for choice in body.choices or ():
        if choice.finish_reason:
            note_finish(interaction, choice.finish_reason)
        if choice.message is not None and choice.message.refusal:
            interaction.refused = True
    if body.status is not None:
        reason = body.incomplete_details.reason if body.incomplete_details is not None else None
        note_finish(interaction, reason or body.status)
        if body.status == "failed":
            interaction.error, interaction.release_error = "provider_error", True
    for item in body.output or ():
        if any(part.type == "refusal" for part in item.content or ()):
            interaction.refused = True


def rewrite_answer(
    interaction: Interaction, raw: bytes, body: Body, answer_id: bytes, previous: bytes | None = None
) -> bytes:
    """Record an answer and put the interaction id in the place of the provider's id.

    Args:
        interaction: Is filled in.
        raw: The answer as the provider sent it.
        body: What ``check_answer`` read from it.
        answer_id: The interaction id.
        previous: The client's ``previous_response_id``, put back in the place of the provider's.
    """
    note_body(interaction, body)
    if interaction.operation == "embeddings":
        return raw
    tokens = spell(raw, "id", body.id, answer_id) if body.id else []
    if not tokens:
        fields = {"id": msgspec.Raw(), **_decode_fields(raw)}
        fields["id"] = msgspec.Raw(b'"' + answer_id + b'"')
        raw = msgspec.json.encode(fields)
    if body.previous_response_id and previous is not None:
        tokens += spell(raw, "previous_response_id", body.previous_response_id, previous)
    for old, new in tokens:
        raw = raw.replace(old, new)
    return raw


def spell(raw: bytes, name: str, theirs: str, ours: bytes) -> list[tuple[bytes, bytes]]:
    """Say which bytes to replace by which, so that a field holds our id in the place of the provider's.

    The field's name is part of the bytes wherever the JSON is written in one of the usual ways: the id alone may well
    be somebody's text. Within a text, quotes are escaped.

    Args:
        raw: JSON that holds the field.
        name: The field.
        theirs: The provider's id.
        ours: What replaces it.

    Returns:
        Pairs of old and new bytes; none where the id is not found.
    """
    value, new = b'"' + theirs.encode() + b'"', b'"' + ours + b'"'
    for colon in (b'":', b'": '):
        field = b'"' + name.encode() + colon
        if field + value in raw:
            return [(field + value, field + new)]
    return [(value, new)] if value in raw else []
