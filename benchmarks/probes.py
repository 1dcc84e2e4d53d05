"""Probes of single streams: they watch both ends of a gateway, the client's and the provider's, on one clock."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

from benchmarks.exchange import Endpoint, write_requests
from benchmarks.figures import VoidRunError
from benchmarks.upstreams import SENT_AT, Call, Flood, Paced, Script, Silent, StreamUpstream

_PATIENCE_SECONDS = 5.0
_CANCEL_SECONDS = 1.0


async def probe_first_events(
    endpoint: Endpoint, upstream: StreamUpstream, numbers: Iterator[int], count: int
) -> list[float]:
    """Time the way of a stream's first event, from the provider's write to the client's read, in milliseconds.

    The second event comes 100 ms later, so a gateway that waits for more than it has shows it.
    """
    script = Paced(2, 0.1, stamped=True)
    upstream.script = script
    delays_ms = []
    for request in _take(write_requests(endpoint, numbers, stream=True), count):
        reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
        writer.write(request)
        received = b""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (begin := received.find(SENT_AT.encode())) < 0 or b" " not in received[begin + len(SENT_AT) :]:
                received += await _read_some(reader)
            arrived_ns = time.monotonic_ns()
            stamp = received[begin + len(SENT_AT) :].split(b" ")[0]
            delays_ms.append((arrived_ns - int(stamp)) / 1e6)
            while b"[DONE]" not in received:
                received += await _read_some(reader)
        writer.close()
        await writer.wait_closed()
    script.close()
    return delays_ms


async def probe_disconnects(
    endpoint: Endpoint, upstream: StreamUpstream, numbers: Iterator[int], count: int, *, headers_sent: bool
) -> list[float]:
    """Time how long after its client left a provider call is cancelled, in milliseconds.

    Args:
        endpoint: The gateway.
        upstream: The provider behind it.
        numbers: Numbers of the requests.
        count: How many clients leave, one after the other.
        headers_sent: They leave in the middle of a stream; otherwise while the provider has sent nothing.

    Raises:
        VoidRunError: The provider was never called.
    """
    paced = Paced(100_000, 0.01)
    script: Script = paced if headers_sent else Silent()
    upstream.script = script
    delays_ms = []
    try:
        for request in _take(write_requests(endpoint, numbers, stream=True), count):
            called: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
            upstream.on_call = called.set_result
            reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
            writer.write(request)
            call = await _wait_for_call(called)
            if headers_sent:
                await _read_some(reader)
                await _read_some(reader)
            left_at = time.monotonic()
            writer.transport.abort()
            delays_ms.append((await _wait_for_loss(call) - left_at) * 1000)
            if not call.lost.done():  # once is enough to know
                break
    finally:
        upstream.on_call = None
        paced.close()
    return delays_ms


class StalledClients:
    """Clients that ask for a large stream and never read it."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    async def connect(self, endpoint: Endpoint, numbers: Iterator[int], count: int) -> None:
        """Send the requests."""
        loop = asyncio.get_running_loop()
        for request in _take(write_requests(endpoint, numbers, stream=True), count):
            client = socket.socket()
            client.settimeout(0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self._sockets.append(client)
            await loop.sock_connect(client, ("127.0.0.1", endpoint.port))
            await loop.sock_sendall(client, request)

    def close(self) -> None:
        """Leave."""
        for client in self._sockets:
            client.close()
        self._sockets.clear()


async def wait_until_stuck(flood: Flood, still_seconds: float = 1.0) -> None:
    """Return once the provider has written nothing for a while: every buffer on the way is full.

    Raises:
        VoidRunError: Nothing was ever written, so the streams did not begin.
    """
    deadline = time.monotonic() + 30.0
    before = -1
    while flood.written_bytes != before and time.monotonic() < deadline:
        before = flood.written_bytes
        await asyncio.sleep(still_seconds)
    if not flood.written_bytes:
        raise VoidRunError("the provider was not called for the clients that never read")


def _take(requests: Iterator[bytes], count: int) -> Iterator[bytes]:
    return (next(requests) for _ in range(count))


async def _read_some(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(65536)
    if not data:
        raise VoidRunError("the gateway closed a stream that was not at its end")
    return data


async def _wait_for_call(called: asyncio.Future[Call]) -> Call:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await called
    except TimeoutError:
        raise VoidRunError("a request did not reach the provider") from None


async def _wait_for_loss(call: Call) -> float:
    """Give the time the provider's connection was closed; now, if it still is not after a while."""
    try:
        async with asyncio.timeout(_CANCEL_SECONDS):
            return await asyncio.shield(call.lost)
    except TimeoutError:
        return time.monotonic()
