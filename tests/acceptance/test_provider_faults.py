"""A provider that fails in every way: what the client sees, what is recorded, when the fallback answers."""

from __future__ import annotations

import json
import re
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest

from headway.testing import Behaviour, ErrorReply, Fault, Lognormal, overloaded, rate_limited, server_error
from headway.testing import context_length_exceeded as too_long
from tests.acceptance.harness import wait_for
from tests.acceptance.stand import Reply, Stand, unique

pytestmark = pytest.mark.fault

# Fault: status and code without a stream; then code in a stream that has begun, or status and code before it has.
FAULTS: list[tuple[Fault, int, str, int, str]] = [
    (Fault.HANG_BEFORE_HEADERS, 504, "provider_timeout", 504, "provider_timeout"),
    (Fault.HANG_AFTER_HEADERS, 504, "provider_timeout", 504, "provider_timeout"),
    (Fault.HANG_MID_STREAM, 504, "provider_timeout", 200, "provider_timeout"),
    (Fault.RESET_BEFORE_HEADERS, 502, "provider_cut", 502, "provider_cut"),
    (Fault.CLOSE_BEFORE_HEADERS, 502, "provider_cut", 502, "provider_cut"),
    (Fault.RESET_MID_STREAM, 502, "provider_cut", 200, "provider_cut"),
    (Fault.CLOSE_MID_STREAM, 502, "provider_cut", 200, "provider_cut"),
    (Fault.END_EARLY, 502, "provider_junk", 200, "provider_junk"),
    (Fault.ERROR_MID_STREAM, 502, "provider_error", 200, "provider_error"),
    (Fault.INVALID_JSON, 502, "provider_junk", 200, "provider_junk"),
    (Fault.MALFORMED_SSE, 502, "provider_junk", 200, "provider_junk"),
    (Fault.WRONG_CONTENT_TYPE, 502, "provider_junk", 502, "provider_junk"),
    (Fault.EMPTY_BODY, 502, "provider_junk", 502, "provider_junk"),
    (Fault.HALF_UTF8, 502, "provider_junk", 200, "provider_junk"),
    (Fault.GZIP_JUNK, 502, "provider_cut", 502, "provider_cut"),
    (Fault.NOT_HTTP, 502, "provider_cut", 502, "provider_cut"),
]
# Where the stream has come to when the rubbish in it is met depends on how the network cuts it.
ANYWHERE = (Fault.INVALID_JSON, Fault.MALFORMED_SSE)


def failing(fault: Fault) -> Behaviour:
    return Behaviour(fault=fault, answer_tokens=Lognormal(12))


def events(reply: Reply) -> list[Any]:
    """The data of a stream's events."""
    assert reply.headers["content-type"].startswith("text/event-stream"), reply
    found = [line.removeprefix("data: ") for line in reply.body.decode().splitlines() if line.startswith("data: ")]
    return [None if data == "[DONE]" else json.loads(data) for data in found]


def error_of(reply: Reply) -> str:
    """The code of the error that a client sees: the answer's, or the one that ends a stream."""
    if reply.status != 200:
        return reply.code
    *content, last = events(reply)
    assert content, "no event before the error: that would have been an answer of its own"
    return str((last["error"] or {}).get("code") or "provider_error")


@pytest.mark.parametrize(("fault", "status", "code", "_status", "_code"), FAULTS, ids=[each[0] for each in FAULTS])
def test_fault(stand: Stand, fault: Fault, status: int, code: str, _status: int, _code: str) -> None:
    """Without a stream each fault is one documented error, and recorded as that; the fallback saves the answer."""
    stand.provider.play("fragile", failing(fault))
    reply = stand.chat("fragile", unique("fault"))
    assert (reply.status, reply.code) == (status, code)
    record = stand.headway.interaction(reply.headers["x-headway-interaction"])
    assert (record["status"], record["error"]) == (status, code)
    assert record["release_error"]
    assert not record["aborted"]
    stand.provider.play("fragile", failing(fault))
    saved = stand.chat("sturdy", unique("fault"))
    record = stand.headway.interaction(saved.json["id"])
    assert (saved.status, record["deployment"], record["fallback"], record["error"]) == (200, "main", True, None)
    assert (record["attempts"], record["attempt_errors"]) == (2, 1)
    assert not record["release_error"]


@pytest.mark.parametrize(("fault", "_status", "_code", "status", "code"), FAULTS, ids=[each[0] for each in FAULTS])
def test_fault_in_a_stream(stand: Stand, fault: Fault, _status: int, _code: str, status: int, code: str) -> None:
    """In a stream the fallback answers as long as nothing has gone out; afterwards the stream ends with the error."""
    stand.provider.play("fragile", failing(fault))
    reply = stand.chat("fragile", unique("fault"), stream=True)
    assert error_of(reply) == code
    assert reply.status == status or fault in ANYWHERE
    record = stand.headway.interaction(reply.headers["x-headway-interaction"])
    assert (record["status"], record["error"]) == (reply.status, code)
    assert record["release_error"]
    stand.provider.play("fragile", failing(fault))
    other = stand.chat("sturdy", unique("fault"), stream=True)
    record = stand.headway.interaction(other.headers["x-headway-interaction"])
    if status == 200:
        assert error_of(other) == code
        assert (record["deployment"], record["fallback"]) == ("fragile", False)
    else:
        assert events(other)[-1] is None
        assert (record["deployment"], record["fallback"], record["error"]) == ("main", True, None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (server_error(), 502, "provider_error"),
        (overloaded(), 502, "provider_error"),
        (rate_limited(7), 429, "provider_rate_limited"),
        (ErrorReply(status=401, code="invalid_api_key"), 502, "provider_rejected"),
        (ErrorReply(status=404, code="DeploymentNotFound"), 502, "provider_rejected"),
        (too_long(), 400, "context_length_exceeded"),
    ],
    ids=["500", "503", "429", "401", "404", "400"],
)
def test_orderly_errors(stand: Stand, error: ErrorReply, status: int, code: str, stream: bool) -> None:
    """What the provider says becomes Headway's word, except where it is about the client's own request."""
    stand.provider.play("fragile", Behaviour(errors=(error,)))
    reply = stand.chat("fragile", unique("error"), stream=stream)
    assert (reply.status, reply.code) == (status, code)
    if status == 429:
        assert reply.headers["retry-after"] == "7"
    record = stand.headway.interaction(reply.headers["x-headway-interaction"])
    assert (record["status"], record["error"]) == (status, code)
    stand.provider.play("fragile", Behaviour(errors=(error,)))
    other = stand.chat("sturdy", unique("error"), stream=stream)
    assert other.status == (400 if status == 400 else 200)


def test_a_provider_that_refuses_connections(stand: Stand) -> None:
    """No connection at all: 503; with fallbacks, the first that works answers."""
    refused = stand.chat("closed", unique("refused"))
    assert (refused.status, refused.code) == (503, "provider_unavailable")
    assert stand.headway.interaction(refused.headers["x-headway-interaction"])["error"] == "provider_unavailable"
    stand.provider.play("fragile", failing(Fault.CLOSE_BEFORE_HEADERS))
    covered = stand.chat("covered", unique("covered"), stream=True)
    record = stand.headway.interaction(covered.headers["x-headway-interaction"])
    assert (covered.status, record["deployment"], record["attempts"], record["attempt_errors"]) == (200, "main", 3, 2)


def test_retries(stand: Stand) -> None:
    """A 5xx and a 429 are tried again on the same deployment, after as long as the provider asks for."""
    for error in (server_error(), overloaded(), rate_limited(0.3)):
        stand.provider.play("chatty", Behaviour(errors=(error,)))
        question = unique("again")
        reply = stand.chat("support", question)
        assert reply.status == 200
        record = stand.headway.interaction(reply.json["id"])
        assert (record["attempts"], record["attempt_errors"], record["fallback"]) == (2, 1, False)
        first, second = stand.provider.received(question)
        if error.retry_after_seconds:
            assert second.arrived_seconds - first.arrived_seconds >= error.retry_after_seconds


# --- the client leaves ------------------------------------------------------------------------------------------------


@contextmanager
def asking(stand: Stand, application: str, question: str, *, stream: bool) -> Iterator[socket.socket]:
    """Send a chat request over a socket and leave the answer to the test."""
    body = {"model": application, "messages": [{"role": "user", "content": question}], "stream": stream}
    data = json.dumps(body, ensure_ascii=False).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: headway\r\nauthorization: Bearer {stand.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", stand.headway.port), timeout=10) as connection:
        connection.sendall(head.encode() + data)
        yield connection


def leave(connection: socket.socket, *, reset: bool) -> float:
    """Close the connection; gives the moment, on the clock that the simulator stamps its requests with."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    now = time.perf_counter()
    connection.close()
    return now


PLACES = {
    "before headers": Behaviour(headers_ms=Lognormal(20_000)),
    "after headers": Behaviour(fault=Fault.HANG_AFTER_HEADERS),
    "in the middle": Behaviour(fault=Fault.HANG_MID_STREAM),
}


def leave_while_answering(stand: Stand, question: str, *, stream: bool, when: str, reset: bool) -> float:
    """Ask, leave while the provider is at a place in its answer, and give the seconds until it noticed."""
    stand.provider.play("slow", PLACES[when])
    with asking(stand, "slow", question, stream=stream) as connection:
        wait_for("the call", lambda: stand.provider.received(question))
        if when != "before headers":
            wait_for("its headers", lambda: stand.provider.received(question)[0].headers_seconds)
        if stream and when == "in the middle":
            came = b""
            while b"data: " not in came:
                came += connection.recv(65536)
        left = leave(connection, reset=reset)
    received = stand.provider.ended(question)
    assert received.ended_seconds is not None
    return received.ended_seconds - left


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("when", PLACES)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_cancels_the_call(stand: Stand, stream: bool, when: str, reset: bool) -> None:
    """Within 50 ms of the disconnect the provider stops generating, wherever the answer is; median of five."""
    questions = [unique("leave") for _ in range(5)]
    lags = [leave_while_answering(stand, question, stream=stream, when=when, reset=reset) for question in questions]
    print(f"cancelled {statistics.median(lags) * 1000:.1f} ms after the disconnect, at most {max(lags) * 1000:.1f}")
    assert statistics.median(lags) < 0.050
    query = "SELECT status, aborted, release_error FROM interaction WHERE request LIKE %s"
    (record,) = wait_for("the record", lambda: stand.headway.rows(query, f"%{questions[0]}%"))
    assert record == {"status": 499, "aborted": True, "release_error": False}


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
def test_an_answer_is_complete_with_its_last_event(stand: Stand, leaves: bool) -> None:
    """Clients leave at the last event, and some providers keep the connection open: neither is a failure."""
    with asking(stand, "lingering", unique("stay"), stream=True) as connection:
        came = b""
        while b"[DONE]" not in came:
            came += connection.recv(65536)
        while not leaves and (piece := connection.recv(65536)):
            came += piece
            if came.endswith(b"0\r\n\r\n"):
                break
    assert b"error" not in came
    answer_id = re.search(rb"x-headway-interaction: (\S+)", came)
    assert answer_id is not None
    record = stand.headway.interaction(answer_id[1].decode())
    assert (record["status"], record["aborted"], record["error"]) == (200, False, None)
    assert (record["input_tokens"], record["output_tokens"], record["finish_reason"]) == (1, 2, "stop")


def resident_bytes(stand: Stand) -> list[int]:
    return [worker.memory_info().rss for worker in stand.headway.workers()]


def test_slow_readers_make_the_provider_wait(stand: Stand) -> None:
    """Who does not read an endless stream costs Headway under 2 MB: the provider is not read from either."""
    readers = 4
    stand.provider.play("slow", *[Behaviour(answer_tokens=Lognormal(120_000))] * readers)
    before = resident_bytes(stand)
    questions = [unique("endless") for _ in range(readers)]
    with ExitStack() as stack:
        connections = [stack.enter_context(asking(stand, "endless", each, stream=True)) for each in questions]
        stalled = settled(lambda: [each.events_sent for each in stand.provider.received("endless")])
        assert len(stalled) == readers
        assert min(stalled) > 100
        assert max(stalled) < 110_000, "the whole answer was taken in for a client that does not read"
        grown = sum(after - start for start, after in zip(before, resident_bytes(stand), strict=True))
        print(f"stalled after {stalled} events of 120,000; the workers grew by {grown / 1e6:.1f} MB")
        assert grown < readers * 2_000_000
        while connections[0].recv(1 << 20):  # the first one reads on after all, to the end
            if stand.provider.received(questions[0])[0].outcome == "answered":
                break
    outcomes = [stand.provider.ended(each).outcome for each in questions]
    assert outcomes == ["answered", "cancelled", "cancelled", "cancelled"]


def settled(value: Callable[[], list[int]], seconds: float = 0.5) -> list[int]:
    """The value once it has not changed for some time."""
    seen, since = value(), time.monotonic()

    def is_settled() -> bool:
        nonlocal seen, since
        now = value()
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    wait_for("a value that stays", is_settled, 30)
    return seen


def test_memory_is_given_back(stand: Stand) -> None:
    """After all of this the workers are about as large as processes that have served a few hundred requests."""
    assert max(resident_bytes(stand)) < 400_000_000
    assert psutil.Process(stand.headway.workers()[0].pid).num_fds() < 200
