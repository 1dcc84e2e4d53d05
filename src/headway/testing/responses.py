"""Answers of the Responses API: one object, or the typed events of a stream; and the store behind their ids."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from headway.testing.behaviour import Behaviour
from headway.testing.chat import Event, token_logprobs
from headway.testing.draft import Draft, Plan, ToolCall, Usage, split_tokens
from headway.testing.question import Question, RequestError

__all__ = ["ResponseStore", "ResponsesAnswer"]

_encode = msgspec.json.Encoder().encode
# Request fields that the response object repeats, with the value that stands for "not given".
_ECHOED: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_Add = Callable[..., Event]


class ResponseStore:
    """Keeps the latest answered responses, so that later ones can continue them.

    Args:
        capacity: The oldest are forgotten beyond this many.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._responses: OrderedDict[str, Mapping[str, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._responses)

    def add(self, response: Mapping[str, Any]) -> None:
        """Keep a response object under its id."""
        self._responses[response["id"]] = response
        while len(self._responses) > self._capacity:
            self._responses.popitem(last=False)

    def get(self, response_id: str) -> Mapping[str, Any]:
        """Return a stored response object.

        Raises:
            RequestError: There is none; OpenAI's 404.
        """
        if response_id not in self._responses:
            raise RequestError(f"Response with id '{response_id}' not found.", status=404)
        return self._responses[response_id]

    def delete(self, response_id: str) -> None:
        """Forget a stored response.

        Raises:
            RequestError: There is none; OpenAI's 404.
        """
        self.get(response_id)
        del self._responses[response_id]

    def count_history_tokens(self, previous_response_id: Any) -> int:
        """Count the tokens that a request takes over from the response it continues.

        Raises:
            RequestError: There is no such response; OpenAI's 400.
        """
        if previous_response_id is None:
            return 0
        previous = self._responses.get(str(previous_response_id))
        if previous is None:
            raise RequestError(
                f"Previous response with id '{previous_response_id}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return int((previous.get("usage") or {}).get("total_tokens", 0))


@dataclass(frozen=True, slots=True)
class ResponsesAnswer:
    """Writes the answer to one Responses API request.

    Attributes:
        question: What was asked.
        request: The parsed request body; the answer repeats some of its fields.
        plan: What to say.
        behaviour: How it is written.
        created: Unix time in seconds.
    """

    question: Question
    request: Mapping[str, Any]
    plan: Plan
    behaviour: Behaviour
    created: int

    @property
    def answer_id(self) -> str:
        """The response's ``id``."""
        return f"resp_{self.plan.key}"

    def final(self) -> dict[str, Any]:
        """Make the finished response object."""
        response = self._response("completed", list(self._items()))
        draft = self.plan.drafts[0]
        if draft.finish_reason in ("length", "content_filter"):
            reason = "max_output_tokens" if draft.finish_reason == "length" else "content_filter"
            response |= {"status": "incomplete", "incomplete_details": {"reason": reason}}
        if self.behaviour.reports_usage:
            response["usage"] = _usage(self.plan.usage)
        return response

    def body(self) -> bytes:
        """Write the whole answer as one JSON document."""
        return _encode(self.final())

    def events(self) -> Iterator[Event]:
        """Yield the typed events of the answer as a stream."""
        numbers = itertools.count()
        padding = {"obfuscation": "aK3xQ9"} if self.behaviour.obfuscation else {}

        def event(kind: str, *, paced: bool = False, **fields: Any) -> Event:
            padded = padding if kind.endswith(".delta") else {}
            payload = {"type": kind, "sequence_number": next(numbers), **fields, **padded}
            return Event(kind, _encode(payload), paced)

        begun = self._response("in_progress", [])
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        draft = self.plan.drafts[0]
        if draft.kind == "calls":
            for index, call in enumerate(draft.calls):
                yield from self._call_events(event, index, call)
        else:
            yield from self._message_events(event, draft)
        final = self.final()
        yield event(f"response.{final['status']}", response=final)

    def _response(self, status: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        echoed = {name: self.request.get(name, default) for name, default in _ECHOED.items()}
        return {
            "id": self.answer_id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.behaviour.answers_as or self.question.model,
            "output": output,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "usage": None,
            **echoed,
        }

    def _items(self) -> Iterator[dict[str, Any]]:
        draft = self.plan.drafts[0]
        if draft.kind == "calls":
            for index, call in enumerate(draft.calls):
                yield self._call_item(index, call, call.arguments, "completed")
        else:
            status = "incomplete" if draft.finish_reason in ("length", "content_filter") else "completed"
            yield self._message_item([self._part(draft, draft.tokens)], status)

    def _message_item(self, content: list[Any], status: str) -> dict[str, Any]:
        item = {"id": f"msg_{self.plan.key}", "type": "message", "status": status}
        return {**item, "role": "assistant", "content": content}

    def _call_item(self, index: int, call: ToolCall, arguments: str, status: str) -> dict[str, Any]:
        item = {"id": f"fc_{index}_{self.plan.key}", "type": "function_call", "status": status}
        return {**item, "call_id": call.call_id, "name": call.name, "arguments": arguments}

    def _part(self, draft: Draft, tokens: Sequence[str]) -> dict[str, Any]:
        if draft.kind == "refusal":
            return {"type": "refusal", "refusal": "".join(tokens)}
        logprobs = self._logprobs(tokens)
        return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": "".join(tokens)}

    def _logprobs(self, tokens: Sequence[str]) -> list[dict[str, Any]]:
        return [] if self.question.logprobs is None else token_logprobs(tokens, self.question.logprobs)

    def _message_events(self, event: _Add, draft: Draft) -> Iterator[Event]:
        place = {"item_id": f"msg_{self.plan.key}", "output_index": 0, "content_index": 0}
        name = "output_text" if draft.kind == "text" else "refusal"
        started = self._message_item([], "in_progress")
        yield event("response.output_item.added", paced=True, output_index=0, item=started)
        yield event("response.content_part.added", **place, part=self._part(draft, ()))
        paced = False
        for tokens in draft.pieces(self.behaviour.event_tokens):
            extra = {"logprobs": self._logprobs(tokens)} if name == "output_text" else {}
            yield event(f"response.{name}.delta", paced=paced, **place, delta="".join(tokens), **extra)
            paced = True
        if name == "output_text":
            whole: dict[str, Any] = {"text": draft.text, "logprobs": self._logprobs(draft.tokens)}
        else:
            whole = {"refusal": draft.text}
        yield event(f"response.{name}.done", **place, **whole)
        yield event("response.content_part.done", **place, part=self._part(draft, draft.tokens))
        yield event("response.output_item.done", output_index=0, item=next(self._items()))

    def _call_events(self, event: _Add, index: int, call: ToolCall) -> Iterator[Event]:
        place = {"item_id": f"fc_{index}_{self.plan.key}", "output_index": index}
        started = self._call_item(index, call, "", "in_progress")
        yield event("response.output_item.added", paced=True, output_index=index, item=started)
        for token in split_tokens(call.arguments):
            yield event("response.function_call_arguments.delta", paced=True, **place, delta=token)
        done = {"name": call.name, "arguments": call.arguments}
        yield event("response.function_call_arguments.done", **place, **done)
        finished = self._call_item(index, call, call.arguments, "completed")
        yield event("response.output_item.done", output_index=index, item=finished)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
