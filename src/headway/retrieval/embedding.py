"""Embedders: what makes vectors of chunks and of queries. One is embedded; the others are deployments of the file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.clock import Clock
from headway.config.indexes import EmbedderSpec, VersionSpec
from headway.domain.release import Deployment
from headway.errors import ConfigurationError, ProviderError, ProviderTimeoutError, ProviderUnavailableError
from headway.providers.client import CallError, ProviderClient
from headway.retrieval.tasks import do_all
from headway.retrieval.wordvectors import WordVectors

Vectors = NDArray[np.float32]

_TRIES = 6
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 120.0
_PATIENCE_SECONDS = 600.0  # of a call with a rate limit, beside its tries: quotas are counted by the minute
_CALL_CHARACTERS = 200_000  # of all texts in a call: providers limit their tokens, too
_CALLS = 4  # at a time, where the deployment names no limit
_QUERY_TRIES = 2  # somebody waits for the answer
_QUERY_CALLS = 64
_QUICK_CHARACTERS = 2000  # less than 0.4 ms: a thread would cost more than it spares the others


class Embedder(Protocol):
    """What makes vectors of texts."""

    @property
    def dimensions(self) -> int:
        """Length of the vectors; known once ``open`` was awaited."""
        ...

    @property
    def cost_usd(self) -> float | None:
        """What it has cost so far; None where the price is not known."""
        ...

    async def open(self) -> None:
        """Get ready; harmless when it is.

        Raises:
            ConfigurationError: It cannot work as it is configured.
            ProviderError: It is away.
        """
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Make a vector of each text, in order.

        Raises:
            ConfigurationError: The deployment refuses such calls.
            ProviderError: It is away, or answers with something else.
        """
        ...


def make_embedder(spec: VersionSpec, client: ProviderClient, clock: Clock) -> Embedder:
    """Make the embedder of a version's chunks: a few calls at a time, and patient."""
    if spec.deployment is None:
        return StaticEmbedder()
    return DeploymentEmbedder(spec.deployment, spec.index.embedder, client, clock)


def make_query_embedder(spec: VersionSpec, client: ProviderClient, clock: Clock) -> Embedder:
    """Make the embedder of a version's queries, for which somebody waits: many calls at a time, tried twice."""
    if spec.deployment is None:
        return StaticEmbedder()
    return DeploymentEmbedder(
        spec.deployment, spec.index.embedder, client, clock, calls=_QUERY_CALLS, tries=_QUERY_TRIES, patience_seconds=0
    )


class StaticEmbedder:
    """The embedded model: a table of word vectors, fast and without network."""

    cost_usd: float | None = 0.0

    def __init__(self) -> None:
        self._model: WordVectors | None = None
        self._loading = asyncio.Lock()

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        assert self._model is not None, "open() first"
        return self._model.dimensions

    async def open(self) -> None:
        """Load the model, which comes with the extra.

        Raises:
            ConfigurationError: The extra ``knowledge`` is not installed.
        """
        if self._model is not None:
            return
        async with self._loading:  # once, however many come first
            if self._model is None:
                self._model = await asyncio.to_thread(WordVectors.load)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Make a vector of each text; that of a text without words is zero."""
        await self.open()
        assert self._model is not None
        if len(texts) == 1 and len(texts[0]) <= _QUICK_CHARACTERS:
            return self._model.embed(texts)
        return await asyncio.to_thread(self._model.embed, texts)


class _Item(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float]


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct, frozen=True):
    data: list[_Item]
    usage: _Usage | None = None


class _LimitedError(ProviderUnavailableError):
    """The deployment's rate limit is reached."""


class DeploymentEmbedder:
    """A deployment that speaks OpenAI's ``/embeddings``: batched, a few calls at a time, retried after a pause.

    Its rate limit is what it answers with: when it says 429, all calls wait as long as it asks, and go on.

    Args:
        deployment: Where it is.
        spec: How it is called.
        client: Calls it.
        clock: Waits.
        calls: At a time, where the deployment names no limit.
        tries: Of a call that fails in a way that passes.
        patience_seconds: How long a call waits for its rate limit, beside its tries.
    """

    def __init__(
        self,
        deployment: Deployment,
        spec: EmbedderSpec,
        client: ProviderClient,
        clock: Clock,
        *,
        calls: int = _CALLS,
        tries: int = _TRIES,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._deployment = deployment
        self._spec = spec
        self._client = client
        self._clock = clock
        self._dimensions = spec.dimensions or 0
        self._tokens = 0
        self._places = asyncio.Semaphore(deployment.operation.max_concurrency or calls)
        self._tries = tries
        self._patience_seconds = patience_seconds
        self._resume_at = 0.0

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        assert self._dimensions, "open() first"
        return self._dimensions

    @property
    def cost_usd(self) -> float | None:
        """What it has cost so far, by the price of input tokens."""
        prices = self._deployment.operation.usd_per_million_tokens
        return None if prices is None else prices.cost_usd(self._tokens, 0)

    async def open(self) -> None:
        """Find out how long its vectors are, where the file does not say."""
        if not self._dimensions:
            await self._call(["dimensions"])

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Make a vector of each text, in order."""
        batches = list(_batches(texts, self._spec.batch))
        if not batches:
            return np.zeros((0, self._dimensions), np.float32)
        return np.concatenate(await do_all(map(self._call, batches)))

    async def _call(self, texts: list[str]) -> Vectors:
        async with self._places:
            answer = await self._ask(texts)
        if sorted(item.index for item in answer.data) != list(range(len(texts))):
            raise ProviderError(f"{self._name} answered {len(texts)} texts with {len(answer.data)} vectors")
        vectors = np.zeros((len(texts), self._dimensions or len(answer.data[0].embedding)), np.float32)
        for item in answer.data:
            if len(item.embedding) != vectors.shape[1]:
                message = f"{self._name} gives vectors of {len(item.embedding)} dimensions, not {vectors.shape[1]}"
                raise ConfigurationError(f"{message}; `dimensions` of the index's embedder says how many it should be")
            vectors[item.index] = item.embedding
        if not np.isfinite(vectors).all():
            raise ProviderError(f"{self._name} gave vectors with values that are no numbers")
        self._dimensions = vectors.shape[1]
        self._tokens += answer.usage.prompt_tokens if answer.usage else 0
        return vectors

    async def _ask(self, texts: list[str]) -> _Answer:
        body: dict[str, Any] = {"model": self._deployment.endpoint.model, "input": texts}
        if self._spec.dimensions is not None:
            body["dimensions"] = self._spec.dimensions
        encoded = msgspec.json.encode(body)
        pause, left = _FIRST_PAUSE_SECONDS, self._tries
        waited = until = 0.0
        while True:
            rest = max(until, self._resume_at) - self._clock.monotonic_seconds()
            if rest > 0:
                await self._clock.sleep(rest)
            try:
                return await self._try(encoded)
            except (ProviderUnavailableError, ProviderTimeoutError) as error:
                limited = isinstance(error, _LimitedError) and waited < self._patience_seconds
                left -= not limited
                if not left:
                    raise
                seconds = min(max(pause, error.retry_after_seconds or 0.0), _LONGEST_PAUSE_SECONDS)
            until = self._clock.monotonic_seconds() + seconds
            if limited:  # for the others, too
                self._resume_at = max(self._resume_at, until)
            waited += seconds
            pause *= 2

    async def _try(self, body: bytes) -> _Answer:
        try:
            answer = await self._client.post(self._deployment, "embeddings", body, stream=False)
            try:
                read = await answer.read()
            finally:
                answer.close()
        except CallError as error:
            kind = ProviderTimeoutError if error.timed_out else ProviderUnavailableError
            raise kind(f"{self._name} cannot be reached: {error}") from error
        if answer.status == 429 or answer.status >= 500:
            after = answer.retry_after_seconds(self._clock)
            kind = _LimitedError if answer.status == 429 else ProviderUnavailableError
            raise kind(f"{self._name} answers {answer.status}", retry_after_seconds=after)
        if answer.status != 200:
            told = answer.quote_refusal(read)
            raise ConfigurationError(f"{self._name} refuses to embed ({answer.status})" + (f": {told}" if told else ""))
        try:
            return msgspec.json.decode(read, type=_Answer)
        except msgspec.DecodeError as error:
            raise ProviderError(f"{self._name} does not answer as /embeddings does: {error}") from error

    @property
    def _name(self) -> str:
        return f"the deployment {self._deployment.name!r}"


def _batches(texts: Sequence[str], most: int) -> Iterator[list[str]]:
    """Put texts together in calls, in order: at most so many, and not too long together."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == most or characters + len(text) > _CALL_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
