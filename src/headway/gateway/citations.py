"""Citations: what an answer was given to go by, put into it by bytes; and whether it names any of that.

In a chat they are ``choices[0].message.context.citations``, in a stream those of the first chunk's ``delta``; in the
Responses API annotations of the first text. Everything else stays as the provider sent it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from headway.domain.interaction import Operation
from headway.domain.knowledge import Passage

_DELTA = re.compile(rb'"delta":\s?\{')
_MARKER = re.compile(r"\[(\d{1,4}(?:\s?[,;]\s?\d{1,4})*)\]")
_NUMBER = re.compile(r"\d+")
_TEXT_PART = "output_text"

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Citation(msgspec.Struct, frozen=True):
    """A passage as an answer cites it; also by the names that Azure OpenAI gives in its answers "on your data".

    Attributes:
        title: Title of its document.
        document, filepath: Path of its document.
        url: Where its document is on the web; None where that is not known.
        heading: The headings it stands under.
        chunk, chunk_id: Number of the chunk.
        score: How well it fits, 0 to 1.
        index: The index version, as ``handbook@3``.
        content: Its text.
    """

    title: str
    document: str
    filepath: str
    url: str | None
    heading: str
    chunk: int
    chunk_id: str
    score: float
    index: str
    content: str


class Citations:
    """The citations of one answer, in the shapes that the APIs have for them.

    Args:
        passages: What was put in front of the model, in the order of their numbers there.
        index: The index version that they come from.
    """

    def __init__(self, passages: Iterable[Passage], index: str) -> None:
        self._citations = tuple(_cite(each, index) for each in passages)

    def __len__(self) -> int:
        return len(self._citations)

    def context(self) -> bytes:
        """Give a chat message's ``context``."""
        return msgspec.json.encode({"citations": self._citations})

    def annotations(self) -> list[dict[str, Any]]:
        """Give the annotations of a text: file citations of the Responses API, each with its citation."""
        return [
            {
                "type": "file_citation",
                "index": place,
                "file_id": f"{each.index}/{each.chunk}",
                "filename": each.document,
                "citation": each,
            }
            for place, each in enumerate(self._citations)
        ]

    def put_in(self, operation: Operation, raw: bytes) -> bytes:
        """Put them into a whole answer; it stays as it is where it has no message or no text."""
        try:
            if operation == "chat":
                return _put_context(raw, self.context())
            part = first_text(output_of(raw))
            return raw if part is None else self.annotate(raw, part)
        except msgspec.DecodeError:  # an answer of a shape of its own
            return raw

    def put_in_chunk(self, event: bytes, payload: bytes) -> bytes:
        """Put them into the first delta of a chunk; its event is given with what it holds."""
        found = _DELTA.search(event)
        if found is not None and b'"context"' not in event:
            comma = b"" if event[found.end() :].lstrip()[:1] == b"}" else b","
            return event[: found.end()] + b'"context":' + self.context() + comma + event[found.end() :]
        choices = msgspec.json.decode(payload, type=_Choices).choices
        changed = _with_field(bytes(choices[0]), "delta", self.context())
        return _replace_once(event, bytes(choices[0]), changed)

    def annotate(self, raw: bytes, part: bytes) -> bytes:
        """Add annotations to a text part, given by its bytes, inside of an answer or event."""
        fields = _decode_fields(part)
        given = msgspec.json.decode(fields.get("annotations", b"[]"))
        annotations = [*(given if isinstance(given, list) else ()), *self.annotations()]
        fields["annotations"] = msgspec.Raw(msgspec.json.encode(annotations))
        return _replace_once(raw, part, msgspec.json.encode(fields))


def _cite(passage: Passage, index: str) -> Citation:
    return Citation(
        title=passage.title,
        document=passage.document,
        filepath=passage.document,
        url=passage.link,
        heading=passage.heading,
        chunk=passage.chunk,
        chunk_id=str(passage.chunk),
        score=passage.score,
        index=index,
        content=passage.text,
    )


class _Choices(msgspec.Struct, frozen=True):
    choices: list[msgspec.Raw] = []


class _Part(msgspec.Struct, frozen=True):
    type: str = ""


class Item(msgspec.Struct, frozen=True):
    """An item of a response's output, as far as it may hold a text."""

    type: str = ""
    content: list[msgspec.Raw] | None = None


class _Response(msgspec.Struct, frozen=True):
    output: list[Item] = []


def output_of(response: bytes | msgspec.Raw) -> list[Item]:
    """Give the items of a response's output."""
    return msgspec.json.decode(response, type=_Response).output


def first_text(items: Iterable[Item]) -> bytes | None:
    """Give the first text part of a response's output, as its bytes."""
    return next((bytes(part) for item in items for part in item.content or () if is_text(part)), None)


def is_text(part: bytes | msgspec.Raw) -> bool:
    """Say whether a part of a message is text of the model's."""
    return msgspec.json.decode(part, type=_Part).type == _TEXT_PART


def _put_context(raw: bytes, context: bytes) -> bytes:
    choices = msgspec.json.decode(raw, type=_Choices).choices
    if not choices:
        return raw
    return _replace_once(raw, bytes(choices[0]), _with_field(bytes(choices[0]), "message", context))


def _with_field(choice: bytes, name: str, context: bytes) -> bytes:
    """A choice whose message, or delta, has the context; other fields stay byte for byte."""
    message = bytes(_decode_fields(choice).get(name, b""))
    if message[:1] != b"{":
        return choice
    changed = msgspec.json.encode({**_decode_fields(message), "context": msgspec.Raw(context)})
    return _replace_once(choice, message, changed)


def _replace_once(raw: bytes, old: bytes, new: bytes) -> bytes:
    return raw.replace(old, new, 1)


# --- what clients send back ---

_CITING = b'"citation'


def without_citations(operation: Operation, body: bytes, fields: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """Take what earlier answers cited out of a conversation: clients send answers back as they got them.

    Strict providers refuse what they do not know, and passages do not belong into the record of a request.

    Args:
        operation: Whose shape the request has.
        body: The whole request.
        fields: Its fields.

    Returns:
        The fields; the same object where there is nothing to take out. What is left stays byte for byte.
    """
    name = "messages" if operation == "chat" else "input"
    if _CITING not in body or operation == "embeddings" or name not in fields:
        return fields
    clean = _without_context if operation == "chat" else _without_annotations
    try:
        said = msgspec.json.decode(fields[name], type=list[msgspec.Raw])
        left = [clean(each) if _CITING in bytes(each) else each for each in said]
    except (msgspec.DecodeError, RecursionError):  # the provider's to refuse
        return fields
    if left == said:
        return fields
    return {**fields, name: msgspec.Raw(msgspec.json.encode(left))}


def _without_context(message: msgspec.Raw) -> msgspec.Raw:
    fields = _decode_fields(message)
    context = msgspec.json.decode(fields.get("context", b"null"))
    if not isinstance(context, dict) or "citations" not in context:
        return message
    del fields["context"]
    return msgspec.Raw(msgspec.json.encode(fields))


def _without_annotations(item: msgspec.Raw) -> msgspec.Raw:
    fields = _decode_fields(item)
    if bytes(fields.get("content", b""))[:1] != b"[":
        return item
    said = msgspec.json.decode(fields["content"], type=list[msgspec.Raw])
    left = [_without_ours(each) if _CITING in bytes(each) else each for each in said]
    return item if left == said else msgspec.Raw(msgspec.json.encode({**fields, "content": left}))


def _without_ours(part: msgspec.Raw) -> msgspec.Raw:
    fields = _decode_fields(part)
    annotations = msgspec.json.decode(fields.get("annotations", b"null"))
    if not isinstance(annotations, list) or not any(map(_is_ours, annotations)):
        return part
    fields["annotations"] = msgspec.Raw(msgspec.json.encode([each for each in annotations if not _is_ours(each)]))
    return msgspec.Raw(msgspec.json.encode(fields))


def _is_ours(annotation: Any) -> bool:
    return isinstance(annotation, dict) and annotation.get("type") == "file_citation" and "citation" in annotation


# --- what an answer names ------------------------------------------------------------------------------------------


class _Said(msgspec.Struct, frozen=True):
    content: Any = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Said | None = None


class _Words(msgspec.Struct, frozen=True):
    type: str = ""
    text: Any = None


class _Line(msgspec.Struct, frozen=True):
    content: list[_Words] | None = None


class _Answer(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    output: list[_Line] = []


def is_cited(operation: Operation, answer: bytes, passages: int) -> bool | None:
    """Say whether an answer names one of the passages by its number in square brackets, as ``[2]`` or ``[1, 3]``.

    Args:
        operation: Whose shape the answer has.
        answer: The whole answer, as JSON.
        passages: How many there were.

    Returns:
        None where the answer has no text, such as one that calls a tool.
    """
    try:
        said = msgspec.json.decode(answer, type=_Answer)
    except msgspec.DecodeError:  # an answer of a shape of its own
        return None
    if operation == "chat":
        texts = [text for each in said.choices if each.message is not None for text in _texts(each.message.content)]
    else:
        texts = [
            part.text
            for line in said.output
            for part in line.content or ()
            if part.type == _TEXT_PART and isinstance(part.text, str)
        ]
    if not any(texts):
        return None
    return any(1 <= number <= passages for text in texts for number in _named(text))


def _texts(content: Any) -> Sequence[str]:
    """The texts of a message: one by the API, a list of parts from some servers."""
    if isinstance(content, str):
        return (content,)
    parts = content if isinstance(content, list) else ()
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _named(text: str) -> Iterable[int]:
    return (int(number) for marker in _MARKER.findall(text) for number in _NUMBER.findall(marker))


def without_instructions(response: bytes) -> bytes:
    """Take the echo of the instructions out of a response: they hold the passages, which are not for the record."""
    fields = _decode_fields(response)
    if fields.pop("instructions", None) is None:
        return response
    return msgspec.json.encode(fields)
