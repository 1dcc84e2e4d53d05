"""The Python client over real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Self

import pytest
from aiohttp import web

from headway.client import (
    AccessError,
    AsyncHeadway,
    ClientError,
    ConflictError,
    Headway,
    InvalidError,
    LimitError,
    MissingError,
    ServerError,
    UnreachableError,
)
from tests.integration.feedback.conftest import Desk
from tests.integration.feedback.serving import pass_on, serve


@pytest.fixture
async def url(desk: Desk) -> AsyncIterator[str]:
    """The routes on a real socket."""
    async with serve(pass_on(desk)) as address:
        yield address


class Blocking:
    """The blocking client, each call in a thread: the tests run the same against both."""

    def __init__(self, client: Headway) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name == "list_reports":

            async def listed(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                for item in await asyncio.to_thread(lambda: list(method(*args, **kwargs))):
                    yield item

            return listed

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(method, *args, **kwargs)

        return call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def make_client(kind: str, url: str, key: str | None = None, **options: Any) -> Any:
    options = {"backoff_seconds": 0.01, "timeout_seconds": 5.0, **options}
    return AsyncHeadway(url, key, **options) if kind == "async" else Blocking(Headway(url, key, **options))


both = pytest.mark.parametrize("kind", ["async", "blocking"])


@both
async def test_ratings(kind: str, desk: Desk, url: str) -> None:
    issued = desk.world.issue()
    async with make_client(kind, url) as client:
        up = await client.thumbs_up(issued)
        assert (up.outcome, up.metric) == ("created", "thumbs_up")
        assert (await client.thumbs_up(issued)).outcome == "unchanged"
        down = await client.thumbs_down(issued, comment="no")
        assert down.id != up.id
        assert (await client.stars(issued, 4.5)).metric == "stars"
        assert (await client.correction(issued, "It is 42.")).metric == "correction"
        assert (await client.feedback(issued, "mood", "happy", choice=2)).metric == "mood"
    rows = await desk.rows("SELECT metric, coalesce(text, number::text), choice FROM feedback ORDER BY at, metric")
    assert sorted(rows) == [
        ("correction", "It is 42.", 0),
        ("mood", "happy", 2),
        ("stars", "4.5", 0),
        ("thumbs_up", "0", 0),
        ("thumbs_up", "1", 0),
    ]


@both
async def test_with_a_key(kind: str, desk: Desk, url: str) -> None:
    await desk.world.record(desk.world.interaction(), "talk")
    async with make_client(kind, url + "/v1/", desk.world.secrets["developer"]) as client:
        await client.feedback(desk.world.issue(), "grounded", True, source="judge", author="judge-1")
        await client.conversation_feedback("talk", "stars", 5, application="support", author="bob")
    assert await desk.rows("SELECT target, source, author FROM feedback ORDER BY target") == [
        ("conversation", "developer", "bob"),
        ("interaction", "judge", "judge-1"),
    ]


@both
async def test_a_report_from_open_to_resolved(kind: str, desk: Desk, url: str) -> None:
    issued = desk.world.issue()
    async with make_client(kind, url, desk.world.secrets["developer"]) as client:
        receipt = await client.report("Wrong", "It says 14 days.", severity="high", interaction_ids=[issued])
        report = await client.get_report(receipt.id)
        assert (report.title, report.severity, report.status, report.interaction_ids) == (
            "Wrong",
            "high",
            "open",
            (issued,),
        )
        triaged = await client.triage(report)
        with pytest.raises(ConflictError) as caught:
            await client.resolve(report)
        assert caught.value.code == "version_conflict"
        await client.comment(report.id, "Looking into it.")
        resolved = await client.resolve(triaged, comment="Fixed.")
        assert [(event.status, event.comment) for event in resolved.events] == [
            ("triaged", None),
            (None, "Looking into it."),
            ("resolved", "Fixed."),
        ]
        reopened = await client.reopen(resolved)
        rejected = await client.reject(reopened)
        assert [item.id async for item in client.list_reports("rejected")] == [rejected.id]
        assert [item.id async for item in client.list_reports("open")] == []


@both
async def test_lists_run_over_all_pages(kind: str, desk: Desk, url: str) -> None:
    async with make_client(kind, url, desk.world.secrets["developer"]) as client:
        made = [(await client.report(f"Report {number}")).id for number in range(53)]
        assert sorted([item.id async for item in client.list_reports()]) == sorted(made)


@both
async def test_errors_have_types_and_codes(kind: str, desk: Desk, url: str) -> None:
    issued = desk.world.issue()
    async with make_client(kind, url) as client, make_client(kind, url, desk.world.secrets["developer"]) as keyed:
        cases: list[tuple[Awaitable[Any], type[ClientError], str]] = [
            (client.thumbs_up("hw_forged"), InvalidError, "invalid_interaction_id"),
            (client.stars(issued, 9), InvalidError, "invalid_feedback_value"),
            (client.feedback(issued, "nothing", 1), MissingError, "unknown_metric"),
            (client.stars(desk.world.issue(age_days=100), 3), MissingError, "expired"),
            (client.report("x"), AccessError, "missing_api_key"),
            (keyed.get_report("nonsense"), MissingError, "not_found"),
        ]
        for call, kind_of_error, code in cases:
            with pytest.raises(kind_of_error) as caught:
                await call
            assert caught.value.code == code
            assert caught.value.status >= 400


@both
async def test_broken_connections_and_busy_servers_are_tried_again(kind: str) -> None:
    seen: list[tuple[str, str | None]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((request.method, request.headers.get("idempotency-key")))
        await request.read()
        if len(seen) % 3 == 1:
            assert request.transport is not None
            request.transport.abort()
        if len(seen) % 3 == 2:
            return web.json_response({"detail": "away", "code": "storage_unavailable"}, status=503)
        return web.json_response({"id": "1", "outcome": "created", "metric": "stars"}, status=201)

    async with serve(handle) as url, make_client(kind, url) as client:
        assert (await client.stars("hw_x", 1)).outcome == "created"
        assert len(seen) == 3
        assert (await client.report("x")).outcome == "created"
        assert len(seen) == 6
        assert len({key for _, key in seen[3:]}) == 1
        with pytest.raises(UnreachableError):
            await client.comment("1", "said once")  # not repeatable
        assert len(seen) == 7


@both
async def test_a_limit_is_waited_for_only_when_it_ends_soon(kind: str) -> None:
    waits = ["", "3600"]
    seen: list[str] = []

    async def handle(_: web.Request) -> web.StreamResponse:
        wait = waits[len(seen)]
        seen.append(wait)
        headers = {"retry-after": wait} if wait else {}
        return web.json_response({"detail": "full", "code": "feedback_history_full"}, status=429, headers=headers)

    async with serve(handle) as url, make_client(kind, url) as client:
        for wait in waits:
            with pytest.raises(LimitError) as caught:
                await client.stars("hw_x", 1)
            assert caught.value.retry_after_seconds == (float(wait) if wait else None)
    assert seen == waits


@both
async def test_silence_and_strangers(kind: str) -> None:
    hold = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/feedback":
            await hold.wait()
        return web.Response(text="<html>hello</html>", content_type="text/html")

    async with serve(handle) as url:
        async with make_client(kind, url, timeout_seconds=0.1, attempts=2) as client:
            with pytest.raises(UnreachableError):
                await client.stars("hw_x", 1)
            with pytest.raises(ServerError) as caught:
                await client.get_report("1")
            assert caught.value.code == "unexpected"
        hold.set()
    async with make_client(kind, url, attempts=2) as client:
        with pytest.raises(UnreachableError):
            await client.stars("hw_x", 1)


def test_a_base_url_is_checked() -> None:
    for wrong in ("127.0.0.1:8080", "", "ftp://x", "http://"):
        with pytest.raises(ValueError, match="base_url"):
            Headway(wrong)
