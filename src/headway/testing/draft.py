"""Made-up answers: what the simulated provider says, decided before the first byte goes out.

Everything random is drawn here, in one go and from the model's own random numbers, so the k-th request for a model gets
the same answer in each run with the same seed, however requests overlap.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from headway.testing.behaviour import Behaviour, ErrorReply, Fault, server_error
from headway.testing.instance import make_instance
from headway.testing.question import Question, Tool

__all__ = ["Draft", "Plan", "ToolCall", "Usage", "draw_plan", "read_quality", "split_tokens"]

# Some words are not ASCII and some hold characters that JSON escapes: answers must survive being cut anywhere.
_PLAIN_WORDS = """
the your order account page to of and you can will please check open select menu button setting invoice password reset
address number team within minutes then again if not see below contact first second third option customer report value
"""
_WORDS = (
    *_PLAIN_WORDS.split(),
    *("café", "naïve", "«support»", "東京", "🙂", "€20", '"quoted"', "C:\\path", "line\nbreak", "tab\there"),
)
_TOKEN = re.compile(r"\s*\S{1,12}|\s+")
_QUALITY = re.compile(r"\[quality (\d\.\d{3})\]")
_REFUSAL = "I'm sorry, but I can't assist with that request."


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function with arguments that fit its schema, as JSON text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Draft:
    """One choice of an answer.

    Attributes:
        kind: Text (JSON included), a refusal, or calls of tools.
        tokens: The text in tokens; joined they are the text.
        calls: The calls, where it is calls.
        finish_reason: As in chat completions.
    """

    kind: Literal["text", "refusal", "calls"]
    tokens: Sequence[str]
    calls: tuple[ToolCall, ...]
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.tokens)

    @property
    def token_count(self) -> int:
        """Tokens generated, those of tool calls included."""
        return len(self.tokens) + sum(len(split_tokens(call.arguments)) + 4 for call in self.calls)

    def pieces(self, event_tokens: int) -> Iterator[Sequence[str]]:
        """Yield the tokens of each event of a stream."""
        for start in range(0, len(self.tokens), event_tokens):
            yield self.tokens[start : start + event_tokens]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request and its answer; ``completion_tokens`` include ``reasoning_tokens``."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the simulator is going to do about one request.

    Attributes:
        key: 32 hexadecimal digits, unique; the ids in the answer are made of it.
        error: Answer with this, and nothing else applies.
        fault: Break in this way.
        headers_seconds: Wait before the headers.
        first_token_seconds: Wait before the first event.
        pause_seed: Seed of the waits between events.
        drafts: One for each choice.
        usage: What is reported.
    """

    key: str
    error: ErrorReply | None
    fault: Fault | None
    headers_seconds: float
    first_token_seconds: float
    pause_seed: int
    drafts: tuple[Draft, ...]
    usage: Usage


def draw_plan(behaviour: Behaviour, question: Question, rng: random.Random) -> Plan:
    """Decide everything about the answer to ``question``; takes its random numbers from ``rng`` alone."""
    error = _draw_error(behaviour.errors, rng)
    fault = behaviour.fault if behaviour.fault and rng.random() < behaviour.fault_ratio else None
    drafts = tuple(_draft(behaviour, question, rng) for _ in range(question.choices))
    prompt_tokens = behaviour.prompt_tokens if behaviour.prompt_tokens is not None else question.prompt_tokens
    usage = Usage(
        prompt_tokens=prompt_tokens,
        cached_tokens=round(prompt_tokens * behaviour.cached_ratio),
        completion_tokens=sum(draft.token_count for draft in drafts) + behaviour.reasoning_tokens,
        reasoning_tokens=behaviour.reasoning_tokens,
    )
    if fault is Fault.ERROR_MID_STREAM and not question.stream:
        error = error or server_error()
    return Plan(
        key=f"{rng.getrandbits(128):032x}",
        error=error,
        fault=None if error else fault,
        headers_seconds=behaviour.headers_ms.draw(rng) / 1000,
        first_token_seconds=behaviour.first_token_ms.draw(rng) / 1000,
        pause_seed=rng.getrandbits(64),
        drafts=drafts,
        usage=usage,
    )


def read_quality(text: str) -> float | None:
    """Return the quality that a simulated answer carries in its text, ``None`` where it carries none.

    Example:
        >>> read_quality("[quality 0.800] please check your order")
        0.8
    """
    found = _QUALITY.search(text)
    return float(found[1]) if found else None


def split_tokens(text: str) -> list[str]:
    """Cut a text into pieces of about a word; joined they are the text again.

    Example:
        >>> split_tokens("see the page")
        ['see', ' the', ' page']
    """
    return _TOKEN.findall(text)


def _draw_error(errors: Sequence[ErrorReply], rng: random.Random) -> ErrorReply | None:
    if not errors:
        return None
    drawn = rng.random()
    for error in errors:
        drawn -= error.ratio
        if drawn < 0:
            return error
    return None


def _draft(behaviour: Behaviour, question: Question, rng: random.Random) -> Draft:
    fate = rng.random()
    if fate < behaviour.refusal_ratio:
        return Draft("refusal", split_tokens(_REFUSAL), (), "stop")
    calls = _draft_calls(behaviour, question, rng)
    if calls:
        # OpenAI says `stop`, not `tool_calls`, where the request names the function to call.
        forced = question.tool_choice not in ("auto", "required")
        return Draft("calls", (), calls, "stop" if forced else "tool_calls")
    tokens = _text_tokens(behaviour, question, rng)
    if fate < behaviour.refusal_ratio + behaviour.content_filter_ratio:
        return Draft("text", tokens[: len(tokens) // 2], (), "content_filter")
    if question.max_tokens is not None and len(tokens) > question.max_tokens:
        return Draft("text", tokens[: question.max_tokens], (), "length")
    return Draft("text", tokens, (), "stop")


def _draft_calls(behaviour: Behaviour, question: Question, rng: random.Random) -> tuple[ToolCall, ...]:
    tools: Sequence[Tool] = question.tools
    if not tools or question.tool_choice == "none":
        return ()
    if question.tool_choice == "auto":
        tools = tools[: behaviour.tool_calls] if question.from_user else ()
    elif question.tool_choice == "required":
        tools = tools[: max(1, behaviour.tool_calls)]
    else:
        tools = [tool for tool in tools if tool.name == question.tool_choice]
    if not question.parallel_tools:
        tools = tools[:1]
    return tuple(
        ToolCall(
            call_id=f"call_{rng.getrandbits(96):024x}",
            name=tool.name,
            arguments=json.dumps(make_instance(tool.parameters, rng), ensure_ascii=False),
        )
        for tool in tools
    )


def _text_tokens(behaviour: Behaviour, question: Question, rng: random.Random) -> Sequence[str]:
    if behaviour.answer_text is not None:
        return split_tokens(behaviour.answer_text)
    if question.schema is not None:
        return split_tokens(json.dumps(make_instance(question.schema, rng), ensure_ascii=False))
    count = max(1, round(behaviour.answer_tokens.draw(rng)))
    words = [f" {word}" for word in rng.choices(_WORDS, k=count)]
    quality = behaviour.quality
    for prompt, prompt_quality in behaviour.quality_by_prompt.items():
        if prompt in question.system_text:
            quality = prompt_quality
            break
    if quality is None:
        words[0] = words[0].lstrip()
    else:
        words[0] = f"[quality {quality:.3f}]"
    return words
