"""Whatever happens to a rollout, some things never do."""

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from headway.domain.assessment import Assessment
from headway.domain.assignment import is_candidate
from headway.domain.policy import HoldbackRule, KillSwitch, Policy, ShadowRule, StageRule
from headway.domain.recording import Baseline
from headway.domain.rollout import Command, Decision, Status, begin, commands, decide, is_over, obey, phase_of
from headway.errors import ConflictError
from tests.unit.domain.rollout_cases import (
    DAY_MS,
    ERRORS,
    HARM,
    HOUR_MS,
    KNOWN,
    MINUTE_MS,
    NOW_MS,
    POLICY,
    RAMP,
    THRESHOLD,
    THUMBS,
    assess,
    decided,
    figures,
    terms,
)

# --- whatever happens ---

LOGS = st.sampled_from([-2.0, 0.0, THRESHOLD, HARM, 99.0, math.nan, -math.inf, math.inf])
COUNTS = st.sampled_from([0, 1, 49, 50, 1000])


@st.composite
def assessments(draw: st.DrawFn) -> Assessment:
    metrics = [
        figures(
            rule,
            draw(LOGS),
            draw(LOGS),
            stable_observations=draw(COUNTS),
            candidate_observations=draw(COUNTS),
            superior_log_e=draw(LOGS),
            estimate=draw(st.none() | st.floats()),
            lower=draw(st.none() | st.floats()),
            interactions_to_go=draw(st.none() | st.floats(0)),
        )
        for rule in draw(st.sampled_from([(THUMBS, ERRORS), (ERRORS,), ()]))
    ]
    pairs = st.tuples(COUNTS, COUNTS)
    return Assessment(
        tuple(metrics),
        draw(st.sampled_from([0.0, 0.0, 0.0, 99.0])),
        draw(pairs),
        draw(pairs),
        draw(pairs),
        draw(COUNTS),
        draw(COUNTS),
        draw(st.booleans()),
    )


POLICIES = st.builds(
    replace,
    st.just(POLICY),
    stages=st.sampled_from(
        [
            POLICY.stages,
            (StageRule(0.01, approve=True), StageRule(0.2), StageRule(1.0, approve=True)),
            (StageRule(0.5), StageRule(1.0)),
        ]
    ),
    rules=st.sampled_from([(THUMBS, ERRORS), (replace(THUMBS, require="superior"), ERRORS)]),
    shadow=st.sampled_from([None, ShadowRule()]),
    holdback=st.sampled_from([None, HoldbackRule()]),
    kill_switch=st.sampled_from([KillSwitch(), KillSwitch(safety_events=1000)]),
    on_inconclusive=st.sampled_from(["keep", "roll_back"]),
)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["tick"] * 6 + list(get_args(Command))), assessments(), st.integers(-MINUTE_MS, DAY_MS)),
    max_size=25,
)


@given(POLICIES, st.booleans(), EVENTS)
def test_no_sequence_of_events_does_what_must_never_happen(
    policy: Policy, known: bool, events: list[tuple[Any, Assessment, int]]
) -> None:
    rollout = replace(terms(), policy=policy, baseline=KNOWN if known else Baseline())
    status, now_ms = begin(rollout, NOW_MS), NOW_MS
    for event, assessment, later_ms in events:
        now_ms += later_ms
        if event == "tick":
            decision = decide(rollout, status, assessment, now_ms)
            assert decide(rollout, status, assessment, now_ms) == decision
        elif event in commands(policy, status):
            decision = obey(rollout, status, event, "", now_ms)
        else:
            with pytest.raises(ConflictError):
                obey(rollout, status, event, "", now_ms)
            continue
        check_step(policy, status, decision, by_person=event != "tick")
        status = decision.status


def check_step(policy: Policy, before: Status, decision: Decision, *, by_person: bool) -> None:
    after = decision.status
    assert decision.message
    assert 0.0 <= after.share <= 1.0
    if is_over(before):
        assert (after, decision.outcome) == (before, "hold")
        return
    if after.share < before.share:
        assert decision.outcome in ("roll_back", "inconclusive")
        assert (after.share, is_over(after)) == (0.0, True)
    assert before.step <= after.step <= before.step + 1
    assert before.stage <= after.stage <= before.stage + 1
    serving = phase_of(after) is not None
    if serving and after.share != before.share:
        assert after.stage == before.stage + 1
    if serving and phase_of(after) != "shadow":
        assert after.stage >= 1
    if before.state in ("paused", "inconclusive") and not by_person:
        assert after == before or decision.reason == "kill_switch"
    if decision.outcome == "hold":
        assert after.share == before.share
        assert after.state == before.state
    assert (after.state == "paused") == (after.paused_since_ms is not None) == (after.paused_state is not None)


@given(st.binary(min_size=1, max_size=8), st.text(max_size=8), st.sampled_from([None, HoldbackRule()]))
def test_a_rollout_that_climbs_moves_no_unit_back(salt: bytes, unit: str, holdback: HoldbackRule | None) -> None:
    status, now_ms, served = RAMP, NOW_MS, is_candidate(salt, unit, RAMP.share)
    while not is_over(status):
        now_ms += HOUR_MS
        status = decided(assess(safe=9.0), status, now_ms, holdback=holdback).status
        assert is_candidate(salt, unit, status.share) >= served
        served = is_candidate(salt, unit, status.share)
    assert served
