"""Chat completions as OpenAI and Azure OpenAI write them: one body, or the chunks of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from headway.testing.behaviour import Behaviour
from headway.testing.draft import Draft, Plan, Usage, split_tokens
from headway.testing.question import Question

__all__ = ["DONE", "ChatAnswer", "Event", "token_logprobs"]

_encode = msgspec.json.Encoder().encode
_SAFE = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}
# Azure opens each stream with a chunk that has neither an id nor a choice.
_AZURE_OPENING = _encode(
    {
        "choices": [],
        "created": 0,
        "id": "",
        "model": "",
        "object": "",
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _SAFE}],
    }
)


class Event(NamedTuple):
    """One event of a stream.

    Attributes:
        name: The SSE event name; chat completions have none.
        data: JSON, or ``[DONE]``.
        paced: The model has to generate a token before this event.
    """

    name: str | None
    data: bytes
    paced: bool


DONE = Event(None, b"[DONE]", paced=False)


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """Writes the answer to one chat completion request.

    Attributes:
        question: What was asked.
        plan: What to say.
        behaviour: How it is written.
        created: Unix time in seconds.
        azure: With Azure's content filter annotations.
    """

    question: Question
    plan: Plan
    behaviour: Behaviour
    created: int
    azure: bool = False

    @property
    def answer_id(self) -> str:
        """The answer's ``id``."""
        return f"chatcmpl-{self.plan.key[:29]}"

    def body(self) -> bytes:
        """Write the whole answer as one JSON document."""
        answer: dict[str, Any] = self._head("chat.completion")
        answer["choices"] = [self._choice(index, draft) for index, draft in enumerate(self.plan.drafts)]
        if self.behaviour.reports_usage:
            answer["usage"] = _usage(self.plan.usage)
        if self.azure:
            answer["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": _SAFE}]
        return _encode(answer)

    def events(self) -> Iterator[Event]:
        """Yield the chunks of the answer as a stream, ``[DONE]`` included."""
        head = _encode(self._head("chat.completion.chunk"))[:-1] + b',"choices":['
        asked = self.question.include_usage and self.behaviour.reports_usage
        tail = b'],"usage":null' if asked else b"]"
        padding = b',"obfuscation":"aK3xQ9"}' if self.behaviour.obfuscation else b"}"
        if self.azure:
            yield Event(None, _AZURE_OPENING, paced=False)
        for choice, paced in self._interleaved():
            yield Event(None, head + choice + tail + padding, paced)
        if asked:
            yield Event(None, head + b'],"usage":' + _encode(_usage(self.plan.usage)) + padding, paced=False)
        yield DONE

    def _head(self, kind: str) -> dict[str, Any]:
        head = {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.behaviour.answers_as or self.question.model,
            "service_tier": "default",
            "system_fingerprint": self.behaviour.fingerprint,
        }
        if self.azure:
            del head["service_tier"]
        return head

    def _choice(self, index: int, draft: Draft) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
        if draft.kind == "calls":
            message["tool_calls"] = [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in draft.calls
            ]
        else:
            message["content" if draft.kind == "text" else "refusal"] = draft.text
        choice = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(draft, draft.tokens),
            "finish_reason": draft.finish_reason,
        }
        if self.azure:
            choice["content_filter_results"] = self._filters(draft)
        return choice

    def _interleaved(self) -> Iterator[tuple[bytes, bool]]:
        """Yield the choices' deltas in turn: all first ones, all second ones, and so on."""
        streams = [self._deltas(index, draft) for index, draft in enumerate(self.plan.drafts)]
        if len(streams) == 1:
            yield from streams[0]
            return
        while streams:
            still_going = []
            for number, stream in enumerate(streams):
                if (delta := next(stream, None)) is not None:
                    # The choices are generated together: one wait for a round of tokens.
                    yield delta[0], delta[1] and number == 0
                    still_going.append(stream)
            streams = still_going

    def _deltas(self, index: int, draft: Draft) -> Iterator[tuple[bytes, bool]]:
        """Yield the chunks of one choice, and whether a token has to be generated for each."""
        start = b'{"index":%d,"delta":' % index
        end = b',"logprobs":null,"finish_reason":null}'
        if draft.kind == "calls":
            yield from self._call_deltas(draft, start, end)
        else:
            yield start + b'{"role":"assistant","content":"","refusal":null}' + end, True
            name = b'{"content":' if draft.kind == "text" else b'{"refusal":'
            paced = False
            for tokens in draft.pieces(self.behaviour.event_tokens):
                delta = name + _encode("".join(tokens)) + b"}"
                if self.question.logprobs is not None:
                    logprobs = _encode(self._logprobs(draft, tokens))
                    yield start + delta + b',"logprobs":' + logprobs + b',"finish_reason":null}', paced
                else:
                    yield start + delta + end, paced
                paced = True
        last = start + b'{},"logprobs":null,"finish_reason":"' + draft.finish_reason.encode() + b'"'
        if self.azure:
            last += b',"content_filter_results":' + _encode(self._filters(draft))
        yield last + b"}", False

    def _call_deltas(self, draft: Draft, start: bytes, end: bytes) -> Iterator[tuple[bytes, bool]]:
        for number, call in enumerate(draft.calls):
            opening: dict[str, Any] = {"role": "assistant", "content": None} if number == 0 else {}
            function = {"name": call.name, "arguments": ""}
            opening["tool_calls"] = [{"index": number, "id": call.call_id, "type": "function", "function": function}]
            if number == 0:
                opening["refusal"] = None
            yield start + _encode(opening) + end, True
            for token in split_tokens(call.arguments):
                fragment = {"tool_calls": [{"index": number, "function": {"arguments": token}}]}
                yield start + _encode(fragment) + end, True

    def _logprobs(self, draft: Draft, tokens: Sequence[str]) -> dict[str, Any] | None:
        if self.question.logprobs is None or draft.kind == "calls":
            return None
        listed = token_logprobs(tokens, self.question.logprobs)
        return {
            "content": listed if draft.kind == "text" else None,
            "refusal": listed if draft.kind == "refusal" else None,
        }

    @staticmethod
    def _filters(draft: Draft) -> dict[str, Any]:
        if draft.finish_reason != "content_filter":
            return _SAFE
        return {**_SAFE, "violence": {"filtered": True, "severity": "high"}}


def token_logprobs(tokens: Sequence[str], alternatives: int) -> list[dict[str, Any]]:
    """Make up log probabilities for tokens: the token itself is always the likeliest."""
    listed = []
    for token in tokens:
        own = _logprob(token, -0.05)
        others = (_logprob(f" {number}", -3.0 - number) for number in range(1, alternatives))
        listed.append({**own, "top_logprobs": [own, *others][:alternatives]})
    return listed


def _logprob(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob - math.log1p(len(token)) / 100, "bytes": list(token.encode())}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
