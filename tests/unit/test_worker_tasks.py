"""Background tasks of a worker process: they end when they are to, whatever became of their cancellation."""

from __future__ import annotations

import asyncio

import pytest

from headway.clock import SystemClock
from headway.runtime import worker
from headway.runtime.worker import Tasks


async def test_a_cancellation_that_gets_lost_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CANCELLED_SECONDS", 0.01)
    begun, lost = asyncio.Event(), 0

    async def work() -> None:
        nonlocal lost
        while True:
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    tasks = Tasks(SystemClock())
    tasks.run("forgetful", work)
    await begun.wait()
    async with asyncio.timeout(30):
        await tasks.close()
    assert lost == 2
