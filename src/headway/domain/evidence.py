"""Evidence: what interactions of a rollout add up to, each counted once (statistics, section 4b).

A batch of interactions is folded into ``Counts`` per exposure key. Counts are whole numbers throughout, so that they
add up to the same in whatever order batches come; only who had a first event depends on commit order, as it must.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, mul
from typing import NamedTuple

import msgspec

from headway.domain.interaction import Interaction
from headway.domain.metric import COST, EVENT_METRICS, FIRST_TOKEN, LATENCY, RETRIEVAL, VALUE_METRICS, ValueMetric
from headway.domain.recording import Recording
from headway.ids import Kind
from headway.stats.histogram import log_histogram_bin, log_histogram_bins

BUCKETS = 256
"""Hash buckets of units, for variances that respect repeated use (statistics, F6)."""
NO_BIN = -32_768
"""Bin of what was not observed."""
FAILED_BIN = 32_767
"""Bin of a failed interaction: a failed request is slow."""

_NO_BINS = (NO_BIN, NO_BIN, NO_BIN, NO_BIN, NO_BIN, NO_BIN)
_LARGEST = 1e15  # a value above is a provider's nonsense, and left out
_ASSIGNED = frozenset((Kind.RANDOMISED, Kind.MANUAL, Kind.HOLDBACK))  # booking rule 1
_TIMES = (LATENCY, FIRST_TOKEN, RETRIEVAL)  # the order of UnitState.bins
_TIME_PLACES = tuple(VALUE_METRICS.index(metric) for metric in _TIMES)
_EVENT_BITS = (1 << len(EVENT_METRICS)) - 1
_ERROR_BIT = 1 << [metric.name for metric in EVENT_METRICS].index("error_rate")
_UNSAFE_BITS = sum(
    1 << place for place, metric in enumerate(EVENT_METRICS) if metric.name in ("refusal_rate", "content_filter_rate")
)
_OBSERVED = tuple((1 << place, metric.observed) for place, metric in enumerate(EVENT_METRICS) if metric.observed)
_ONLY_OBSERVED_BITS = sum(bit for bit, _ in _OBSERVED)
_RETRIEVAL_MS = attrgetter("retrieval_ms")
_PROVIDER = attrgetter("deployment", "provider_model", "provider_fingerprint")
_PROVIDER_CHARACTERS = 200


class ExposureKey(NamedTuple):
    """What counts belong to.

    Attributes:
        rollout: Number of the rollout.
        stage: Stage at assignment; 0 is the shadow stage.
        period: Unix second at which its exposure period begins.
        arm: Arm at assignment.
    """

    rollout: int
    stage: int
    period: int
    arm: int


UnitKey = tuple[int, bytes]
"""Rollout and hashed unit."""


class UnitState(msgspec.Struct):
    """What is remembered of a unit while its rollout runs.

    Attributes:
        arm, stage, first_unix_ms: Of its first exposure.
        events: Which events it has had under either arm: bit i is ``EVENT_METRICS[i]``.
        bins: Highest log-histogram bins: of latency under stable and under the candidate, of the first token under the
            two, and of retrieval. Only bins above one of the arm's thresholds are kept, so that rows seldom change.
    """

    arm: int
    stage: int
    first_unix_ms: int
    events: int = 0
    bins: tuple[int, int, int, int, int, int] = _NO_BINS

    def add(self, later: UnitState) -> UnitState:
        """Give the state after a later batch."""
        if not later.events and later.bins == _NO_BINS:
            return self
        a, b, c, d, e, f = map(max, self.bins, later.bins)
        return UnitState(self.arm, self.stage, self.first_unix_ms, self.events | later.events, (a, b, c, d, e, f))


class EventCounts(msgspec.Struct, array_like=True):
    """Counts of one event metric.

    Attributes:
        count: Interactions with the event.
        at_risk: Interactions that tell of it (``EventMetric.observed``), of units that had not had it yet; the one with
            the first event is one of them.
        first: Units that had their first event.
        buckets: ``count`` by bucket of units; buckets without are left out.
    """

    count: int = 0
    at_risk: int = 0
    first: int = 0
    buckets: dict[int, int] = {}


class ValueCounts(msgspec.Struct, array_like=True):
    """Sums of one value metric, in its own small unit (``ValueMetric.per_unit``), cut off at ``Recording.limits``.

    Attributes:
        count: Interactions that have the value.
        total: Sum of the values.
        squares: Sum of their squares.
        buckets: (count, total) by bucket of units; empty buckets are left out.
        histogram: Interactions by log-histogram bin of the value in whole units; empty bins are left out.
    """

    count: int = 0
    total: int = 0
    squares: int = 0
    buckets: dict[int, tuple[int, int]] = {}
    histogram: dict[int, int] = {}


class Counts(msgspec.Struct):
    """All metrics of one exposure key.

    Attributes:
        interactions: How many.
        units: Units whose first exposure in the rollout is among them (sample ratio); none in the shadow stage.
        unsafe: Interactions that were refused or filtered.
        mirrored_cost: What mirrored answers cost, in the small unit of ``cost``, not cut off.
        buckets: ``interactions`` by bucket of units; empty buckets are left out.
        events: By name of the event metric, or of the slow test (``Recording.slow``).
        values: By name of the value metric.
        providers: What answered, sorted: deployment, model and fingerprint as the provider names them.
    """

    interactions: int = 0
    units: int = 0
    unsafe: int = 0
    mirrored_cost: int = 0
    buckets: dict[int, int] = {}
    events: dict[str, EventCounts] = {}
    values: dict[str, ValueCounts] = {}
    providers: tuple[str, ...] = ()


def bucket(unit: bytes) -> int:
    """Put a hashed unit in its bucket, 0 to 255."""
    return unit[-1]


@dataclass(frozen=True, slots=True)
class _Ladder:
    """The thresholds of one time under one arm, rising, and which slow tests lie below each."""

    edges: list[int]
    bits: list[int]

    def slow(self, reached: int) -> int:
        """Give the slow tests that count an interaction in this bin as slow, as bits."""
        return self.bits[bisect_left(self.edges, reached)]


class _Plan:
    """What a recording means for counting; slow tests take the bits above those of the event metrics."""

    def __init__(self, recording: Recording) -> None:
        self.period_seconds = recording.period_seconds
        self.limits = recording.limits
        self.names = [metric.name for metric in EVENT_METRICS] + [test.name for test in recording.slow]
        numbered = [*enumerate(recording.slow, len(EVENT_METRICS))]
        self.ladders: list[tuple[_Ladder, _Ladder] | None] = []
        self.unobserved: list[int] = []
        for metric in _TIMES:
            own = [(1 << bit, test) for bit, test in numbered if test.value == metric.name]
            stable = _ladder([(test.stable_bin, bit) for bit, test in own])
            candidate = _ladder([(test.candidate_bin, bit) for bit, test in own])
            self.ladders.append((stable, candidate) if own else None)
            self.unobserved.append(sum(bit for bit, _ in own))

    def slow_before(self, bins: tuple[int, ...]) -> int:
        """Give the slow tests that a unit has failed under either arm, as bits."""
        found = 0
        if bins == _NO_BINS:
            return found
        for place, pair in enumerate(self.ladders):
            if pair is not None:
                found |= pair[0].slow(bins[2 * place]) | pair[1].slow(bins[2 * place + 1])
        return found


def _ladder(steps: Sequence[tuple[int, int]]) -> _Ladder:
    edges, bits = [], [0]
    for edge, bit in sorted(steps):
        edges.append(edge)
        bits.append(bits[-1] | bit)
    return _Ladder(edges, bits)


class Exposures:
    """The interactions of a batch that are evidence, in their order, each metric read once.

    Mirrored interactions, and those of callers in the shadow stage, count as units of their own.
    """

    def __init__(self, interactions: Iterable[Interaction], recordings: Mapping[int, Recording]) -> None:
        """Read a batch.

        Args:
            interactions: The batch.
            recordings: Of the rollouts in it; a rollout without one has no slow tests, no limits and hours as periods.
        """
        counted = [
            each
            for each in interactions
            if each.rollout > 0 and (each.kind in _ASSIGNED or (each.kind == Kind.SHADOW and each.stage == 0))
        ]
        self._interactions = counted
        self._plans = {
            rollout: _Plan(recordings.get(rollout) or Recording()) for rollout in {each.rollout for each in counted}
        }
        self._happened = _events(counted)
        self._values = [_read_values(metric, counted) for metric in VALUE_METRICS]
        self._reached = [self._reach(place) for place in range(len(_TIMES))]
        self._blocked = _unobserved(counted)
        for place, reached in enumerate(self._reached):
            if reached:
                self._note_slow(place, reached)
        self._cut_values()

    def states(self) -> dict[UnitKey, UnitState]:
        """Say what the batch adds to the states of its units (``UnitState.add``).

        Of a unit that the rollout meets for the first time, that is the state itself. An interaction that is its own
        unit comes once and needs no state.
        """
        states: dict[UnitKey, UnitState] = {}
        for index, (each, happened) in enumerate(zip(self._interactions, self._happened, strict=True)):
            if each.own_unit or each.stage == 0:
                continue
            unit = (each.rollout, each.unit)
            state = states.get(unit)
            if state is None:
                state = states[unit] = UnitState(each.arm, each.stage, each.unix_ms)
            if happened:
                state.events |= happened & _EVENT_BITS
                if happened > _EVENT_BITS:
                    state.bins = self._raise(state.bins, index)
        return states

    def counts(self, known: Mapping[UnitKey, UnitState]) -> dict[ExposureKey, Counts]:
        """Count the batch by exposure key.

        Args:
            known: States so far of those units that the rollout has met before; all others are new to it.
        """
        groups: dict[tuple[int, int, int, int], list[int]] = {}
        plans = self._plans
        for index, each in enumerate(self._interactions):
            length_ms = plans[each.rollout].period_seconds * 1000
            began_ms = int.from_bytes(each.id[:6], "big")
            key = (each.rollout, each.stage, (began_ms - began_ms % length_ms) // 1000, each.arm)
            group = groups.get(key)
            if group is None:
                groups[key] = [index]
            else:
                group.append(index)
        had, is_new = self._histories(known)
        return {ExposureKey(*key): self._count(plans[key[0]], group, had, is_new) for key, group in groups.items()}

    def _count(self, plan: _Plan, group: Sequence[int], had: Sequence[int], is_new: Sequence[bool]) -> Counts:
        interactions = [self._interactions[index] for index in group]
        cells = [each.unit[-1] for each in interactions]
        happened = [self._happened[index] for index in group]
        return Counts(
            interactions=len(group),
            units=sum([is_new[index] for index in group]),
            unsafe=sum([1 for bits in happened if bits & _UNSAFE_BITS]) if any(happened) else 0,
            mirrored_cost=_mirrored_cost(interactions) if interactions[0].stage == 0 else 0,
            buckets=_tally(cells),
            events=_count_events(plan.names, happened, [had[index] for index in group], cells),
            values={
                metric.name: _count_values(exact, bins, group, cells)
                for metric, (exact, bins) in zip(VALUE_METRICS, self._values, strict=True)
            },
            providers=_providers(interactions),
        )

    def _histories(self, known: Mapping[UnitKey, UnitState]) -> tuple[list[int], list[bool]]:
        """Give, for each interaction, the events that it is not at risk of, as bits, and whether its unit is new."""
        blocked: list[int] = []
        is_new: list[bool] = []
        met: dict[UnitKey, int] = {}
        for each, happened, unobserved in zip(self._interactions, self._happened, self._blocked, strict=True):
            if each.own_unit or each.stage == 0:
                blocked.append(unobserved)
                is_new.append(each.stage > 0)
                continue
            unit = (each.rollout, each.unit)
            before = met.get(unit)
            if before is not None:
                is_new.append(False)
            else:
                state = known.get(unit)
                is_new.append(state is None)
                before = 0 if state is None else state.events | self._plans[each.rollout].slow_before(state.bins)
            blocked.append(before | unobserved)
            met[unit] = before | happened
        return blocked, is_new

    def _reach(self, place: int) -> list[int]:
        """Give the bin that each interaction reached in a time; nothing where no rollout has a test of it."""
        if all(plan.ladders[place] is None for plan in self._plans.values()):
            return []
        # Of a copy: the histogram keeps to answers.
        reached = list(self._values[_TIME_PLACES[place]][1])
        for index, (edge, happened) in enumerate(zip(reached, self._happened, strict=True)):
            if edge == NO_BIN or happened & _ERROR_BIT:
                reached[index] = _waited(_TIMES[place], self._interactions[index], edge)
        return reached

    def _note_slow(self, place: int, reached: Sequence[int]) -> None:
        """Add slow tests to what happened, and those of what was not observed to what is not at risk."""
        for index, (each, edge) in enumerate(zip(self._interactions, reached, strict=True)):
            plan = self._plans[each.rollout]
            pair = plan.ladders[place]
            if pair is None:
                continue
            ladder = pair[each.arm]
            if edge == NO_BIN:
                self._blocked[index] |= plan.unobserved[place]
            elif edge > ladder.edges[0]:
                self._happened[index] |= ladder.slow(edge)

    def _raise(self, bins: tuple[int, ...], index: int) -> tuple[int, int, int, int, int, int]:
        """Give a unit's highest bins after an interaction that was slow."""
        each = self._interactions[index]
        higher = list(bins)
        for place, pair in enumerate(self._plans[each.rollout].ladders):
            if pair is not None and self._reached[place][index] > pair[each.arm].edges[0]:
                spot = 2 * place + each.arm
                higher[spot] = max(higher[spot], self._reached[place][index])
        a, b, c, d, e, f = higher
        return a, b, c, d, e, f

    def _cut_values(self) -> None:
        """Cut values off at the limits of their rollouts."""
        for rollout, plan in self._plans.items():
            for metric, (exact, _) in zip(VALUE_METRICS, self._values, strict=True):
                limit = plan.limits.get(metric.name)
                if limit is None or max(exact) <= limit:
                    continue
                for index, each in enumerate(self._interactions):
                    if each.rollout == rollout and exact[index] > limit:
                        exact[index] = limit


def fold(
    interactions: Iterable[Interaction],
    states: Mapping[UnitKey, UnitState],
    recordings: Mapping[int, Recording] | None = None,
) -> tuple[dict[ExposureKey, Counts], dict[UnitKey, UnitState]]:
    """Count a batch, in its order: what storage does with the rows of ``unit_state``, without the database.

    Args:
        interactions: The batch; what is no evidence is passed over.
        states: States of those of its units that the rollout has met before.
        recordings: Of its rollouts, see ``Exposures``.

    Returns:
        Counts by exposure key, and the states of the batch's units after it.
    """
    exposures = Exposures(interactions, recordings or {})
    added = exposures.states()
    counts = exposures.counts({unit: states[unit] for unit in added.keys() & states.keys()})
    return counts, {unit: states[unit].add(state) if unit in states else state for unit, state in added.items()}


def merge(*parts: Counts) -> Counts:
    """Add counts: commutative, associative, exact."""
    total = Counts()
    for part in parts:
        total.interactions += part.interactions
        total.units += part.units
        total.unsafe += part.unsafe
        total.mirrored_cost += part.mirrored_cost
        _add(total.buckets, part.buckets)
        for name, events in part.events.items():
            _add_events(total.events.setdefault(name, EventCounts()), events)
        for name, values in part.values.items():
            _add_values(total.values.setdefault(name, ValueCounts()), values)
        if part.providers != total.providers:
            total.providers = tuple(sorted({*total.providers, *part.providers}))
    return total


def _events(interactions: Sequence[Interaction]) -> list[int]:
    """Give each interaction's events as bits."""
    bits = [0] * len(interactions)
    for position, metric in enumerate(EVENT_METRICS):
        occurred = list(map(metric.occurred, interactions))
        if any(occurred):
            for index, happened in enumerate(occurred):
                if happened:
                    bits[index] |= 1 << position
    return bits


def _unobserved(interactions: Sequence[Interaction]) -> list[int]:
    """Give the events that each interaction tells nothing of, as bits."""
    if list(map(_RETRIEVAL_MS, interactions)).count(None) == len(interactions):
        # What is not always observed is all about retrieval.
        return [_ONLY_OBSERVED_BITS] * len(interactions)
    return [sum([bit for bit, observed in _OBSERVED if observed(each) is None]) for each in interactions]


def _read_values(metric: ValueMetric, interactions: Sequence[Interaction]) -> tuple[list[int], list[int]]:
    """Read a metric: values in its small unit, -1 where there is none, and their bins, if it has a histogram."""
    read = list(map(metric.value, interactions))
    if read.count(None) == len(read):
        return [-1] * len(read), [NO_BIN] * len(read) if metric.histogram else []
    values = [-1.0 if value is None or not 0.0 <= value <= _LARGEST else value for value in read]
    scale = metric.per_unit
    exact = [int(value * scale + 0.5) if value >= 0.0 else -1 for value in values]
    if not metric.histogram:
        return exact, []
    bins = log_histogram_bins(values)
    if -1 in exact:
        bins = [NO_BIN if value < 0 else edge for value, edge in zip(exact, bins, strict=True)]
    return exact, bins


def _waited(metric: ValueMetric, interaction: Interaction, edge: int) -> int:
    """Give the bin of an interaction without a complete answer: who failed is slow, who left had waited until then."""
    if metric is RETRIEVAL:
        return FAILED_BIN if interaction.retrieval_error is not None else edge
    if metric is FIRST_TOKEN and not interaction.stream:
        return NO_BIN
    if interaction.release_error:
        return FAILED_BIN
    if interaction.aborted and edge == NO_BIN and 0.0 <= interaction.total_ms <= _LARGEST:
        return log_histogram_bin(interaction.total_ms)
    return edge


def _count_events(
    names: Sequence[str], happened: Sequence[int], blocked: Sequence[int], cells: Sequence[int]
) -> dict[str, EventCounts]:
    interactions = len(happened)
    eventful = [index for index, bits in enumerate(happened) if bits] if any(happened) else []
    not_at_risk = _tally(blocked) if any(blocked) else {}
    counts = {name: EventCounts(0, interactions) for name in names}
    for position, counted in enumerate(counts.values()):
        bit = 1 << position
        found = [index for index in eventful if happened[index] & bit]
        if found:
            counted.count = len(found)
            counted.first = sum([1 for index in found if not blocked[index] & bit])
            counted.buckets = _tally([cells[index] for index in found])
        if not_at_risk:
            counted.at_risk -= sum([count for bits, count in not_at_risk.items() if bits & bit])
    return counts


def _providers(interactions: Iterable[Interaction]) -> tuple[str, ...]:
    """Say what answered, as the providers name it; a failed call names nothing."""
    seen = set(map(_PROVIDER, interactions))
    return tuple(
        sorted(
            " ".join([deployment, model, fingerprint or ""])[:_PROVIDER_CHARACTERS]
            for deployment, model, fingerprint in seen
            if model is not None
        )
    )


def _mirrored_cost(interactions: Iterable[Interaction]) -> int:
    costs = [COST.value(each) or 0.0 for each in interactions if each.kind == Kind.SHADOW]
    return sum([int(cost * COST.per_unit + 0.5) for cost in costs if 0.0 <= cost <= _LARGEST])


def _count_values(exact: list[int], bins: list[int], group: Sequence[int], cells: Sequence[int]) -> ValueCounts:
    values = [exact[index] for index in group]
    if max(values) < 0:
        return ValueCounts()
    buckets: dict[int, tuple[int, int]] = {}
    for value, cell in zip(values, cells, strict=True):
        if value >= 0:
            known = buckets.get(cell)
            buckets[cell] = (1, value) if known is None else (known[0] + 1, known[1] + value)
    histogram = _tally([bins[index] for index in group]) if bins else {}
    histogram.pop(NO_BIN, None)
    values = [value for value in values if value >= 0]
    return ValueCounts(len(values), sum(values), sum(map(mul, values, values)), buckets, histogram)


def _tally(cells: Iterable[int]) -> dict[int, int]:
    tally: dict[int, int] = {}
    for cell in cells:
        tally[cell] = tally.get(cell, 0) + 1
    return tally


def _add(total: dict[int, int], more: Mapping[int, int]) -> None:
    for key, count in more.items():
        total[key] = total.get(key, 0) + count


def _add_events(total: EventCounts, more: EventCounts) -> None:
    total.count += more.count
    total.at_risk += more.at_risk
    total.first += more.first
    _add(total.buckets, more.buckets)


def _add_values(total: ValueCounts, more: ValueCounts) -> None:
    total.count += more.count
    total.total += more.total
    total.squares += more.squares
    for cell, (count, sum_) in more.buckets.items():
        known = total.buckets.get(cell)
        total.buckets[cell] = (count, sum_) if known is None else (known[0] + count, known[1] + sum_)
    _add(total.histogram, more.histogram)
