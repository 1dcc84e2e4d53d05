"""In front of the control plane: who calls, and can it take the body? Before anything else looks at the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from headway.api.authentication import authenticate
from headway.api.messages import Answer
from headway.api.problems import render_problem
from headway.clock import Clock
from headway.domain.access import require_scope
from headway.domain.snapshot import Snapshot
from headway.errors import BodyTooLargeError, HeadwayError, InvalidRequestError, UnsupportedMediaTypeError

BODY_BYTES = 1024 * 1024
"""Largest body that the control plane takes."""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """Lets requests of known keys with scope ``view`` through; the key is then in ``scope["state"]["key"]``.

    Args:
        application: What it guards.
        snapshot: Gives the snapshot in force.
        clock: For keys that expire.
        guarded: Beginnings of the paths that need a key.
    """

    def __init__(
        self, application: Application, snapshot: Callable[[], Snapshot], clock: Clock, guarded: tuple[str, ...]
    ) -> None:
        self._application = application
        self._snapshot = snapshot
        self._clock = clock
        self._guarded = guarded

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with what is wrong."""
        if scope["type"] != "http" or not scope["path"].startswith(self._guarded):
            await self._application(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            key = authenticate(self._snapshot(), headers, self._clock.unix_ms())
            require_scope(key, "view")
            body = await _read_body(headers, receive)
        except HeadwayError as error:
            await send_answer(render_problem(error), send)
            return
        scope.setdefault("state", {})["key"] = key
        pending = [{"type": "http.request", "body": body}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._application(scope, replay, send)


async def send_answer(answer: Answer, send: Send) -> None:
    """Send an answer over ASGI."""
    headers = [(b"content-type", answer.content_type.encode()), (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": [*headers, *answer.headers]})
    await send({"type": "http.response.body", "body": answer.body})


async def _read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Read the whole body; of one that is too large the rest is thrown away, so that the client hears why."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequestError("the body was cut off", code="incomplete_body")
        part = message.get("body", b"")
        size += len(part)
        if size <= BODY_BYTES:
            parts.append(part)
        elif size > BODY_BYTES * 64:
            break
        more = message.get("more_body", False)
    if size > BODY_BYTES:
        raise BodyTooLargeError(f"the body is larger than {BODY_BYTES} bytes, the most that is taken here")
    media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if size and media_type != b"application/json":
        raise UnsupportedMediaTypeError("send the body as JSON, with content-type: application/json")
    return b"".join(parts)
