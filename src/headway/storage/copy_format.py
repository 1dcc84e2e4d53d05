"""Interactions as rows of PostgreSQL's binary COPY format: twice as fast to write as text, and nothing to escape."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import msgspec

from headway.domain.interaction import Interaction

_FIXED = (
    ("at", "q"),
    ("id", "16s"),
    ("application", "i"),
    ("release", "i"),
    ("rollout", "i"),
    ("stage", "i"),
    ("arm", "h"),
    ("kind", "h"),
    ("unit", "8s"),
    ("own_unit", "?"),
    ("key", "i"),
    ("stream", "?"),
    ("status", "h"),
    ("release_error", "?"),
    ("aborted", "?"),
    ("refused", "?"),
    ("filtered", "?"),
    ("attempts", "h"),
    ("attempt_errors", "h"),
    ("fallback", "?"),
    ("total_ms", "f"),
    ("overhead_ms", "f"),
    ("queue_ms", "f"),
)
_VARIABLE = (
    "conversation",
    "user_id",
    "operation",
    "error",
    "deployment",
    "provider_id",
    "provider_model",
    "provider_fingerprint",
    "finish_reason",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_usd",
    "first_token_ms",
    "request",
    "answer",
    "mirror_of",
    "retrieval_ms",
    "passages",
    "context_tokens",
    "retrieval_error",
    "cited",
    "retrieved",
)
COLUMNS: tuple[str, ...] = (*(name for name, _ in _FIXED), *_VARIABLE)
"""The columns in the order in which rows hold them."""

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_ROW = struct.Struct(">h" + "".join("i" + code for _, code in _FIXED))
_LENGTH = struct.Struct(">i")
_INT = struct.Struct(">ii")
_FLOAT = struct.Struct(">if")
_DOUBLE = struct.Struct(">id")
_NULL = b"\xff\xff\xff\xff"
_UUID = _LENGTH.pack(16)
_SHORT = struct.Struct(">ih")
_BOOLEANS = {None: _NULL, False: _LENGTH.pack(1) + b"\0", True: _LENGTH.pack(1) + b"\1"}
_NO_RETRIEVAL = 6 * _NULL
_BIGINT = 20  # its OID
_ARRAY = struct.Struct(">iiiiii")  # length; dimensions, no nulls, type; elements, the first one's number
_EMPTY_ARRAY = struct.pack(">iiii", 12, 0, 0, _BIGINT)
_POSTGRES_EPOCH_US = 946_684_800_000_000
_REPLACEMENT = "\ufffd"
_MOST_WORDS = 1000
_SMALL, _LARGE, _HUGE = 2**15 - 1, 2**31 - 1, 2**63 - 1
_LONGEST_MS = 1e9


class RowEncoder:
    """Encodes interactions; remembers the encoding of words that come again and again."""

    def __init__(self) -> None:
        self._words: dict[str | None, bytes] = {None: _NULL}

    def encode(self, interactions: Sequence[Interaction]) -> bytes:
        """Write rows for ``COPY ... FROM STDIN (FORMAT binary)``.

        Text that PostgreSQL would refuse (NUL, invalid UTF-8, lone surrogates) is replaced, numbers that do not fit
        are cut: what a client or a provider sends must not keep an interaction from being recorded.
        """
        parts = [_HEADER]
        for interaction in interactions:
            start = len(parts)
            try:
                self._add(interaction, parts.append)
            except (struct.error, OverflowError):
                del parts[start:]
                self._add(_fitted(interaction), parts.append)
        parts.append(_TRAILER)
        return b"".join(parts)

    def _add(self, each: Interaction, append: Callable[[bytes], None]) -> None:
        # fmt: off
        append(_ROW.pack(
            len(COLUMNS),
            8, int.from_bytes(each.id[:6], "big") * 1000 - _POSTGRES_EPOCH_US,
            16, each.id, 4, each.application, 4, each.release, 4, each.rollout, 4, each.stage, 2, each.arm,
            2, each.kind, 8, each.unit, 1, each.own_unit, 4, each.key, 1, each.stream, 2, each.status,
            1, each.release_error, 1, each.aborted, 1, each.refused, 1, each.filtered, 2, each.attempts,
            2, each.attempt_errors, 1, each.fallback, 4, each.total_ms, 4, each.overhead_ms, 4, each.queue_ms,
        ))
        # fmt: on
        append(_text(each.conversation))
        append(_NULL if each.user is None else _text(each.user))
        known, word = self._words.get, self._word
        append(known(each.operation) or word(each.operation))
        append(known(each.error) or word(each.error))
        append(known(each.deployment) or word(each.deployment))
        append(_NULL if each.provider_id is None else _text(each.provider_id))
        append(known(each.provider_model) or word(each.provider_model))
        append(known(each.provider_fingerprint) or word(each.provider_fingerprint))
        append(known(each.finish_reason) or word(each.finish_reason))
        tokens, cached, output = each.input_tokens, each.cached_tokens, each.output_tokens
        append(_NULL if tokens is None else _INT.pack(4, tokens))
        append(_NULL if cached is None else _INT.pack(4, cached))
        append(_NULL if output is None else _INT.pack(4, output))
        append(_NULL if each.cost_usd is None else _DOUBLE.pack(8, each.cost_usd))
        append(_NULL if each.first_token_ms is None else _FLOAT.pack(4, each.first_token_ms))
        _add_body(each.request, append)
        _add_body(each.answer, append)
        append(_NULL if each.mirror_of is None else _UUID + each.mirror_of)
        if each.retrieval_ms is None:
            append(_NO_RETRIEVAL)
        else:
            self._add_retrieval(each, append)

    def _add_retrieval(self, each: Interaction, append: Callable[[bytes], None]) -> None:
        append(_FLOAT.pack(4, each.retrieval_ms))
        append(_NULL if each.passages is None else _SHORT.pack(2, each.passages))
        append(_NULL if each.context_tokens is None else _INT.pack(4, each.context_tokens))
        append(self._words.get(each.retrieval_error) or self._word(each.retrieval_error))
        append(_BOOLEANS[each.cited])
        append(_NULL if each.retrieved is None else _bigints(each.retrieved))

    def _word(self, word: str | None) -> bytes:
        if len(self._words) >= _MOST_WORDS:
            self._words = {None: _NULL}
        encoded = self._words[word] = _text(word or "")
        return encoded


def _bigints(numbers: Sequence[int]) -> bytes:
    count = len(numbers)
    if not count:
        return _EMPTY_ARRAY
    return _ARRAY.pack(20 + 12 * count, 1, 0, _BIGINT, count, 1) + struct.pack(">" + count * "iq", *_sized(numbers))


def _sized(numbers: Sequence[int]) -> Iterator[int]:
    for number in numbers:
        yield 8
        yield number


def _text(text: str) -> bytes:
    if "\0" in text:
        text = text.replace("\0", _REPLACEMENT)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # lone surrogates
        encoded = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _add_body(body: bytes | None, append: Callable[[bytes], None]) -> None:
    if body is None:
        append(_NULL)
        return
    if not body.isascii():
        body = body.decode("utf-8", "replace").encode()
    if b"\0" in body:
        body = body.replace(b"\0", _REPLACEMENT.encode())
    append(_LENGTH.pack(len(body)))
    append(body)


def _fitted(each: Interaction) -> Interaction:
    """Cut numbers to what their columns hold."""
    return msgspec.structs.replace(
        each,
        status=_cut(each.status, _SMALL),
        attempts=_cut(each.attempts, _SMALL),
        attempt_errors=_cut(each.attempt_errors, _SMALL),
        input_tokens=None if each.input_tokens is None else _cut(each.input_tokens, _LARGE),
        cached_tokens=None if each.cached_tokens is None else _cut(each.cached_tokens, _LARGE),
        output_tokens=None if each.output_tokens is None else _cut(each.output_tokens, _LARGE),
        first_token_ms=None if each.first_token_ms is None else min(each.first_token_ms, _LONGEST_MS),
        total_ms=min(each.total_ms, _LONGEST_MS),
        overhead_ms=min(each.overhead_ms, _LONGEST_MS),
        queue_ms=min(each.queue_ms, _LONGEST_MS),
        retrieval_ms=None if each.retrieval_ms is None else min(each.retrieval_ms, _LONGEST_MS),
        passages=None if each.passages is None else _cut(each.passages, _SMALL),
        context_tokens=None if each.context_tokens is None else _cut(each.context_tokens, _LARGE),
        retrieved=None if each.retrieved is None else tuple(_cut(number, _HUGE) for number in each.retrieved),
    )


def _cut(number: int, largest: int) -> int:
    return max(0, min(number, largest))
