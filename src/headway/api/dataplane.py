"""The data plane: a bare ASGI application with a small route table, so that the hot path pays for no framework."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import structlog

from headway.api.authentication import authenticate
from headway.api.feedback_routes import BODY_BYTES, cors_headers
from headway.api.messages import Answer, Request
from headway.api.openapi import serve_dataplane_document
from headway.api.problems import openai_body, render_openai, render_problem
from headway.clock import Clock
from headway.domain.access import may_use, require_scope
from headway.domain.interaction import Operation
from headway.domain.snapshot import KeyRoute
from headway.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    HeadwayError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    UnsupportedMediaTypeError,
)
from headway.gateway.exchange import Headers, Reply
from headway.gateway.gateway import Gateway
from headway.ids import uuid7

_log = structlog.get_logger("headway.api.dataplane")

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[[Request], Awaitable[Answer]]
RouteTable = Sequence[tuple[str, str, Handler]]

_OPERATIONS: Mapping[str, Operation] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
    "/openai/v1/chat/completions": "chat",
    "/openai/v1/responses": "responses",
    "/openai/v1/embeddings": "embeddings",
    "/openai/responses": "responses",
}
_AZURE = re.compile(r"/openai/deployments/(?P<application>[^/]+)/(?P<route>chat/completions|embeddings)")
_AZURE_OPERATIONS: Mapping[str, Operation] = {"chat/completions": "chat", "embeddings": "embeddings"}
_SHOWN_PATH = 200  # characters: a path may be as long as a stranger likes
_GROUPS = b"x-headway-groups"
_WATCH_AFTER_SECONDS = 0.02
_DRAINED_BODIES = 8  # times the limit: a client that is told 413 should have sent its body and be listening


class _Reply:
    """Sends an answer over ASGI."""

    __slots__ = ("_send", "begun")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def whole(self, status: int, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
        self.begun = True
        length = (b"content-length", b"%d" % len(body))
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", content_type), length, *headers],
            }
        )
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, content_type: bytes, headers: Headers = ()) -> None:
        self.begun = True
        fixed = ((b"content-type", content_type), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
        await self._send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})

    async def piece(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, error: HeadwayError, headers: Headers = ()) -> int:
        answer = render_openai(error)
        await self.answer(answer, headers)
        return answer.status

    async def answer(self, answer: Answer, headers: Headers = ()) -> None:
        await self.whole(answer.status, answer.content_type.encode(), answer.body, (*answer.headers, *headers))

    def error_body(self, error: HeadwayError) -> bytes:
        return openai_body(error)


def reply_to_nobody() -> Reply:
    """Make a reply that goes nowhere."""
    return _Reply(_drop)


async def _drop(_: Message) -> None:
    pass


def _headers(scope: Message) -> dict[bytes, bytes]:
    """Give the request's headers; of those that are there twice the last, but nobody is in groups by chance.

    Raises:
        InvalidRequestError: The groups are there twice: by the caller, and by something in between.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if _GROUPS in headers and [name for name, _ in scope["headers"]].count(_GROUPS) > 1:
        raise InvalidRequestError("x-headway-groups is there more than once", param="x-headway-groups")
    return headers


class _Watch:
    """Cancels the current task when the client goes away.

    Watching costs as much as a fifth of a short request, so it begins a moment later: most clients stay, and those who
    leave are still noticed within 50 ms.
    """

    __slots__ = ("_future", "_receive", "_timer", "gone", "task")

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None, "runs in a task"
        self.task = task
        self.gone = False
        self._receive = receive
        self._future: Any = None
        self._timer = task.get_loop().call_later(_WATCH_AFTER_SECONDS, self._begin)

    def _begin(self) -> None:
        self._future = self._receive()  # Granian gives a future
        self._future.add_done_callback(self._heard)

    def _heard(self, future: Any) -> None:
        if self._future is None or future.cancelled():
            return
        if future.result()["type"] == "http.disconnect":
            self.gone = True
            self.task.cancel()
        else:
            self._begin()  # the empty end of a body whose length was known

    def close(self) -> None:
        self._timer.cancel()
        if self._future is not None:
            future, self._future = self._future, None
            future.cancel()


class _Patience:
    """Cancels tasks that read a body for too long: one look around a second, for a timer for each would cost more."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.seconds = seconds
        self._clock = clock
        self._since: dict[asyncio.Task[Any], float] = {}
        self._looking = False

    def begin(self) -> asyncio.Task[Any]:
        task = asyncio.current_task()
        assert task is not None, "runs in a task"
        self._since[task] = self._clock.monotonic_seconds()
        if not self._looking:
            self._looking = True
            task.get_loop().call_later(min(1.0, self.seconds), self._look, task.get_loop())
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        del self._since[task]

    def is_over(self, task: asyncio.Task[Any]) -> bool:
        return self._since[task] < 0

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        latest = self._clock.monotonic_seconds() - self.seconds
        for task, since in self._since.items():
            if 0 <= since <= latest:
                self._since[task] = -1.0
                task.cancel()
        self._looking = bool(self._since)
        if self._looking:
            loop.call_later(min(1.0, self.seconds), self._look, loop)


class DataPlane:
    """Takes requests of the data plane.

    Args:
        gateway: Answers what goes to a provider.
        routes: Further routes: (method, pattern, handler); ``{name}`` in a pattern matches one path segment.
        clock: Tells the time.
        max_body_bytes: Largest body accepted.
        body_seconds: How long a body may take to come.
        origins: Web pages that may post feedback, and so read why it was refused.
        note_rejected: Told the code of each request that was turned away.
    """

    def __init__(
        self,
        gateway: Gateway,
        routes: RouteTable,
        clock: Clock,
        *,
        max_body_bytes: int,
        body_seconds: float,
        origins: Sequence[str],
        note_rejected: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._clock = clock
        self._max_body_bytes = max_body_bytes
        self._patience = _Patience(clock, body_seconds)
        self._origins = origins
        self._note_rejected = note_rejected
        own: RouteTable = (
            ("GET", "/v1/models", self._list_models),
            ("GET", "/v1/models/{model}", self._show_model),
            ("GET", "/openai/v1/models", self._list_models),
            ("GET", "/healthz", self._health),
            ("GET", "/readyz", self._readiness),
            ("GET", "/openapi.json", serve_dataplane_document),
        )
        self._routes = [(method, _compile(pattern), handler) for method, pattern, handler in (*own, *routes)]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path: str = scope["path"]
        reply = _Reply(send)
        operation = _OPERATIONS.get(path)
        model: str | None = None
        if operation is None and path.startswith("/openai/deployments/"):
            azure = _AZURE.fullmatch(path)
            if azure is not None:
                operation, model = _AZURE_OPERATIONS[azure["route"]], azure["application"]
        openai = operation is not None or path.startswith(("/v1/models", "/openai/"))
        try:
            if operation is not None:
                await self._invoke(operation, model, scope, receive, reply)
            else:
                await self._route(scope, receive, reply)
        except HeadwayError as error:
            request = uuid7(self._clock.unix_ms()).hex()
            shown = path[:_SHOWN_PATH]
            _log.info("request_rejected", request=request, path=shown, code=error.error_code, detail=error.message)
            self._note_rejected(error.error_code)
            answer = render_openai(error) if openai else render_problem(error)
            await reply.answer(answer, ((b"x-request-id", request.encode()), *self._shared(scope)))
        except Exception:  # noqa: BLE001 - the last boundary: a bug must not leave the caller without an answer
            _log.exception("internal_error", path=path[:_SHOWN_PATH])
            if not reply.begun:
                bug = HeadwayError("Headway failed on this request; its log says why")
                await reply.answer(render_openai(bug) if openai else render_problem(bug))

    def _shared(self, scope: Message) -> Headers:
        return cors_headers(dict(scope["headers"]), self._origins) if scope["path"] == "/v1/feedback" else ()

    async def _invoke(
        self, operation: Operation, model: str | None, scope: Message, receive: Receive, reply: _Reply
    ) -> None:
        if scope["method"] != "POST":
            error = MethodNotAllowedError(f"{scope['path']} takes POST")
            await reply.answer(render_openai(error), ((b"allow", b"POST"),))
            return
        headers = _headers(scope)
        key = authenticate(self._gateway.snapshot, headers, self._clock.unix_ms())
        require_scope(key, "invoke")
        body = await self._read(headers, receive, self._max_body_bytes)
        watch = _Watch(receive)
        try:
            await self._gateway.serve(operation, key, headers, body, reply, model)
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            watch.task.uncancel()
        finally:
            watch.close()

    async def _route(self, scope: Message, receive: Receive, reply: _Reply) -> None:
        path, method = scope["path"], scope["method"]
        wanted = "GET" if method == "HEAD" else method  # some load balancers ask so; the server sends no body then
        allowed = []
        for route_method, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route_method != wanted:
                allowed.append(route_method)
                continue
            headers = _headers(scope)
            client = scope.get("client")
            request = Request(
                method=method,
                path=path,
                query=scope["query_string"],
                headers=headers,
                body=await self._read(headers, receive, min(BODY_BYTES, self._max_body_bytes)),
                parameters=match.groupdict(),
                client=client[0] if client else "",
            )
            await reply.answer(await handler(request))
            return
        if allowed:
            methods = sorted(set(allowed))
            error = MethodNotAllowedError(f"{path} takes {' or '.join(methods)}, not {method}")
            await reply.answer(render_problem(error), ((b"allow", ", ".join(methods).encode()),))
            return
        shown = path[:_SHOWN_PATH]
        raise NotFoundError(f"there is nothing at {method} {shown}: see /openapi.json", code="route_not_found")

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedMediaTypeError("send the body without content-encoding")
        task = self._patience.begin()
        try:
            return await self._collect(headers, receive, limit)
        except asyncio.CancelledError:
            if not self._patience.is_over(task):
                raise
            task.uncancel()
            raise BodyTimeoutError(f"the body did not come within {self._patience.seconds:g} s") from None
        finally:
            self._patience.end(task)

    async def _collect(self, headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
        """Read the body; one that is too large is read to its end and thrown away, so that the client hears why."""
        message = await receive()
        body: bytes = message.get("body", b"")
        size = len(body)
        if headers.get(b"content-length") == b"%d" % size and size <= limit:
            return body  # whole already: asking for the empty end would cost a tenth of a short request
        parts = [body]
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequestError("the body was cut off", code="incomplete_body")
            part = message.get("body", b"")
            if part:
                size += len(part)
                if size <= limit:
                    parts.append(part)
                elif size > self._max_body_bytes * _DRAINED_BODIES:
                    break
        if size > limit:
            raise BodyTooLargeError(f"the body is larger than {limit / 1e6:.3g} MB, the most that is accepted here")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _list_models(self, request: Request) -> Answer:
        key = self._identify(request)
        return Answer(200, msgspec.json.encode({"object": "list", "data": self._models(key)}))

    async def _show_model(self, request: Request) -> Answer:
        key = self._identify(request)
        name = request.parameters["model"]
        for model in self._models(key):
            if model["id"] == name:
                return Answer(200, msgspec.json.encode(model))
        return render_openai(NotFoundError(f"no application {name[:100]!r} here", code="model_not_found"))

    def _identify(self, request: Request) -> KeyRoute:
        key = authenticate(self._gateway.snapshot, request.headers, self._clock.unix_ms())
        require_scope(key, "invoke")
        return key

    def _models(self, key: KeyRoute) -> list[dict[str, Any]]:
        snapshot = self._gateway.snapshot
        names = []
        for application in snapshot.applications.values():
            if may_use(key, application.name):
                names.append(application.name)
                if "pin" in key.scopes:
                    names += [f"{application.name}@{release}" for release in application.releases]
        created = snapshot.unix_ms // 1000
        return [{"id": name, "object": "model", "created": created, "owned_by": "headway"} for name in names]

    async def _health(self, _: Request) -> Answer:
        return Answer(200, b'{"status":"ok"}')

    async def _readiness(self, _: Request) -> Answer:
        number = self._gateway.snapshot.number
        return Answer(200, msgspec.json.encode({"status": "ready", "snapshot": number}))


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    text = "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>[^/]+)" for i, part in enumerate(parts))
    return re.compile(text)
