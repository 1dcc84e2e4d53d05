"""Replay: every decision of a rollout taken again from what is stored, and compared."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from headway.domain.assessment import Assessment
from headway.domain.books import Books, Stratum
from headway.domain.recording import Terms
from headway.domain.rollout import Command, Decision, decide, obey
from headway.errors import ConflictError
from headway.rollouts.ticks import ALERTS
from headway.storage.database import Connection
from headway.storage.evidence import list_blocks
from headway.storage.rollouts import RolloutDecision, find_rollout, list_decisions, list_strata

_PAGE = 500


@dataclass(frozen=True)
class Mismatch:
    """A decision that is not what follows from the stored blocks.

    Attributes:
        number: Of the decision.
        what: What differs: ``assessment``, or a part of the decision.
        stored, replayed: Both values, as JSON.
    """

    number: int
    what: str
    stored: str
    replayed: str


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Attributes:
        checked: Decisions that were taken again.
        passed_over: Decisions that rest on no blocks: while the baseline was collected, and alerts.
        mismatches: Where the two differ; empty when all agree to the last bit.
    """

    checked: int
    passed_over: int
    mismatches: tuple[Mismatch, ...]


async def replay(connection: Connection, number: int) -> Replay:
    """Take every decision of a rollout again, from its blocks, stages and terms, and compare exactly.

    Args:
        connection: Reads only.
        number: Number of the rollout.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: It is manual, and nothing was decided by evidence.
    """
    rollout = await find_rollout(connection, number)
    if rollout.terms is None:
        raise ConflictError(f"rollout {number} is manual: people decided, and there is nothing to replay")
    past = _Past(rollout.terms, await list_strata(connection, number), await list_blocks(connection, number))
    checked, passed_over = 0, 0
    mismatches: list[Mismatch] = []
    for decision in await _decisions(connection, number):
        if decision.reason in ALERTS or (decision.before.state == "baseline" and decision.outcome == "hold"):
            passed_over += 1
            continue
        checked += 1
        # In a thread: a long rollout's past takes seconds, and the controller may share this loop.
        mismatches += await asyncio.to_thread(past.compare, decision)
    return Replay(checked, passed_over, tuple(mismatches))


async def _decisions(connection: Connection, number: int) -> list[RolloutDecision]:
    """List all decisions, the first one first."""
    found: list[RolloutDecision] = []
    while True:
        page = await list_decisions(connection, number, limit=_PAGE, before=found[-1].number if found else None)
        found += page
        if len(page) < _PAGE:
            return found[::-1]


class _Past:
    """What the decisions of a rollout rested on; they are asked for in their order."""

    def __init__(self, terms: Terms, strata: Sequence[Stratum], blocks: Iterable[tuple[int, bytes]]) -> None:
        self._terms = terms
        self._strata = strata
        self._blocks = deque(blocks)
        self._books = Books.fresh(terms)

    def compare(self, decision: RolloutDecision) -> list[Mismatch]:
        """Take a decision again, and say where it differs."""
        found: list[Mismatch] = []
        assessment = decision.assessment
        if assessment is not None and decision.before.state != "baseline":
            assessed = self._assess(decision)
            if assessed != assessment:
                found.append(_mismatch(decision, "assessment", assessment, assessed))
            assessment = assessed
        again = self._decide(decision, assessment or Assessment())
        for what, stored, replayed in (
            ("outcome", decision.outcome, again.outcome),
            ("reason", decision.reason, again.reason),
            ("message", decision.message, again.message),
            ("metric", decision.metric, again.metric),
            ("status", decision.after, again.status),
        ):
            if stored != replayed:
                found.append(_mismatch(decision, what, stored, replayed))
        return found

    def _assess(self, decision: RolloutDecision) -> Assessment:
        """Assess the blocks up to a decision's tick."""
        strata = [stratum for stratum in self._strata if stratum.stage <= decision.before.stage]
        while self._blocks and self._blocks[0][0] <= decision.tick:
            self._books.post(self._blocks.popleft()[1], strata)
        return self._books.assess(decision.before, strata)

    def _decide(self, decision: RolloutDecision, assessment: Assessment) -> Decision:
        at_ms = round(decision.at.timestamp() * 1000)
        if decision.command is None:
            return decide(self._terms, decision.before, assessment, at_ms)
        command = msgspec.convert(decision.command, Command)
        return obey(self._terms, decision.before, command, decision.words, at_ms)


def _mismatch(decision: RolloutDecision, what: str, stored: object, replayed: object) -> Mismatch:
    return Mismatch(decision.number, what, _json(stored), _json(replayed))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
