"""What is recorded of one interaction."""

from __future__ import annotations

from typing import Literal

import msgspec

Operation = Literal["chat", "responses", "embeddings"]


class Interaction(msgspec.Struct, array_like=True):
    """One caller request with its provider calls and its answer.

    Filled in by the gateway while the request runs, then handed to the recorder and never changed again.

    Attributes:
        id: 16 bytes of UUIDv7; its time is the start.
        application, release, rollout, stage, arm, kind, unit, key: As in ``headway.ids.InteractionId``.
        own_unit: The request named no unit and is its own.
        conversation: Explicit conversation id or fingerprint.
        user: The request's ``user`` / ``safety_identifier``, if any.
        operation: Which route.
        stream: Whether the answer was streamed.
        status: HTTP status of the answer; 499 when the client went away before one.
        error: Code of the error, if it failed.
        release_error: The failure counts against the release (statistics, booking rule 7).
        aborted: The client went away.
        refused: The model refused.
        filtered: The provider's content filter stepped in.
        deployment: Name of the deployment that answered, or was tried last.
        attempts: Provider calls made.
        attempt_errors: Of them, failed.
        fallback: The answer came from a fallback deployment.
        provider_id: The provider's id of the answer.
        provider_model, provider_fingerprint: What the provider says it used.
        finish_reason: Of the first choice.
        input_tokens, cached_tokens, output_tokens: Usage; None where the provider told none.
        cost_usd: None without usage or prices.
        first_token_ms: Request in to first content out.
        total_ms: Request in to last byte out.
        overhead_ms: Part of it spent in Headway.
        queue_ms: Time waited for a place at the deployment.
        request, answer: Bodies as bytes; None when content is not recorded. A streamed answer is its text or message.
        mirror_of: Of a mirrored request: id of the interaction that it mirrors.
        retrieval_ms: Time spent on finding passages, whatever came of it; None where the release is not grounded.
        passages: Passages that were put in front of the model; None where none were searched, or the search failed.
        context_tokens: What they take together, by the index's tokenizer; None as for ``passages``.
        retrieval_error: Code of the error, if the search failed; by the release's policy it was answered all the same.
        cited: The answer names at least one passage by its number; None without retrieval or a whole answer in text.
        retrieved: Numbers of the chunks that were put in front of the model, in that order.
    """

    id: bytes
    application: int
    release: int
    rollout: int
    stage: int
    arm: int
    kind: int
    unit: bytes
    own_unit: bool
    key: int
    conversation: str
    user: str | None
    operation: Operation
    stream: bool
    status: int = 0
    error: str | None = None
    release_error: bool = False
    aborted: bool = False
    refused: bool = False
    filtered: bool = False
    deployment: str = ""
    attempts: int = 0
    attempt_errors: int = 0
    fallback: bool = False
    provider_id: str | None = None
    provider_model: str | None = None
    provider_fingerprint: str | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    first_token_ms: float | None = None
    total_ms: float = 0.0
    overhead_ms: float = 0.0
    queue_ms: float = 0.0
    request: bytes | None = None
    answer: bytes | None = None
    mirror_of: bytes | None = None
    retrieval_ms: float | None = None
    passages: int | None = None
    context_tokens: int | None = None
    retrieval_error: str | None = None
    cited: bool | None = None
    retrieved: tuple[int, ...] | None = None

    @property
    def unix_ms(self) -> int:
        """When it began, in Unix milliseconds."""
        return int.from_bytes(self.id[:6], "big")
