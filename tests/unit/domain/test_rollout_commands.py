"""What people ask of rollouts, and where they stand."""

from typing import get_args

import pytest
from msgspec.structs import replace

from headway.domain.rollout import Command, Status, commands, decide, is_over, next_share, obey, phase_of, shares_ahead
from headway.errors import ConflictError
from tests.unit.domain.rollout_cases import (
    BASELINE,
    DAY_MS,
    HOLDBACK,
    HOUR_MS,
    KEPT,
    LATE_MS,
    NOW_MS,
    POLICY,
    RAMP,
    SHADOW,
    assess,
    decided,
    paused,
    terms,
)

# --- pauses ---


@pytest.mark.parametrize("status", [RAMP, SHADOW, HOLDBACK, BASELINE])
def test_a_pause_freezes_and_resuming_goes_on_where_it_was(status: Status) -> None:
    halted = obey(terms(), status, "pause", "holidays", NOW_MS)
    assert (halted.outcome, halted.reason) == ("pause", "command")
    assert halted.message.endswith(": holidays")
    for assessment in (assess(), assess(harm=99.0), assess(safe=99.0), assess(sample_ratio_log_e=99.0)):
        held = decide(terms(), halted.status, assessment, NOW_MS + 30 * DAY_MS)
        assert (held.outcome, held.reason, held.status) == ("hold", "paused", halted.status)
        assert "only the kill switch acts. Possible: resume, promote, rollback" in held.message
    resumed = obey(terms(), halted.status, "resume", "", NOW_MS + 3 * HOUR_MS)
    assert resumed.status == replace(status, paused_ms=3 * HOUR_MS)
    assert resumed.message == "resumed after 3 h"


@pytest.mark.parametrize("status", [RAMP, HOLDBACK])
def test_resuming_after_the_sample_ratio_opens_a_stratum_with_a_new_check(status: Status) -> None:
    halted = decided(assess(sample_ratio_log_e=99.0), status).status
    resumed = obey(terms(), halted, "resume", "fixed the proxy", LATE_MS + HOUR_MS)
    assert resumed.message == "resumed after 1 h, with a new sample-ratio check: fixed the proxy"
    after = replace(status, stage=status.stage + 1, ratio_epoch=1, paused_ms=HOUR_MS, since_ms=LATE_MS + HOUR_MS)
    assert resumed.status == after


def test_a_clock_that_goes_back_adds_no_time() -> None:
    halted = obey(terms(), RAMP, "pause", "", NOW_MS).status
    assert obey(terms(), halted, "resume", "", NOW_MS - HOUR_MS).status == RAMP
    assert decided(assess(safe=9.0), now_ms=NOW_MS - HOUR_MS).reason == "dwell"


# --- what people ask for ---


@pytest.mark.parametrize(
    ("status", "share", "state", "outcome"),
    [
        (SHADOW, 0.01, "ramp", "advance"),
        (RAMP, 0.1, "ramp", "advance"),
        (replace(RAMP, step=2, stage=3, share=0.5), 0.98, "holdback", "advance"),
    ],
)
def test_a_person_may_advance_past_the_gates_and_it_is_recorded_as_that(
    status: Status, share: float, state: str, outcome: str
) -> None:
    decision = obey(terms(), status, "advance", "release day", LATE_MS)
    assert (decision.outcome, decision.reason) == (outcome, "command")
    assert decision.message.endswith(" past the gates: release day")
    after = decision.status
    assert (after.state, after.share, after.stage, after.step) == (state, share, status.stage + 1, status.step + 1)
    assert after.since_ms == LATE_MS


def test_advancing_to_the_end_without_holdback_promotes() -> None:
    last = replace(RAMP, step=2, stage=3, share=0.5)
    decision = obey(terms(holdback=None), last, "advance", "", LATE_MS)
    assert (decision.outcome, decision.status.state, decision.status.share) == ("promote", "promoted", 1.0)


ACTIVE = [BASELINE, SHADOW, RAMP, HOLDBACK, KEPT, paused(RAMP), paused(SHADOW)]


@pytest.mark.parametrize("status", ACTIVE)
def test_a_person_may_promote_and_roll_back_whatever_is_not_over(status: Status) -> None:
    promoted = obey(terms(), status, "promote", "", LATE_MS)
    assert (promoted.outcome, promoted.status.state, promoted.status.share) == ("promote", "promoted", 1.0)
    assert "without holdback" in promoted.message
    back = obey(terms(), status, "rollback", "bad answers", LATE_MS)
    assert (back.outcome, back.status.state, back.status.share) == ("roll_back", "rolled_back", 0.0)
    assert back.message.endswith(": bad answers")
    for ended in (promoted.status, back.status):
        assert is_over(ended)
        assert (ended.paused_since_ms, ended.paused_state) == (None, None)
        assert commands(POLICY, ended) == ()
        assert decide(terms(), ended, assess(harm=99.0, safety_events=9), LATE_MS).reason == "ended"


POSSIBLE: dict[str, tuple[Status, tuple[Command, ...]]] = {
    "baseline": (BASELINE, ("pause", "promote", "rollback")),
    "shadow": (SHADOW, ("pause", "advance", "promote", "rollback")),
    "ramp": (RAMP, ("pause", "advance", "promote", "rollback")),
    "holdback": (HOLDBACK, ("pause", "promote", "rollback")),
    "paused": (paused(RAMP), ("resume", "promote", "rollback")),
    "inconclusive": (KEPT, ("promote", "rollback")),
    "over": (replace(RAMP, state="rolled_back", share=0.0), ()),
}


@pytest.mark.parametrize("case", POSSIBLE)
def test_what_makes_no_sense_is_refused_with_what_does(case: str) -> None:
    status, possible = POSSIBLE[case]
    assert commands(POLICY, status) == possible
    for command in get_args(Command):
        if command in possible:
            assert obey(terms(), status, command, "", LATE_MS).reason == "command"
        else:
            with pytest.raises(ConflictError) as caught:
                obey(terms(), status, command, "", LATE_MS)
            if possible and command == "resume":
                assert caught.value.message.startswith("the rollout is not paused; ")
            if possible and command != "approve":
                assert ", ".join(possible) in caught.value.message
            if not possible:
                assert caught.value.message == "the rollout is over (rolled back); to try again, start another one"


# --- where a rollout stands ---


def test_shares_ahead_are_those_that_need_evidence() -> None:
    assert shares_ahead(POLICY, BASELINE) == shares_ahead(POLICY, SHADOW) == (0.01, 0.1, 0.5, 1.0)
    assert shares_ahead(POLICY, RAMP) == shares_ahead(POLICY, paused(RAMP)) == (0.1, 0.5, 1.0)
    assert (next_share(POLICY, RAMP), next_share(POLICY, replace(RAMP, step=2, share=0.5))) == (0.1, 1.0)
    for status in (HOLDBACK, KEPT, paused(HOLDBACK), replace(RAMP, state="promoted", share=1.0)):
        assert (shares_ahead(POLICY, status), next_share(POLICY, status)) == ((), None)


def test_a_phase_lasts_through_its_pauses() -> None:
    assert [phase_of(status) for status in (BASELINE, SHADOW, RAMP, HOLDBACK)] == [None, "shadow", "ramp", "holdback"]
    assert [phase_of(paused(status)) for status in (BASELINE, SHADOW, RAMP)] == [None, "shadow", "ramp"]
    assert phase_of(KEPT) == "ramp"
    assert phase_of(replace(KEPT, share=0.0)) is None
    assert phase_of(replace(RAMP, state="promoted", share=1.0)) is None
