"""Simulated traffic as the gateway records it: interactions, and the ratings that follow them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.domain.interaction import Interaction
from headway.domain.rollout import Status, phase_of
from headway.ids import Kind
from headway.rollouts.simulation.population import CHUNK, START_MS, Chunk, Floats, Population
from headway.rollouts.simulation.scenarios import Scenario

ROLLOUT = 1
"""Number of the simulated rollout."""

_SLIP_MS = 30_000
_CHANGE_MS = 2 * 3_600_000
_EVENTS = ("failed", "refused", "filtered", "attempt_failed", "fell_back")


class Spoken(NamedTuple):
    """A value of ``thumbs_up`` that somebody gives an answer; the same author and answer may bring several."""

    unix_ms: int
    target: bytes
    value: float
    unit: bytes
    stage: int
    exposed_unix_ms: int
    arm: int
    kind: int


class Taken(NamedTuple):
    """What arrived until a tick.

    Attributes:
        interactions: To be read before the next ones are taken: the objects are used again.
        spoken: What people are going to say of them.
        candidates: How many the candidate has answered.
    """

    interactions: list[Interaction]
    spoken: list[Spoken]
    candidates: int


@dataclass(frozen=True)
class _Calls:
    """The calls of a chunk under one share: plain lists, for they are read one by one."""

    base: npt.NDArray[np.int64]
    ids: bytes
    arms: list[int]
    releases: list[int]
    units: list[bytes]
    total_ms: list[float]
    cost_usd: list[float | None]
    eventful: npt.NDArray[np.int64]
    events: tuple[npt.NDArray[np.bool_], ...]
    rated: npt.NDArray[np.int64]
    likes: npt.NDArray[np.bool_]
    delay_ms: Floats


class Stream:
    """Plays a scenario's traffic, tick by tick, to whatever share is set.

    Args:
        scenario: What to play.
        seed: One per run.
    """

    def __init__(self, scenario: Scenario, seed: npt.ArrayLike) -> None:
        self._scenario = scenario
        self._population = Population(scenario, seed)
        self._interval_ms = 3_600_000 / scenario.traffic.per_hour
        self._own = scenario.traffic.per_unit <= 1
        self._priced = any(rule.metric == "cost" for rule in scenario.policy.rules)
        self._chunk = self._population.draw()
        self._at = 0
        self._share = -1.0
        self._calls: _Calls | None = None
        self._booked = (0, Kind.RANDOMISED)
        self._pool: list[Interaction] = []
        self._marked: list[Interaction] = []

    @property
    def salt(self) -> bytes:
        """The rollout's salt."""
        return self._population.salt

    @property
    def now_ms(self) -> int:
        """The time after what has been taken so far."""
        return START_MS + int((self._chunk.first + self._at) * self._interval_ms)

    def take(self, status: Status) -> Taken:
        """Serve what arrives until the next tick, as the rollout stands."""
        if self._at == len(self._chunk):
            self._chunk, self._at, self._calls = self._population.draw(), 0, None
        if self._calls is None or status.share != self._share:
            self._share, self._calls = status.share, self._route(self._chunk, status.share)
        calls = self._calls
        self._at += self._scenario.traffic.per_tick
        first, last = np.searchsorted(calls.base, (self._at - self._scenario.traffic.per_tick, self._at)).tolist()
        return Taken(
            self._interactions(calls, first, last, status),
            self._ratings(calls, first, last, status),
            sum(calls.releases[first:last]) - (last - first),
        )

    def _route(self, chunk: Chunk, share: float) -> _Calls:
        """See which release answers each call, and with what."""
        arm = chunk.positions < share
        answers = arm ^ (self._scenario.wiring == "releases")
        base, again = np.arange(CHUNK), np.zeros(CHUNK, dtype=bool)
        repeated = chunk.repeated
        if repeated is not None:
            repeats = np.where(answers, chunk.outcomes[1].repeats, chunk.outcomes[0].repeats)
            base = np.repeat(base, 1 + repeats)
            again = np.append(False, base[1:] == base[:-1])
        answers = answers[base]

        def choose(name: str) -> npt.NDArray[np.float64]:
            stable, candidate = (getattr(each, name)[base] for each in chunk.outcomes)
            chosen: npt.NDArray[np.float64] = np.where(answers, candidate, stable)
            if repeated is not None:
                stable, candidate = (getattr(each, name)[base] for each in repeated)
                chosen = np.where(again, np.where(answers, candidate, stable), chosen)
            return chosen

        events = tuple(choose(name).astype(bool) for name in _EVENTS)
        booked = (arm[base] ^ (self._scenario.wiring == "arms")).astype(np.int64)
        delays = np.where(answers, chunk.delay_seconds[1][base], chunk.delay_seconds[0][base])
        return _Calls(
            base=base,
            ids=self._ids(chunk.first, base, again),
            arms=booked.tolist(),
            releases=(1 + answers).tolist(),
            units=[chunk.units[8 * each : 8 * each + 8] for each in base.tolist()],
            total_ms=choose("total_ms").tolist(),
            cost_usd=choose("cost_usd").tolist() if self._priced else [None] * base.size,
            eventful=np.flatnonzero(np.logical_or.reduce(events)),
            events=events,
            rated=np.flatnonzero(choose("rates").astype(bool) & ~events[0]),
            likes=choose("likes").astype(bool),
            delay_ms=1000 * delays,
        )

    def _ids(self, first: int, base: npt.NDArray[np.int64], again: npt.NDArray[np.bool_]) -> bytes:
        """Make ids of 16 bytes: the time, and which call it is."""
        parts = np.zeros((base.size, 2), dtype=">u8")
        parts[:, 0] = (START_MS + ((first + base) * self._interval_ms).astype(np.int64)) << 16
        parts[:, 1] = 2 * (first + base) + again
        return parts.tobytes()

    def _interactions(self, calls: _Calls, first: int, last: int, status: Status) -> list[Interaction]:
        pool = self._pool
        booked = (status.stage, Kind.HOLDBACK if phase_of(status) == "holdback" else Kind.RANDOMISED)
        if booked != self._booked:
            self._booked = booked
            pool.clear()
        while len(pool) < last - first:
            pool.append(self._blank())
        for marked in self._marked:
            marked.status, marked.error, marked.release_error = 200, None, False
            marked.refused = marked.filtered = marked.fallback = False
            marked.attempt_errors = 0
        batch = pool[: last - first]
        ids, place = calls.ids, 16 * first
        for each, arm, release, unit, total_ms, cost_usd in zip(
            batch,
            calls.arms[first:last],
            calls.releases[first:last],
            calls.units[first:last],
            calls.total_ms[first:last],
            calls.cost_usd[first:last],
            strict=True,
        ):
            each.id = ids[place : place + 16]
            place += 16
            each.arm, each.release, each.unit = arm, release, unit
            each.total_ms, each.cost_usd = total_ms, cost_usd
        self._mark(calls, batch, first, last)
        return batch

    def _mark(self, calls: _Calls, batch: list[Interaction], first: int, last: int) -> None:
        """Let the few interactions that something happens to say so."""
        start, end = np.searchsorted(calls.eventful, (first, last))
        self._marked = []
        for index in calls.eventful[start:end].tolist():
            failed, refused, filtered, attempt_failed, fell_back = (bool(flags[index]) for flags in calls.events)
            each = batch[index - first]
            if failed:
                each.status, each.error, each.release_error, each.cost_usd = 502, "provider_error", True, None
            each.refused, each.filtered, each.fallback = refused, filtered, fell_back
            each.attempt_errors = int(attempt_failed or fell_back or failed)
            self._marked.append(each)

    def _ratings(self, calls: _Calls, first: int, last: int, status: Status) -> list[Spoken]:
        spoken = []
        start, end = np.searchsorted(calls.rated, (first, last))
        for index in calls.rated[start:end].tolist():
            target = calls.ids[16 * index : 16 * index + 16]
            exposed_ms = int.from_bytes(target[:6], "big")
            at_ms, value = exposed_ms + int(calls.delay_ms[index]), float(calls.likes[index])
            said = [(at_ms, value)]
            base = int(calls.base[index])
            if self._chunk.slips[calls.releases[index] - 1][base]:
                said = [(at_ms, 1.0 - value), (at_ms + _SLIP_MS, value)]
            if self._chunk.changes[base]:
                said.append((at_ms + _CHANGE_MS, 1.0 - value))
            spoken += [
                Spoken(
                    at, target, what, calls.units[index], status.stage, exposed_ms, calls.arms[index], self._booked[1]
                )
                for at, what in said
            ]
        return spoken

    def _blank(self) -> Interaction:
        return Interaction(
            id=bytes(16),
            application=1,
            release=1,
            rollout=ROLLOUT,
            stage=self._booked[0],
            arm=0,
            kind=self._booked[1],
            unit=bytes(8),
            own_unit=self._own,
            key=1,
            conversation="",
            user=None,
            operation="chat",
            stream=False,
            status=200,
            deployment="simulated",
            attempts=1,
            provider_model="simulated",
        )
