"""An exchange: one request on its way from its release to an answer and a complete interaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import msgspec

from headway.clock import Clock, elapsed_ms, utc
from headway.domain.access import fingerprint
from headway.domain.interaction import Interaction, Operation
from headway.domain.release import Prices
from headway.domain.snapshot import ReleaseRoute, Snapshot
from headway.errors import HeadwayError, InvalidRequestError, ProviderError, ProviderTimeoutError
from headway.gateway.answers import JunkError, rewrite_answer
from headway.gateway.calls import Caller, Opened
from headway.gateway.citations import is_cited, without_instructions
from headway.gateway.grounding import Grounded, Grounding
from headway.gateway.parsing import ParsedRequest
from headway.gateway.refusals import Refusal, wants_json
from headway.gateway.rendering import ReleaseRenderer
from headway.gateway.routing import Route, Unit
from headway.gateway.streams import ChatStream, ResponsesStream, StreamRewriter
from headway.gateway.tracing import Trace
from headway.providers.client import CallError
from headway.storage.links import ResponseLink

Headers = tuple[tuple[bytes, bytes], ...]
_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
CLIENT_GONE = 499
_RECORDED_BYTES = 1024 * 1024
_DAY_MS = 86_400_000


class Reply(Protocol):
    """Where an answer goes. A method that waits makes the provider wait too."""

    async def whole(self, status: int, content_type: bytes, body: bytes, headers: Headers = ()) -> None:
        """Send an answer as a whole."""
        ...

    async def begin(self, status: int, content_type: bytes, headers: Headers = ()) -> None:
        """Send status and headers of a streamed answer."""
        ...

    async def piece(self, data: bytes) -> None:
        """Send a piece of a streamed answer."""
        ...

    async def end(self) -> None:
        """End a streamed answer."""
        ...

    async def fail(self, error: HeadwayError, headers: Headers = ()) -> int:
        """Send an error as a whole answer; gives its HTTP status."""
        ...

    def error_body(self, error: HeadwayError) -> bytes:
        """Write an error as OpenAI's error JSON, for an event of a stream that has begun."""
        ...


class Exchange(NamedTuple):
    """One request on its way: what the steps of its handling share.

    Attributes:
        parsed: The request.
        route: The release that answers, and how the interaction is booked.
        unit: Its unit.
        interaction: Filled in as it goes.
        answer_id: The interaction id that the answer carries.
        previous: Of a later turn of a stored response: where that lives.
        started: When the request came, by the monotonic clock.
        headers: The answer's headers with its ids.
        trace: Of this request, if traces are on.
        groups: Whose labelled documents the caller sees.
    """

    parsed: ParsedRequest
    route: Route
    unit: Unit
    interaction: Interaction
    answer_id: bytes
    previous: ResponseLink | None
    started: float
    headers: Headers
    trace: Trace | None
    groups: frozenset[str]


class Answerer:
    """Gets answers: renders, calls, rewrites, and fills in the interaction.

    Args:
        caller: Makes the provider calls.
        grounding: Finds what grounded answers go by.
        clock: Tells the time.
        keep_link: Keeps where a stored response lives; without it nothing is kept.
    """

    def __init__(
        self,
        caller: Caller,
        grounding: Grounding,
        clock: Clock,
        keep_link: Callable[[ResponseLink], Awaitable[None]] | None = None,
    ) -> None:
        self._caller = caller
        self._grounding = grounding
        self._clock = clock
        self._keep = keep_link
        self._renderers: dict[int, ReleaseRenderer] = {}
        self._day = (-1, "")

    def switch(self, snapshot: Snapshot) -> None:
        """Forget releases that are no longer served."""
        self._renderers = {number: made for number, made in self._renderers.items() if number in snapshot.releases}

    async def answer(self, exchange: Exchange, reply: Reply) -> None:
        """Get the answer and pass it on; every way out of here leaves a status in the interaction."""
        interaction = exchange.interaction
        interaction.status = CLIENT_GONE
        interaction.aborted = True
        opened: Opened | None = None
        try:
            grounded = await self._ground(exchange)
            if grounded is not None and grounded.refused:
                await self._refuse(exchange, reply)
            else:
                opened = await self._open(exchange, grounded)
                if opened.pieces is None:
                    await self._pass_whole(exchange, opened, grounded, reply)
                else:
                    await self._pass_stream(exchange, opened, grounded, reply)
            interaction.aborted = False
        except HeadwayError as error:
            interaction.error = error.error_code
            interaction.release_error = not isinstance(error, InvalidRequestError)  # else it is the caller's
            interaction.aborted = False
            interaction.status = await reply.fail(error, exchange.headers)
        finally:
            if opened is not None:
                opened.close()

    async def _ground(self, exchange: Exchange) -> Grounded | None:
        """Find what the answer goes by; None where the release is not grounded."""
        retrieval = exchange.route.release.bundle.retrieval
        if retrieval is None or exchange.parsed.operation == "embeddings":
            return None
        return await self._grounding.ground(
            retrieval, exchange.parsed, exchange.groups, exchange.interaction, exchange.trace
        )

    async def _refuse(self, exchange: Exchange, reply: Reply) -> None:
        """Answer that there is nothing to go by; that costs nothing."""
        parsed, interaction = exchange.parsed, exchange.interaction
        fields = self._renderer(exchange.route.release).set_parameters(parsed)
        refusal = Refusal(
            parsed,
            exchange.answer_id.decode(),
            exchange.route.application.name,
            interaction.unix_ms // 1000,
            wants_json(parsed.operation, fields),
        )
        whole = refusal.whole()
        interaction.finish_reason, interaction.cited = "stop", False
        interaction.input_tokens = interaction.output_tokens = 0
        interaction.cost_usd = 0.0
        if interaction.request is not None:
            interaction.answer = whole
        previous = exchange.previous
        if previous is not None:  # the next turn goes on from the earlier one
            await self._link(exchange, previous.provider_id, previous.deployment)
        now = elapsed_ms(exchange.started, self._clock.monotonic_seconds())
        interaction.overhead_ms = now - (interaction.retrieval_ms or 0.0)
        if not parsed.stream:
            await reply.whole(200, _JSON, whole, exchange.headers)
        else:
            interaction.first_token_ms = now
            await reply.begin(200, _EVENTS, exchange.headers)
            await reply.piece(refusal.streamed())
            await reply.end()
        interaction.status = 200

    async def _open(self, exchange: Exchange, grounded: Grounded | None) -> Opened:
        parsed, route, interaction = exchange.parsed, exchange.route, exchange.interaction
        renderer = self._renderer(route.release)
        passages = "" if grounded is None else grounded.passages
        fields = renderer.render(parsed, self._today(interaction.unix_ms), passages)
        only = None
        if exchange.previous is not None:
            fields["previous_response_id"] = msgspec.Raw(msgspec.json.encode(exchange.previous.provider_id))
            only = exchange.previous.deployment
        spent = elapsed_ms(exchange.started, self._clock.monotonic_seconds())
        interaction.overhead_ms = spent - (interaction.retrieval_ms or 0.0)
        return await self._caller.call(route.release, renderer, parsed, fields, interaction, exchange.trace, only)

    def _renderer(self, release: ReleaseRoute) -> ReleaseRenderer:
        renderer = self._renderers.get(release.number)
        if renderer is None:
            renderer = self._renderers[release.number] = ReleaseRenderer(release)
        return renderer

    def _today(self, unix_ms: int) -> str:
        day = unix_ms // _DAY_MS
        if day != self._day[0]:
            self._day = (day, utc(unix_ms).strftime("%Y-%m-%d"))
        return self._day[1]

    async def _pass_whole(self, exchange: Exchange, opened: Opened, grounded: Grounded | None, reply: Reply) -> None:
        interaction = exchange.interaction
        came = self._clock.monotonic_seconds()
        status = opened.answer.status
        body, content_type = opened.body, _JSON
        if opened.content is None:
            given = opened.answer.headers.get("Content-Type", "application/json")
            content_type = given.encode("utf-8", "surrogateescape")  # as it came
            interaction.error, interaction.release_error, interaction.filtered = judge_rejection(body)
        else:
            previous = exchange.parsed.previous_response_id
            body = rewrite_answer(
                interaction, body, opened.content, exchange.answer_id, previous.encode() if previous else None
            )
            if interaction.operation == "responses":
                await self._keep_link(exchange, opened)
            _note_answer(interaction, body, grounded)
            if grounded is not None:
                body = grounded.citations.put_in(interaction.operation, body)
        interaction.overhead_ms += elapsed_ms(came, self._clock.monotonic_seconds())
        await reply.whole(status, content_type, body, exchange.headers)
        interaction.status = status

    async def _pass_stream(self, exchange: Exchange, opened: Opened, grounded: Grounded | None, reply: Reply) -> None:
        assert opened.pieces is not None
        interaction = exchange.interaction
        rewriter = _rewriter(exchange, grounded)
        begun = False
        linked = interaction.operation != "responses"
        try:
            data = rewriter.feed(opened.take_body())
            while True:
                if rewriter.saw_content and interaction.first_token_ms is None:
                    interaction.first_token_ms = elapsed_ms(exchange.started, self._clock.monotonic_seconds())
                if not linked and interaction.provider_id:
                    linked = True
                    await self._keep_link(exchange, opened)
                if data:
                    if not begun:
                        await reply.begin(opened.answer.status, _EVENTS, exchange.headers)
                        begun = True
                    if rewriter.ended:  # whoever has the last event may leave; the provider's connection ends later
                        _note_end(interaction, opened, rewriter)
                    await reply.piece(data)
                try:
                    data = rewriter.feed(await anext(opened.pieces))
                except StopAsyncIteration:
                    break
            rest = rewriter.finish()
            if not begun:
                await reply.begin(opened.answer.status, _EVENTS, exchange.headers)
            if rest:
                await reply.piece(rest)
            await reply.end()
            _note_end(interaction, opened, rewriter)
        except (CallError, JunkError) as error:
            if rewriter.ended:
                await reply.end()
                return
            interaction.attempt_errors += 1
            failure = _broken_off(opened.deployment.name, error)
            if not begun:
                raise failure from error
            interaction.error, interaction.release_error = failure.error_code, True
            interaction.status = opened.answer.status
            await reply.piece(_error_event(interaction.operation, rewriter, reply.error_body(failure)))
            await reply.end()
        finally:
            if grounded is not None or interaction.request is not None:
                _note_answer(interaction, rewriter.transcript(), grounded)

    async def _keep_link(self, exchange: Exchange, opened: Opened) -> None:
        provider_id = exchange.interaction.provider_id
        if provider_id and exchange.parsed.fields.get("store") != msgspec.Raw(b"false"):
            await self._link(exchange, provider_id, opened.deployment.name)

    async def _link(self, exchange: Exchange, provider_id: str, deployment: str) -> None:
        if self._keep is not None:
            unit = exchange.unit
            # What an earlier turn was told stays in what the provider keeps.
            groups = exchange.previous.groups if exchange.previous is not None else ""
            if exchange.route.release.bundle.retrieval is not None:
                groups = fingerprint(exchange.groups)
            await self._keep(
                ResponseLink(exchange.interaction.id, provider_id, deployment, unit.conversation, unit.name, groups)
            )

    def complete(self, exchange: Exchange) -> None:
        """Price the interaction and say how long it took."""
        interaction = exchange.interaction
        prices = next(
            (
                deployment.operation.usd_per_million_tokens
                for deployment in exchange.route.release.deployments
                if deployment.name == interaction.deployment
            ),
            None,
        )
        if interaction.cost_usd is None:
            interaction.cost_usd = cost_of(interaction, prices)
        if interaction.error is not None or interaction.aborted:
            interaction.cited = None  # nobody knows what a whole answer would have named
        interaction.total_ms = elapsed_ms(exchange.started, self._clock.monotonic_seconds())


def _rewriter(exchange: Exchange, grounded: Grounded | None) -> StreamRewriter:
    parsed, interaction = exchange.parsed, exchange.interaction
    citations = None if grounded is None else grounded.citations
    keep = interaction.request is not None or grounded is not None
    if parsed.operation == "responses":
        previous = parsed.previous_response_id
        ours = previous.encode() if previous else None
        return ResponsesStream(interaction, exchange.answer_id, ours, keep, citations)
    return ChatStream(interaction, exchange.answer_id, not parsed.include_usage, keep, citations)


def _note_answer(interaction: Interaction, answer: bytes, grounded: Grounded | None) -> None:
    """Record an answer, and whether it names what it was given to go by; never the passages themselves."""
    if grounded is not None:
        interaction.cited = is_cited(interaction.operation, answer, len(grounded.citations))
    if interaction.request is not None:
        if grounded is not None and interaction.operation == "responses":
            answer = without_instructions(answer)
        interaction.answer = recorded(answer)


def recorded(body: bytes) -> bytes:
    """Give what is recorded of a body: all of it, or how large it was (pictures make for large prompts)."""
    if len(body) <= _RECORDED_BYTES:
        return body
    return msgspec.json.encode({"headway": f"not recorded: {len(body)} bytes, more than {_RECORDED_BYTES}"})


def cost_of(interaction: Interaction, prices: Prices | None) -> float | None:
    """Price an interaction in US dollars; None without prices or usage."""
    if prices is None or interaction.input_tokens is None:
        return None
    return prices.cost_usd(interaction.input_tokens, interaction.output_tokens or 0, interaction.cached_tokens or 0)


def _note_end(interaction: Interaction, opened: Opened, rewriter: StreamRewriter) -> None:
    """Record that the client has the whole stream."""
    interaction.status, interaction.aborted = opened.answer.status, False
    if rewriter.error is not None:
        interaction.error, interaction.release_error = "provider_error", True


def _broken_off(deployment: str, error: CallError | JunkError) -> ProviderError:
    message = f"deployment {deployment!r} broke off: {error}"
    if isinstance(error, JunkError):
        return ProviderError(message, code="provider_junk")
    return ProviderTimeoutError(message) if error.timed_out else ProviderError(message, code="provider_cut")


_RELEASE_CAUSED = ("context_length", "unsupported_", "model_", "max_tokens", "invalid_prompt")


class _ErrorDetail(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetail | str | None = None


def judge_rejection(body: bytes) -> tuple[str, bool, bool]:
    """Say whose fault a provider's 4xx is.

    Returns:
        Its code, whether the release caused it (statistics, booking rule 7), whether a content filter stepped in.
    """
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        error = None
    code = str((error.code or error.type) if isinstance(error, _ErrorDetail) else "") or "provider_refused"
    return code[:100], code.startswith(_RELEASE_CAUSED), code == "content_filter"


def _error_event(operation: Operation, rewriter: StreamRewriter, body: bytes) -> bytes:
    if operation != "responses" or not isinstance(rewriter, ResponsesStream):
        return b"data: " + body + b"\n\n"
    detail = msgspec.json.decode(body)["error"]
    event = {
        "type": "error",
        "sequence_number": rewriter.sequence_number + 1,
        "code": detail["code"],
        "message": detail["message"],
        "param": None,
    }
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"
