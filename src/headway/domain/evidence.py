"""Evidence: what interactions of a rollout add up to, each counted once (statistics, section 4b).

A batch of interactions is folded into ``Counts`` per exposure key. Counts are whole numbers throughout, so that they
add up to the same in whatever order batches come; only who had a first event depends on commit order, as it must.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from headway.domain.interaction import Interaction
from headway.domain.metric import EVENT_METRICS, LATENCY, VALUE_METRICS, ValueMetric
from headway.ids import Kind
from headway.stats.histogram import log_histogram_bin

BUCKETS = 256
"""Hash buckets of units, for variances that respect repeated use (statistics, F6)."""
NO_BIN = -32_768
"""Latency bin of an arm that a unit has not met."""
FAILED_BIN = 32_767
"""Latency bin of a failed interaction: a failed request is slow."""

_HOUR_MS = 3_600_000
_LARGEST = 1e15  # a value above is a provider's nonsense, and left out
_EVIDENCE_KINDS = frozenset((Kind.RANDOMISED, Kind.MANUAL))


class ExposureKey(NamedTuple):
    """What counts belong to: rollout, stage and arm at assignment, and the Unix hour of it."""

    rollout: int
    stage: int
    hour: int
    arm: int


UnitKey = tuple[int, bytes]
"""Rollout and hashed unit."""


class UnitState(msgspec.Struct, frozen=True):
    """What is remembered of a unit while its rollout runs.

    Attributes:
        arm, stage, first_unix_ms: Of its first exposure.
        events: Which events it has had under either arm: bit i is ``EVENT_METRICS[i]``.
        latency_bins: Highest log-histogram bin of its latency under stable and under candidate.
    """

    arm: int
    stage: int
    first_unix_ms: int
    events: int = 0
    latency_bins: tuple[int, int] = (NO_BIN, NO_BIN)


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


def is_evidence(interaction: Interaction) -> bool:
    """Say whether an interaction counts in its rollout: only assigned ones do (booking rule 1)."""
    return interaction.rollout > 0 and interaction.kind in _EVIDENCE_KINDS


def bucket(unit: bytes) -> int:
    """Put a hashed unit in its bucket, 0 to 255."""
    return unit[-1]


def first_states(interactions: Iterable[Interaction]) -> dict[UnitKey, UnitState]:
    """Say in which state each unit of a batch would be if the rollout had not met it before.

    An interaction that is its own unit comes once and needs no state.
    """
    return _advance([each for each in interactions if is_evidence(each)], {})


def fold(
    interactions: Iterable[Interaction], states: Mapping[UnitKey, UnitState]
) -> tuple[dict[ExposureKey, Counts], dict[UnitKey, UnitState]]:
    """Count a batch, in its order.

    Args:
        interactions: The batch; what is no evidence is passed over.
        states: States of those of its units that the rollout has met before; all others are new to it.

    Returns:
        Counts by exposure key, and the states that are new or have changed.
    """
    counted = [each for each in interactions if is_evidence(each)]
    groups: dict[ExposureKey, list[int]] = {}
    for index, each in enumerate(counted):
        key = ExposureKey(each.rollout, each.stage, int.from_bytes(each.id[:6], "big") // _HOUR_MS, each.arm)
        group = groups.get(key)
        if group is None:
            groups[key] = [index]
        else:
            group.append(index)
    events = _events(counted)
    had, is_new = _histories(counted, events, states)
    counts = {}
    for key, group in groups.items():
        members = [counted[index] for index in group]
        cells = [each.unit[-1] for each in members]
        counts[key] = Counts(
            interactions=len(members),
            units=sum([is_new[index] for index in group]),
            buckets=_tally(cells),
            events=_count_events([events[index] for index in group], [had[index] for index in group], cells),
            values={metric.name: _count_values(metric, members, cells) for metric in VALUE_METRICS},
        )
    return counts, _advance(counted, states)


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


def _histories(
    interactions: Sequence[Interaction], events: Sequence[int], states: Mapping[UnitKey, UnitState]
) -> tuple[list[int], list[bool]]:
    """Give, for each interaction, the events that its unit had had before, and whether its unit is new."""
    had: list[int] = []
    is_new: list[bool] = []
    met: dict[UnitKey, int] = {}
    for each, happened in zip(interactions, events, strict=True):
        if each.own_unit:
            had.append(0)
            is_new.append(True)
            continue
        unit = (each.rollout, each.unit)
        before = met.get(unit)
        new = False
        if before is None:
            state = states.get(unit)
            new = state is None
            before = 0 if state is None else state.events
        had.append(before)
        is_new.append(new)
        met[unit] = before | happened
    return had, is_new


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


def _count_values(metric: ValueMetric, interactions: Sequence[Interaction], cells: Sequence[int]) -> ValueCounts:
    scale = metric.per_unit
    count = total = squares = 0
    buckets: dict[int, tuple[int, int]] = {}
    histogram: dict[int, int] = {}
    for value, cell in zip(map(metric.value, interactions), cells, strict=True):
        if value is None or not 0.0 <= value <= _LARGEST:
            continue
        exact = int(value * scale + 0.5)
        count += 1
        total += exact
        squares += exact * exact
        known = buckets.get(cell)
        buckets[cell] = (1, exact) if known is None else (known[0] + 1, known[1] + exact)
        if metric.histogram:
            edge = log_histogram_bin(value)
            histogram[edge] = histogram.get(edge, 0) + 1
    return ValueCounts(count, total, squares, buckets, histogram)


def _advance(interactions: Sequence[Interaction], states: Mapping[UnitKey, UnitState]) -> dict[UnitKey, UnitState]:
    """Give the states that are new or have changed after a batch."""
    after: dict[UnitKey, UnitState] = {}
    for each, happened in zip(interactions, _events(interactions), strict=True):
        if each.own_unit:
            continue
        unit = (each.rollout, each.unit)
        state = after.get(unit) or states.get(unit)
        if state is None:
            state = after[unit] = UnitState(each.arm, each.stage, each.unix_ms)
        slowest = state.latency_bins[each.arm]
        reached = _latency_bin(each)
        if happened & ~state.events or reached > slowest:
            stable, candidate = state.latency_bins
            if each.arm:
                candidate = max(candidate, reached)
            else:
                stable = max(stable, reached)
            after[unit] = UnitState(
                state.arm, state.stage, state.first_unix_ms, state.events | happened, (stable, candidate)
            )
    return after


def _latency_bin(interaction: Interaction) -> int:
    if interaction.release_error:
        return FAILED_BIN
    latency_ms = LATENCY.value(interaction)
    return NO_BIN if latency_ms is None else log_histogram_bin(latency_ms)


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
