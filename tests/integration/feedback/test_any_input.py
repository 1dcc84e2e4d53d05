"""Whatever JSON comes in, the answer is a documented one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.feedback.conftest import Desk

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def record(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of plausible fields, a few of which are missing and a few of which are anything."""
    broken = st.dictionaries(st.sampled_from([*fields, "unknown"]), json_values, max_size=2)
    return st.builds(dict.__or__, st.fixed_dictionaries({}, optional=fields), broken)


def names(*values: str) -> st.SearchStrategy[str]:
    return st.sampled_from(values)


async def drive(call: Callable[[Any], Awaitable[None]], bodies: st.SearchStrategy[Any], examples: int) -> None:
    """Run a property in this event loop, drawn in a thread of its own."""
    loop = asyncio.get_running_loop()

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def run(body: Any) -> None:
        asyncio.run_coroutine_threadsafe(call(body), loop).result(60)  # type: ignore[arg-type]

    await asyncio.to_thread(run)


async def test_any_feedback(desk: Desk, proof: bool) -> None:
    issued = desk.world.issue()
    bodies = record(
        {
            "interaction_id": names(issued),
            "metric": names("stars", "thumbs_up", "mood", "comment", "minutes_saved"),
            "value": st.integers(0, 6) | st.booleans() | names("happy", "word"),
            "comment": st.text(),
            "correction": st.text(),
            "source": names("developer", "end_user"),
            "author": st.text(),
            "choice": st.integers(0, 127),
            "application": names("support"),
        }
    )

    async def call(body: Any) -> None:
        for key in (None, "developer"):
            status, answer = await desk.feedback(body, key=key)
            assert status in {200, 201, 400, 401, 404, 410, 422, 429}, (status, answer)
            assert (status < 400) == ("outcome" in answer)

    waiting = asyncio.create_task(keep_time(desk))
    await drive(call, bodies, 3000 if proof else 150)
    waiting.cancel()
    assert len(await desk.rows("SELECT 1 FROM feedback")) > 0


async def keep_time(desk: Desk) -> None:
    while True:
        if desk.world.clock.sleepers:
            desk.world.clock.advance(0.2)
        await asyncio.sleep(0.001)


async def test_any_report(desk: Desk, proof: bool) -> None:
    issued = desk.world.issue()
    posts = record(
        {
            "title": st.text(min_size=1, max_size=20),
            "description": st.text(),
            "severity": names("low", "high"),
            "interaction_ids": st.lists(names(issued), max_size=2),
            "application": names("support"),
        }
    )
    patches = record(
        {
            "version": st.integers(1, 4),
            "status": names("open", "triaged", "resolved"),
            "severity": names("low"),
            "comment": st.text(),
        }
    )
    _, made = await desk.call("POST", "/v1/reports", {"title": "x"}, key="developer")

    async def post(body: Any) -> None:
        status, answer = await desk.call("POST", "/v1/reports", body, key="developer")
        assert status in {201, 400, 404}, (status, answer)

    async def patch(body: Any) -> None:
        status, answer = await desk.call("PATCH", f"/v1/reports/{made['id']}", body, key="developer")
        assert status in {200, 400, 409}, (status, answer)

    await drive(post, posts, 2000 if proof else 100)
    await drive(patch, patches, 2000 if proof else 100)
