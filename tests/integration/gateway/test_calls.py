"""Attempts, waits and fallbacks, over real sockets to a provider that fails as told."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from email.utils import formatdate
from typing import Any

import pytest

from headway.clock import ManualClock, SystemClock
from headway.domain.interaction import Interaction
from headway.domain.release import Deployment
from headway.errors import (
    ConfigurationError,
    HeadwayError,
    LimitError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from headway.gateway.calls import Caller, Opened
from headway.gateway.deployments import Deployments
from headway.gateway.rendering import ReleaseRenderer
from headway.providers.client import CallError, ProviderClient
from headway.providers.credentials import Credentials
from headway.testing import (
    Behaviour,
    ErrorReply,
    Fault,
    ProviderSimulator,
    context_length_exceeded,
    overloaded,
    rate_limited,
    refusing_port,
    server_error,
)
from tests.routes import ask, begun, make_deployment, make_release
from tests.sockets import http_answer, listening, read_request

FAILS = Behaviour(errors=(server_error(),))
LIMITED = Behaviour(errors=(rate_limited(),))


class _QuickClock(ManualClock):
    """Stands still, but who sleeps on it wakes at once, that much later."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)


class _Calls:
    """A caller with its client, its deployments' states and a clock."""

    def __init__(self, client: ProviderClient, clock: _QuickClock) -> None:
        self.clock = clock
        self.deployments = Deployments(clock, workers=1)
        self.caller = Caller(client, self.deployments, clock, random.Random(1))
        self.interaction: Interaction = begun()

    async def open(
        self, *deployments: Deployment, operation: Any = "chat", only: str | None = None, **fields: Any
    ) -> Opened:
        release = make_release(1, "r", *deployments)
        renderer = ReleaseRenderer(release)
        parsed = ask(operation, **fields)
        self.interaction = begun(operation)
        rendered = renderer.render(parsed, "2026-09-21")
        return await self.caller.call(release, renderer, parsed, rendered, self.interaction, None, only)

    async def whole(self, *deployments: Deployment, **fields: Any) -> tuple[int, Any]:
        """Status and body of a whole answer."""
        opened = await self.open(*deployments, **fields)
        opened.close()
        return opened.answer.status, json.loads(opened.body)

    async def fails(self, *deployments: Deployment, **fields: Any) -> HeadwayError:
        with pytest.raises(HeadwayError) as caught:
            await self.open(*deployments, **fields)
        return caught.value

    def in_flight(self) -> int:
        return sum(state.gate.in_flight for state in self.deployments._states.values())

    @property
    def tries(self) -> tuple[int, int]:
        return self.interaction.attempts, self.interaction.attempt_errors


@pytest.fixture
async def calls() -> AsyncIterator[_Calls]:
    clock = _QuickClock()
    client = ProviderClient(Credentials(clock))
    await client.start()
    made = _Calls(client, clock)
    yield made
    await client.close()
    assert made.in_flight() == 0  # whatever happened, every place was given back


@pytest.fixture
async def provider() -> AsyncIterator[ProviderSimulator]:
    async with ProviderSimulator({"m": Behaviour(), "spare": Behaviour()}) as simulator:
        yield simulator


@pytest.fixture
def main(provider: ProviderSimulator) -> Deployment:
    return make_deployment("main", provider.base_url, breaker_failures=0)


@pytest.fixture
def spare(provider: ProviderSimulator) -> Deployment:
    return make_deployment("spare", provider.base_url, model="spare")


def asked(provider: ProviderSimulator) -> list[str]:
    return [received.model for received in provider.received]


class TestRetries:
    async def test_an_answer_needs_one(self, calls: _Calls, main: Deployment) -> None:
        status, body = await calls.whole(main)
        assert (status, body["object"]) == (200, "chat.completion")
        assert (calls.interaction.deployment, calls.interaction.fallback, calls.tries) == ("main", False, (1, 0))
        assert calls.clock.slept == []

    @pytest.mark.parametrize(
        "behaviour", [FAILS, LIMITED, Behaviour(errors=(overloaded(),)), Behaviour(errors=(ErrorReply(status=408),))]
    )
    async def test_a_passing_failure_is_tried_again(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, behaviour: Behaviour
    ) -> None:
        provider.play("m", behaviour)
        assert (await calls.whole(main))[0] == 200
        assert calls.tries == (2, 1)
        assert [0.05 <= seconds <= 0.15 for seconds in calls.clock.slept] == [True]

    async def test_waits_grow(self, calls: _Calls, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", FAILS)
        error = await calls.fails(make_deployment("main", provider.base_url, attempts=5, breaker_failures=0))
        assert isinstance(error, ProviderError)
        assert "answered 500" in error.message
        assert calls.tries == (5, 5)
        for seconds, least in zip(calls.clock.slept, (0.05, 0.1, 0.2, 0.4), strict=True):
            assert least <= seconds <= 3 * least

    async def test_one_attempt_is_one(self, calls: _Calls, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", FAILS)
        await calls.fails(make_deployment("main", provider.base_url, attempts=1))
        assert (calls.tries, calls.clock.slept) == ((1, 1), [])

    async def test_nobody_listening(self, calls: _Calls) -> None:
        with refusing_port() as port:
            error = await calls.fails(make_deployment("main", f"http://127.0.0.1:{port}/v1"))
        assert isinstance(error, ProviderUnavailableError)
        assert error.message == "deployment 'main' cannot be reached"  # where it is, is not for callers
        assert (calls.tries, len(calls.clock.slept)) == ((2, 2), 1)

    @pytest.mark.parametrize("fault", [Fault.RESET_BEFORE_HEADERS, Fault.CLOSE_BEFORE_HEADERS, Fault.NOT_HTTP])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_where_no_byte_came_it_is_tried_again(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, fault: Fault, stream: bool
    ) -> None:
        provider.play("m", Behaviour(fault=fault))
        opened = await calls.open(main, stream=stream)
        opened.close()
        assert (opened.answer.status, calls.tries) == (200, (2, 1))

    @pytest.mark.parametrize(
        ("fault", "stream", "code"),
        [
            (Fault.RESET_MID_STREAM, False, "provider_cut"),
            (Fault.CLOSE_MID_STREAM, False, "provider_cut"),
            (Fault.GZIP_JUNK, False, "provider_cut"),
            (Fault.GZIP_JUNK, True, "provider_cut"),
            (Fault.END_EARLY, False, "provider_junk"),
            (Fault.INVALID_JSON, False, "provider_junk"),
            (Fault.MALFORMED_SSE, False, "provider_junk"),
            (Fault.HALF_UTF8, False, "provider_junk"),
            (Fault.WRONG_CONTENT_TYPE, False, "provider_junk"),
            (Fault.WRONG_CONTENT_TYPE, True, "provider_junk"),
            (Fault.EMPTY_BODY, False, "provider_junk"),
            (Fault.EMPTY_BODY, True, "provider_junk"),
        ],
    )
    async def test_where_an_answer_had_begun_only_another_deployment_is_tried(
        self,
        calls: _Calls,
        provider: ProviderSimulator,
        main: Deployment,
        spare: Deployment,
        fault: Fault,
        stream: bool,
        code: str,
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=fault))
        error = await calls.fails(main, stream=stream)
        assert isinstance(error, ProviderError)
        assert (error.error_code, calls.tries) == (code, (1, 1))
        opened = await calls.open(main, spare, stream=stream)
        opened.close()
        assert asked(provider) == ["m", "m", "spare"]
        assert (calls.interaction.fallback, calls.tries) == (True, (2, 1))

    async def test_a_pooled_connection_that_the_provider_has_closed_costs_no_error(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment
    ) -> None:
        for _ in range(3):
            assert (await calls.whole(main))[0] == 200
            provider.reset_connections()


class TestTimeouts:
    @pytest.mark.parametrize("fault", [Fault.HANG_BEFORE_HEADERS, Fault.HANG_AFTER_HEADERS])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_who_waited_the_whole_time_is_not_made_to_wait_again(
        self, calls: _Calls, provider: ProviderSimulator, fault: Fault, stream: bool
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=fault))
        limit = {"first_token_seconds" if stream else "total_seconds": 0.05}
        error = await calls.fails(make_deployment("main", provider.base_url, **limit), stream=stream)
        assert isinstance(error, ProviderTimeoutError)
        assert (calls.tries, calls.clock.slept) == ((1, 1), [])
        await provider.wait_until(lambda: provider.counts.open_generations == 0)

    async def test_a_fallback_may_be_faster(
        self, calls: _Calls, provider: ProviderSimulator, spare: Deployment
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
        slow = make_deployment("main", provider.base_url, total_seconds=0.05)
        assert (await calls.whole(slow, spare))[0] == 200
        assert calls.interaction.deployment == "spare"

    async def test_a_stream_that_stops_is_given_up(self, calls: _Calls, provider: ProviderSimulator) -> None:
        provider.set_behaviour("m", Behaviour(fault=Fault.HANG_MID_STREAM))
        opened = await calls.open(make_deployment("main", provider.base_url, first_token_seconds=0.05), stream=True)
        assert opened.pieces is not None
        with pytest.raises(CallError) as caught:
            await anext(opened.pieces)
        opened.close()
        assert caught.value.timed_out


class TestRetryAfter:
    async def test_seconds_are_waited(self, calls: _Calls, provider: ProviderSimulator, main: Deployment) -> None:
        for seconds, behaviour in ((2, rate_limited(2)), (1.5, overloaded(1.5))):
            provider.play("m", Behaviour(errors=(behaviour,)))
            await calls.whole(main)
            assert seconds <= calls.clock.slept.pop() <= seconds + 0.15

    async def test_a_date_is_waited_for(self, calls: _Calls, provider: ProviderSimulator, main: Deployment) -> None:
        at = formatdate(calls.clock.unix_ms() / 1000 + 3, usegmt=True)
        provider.play("m", Behaviour(errors=(ErrorReply(status=429, headers={"Retry-After": at}),)))
        await calls.whole(main)
        assert 3 <= calls.clock.slept[0] <= 3.15

    async def test_too_long_a_wait_is_left_to_the_caller(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment
    ) -> None:
        provider.set_behaviour("m", Behaviour(errors=(rate_limited(60),)))
        error = await calls.fails(main)
        assert isinstance(error, LimitError)
        assert (error.error_code, error.retry_after_seconds) == ("provider_rate_limited", 60)
        assert (calls.tries, calls.clock.slept) == ((1, 1), [])

    async def test_or_to_a_fallback(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, spare: Deployment
    ) -> None:
        provider.set_behaviour("m", Behaviour(errors=(rate_limited(60),)))
        await calls.whole(main, spare)
        assert (calls.interaction.deployment, calls.clock.slept) == ("spare", [])

    @pytest.mark.parametrize("value", ["inf", "1e999", "nan", "soon", "-5", "9" * 500])
    async def test_nonsense_is_not_waited_for(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, value: str
    ) -> None:
        for header in ("Retry-After", "retry-after-ms"):
            provider.play("m", Behaviour(errors=(ErrorReply(status=429, headers={header: value}),)))
            assert (await calls.whole(main))[0] == 200
            assert calls.clock.slept.pop() <= 0.15


class TestRejections:
    async def test_what_is_the_callers_fault_is_the_callers_to_see(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, spare: Deployment
    ) -> None:
        provider.set_behaviour("m", Behaviour(errors=(context_length_exceeded(),)))
        for stream in (False, True):
            status, body = await calls.whole(main, spare, stream=stream)
            assert (status, body["error"]["code"], calls.tries) == (400, "context_length_exceeded", (1, 0))
        assert asked(provider) == ["m", "m"]

    @pytest.mark.parametrize("status", [401, 403, 404])
    async def test_what_is_the_operators_fault_is_not(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, spare: Deployment, status: int
    ) -> None:
        told = ErrorReply(status=status, message="Incorrect API key provided: sk-1234", code="invalid_api_key")
        provider.set_behaviour("m", Behaviour(errors=(told,)))
        error = await calls.fails(main)
        assert isinstance(error, ProviderError)
        assert (error.error_code, calls.tries) == ("provider_rejected", (1, 1))
        assert "sk-1234" not in error.message
        assert (await calls.whole(main, spare))[0] == 200

    @pytest.mark.parametrize(
        "status", ["301 Moved", "302 Found", "307 Temporary Redirect", "304 Not Modified", "501 No"]
    )
    async def test_what_is_no_answer_of_this_api(self, calls: _Calls, provider: ProviderSimulator, status: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(http_answer(status, b"", f"Location: {provider.base_url}/chat/completions"))
            await writer.drain()
            await reader.read()

        async with listening(answer) as port:
            error = await calls.fails(make_deployment("main", f"http://127.0.0.1:{port}/v1"))
        assert isinstance(error, ProviderError)
        assert (calls.tries, asked(provider)) == ((1, 1), [])

    async def test_a_missing_secret_is_not_the_end_where_there_is_a_fallback(
        self, calls: _Calls, provider: ProviderSimulator, spare: Deployment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        locked = make_deployment("main", provider.base_url, auth="api_key", api_key="env:NO_SUCH_KEY")
        error = await calls.fails(locked)
        assert isinstance(error, ConfigurationError)
        assert "NO_SUCH_KEY" not in error.message  # it is in the log: callers need not know where secrets are
        assert (await calls.whole(locked, spare))[0] == 200
        assert asked(provider) == ["spare"]


class TestFallbacks:
    async def test_they_are_tried_in_order(self, calls: _Calls, provider: ProviderSimulator) -> None:
        chain = [make_deployment(name, provider.base_url, model=name) for name in ("a", "b", "c", "d")]
        for name in ("a", "b"):
            provider.set_behaviour(name, FAILS)
        await calls.whole(*chain)
        assert asked(provider) == ["a", "a", "b", "b", "c"]
        assert (calls.interaction.deployment, calls.interaction.fallback, calls.tries) == ("c", True, (5, 4))

    async def test_the_last_error_is_told(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, spare: Deployment
    ) -> None:
        provider.set_behaviour("m", FAILS)
        provider.set_behaviour("spare", Behaviour(errors=(rate_limited(60),)))
        error = await calls.fails(main, spare)
        assert isinstance(error, LimitError)
        assert (calls.interaction.deployment, calls.tries) == ("spare", (3, 3))

    async def test_one_may_be_the_only_one_that_can(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment, spare: Deployment
    ) -> None:
        await calls.whole(main, spare, only="spare")
        assert asked(provider) == ["spare"]
        provider.set_behaviour("m", FAILS)
        await calls.fails(main, spare, only="main")
        assert "spare" not in asked(provider)[1:]
        assert isinstance(await calls.fails(main, spare, only="gone"), ConfigurationError)

    async def test_a_busy_deployment_is_passed_over(
        self, calls: _Calls, provider: ProviderSimulator, spare: Deployment
    ) -> None:
        busy = make_deployment("main", provider.base_url, max_concurrency=1, queue_size=0)
        opened = await calls.open(busy, stream=True)
        await calls.whole(busy, spare)
        assert calls.interaction.deployment == "spare"
        error = await calls.fails(busy)
        assert isinstance(error, OverloadedError)
        assert error.retry_after_seconds
        opened.close()
        await calls.whole(busy)


class TestCircuit:
    async def test_it_opens_and_spares_the_deployment(
        self, calls: _Calls, provider: ProviderSimulator, spare: Deployment
    ) -> None:
        weak = make_deployment("main", provider.base_url, attempts=1, breaker_failures=3, breaker_seconds=10)
        provider.set_behaviour("m", FAILS)
        for _ in range(3):
            await calls.fails(weak)
        error = await calls.fails(weak)
        assert isinstance(error, ProviderUnavailableError)
        assert error.retry_after_seconds == 10
        assert calls.tries == (0, 0)
        await calls.whole(weak, spare)
        assert (asked(provider), calls.interaction.fallback) == (["m", "m", "m", "spare"], True)

    async def test_after_its_time_one_call_tries(self, calls: _Calls, provider: ProviderSimulator) -> None:
        weak = make_deployment("main", provider.base_url, attempts=1, breaker_failures=1, breaker_seconds=10)
        provider.play("m", FAILS, FAILS, Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
        await calls.fails(weak)
        calls.clock.advance(10)
        await calls.fails(weak)
        await calls.fails(weak)
        assert len(provider.received) == 2
        calls.clock.advance(10)
        trying = asyncio.create_task(calls.open(weak))
        await provider.wait_until(lambda: len(provider.received) == 3)
        assert isinstance(await calls.fails(weak), ProviderUnavailableError)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        calls.clock.advance(10)
        await calls.whole(weak)
        await calls.whole(weak)

    @pytest.mark.parametrize(
        "harmless", [LIMITED, Behaviour(errors=(context_length_exceeded(),))], ids=["limit", "rejection"]
    )
    async def test_limits_and_rejections_do_not_open_it(
        self, calls: _Calls, provider: ProviderSimulator, harmless: Behaviour
    ) -> None:
        weak = make_deployment("main", provider.base_url, attempts=1, breaker_failures=1)
        provider.play("m", *[harmless] * 3)
        for _ in range(3):
            with suppress(LimitError):
                (await calls.open(weak)).close()
        await calls.whole(weak)

    async def test_the_last_failure_is_told_rather_than_the_rest_it_earned(
        self, calls: _Calls, provider: ProviderSimulator, spare: Deployment
    ) -> None:
        weak = make_deployment("main", provider.base_url, attempts=1, breaker_failures=1)
        provider.set_behaviour("spare", FAILS)
        provider.set_behaviour("m", FAILS)
        await calls.fails(weak)
        assert "'spare' answered 500" in (await calls.fails(weak, spare)).message
        assert "'spare' answered 500" in (await calls.fails(spare, weak)).message


class TestPlaces:
    async def test_a_call_waits_for_its_place_and_says_how_long(
        self, calls: _Calls, provider: ProviderSimulator
    ) -> None:
        narrow = make_deployment("main", provider.base_url, max_concurrency=1)
        opened = await calls.open(narrow, stream=True)
        waiting = asyncio.create_task(calls.whole(narrow))
        gate = calls.deployments.state(narrow).gate
        await _until(lambda: bool(gate._waiting))
        calls.clock.advance(2)
        opened.close()
        assert (await waiting)[0] == 200
        assert calls.interaction.queue_ms == 2000

    async def test_all_come_through_a_narrow_gate(self, calls: _Calls, provider: ProviderSimulator) -> None:
        narrow = make_deployment("main", provider.base_url, max_concurrency=3, queue_size=50, attempts=20)
        provider.play("m", *[FAILS, LIMITED, Behaviour()] * 5)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(calls.whole(narrow)) for _ in range(40)]
        assert {task.result()[0] for task in tasks} == {200}
        assert provider.counts.peak_open_generations <= 3
        assert provider.counts.connections <= 3

    @pytest.mark.parametrize("stage", ["queue", "headers", "body", "stream", "wait"])
    async def test_a_call_that_is_cancelled_leaves_nothing_behind(
        self, calls: _Calls, provider: ProviderSimulator, stage: str
    ) -> None:
        narrow = make_deployment("main", provider.base_url, max_concurrency=1)
        async with AsyncExitStack() as stack:
            await self.bring_to(stage, calls, provider, narrow, stack)
            task = asyncio.create_task(calls.whole(narrow, stream=stage == "stream"))
            await _until(self.reached(stage, calls, provider, narrow))
            cancelled_at = SystemClock().monotonic_seconds()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if stage in ("headers", "body", "stream"):
                await provider.wait_until(lambda: provider.counts.cancelled == 1)
                ended = provider.received[-1].ended_seconds
                assert ended is not None
                assert ended - cancelled_at < 0.05
        assert calls.in_flight() == 0
        provider.set_behaviour("m", Behaviour())
        assert (await calls.whole(narrow))[0] == 200

    @staticmethod
    async def bring_to(
        stage: str, calls: _Calls, provider: ProviderSimulator, narrow: Deployment, stack: AsyncExitStack
    ) -> None:
        if stage == "queue":
            stack.callback((await calls.open(narrow, stream=True)).close)
        elif stage == "headers":
            provider.set_behaviour("m", Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
        elif stage == "body":
            provider.set_behaviour("m", Behaviour(fault=Fault.HANG_MID_STREAM))
        elif stage == "stream":
            provider.set_behaviour("m", Behaviour(fault=Fault.HANG_AFTER_HEADERS))
        else:
            provider.set_behaviour("m", FAILS)
            calls.clock.sleep = ManualClock().sleep  # type: ignore[method-assign]  # this once, it stands still

    @staticmethod
    def reached(stage: str, calls: _Calls, provider: ProviderSimulator, narrow: Deployment) -> Callable[[], bool]:
        if stage == "queue":
            return lambda: bool(calls.deployments.state(narrow).gate._waiting)
        if stage == "headers":
            return lambda: len(provider.received) == 1
        if stage == "wait":
            return lambda: provider.counts.errors == 1 and calls.interaction.attempt_errors == 1
        return lambda: bool(provider.received) and provider.received[0].headers_seconds is not None


class TestUsageOption:
    """Some servers refuse ``stream_options``, which Headway adds to learn what a stream has cost."""

    @pytest.fixture
    def strict(self, provider: ProviderSimulator) -> Deployment:
        provider.set_behaviour("m", Behaviour(rejects=frozenset({"stream_options"})))
        return make_deployment("main", provider.base_url, attempts=1)

    async def test_who_refuses_it_is_asked_without_from_then_on(
        self, calls: _Calls, provider: ProviderSimulator, strict: Deployment
    ) -> None:
        for attempts in (2, 1, 1):
            opened = await calls.open(strict, stream=True)
            opened.close()
            assert (opened.answer.status, calls.tries) == (200, (attempts, 0))
        assert ["stream_options" in received.body for received in provider.received] == [True, False, False, False]
        assert calls.clock.slept == []

    async def test_the_others_go_on_being_asked(
        self, calls: _Calls, provider: ProviderSimulator, strict: Deployment, spare: Deployment
    ) -> None:
        (await calls.open(strict, stream=True)).close()
        (await calls.open(spare, stream=True)).close()
        assert provider.received[-1].body["stream_options"] == {"include_usage": True}

    @pytest.mark.parametrize(
        "options", [{"include_usage": True}, {"include_usage": False}, {"bogus": "stream_options"}]
    )
    async def test_a_clients_own_wish_is_the_clients_to_defend(
        self, calls: _Calls, provider: ProviderSimulator, strict: Deployment, options: dict[str, Any]
    ) -> None:
        status, _ = await calls.whole(strict, stream=True, stream_options=options)
        assert (status, calls.tries) == (400, (1, 0))
        assert calls.deployments.state(strict).takes_usage_option

    async def test_no_client_can_switch_it_off(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment
    ) -> None:
        told = ErrorReply(status=400, message="Unknown parameter: 'tools[0].stream_options'.")
        provider.play("m", Behaviour(errors=(told,)), Behaviour(errors=(told,)))
        assert (await calls.whole(main, stream=True))[0] == 400
        (await calls.open(main, stream=True)).close()
        assert provider.received[-1].body["stream_options"] == {"include_usage": True}


class TestConnections:
    async def test_one_serves_call_after_call(self, calls: _Calls, provider: ProviderSimulator) -> None:
        patient = make_deployment("main", provider.base_url, attempts=4)
        provider.play("m", Behaviour(), FAILS, LIMITED, Behaviour(errors=(context_length_exceeded(),)))
        for stream in (False, True):
            for _ in range(4):
                opened = await calls.open(patient, stream=stream)
                if opened.pieces is not None:
                    came = opened.body + b"".join([piece async for piece in opened.pieces])
                    assert came.endswith(b"data: [DONE]\n\n")
                opened.close()
        assert provider.counts.connections == 1

    async def test_a_stream_that_is_left_is_dropped(
        self, calls: _Calls, provider: ProviderSimulator, main: Deployment
    ) -> None:
        provider.set_behaviour("m", Behaviour(fault=Fault.HANG_MID_STREAM))
        (await calls.open(main, stream=True)).close()
        await provider.wait_until(lambda: provider.counts.cancelled == 1)


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("waited 5 s in vain")
