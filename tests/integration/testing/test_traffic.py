"""Simulated users against a small gateway of two releases, which forwards to the provider simulator."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from headway.testing import (
    Answer,
    Behaviour,
    Fault,
    Lognormal,
    ManualClock,
    ProviderSimulator,
    Traffic,
    overloaded,
    refusing_port,
    run_traffic,
)

_KEY = "secret"
_TRUTH = {"blunt": 0.3, "kind": 0.9}


@dataclasses.dataclass
class Gateway:
    """Gives even users one release and odd users the other; keeps what is posted."""

    provider: ProviderSimulator
    url: str = ""
    asked: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    feedback: list[tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=list)
    reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    feedback_status: int = 201

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == f"Bearer {_KEY}"
        body = await request.json()
        self.asked.append(body)
        release = "kind" if int(body["user"].removeprefix("user-")) % 2 else "blunt"
        forwarded = self.client.post(self.provider.base_url + "/chat/completions", json={**body, "model": release})
        async with forwarded as got:
            response = web.StreamResponse(status=got.status, headers={"x-headway-release": release})
            response.content_type = got.content_type
            await response.prepare(request)
            with contextlib.suppress(aiohttp.ClientPayloadError):
                async for piece in got.content.iter_any():
                    await response.write(piece)
            return response

    async def rate(self, request: web.Request) -> web.Response:
        self.feedback.append((request.headers.get("Authorization", ""), await request.json()))
        return web.json_response({"id": "feedback"}, status=self.feedback_status)

    async def report(self, request: web.Request) -> web.Response:
        self.reports.append(await request.json())
        return web.json_response({"id": f"report-{len(self.reports)}", "object": "report"}, status=201)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Gateway"]:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self.answer)
        application.router.add_post("/v1/feedback", self.rate)
        application.router.add_post("/v1/reports", self.report)
        runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        async with aiohttp.ClientSession() as self.client:
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            try:
                yield self
            finally:
                await runner.cleanup()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    behaviours = {release: Behaviour(quality=quality) for release, quality in _TRUTH.items()}
    async with ProviderSimulator(behaviours) as provider, Gateway(provider).serving() as gateway:
        yield gateway


async def test_users_come_back_converse_and_rate_by_the_truth(gateway: Gateway) -> None:
    traffic = Traffic(application="support", truth=_TRUTH, users=40, conversations_per_user=5, rating_ratio=1)
    seen: list[Answer] = []
    summary = await run_traffic(gateway.url + "/v1", _KEY, traffic, observe=seen.append)
    assert summary.conversations == 200
    assert summary.requests == summary.answers == len(gateway.asked) == len(seen)
    assert 400 <= summary.requests <= 600  # 1 to 4 turns each
    assert summary.errors == summary.rating_errors == {}
    assert summary.split_conversations == 0
    assert summary.ratings_sent == summary.answers == len(gateway.feedback)
    assert sum(release.answers for release in summary.releases.values()) == summary.answers
    for name, quality in _TRUTH.items():
        release = summary.releases[name]
        assert release.thumbs_up / release.ratings == pytest.approx(quality, abs=0.12)
    assert summary.latency_ms is not None
    assert summary.first_token_ms is not None
    assert 0 < summary.latency_ms.p50 <= summary.latency_ms.p99 <= summary.latency_ms.maximum
    assert 0.35 < summary.first_token_ms.count / summary.answers < 0.65
    assert len(set(summary.interaction_ids)) == summary.answers
    rated = {(feedback["interaction_id"], feedback["value"]) for _, feedback in gateway.feedback}
    assert rated == {(rating.interaction_id, rating.up) for rating in summary.ratings}
    assert {name for _, feedback in gateway.feedback for name in feedback} == {"interaction_id", "metric", "value"}
    assert {key for key, _ in gateway.feedback} == {f"Bearer {_KEY}"}


async def test_each_turn_sends_the_conversation_again(gateway: Gateway) -> None:
    traffic = Traffic(
        application="support",
        users=1,
        conversations_per_user=1,
        turns=(3, 3),
        system="Be kind.",
        send_conversation=True,
        parameters={"max_tokens": 5},
    )
    seen: list[Answer] = []
    await run_traffic(gateway.url, _KEY, traffic, observe=seen.append)
    assert [len(body["messages"]) for body in gateway.asked] == [2, 4, 6]
    last = gateway.asked[-1]
    assert [message["role"] for message in last["messages"]] == ["system", *("user", "assistant") * 2, "user"]
    assert [message["content"] for message in last["messages"][2::2]] == [answer.text for answer in seen[:2]]
    assert len({body["metadata"]["conversation_id"] for body in gateway.asked}) == 1
    assert {body["model"] for body in gateway.asked} == {"support"}
    assert {body["max_tokens"] for body in gateway.asked} == {5}


async def test_choices_repeat_with_the_seed_whatever_the_timing(gateway: Gateway) -> None:
    def choices(seen: list[Answer]) -> list[tuple[int, int, int, str, bool]]:
        return sorted((a.conversation, a.turn, a.user, a.question, a.streamed) for a in seen)

    runs = []
    ratings = []
    for seed, concurrency in ((1, 1), (1, 16), (2, 16)):
        traffic = Traffic(application="support", truth=_TRUTH, users=10, concurrency=concurrency, seed=seed)
        seen: list[Answer] = []
        summary = await run_traffic(gateway.url, _KEY, traffic, observe=seen.append)
        runs.append(choices(seen))
        ratings.append({release: tally.thumbs_up for release, tally in summary.releases.items()})
    assert runs[0] == runs[1] != runs[2]
    assert ratings[0] == ratings[1]


async def test_without_a_truth_users_believe_the_text(gateway: Gateway) -> None:
    gateway.provider.set_behaviour("blunt", Behaviour(quality=0))
    gateway.provider.set_behaviour("kind", Behaviour(quality=1))
    traffic = Traffic(
        application="support", rating_ratio=1, ratings_with_key=False, rating_values=(1, 5), metric="stars"
    )
    summary = await run_traffic(gateway.url, _KEY, traffic)
    assert summary.releases["blunt"].thumbs_up == 0
    assert summary.releases["kind"].thumbs_up == summary.releases["kind"].ratings > 0
    assert {feedback["value"] for _, feedback in gateway.feedback} == {1, 5}
    assert {key for key, _ in gateway.feedback} == {""}
    assert {feedback["metric"] for _, feedback in gateway.feedback} == {"stars"}


async def test_nobody_rates_what_the_truth_cannot_tell(gateway: Gateway) -> None:
    traffic = Traffic(application="support", rating_ratio=1, truth=lambda a: 1.0 if a.release == "kind" else None)
    summary = await run_traffic(gateway.url, _KEY, traffic)
    assert summary.releases["blunt"].ratings == 0
    assert summary.releases["kind"].ratings == summary.releases["kind"].answers


async def test_issues_are_reported(gateway: Gateway) -> None:
    traffic = Traffic(application="support", users=5, report_ratio=1)
    summary = await run_traffic(gateway.url, _KEY, traffic)
    assert len(summary.reports) == len(gateway.reports) == summary.answers
    assert {report["interaction_ids"][0] for report in gateway.reports} == set(summary.interaction_ids)
    assert summary.reports[0].startswith("report-")


async def test_failures_are_counted_by_their_kind(gateway: Gateway) -> None:
    traffic = Traffic(
        application="support",
        users=4,
        conversations_per_user=1,
        streamed_ratio=1,
        error_pause_seconds=0,
        rating_ratio=1,
    )
    gateway.feedback_status = 503
    summary = await run_traffic(gateway.url, _KEY, dataclasses.replace(traffic, truth=_TRUTH))
    assert summary.rating_errors == {"503": summary.answers}
    assert summary.ratings == ()
    for behaviour, kind in (
        (Behaviour(errors=(overloaded(),)), "503"),
        (Behaviour(fault=Fault.END_EARLY), "broken"),
        (Behaviour(fault=Fault.INVALID_JSON), "broken"),
        (Behaviour(fault=Fault.ERROR_MID_STREAM), "broken"),
        (Behaviour(fault=Fault.HALF_UTF8), "broken"),
        (Behaviour(fault=Fault.HANG_MID_STREAM), "timeout"),
    ):
        for release in _TRUTH:
            gateway.provider.set_behaviour(release, behaviour)
        summary = await run_traffic(gateway.url, _KEY, dataclasses.replace(traffic, request_timeout_seconds=0.2))
        assert summary.errors == {kind: 4}
        assert summary.answers == 0
        assert summary.latency_ms is None
    with refusing_port() as port:
        summary = await run_traffic(f"http://127.0.0.1:{port}", _KEY, traffic)
    assert summary.errors == {"connection": 4}


async def test_an_open_loop_does_not_wait_for_answers(gateway: Gateway) -> None:
    for release in _TRUTH:
        gateway.provider.set_behaviour(release, Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
    traffic = Traffic(
        application="support",
        users=30,
        conversations_per_user=1,
        conversations_per_second=1000,
        request_timeout_seconds=1,
    )
    run = asyncio.ensure_future(run_traffic(gateway.url, _KEY, traffic))
    await gateway.provider.wait_until(lambda: gateway.provider.counts.open_generations == 30)
    summary = await run
    assert summary.errors == {"timeout": 30}


async def test_a_run_is_bounded_in_number_and_time(gateway: Gateway) -> None:
    traffic = Traffic(application="support", users=1000, turns=(3, 3), max_requests=50, concurrency=16)
    summary = await run_traffic(gateway.url, _KEY, traffic)
    assert summary.requests == 50
    # The first think time would end after max_seconds: nobody waits for it on a clock that stands still.
    traffic = dataclasses.replace(traffic, think_seconds=Lognormal(20), max_seconds=10, max_requests=1000, users=5)
    summary = await run_traffic(gateway.url, _KEY, traffic, clock=ManualClock())
    assert summary.requests == summary.conversations == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"turns": (0, 1)},
        {"turns": (3, 2)},
        {"users": 0},
        {"questions": ()},
        {"rating_ratio": 2},
        {"conversations_per_second": 0},
    ],
)
def test_wrong_plans_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Traffic(application="support", **wrong)
