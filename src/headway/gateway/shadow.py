"""The shadow stage: requests that have been answered are put to the candidate as well, for nobody to wait for.

A mirror begins when the caller has its answer, runs apart, and yields to callers: it takes none of their places at a
deployment, trips none of their circuit breakers, and is dropped (and counted) where there is no room for it.

Which requests are mirrored is drawn request by request, not unit by unit: in this stage each counts for itself, and a
few busy units must not stand for all. The draw is the random part of the interaction's id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec
import structlog

from headway.clock import Clock
from headway.domain.interaction import Interaction
from headway.domain.release import Deployment
from headway.domain.snapshot import ReleaseRoute, RolloutRoute, Snapshot
from headway.gateway.deployments import Deployments
from headway.gateway.exchange import Answerer, Exchange, Reply
from headway.gateway.parsing import ParsedRequest
from headway.gateway.recorder import Recorder
from headway.gateway.routing import Route
from headway.ids import Arm, InteractionId, Kind, Signer, uuid7

_log = structlog.get_logger("headway.gateway.shadow")

# Of each rollout, in one worker:
_RUNNING = 16
_WAITING = 256
_HELD_BYTES = 16 * 1024 * 1024
_NOBODYS_KEY = 0
_NULL = msgspec.Raw(b"null")
_FALSE = msgspec.Raw(b"false")


def can_mirror(parsed: ParsedRequest) -> bool:
    """Say whether a request can be asked twice: not where it goes on with, or adds to, what the provider keeps."""
    continues = parsed.operation == "responses" and parsed.fields.get("conversation", _NULL) != _NULL
    return parsed.previous_response_id is None and not continues


class _Lane:
    """The mirrors of one rollout: a candidate that hangs holds up no other."""

    def __init__(self) -> None:
        self.waiting: deque[Exchange] = deque()
        self.running: set[asyncio.Task[None]] = set()
        self.held_bytes = 0  # of what waits and what is under way

    def has_room(self, size: int) -> bool:
        return len(self.waiting) < _WAITING and self.held_bytes + size <= _HELD_BYTES


class Mirrors:
    """Puts requests to candidates in their shadow stage; one per worker.

    Args:
        answerer: Gets the answers; it must keep no links, and have deployments of its own.
        deployments: Its deployments.
        callers: Those of the requests that somebody waits for.
        recorder: Takes what happened.
        clock: Tells the time.
        reply: Makes a reply that goes nowhere.
    """

    def __init__(
        self,
        answerer: Answerer,
        deployments: Deployments,
        callers: Deployments,
        recorder: Recorder,
        clock: Clock,
        reply: Callable[[], Reply],
    ) -> None:
        self._answerer = answerer
        self._deployments = deployments
        self._callers = callers
        self._recorder = recorder
        self._clock = clock
        self._reply = reply
        self._snapshot: Snapshot | None = None
        self._signer: Signer | None = None
        self._lanes: dict[int, _Lane] = {}
        self._closing = False

    def switch(self, snapshot: Snapshot) -> None:
        """Mirror by a new snapshot: what waits for a rollout that has left its shadow stage is not begun."""
        self._answerer.switch(snapshot)
        self._lanes = {rollout: lane for rollout, lane in self._lanes.items() if lane.running}
        self._snapshot = snapshot
        self._signer = snapshot.signing.signer()

    def offer(self, exchange: Exchange) -> None:
        """Take an exchange that has ended, if its turn has come; returns at once and never fails."""
        rollout = exchange.route.application.rollout
        if self._closing or rollout is None or not _is_drawn(exchange.interaction, rollout):
            return
        lane = self._lanes.get(rollout.number)
        if lane is None:
            lane = self._lanes[rollout.number] = _Lane()
        size = len(exchange.parsed.body)
        if not lane.has_room(size):
            self._drop(exchange)
            return
        lane.waiting.append(exchange)
        lane.held_bytes += size
        self._begin_next(lane)

    async def close(self) -> None:
        """Give up what waits and what is under way."""
        self._closing = True
        running = [task for lane in self._lanes.values() for task in lane.running]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for lane in self._lanes.values():
            for exchange in lane.waiting:
                self._drop(exchange)

    def _begin_next(self, lane: _Lane) -> None:
        while lane.waiting and len(lane.running) < _RUNNING and not self._closing:
            task = asyncio.get_running_loop().create_task(self._mirror(lane, lane.waiting.popleft()), name="mirror")
            lane.running.add(task)
            task.add_done_callback(partial(self._end, lane))

    def _end(self, lane: _Lane, task: asyncio.Task[None]) -> None:
        lane.running.discard(task)
        self._begin_next(lane)

    async def _mirror(self, lane: _Lane, original: Exchange) -> None:
        try:
            await self._ask(original)
        except asyncio.CancelledError:
            self._drop(original)
            raise
        except Exception:  # noqa: BLE001 - a bug here must not end the mirroring
            _log.exception("mirror_lost")
            self._drop(original)
        finally:
            lane.held_bytes -= len(original.parsed.body)

    async def _ask(self, original: Exchange) -> None:
        found = self._candidate(original)
        if found is None:
            return
        rollout, candidate = found
        if not self._has_room(candidate.deployments[0]):
            self._drop(original)
            return
        exchange = self._assign(original, rollout, candidate)
        await self._answerer.answer(exchange, self._reply())
        self._answerer.complete(exchange)
        interaction = exchange.interaction
        interaction.request = None  # it is with the original
        self._recorder.record(interaction)
        if interaction.error is not None:
            _log.info("mirror_failed", release=candidate.name, status=interaction.status, error=interaction.error)

    def _candidate(self, original: Exchange) -> tuple[RolloutRoute, ReleaseRoute] | None:
        """Find the rollout and its candidate, if it still mirrors."""
        assert self._snapshot is not None, "switch() first"
        application = self._snapshot.applications.get(original.route.application.name)
        rollout = application.rollout if application is not None else None
        if rollout is None or rollout.number != original.route.rollout:
            return None
        if rollout.shadow is None or rollout.shadow.paused:
            return None
        return rollout, self._snapshot.releases[rollout.candidate]

    def _has_room(self, deployment: Deployment) -> bool:
        mirrors = self._deployments.state(deployment).gate.in_flight
        return self._callers.state(deployment).gate.is_half_empty(mirrors)

    def _assign(self, original: Exchange, rollout: RolloutRoute, candidate: ReleaseRoute) -> Exchange:
        assert self._signer is not None, "switch() first"
        mirrored, parsed = original.interaction, original.parsed
        identity = InteractionId(
            kind=Kind.SHADOW,
            uuid=uuid7(self._clock.unix_ms()),
            application=mirrored.application,
            release=candidate.number,
            rollout=rollout.number,
            stage=0,
            arm=Arm.CANDIDATE,
            choice=0,
            unit=mirrored.unit,
            key=_NOBODYS_KEY,
        )
        interaction = Interaction(
            id=identity.uuid,
            application=mirrored.application,
            release=candidate.number,
            rollout=rollout.number,
            stage=0,
            arm=int(Arm.CANDIDATE),
            kind=int(Kind.SHADOW),
            unit=mirrored.unit,
            own_unit=mirrored.own_unit,
            key=_NOBODYS_KEY,
            conversation=mirrored.conversation,
            user=mirrored.user,
            operation=mirrored.operation,
            stream=mirrored.stream,
            request=mirrored.request,
            mirror_of=mirrored.id,
        )
        fields = parsed.fields
        if parsed.operation == "responses" or "store" in fields:
            fields = {**fields, "store": _FALSE}  # nobody will go on from this answer
        return Exchange(
            parsed=msgspec.structs.replace(parsed, fields=fields),
            route=Route(original.route.application, candidate, rollout.number, 0, Arm.CANDIDATE, Kind.SHADOW),
            unit=original.unit,
            interaction=interaction,
            answer_id=self._signer.issue(identity).encode(),
            previous=None,
            started=self._clock.monotonic_seconds(),
            headers=(),
            trace=None,
            groups=original.groups,
        )

    def _drop(self, original: Exchange) -> None:
        route = original.route
        rollout = route.application.rollout
        if rollout is not None:
            self._recorder.note_mirror_dropped(route.application.number, rollout.candidate)


def _is_drawn(interaction: Interaction, rollout: RolloutRoute) -> bool:
    """Say whether an interaction is mirrored: by the 56 random bits at the end of its id."""
    shadow = rollout.shadow
    if shadow is None or shadow.paused:
        return False
    return int.from_bytes(interaction.id[9:], "big") * 2.0**-56 < shadow.sample
