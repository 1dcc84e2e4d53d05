"""Work side by side: all of it, or none goes on."""

from __future__ import annotations

import asyncio

import pytest

from headway.retrieval.tasks import do_all, do_both


async def give(value: int, after: int = 0) -> int:
    for _ in range(after):
        await asyncio.sleep(0)
    return value


async def fail(after: int = 0) -> int:
    await give(0, after)
    raise ValueError(f"after {after}")


async def wait(ended: list[str]) -> int:
    try:
        return await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append("ended")


async def test_results_are_in_order() -> None:
    assert await do_all([give(1, after=5), give(2), give(3, after=2)]) == [1, 2, 3]
    assert await do_all([]) == []
    assert await do_both(give(1, after=3), give(2)) == (1, 2)


async def test_the_first_failure_ends_the_rest_before_it_is_raised() -> None:
    ended: list[str] = []
    with pytest.raises(ValueError, match="after 2"):
        await do_all([wait(ended), fail(after=3), fail(after=2), wait(ended)])
    assert ended == ["ended", "ended"]


async def test_a_failure_leaves_no_mark_on_the_task() -> None:
    with pytest.raises(ValueError, match="after 0"):
        await do_both(fail(), give(1, after=3))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_it_is_cancelled_with_all_its_work() -> None:
    ended: list[str] = []
    running = asyncio.create_task(do_all([wait(ended), wait(ended)]))
    await give(0, after=2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == ["ended", "ended"]
