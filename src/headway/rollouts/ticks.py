"""One tick of one rollout, in one transaction: claim, book, assess, decide, and let the decision take effect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final

import structlog
from msgspec.structs import replace

from headway.clock import Clock, utc
from headway.domain.assessment import Assessment
from headway.domain.books import Books, Intake, Stratum
from headway.domain.evidence import Counts, ExposureKey
from headway.domain.metric import COST
from headway.domain.recording import Terms, plan_recording
from headway.domain.rollout import Decision, Status, decide, is_over, phase_of
from headway.storage import baselines, decisions, evidence, ratings, routing
from headway.storage.database import Connection
from headway.storage.decisions import CONTROLLER, Circumstances
from headway.storage.evidence import Desk
from headway.storage.rollouts import Rollout, find_rollout, list_strata

_HEAVY_UNIT: Final = "heavy_unit"
_FINGERPRINT_CHANGED: Final = "fingerprint_changed"
ALERTS: Final = (_HEAVY_UNIT, _FINGERPRINT_CHANGED)
"""Reasons of entries in the log that ``decide`` does not make: they tell, and change nothing."""

CLAIMED_ROWS = 2_000
"""Evidence rows that a tick claims at most; after a long absence, the next ticks take the rest."""

_LOOK_SECONDS = 60.0
_LOOK_ROWS = 4_000
_LOOK_BACK = timedelta(minutes=10)
_HEAVY_SHARE = 0.05
_HEAVY_FROM = 400  # interactions; a twentieth of fewer is soon reached by a lively conversation
_FIGURES_PER_DWELL = 10
# A server that hangs, or a controller that is frozen in its transaction, must not keep people from the rollout.
_LIMITS = (
    "SELECT set_config('lock_timeout', '5s', true), set_config('statement_timeout', '30s', true),"
    " set_config('idle_in_transaction_session_timeout', '30s', true)"
)

_log = structlog.get_logger("headway.rollouts.ticks")


class Ticks:
    """Takes the ticks of rollouts, and remembers what is not looked at in each of them.

    Args:
        clock: Says when.
        tick_seconds: Length of a tick: figures are not kept more often.
    """

    def __init__(self, clock: Clock, tick_seconds: float) -> None:
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._looked: dict[int, float] = {}

    async def take(self, connection: Connection, number: int) -> Decision | None:
        """Take one tick of a rollout; it stands or falls with the caller's transaction.

        Whoever else books or changes this rollout waits, or has been waited for: a second controller finds what the
        first has left.

        Returns:
            The decision; None where there is nothing to decide any more.
        """
        await connection.execute(_LIMITS)
        rollout = await find_rollout(connection, number, lock=True)
        if rollout.terms is None or rollout.status is None or rollout.ended_at is not None:
            return None
        desk = await evidence.open_desk(connection, number, passed_over=ALERTS)
        if phase_of(rollout.status) is not None:
            return await _Tick(connection, rollout, desk, self._clock.unix_ms(), self._tick_seconds).take(
                look=self._is_time_to_look(number)
            )
        if rollout.status.state == "baseline" and self._is_time_to_look(number):
            return await _measure(connection, rollout, desk, self._clock.unix_ms())
        return None

    def forget(self, running: Iterable[int]) -> None:
        """Forget all rollouts but those."""
        kept = set(running)
        self._looked = {number: at for number, at in self._looked.items() if number in kept}

    def _is_time_to_look(self, number: int) -> bool:
        now = self._clock.monotonic_seconds()
        if now - self._looked.get(number, -_LOOK_SECONDS) < _LOOK_SECONDS:
            return False
        self._looked[number] = now
        return True


async def _measure(connection: Connection, rollout: Rollout, desk: Desk, now_ms: int) -> Decision:
    """Collect the stable release's baseline; complete, it is frozen, and the rollout goes on."""
    terms, status = _running(rollout)
    baseline = await baselines.measure(
        connection,
        desk.application_number,
        desk.stable_number,
        terms.policy,
        terms.feedback,
        terms.unit,
        now_ms,
    )
    terms = replace(terms, baseline=baseline, recording=plan_recording(terms.policy, baseline))
    await evidence.freeze(connection, rollout.number, terms)
    decision = decide(terms, status, Assessment(), now_ms)
    if decision.status != status or _is_news(desk, decision, timedelta(0), now_ms):
        changed = await decisions.change(connection, rollout, decision, Circumstances(CONTROLLER, now_ms, rollout.tick))
        _tell(rollout, decision)
        if changed.routed:
            await routing.publish(connection)
    return decision


class _Tick:
    """A tick that is being taken."""

    def __init__(self, connection: Connection, rollout: Rollout, desk: Desk, now_ms: int, tick_seconds: float) -> None:
        self._connection = connection
        self._rollout = rollout
        self._desk = desk
        self._now_ms = now_ms
        self._number = rollout.tick + 1
        self._terms, self._status = _running(rollout)
        pause_seconds = max(tick_seconds, self._terms.policy.dwell_seconds / _FIGURES_PER_DWELL)
        # A tick comes a moment early as often as late.
        self._figure_pause = timedelta(seconds=pause_seconds - tick_seconds / 2)
        self._routed = False
        self._fingerprints: list[str] = []

    async def take(self, *, look: bool) -> Decision:
        rollout, connection = self._rollout, self._connection
        strata = await list_strata(connection, rollout.number)
        counts = await evidence.claim(connection, rollout.number, self._number, limit=CLAIMED_ROWS)
        books = await self._book(counts, strata)
        # Figures that only people look at decide nothing, and take most of the time: not at every tick.
        assessment = books.assess(self._status, strata, display=False)
        decision = decide(self._terms, self._status, assessment, self._now_ms)
        is_news = decision.outcome != "hold" or decision.status != self._status or self._has_news(decision)
        if is_news or self._is_time_for_a_figure():
            assessment = books.assess(self._status, strata)
            decision = decide(self._terms, self._status, assessment, self._now_ms)
            await decisions.add_figure(
                connection, rollout.number, decision.status, assessment, tick=self._number, now_ms=self._now_ms
            )
        if is_news:
            await self._change(decision, assessment)
        if not is_over(decision.status):
            await self._raise_alerts(decision.status, look=look)
        await self._spend(counts)
        if self._routed:
            await routing.publish(connection)
        return decision

    async def _book(self, counts: Mapping[ExposureKey, Counts], strata: list[Stratum]) -> Books:
        connection, number, now_ms = self._connection, self._rollout.number, self._now_ms
        body = self._desk.books
        books = Books.fresh(self._terms) if body is None else Books.decode(self._terms, body)
        intake = Intake(
            evidence=counts,
            ratings=await ratings.claim(connection, number, self._number, utc(now_ms)),
            responses=await ratings.count_responses(connection, number, books.due(now_ms)),
        )
        self._fingerprints = books.new_fingerprints(counts)
        block = books.collect(intake, strata, now_ms)
        after = books.encode()
        changed = None if after == body else after
        await evidence.book(connection, number, self._number, books=changed, block=block, at_ms=now_ms)
        return books

    def _is_time_for_a_figure(self) -> bool:
        last = self._desk.figure_at
        return last is None or utc(self._now_ms) - last >= self._figure_pause

    def _has_news(self, decision: Decision) -> bool:
        return _is_news(self._desk, decision, self._figure_pause, self._now_ms)

    async def _change(self, decision: Decision, assessment: Assessment | None) -> None:
        changed = await decisions.change(
            self._connection,
            self._rollout,
            decision,
            Circumstances(CONTROLLER, self._now_ms, self._number, assessment),
        )
        _tell(self._rollout, decision)
        self._rollout = changed.rollout
        self._routed = self._routed or changed.routed

    async def _raise_alerts(self, status: Status, *, look: bool) -> None:
        """Tell what people should look at (statistics, booking rule 13)."""
        if self._fingerprints:
            message = f"a provider has changed what answers as the same model: {', '.join(self._fingerprints)}"
            await self._change(Decision("hold", _FINGERPRINT_CHANGED, message, status), None)
        if look and status.state != "paused":
            await self._look_for_heavy_unit(status)

    async def _look_for_heavy_unit(self, status: Status) -> None:
        """Tell when one unit makes up much of the traffic; once per stage."""
        connection, number, now = self._connection, self._rollout.number, utc(self._now_ms)
        if await decisions.has_told(connection, number, _HEAVY_UNIT, status.stage):
            return
        heaviest, total = await evidence.find_heaviest(
            connection, number, self._desk, since=now - _LOOK_BACK, now=now, limit=_LOOK_ROWS
        )
        if total >= _HEAVY_FROM and heaviest > _HEAVY_SHARE * total:
            message = (
                f"one unit has {heaviest:,} of the latest {total:,} interactions: where one user or conversation is so"
                " large, shares say little about the others"
            )
            await self._change(Decision("hold", _HEAVY_UNIT, message, status), None)

    async def _spend(self, counts: Mapping[ExposureKey, Counts]) -> None:
        usd = sum(each.mirrored_cost for each in counts.values()) / COST.per_unit
        if not usd:
            return
        before = self._rollout.shadow_usd
        after = await evidence.spend(self._connection, self._rollout.number, usd)
        rule = self._terms.policy.shadow
        if rule is not None and routing.is_used_up(rule, after) and not routing.is_used_up(rule, before):
            _log.info("shadow_budget_used_up", rollout=self._rollout.number, usd=after)
            self._routed = True


def _is_news(desk: Desk, decision: Decision, pause: timedelta, now_ms: int) -> bool:
    """Say whether a hold belongs in the log: it says something else than the last one.

    That another metric is now the one that is waited for is said no more often than figures are kept.
    """
    if (decision.outcome, decision.reason) != (desk.last_outcome, desk.last_reason):
        return True
    if decision.metric == desk.last_metric or desk.last_at is None:
        return False
    return utc(now_ms) - desk.last_at >= pause


def _running(rollout: Rollout) -> tuple[Terms, Status]:
    assert rollout.terms is not None, "not manual"
    assert rollout.status is not None, "not manual"
    return rollout.terms, rollout.status


def _tell(rollout: Rollout, decision: Decision) -> None:
    level = _log.info if decision.outcome in {"advance", "promote", "hold"} else _log.warning
    level(
        "rollout_decided",
        rollout=rollout.number,
        application=rollout.application,
        outcome=decision.outcome,
        reason=decision.reason,
        detail=decision.message,
    )
