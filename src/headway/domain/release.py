"""Deployments and releases: what can answer, frozen.

A release holds everything that can change an answer. Its content hash covers exactly that, so the same bundle is
the same release however often it is applied; what cannot change an answer (secrets, prices, limits) is not in it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

ProviderKind = Literal["openai", "azure_openai"]


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices of a deployment in US dollars per million tokens."""

    input: float
    output: float
    cached_input: float | None = None

    def cost_usd(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """Price one call; cached input tokens are part of the input tokens."""
        cached = self.input if self.cached_input is None else self.cached_input
        cached_tokens = min(cached_tokens, input_tokens)
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * cached + output_tokens * self.output) / 1e6


class Endpoint(msgspec.Struct, frozen=True, cache_hash=True):
    """The part of a deployment that can change an answer: it is part of the release.

    Attributes:
        provider: Dialect of the endpoint.
        base_url: URL in front of ``/chat/completions`` (openai), or the resource's endpoint (azure_openai).
        model: Model name (openai) or deployment name (azure_openai) sent to the provider.
        api_version: For azure_openai; empty for its versionless ``/openai/v1`` API.
    """

    provider: ProviderKind
    base_url: str
    model: str
    api_version: str = ""


class Operation(msgspec.Struct, frozen=True, cache_hash=True):
    """The part of a deployment that cannot change an answer: it follows the latest applied configuration.

    Attributes:
        auth: How to authenticate: an API key, an Entra token, or nothing.
        api_key: Secret reference (``env:NAME`` or ``file:/path``), never the secret.
        headers: Extra headers; values may be secret references.
        usd_per_million_tokens: Prices, if known.
        connect_seconds: Longest wait for a connection.
        first_token_seconds: Longest wait for the first byte of a streamed answer, and between two of them.
        total_seconds: Longest time for the whole call.
        attempts: Tries on this deployment, the first included.
        max_concurrency: Calls in flight per replica, shared out evenly among its workers; 0 is no limit.
        queue_size: Calls that may wait for a place, per worker.
        queue_seconds: Longest wait for a place.
        breaker_failures: Consecutive failures that open the circuit; 0 never opens it.
        breaker_seconds: How long the circuit stays open before one call may try.
    """

    auth: Literal["api_key", "entra", "none"] = "api_key"
    api_key: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    usd_per_million_tokens: Prices | None = None
    connect_seconds: float = 5.0
    first_token_seconds: float = 60.0
    total_seconds: float = 600.0
    attempts: int = 2
    max_concurrency: int = 0
    queue_size: int = 100
    queue_seconds: float = 10.0
    breaker_failures: int = 10
    breaker_seconds: float = 5.0


class Deployment(msgspec.Struct, frozen=True, cache_hash=True):
    """One LLM endpoint with its name, what it answers with and how it is run."""

    name: str
    endpoint: Endpoint
    operation: Operation = Operation()

    def operated_as(self, current: Deployment | None) -> Deployment:
        """Give this deployment, run as the file's deployment of the same name is now.

        Only while that one is at the same place: a secret must not go to another host. The prices are those of the
        model that is called.
        """
        if current is None or _place(self.endpoint) != _place(current.endpoint):
            return self
        operation = current.operation
        if current.endpoint.model != self.endpoint.model:
            prices = self.operation.usd_per_million_tokens
            operation = msgspec.structs.replace(operation, usd_per_million_tokens=prices)
        return msgspec.structs.replace(self, operation=operation)


class Retrieval(msgspec.Struct, frozen=True):
    """Where a release's passages come from, and what is done with them.

    Attributes:
        index: Name of the index.
        version: Number of its version; 0 only in a file, for the latest one at the time it is applied.
        top_k: Most passages that are put in front of the model.
        hybrid_weight: What nearness in meaning counts against shared words: 1 vectors only, 0 full text only.
        minimum_score: Passages with a lower fused score (0 to 1) are left out.
        max_context_tokens: What the passages may take together, by the index's tokenizer.
        nothing_found: ``answer``: without passages. ``refuse``: say so, and do not call the model.
        on_failure: When retrieval fails: ``fail`` the request, or ``answer`` without passages.
        filter: Values that a document's metadata must have, by key; of a list, one of its values.
        turns: How many of the latest user messages make the query.
    """

    index: str
    version: int
    top_k: int = 5
    hybrid_weight: float = 0.5
    minimum_score: float = 0.0
    max_context_tokens: int = 1500
    nothing_found: Literal["answer", "refuse"] = "answer"
    on_failure: Literal["fail", "answer"] = "fail"
    filter: dict[str, Any] = {}
    turns: int = 1

    @property
    def label(self) -> str:
        """Name the index version, as ``handbook@3``."""
        return f"{self.index}@{self.version}"


class Bundle(msgspec.Struct, frozen=True):
    """Everything of a release that can change an answer.

    Attributes:
        deployments: The deployment's name and endpoint, then its fallbacks', in order.
        prompt: Source of the Jinja2 template of the system message, or None.
        parameters: Request fields that the release sets ("temperature", "max_tokens", ...), as JSON values.
        client_may_override: Names of such fields (and "system") where the client's own value wins.
        retrieval: Index version and its parameters, if the answers are grounded.
    """

    deployments: tuple[tuple[str, Endpoint], ...]
    prompt: str | None = None
    parameters: dict[str, Any] = {}
    client_may_override: tuple[str, ...] = ()
    retrieval: Retrieval | None = None

    def content_hash(self) -> str:
        """Hash the bundle: 64 hexadecimal characters, equal exactly for equal content."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def _place(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.provider, endpoint.base_url
