"""The clocks."""

import asyncio
from datetime import UTC, datetime

import pytest

from headway.clock import ManualClock, SystemClock, elapsed_ms, utc


def test_the_manual_clock_stands_until_it_is_advanced() -> None:
    clock = ManualClock(unix_ms=1000)
    assert (clock.unix_ms(), clock.monotonic_seconds()) == (1000, 0.0)
    clock.advance(2.5)
    assert (clock.unix_ms(), clock.monotonic_seconds()) == (3500, 2.5)


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    clock, woken = ManualClock(), []

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2, 1.5):
            group.create_task(sleep(seconds))
        await asyncio.sleep(0)
        assert clock.sleepers == 4
        clock.advance(1.9)
        await asyncio.sleep(0)
        assert woken == [1, 1.5]
        clock.advance(2)
    assert woken == [1, 1.5, 2, 3]
    assert clock.sleepers == 0


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleepers == 0
    clock.advance(2)


async def test_no_time_is_no_wait() -> None:
    await ManualClock().sleep(0)
    await ManualClock().sleep(-1)


async def test_the_system_clock_moves_on() -> None:
    clock = SystemClock()
    before = clock.monotonic_seconds()
    await clock.sleep(0.001)
    assert clock.monotonic_seconds() - before >= 0.001
    assert utc(clock.unix_ms()) > datetime(2025, 1, 1, tzinfo=UTC)


def test_times_are_utc() -> None:
    assert utc(1_790_000_000_123) == datetime(2026, 9, 21, 14, 13, 20, 123_000, tzinfo=UTC)
    assert elapsed_ms(1.0, 1.25) == 250.0
