"""What a simulated provider does: how fast, how well and in which way it fails.

A ``Behaviour`` is frozen; the simulator is given another one to change its ways. It is plain data, so it can also be
written as JSON for the command line (``python -m headway.testing.provider --behaviour gpt-4o-mini=slow.json``).

Example:
    A model that takes 200 ms to its first token and answers every twentieth request with 429::

        Behaviour(first_token_ms=Lognormal(200, sigma=0.4), errors=(rate_limited(ratio=0.05),))
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

__all__ = [
    "Behaviour",
    "ErrorReply",
    "Fault",
    "Lognormal",
    "context_length_exceeded",
    "overloaded",
    "prompt_filtered",
    "rate_limited",
    "server_error",
]


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A lognormal distribution of times or counts, given by its median.

    With ``sigma`` 0 it is a constant. Its 95th percentile is ``median * exp(1.645 * sigma)``.

    Attributes:
        median: Half of the draws are below this; 0 means always 0. The unit is in the name of the field that uses it.
        sigma: Standard deviation of the logarithm.
        maximum: No draw is above this.

    Example:
        >>> Lognormal(20).draw(random.Random(1))
        20.0
        >>> draws = [Lognormal(100, sigma=0.5, maximum=150.0).draw(random.Random(seed)) for seed in range(200)]
        >>> max(draws)
        150.0
    """

    median: float
    sigma: float = 0.0
    maximum: float = math.inf

    def __post_init__(self) -> None:
        if not (0 <= self.median < math.inf and 0 <= self.sigma < math.inf and self.maximum >= 0):
            raise ValueError(f"median, sigma and maximum must not be negative: {self!r}")

    def draw(self, rng: random.Random) -> float:
        """Draw one value; exactly one number is taken from ``rng`` when there is anything random."""
        if not self.median or not self.sigma:
            return min(float(self.median), self.maximum)
        return min(self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0)), self.maximum)


class Fault(StrEnum):
    """A way to fail that is not an orderly HTTP error.

    "Mid-stream" means after ``Behaviour.fault_after_events`` events of a stream, or after half of a JSON body.
    """

    HANG_BEFORE_HEADERS = "hang_before_headers"
    """Accept the request and never say anything."""
    HANG_AFTER_HEADERS = "hang_after_headers"
    """Send the headers of a good answer and nothing more."""
    HANG_MID_STREAM = "hang_mid_stream"
    """Send a part of a good answer and nothing more."""
    RESET_BEFORE_HEADERS = "reset_before_headers"
    """Reset the connection (TCP RST) without a byte."""
    CLOSE_BEFORE_HEADERS = "close_before_headers"
    """Close the connection (TCP FIN) without a byte."""
    RESET_MID_STREAM = "reset_mid_stream"
    """Send a part of a good answer, then reset the connection (TCP RST)."""
    CLOSE_MID_STREAM = "close_mid_stream"
    """Send a part of a good answer, then close the connection (TCP FIN): the HTTP body is incomplete."""
    END_EARLY = "end_early"
    """End the HTTP body properly, but too soon: no ``[DONE]``, no finish reason, or half a JSON document."""
    ERROR_MID_STREAM = "error_mid_stream"
    """Send an error event in the middle of a stream, then end it; without a stream: 500."""
    INVALID_JSON = "invalid_json"
    """Say 200 and send something that is not JSON (in a stream: as the data of an event)."""
    MALFORMED_SSE = "malformed_sse"
    """Send frames that break the event stream format; without a stream: bare JSON text with rubbish around it."""
    WRONG_CONTENT_TYPE = "wrong_content_type"
    """Say 200 and send an HTML page, as a captive proxy does."""
    EMPTY_BODY = "empty_body"
    """Say 200 and send no body."""
    HALF_UTF8 = "half_utf8"
    """End the body properly in the middle of a UTF-8 character inside a JSON string."""
    GZIP_JUNK = "gzip_junk"
    """Announce ``Content-Encoding: gzip`` and send bytes that are not gzip."""
    NOT_HTTP = "not_http"
    """Answer with bytes that are not HTTP, then close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """An orderly HTTP error in OpenAI's shape, and how often it comes.

    Attributes:
        ratio: Share of requests that get it, 0 to 1.
        status: HTTP status, 400 or more.
        message: For a person.
        error_type: ``error.type`` of OpenAI's error object.
        code: ``error.code``.
        param: ``error.param``.
        retry_after_seconds: Sends ``Retry-After`` with this delay.
        retry_after_as_date: Write ``Retry-After`` as an HTTP date (whole seconds, rounded up) instead of seconds.
        headers: More response headers.
    """

    ratio: float = 1.0
    status: int = 500
    message: str = "The server had an error while processing your request. Sorry about that!"
    error_type: str = "server_error"
    code: str | None = None
    param: str | None = None
    retry_after_seconds: float | None = None
    retry_after_as_date: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ratio("ErrorReply.ratio", self.ratio)
        if not 400 <= self.status <= 599:
            raise ValueError(f"ErrorReply.status must be 400 to 599, not {self.status}")


def rate_limited(
    retry_after_seconds: float | None = None, *, ratio: float = 1.0, as_date: bool = False, status: int = 429
) -> ErrorReply:
    """Make the reply of a provider whose rate limit is reached (429)."""
    return ErrorReply(
        ratio=ratio,
        status=status,
        message="Rate limit reached for requests. Please try again later.",
        error_type="requests",
        code="rate_limit_exceeded",
        retry_after_seconds=retry_after_seconds,
        retry_after_as_date=as_date,
    )


def server_error(*, ratio: float = 1.0) -> ErrorReply:
    """Make the reply of a provider that broke (500)."""
    return ErrorReply(ratio=ratio)


def overloaded(retry_after_seconds: float | None = None, *, ratio: float = 1.0) -> ErrorReply:
    """Make the reply of a provider without capacity (503)."""
    return ErrorReply(
        ratio=ratio,
        status=503,
        message="The engine is currently overloaded, please try again later.",
        error_type="service_unavailable_error",
        retry_after_seconds=retry_after_seconds,
    )


def context_length_exceeded(*, ratio: float = 1.0) -> ErrorReply:
    """Make the reply to a prompt that is too long for the model (400)."""
    return ErrorReply(
        ratio=ratio,
        status=400,
        message="This model's maximum context length is 128000 tokens. Please reduce the length of the messages.",
        error_type="invalid_request_error",
        code="context_length_exceeded",
        param="messages",
    )


def prompt_filtered(*, ratio: float = 1.0) -> ErrorReply:
    """Make the reply of Azure's content filter to a prompt (400)."""
    return ErrorReply(
        ratio=ratio,
        status=400,
        message="The response was filtered due to the prompt triggering the content management policy.",
        error_type="invalid_request_error",
        code="content_filter",
        param="prompt",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the simulated provider treats requests for one model.

    A request first meets ``errors`` (at most one), then ``fault``, else it is answered.

    Attributes:
        headers_ms: From the request to the response headers of a stream.
        first_token_ms: From the headers to the first event of a stream.
        inter_token_ms: Between two events of a stream. Where it is 0, events that are ready share a write. An answer
            without a stream takes the sum of all three.
        answer_tokens: Length of an answer in tokens; at least 1.
        answer_text: Say exactly this instead of made-up text.
        event_tokens: Tokens in one event of a stream.
        prompt_tokens: Report this; by default it is estimated from the length of the prompt.
        cached_ratio: Share of the prompt's tokens reported as cached.
        reasoning_tokens: Reported as reasoning, and counted in the completion's tokens.
        reports_usage: Without it, usage is never reported, as some servers do.
        quality: Quality of the answers, 0 to 1. Written into the text (see ``read_quality``) and otherwise without
            effect: the traffic simulator's users rate by it.
        quality_by_prompt: Quality where a system or developer message contains the key; the first that fits wins.
        refusal_ratio: Share of answers that are refusals.
        content_filter_ratio: Share of answers cut off by a content filter.
        tool_calls: How many of the offered tools are called, when a user's message meets ``tools``; 0 answers in text.
        errors: Orderly HTTP errors. Their ratios may add up to at most 1.
        fault: How connections and bodies break.
        fault_ratio: Share of the remaining requests that meet ``fault``.
        fault_after_events: Events that are sent before a fault in mid-stream.
        rejects: Request fields that are refused with 400, as older servers do with fields they do not know.
        answers_as: Model name in the answers; by default the one that was asked for.
        fingerprint: ``system_fingerprint`` in the answers.
        obfuscation: Add OpenAI's ``obfuscation`` padding behind the last field of each event.
        spaced_json: Write JSON with spaces behind colons and commas, as servers in Python do.
        crlf: End the lines of event streams with CR LF.
        comments: Send an SSE comment before each event, as servers do to keep connections open.
        write_bytes: Cut the body into writes of this many bytes, whatever the frames.
        write_pause_ms: Wait between those writes: a slow drip.
    """

    headers_ms: Lognormal = Lognormal(0)
    first_token_ms: Lognormal = Lognormal(0)
    inter_token_ms: Lognormal = Lognormal(0)
    answer_tokens: Lognormal = Lognormal(16, sigma=0.4)
    answer_text: str | None = None
    event_tokens: int = 1
    prompt_tokens: int | None = None
    cached_ratio: float = 0.0
    reasoning_tokens: int = 0
    reports_usage: bool = True
    quality: float | None = None
    quality_by_prompt: Mapping[str, float] = field(default_factory=dict)
    refusal_ratio: float = 0.0
    content_filter_ratio: float = 0.0
    tool_calls: int = 1
    errors: tuple[ErrorReply, ...] = ()
    fault: Fault | None = None
    fault_ratio: float = 1.0
    fault_after_events: int = 3
    rejects: frozenset[str] = frozenset()
    answers_as: str | None = None
    fingerprint: str | None = "fp_headway"
    obfuscation: bool = False
    spaced_json: bool = False
    crlf: bool = False
    comments: bool = False
    write_bytes: int | None = None
    write_pause_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("cached_ratio", "refusal_ratio", "content_filter_ratio", "fault_ratio"):
            _check_ratio(f"Behaviour.{name}", getattr(self, name))
        for name, quality in (("quality", self.quality), *self.quality_by_prompt.items()):
            if quality is not None:
                _check_ratio(f"Behaviour.quality ({name})", quality)
        if sum(error.ratio for error in self.errors) > 1 + 1e-9:
            raise ValueError("the ratios of Behaviour.errors add up to more than 1")
        if self.refusal_ratio + self.content_filter_ratio > 1 + 1e-9:
            raise ValueError("refusal_ratio and content_filter_ratio add up to more than 1")
        for name in ("event_tokens", "write_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"Behaviour.{name} must be at least 1, not {value}")
        for name in ("tool_calls", "reasoning_tokens", "fault_after_events", "write_pause_ms", "prompt_tokens"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"Behaviour.{name} must not be negative, not {value}")

    @classmethod
    def from_json(cls, text: str | bytes) -> Behaviour:
        """Read a behaviour from JSON with the same field names.

        Raises:
            ValueError: It is not JSON, or a field is unknown, of the wrong type or out of range.

        Example:
            >>> Behaviour.from_json('{"first_token_ms": {"median": 80}, "fault": "hang_mid_stream"}').fault
            <Fault.HANG_MID_STREAM: 'hang_mid_stream'>
        """
        fields = msgspec.json.decode(text)
        known = cls.__dataclass_fields__
        for name in fields if isinstance(fields, dict) else ():
            if name not in known:
                raise ValueError(f"unknown field of a behaviour: {name!r}; known: {', '.join(sorted(known))}")
        return msgspec.convert(fields, cls)


def _check_ratio(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value}")
