"""The provider simulator: OpenAI's and Azure OpenAI's API on a real loopback socket, with scripted behaviour."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from headway.clock import Clock, SystemClock
from headway.testing.behaviour import Behaviour, ErrorReply
from headway.testing.chat import ChatAnswer
from headway.testing.control import ControlError, Controls
from headway.testing.delivery import JSON_TYPE, Delivery, reset_connection
from headway.testing.draft import Plan, draw_plan
from headway.testing.embeddings import write_embeddings
from headway.testing.ledger import Counts, Ledger, Outcome, Received
from headway.testing.question import Question, RequestError, read_chat, read_responses
from headway.testing.responses import ResponsesAnswer, ResponseStore

__all__ = ["ProviderSimulator", "refusing_port"]

_LARGEST_BODY_BYTES = 1 << 30
_ORDINARY = Behaviour()
_ANSWER_HEADERS = {
    "openai-version": "2020-10-01",
    "openai-processing-ms": "42",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-reset-requests": "6ms",
}


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path means: the resource, and where Azure's paths name a deployment, that."""

    resource: str
    deployment: str | None
    azure: bool


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A request on its way through the simulator, with its parsed body."""

    request: web.BaseRequest
    received: Received
    target: _Target
    body: Any


class ProviderSimulator:
    """Serves OpenAI's API in this event loop, from ``async with`` to its end.

    Routes: ``/v1/chat/completions``, ``/v1/responses``, ``/v1/embeddings``, ``/v1/models``; the same below
    ``/openai/v1``; and Azure's ``/openai/deployments/{name}/...?api-version=``. All random choices come from the seed:
    the k-th request for a model is treated the same in each run.

    Args:
        behaviours: By model name, or by deployment name on Azure's paths.
        default: For all other models; ``None`` refuses them with 404.
        seed: Makes runs repeatable.
        api_keys: Refuse other keys with 401; by default any key will do, and none.
        clock: Does the waiting and stamps the requests; a ``ManualClock`` makes the provider wait for the test.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.

    Example:
        ::

            async with ProviderSimulator({"gpt-4o-mini": Behaviour(quality=0.8)}) as provider:
                client = openai.AsyncOpenAI(base_url=provider.base_url, api_key="any")
                ...
                provider.set_behaviour("gpt-4o-mini", Behaviour(fault=Fault.HANG_MID_STREAM))
                ...
                await provider.wait_until(lambda: provider.counts.cancelled == 1)
    """

    def __init__(
        self,
        behaviours: Mapping[str, Behaviour] | None = None,
        *,
        default: Behaviour | None = _ORDINARY,
        seed: int = 0,
        api_keys: Collection[str] = (),
        clock: Clock | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._behaviours = dict(behaviours or {})
        self._default = default
        self._seed = seed
        self._api_keys = frozenset(api_keys)
        self._clock: Clock = clock or SystemClock()
        self._host = host
        self._port = port
        self._randoms: dict[str | None, random.Random] = {}
        self._queued: dict[str, deque[Behaviour]] = {}
        self._ledger = Ledger(self._clock)
        self._responses = ResponseStore()
        self._controls = Controls(self)
        self._protocols: _CountingServer | None = None
        self._listener: asyncio.Server | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; requests are answered from now on."""
        self._ledger.stopping = False
        self._protocols = _CountingServer(self._serve, self._ledger)
        await self.accept_connections()

    async def stop(self) -> None:
        """Close the port and all connections; requests that are being served end as ``STOPPED``."""
        self._ledger.stopping = True
        await self.refuse_connections()
        self.reset_connections()
        if self._protocols is not None:
            await self._ledger.wait_until(lambda: not self._ledger.counts().open_connections, timeout_seconds=5)
            await self._protocols.shutdown(1)
            self._protocols = None

    async def refuse_connections(self) -> None:
        """Close the port: new connections are refused, existing ones stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept_connections(self) -> None:
        """Open the port again after ``refuse_connections``; it keeps its number."""
        if self._listener is None and self._protocols is not None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                self._protocols, self._host, self._port, backlog=4096, reuse_address=True
            )
            self._port = self._listener.sockets[0].getsockname()[1]

    def reset_connections(self) -> None:
        """Reset (TCP RST) all connections, idle ones in clients' pools included."""
        for protocol in self._protocols.connections if self._protocols else ():
            if protocol.transport is not None:
                reset_connection(protocol.transport)

    # --- addresses --------------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The port listened on; known once started."""
        return self._port

    @property
    def base_url(self) -> str:
        """What OpenAI's clients call ``base_url``: ends in ``/v1``."""
        return f"http://{self._host}:{self._port}/v1"

    @property
    def azure_endpoint(self) -> str:
        """What Azure's clients call ``azure_endpoint``: the server without a path."""
        return f"http://{self._host}:{self._port}"

    # --- behaviour --------------------------------------------------------------------------------------------------

    @property
    def models(self) -> Sequence[str]:
        """The models that have a behaviour of their own."""
        return tuple(self._behaviours)

    def set_behaviour(self, model: str, behaviour: Behaviour) -> None:
        """Treat requests for ``model`` in this way from now on."""
        self._behaviours[model] = behaviour

    def set_default(self, behaviour: Behaviour | None) -> None:
        """Treat requests for all other models in this way from now on."""
        self._default = behaviour

    def play(self, model: str, *behaviours: Behaviour) -> None:
        """Treat the next requests for ``model`` in these ways, one each, and then as before.

        Example:
            ``provider.play("gpt-4o-mini", Behaviour(errors=(rate_limited(1),)))`` fails once and then recovers.
        """
        self._queued.setdefault(model, deque()).extend(behaviours)

    # --- what was seen ----------------------------------------------------------------------------------------------

    @property
    def received(self) -> Sequence[Received]:
        """The latest 10,000 requests, oldest first."""
        return self._ledger.received

    @property
    def counts(self) -> Counts:
        """Totals since the start."""
        return self._ledger.counts()

    def forget_received(self) -> None:
        """Empty the list of received requests; totals stay."""
        self._ledger.received.clear()

    async def wait_until(self, condition: Callable[[], bool], timeout_seconds: float = 5.0) -> None:
        """Return as soon as ``condition`` holds, which may depend on anything: a test needs no sleep.

        Raises:
            TimeoutError: It did not come to hold in time; says what there was instead.
        """
        await self._ledger.wait_until(condition, timeout_seconds)

    # --- serving ----------------------------------------------------------------------------------------------------

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        if request.path.startswith("/_simulator/"):
            return self._control(request, raw)
        exchange = self._receive(request, raw)
        try:
            return await self._answer(exchange)
        except RequestError as error:
            reply = ErrorReply(
                status=error.status,
                message=error.message,
                error_type="invalid_request_error",
                code=error.code,
                param=error.param,
            )
            return self._fail(exchange.received, reply)
        except (asyncio.CancelledError, ConnectionError):
            self._ledger.end(exchange.received, Outcome.STOPPED if self._ledger.stopping else Outcome.CANCELLED)
            raise
        finally:
            # Has ended before, unless something unforeseen made this a 500.
            self._ledger.end(exchange.received, Outcome.ERROR)

    def _receive(self, request: web.BaseRequest, raw: bytes) -> _Exchange:
        target = _read_target(request.path)
        try:
            body = msgspec.json.decode(raw) if raw else None
        except msgspec.DecodeError:
            body = None
        model = target.deployment or (body.get("model") if isinstance(body, dict) else None)
        received = Received(
            number=0,
            connection=self._ledger.connection_number(request.protocol),
            method=request.method,
            path=request.path,
            query=dict(request.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
            body_bytes=len(raw),
            model=model if isinstance(model, str) else "",
            arrived_seconds=self._clock.monotonic_seconds(),
        )
        self._ledger.begin(received)
        return _Exchange(request, received, target, body)

    async def _answer(self, exchange: _Exchange) -> web.StreamResponse:
        refused = self._refuse(exchange.received, exchange.target)
        if refused is not None:
            return self._fail(exchange.received, refused)
        method, resource = exchange.received.method, exchange.target.resource
        if method == "POST" and resource == "chat/completions":
            return await self._chat(exchange)
        if method == "POST" and resource == "responses":
            return await self._respond(exchange)
        if method == "POST" and resource == "embeddings":
            return await self._embed(exchange)
        body = self._look_up(method, resource)
        exchange.received.status = 200
        self._ledger.end(exchange.received, Outcome.ANSWERED)
        return web.Response(body=msgspec.json.encode(body), content_type=JSON_TYPE)

    def _refuse(self, received: Received, target: _Target) -> ErrorReply | None:
        """Check key, API version and model, as far as they are checked."""
        bearer = received.headers.get("authorization", "").removeprefix("Bearer ").strip()
        key = received.headers.get("api-key") or bearer
        if self._api_keys and key not in self._api_keys:
            message = "Incorrect API key provided. You can find your API key in your account's settings."
            return ErrorReply(status=401, message=message, error_type="invalid_request_error", code="invalid_api_key")
        if target.deployment is not None and not received.query.get("api-version"):
            return ErrorReply(status=404, message="Resource not found", error_type="", code="404")
        if received.method == "POST" and received.model and self._behaviour_of(received.model) is None:
            if target.azure:
                message = "The API deployment for this resource does not exist."
                return ErrorReply(status=404, message=message, error_type="", code="DeploymentNotFound")
            message = f"The model `{received.model}` does not exist or you do not have access to it."
            return ErrorReply(status=404, message=message, error_type="invalid_request_error", code="model_not_found")
        return None

    async def _chat(self, exchange: _Exchange) -> web.StreamResponse:
        question = read_chat(exchange.body, model=exchange.target.deployment)
        behaviour, plan = self._plan(exchange, question)
        if plan.error:
            return self._fail(exchange.received, plan.error)
        answer = ChatAnswer(question, plan, behaviour, self._clock.unix_ms() // 1000, azure=exchange.target.azure)
        exchange.received.answer_id = answer.answer_id
        delivery = self._delivery(exchange, behaviour, plan)
        if question.stream:
            return await delivery.send_stream(answer.events())
        return await delivery.send_document(answer.body(), max(draft.token_count for draft in plan.drafts))

    async def _respond(self, exchange: _Exchange) -> web.StreamResponse:
        fields = exchange.body if isinstance(exchange.body, dict) else {}
        history_tokens = self._responses.count_history_tokens(fields.get("previous_response_id"))
        question = read_responses(exchange.body, history_tokens=history_tokens)
        behaviour, plan = self._plan(exchange, question)
        if plan.error:
            return self._fail(exchange.received, plan.error)
        answer = ResponsesAnswer(question, fields, plan, behaviour, self._clock.unix_ms() // 1000)
        exchange.received.answer_id = answer.answer_id
        if fields.get("store") is not False and plan.fault is None:
            # Before the last byte goes out: the client may continue it at once.
            self._responses.add(answer.final())
        delivery = self._delivery(exchange, behaviour, plan)
        if question.stream:
            return await delivery.send_stream(answer.events())
        return await delivery.send_document(answer.body(), plan.drafts[0].token_count)

    async def _embed(self, exchange: _Exchange) -> web.StreamResponse:
        model = exchange.received.model
        if not model:
            raise RequestError("you must provide a model parameter", param="model")
        body, tokens = write_embeddings(exchange.body, model)
        behaviour, plan = self._plan(exchange, Question(model=model, prompt_tokens=tokens, choices=0))
        if plan.error:
            return self._fail(exchange.received, plan.error)
        return await self._delivery(exchange, behaviour, plan).send_document(body, tokens=0)

    def _look_up(self, method: str, resource: str) -> Any:
        """Answer what has nothing to do with a behaviour: lists of models and stored responses."""
        collection, _, name = resource.partition("/")
        if method == "GET" and collection == "models":
            facts = {"object": "model", "created": 1_700_000_000, "owned_by": "simulator"}
            models = [{"id": model, **facts} for model in self.models]
            if not name:
                return {"object": "list", "data": models}
            for model in models:
                if model["id"] == name:
                    return model
            raise RequestError(f"The model '{name}' does not exist", param="model", code="model_not_found", status=404)
        if collection == "responses" and name and method == "GET":
            return self._responses.get(name)
        if collection == "responses" and name and method == "DELETE":
            self._responses.delete(name)
            return {"id": name, "object": "response", "deleted": True}
        raise RequestError(f"Invalid URL ({method} /{resource})", status=404)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _plan(self, exchange: _Exchange, question: Question) -> tuple[Behaviour, Plan]:
        model = exchange.received.model
        queued = self._queued.get(model)
        behaviour = queued.popleft() if queued else self._behaviour_of(model)
        assert behaviour is not None, "unknown models are refused before"
        for name in sorted(behaviour.rejects & exchange.body.keys()):
            raise RequestError(f"Unrecognized request argument supplied: {name}", param=name)
        # Models without a behaviour of their own share one stream of random numbers: clients can make up any number.
        own = model if model in self._behaviours else None
        if own not in self._randoms:
            self._randoms[own] = random.Random(f"{self._seed}/{own or ''}")
        return behaviour, draw_plan(behaviour, question, self._randoms[own])

    def _behaviour_of(self, model: str) -> Behaviour | None:
        return self._behaviours.get(model, self._default)

    def _delivery(self, exchange: _Exchange, behaviour: Behaviour, plan: Plan) -> Delivery:
        headers = {"x-request-id": f"req_{plan.key}", **_ANSWER_HEADERS}
        return Delivery(exchange.request, plan, behaviour, exchange.received, self._ledger, self._clock, headers)

    def _fail(self, received: Received, reply: ErrorReply) -> web.Response:
        headers = {"Content-Type": JSON_TYPE, "x-request-id": f"req_{received.number}", **reply.headers}
        if reply.retry_after_seconds is not None:
            headers["Retry-After"] = self._retry_after(reply)
        error: dict[str, Any] = {"message": reply.message, "code": reply.code}
        if reply.error_type:
            error |= {"type": reply.error_type, "param": reply.param}
        received.status = reply.status
        received.headers_seconds = self._clock.monotonic_seconds()
        self._ledger.end(received, Outcome.ERROR)
        return web.Response(status=reply.status, body=msgspec.json.encode({"error": error}), headers=headers)

    def _retry_after(self, reply: ErrorReply) -> str:
        seconds = reply.retry_after_seconds or 0.0
        if reply.retry_after_as_date:
            return formatdate(-(-(self._clock.unix_ms() + seconds * 1000) // 1000), usegmt=True)
        return f"{seconds:g}"

    def _control(self, request: web.BaseRequest, raw: bytes) -> web.Response:
        try:
            body = self._controls.handle(request.method, request.path, raw)
        except ControlError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.Response(body=body, content_type=JSON_TYPE)


class _CountingServer(web.Server):
    """Tells the ledger of each connection; cancels a handler as soon as its client is gone."""

    def __init__(self, handler: Callable[[web.BaseRequest], Any], ledger: Ledger) -> None:
        super().__init__(handler, handler_cancellation=True, request_factory=self._make, access_log=None)
        self._ledger = ledger

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._ledger.connect(handler)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._ledger.disconnect(handler)

    def _make(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_LARGEST_BODY_BYTES)


def _read_target(path: str) -> _Target:
    """Split a path into Azure's or OpenAI's prefix and the resource."""
    if path.startswith("/openai/deployments/"):
        name, _, resource = path.removeprefix("/openai/deployments/").partition("/")
        return _Target(resource, deployment=name, azure=True)
    for prefix, azure in (("/openai/v1/", True), ("/v1/", False)):
        if path.startswith(prefix):
            return _Target(path.removeprefix(prefix).rstrip("/"), deployment=None, azure=azure)
    return _Target("", deployment=None, azure=False)


@contextlib.contextmanager
def refusing_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Hold a port that refuses connections and that nobody else can take meanwhile.

    Example:
        >>> with refusing_port() as port, socket.socket() as client:
        ...     client.connect_ex(("127.0.0.1", port)) != 0
        True
    """
    with socket.socket() as holder:
        holder.bind((host, 0))
        yield holder.getsockname()[1]
