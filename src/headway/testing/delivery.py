"""Sends answers over the socket, and breaks them on purpose."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
from aiohttp import web

from headway.clock import Clock
from headway.testing.behaviour import Behaviour, Fault
from headway.testing.chat import Event
from headway.testing.draft import Plan
from headway.testing.ledger import Ledger, Outcome, Received

__all__ = ["Delivery", "reset_connection"]

JSON_TYPE = "application/json"
_STREAM_TYPE = "text/event-stream; charset=utf-8"
_FLUSH_BYTES = 16_384
_HALF_CHARACTER = b'{"id":"half","object":"chat.completion","choices":[{"index":0,"message":{"content":"caf\xc3'
_HTML = b"<!doctype html><title>Sign in</title><p>Please sign in to continue.</p>"
_GZIP_JUNK = b"\x1f\x8b\x08\x00" + b"this is not gzip at all " * 4
_NOT_HTTP = b"\x16\x03\x01 this is not HTTP\r\n\r\n"
# Lines without a field, a field nobody knows, a NUL, and a frame that a line break tears in two.
_MALFORMED_FRAMES = b'\x00\x01garbage\n\ndata\n\nfoo: bar\n\n{"no":"field"}\n\ndata: {"id":"torn\n","choices":[]}\n\n'
_ERROR_EVENT = Event(
    "error",
    b'{"type":"error","error":{"message":"The server had an error while processing your request.",'
    b'"type":"server_error","param":null,"code":null}}',
    paced=False,
)
_MID_STREAM = frozenset(
    {
        Fault.HANG_MID_STREAM,
        Fault.RESET_MID_STREAM,
        Fault.CLOSE_MID_STREAM,
        Fault.END_EARLY,
        Fault.ERROR_MID_STREAM,
        Fault.INVALID_JSON,
        Fault.MALFORMED_SSE,
        Fault.HALF_UTF8,
    }
)


@dataclass(frozen=True, slots=True)
class Delivery:
    """Sends one answer the way its plan and its behaviour say.

    Attributes:
        request: The request to answer.
        plan: Waits and fault.
        behaviour: How bytes are cut and paced.
        received: Is told what was sent when.
        ledger: Is told how it ended.
        clock: Does the waiting.
        headers: Response headers.
    """

    request: web.BaseRequest
    plan: Plan
    behaviour: Behaviour
    received: Received
    ledger: Ledger
    clock: Clock
    headers: Mapping[str, str]

    async def send_document(self, body: bytes, tokens: int) -> web.StreamResponse:
        """Send one JSON document after the time that its tokens take."""
        await self._sleep(self.plan.headers_seconds + self.plan.first_token_seconds + self._generation_seconds(tokens))
        fault = self.plan.fault
        broken = await self._break_early(JSON_TYPE, len(body))
        if broken is not None:
            return broken
        half = len(body) // 2
        match fault:
            case Fault.HANG_MID_STREAM | Fault.RESET_MID_STREAM | Fault.CLOSE_MID_STREAM:
                response = await self._open(JSON_TYPE, content_length=len(body))
                await self._write(response, body[:half])
                return await self._break_off(response)
            case Fault.END_EARLY:
                body = body[:half]
            case Fault.INVALID_JSON:
                body = b"<<" + body + b">>"
            case Fault.MALFORMED_SSE:
                body = b"data: " + body + b"\n\ndata: [DONE]\n\n"
            case Fault.HALF_UTF8:
                body = _HALF_CHARACTER
        return await self._finish(body, JSON_TYPE)

    async def send_stream(self, events: Iterable[Event]) -> web.StreamResponse:
        """Send an event stream, each event in its time."""
        await self._sleep(self.plan.headers_seconds)
        broken = await self._break_early(_STREAM_TYPE)
        if broken is not None:
            return broken
        response = await self._open(_STREAM_TYPE)
        pauses = random.Random(self.plan.pause_seed)
        fault_at = self.behaviour.fault_after_events if self.plan.fault in _MID_STREAM else -1
        waiting = self.plan.first_token_seconds
        buffer = bytearray()
        sent = 0
        for event in events:
            if event.paced:
                if waiting > 0:
                    await self._flush(response, buffer, sent)
                    await self._sleep(waiting)
                waiting = self.behaviour.inter_token_ms.draw(pauses) / 1000
            if sent == fault_at:
                await self._flush(response, buffer, sent)
                if await self._disturb(response):
                    return response
            buffer += self._frame(event)
            sent += 1
            if len(buffer) >= _FLUSH_BYTES:
                await self._flush(response, buffer, sent)
        await self._flush(response, buffer, sent)
        if sent <= fault_at and await self._disturb(response):
            return response
        await response.write_eof()
        self.ledger.end(self.received, Outcome.FAULT if self.plan.fault else Outcome.ANSWERED)
        return response

    def _generation_seconds(self, tokens: int) -> float:
        pause = self.behaviour.inter_token_ms
        if not pause.median or tokens <= 1:
            return 0.0
        rng = random.Random(self.plan.pause_seed)
        return sum(pause.draw(rng) for _ in range(tokens - 1)) / 1000

    async def _break_early(self, content_type: str, content_length: int | None = None) -> web.StreamResponse | None:
        """Do what the fault says where it needs nothing of the answer's body; ``None`` otherwise."""
        match self.plan.fault:
            case Fault.HANG_BEFORE_HEADERS:
                await _wait_for_disconnect()
            case Fault.RESET_BEFORE_HEADERS | Fault.CLOSE_BEFORE_HEADERS | Fault.NOT_HTTP:
                self.ledger.end(self.received, Outcome.FAULT)
                transport = self.request.transport
                if transport is not None and self.plan.fault is Fault.NOT_HTTP:
                    transport.write(_NOT_HTTP)
                self._cut()
                return web.Response()
            case Fault.HANG_AFTER_HEADERS:
                await self._open(content_type, content_length=content_length, now=True)
                await _wait_for_disconnect()
            case Fault.EMPTY_BODY:
                return await self._finish(b"", content_type)
            case Fault.WRONG_CONTENT_TYPE:
                return await self._finish(_HTML, "text/html; charset=utf-8")
            case Fault.GZIP_JUNK:
                return await self._finish(_GZIP_JUNK, content_type, {"Content-Encoding": "gzip"})
        return None

    async def _disturb(self, response: web.StreamResponse) -> bool:
        """Do what a fault in mid-stream says; true if the stream ends here."""
        match self.plan.fault:
            case Fault.INVALID_JSON:
                await self._write(response, b'data: {"id": <<not JSON>>\n\n')
                return False
            case Fault.MALFORMED_SSE:
                await self._write(response, _MALFORMED_FRAMES)
                return False
            case Fault.ERROR_MID_STREAM:
                await self._write(response, self._frame(_ERROR_EVENT))
            case Fault.HALF_UTF8:
                await self._write(response, b"data: " + _HALF_CHARACTER)
            case Fault.END_EARLY:
                pass
            case _:
                await self._break_off(response)
                return True
        await response.write_eof()
        self.ledger.end(self.received, Outcome.FAULT)
        return True

    async def _break_off(self, response: web.StreamResponse) -> web.StreamResponse:
        """Hang, reset or close, once everything written so far is on its way."""
        if self.plan.fault is Fault.HANG_MID_STREAM:
            await _wait_for_disconnect()
        await self.request.writer.drain()
        self.ledger.end(self.received, Outcome.FAULT)
        self._cut()
        return response

    def _cut(self) -> None:
        transport = self.request.transport
        if transport is None:
            return
        if self.plan.fault in (Fault.RESET_BEFORE_HEADERS, Fault.RESET_MID_STREAM):
            reset_connection(transport)
        else:
            transport.close()

    async def _open(
        self, content_type: str, *, content_length: int | None = None, now: bool = False
    ) -> web.StreamResponse:
        """Start a response; its headers go out with the first bytes of the body unless something delays those."""
        response = web.StreamResponse(headers={**self.headers, "Content-Type": content_type})
        if content_length is not None:
            response.content_length = content_length
        await response.prepare(self.request)
        if self.plan.fault is Fault.RESET_MID_STREAM and self.request.transport is not None:
            # A reset throws away what is still in the buffer: with this, draining means that it is empty.
            self.request.transport.set_write_buffer_limits(high=0)
        self._note_headers(200)
        if now or self.plan.first_token_seconds > 0:
            self.request.writer.send_headers()
        return response

    async def _finish(
        self, body: bytes, content_type: str, more: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """Send a whole body with its length."""
        headers = {**self.headers, "Content-Type": content_type, **(more or {})}
        outcome = Outcome.FAULT if self.plan.fault else Outcome.ANSWERED
        self._note_headers(200)
        if self.behaviour.write_bytes is None:
            self.ledger.end(self.received, outcome)
            return web.Response(body=body, headers=headers)
        response = web.StreamResponse(headers=headers)
        response.content_length = len(body)
        await response.prepare(self.request)
        await self._write(response, body)
        self.ledger.end(self.received, outcome)
        return response

    async def _flush(self, response: web.StreamResponse, buffer: bytearray, sent: int) -> None:
        if not buffer:
            return
        data = bytes(buffer)
        buffer.clear()
        await self._write(response, data)
        if self.received.first_event_seconds is None:
            self.received.first_event_seconds = self.clock.monotonic_seconds()
        self.received.events_sent = sent
        self.ledger.notify()

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        size = self.behaviour.write_bytes
        if size is None:
            await response.write(data)
            return
        for start in range(0, len(data), size):
            await response.write(data[start : start + size])
            await self.clock.sleep(self.behaviour.write_pause_ms / 1000)

    def _frame(self, event: Event) -> bytes:
        """Write an event in the format of event streams."""
        behaviour, data = self.behaviour, event.data
        if behaviour.spaced_json and data.startswith(b"{"):
            data = json.dumps(msgspec.json.decode(data), ensure_ascii=False).encode()
        frame = b"data: " + data + b"\n\n"
        if event.name is not None:
            frame = b"event: " + event.name.encode() + b"\n" + frame
        if behaviour.comments:
            frame = b": keep-alive\n\n" + frame
        return frame.replace(b"\n", b"\r\n") if behaviour.crlf else frame

    def _note_headers(self, status: int) -> None:
        self.received.status = status
        self.received.headers_seconds = self.clock.monotonic_seconds()
        self.ledger.notify()

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            await self.clock.sleep(seconds)


def reset_connection(transport: asyncio.WriteTransport) -> None:
    """Close a connection with a TCP reset instead of a proper end."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _wait_for_disconnect() -> None:
    """Wait for ever: the server cancels the handler when the client goes away or the simulator stops."""
    await asyncio.get_running_loop().create_future()
