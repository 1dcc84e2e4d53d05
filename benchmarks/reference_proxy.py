"""The reference row: the least a Python proxy does (Granian's ASGI server, aiohttp's client, nothing in between)."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Proxy:
    """An ASGI application that passes each request on and each answer back."""

    def __init__(self) -> None:
        self._url = os.environ["BENCHMARK_UPSTREAM"]
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as answer:
            head = [(b"content-type", answer.headers["content-type"].encode())]
            if answer.content_length is not None:
                payload = await answer.read()
                head.append((b"content-length", str(len(payload)).encode()))
                await send({"type": "http.response.start", "status": answer.status, "headers": head})
                await send({"type": "http.response.body", "body": payload})
                return
            await send({"type": "http.response.start", "status": answer.status, "headers": head})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _end_with_parent() -> None:
    """A worker does not notice that Granian's master was killed; the kernel does (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it was killed before
        raise SystemExit(1)


_end_with_parent()
application = Proxy()
