"""Folding interactions into evidence: what counts, once, and in any order."""

import random
from functools import reduce
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.evidence import (
    FAILED_BIN,
    NO_BIN,
    Counts,
    EventCounts,
    ExposureKey,
    Exposures,
    UnitKey,
    UnitState,
    bucket,
    fold,
    merge,
)
from headway.domain.interaction import Interaction
from headway.domain.metric import EVENT_METRICS, VALUE_METRICS
from headway.ids import Arm, Kind
from headway.stats import log_histogram_bin
from tests.interactions import START_MS, make_interaction

HOUR = START_MS // 3_600_000
ERROR = 1 << [metric.name for metric in EVENT_METRICS].index("error_rate")


def key(arm: Arm = Arm.STABLE, hour: int = HOUR, stage: int = 1) -> ExposureKey:
    return ExposureKey(1, stage, hour, arm)


@st.composite
def interactions(draw: st.DrawFn) -> Interaction:
    aborted = draw(st.booleans())
    failed = not aborted and draw(st.booleans())
    return make_interaction(
        unix_ms=START_MS + draw(st.integers(0, 7_200_000)),
        unit=draw(st.sampled_from("abcdefgh")),
        rollout=draw(st.integers(0, 2)),
        stage=draw(st.integers(1, 2)),
        arm=draw(st.sampled_from(list(Arm))),
        kind=draw(st.sampled_from(list(Kind))),
        own_unit=draw(st.booleans()),
        aborted=aborted,
        release_error=failed,
        error="provider_error" if failed else None,
        attempt_errors=draw(st.integers(0, 2)),
        fallback=draw(st.booleans()),
        refused=draw(st.booleans()),
        filtered=draw(st.booleans()),
        cost_usd=draw(st.none() | st.floats(0, 10)),
        input_tokens=draw(st.none() | st.integers(0, 1_000_000)),
        output_tokens=draw(st.none() | st.integers(0, 1_000_000)),
        first_token_ms=draw(st.none() | st.floats(0, 600_000)),
        total_ms=draw(st.floats(0, 600_000)),
    )


batches = st.lists(interactions(), max_size=25)
Folded = tuple[dict[ExposureKey, Counts], dict[UnitKey, UnitState]]


def fold_in_turn(parts: list[list[Interaction]]) -> Folded:
    total: dict[ExposureKey, Counts] = {}
    states: dict[UnitKey, UnitState] = {}
    for part in parts:
        counts, changed = fold(part, states)
        states.update(changed)
        for exposure, found in counts.items():
            total[exposure] = merge(total[exposure], found) if exposure in total else found
    return total, states


def summed(counts: dict[ExposureKey, Counts]) -> Counts:
    return reduce(merge, counts.values(), Counts())


# --- what counts ---


def test_one_interaction_is_counted_under_its_exposure_key() -> None:
    one = make_interaction()
    counts, states = fold([one], {})
    found = counts[key()]
    cell = bucket(one.unit)
    assert list(counts) == [key()]
    assert (found.interactions, found.units, found.buckets) == (1, 1, {cell: 1})
    assert found.events["error_rate"] == EventCounts(count=0, at_risk=1, first=0)
    cost, latency = found.values["cost"], found.values["latency"]
    assert (cost.count, cost.total, cost.squares, cost.buckets) == (1, 250_000, 250_000**2, {cell: (1, 250_000)})
    assert (latency.total, latency.histogram) == (480_250, {log_histogram_bin(480.25): 1})
    assert states == {
        (1, one.unit): UnitState(Arm.STABLE, 1, START_MS, 0, log_histogram_bin(480.25), NO_BIN),
    }
    assert set(found.events) == {metric.name for metric in EVENT_METRICS}
    assert set(found.values) == {metric.name for metric in VALUE_METRICS}


@pytest.mark.parametrize(
    "fields", [{"rollout": 0}, {"kind": Kind.PINNED}, {"kind": Kind.SHADOW}, {"kind": Kind.HOLDBACK}]
)
def test_what_was_not_assigned_is_no_evidence(fields: dict[str, Any]) -> None:
    assert fold([make_interaction(**fields)], {}) == ({}, {})


def test_hours_stages_and_arms_are_kept_apart() -> None:
    counts, _ = fold(
        [
            make_interaction(),
            make_interaction(START_MS + 3_600_000),
            make_interaction(stage=2),
            make_interaction(unit="bob", arm=Arm.CANDIDATE),
        ],
        {},
    )
    assert set(counts) == {key(), key(hour=HOUR + 1), key(stage=2), key(Arm.CANDIDATE)}


def test_a_unit_is_new_once_per_rollout_and_at_its_first_exposure() -> None:
    counts, _ = fold([make_interaction(), make_interaction(stage=2), make_interaction(unit="bob", stage=2)], {})
    assert counts[key()].units == 1
    assert counts[key(stage=2)].units == 1


def test_only_the_first_event_of_a_unit_counts_and_ends_its_risk() -> None:
    failing: dict[str, Any] = {"release_error": True, "error": "provider_error"}
    batch = [make_interaction(), make_interaction(**failing), make_interaction(**failing), make_interaction()]
    found = fold(batch, {})[0][key()].events["error_rate"]
    assert (found.count, found.at_risk, found.first) == (2, 2, 1)
    assert found.buckets == {bucket(batch[0].unit): 2}


def test_an_event_under_one_arm_ends_the_risk_under_the_other() -> None:
    batch = [make_interaction(release_error=True), make_interaction(arm=Arm.CANDIDATE, release_error=True)]
    counts, _ = fold(batch, {})
    assert counts[key(Arm.CANDIDATE)].events["error_rate"] == EventCounts(1, 0, 0, {bucket(batch[0].unit): 1})


def test_a_known_unit_is_neither_new_nor_at_risk_again() -> None:
    one = make_interaction(release_error=True)
    known = UnitState(Arm.STABLE, 1, START_MS - 5, ERROR, FAILED_BIN, NO_BIN)
    counts, states = fold([one], {(1, one.unit): known})
    assert counts[key()].units == 0
    assert counts[key()].events["error_rate"].at_risk == 0
    assert states == {(1, one.unit): known}


def test_a_request_that_is_its_own_unit_needs_no_state() -> None:
    batch = [make_interaction(unit=str(n), own_unit=True, release_error=True) for n in range(3)]
    counts, changed = fold(batch, {})
    assert (counts[key()].units, changed) == (3, {})
    assert counts[key()].events["error_rate"].first == 3


def test_a_failed_request_is_slow_and_an_abort_is_not() -> None:
    failed, aborted = make_interaction(unit="a", release_error=True), make_interaction(unit="b", aborted=True)
    counts, states = fold([failed, aborted], {})
    assert states[1, failed.unit].stable_bin == FAILED_BIN
    assert states[1, aborted.unit].stable_bin == NO_BIN
    assert counts[key()].events["abort_rate"].count == counts[key()].events["error_rate"].count == 1


def test_failures_and_aborts_say_nothing_of_the_latency_of_answers() -> None:
    batch = [make_interaction(error="provider_error"), make_interaction(aborted=True), make_interaction()]
    assert fold(batch, {})[0][key()].values["latency"].count == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300, None])
def test_nonsense_values_are_left_out(value: float | None) -> None:
    cost = fold([make_interaction(cost_usd=value)], {})[0][key()].values["cost"]
    assert (cost.count, cost.total, cost.buckets) == (0, 0, {})


def test_the_highest_latency_is_kept_per_arm() -> None:
    batch = [
        make_interaction(total_ms=100.0),
        make_interaction(total_ms=900.0),
        make_interaction(total_ms=300.0),
        make_interaction(total_ms=50.0, arm=Arm.CANDIDATE),
    ]
    _, states = fold(batch, {})
    state = states[1, batch[0].unit]
    assert (state.stable_bin, state.candidate_bin) == (log_histogram_bin(900.0), log_histogram_bin(50.0))


# --- in any order ---


@given(st.tuples(batches, batches, batches))
def test_merge_is_commutative_and_associative(parts: tuple[list[Interaction], ...]) -> None:
    a, b, c = (summed(fold(batch, {})[0]) for batch in parts)
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, Counts()) == merge(Counts(), a)


@given(batches, st.integers(1, 10))
def test_how_interactions_are_batched_does_not_show(batch: list[Interaction], size: int) -> None:
    whole = fold_in_turn([batch])
    assert fold_in_turn([batch[start : start + size] for start in range(0, len(batch), size)]) == whole
    assert Exposures(batch).states() == whole[1]


@given(batches, st.randoms(use_true_random=False))
def test_order_moves_first_events_but_never_their_number(batch: list[Interaction], shuffler: random.Random) -> None:
    other = list(batch)
    shuffler.shuffle(other)
    (one_counts, one_states), (other_counts, other_states) = fold_in_turn([batch]), fold_in_turn([other])
    assert one_counts.keys() == other_counts.keys()
    for exposure, one in one_counts.items():
        same = other_counts[exposure]
        assert (one.interactions, one.buckets, one.values) == (same.interactions, same.buckets, same.values)
    for unit, state in one_states.items():
        same_state = other_states[unit]
        assert (state.events, state.stable_bin) == (same_state.events, same_state.stable_bin)
        assert state.candidate_bin == same_state.candidate_bin
    one, same = summed(one_counts), summed(other_counts)
    assert one.units == same.units
    for metric in EVENT_METRICS:
        if one.interactions:
            assert one.events[metric.name].first == same.events[metric.name].first
            assert one.events[metric.name].count == same.events[metric.name].count


@given(batches)
def test_counts_survive_json(batch: list[Interaction]) -> None:
    counts = summed(fold(batch, {})[0])
    assert msgspec.json.decode(msgspec.json.encode(counts), type=Counts) == counts
