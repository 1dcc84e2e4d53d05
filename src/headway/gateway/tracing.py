"""Traces of interactions, after OpenTelemetry's semantic conventions for generative AI. Off, they cost nothing.

One SERVER span per interaction (``chat support``) carries what was recorded of it; below it is one CLIENT span per
provider call (``chat gpt-4o-mini``), so that retries and fallbacks can be told apart, and one for the search of a
grounded answer (``retrieval handbook@3``). A search by itself is one SERVER span of that name. Tokens are on the
interaction's span alone, or a backend that adds them up would count them twice. No prompt, no query, no passage, no
answer, no user name is sent.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from headway.domain.interaction import Interaction, Operation
from headway.domain.release import Deployment
from headway.errors import ConfigurationError
from headway.ids import Arm, Kind

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from headway.gateway.otlp import SpanSource

Value = str | bool | int | float | list[str]

_PROTOCOL = "http/protobuf"
_OPERATIONS: dict[Operation, str] = {"chat": "chat", "responses": "chat", "embeddings": "embeddings"}
_API_TYPES: dict[Operation, str] = {"chat": "chat_completions", "responses": "responses"}
_PROVIDERS = {"openai": "openai", "azure_openai": "azure.ai.openai"}
_PORTS = {"http": 80, "https": 443}
_FINGERPRINT_PREFIX = "fp-"


class Tracing:
    """Makes the traces of one process."""

    def __init__(self, source: SpanSource) -> None:
        self._source = source

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self | None:
        """Start tracing if ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` is set.

        Whether to send and where is taken from ``environment``. The other standard variables (service name, resource
        attributes, sampler, headers, certificates, batch sizes) the SDK reads from the process's environment itself.

        Returns:
            None when traces are off.

        Raises:
            ConfigurationError: The environment asks for a protocol other than OTLP over HTTP.
        """
        endpoint = _endpoint(environment)
        if endpoint is None:
            return None
        from headway.gateway.otlp import SpanSource  # noqa: PLC0415 - loads the SDK: only when traces are on

        return cls(SpanSource(endpoint))

    def begin(self, headers: Mapping[bytes, bytes], operation: Operation, application: str) -> Trace:
        """Start the span of an interaction, below the caller's if its request names one (``traceparent``).

        Args:
            headers: The request's, names in lower case.
            operation: Which route.
            application: What the caller asked for.
        """
        attributes = _operation_attributes(operation)
        attributes["gen_ai.request.model"] = application
        span = self._source.begin_request(f"{_OPERATIONS[operation]} {application}", headers, attributes)
        return Trace(self._source, span, operation)

    def begin_search(self, headers: Mapping[bytes, bytes], index: str) -> CallTrace:
        """Start the span of a search without an answer, in an index version named as ``handbook@3``."""
        span = self._source.begin_request(f"retrieval {index}", headers, _retrieval_attributes(index))
        return CallTrace(self._source, span)

    def close(self, seconds: float = 5.0) -> None:
        """Send what is left, for at most ``seconds``; blocks."""
        self._source.close(seconds)


class Trace:
    """The trace of one interaction."""

    def __init__(self, source: SpanSource, span: Span, operation: Operation) -> None:
        self._source = source
        self._span = span
        self._operation: Operation = operation

    def begin_call(self, deployment: Deployment) -> CallTrace:
        """Start the span of one provider call."""
        endpoint = deployment.endpoint
        url = urlsplit(endpoint.base_url)
        attributes = _operation_attributes(self._operation) | {
            "gen_ai.provider.name": _PROVIDERS[endpoint.provider],
            "gen_ai.request.model": endpoint.model,
            "server.address": url.hostname or "",
            "server.port": url.port or _PORTS.get(url.scheme, 0),
            "headway.deployment": deployment.name,
        }
        name = f"{_OPERATIONS[self._operation]} {endpoint.model}"
        return CallTrace(self._source, self._source.begin_call(name, self._span, attributes))

    def begin_retrieval(self, index: str) -> CallTrace:
        """Start the span of a search in an index version, named as ``handbook@3``."""
        span = self._source.begin_call(f"retrieval {index}", self._span, _retrieval_attributes(index))
        return CallTrace(self._source, span)

    def finish(self, interaction: Interaction, application: str, release: str) -> None:
        """Write what was recorded of the interaction onto its span, and end it.

        Args:
            interaction: As handed to the recorder.
            application: Its application's name.
            release: Its release's name.
        """
        failed = interaction.status >= 500 or interaction.release_error
        self._source.end(self._span, _interaction_attributes(interaction, application, release), failed)


class CallTrace:
    """The span of one provider call, or of one search."""

    def __init__(self, source: SpanSource, span: Span) -> None:
        self._source = source
        self._span = span

    def headers(self) -> dict[str, str]:
        """Headers (``traceparent``) that make the provider's spans children of this call."""
        return self._source.headers(self._span)

    def finish(self, status: int | None, error: str | None = None) -> None:
        """End the span.

        Args:
            status: HTTP status of the provider's answer, if one came.
            error: Stable code of why the call failed; None if it did not.
        """
        attributes: dict[str, Value] = {}
        if status is not None:
            attributes["http.response.status_code"] = status
        if error is not None:
            attributes["error.type"] = error
        self._source.end(self._span, attributes, error is not None)


def _endpoint(environment: Mapping[str, str]) -> str | None:
    """Find where traces go, or None when they are off."""
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or environment.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    endpoint = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint and base:
        endpoint = base.rstrip("/") + "/v1/traces"
    if not endpoint:
        return None
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and protocol != _PROTOCOL:
        message = (
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, but Headway sends traces as {_PROTOCOL} only: "
            f"set it to {_PROTOCOL} and the endpoint to the receiver's HTTP port (usually 4318)"
        )
        raise ConfigurationError(message)
    if urlsplit(endpoint).scheme not in _PORTS:
        raise ConfigurationError(f"the OTLP endpoint {endpoint!r} is not an http:// or https:// URL")
    return endpoint


def _retrieval_attributes(index: str) -> dict[str, Value]:
    return {"gen_ai.operation.name": "retrieval", "gen_ai.data_source.id": index}


def _operation_attributes(operation: Operation) -> dict[str, Value]:
    attributes: dict[str, Value] = {"gen_ai.operation.name": _OPERATIONS[operation]}
    if operation in _API_TYPES:
        attributes["openai.api.type"] = _API_TYPES[operation]
    return attributes


def _interaction_attributes(interaction: Interaction, application: str, release: str) -> dict[str, Value]:
    attributes: dict[str, Value | None] = {
        "headway.interaction": str(uuid.UUID(bytes=interaction.id)),
        "headway.application": application,
        "headway.release": release,
        "headway.kind": Kind(interaction.kind).name.lower(),
        "headway.deployment": interaction.deployment or None,
        "headway.attempts": interaction.attempts,
        "headway.fallback": interaction.fallback,
        "headway.overhead_ms": interaction.overhead_ms,
        "headway.queue_ms": interaction.queue_ms,
        "headway.cost_usd": interaction.cost_usd,
        "headway.retrieval_ms": interaction.retrieval_ms,
        "headway.passages": interaction.passages,
        "headway.context_tokens": interaction.context_tokens,
        "headway.retrieval_error": interaction.retrieval_error,
        "headway.cited": interaction.cited,
        "http.response.status_code": interaction.status,
        "error.type": interaction.error,
        "gen_ai.response.id": interaction.provider_id,
        "gen_ai.response.model": interaction.provider_model,
        "gen_ai.usage.input_tokens": interaction.input_tokens,
        "gen_ai.usage.cache_read.input_tokens": interaction.cached_tokens,
        "gen_ai.usage.output_tokens": interaction.output_tokens,
        "openai.response.system_fingerprint": interaction.provider_fingerprint,
    }
    if interaction.rollout:
        attributes["headway.rollout"] = interaction.rollout
        attributes["headway.stage"] = interaction.stage
        attributes["headway.arm"] = Arm(interaction.arm).name.lower()
    # The conventions want the caller's own conversation ids only, no hash made up in their place.
    if interaction.conversation and not interaction.conversation.startswith(_FINGERPRINT_PREFIX):
        attributes["gen_ai.conversation.id"] = interaction.conversation
    if interaction.finish_reason:
        attributes["gen_ai.response.finish_reasons"] = [interaction.finish_reason]
    if interaction.stream:
        attributes["gen_ai.request.stream"] = True
        if interaction.first_token_ms is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = interaction.first_token_ms / 1000
    return {name: value for name, value in attributes.items() if value is not None}
