"""Embedders: the embedded model, and deployments that batch, limit, refuse and fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from headway.clock import Clock, ManualClock, SystemClock
from headway.config.indexes import EmbedderSpec, IndexSpec, LakeSpec, VersionSpec
from headway.domain.release import Deployment, Endpoint, Operation, Prices
from headway.errors import ConfigurationError, ProviderUnavailableError
from headway.providers.client import ProviderClient
from headway.providers.credentials import Credentials
from headway.retrieval.embedding import DeploymentEmbedder, Embedder, StaticEmbedder, make_embedder, make_query_embedder
from headway.retrieval.wordvectors import WordVectors
from headway.testing import Behaviour, ProviderSimulator, overloaded, rate_limited, refusing_port
from headway.testing.embeddings import embed_text

LAKE = LakeSpec("file:/docs")


class QuickClock(SystemClock):
    """Does not wait, moves on instead, and keeps what it was asked to wait."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic_seconds(self) -> float:
        return super().monotonic_seconds() + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def make_deployment(base_url: str, **operation: object) -> Deployment:
    settings = {"auth": "none", "usd_per_million_tokens": Prices(2.0, 0.0)} | operation
    return Deployment("small", Endpoint("openai", base_url, "embed"), Operation(**settings))  # type: ignore[arg-type]


@asynccontextmanager
async def embedding(
    deployment: Deployment, spec: EmbedderSpec, clock: Clock | None = None
) -> AsyncIterator[DeploymentEmbedder]:
    used = clock or SystemClock()
    client = ProviderClient(Credentials(used))
    await client.start()
    try:
        embedder = make_embedder(VersionSpec(IndexSpec(LAKE, spec), deployment), client, used)
        assert isinstance(embedder, DeploymentEmbedder)
        yield embedder
    finally:
        await client.close()


def texts(count: int) -> list[str]:
    return [f"text number {number}" for number in range(count)]


async def make_vectors(embedder: Embedder, wanted: Sequence[str]) -> list[list[float]]:
    await embedder.open()
    vectors: list[list[float]] = (await embedder.embed(wanted)).tolist()
    return vectors


async def test_the_embedded_model_knows_what_is_alike() -> None:
    embedder = make_embedder(VersionSpec(IndexSpec(LAKE)), ProviderClient(Credentials(SystemClock())), SystemClock())
    assert isinstance(embedder, StaticEmbedder)
    await embedder.open()
    vacation, holiday, server, nothing = await embedder.embed(
        ["How many days of vacation are there?", "Annual leave is 30 days", "Restart the server after an upgrade", ""]
    )
    assert (embedder.dimensions, embedder.cost_usd, vacation.dtype) == (256, 0.0, np.float32)
    assert vacation @ holiday > vacation @ server
    assert np.linalg.norm(vacation) == pytest.approx(1.0, abs=1e-5)
    assert not nothing.any()


async def test_the_embedded_model_is_loaded_once_however_many_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[WordVectors] = []
    load = WordVectors.load

    def count() -> WordVectors:
        loaded.append(load())
        return loaded[-1]

    monkeypatch.setattr(WordVectors, "load", count)
    embedder = StaticEmbedder()
    vectors = await asyncio.gather(*[embedder.embed([f"text {number}"]) for number in range(20)])
    assert len(loaded) == 1
    assert {each.shape for each in vectors} == {(1, 256)}


async def test_texts_go_in_batches_and_come_back_in_order() -> None:
    async with (
        ProviderSimulator() as provider,
        embedding(make_deployment(provider.base_url), EmbedderSpec("small", 64, batch=10)) as embedder,
    ):
        made = await make_vectors(embedder, texts(25))
        sizes = sorted(len(each.body["input"]) for each in provider.received)
    assert sizes == [5, 10, 10]
    assert np.allclose(made, [embed_text(text, 64) for text in texts(25)], atol=1e-6)
    assert embedder.cost_usd == pytest.approx(2e-6 * sum(len(text.split()) for text in texts(25)), rel=0.5)


async def test_the_length_of_vectors_is_asked_for_where_the_file_does_not_say() -> None:
    async with (
        ProviderSimulator() as provider,
        embedding(make_deployment(provider.base_url, usd_per_million_tokens=None), EmbedderSpec("small")) as embedder,
    ):
        await embedder.open()
        assert (embedder.dimensions, embedder.cost_usd) == (1536, None)
        assert "dimensions" not in provider.received[0].body
        assert (await embedder.embed([])).shape == (0, 1536)


async def test_no_more_calls_at_a_time_than_the_deployment_takes() -> None:
    async with (
        ProviderSimulator() as provider,
        embedding(make_deployment(provider.base_url, max_concurrency=1), EmbedderSpec("small", 8, batch=1)) as embedder,
    ):
        await make_vectors(embedder, texts(12))
        spans = sorted((each.arrived_seconds, each.ended_seconds or 0.0) for each in provider.received)
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))


async def test_what_passes_is_tried_again_after_a_growing_pause() -> None:
    clock = QuickClock()
    async with (
        ProviderSimulator() as provider,
        embedding(make_deployment(provider.base_url), EmbedderSpec("small", 8), clock) as embedder,
    ):
        failing = (Behaviour(errors=(overloaded(),)), Behaviour(errors=(rate_limited(retry_after_seconds=7),)))
        provider.play("embed", *failing)
        assert len(await make_vectors(embedder, ["a"])) == 1
    assert clock.slept == pytest.approx([0.5, 7.0], abs=0.3)


async def test_of_a_query_somebody_waits_for_the_answer() -> None:
    clock = QuickClock()
    client = ProviderClient(Credentials(clock))
    await client.start()
    try:
        async with ProviderSimulator({"embed": Behaviour()}) as provider:
            spec = VersionSpec(IndexSpec(LAKE, EmbedderSpec("small")), make_deployment(provider.base_url))
            embedder = make_query_embedder(spec, client, clock)
            failing = Behaviour(errors=(overloaded(),))
            provider.play("embed", failing)
            assert (await embedder.embed(["hi"])).shape[0] == 1
            provider.play("embed", failing, failing)
            with pytest.raises(ProviderUnavailableError):
                await embedder.embed(["hi"])
    finally:
        await client.close()
    assert clock.slept == pytest.approx([0.5, 0.5], abs=0.3)


async def test_what_does_not_pass_is_told() -> None:
    clock = QuickClock()
    with refusing_port() as port:
        away = make_deployment(f"http://127.0.0.1:{port}/v1")
        async with embedding(away, EmbedderSpec("small", 8), clock) as embedder:
            with pytest.raises(ProviderUnavailableError, match="the deployment 'small' cannot be reached"):
                await embedder.embed(["a"])
    assert clock.slept == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0], abs=0.3)


async def test_a_rate_limit_is_waited_for_longer_than_a_failure() -> None:
    clock = QuickClock()
    limited = [Behaviour(errors=(rate_limited(retry_after_seconds=seconds),)) for seconds in (7,) * 8 + (300,)]
    async with (
        ProviderSimulator() as provider,
        embedding(make_deployment(provider.base_url, max_concurrency=1), EmbedderSpec("small", 8), clock) as embedder,
    ):
        provider.play("embed", *limited)
        assert len(await make_vectors(embedder, ["a"])) == 1
        assert clock.slept == pytest.approx([7.0, 7.0, 7.0, 7.0, 8.0, 16.0, 32.0, 64.0, 120.0], abs=0.3)
        provider.play("embed", *(Behaviour(errors=(rate_limited(retry_after_seconds=300),)) for _ in range(20)))
        with pytest.raises(ProviderUnavailableError, match="answers 429"):
            await embedder.embed(["a"])


async def test_all_calls_wait_for_the_limit_that_one_has_met() -> None:
    clock = ManualClock()
    async with (
        ProviderSimulator() as provider,
        embedding(make_deployment(provider.base_url), EmbedderSpec("small", 8), clock) as embedder,
    ):
        provider.play("embed", Behaviour(errors=(rate_limited(retry_after_seconds=60),)))
        first = asyncio.create_task(embedder.embed(["a"]))
        await provider.wait_until(lambda: clock.sleepers == 1)
        second = asyncio.create_task(embedder.embed(["b"]))
        await provider.wait_until(lambda: clock.sleepers == 2)
        assert len(provider.received) == 1
        clock.advance(60)
        await asyncio.gather(first, second)
        assert len(provider.received) == 3


async def test_long_texts_go_in_more_calls() -> None:
    async with (
        ProviderSimulator() as provider,
        embedding(make_deployment(provider.base_url), EmbedderSpec("small", 8)) as embedder,
    ):
        assert len(await make_vectors(embedder, ["a" * 150_000, "b" * 50_000, "c", "d" * 300_000, "e"])) == 5
        sizes = sorted(len(each.body["input"]) for each in provider.received)
    assert sizes == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"detail": [{"msg": "too long", "input": "the salary"}]}, ""),
        ({"error": {"message": "no key sk-1234:\n'Bearer sk-1234'", "input": "the salary"}}, ": no key ***: '***'"),
        ({"error": "the salary"}, ""),
        (["the salary"], ""),
    ],
)
async def test_a_refusal_is_told_without_texts_and_secrets(
    body: object, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_KEY", "sk-1234")

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response(body, status=422)

    application = web.Application()
    application.router.add_post("/v1/embeddings", refuse)
    async with TestServer(application) as server:
        deployment = make_deployment(str(server.make_url("/v1")), auth="api_key", api_key="env:EMBED_KEY")
        async with embedding(deployment, EmbedderSpec("small", 8), QuickClock()) as embedder:
            with pytest.raises(ConfigurationError) as raised:
                await embedder.embed(["the salary"])
    assert raised.value.message == f"the deployment 'small' refuses to embed (422){told}"


async def test_a_refusal_is_no_reason_to_try_again() -> None:
    async with ProviderSimulator() as provider:
        wrong = make_deployment(provider.base_url.replace("/v1", "/v2"))
        async with embedding(wrong, EmbedderSpec("small", 8), QuickClock()) as embedder:
            with pytest.raises(ConfigurationError, match=r"the deployment 'small' refuses to embed \(404\)"):
                await embedder.embed(["a"])
        assert len(provider.received) <= 1
