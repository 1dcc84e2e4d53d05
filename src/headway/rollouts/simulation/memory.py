"""A rollout without a database: what storage keeps and the controller does with it, in memory, by the same rules."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from headway.domain.assessment import Assessment
from headway.domain.books import Books, Intake, Rating, ResponseKey, Stratum
from headway.domain.evidence import Counts, ExposureKey, UnitKey, UnitState, fold, merge
from headway.domain.interaction import Interaction
from headway.domain.recording import Terms
from headway.domain.rollout import Decision, Status, begin, decide, phase_of
from headway.rollouts.simulation.stream import ROLLOUT, Spoken

METRIC = "thumbs_up"
"""What simulated people say."""


class MemoryRollout:
    """One running rollout.

    Args:
        terms: Its terms.
        now_ms: When it starts, in Unix milliseconds.
    """

    def __init__(self, terms: Terms, now_ms: int) -> None:
        self._terms = terms
        self._recordings = {ROLLOUT: terms.recording}
        self.status: Status = begin(terms, now_ms)
        self.strata: list[Stratum] = []
        self._books = Books.fresh(terms)
        self._units: dict[UnitKey, UnitState] = {}
        self._evidence: dict[ExposureKey, Counts] = {}
        self._spoken: list[Spoken] = []
        self._ratings: list[tuple[int, bytes, Spoken]] = []
        self._rated: set[bytes] = set()
        self._values: dict[bytes, list[tuple[int, float]]] = {}
        self._responses: dict[ResponseKey, set[bytes]] = {}
        self._open_stratum()

    def record(self, interactions: Iterable[Interaction]) -> None:
        """Book a batch: as ``storage.batches`` does in its transaction."""
        counts, states = fold(interactions, self._units, self._recordings)
        self._units.update(states)
        for key, more in counts.items():
            known = self._evidence.get(key)
            self._evidence[key] = more if known is None else merge(known, more)

    def rate(self, spoken: Iterable[Spoken]) -> None:
        """Take what people are going to say, in whatever order; it counts from when they say it."""
        for each in spoken:
            heapq.heappush(self._spoken, each)

    def tick(self, now_ms: int) -> Decision:
        """Book what has come in since the last tick, and decide: as the controller does in its transaction."""
        self._listen(now_ms)
        evidence, self._evidence = self._evidence, {}
        intake = Intake(evidence, self._claim(now_ms), self._count_responses(now_ms))
        self._books.collect(intake, self.strata, now_ms)
        decision = decide(self._terms, self.status, self._books.assess(self.status, self.strata, display=False), now_ms)
        moved, self.status = decision.status.stage != self.status.stage, decision.status
        if moved:
            self._open_stratum()
        return decision

    def assess(self, status: Status | None = None) -> Assessment:
        """Say what the evidence means for a rollout that stands there, or where it stands, with what people look at."""
        return self._books.assess(status or self.status, self.strata)

    def _open_stratum(self) -> None:
        phase, status = phase_of(self.status), self.status
        if phase is not None:
            self.strata.append(Stratum(status.stage, phase, status.share, status.ratio_epoch))

    def _listen(self, now_ms: int) -> None:
        """Keep what has been said by now: as ``storage.ratings.note_feedback``."""
        period, settle_ms = self._terms.recording.period_seconds, int(self._terms.policy.settle_seconds * 1000)
        while self._spoken and self._spoken[0].unix_ms <= now_ms:
            each = heapq.heappop(self._spoken)
            self._values.setdefault(each.target, []).append((each.unix_ms, each.value))
            began = each.exposed_unix_ms // 1000 // period * period
            self._responses.setdefault(ResponseKey(each.stage, began, each.arm), set()).add(each.unit)
            if each.unit not in self._rated:
                self._rated.add(each.unit)
                heapq.heappush(self._ratings, (each.unix_ms + settle_ms, each.unit, each))

    def _claim(self, now_ms: int) -> list[Rating]:
        """Claim ratings that have settled, with the value as it stood then: as ``storage.ratings.claim``."""
        period, claimed = self._terms.recording.period_seconds, []
        while self._ratings and self._ratings[0][0] <= now_ms:
            settled_ms, unit, each = heapq.heappop(self._ratings)
            value = max((at, value) for at, value in self._values[each.target] if at <= settled_ms)[1]
            began = each.exposed_unix_ms // 1000 // period * period
            claimed.append(Rating(METRIC, value, unit, each.stage, began, each.arm))
        claimed.sort(key=lambda rating: rating.unit)
        return claimed

    def _count_responses(self, now_ms: int) -> dict[ResponseKey, tuple[int, int]]:
        """Count units that have responded: as ``storage.ratings.count_responses``."""
        return {
            key: (sum(self._is_first_exposure(key, unit) for unit in self._responses.get(key, ())), 0)
            for key in self._books.due(now_ms)
        }

    def _is_first_exposure(self, key: ResponseKey, unit: bytes) -> bool:
        state = self._units.get((ROLLOUT, unit))
        if state is None:
            return True
        period = self._terms.recording.period_seconds
        return (state.stage, state.first_unix_ms // 1000 // period * period, state.arm) == key
