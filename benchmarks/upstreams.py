"""The providers behind the gateway: nginx with one fixed answer, and a server of scripted event streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

from benchmarks.exchange import PROVIDER_ID, PROVIDER_MODEL, write_answer
from benchmarks.machine import find_nginx
from benchmarks.processes import choose_port, is_listening, start
from benchmarks.timer import Timer

SENT_AT = "sent at "
"""Before the monotonic nanoseconds in an event's text, where a script stamps its events."""


@contextmanager
def serve_answers(folder: Path, port: int | None = None) -> Iterator[int]:
    """Serve the fixed chat completion to every request with nginx; give its port."""
    nginx = find_nginx()
    port = port or choose_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "nginx.conf"
    configuration.write_text(_NGINX.format(folder=folder, port=port, answer=write_answer().replace("'", "\\'")))
    command = [nginx, "-p", str(folder), "-c", str(configuration), "-e", str(folder / "nginx-error.log")]
    with start(command, folder / "nginx.log") as process:
        process.wait_until(lambda: is_listening(port), 10, "nginx")
        yield port


_NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        default_type application/json;
        add_header x-request-id req_0123456789abcdef0123456789abcdef;
        add_header openai-processing-ms 412;
        add_header x-ratelimit-remaining-requests 9999;
        add_header x-ratelimit-remaining-tokens 1999882;
        location / {{ return 200 '{answer}'; }}
    }}
}}
"""


class Script(Protocol):
    """What the stream upstream does with one request."""

    def begin(self, call: Call) -> None:
        """Answer the call, or do not."""
        ...


class Call(asyncio.Protocol):
    """One connection to the stream upstream, which carries one request at a time."""

    def __init__(self, upstream: StreamUpstream) -> None:
        self._upstream = upstream
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.lost: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.usage_wanted = False

    def write(self, data: bytes) -> None:
        """Send bytes of the answer; what is written to a lost connection is dropped."""
        if self._transport is not None and not self.lost.done():
            self._transport.write(data)

    async def drain(self) -> None:
        """Return once the peer has taken enough of what was written."""
        await self._writable.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        _, found, rest = bytes(self._buffer[: end + 2]).lower().partition(b"\r\ncontent-length:")
        length = int(rest[: rest.find(b"\r\n")]) if found else 0
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 :])
        self._buffer.clear()
        options = json.loads(body).get("stream_options") or {}
        self.usage_wanted = bool(options.get("include_usage"))
        self._upstream.take(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._writable.set()
        self.lost.set_result(time.monotonic())


class StreamUpstream:
    """An OpenAI-shaped provider on loopback that answers each request by its ``script``.

    It runs in the event loop of the load generator: both live on the same core, so a process of its own would add
    switches and no speed, and probes can compare times on both sides.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls = 0
        self.on_call: Callable[[Call], None] | None = None
        self._server: asyncio.Server | None = None

    async def open(self, port: int | None = None) -> int:
        """Listen on loopback; give the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Call(self), "127.0.0.1", port or 0, backlog=1024)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def take(self, call: Call) -> None:
        """Start the script on a request that is whole."""
        self.calls += 1
        if self.on_call is not None:
            self.on_call(call)
        self.script.begin(call)


class Burst:
    """All events without a pause: in one write, as from a cache, or in one write each, as from a fast provider."""

    def __init__(self, events: int, *, one_write: bool) -> None:
        self._answers = {usage: _write_stream(events, usage=usage) for usage in (False, True)}
        self._one_write = one_write

    def begin(self, call: Call) -> None:
        chunks = self._answers[call.usage_wanted]
        if self._one_write:
            call.write(HEAD + b"".join(chunks))
        else:
            call.write(HEAD)
            self._write_next(call, iter(chunks))

    def _write_next(self, call: Call, chunks: Iterator[bytes]) -> None:
        chunk = next(chunks, None)
        if chunk is not None and not call.lost.done():
            call.write(chunk)
            asyncio.get_running_loop().call_soon(self._write_next, call, chunks)


class Paced:
    """Events at a fixed interval; stamped ones carry the time they were written in their text."""

    def __init__(self, events: int, gap_seconds: float, *, stamped: bool = False) -> None:
        self._answers = {usage: _write_stream(events, usage=usage) for usage in (False, True)}
        self._events = events
        self._gap_seconds = gap_seconds
        self._stamped = stamped
        self._due: deque[tuple[float, Call, int]] = deque()  # in order: every stream has the same interval
        self._timer: Timer | None = None

    def begin(self, call: Call) -> None:
        call.write(HEAD)
        if self._timer is None:
            self._timer = Timer(self._write_due)
        self._write(call, 0, time.monotonic())

    def close(self) -> None:
        """Write no more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.close()

    def _write_due(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            at_seconds, call, index = self._due.popleft()
            if not call.lost.done():
                self._write(call, index, at_seconds)
        self._arm()

    def _write(self, call: Call, index: int, at_seconds: float) -> None:
        chunks = self._answers[call.usage_wanted]
        if self._stamped:
            call.write(write_event(f"{SENT_AT}{time.monotonic_ns()} ", usage=call.usage_wanted))
        else:
            call.write(chunks[index])
        if index + 1 == self._events:  # what ends a stream comes with its last event
            call.write(b"".join(chunks[self._events :]))
            return
        self._due.append((at_seconds + self._gap_seconds, call, index + 1))
        if len(self._due) == 1:
            self._arm()

    def _arm(self) -> None:
        if self._due and self._timer is not None:
            self._timer.arm(self._due[0][0])


class Silent:
    """No answer at all: the provider is thinking."""

    def begin(self, call: Call) -> None:
        """Leave the call open."""


class Flood:
    """Events without a pause, as fast as they are taken, up to a limit in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self._block = write_event("lorem ipsum " * 16) * 64
        self._limit_bytes = limit_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        self.written_bytes = 0

    def begin(self, call: Call) -> None:
        task = asyncio.get_running_loop().create_task(self._pour(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pour(self, call: Call) -> None:
        call.write(HEAD)
        written = 0
        while written < self._limit_bytes and not call.lost.done():
            call.write(self._block)
            written += len(self._block)
            self.written_bytes += len(self._block)
            await call.drain()
            await asyncio.sleep(0)


HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_0123456789abcdef0123456789abcdef\r\nopenai-processing-ms: 212\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def write_event(text: str, *, usage: bool = False, finish: str | None = None) -> bytes:
    """Write one event as a chunk of its own, as OpenAI does; with ``usage``, the empty field that comes with it."""
    event: dict[str, object] = {
        "id": PROVIDER_ID,
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": f"{PROVIDER_MODEL}-2026-07-01",
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
        "choices": [
            {"index": 0, "delta": {} if finish else {"content": text}, "logprobs": None, "finish_reason": finish}
        ],
    }
    if usage:
        event["usage"] = None
    return _frame(event)


def _write_stream(events: int, *, usage: bool) -> list[bytes]:
    """Write the chunks of a stream: its events, the usage where it is wanted, and the end."""
    words = ("You", " can", " return", " any", " item", " within", " thirty", " days", " of", " delivery")
    chunks = [write_event(words[index % len(words)], usage=usage) for index in range(events - 1)]
    chunks.append(write_event("", usage=usage, finish="stop"))
    if usage:
        tokens = {"prompt_tokens": 118, "completion_tokens": events, "total_tokens": 118 + events}
        last = {"id": PROVIDER_ID, "object": "chat.completion.chunk", "created": 1790000000, "model": PROVIDER_MODEL}
        chunks.append(_frame({**last, "choices": [], "usage": tokens}))
    chunks.append(_frame_text("[DONE]") + b"0\r\n\r\n")
    return chunks


def _frame(event: dict[str, object]) -> bytes:
    return _frame_text(json.dumps(event, separators=(",", ":")))


def _frame_text(text: str) -> bytes:
    payload = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(payload), payload)
