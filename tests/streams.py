"""Event streams for tests: as the simulator writes them, framed and cut in every way."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from headway.gateway.streams import StreamRewriter
from headway.testing.behaviour import Behaviour
from headway.testing.chat import ChatAnswer, Event
from headway.testing.draft import draw_plan
from headway.testing.question import read_chat, read_responses
from headway.testing.responses import ResponsesAnswer

_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"a": {"type": "string"}}}}}
    for name in ("look_up", "send")
]


@dataclass(frozen=True)
class Framing:
    """How a provider writes its events."""

    crlf: bool = False
    spaced: bool = False
    comments: bool = False
    blanks: bool = True

    def frame(self, event: Event) -> bytes:
        """Write one event."""
        data = event.data
        if self.spaced and data.startswith(b"{"):
            data = json.dumps(json.loads(data), ensure_ascii=False).encode()
        frame = (b"data: " if self.blanks else b"data:") + data + b"\n\n"
        if event.name is not None:
            frame = b"event: " + event.name.encode() + b"\n" + frame
        if self.comments:
            frame = b": keep-alive\n\n" + frame
        return frame.replace(b"\n", b"\r\n") if self.crlf else frame

    def frames(self, events: Iterable[Event]) -> list[bytes]:
        """Write events."""
        return [self.frame(event) for event in events]


framings = st.builds(Framing, st.booleans(), st.booleans(), st.booleans(), st.booleans())
behaviours = st.builds(
    Behaviour,
    refusal_ratio=st.sampled_from([0.0, 0.0, 1.0]),
    content_filter_ratio=st.just(0.0),
    tool_calls=st.integers(0, 2),
    reports_usage=st.booleans(),
    obfuscation=st.booleans(),
    event_tokens=st.integers(1, 3),
    answer_text=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    fingerprint=st.sampled_from(["fp_1", None]),
    prompt_tokens=st.integers(0, 5000),
    cached_ratio=st.sampled_from([0.0, 0.5]),
)


def chat_answer(seed: int, behaviour: Behaviour, *, azure: bool = False, **fields: Any) -> ChatAnswer:
    """The answer to a streamed chat request that asked for usage."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    question = read_chat({**body, "stream_options": {"include_usage": True}, **fields})
    return ChatAnswer(question, draw_plan(behaviour, question, random.Random(seed)), behaviour, 1, azure=azure)


def response_answer(seed: int, behaviour: Behaviour, **fields: Any) -> ResponsesAnswer:
    """The answer to a streamed request of the Responses API."""
    body = {"model": "m", "input": "hello", "stream": True, **fields}
    question = read_responses(body)
    return ResponsesAnswer(question, body, draw_plan(behaviour, question, random.Random(seed)), behaviour, 1)


chat_answers = st.builds(
    chat_answer,
    st.integers(0, 2**32),
    behaviours,
    azure=st.booleans(),
    n=st.integers(1, 3),
    tools=st.sampled_from([None, _TOOLS]),
    logprobs=st.booleans(),
)
response_answers = st.builds(
    response_answer,
    st.integers(0, 2**32),
    behaviours,
    tools=st.sampled_from([None, [{"type": "function", **tool["function"]} for tool in _TOOLS]]),  # type: ignore[dict-item]
    previous_response_id=st.sampled_from([None, "resp_before"]),
    max_output_tokens=st.sampled_from([None, 3]),
)
cut_places = st.lists(st.integers(0, 2**20), max_size=12)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """The data in pieces."""
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


def run(rewriter: StreamRewriter, pieces: Iterable[bytes]) -> bytes:
    """All that goes out."""
    return b"".join([rewriter.feed(piece) for piece in pieces]) + rewriter.finish()


def chunk(
    content: Any = None, finish_reason: str | None = None, provider_id: str | None = "c1", **fields: Any
) -> bytes:
    """One chunk of a chat completion, compact."""
    delta = {} if content is None else {"content": content}
    body = {"id": provider_id, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **fields}
    return event(body)


def event(body: Any, name: str | None = None) -> bytes:
    """One event, compact."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"


DONE = event(b"[DONE]")


def payloads(data: bytes) -> list[Any]:
    """What a client reads: the data of each event."""
    read = []
    for each in data.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in each.split(b"\n") if line.startswith(b"data:")]
        if lines:
            text = b"\n".join(lines)
            read.append("[DONE]" if text == b"[DONE]" else json.loads(text))
    return read
