import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from benchmarks.exchange import ResponseReader
from benchmarks.figures import percentile
from benchmarks.load import Schedule, run_closed_loop, run_open_loop
from benchmarks.timer import Timer

REQUEST = b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Handle = Callable[[int], Awaitable[bytes]]


@asynccontextmanager
async def serve(handle: Handle) -> AsyncIterator[int]:
    """Answer each request, numbered as they come, with what ``handle`` gives."""
    numbers = itertools.count()
    talks: set[asyncio.Task[None] | None] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.current_task())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                answer = await handle(next(numbers))
                writer.write(answer)
                if not answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*(task for task in talks if task))


def accept(reader: ResponseReader) -> str | None:
    return None if reader.status == 200 else f"status {reader.status}"


async def at_once(_number: int) -> bytes:
    return ANSWER


def test_a_schedule_is_even_and_ends() -> None:
    schedule = Schedule(start_at=100.0, per_second=500.0, count=1000)
    assert [schedule.due_at(index) for index in (0, 1, 500)] == [100.0, 100.002, 101.0]
    assert [schedule.count_due(now) for now in (99.9, 100.0, 100.0021, 101.001, 1e6)] == [0, 1, 2, 501, 1000]


async def test_a_stall_counts_for_every_request_that_was_due_in_it() -> None:
    """A server that stops for 300 ms once: a client that waits with its next request would see it in one latency."""

    async def stall_once(number: int) -> bytes:
        if number == 20:
            await asyncio.sleep(0.3)
        return ANSWER

    async with serve(stall_once) as port:
        outcome = await run_open_loop(port, itertools.repeat(REQUEST), 100, 200.0, accept, connections=1)
    assert (outcome.sent, outcome.answered, outcome.faults) == (100, 100, Counter())
    held_up = [latency for latency in outcome.latencies_ms if latency > 50]
    assert 45 <= len(held_up) <= 60  # (300 - 50) ms at one request every 5 ms
    assert percentile(outcome.latencies_ms, 90) > 200
    assert percentile(outcome.latencies_ms, 30) < 50


async def test_an_open_loop_keeps_its_rate_whatever_the_answers_do() -> None:
    async def slow(_number: int) -> bytes:
        await asyncio.sleep(0.2)
        return ANSWER

    async with serve(slow) as port:
        outcome = await run_open_loop(port, itertools.repeat(REQUEST), 100, 200.0, accept, connections=64)
    assert 0.65 < outcome.elapsed_seconds < 0.9  # 0.5 s of arrivals and the last answer, not 100 times 0.2 s
    assert min(outcome.latencies_ms) >= 199


async def test_a_closed_loop_sends_exactly_what_it_is_told() -> None:
    seen = Counter[str]()

    async def count(_number: int) -> bytes:
        seen["requests"] += 1
        return ANSWER

    async with serve(count) as port:
        outcome = await run_closed_loop(port, itertools.repeat(REQUEST), 501, 8, accept)
    assert (outcome.sent, outcome.answered, seen["requests"], outcome.faults) == (501, 501, 501, Counter())
    assert len(outcome.latencies_ms) == 501


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (b"", "connection lost: closed"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", "status 500"),
        (ANSWER + b"!", "1 bytes after the end of a response"),
    ],
)
async def test_a_wrong_answer_is_a_fault(answer: bytes, fault: str) -> None:
    async def fail_once(number: int) -> bytes:
        return answer if number == 5 else ANSWER

    async with serve(fail_once) as port:
        outcome = await run_closed_loop(port, itertools.repeat(REQUEST), 10, 1, accept)
    assert outcome.faults == {fault: 1}


async def test_no_answer_is_a_fault_when_the_time_is_up() -> None:
    never = asyncio.Event()

    async def hang(number: int) -> bytes:
        if number == 5:
            await never.wait()
        return ANSWER

    async with serve(hang) as port:
        outcome = await run_closed_loop(port, itertools.repeat(REQUEST), 10, 1, accept, timeout_seconds=0.2)
        never.set()
    assert (outcome.sent, outcome.answered) == (6, 5)
    assert outcome.faults == {"not answered within 0 s": 5}


async def test_a_timer_calls_at_each_interval_and_never_early() -> None:
    early_ms: list[float] = []
    done = asyncio.Event()
    start = time.monotonic() + 0.01

    def call() -> None:
        early_ms.append((start + len(early_ms) * 0.0017 - time.monotonic()) * 1000)
        if len(early_ms) == 50:
            done.set()

    timer = Timer(call)
    timer.arm(start, 0.0017)
    async with asyncio.timeout(5):
        await done.wait()
    timer.close()
    assert max(early_ms) <= 0
