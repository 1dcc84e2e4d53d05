"""Evidence: what interactions of a rollout add up to, each counted once (statistics, section 4b).

A batch of interactions is folded into ``Counts`` per exposure key. Counts are whole numbers throughout, so that they
add up to the same in whatever order batches come; only who had a first event depends on commit order, as it must.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import NamedTuple

import msgspec

from headway.domain.interaction import Interaction
from headway.domain.metric import EVENT_METRICS, LATENCY, VALUE_METRICS, ValueMetric
from headway.ids import Kind
from headway.stats.histogram import log_histogram_bins

BUCKETS = 256
"""Hash buckets of units, for variances that respect repeated use (statistics, F6)."""
NO_BIN = -32_768
"""Latency bin of an arm that a unit has not met."""
FAILED_BIN = 32_767
"""Latency bin of a failed interaction: a failed request is slow."""

_HOUR_MS = 3_600_000
_LARGEST = 1e15  # a value above is a provider's nonsense, and left out
_EVIDENCE_KINDS = frozenset((Kind.RANDOMISED, Kind.MANUAL))  # booking rule 1
_LATENCY = VALUE_METRICS.index(LATENCY)


class ExposureKey(NamedTuple):
    """What counts belong to: rollout, stage and arm at assignment, and the Unix second its exposure period begins at."""

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
        stable_bin, candidate_bin: Highest log-histogram bin of its latency under each arm.
    """

    arm: int
    stage: int
    first_unix_ms: int
    events: int = 0
    stable_bin: int = NO_BIN
    candidate_bin: int = NO_BIN

    def add(self, later: UnitState) -> UnitState:
        """Give the state after a later batch."""
        return UnitState(
            self.arm,
            self.stage,
            self.first_unix_ms,
            self.events | later.events,
            max(self.stable_bin, later.stable_bin),
            max(self.candidate_bin, later.candidate_bin),
        )


class EventCounts(msgspec.Struct, array_like=True):
    """Counts of one event metric.

    Attributes:
        count: Interactions with the event.
        at_risk: Interactions of units that had not had it yet; the one with the first event is one of them.
        first: Units that had their first event.
        buckets: ``count`` by bucket of units; buckets without are left out.
    """

    count: int = 0
    at_risk: int = 0
    first: int = 0
    buckets: dict[int, int] = {}


class ValueCounts(msgspec.Struct, array_like=True):
    """Sums of one value metric, in its own small unit (``ValueMetric.per_unit``).

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
        units: Units whose first exposure in the rollout is among them (sample ratio).
        buckets: ``interactions`` by bucket of units; empty buckets are left out.
        events: By name of the event metric.
        values: By name of the value metric.
    """

    interactions: int = 0
    units: int = 0
    buckets: dict[int, int] = {}
    events: dict[str, EventCounts] = {}
    values: dict[str, ValueCounts] = {}


def bucket(unit: bytes) -> int:
    """Put a hashed unit in its bucket, 0 to 255."""
    return unit[-1]


class Exposures:
    """The interactions of a batch that are evidence, in their order, each metric read once."""

    def __init__(self, interactions: Iterable[Interaction]) -> None:
        counted = [each for each in interactions if each.rollout > 0 and each.kind in _EVIDENCE_KINDS]
        self._interactions = counted
        self._events = _events(counted)
        self._values = [_read_values(metric, counted) for metric in VALUE_METRICS]

    def states(self) -> dict[UnitKey, UnitState]:
        """Say what the batch adds to the states of its units (``UnitState.add``).

        Of a unit that the rollout meets for the first time, that is the state itself. An interaction that is its own
        unit comes once and needs no state.
        """
        states: dict[UnitKey, UnitState] = {}
        _, latency_bins = self._values[_LATENCY]
        for each, happened, reached in zip(self._interactions, self._events, latency_bins, strict=True):
            if each.own_unit:
                continue
            unit = (each.rollout, each.unit)
            state = states.get(unit)
            if state is None:
                state = states[unit] = UnitState(each.arm, each.stage, each.unix_ms)
            if happened:
                state.events |= happened
            slowest = FAILED_BIN if each.release_error else reached
            if each.arm:
                state.candidate_bin = max(state.candidate_bin, slowest)
            else:
                state.stable_bin = max(state.stable_bin, slowest)
        return states

    def counts(self, known: Mapping[UnitKey, int]) -> dict[ExposureKey, Counts]:
        """Count the batch by exposure key.

        Args:
            known: Events (bits) so far of those units that the rollout has met before; all others are new to it.
        """
        groups: dict[tuple[int, int, int, int], list[int]] = {}
        for index, each in enumerate(self._interactions):
            key = (each.rollout, each.stage, int.from_bytes(each.id[:6], "big") // _HOUR_MS * 3600, each.arm)
            group = groups.get(key)
            if group is None:
                groups[key] = [index]
            else:
                group.append(index)
        had, is_new = self._histories(known)
        return {ExposureKey(*key): self._count(group, had, is_new) for key, group in groups.items()}

    def _count(self, group: Sequence[int], had: Sequence[int], is_new: Sequence[bool]) -> Counts:
        cells = [self._interactions[index].unit[-1] for index in group]
        return Counts(
            interactions=len(group),
            units=sum([is_new[index] for index in group]),
            buckets=_tally(cells),
            events=_count_events([self._events[index] for index in group], [had[index] for index in group], cells),
            values={
                metric.name: _count_values(exact, bins, group, cells)
                for metric, (exact, bins) in zip(VALUE_METRICS, self._values, strict=True)
            },
        )

    def _histories(self, known: Mapping[UnitKey, int]) -> tuple[list[int], list[bool]]:
        """Give, for each interaction, the events that its unit had had before, and whether its unit is new."""
        had: list[int] = []
        is_new: list[bool] = []
        met: dict[UnitKey, int] = {}
        for each, happened in zip(self._interactions, self._events, strict=True):
            if each.own_unit:
                had.append(0)
                is_new.append(True)
                continue
            unit = (each.rollout, each.unit)
            before = met.get(unit)
            if before is not None:
                is_new.append(False)
            else:
                before = known.get(unit)
                is_new.append(before is None)
                before = before or 0
            had.append(before)
            met[unit] = before | happened
        return had, is_new


def fold(
    interactions: Iterable[Interaction], states: Mapping[UnitKey, UnitState]
) -> tuple[dict[ExposureKey, Counts], dict[UnitKey, UnitState]]:
    """Count a batch, in its order: what storage does with the rows of ``unit_state``, without the database.

    Args:
        interactions: The batch; what is no evidence is passed over.
        states: States of those of its units that the rollout has met before.

    Returns:
        Counts by exposure key, and the states of the batch's units after it.
    """
    exposures = Exposures(interactions)
    added = exposures.states()
    counts = exposures.counts({unit: states[unit].events for unit in added.keys() & states.keys()})
    return counts, {unit: states[unit].add(state) if unit in states else state for unit, state in added.items()}


def merge(one: Counts, other: Counts) -> Counts:
    """Add two counts: commutative, associative, exact."""
    return Counts(
        interactions=one.interactions + other.interactions,
        units=one.units + other.units,
        buckets=_add(one.buckets, other.buckets),
        events={
            name: _merge_events(one.events.get(name), other.events.get(name))
            for name in _names(one.events, other.events)
        },
        values={
            name: _merge_values(one.values.get(name), other.values.get(name))
            for name in _names(one.values, other.values)
        },
    )


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


def _read_values(metric: ValueMetric, interactions: Sequence[Interaction]) -> tuple[list[int], list[int]]:
    """Read a metric: values in its small unit, -1 where there is none, and their bins, if it has a histogram."""
    values = [
        -1.0 if value is None or not 0.0 <= value <= _LARGEST else value for value in map(metric.value, interactions)
    ]
    scale = metric.per_unit
    exact = [int(value * scale + 0.5) if value >= 0.0 else -1 for value in values]
    if not metric.histogram:
        return exact, []
    bins = log_histogram_bins(values)
    if -1 in exact:
        bins = [NO_BIN if value < 0 else edge for value, edge in zip(exact, bins, strict=True)]
    return exact, bins


def _count_events(events: Sequence[int], had: Sequence[int], cells: Sequence[int]) -> dict[str, EventCounts]:
    interactions = len(events)
    any_event, any_history = any(events), any(had)
    counts = {}
    for position, metric in enumerate(EVENT_METRICS):
        bit = 1 << position
        found = [index for index, bits in enumerate(events) if bits & bit] if any_event else []
        past = sum([1 for bits in had if bits & bit]) if any_history else 0
        counts[metric.name] = EventCounts(
            count=len(found),
            at_risk=interactions - past,
            first=sum([1 for index in found if not had[index] & bit]),
            buckets=_tally([cells[index] for index in found]),
        )
    return counts


def _count_values(exact: list[int], bins: list[int], group: Sequence[int], cells: Sequence[int]) -> ValueCounts:
    values = [exact[index] for index in group]
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


def _names(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    return sorted(one.keys() | other.keys())


def _add(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    total = dict(one)
    for key, count in other.items():
        total[key] = total.get(key, 0) + count
    return total


def _merge_events(one: EventCounts | None, other: EventCounts | None) -> EventCounts:
    one, other = one or EventCounts(), other or EventCounts()
    return EventCounts(
        one.count + other.count,
        one.at_risk + other.at_risk,
        one.first + other.first,
        _add(one.buckets, other.buckets),
    )


def _merge_values(one: ValueCounts | None, other: ValueCounts | None) -> ValueCounts:
    one, other = one or ValueCounts(), other or ValueCounts()
    buckets = dict(one.buckets)
    for cell, (count, total) in other.buckets.items():
        known = buckets.get(cell)
        buckets[cell] = (count, total) if known is None else (known[0] + count, known[1] + total)
    return ValueCounts(
        one.count + other.count,
        one.total + other.total,
        one.squares + other.squares,
        buckets,
        _add(one.histogram, other.histogram),
    )
