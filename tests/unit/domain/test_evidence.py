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
from headway.domain.recording import Recording, SlowTest
from headway.ids import Arm, Kind
from headway.stats import GAMMA, log_histogram_bin
from tests.interactions import START_MS, make_interaction

HOUR = START_MS // 3_600_000 * 3600
ERROR = 1 << [metric.name for metric in EVENT_METRICS].index("error_rate")


RECORDING = Recording(
    slow=(
        SlowTest("latency_p95:harm", "latency", log_histogram_bin(1000.0), log_histogram_bin(1250.0)),
        SlowTest("latency_p95:0.5", "latency", log_histogram_bin(1000.0), log_histogram_bin(2000.0)),
        SlowTest("first_token_p95:harm", "first_token", log_histogram_bin(200.0), log_histogram_bin(300.0)),
        SlowTest("retrieval_p95:harm", "retrieval", log_histogram_bin(20.0), log_histogram_bin(30.0)),
        SlowTest("slow_rate", "latency", log_histogram_bin(1000.0), log_histogram_bin(1000.0)),
    ),
    limits={"cost": 1_000_000},
)
RECORDINGS = {1: RECORDING}
SLOW = "latency_p95:harm"


def key(arm: Arm = Arm.STABLE, period: int = HOUR, stage: int = 1) -> ExposureKey:
    return ExposureKey(1, stage, period, arm)


@st.composite
def interactions(draw: st.DrawFn) -> Interaction:
    aborted = draw(st.booleans())
    failed = not aborted and draw(st.booleans())
    searched = draw(st.booleans())
    found = searched and draw(st.booleans())
    return make_interaction(
        retrieval_ms=draw(st.floats(0, 60)) if searched else None,
        retrieval_error=None if found or not searched else "retrieval_failed",
        passages=draw(st.integers(0, 2)) if found else None,
        context_tokens=draw(st.integers(0, 1500)) if found else None,
        cited=draw(st.none() | st.booleans()) if searched else None,
        unix_ms=START_MS + draw(st.integers(0, 7_200_000)),
        unit=draw(st.sampled_from("abcdefgh")),
        rollout=draw(st.integers(0, 2)),
        stage=draw(st.integers(0, 2)),
        stream=draw(st.booleans()),
        provider_model=draw(st.sampled_from([None, "m1", "m2"])),
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
        first_token_ms=draw(st.none() | st.floats(0, 600)),
        total_ms=draw(st.floats(0, 3_000)),
    )


batches = st.lists(interactions(), max_size=25)
Folded = tuple[dict[ExposureKey, Counts], dict[UnitKey, UnitState]]


def fold_in_turn(parts: list[list[Interaction]]) -> Folded:
    total: dict[ExposureKey, Counts] = {}
    states: dict[UnitKey, UnitState] = {}
    for part in parts:
        counts, changed = fold(part, states, RECORDINGS)
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
    assert states == {(1, one.unit): UnitState(Arm.STABLE, 1, START_MS)}
    assert set(found.events) == {metric.name for metric in EVENT_METRICS}
    assert set(found.values) == {metric.name for metric in VALUE_METRICS}


@pytest.mark.parametrize("fields", [{"rollout": 0}, {"kind": Kind.PINNED}, {"kind": Kind.SHADOW}])
def test_rule_1_what_was_not_assigned_is_no_evidence(fields: dict[str, Any]) -> None:
    assert fold([make_interaction(**fields)], {}) == ({}, {})


@pytest.mark.parametrize("kind", [Kind.RANDOMISED, Kind.MANUAL, Kind.HOLDBACK])
def test_rule_1_what_was_assigned_counts_whatever_happened_to_it(kind: Kind) -> None:
    batch = [
        make_interaction(kind=kind, fallback=True),
        make_interaction(kind=kind, release_error=True, error="provider_error"),
        make_interaction(kind=kind, aborted=True),
    ]
    assert fold(batch, {})[0][key()].interactions == 3


def test_rule_12_the_shadow_stage_counts_each_interaction_as_its_own_unit_and_remembers_none() -> None:
    failing: dict[str, Any] = {"stage": 0, "release_error": True, "error": "provider_error"}
    batch = [
        *(make_interaction(kind=Kind.SHADOW, arm=Arm.CANDIDATE, **failing) for _ in range(2)),
        *(make_interaction(kind=Kind.RANDOMISED, **failing) for _ in range(2)),
    ]
    counts, states = fold(batch, {})
    assert states == {}
    for arm in Arm:
        found = counts[key(arm, stage=0)]
        assert (found.interactions, found.units, found.events["error_rate"].first) == (2, 0, 2)


def test_periods_stages_and_arms_are_kept_apart() -> None:
    counts, _ = fold(
        [
            make_interaction(),
            make_interaction(START_MS + 3_600_000),
            make_interaction(stage=2),
            make_interaction(unit="bob", arm=Arm.CANDIDATE),
        ],
        {},
    )
    assert set(counts) == {key(), key(period=HOUR + 3600), key(stage=2), key(Arm.CANDIDATE)}


def test_rule_10_a_unit_is_new_once_per_rollout_and_at_its_first_exposure() -> None:
    counts, _ = fold([make_interaction(), make_interaction(stage=2), make_interaction(unit="bob", stage=2)], {})
    assert counts[key()].units == 1
    assert counts[key(stage=2)].units == 1


def test_rule_3_only_the_first_event_of_a_unit_counts_and_ends_its_risk() -> None:
    failing: dict[str, Any] = {"release_error": True, "error": "provider_error"}
    batch = [make_interaction(), make_interaction(**failing), make_interaction(**failing), make_interaction()]
    found = fold(batch, {})[0][key()].events["error_rate"]
    assert (found.count, found.at_risk, found.first) == (2, 2, 1)
    assert found.buckets == {bucket(batch[0].unit): 2}


def test_rule_3_an_event_under_one_arm_ends_the_risk_under_the_other() -> None:
    batch = [make_interaction(release_error=True), make_interaction(arm=Arm.CANDIDATE, release_error=True)]
    counts, _ = fold(batch, {})
    assert counts[key(Arm.CANDIDATE)].events["error_rate"] == EventCounts(1, 0, 0, {bucket(batch[0].unit): 1})


def test_a_known_unit_is_neither_new_nor_at_risk_again() -> None:
    one = make_interaction(release_error=True)
    known = UnitState(Arm.STABLE, 1, START_MS - 5, ERROR)
    counts, states = fold([one], {(1, one.unit): known})
    assert counts[key()].units == 0
    assert counts[key()].events["error_rate"].at_risk == 0
    assert states == {(1, one.unit): known}


def test_rule_2_a_request_that_is_its_own_unit_needs_no_state() -> None:
    batch = [make_interaction(unit=str(n), own_unit=True, release_error=True) for n in range(3)]
    counts, changed = fold(batch, {})
    assert (counts[key()].units, changed) == (3, {})
    assert counts[key()].events["error_rate"].first == 3


def test_periods_are_as_long_as_the_recording_says() -> None:
    counts, _ = fold([make_interaction(START_MS + 90_000)], {}, {1: Recording(period_seconds=60)})
    assert list(counts) == [key(period=(START_MS // 1000 + 90) // 60 * 60)]


# --- slow tests ---


def test_each_arm_is_slow_by_its_own_threshold() -> None:
    batch = [
        make_interaction(unit="a", total_ms=1100.0),
        make_interaction(unit="b", arm=Arm.CANDIDATE, total_ms=1100.0),
    ]
    counts, states = fold(batch, {}, RECORDINGS)
    assert counts[key()].events[SLOW] == EventCounts(1, 1, 1, {bucket(batch[0].unit): 1})
    assert counts[key(Arm.CANDIDATE)].events[SLOW] == EventCounts(0, 1, 0)
    assert counts[key(Arm.CANDIDATE)].events["slow_rate"].first == 1
    assert states[1, batch[0].unit].bins == (log_histogram_bin(1100.0), *[NO_BIN] * 5)
    assert states[1, batch[1].unit].bins == (NO_BIN, log_histogram_bin(1100.0), *[NO_BIN] * 4)


def test_a_threshold_itself_is_not_slow() -> None:
    edge = GAMMA ** RECORDING.slow[0].stable_bin
    quick, slow = (fold([make_interaction(total_ms=edge * by)], {}, RECORDINGS)[0][key()] for by in (0.9999, 1.0001))
    assert (quick.events[SLOW].count, slow.events[SLOW].count) == (0, 1)


@pytest.mark.parametrize("batches_of", [1, 5])
def test_rule_3_a_slow_call_under_either_arm_ends_the_risk_of_that_test_alone(batches_of: int) -> None:
    batch = [
        make_interaction(arm=Arm.CANDIDATE, total_ms=1500.0),
        make_interaction(total_ms=1500.0),
        make_interaction(total_ms=2500.0),
        make_interaction(arm=Arm.CANDIDATE, total_ms=2500.0),
        make_interaction(total_ms=10.0),
    ]
    counts, _ = fold_in_turn([batch[start : start + batches_of] for start in range(0, 5, batches_of)])
    stable, candidate = counts[key()].events, counts[key(Arm.CANDIDATE)].events
    assert (candidate[SLOW].count, candidate[SLOW].at_risk, candidate[SLOW].first) == (2, 1, 1)
    assert (stable[SLOW].count, stable[SLOW].at_risk, stable[SLOW].first) == (2, 0, 0)
    # 1500 ms is slow for stable (1000) but not for the candidate (2000): the risk of that test ends at the second call.
    half = "latency_p95:0.5"
    assert (candidate[half].count, candidate[half].at_risk, candidate[half].first) == (1, 1, 0)
    assert (stable[half].count, stable[half].at_risk, stable[half].first) == (2, 1, 1)


def test_rule_7_a_failed_request_is_slow_and_an_aborted_one_waited_until_then() -> None:
    failed = make_interaction(unit="a", release_error=True, error="provider_error", total_ms=5.0)
    aborted = [
        make_interaction(unit=unit, aborted=True, total_ms=waited) for unit, waited in (("b", 50.0), ("c", 1500.0))
    ]
    counts, states = fold([failed, *aborted], {}, RECORDINGS)
    found = counts[key()].events[SLOW]
    assert (found.count, found.at_risk, found.first) == (2, 3, 2)
    assert states[1, failed.unit].bins[0] == FAILED_BIN
    assert counts[key()].values["latency"].count == 0


def test_a_failure_that_is_not_the_releases_fault_says_nothing_of_its_speed() -> None:
    found = fold([make_interaction(error="invalid_request", total_ms=5000.0)], {}, RECORDINGS)[0][key()]
    assert (found.events[SLOW].at_risk, found.events[SLOW].count) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stream": False, "first_token_ms": None}, (0, 0)),
        ({"stream": False, "first_token_ms": None, "release_error": True, "error": "provider_error"}, (0, 0)),
        ({"stream": True, "first_token_ms": 100.0}, (1, 0)),
        ({"stream": True, "first_token_ms": 250.0}, (1, 1)),
        ({"stream": True, "first_token_ms": 100.0, "release_error": True, "error": "provider_error"}, (1, 1)),
        ({"stream": True, "first_token_ms": None, "aborted": True, "total_ms": 250.0}, (1, 1)),
        ({"stream": True, "first_token_ms": 100.0, "aborted": True, "total_ms": 250.0}, (1, 0)),
    ],
)
def test_only_streamed_answers_have_a_first_token(fields: dict[str, Any], expected: tuple[int, int]) -> None:
    found = fold([make_interaction(**fields)], {}, RECORDINGS)[0][key()].events["first_token_p95:harm"]
    assert (found.at_risk, found.first) == expected


# --- retrieval ---


SEARCHED: dict[str, Any] = {"retrieval_ms": 4.0, "passages": 2, "context_tokens": 300, "cited": True}
FAILED_SEARCH: dict[str, Any] = {"retrieval_ms": 9.0, "retrieval_error": "retrieval_failed", "cited": False}


def test_what_was_not_retrieved_tells_nothing_of_retrieval() -> None:
    batch = [make_interaction(unit="a"), make_interaction(unit="b", **SEARCHED), make_interaction(unit="c")]
    for found, told in ((fold(batch, {})[0][key()], 1), (fold(batch[:1], {})[0][key()], 0)):
        for name in ("empty_result_rate", "retrieval_error_rate", "cited_answer_rate"):
            assert found.events[name].at_risk == told
        assert found.values["context_tokens"].count == found.values["retrieval"].count == told
        assert found.events["error_rate"].at_risk == found.interactions


@pytest.mark.parametrize(
    ("fields", "empty", "failed", "cited"),
    [
        (SEARCHED, (1, 0), (1, 0), (1, 1)),
        ({**SEARCHED, "passages": 0, "cited": False}, (1, 1), (1, 0), (1, 0)),
        (
            FAILED_SEARCH,
            (0, 0),
            (1, 1),
            (1, 0),
        ),  # answered without passages: a search that failed has not found nothing
        ({**SEARCHED, "cited": None, "aborted": True}, (1, 0), (1, 0), (0, 0)),
        ({**SEARCHED, "retrieval_ms": 0.0}, (1, 0), (1, 0), (1, 1)),
    ],
)
def test_each_event_of_retrieval_is_counted_where_it_can_be_told(
    fields: dict[str, Any], empty: tuple[int, int], failed: tuple[int, int], cited: tuple[int, int]
) -> None:
    events = fold([make_interaction(**fields)], {})[0][key()].events
    rates = {"empty_result_rate": empty, "retrieval_error_rate": failed, "cited_answer_rate": cited}
    assert {name: (events[name].at_risk, events[name].first) for name in rates} == rates


def test_a_unit_is_at_risk_until_its_first_event_also_where_not_every_interaction_tells() -> None:
    empty = {**SEARCHED, "passages": 0, "cited": False}
    batch = [make_interaction(**fields) for fields in (SEARCHED, {}, empty, {}, SEARCHED)]
    for size in (1, 2, 5):
        counts, states = fold_in_turn([batch[start : start + size] for start in range(0, 5, size)])
        events = counts[key()].events
        assert (events["empty_result_rate"].at_risk, events["empty_result_rate"].first) == (2, 1)
        assert (events["cited_answer_rate"].at_risk, events["cited_answer_rate"].first) == (1, 1)
        assert events["cited_answer_rate"].count == 2
        assert len(states) == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0, 0)),
        (SEARCHED, (1, 0)),
        ({**SEARCHED, "retrieval_ms": 25.0}, (1, 1)),
        (FAILED_SEARCH, (1, 1)),
        ({**SEARCHED, "release_error": True, "error": "provider_error"}, (1, 0)),
        ({**SEARCHED, "aborted": True}, (1, 0)),
    ],
)
def test_a_search_that_fails_is_slow_whatever_becomes_of_the_answer(
    fields: dict[str, Any], expected: tuple[int, int]
) -> None:
    counts, states = fold([make_interaction(**fields)], {}, RECORDINGS)
    found = counts[key()]
    assert (found.events["retrieval_p95:harm"].at_risk, found.events["retrieval_p95:harm"].first) == expected
    (state,) = states.values()
    assert (state.bins[4] != NO_BIN) == bool(expected[1])
    assert found.values["retrieval"].count == (1 if fields.get("passages") else 0)


def test_quick_calls_leave_no_trace_on_a_unit() -> None:
    _, states = fold([make_interaction(total_ms=999.0)], {}, RECORDINGS)
    assert [state.bins for state in states.values()] == [(NO_BIN,) * 6]


def test_values_are_cut_off_at_the_limit() -> None:
    found = fold([make_interaction(cost_usd=0.005), make_interaction(cost_usd=0.0005)], {}, RECORDINGS)[0][key()]
    assert (found.values["cost"].total, found.values["cost"].squares) == (1_500_000, 10**12 + 500_000**2)
    assert fold([make_interaction(cost_usd=0.005)], {})[0][key()].values["cost"].total == 5_000_000


def test_refused_or_filtered_answers_are_unsafe_once() -> None:
    batch = [make_interaction(refused=True, filtered=True), make_interaction(filtered=True), make_interaction()]
    assert fold(batch, {})[0][key()].unsafe == 2


def test_who_answered_is_kept_as_the_provider_names_it() -> None:
    one = fold([make_interaction(provider_model="m", provider_fingerprint="f"), make_interaction()], {})[0][key()]
    other = fold([make_interaction(provider_model="n"), make_interaction(provider_model="n")], {})[0][key()]
    assert one.providers == ("local m f",)
    assert merge(one, other).providers == merge(other, one).providers == ("local m f", "local n ")


def test_failures_and_aborts_say_nothing_of_the_latency_of_answers() -> None:
    batch = [make_interaction(error="provider_error"), make_interaction(aborted=True), make_interaction()]
    assert fold(batch, {})[0][key()].values["latency"].count == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300, None])
def test_nonsense_values_are_left_out(value: float | None) -> None:
    cost = fold([make_interaction(cost_usd=value)], {})[0][key()].values["cost"]
    assert (cost.count, cost.total, cost.buckets) == (0, 0, {})


def test_the_highest_bins_are_kept_per_arm() -> None:
    batch = [
        make_interaction(total_ms=1100.0),
        make_interaction(total_ms=1900.0),
        make_interaction(total_ms=1300.0),
        make_interaction(total_ms=1500.0, arm=Arm.CANDIDATE),
    ]
    _, states = fold(batch, {}, RECORDINGS)
    assert states[1, batch[0].unit].bins == (log_histogram_bin(1900.0), log_histogram_bin(1500.0), *[NO_BIN] * 4)


# --- in any order ---


@given(st.tuples(batches, batches, batches))
def test_merge_is_commutative_and_associative(parts: tuple[list[Interaction], ...]) -> None:
    a, b, c = (summed(fold(batch, {}, RECORDINGS)[0]) for batch in parts)
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, Counts()) == merge(Counts(), a)


@given(batches, st.integers(1, 10))
def test_how_interactions_are_batched_does_not_show(batch: list[Interaction], size: int) -> None:
    whole = fold_in_turn([batch])
    assert fold_in_turn([batch[start : start + size] for start in range(0, len(batch), size)]) == whole
    assert Exposures(batch, RECORDINGS).states() == whole[1]


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
        assert (state.events, state.bins) == (same_state.events, same_state.bins)
    one, same = summed(one_counts), summed(other_counts)
    assert one.units == same.units
    for name, counted in one.events.items():
        assert (counted.first, counted.count) == (same.events[name].first, same.events[name].count)


@given(batches)
def test_counts_survive_json(batch: list[Interaction]) -> None:
    counts = summed(fold(batch, {}, RECORDINGS)[0])
    assert msgspec.json.decode(msgspec.json.encode(counts), type=Counts) == counts
