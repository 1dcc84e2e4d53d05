"""The simulator fails as told: errors, broken connections, broken bodies; and it notices clients that leave."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from headway.testing import (
    Behaviour,
    ErrorReply,
    Fault,
    Lognormal,
    ManualClock,
    Outcome,
    ProviderSimulator,
    context_length_exceeded,
    overloaded,
    prompt_filtered,
    rate_limited,
    refusing_port,
    server_error,
)

_ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@contextlib.asynccontextmanager
async def connected(
    provider: ProviderSimulator, *, stream: bool
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection on which one chat request was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    body = json.dumps({**_ASKED, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def read_broken(provider: ProviderSimulator, *, stream: bool) -> tuple[bytes, str]:
    """All bytes of an answer, and how the connection ended: "reset", "closed" or "open" (a whole HTTP answer)."""
    content = b""
    async with connected(provider, stream=stream) as (reader, _):
        try:
            while not _is_whole(content):
                piece = await asyncio.wait_for(reader.read(65_536), 5)
                if not piece:
                    return content, "closed"
                content += piece
        except ConnectionResetError:
            return content, "reset"
    return content, "open"


def _is_whole(content: bytes) -> bool:
    head, end, body = content.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"HTTP"):
        return False
    if b"chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    return len(body) == int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])


class TestErrors:
    @pytest.mark.parametrize(
        ("reply", "status", "code"),
        [
            (rate_limited(), 429, "rate_limit_exceeded"),
            (server_error(), 500, None),
            (overloaded(), 503, None),
            (context_length_exceeded(), 400, "context_length_exceeded"),
            (prompt_filtered(), 400, "content_filter"),
            (ErrorReply(status=418, code="teapot", headers={"x-tea": "green"}), 418, "teapot"),
        ],
    )
    async def test_errors_have_the_shape_of_openai(
        self, provider: ProviderSimulator, reply: ErrorReply, status: int, code: str | None
    ) -> None:
        provider.set_behaviour("m", Behaviour(errors=(reply,)))
        async with (
            aiohttp.ClientSession() as session,
            session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer,
        ):
            body = await answer.json()
        assert answer.status == status
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["code"] == code
        assert provider.received[0].outcome is Outcome.ERROR
        assert provider.counts.errors == 1
        for name, value in reply.headers.items():
            assert answer.headers[name] == value

    async def test_retry_after_comes_in_seconds_or_as_a_date(self) -> None:
        clock = ManualClock(unix_ms=1_790_000_000_400)
        async with ProviderSimulator({"m": Behaviour()}, clock=clock) as provider, aiohttp.ClientSession() as session:
            provider.play("m", Behaviour(errors=(rate_limited(1.5),)), Behaviour(errors=(overloaded(2),)))
            provider.play("m", Behaviour(errors=(rate_limited(2, as_date=True),)))
            values = []
            for _ in range(3):
                async with session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer:
                    values.append(answer.headers["Retry-After"])
        assert values[:2] == ["1.5", "2"]
        assert parsedate_to_datetime(values[2]).timestamp() == 1_790_000_003

    @pytest.mark.parametrize(
        ("path", "body", "status", "code"),
        [
            ("/v1/chat/completions", b"{", 400, None),
            ("/v1/chat/completions", b"[]", 400, None),
            ("/v1/chat/completions", b'{"model": "m"}', 400, "missing_required_parameter"),
            ("/v1/chat/completions", b'{"messages": [{"role": "user"}]}', 400, "missing_required_parameter"),
            ("/v1/chat/completions", b'{"model": 1, "messages": [{"role": "user"}]}', 400, "invalid_type"),
            ("/v1/chat/completions", b'{"model": "m", "messages": []}', 400, None),
            ("/v1/chat/completions", b'{"model": "m", "messages": [{}], "n": 0.5}', 400, None),
            ("/v1/chat/completions", b'{"model": "m", "messages": [{}], "tools": 1}', 400, "invalid_type"),
            ("/v1/chat/completions", b'{"model": "m", "messages": [{}], "tool_choice": {}}', 400, "invalid_type"),
            ("/v1/chat/completions", b'{"model":"m","messages":[{}],"logprobs":true,"top_logprobs":"a"}', 400, None),
            (
                "/v1/responses",
                b'{"model":"m","input":"a","text":{"format":{"type":"json_schema","schema":{"$ref":"#/no"}}}}',
                400,
                "invalid_json_schema",
            ),
            ("/v1/chat/completions", b'{"model": "m", "messages": [{}], "stream_options": {}}', 400, None),
            ("/v1/responses", b'{"model": "m"}', 400, "missing_required_parameter"),
            ("/v1/responses", b'{"model": "m", "input": []}', 400, None),
            ("/v1/embeddings", b'{"input": "a"}', 400, None),
            ("/v1/embeddings", b'{"model": "m", "input": [{}]}', 400, None),
            ("/v1/chat/completions", b'{"model": "other", "messages": [{}]}', 404, "model_not_found"),
            (
                "/openai/deployments/other/chat/completions?api-version=1",
                b'{"messages": [{}]}',
                404,
                "DeploymentNotFound",
            ),
            ("/openai/deployments/m/chat/completions", b'{"messages": [{}]}', 404, "404"),
            ("/v1/nothing", b"{}", 404, None),
            ("/", b"{}", 404, None),
        ],
    )
    async def test_wrong_requests_are_refused(self, path: str, body: bytes, status: int, code: str | None) -> None:
        async with (
            ProviderSimulator({"m": Behaviour()}, default=None) as provider,
            aiohttp.ClientSession() as session,
            session.post(provider.azure_endpoint + path, data=body) as answer,
        ):
            error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (status, code)
        assert error["message"]

    async def test_only_the_given_keys_are_accepted(self) -> None:
        async with ProviderSimulator(api_keys=["right"]) as provider, aiohttp.ClientSession() as session:
            statuses = []
            for headers in ({"Authorization": "Bearer right"}, {"api-key": "right"}, {"api-key": "wrong"}, {}):
                async with session.post(
                    provider.base_url + "/chat/completions", json=_ASKED, headers=headers
                ) as answer:
                    statuses.append(answer.status)
        assert statuses == [200, 200, 401, 401]

    async def test_fields_can_be_rejected(self, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(rejects=frozenset({"store"})))
        async with (
            aiohttp.ClientSession() as session,
            session.post(provider.base_url + "/chat/completions", json={**_ASKED, "store": True}) as answer,
        ):
            assert answer.status == 400
            assert (await answer.json())["error"]["param"] == "store"

    async def test_ratios_hold_and_repeat_with_the_seed(self) -> None:
        errors = (rate_limited(ratio=0.2), overloaded(ratio=0.1))
        runs = []
        for seed in (3, 3, 4):
            async with ProviderSimulator({"m": Behaviour(errors=errors)}, seed=seed) as provider:
                async with aiohttp.ClientSession() as session:
                    statuses = []
                    for _ in range(400):
                        async with session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer:
                            statuses.append(answer.status)
                runs.append(statuses)
        assert runs[0] == runs[1] != runs[2]
        assert 50 <= runs[0].count(429) <= 110
        assert 20 <= runs[0].count(503) <= 65


class TestFaults:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("fault", "end"),
        [
            (Fault.RESET_BEFORE_HEADERS, "reset"),
            (Fault.CLOSE_BEFORE_HEADERS, "closed"),
            (Fault.NOT_HTTP, "closed"),
            (Fault.RESET_MID_STREAM, "reset"),
            (Fault.CLOSE_MID_STREAM, "closed"),
        ],
    )
    async def test_connections_break(self, provider: ProviderSimulator, fault: Fault, end: str, stream: bool) -> None:
        provider.set_behaviour("m", Behaviour(fault=fault))
        content, ended = await read_broken(provider, stream=stream)
        assert ended == end
        head, _, body = content.partition(b"\r\n\r\n")
        if fault in (Fault.RESET_BEFORE_HEADERS, Fault.CLOSE_BEFORE_HEADERS):
            assert content == b""
        elif fault is Fault.NOT_HTTP:
            assert content
            assert not content.startswith(b"HTTP")
        else:
            assert head.startswith(b"HTTP/1.1 200")
            assert body
            if stream:
                assert body.count(b"data: ") == 3
        assert provider.received[0].outcome is Outcome.FAULT
        assert provider.counts.faults == 1
        assert provider.counts.cancelled == 0

    async def test_a_reset_comes_after_all_that_was_sent(self, provider: ProviderSimulator) -> None:
        behaviour = Behaviour(fault=Fault.RESET_MID_STREAM, fault_after_events=100, answer_tokens=Lognormal(200))
        provider.set_behaviour("m", behaviour)
        content, ended = await read_broken(provider, stream=True)
        assert ended == "reset"
        assert content.count(b"data: ") == 100

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        "fault",
        [
            Fault.END_EARLY,
            Fault.INVALID_JSON,
            Fault.MALFORMED_SSE,
            Fault.WRONG_CONTENT_TYPE,
            Fault.EMPTY_BODY,
            Fault.HALF_UTF8,
            Fault.GZIP_JUNK,
            Fault.ERROR_MID_STREAM,
        ],
    )
    async def test_bodies_break(self, provider: ProviderSimulator, fault: Fault, stream: bool) -> None:
        provider.set_behaviour("m", Behaviour(fault=fault))
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            asked = {**_ASKED, "stream": stream}
            async with session.post(provider.base_url + "/chat/completions", json=asked) as answer:
                body = await answer.read()
        if fault is Fault.ERROR_MID_STREAM and not stream:
            assert answer.status == 500
            return
        assert answer.status == 200
        assert provider.received[0].outcome is Outcome.FAULT
        assert not _is_good(body, stream)
        if fault is Fault.HALF_UTF8:
            with pytest.raises(UnicodeDecodeError):
                body.decode()
        if fault is Fault.GZIP_JUNK:
            assert answer.headers["Content-Encoding"] == "gzip"
        assert (answer.content_type == "text/html") == (fault is Fault.WRONG_CONTENT_TYPE)

    async def test_a_share_of_requests_meets_the_fault(self, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(fault=Fault.INVALID_JSON, fault_ratio=0.25))
        async with aiohttp.ClientSession() as session:
            for _ in range(200):
                async with session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer:
                    await answer.read()
        assert 30 <= provider.counts.faults <= 75
        assert provider.counts.faults + provider.counts.answered == 200


def _is_good(body: bytes, stream: bool) -> bool:
    """Whether a body is a whole answer to anybody who reads it with care."""
    try:
        if not stream:
            return bool(json.loads(body)["choices"])
        frames = [frame for frame in body.decode().split("\n\n") if frame]
        payloads = [frame.removeprefix("data: ") for frame in frames]
        return payloads[-1] == "[DONE]" and all(json.loads(payload)["choices"] for payload in payloads[:-1])
    except (ValueError, KeyError, IndexError):
        return False


class TestDisconnects:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        "behaviour",
        [
            Behaviour(fault=Fault.HANG_BEFORE_HEADERS),
            Behaviour(fault=Fault.HANG_AFTER_HEADERS),
            Behaviour(fault=Fault.HANG_MID_STREAM),
            Behaviour(headers_ms=Lognormal(60_000)),
            Behaviour(inter_token_ms=Lognormal(60_000)),
        ],
    )
    async def test_a_client_that_leaves_is_noticed_at_once(
        self, provider: ProviderSimulator, behaviour: Behaviour, stream: bool
    ) -> None:
        provider.set_behaviour("m", behaviour)
        async with connected(provider, stream=stream) as (reader, writer):
            await provider.wait_until(lambda: provider.counts.open_generations == 1)
            before_headers = behaviour.fault is Fault.HANG_BEFORE_HEADERS or bool(behaviour.headers_ms.median)
            if not before_headers and (stream or behaviour.fault):
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            left = time.perf_counter()
            writer.close()
            await provider.wait_until(lambda: provider.counts.cancelled == 1)
        received = provider.received[0]
        assert received.outcome is Outcome.CANCELLED
        assert received.ended_seconds is not None
        assert 0 <= received.ended_seconds - left < 0.05
        assert provider.counts.open_generations == 0

    async def test_a_client_that_resets_while_answers_pour_in_is_noticed(self, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(answer_tokens=Lognormal(1_000_000)))
        async with connected(provider, stream=True) as (reader, writer):
            await reader.read(1000)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
            await provider.wait_until(lambda: provider.counts.cancelled == 1)

    async def test_a_client_that_never_reads_holds_the_answer_back(self, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(answer_tokens=Lognormal(200_000)))
        async with connected(provider, stream=True) as (reader, _):
            await provider.wait_until(lambda: provider.received[0].events_sent > 0 if provider.received else False)
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # no public way to stop reading
            sent = -1
            while sent != provider.received[0].events_sent:
                sent = provider.received[0].events_sent
                await asyncio.sleep(0.05)
            assert sent < 100_000
            assert provider.counts.open_generations == 1

    async def test_stopping_ends_what_is_open(self) -> None:
        async with (
            ProviderSimulator({"m": Behaviour(fault=Fault.HANG_MID_STREAM)}) as provider,
            connected(provider, stream=True) as (reader, _),
        ):
            await reader.readline()
            await provider.stop()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert provider.received[0].outcome is Outcome.STOPPED
        assert provider.counts.open_connections == 0
        assert provider.counts.cancelled == 0


class TestConnections:
    async def test_a_refusing_port_refuses(self) -> None:
        with refusing_port() as port, pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    async def test_the_port_can_be_closed_and_opened_again(self, provider: ProviderSimulator) -> None:
        port = provider.port
        async with aiohttp.ClientSession() as session:
            async with session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer:
                await answer.read()
            await provider.refuse_connections()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            # The pooled connection still works.
            async with session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer:
                assert answer.status == 200
                await answer.read()
        await provider.accept_connections()
        assert provider.port == port
        content, ended = await read_broken(provider, stream=False)
        assert ended == "open"
        assert content.startswith(b"HTTP/1.1 200")

    async def test_connections_are_counted_and_can_be_reset(self, provider: ProviderSimulator) -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.post(provider.base_url + "/chat/completions", json=_ASKED) as answer:
                    await answer.read()
            assert provider.counts.connections == provider.counts.open_connections == 1
            assert [received.connection for received in provider.received] == [1, 1, 1]
            provider.reset_connections()
            await provider.wait_until(lambda: provider.counts.open_connections == 0)
        content, _ = await read_broken(provider, stream=False)
        assert content
        assert provider.received[-1].connection == 2


class TestWaiting:
    async def test_a_condition_that_fails_fails_the_test_and_not_the_request(self, provider: ProviderSimulator) -> None:
        waiting = asyncio.ensure_future(provider.wait_until(lambda: bool(provider.counts.requests and 1 / 0)))
        await asyncio.sleep(0)
        content, _ = await read_broken(provider, stream=False)
        assert content.startswith(b"HTTP/1.1 200")
        with pytest.raises(ZeroDivisionError):
            await waiting

    async def test_what_held_only_for_a_moment_counts(self, provider: ProviderSimulator) -> None:
        waiting = asyncio.ensure_future(provider.wait_until(lambda: provider.counts.open_generations == 1))
        await asyncio.sleep(0)
        await read_broken(provider, stream=False)
        await waiting
        assert provider.counts.open_generations == 0

    async def test_waiting_in_vain_says_what_was_seen(self, provider: ProviderSimulator) -> None:
        with pytest.raises(TimeoutError, match="requests=0"):
            await provider.wait_until(lambda: provider.counts.requests == 1, timeout_seconds=0.01)


class TestTime:
    async def _advance(self, provider: ProviderSimulator, clock: ManualClock, seconds: float) -> None:
        """Advance the clock once the provider waits on it."""
        await provider.wait_until(lambda: clock.sleepers == 1)
        clock.advance(seconds)

    async def test_latency_follows_the_script_on_a_manual_clock(self) -> None:
        clock = ManualClock()
        behaviour = Behaviour(
            headers_ms=Lognormal(100),
            first_token_ms=Lognormal(200),
            inter_token_ms=Lognormal(10),
            answer_tokens=Lognormal(3),
        )
        async with (
            ProviderSimulator({"m": behaviour}, clock=clock) as provider,
            connected(provider, stream=True) as (reader, _),
        ):
            await provider.wait_until(lambda: provider.counts.requests == 1)
            received = provider.received[0]
            await self._advance(provider, clock, 0.1)
            await provider.wait_until(lambda: received.headers_seconds == pytest.approx(0.1))
            assert received.events_sent == 0
            await self._advance(provider, clock, 0.2)
            await provider.wait_until(lambda: received.events_sent == 2)
            assert received.first_event_seconds == pytest.approx(0.3)
            await self._advance(provider, clock, 0.01)
            await provider.wait_until(lambda: received.events_sent == 3)
            await self._advance(provider, clock, 0.01)
            await provider.wait_until(lambda: received.outcome is Outcome.ANSWERED)
            assert received.events_sent == 6
            assert received.ended_seconds == pytest.approx(0.32)
            assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")

    async def test_an_answer_without_a_stream_takes_the_sum(self) -> None:
        clock = ManualClock()
        behaviour = Behaviour(first_token_ms=Lognormal(200), inter_token_ms=Lognormal(10), answer_tokens=Lognormal(11))
        async with (
            ProviderSimulator({"m": behaviour}, clock=clock) as provider,
            connected(provider, stream=False) as (reader, _),
        ):
            await provider.wait_until(lambda: provider.counts.requests == 1)
            await self._advance(provider, clock, 0.29)
            assert provider.counts.open_generations == 1
            clock.advance(0.01)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert provider.received[0].ended_seconds == pytest.approx(0.3)
