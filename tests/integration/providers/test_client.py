"""Calls to providers over real sockets: what comes back, how far a failed call came, what a cancelled one leaves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headway.clock import SystemClock
from headway.domain.release import Deployment
from headway.errors import ConfigurationError
from headway.providers.client import CallError, ProviderAnswer, ProviderClient
from headway.providers.credentials import Credentials
from headway.testing import Behaviour, Fault, Lognormal, Outcome, ProviderSimulator, refusing_port
from tests.routes import make_deployment
from tests.sockets import deaf_port, http_answer, listening, read_request

WHOLE = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
STREAMED = WHOLE[:-1] + b',"stream":true}'


@pytest.fixture
async def client() -> AsyncIterator[ProviderClient]:
    opened = ProviderClient(Credentials(SystemClock()))
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
async def provider() -> AsyncIterator[ProviderSimulator]:
    async with ProviderSimulator({"m": Behaviour()}) as simulator:
        yield simulator


def at(provider: ProviderSimulator, **fields: Any) -> Deployment:
    return make_deployment(base_url=provider.base_url, **fields)


def at_port(port: int, **fields: Any) -> Deployment:
    return make_deployment(base_url=f"http://127.0.0.1:{port}/v1", **fields)


async def read_all(answer: ProviderAnswer) -> bytes:
    return b"".join([piece async for piece in answer.pieces()])


class TestAnswers:
    async def test_a_whole_one(self, client: ProviderClient, provider: ProviderSimulator) -> None:
        answer = await client.post(at(provider), "chat", WHOLE)
        assert (answer.status, answer.is_stream) == (200, False)
        assert b'"choices"' in await answer.read()
        answer.close()

    async def test_a_streamed_one(self, client: ProviderClient, provider: ProviderSimulator) -> None:
        answer = await client.post(at(provider), "chat", STREAMED)
        assert (answer.status, answer.is_stream) == (200, True)
        assert (await read_all(answer)).endswith(b"data: [DONE]\n\n")
        answer.close()

    @pytest.mark.parametrize("operation", ["chat", "responses", "embeddings"])
    async def test_each_operation_has_its_path(
        self, client: ProviderClient, provider: ProviderSimulator, operation: Any
    ) -> None:
        body = WHOLE if operation == "chat" else b'{"model":"m","input":"hello"}'
        for endpoint in (
            at(provider),
            make_deployment(provider="azure_openai", base_url=provider.azure_endpoint),
            make_deployment(provider="azure_openai", base_url=provider.azure_endpoint, api_version="2024-10-21"),
        ):
            if operation == "responses" and endpoint.endpoint.api_version:
                continue  # The simulator knows Azure's paths of deployments only.
            answer = await client.post(endpoint, operation, body)
            assert answer.status == 200
            await answer.read()

    async def test_what_is_sent(
        self, client: ProviderClient, provider: ProviderSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KEY", "sk-1")
        deployment = at(provider, auth="api_key", api_key="env:KEY", headers=(("x-team", "blue"),))
        answer = await client.post(deployment, "chat", WHOLE, {"traceparent": "00-1-2-01"})
        await answer.read()
        headers = provider.received[0].headers
        assert headers["authorization"] == "Bearer sk-1"
        assert (headers["content-type"], headers["accept-encoding"]) == ("application/json", "identity")
        assert (headers["x-team"], headers["traceparent"]) == ("blue", "00-1-2-01")
        assert headers["content-length"] == str(len(WHOLE))

    async def test_a_body_of_many_megabytes(self, client: ProviderClient, provider: ProviderSimulator) -> None:
        body = WHOLE[:-1] + b',"image":"' + b"x" * 5_000_000 + b'"}'
        answer = await client.post(at(provider), "chat", body)
        assert answer.status == 200
        await answer.read()
        assert provider.received[0].body_bytes == len(body)
        assert provider.received[0].headers["content-length"] == str(len(body))

    async def test_an_error_is_an_answer_too(self, client: ProviderClient, provider: ProviderSimulator) -> None:
        provider.set_default(None)
        answer = await client.post(at(provider, model="other"), "chat", WHOLE.replace(b'"m"', b'"other"'))
        assert answer.status == 404
        assert b"model_not_found" in await answer.read()

    async def test_a_missing_secret_is_named(self, client: ProviderClient, tmp_path: Path) -> None:
        deployment = make_deployment(auth="api_key", api_key=f"file:{tmp_path}/none")
        with pytest.raises(ConfigurationError, match="none"):
            await client.post(deployment, "chat", WHOLE)


class TestConnections:
    async def test_they_are_used_again(self, client: ProviderClient, provider: ProviderSimulator) -> None:
        for body in (WHOLE, STREAMED, WHOLE, b"{}", STREAMED):
            answer = await client.post(at(provider), "chat", body)
            await read_all(answer)
            answer.close()
        assert provider.counts.connections == 1

    async def test_calls_at_the_same_time_do_not_wait_for_each_other(
        self, client: ProviderClient, provider: ProviderSimulator
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client.post(at(provider), "chat", WHOLE)) for _ in range(150)]
            await provider.wait_until(lambda: provider.counts.open_generations == 150)
            for task in tasks:
                task.cancel()

    async def test_an_answer_that_is_closed_early_is_dropped(
        self, client: ProviderClient, provider: ProviderSimulator
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=Fault.HANG_MID_STREAM))
        answer = await client.post(at(provider), "chat", STREAMED)
        assert await anext(answer.pieces())
        answer.close()
        await provider.wait_until(lambda: provider.counts.cancelled == 1)
        assert provider.counts.open_connections == 0

    async def test_redirects_are_not_followed_and_cookies_not_kept(self, client: ProviderClient) -> None:
        seen = []

        async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                line, headers, _ = await read_request(reader)
                seen.append((line, "cookie" in headers))
                location = "Location: http://127.0.0.1:1/elsewhere"
                writer.write(http_answer("307 Temporary Redirect", b"", location, "Set-Cookie: a=b"))

        async with listening(redirect) as port:
            for _ in range(2):
                answer = await client.post(at_port(port), "chat", WHOLE)
                assert answer.status == 307
                await answer.read()
        assert seen == [("POST /v1/chat/completions HTTP/1.1", False)] * 2

    async def test_a_provider_waits_for_who_reads_slowly(self, client: ProviderClient) -> None:
        written = 0
        stalled = asyncio.Event()

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            while True:
                writer.write(b"data: " + b"x" * 65_536 + b"\n\n")
                written += 65_544
                if writer.transport.get_write_buffer_size() > 65_536:
                    stalled.set()
                await writer.drain()

        async with listening(pour) as port:
            answer = await client.post(at_port(port), "chat", STREAMED)
            pieces = answer.pieces()
            await anext(pieces)
            await asyncio.wait_for(stalled.wait(), 5)
            assert written < 24_000_000  # what the kernel keeps for a connection, and hardly more
            before = written
            for _ in range(500):
                await anext(pieces)
            assert written > before
            answer.close()


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "progress", "timed_out"),
        [
            (Fault.RESET_BEFORE_HEADERS, "no_answer", False),
            (Fault.CLOSE_BEFORE_HEADERS, "no_answer", False),
            (Fault.NOT_HTTP, "no_answer", False),
            (Fault.HANG_BEFORE_HEADERS, "no_answer", True),
            (Fault.HANG_AFTER_HEADERS, "answering", True),
            (Fault.HANG_MID_STREAM, "answering", True),
            (Fault.RESET_MID_STREAM, "answering", False),
            (Fault.CLOSE_MID_STREAM, "answering", False),
            (Fault.GZIP_JUNK, "answering", False),
        ],
    )
    @pytest.mark.parametrize("body", [WHOLE, STREAMED], ids=["whole", "streamed"])
    async def test_a_failed_call_says_how_far_it_came(
        self,
        client: ProviderClient,
        provider: ProviderSimulator,
        fault: Fault,
        progress: str,
        timed_out: bool,
        body: bytes,
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=fault))
        with pytest.raises(CallError) as caught:
            await self.call(client, at(provider, first_token_seconds=0.05), body)
        assert (caught.value.progress, caught.value.timed_out) == (progress, timed_out)
        assert str(caught.value)
        await provider.wait_until(lambda: provider.counts.open_connections == 0)

    @staticmethod
    async def call(client: ProviderClient, deployment: Deployment, body: bytes) -> bytes:
        answer = await client.post(deployment, "chat", body)
        try:
            return await read_all(answer) if answer.is_stream else await answer.read()
        finally:
            answer.close()

    async def test_nobody_listens(self, client: ProviderClient) -> None:
        with refusing_port() as port, pytest.raises(CallError) as caught:
            await client.post(at_port(port), "chat", WHOLE)
        assert (caught.value.progress, caught.value.timed_out) == ("not_connected", False)

    async def test_nobody_accepts(self, client: ProviderClient) -> None:
        with deaf_port() as port, pytest.raises(CallError) as caught:
            await client.post(at_port(port, connect_seconds=0.05), "chat", WHOLE)
        assert (caught.value.progress, caught.value.timed_out) == ("not_connected", True)

    async def test_the_whole_call_has_an_end(self, client: ProviderClient, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(write_bytes=1, write_pause_ms=5))
        with pytest.raises(CallError) as caught:
            await self.call(client, at(provider, total_seconds=0.1), STREAMED)
        assert (caught.value.progress, caught.value.timed_out) == ("answering", True)

    async def test_pauses_shorter_than_the_limit_may_add_up(
        self, client: ProviderClient, provider: ProviderSimulator
    ) -> None:
        provider.set_behaviour("m", Behaviour(answer_tokens=Lognormal(40), inter_token_ms=Lognormal(10)))
        assert b"[DONE]" in await self.call(client, at(provider, first_token_seconds=0.3), STREAMED)

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"HTTP/9.9 hello\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
            b"\x00" * 100,
        ],
        ids=lambda head: repr(head[:30]),
    )
    async def test_broken_http(self, client: ProviderClient, head: bytes) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(head)
            await writer.drain()

        async with listening(answer) as port:
            with pytest.raises(CallError):
                await self.call(client, at_port(port, first_token_seconds=2), WHOLE)


class TestCancelling:
    async def within_50_ms(self, provider: ProviderSimulator, cancelled_at: float) -> None:
        await provider.wait_until(lambda: provider.counts.cancelled == 1)
        [received] = provider.received
        assert received.outcome is Outcome.CANCELLED
        assert received.ended_seconds is not None
        assert received.ended_seconds - cancelled_at < 0.05
        await provider.wait_until(lambda: provider.counts.open_connections == 0)

    async def test_before_headers_the_provider_stops(self, client: ProviderClient, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
        task = asyncio.create_task(client.post(at(provider), "chat", WHOLE))
        await provider.wait_until(lambda: provider.counts.open_generations == 1)
        cancelled_at = SystemClock().monotonic_seconds()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.within_50_ms(provider, cancelled_at)

    @pytest.mark.parametrize("fault", [Fault.HANG_AFTER_HEADERS, Fault.HANG_MID_STREAM])
    async def test_after_headers_the_provider_stops(
        self, client: ProviderClient, provider: ProviderSimulator, fault: Fault
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=fault))
        answer = await client.post(at(provider), "chat", STREAMED)
        task = asyncio.create_task(read_all(answer))
        await provider.wait_until(lambda: provider.received[0].headers_seconds is not None)
        await asyncio.sleep(0)
        cancelled_at = SystemClock().monotonic_seconds()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer.close()
        await self.within_50_ms(provider, cancelled_at)


async def test_the_pool_is_closed_with_the_client(provider: ProviderSimulator) -> None:
    client = ProviderClient(Credentials(SystemClock()))
    await client.start()
    answer = await client.post(at(provider), "chat", WHOLE)
    await answer.read()
    assert provider.counts.open_connections == 1
    await client.close()
    await provider.wait_until(lambda: provider.counts.open_connections == 0)


def test_it_is_the_known_version_of_aiohttp() -> None:
    """A cancelled call drops its connection by what aiohttp does today: look again when its major version changes."""
    assert aiohttp.__version__.startswith("3.")
