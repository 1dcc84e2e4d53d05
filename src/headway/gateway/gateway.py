"""The gateway: from an authenticated request to an answer and its record."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from headway.clock import Clock
from headway.domain.access import fingerprint, groups_of
from headway.domain.interaction import Interaction, Operation
from headway.domain.snapshot import ApplicationRoute, KeyRoute, Snapshot
from headway.errors import InvalidRequestError, NotFoundError
from headway.gateway.conversations import Conversations
from headway.gateway.exchange import Answerer, Exchange, Headers, Reply, recorded
from headway.gateway.parsing import ParsedRequest, parse_request
from headway.gateway.quota import Quota
from headway.gateway.recorder import Recorder
from headway.gateway.routing import (
    Route,
    Unit,
    carry_over,
    choose_release,
    choose_unit,
    continue_from,
    find_application,
    outside,
)
from headway.gateway.shadow import Mirrors, can_mirror
from headway.gateway.tracing import Tracing
from headway.ids import InteractionId, Kind, Signer, uuid7
from headway.storage.links import ResponseLink

_log = structlog.get_logger("headway.gateway")


class Gateway:
    """Answers requests: routes, renders, calls, rewrites, records.

    Args:
        answerer: Gets the answers.
        mirrors: Take what has been answered in a shadow stage.
        recorder: Takes what happened.
        quota: Admits requests of keys.
        conversations: Finds earlier responses.
        clock: Tells the time.
        tracing: Makes traces, if they are on.
    """

    def __init__(
        self,
        answerer: Answerer,
        mirrors: Mirrors,
        recorder: Recorder,
        quota: Quota,
        conversations: Conversations,
        clock: Clock,
        tracing: Tracing | None,
    ) -> None:
        self._answerer = answerer
        self._mirrors = mirrors
        self._recorder = recorder
        self._quota = quota
        self._conversations = conversations
        self._clock = clock
        self._tracing = tracing
        self._snapshot: Snapshot | None = None
        self._signer: Signer | None = None

    def switch(self, snapshot: Snapshot) -> None:
        """Serve by a new snapshot from the next request on; requests in flight keep theirs."""
        self._answerer.switch(snapshot)
        self._mirrors.switch(snapshot)
        self._signer = snapshot.signing.signer()
        self._snapshot = snapshot

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that is served."""
        assert self._snapshot is not None, "switch() first"
        return self._snapshot

    @property
    def signer(self) -> Signer:
        """Issues and reads interaction ids."""
        assert self._signer is not None, "switch() first"
        return self._signer

    async def serve(
        self,
        operation: Operation,
        key: KeyRoute,
        headers: Mapping[bytes, bytes],
        body: bytes,
        reply: Reply,
        model: str | None = None,
    ) -> None:
        """Answer one request. Cancelling means that the client is gone: the provider call is dropped at once.

        Args:
            operation: Which route.
            key: The caller's.
            headers: By lower-case name.
            body: The request body.
            reply: Where the answer goes.
            model: From the path, where that names it.

        Raises:
            HeadwayError: Nothing was assigned: the request, its model or a limit of the key is at fault.
        """
        started = self._clock.monotonic_seconds()
        groups = groups_of(key, headers.get(b"x-headway-groups"))
        parsed = parse_request(operation, body, model)
        name, _, pinned = parsed.model.partition("@")
        application = find_application(self.snapshot, key, name)
        self._quota.admit(key)
        cost: float | None = None
        try:
            exchange = await self._assign(parsed, application, pinned or None, key, groups, headers, started)
            try:
                await self._answerer.answer(exchange, reply)
            finally:
                cost = self._finish(exchange, application.name)
        finally:
            self._quota.leave(key, cost)

    async def _assign(
        self,
        parsed: ParsedRequest,
        application: ApplicationRoute,
        pinned: str | None,
        key: KeyRoute,
        groups: frozenset[str],
        headers: Mapping[bytes, bytes],
        started: float,
    ) -> Exchange:
        identifier = uuid7(self._clock.unix_ms())
        route, unit, previous = await self._place(parsed, application, pinned, key, headers, identifier.hex())
        if previous is not None and previous.groups not in ("", fingerprint(groups)):
            message = "previous_response_id was answered for other groups: send the whole conversation anew"
            raise NotFoundError(message, param="previous_response_id", code="previous_response_not_found")
        release = route.release
        hashed = self.signer.hash_unit(unit.name)
        identity = InteractionId(
            kind=route.kind,
            uuid=identifier,
            application=application.number,
            release=release.number,
            rollout=route.rollout,
            stage=route.stage,
            arm=route.arm,
            choice=0,
            unit=hashed,
            key=key.number,
        )
        answer_id = self.signer.issue(identity).encode()
        interaction = Interaction(
            id=identifier,
            application=application.number,
            release=release.number,
            rollout=route.rollout,
            stage=route.stage,
            arm=int(route.arm),
            kind=int(route.kind),
            unit=hashed,
            own_unit=unit.own,
            key=key.number,
            conversation=unit.conversation,
            user=parsed.user,
            operation=parsed.operation,
            stream=parsed.stream,
            request=recorded(parsed.body) if application.record_content else None,
        )
        ids: Headers = (
            (b"x-headway-interaction", answer_id),
            (b"x-headway-release", release.name.encode()),
            (b"x-request-id", answer_id),
        )
        trace = self._tracing.begin(headers, parsed.operation, application.name) if self._tracing is not None else None
        return Exchange(parsed, route, unit, interaction, answer_id, previous, started, ids, trace, groups)

    async def _place(
        self,
        parsed: ParsedRequest,
        application: ApplicationRoute,
        pinned: str | None,
        key: KeyRoute,
        headers: Mapping[bytes, bytes],
        own: str,
    ) -> tuple[Route, Unit, ResponseLink | None]:
        """Find the request's unit and release; a later turn of a stored response keeps those of the earlier one."""
        snapshot = self.snapshot
        if parsed.previous_response_id is None:
            header = headers.get(b"x-headway-unit", b"").decode("utf-8", "replace")
            unit = choose_unit(snapshot, application, key, parsed, header, own)
            route = choose_release(snapshot, application, key, unit.name, pinned)
            if route.is_shadowed and not can_mirror(parsed):
                route = outside(route)
            return route, unit, None
        earlier = self._read_previous(parsed.previous_response_id, key)
        route = continue_from(snapshot, application, earlier)
        if pinned is not None and choose_release(snapshot, application, key, "", pinned).release != route.release:
            message = "previous_response_id was answered by another release than the one pinned in `model`"
            raise InvalidRequestError(message, param="model", code="release_mismatch")
        previous = await self._conversations.find(earlier.uuid)
        if route.release.number != earlier.release:
            previous = carry_over(previous, snapshot.releases[earlier.release], route.release)
        if route.rollout and previous.unit == earlier.uuid.hex():
            # The earlier turn was a unit of its own, and has been counted: this one is none.
            route = route._replace(kind=Kind.PINNED)
        return route, Unit(previous.unit, previous.conversation), previous

    def _read_previous(self, text: str, key: KeyRoute) -> InteractionId:
        try:
            earlier = self.signer.read(text)
        except InvalidRequestError as error:
            message = "previous_response_id is not the id of a response that was given here"
            raise NotFoundError(message, param="previous_response_id", code="previous_response_not_found") from error
        if earlier.key != key.number:
            message = "previous_response_id belongs to another API key"
            raise NotFoundError(message, param="previous_response_id", code="previous_response_not_found")
        return earlier

    def _finish(self, exchange: Exchange, application: str) -> float | None:
        """Price and record the interaction; gives its cost in US dollars, if known."""
        interaction = exchange.interaction
        release = exchange.route.release
        self._answerer.complete(exchange)
        self._recorder.record(interaction)
        if exchange.trace is not None:
            exchange.trace.finish(interaction, application, release.name)
        if interaction.error is not None:
            _log.warning(
                "interaction_failed",
                interaction=exchange.answer_id.decode(),
                application=application,
                release=release.name,
                status=interaction.status,
                error=interaction.error,
                deployment=interaction.deployment,
                attempts=interaction.attempts,
            )
        if exchange.route.is_shadowed:
            self._mirrors.offer(exchange)
        return interaction.cost_usd
