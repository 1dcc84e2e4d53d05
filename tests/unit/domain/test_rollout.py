"""Deciding on rollouts: each branch, and the order of the checks."""

import math
import re
from typing import Any

import pytest
from msgspec.structs import replace

from headway.domain.assessment import Assessment, SafeFigure
from headway.domain.difference import Difference
from headway.domain.policy import KillSwitch, ShadowRule, StageRule
from headway.domain.recording import Baseline, MetricBaseline
from headway.domain.rollout import (
    BASELINE_INTERACTIONS,
    SAMPLE_RATIO_ALARM,
    BaselineGap,
    Status,
    baseline_gaps,
    begin,
    decide,
    is_over,
    obey,
)
from headway.errors import ConflictError
from tests.unit.domain.rollout_cases import (
    BASELINE,
    DAY_MS,
    ERRORS,
    HARM,
    HOLDBACK,
    HOUR_MS,
    KEPT,
    LATE_MS,
    MINUTE_MS,
    NOW_MS,
    POLICY,
    RAMP,
    SHADOW,
    THRESHOLD,
    THUMBS,
    assess,
    decided,
    figures,
    paused,
    terms,
)

# --- the ramp ---


def test_a_ramp_climbs_step_by_step_to_holdback_and_promotion() -> None:
    status, now_ms, seen = begin(terms(), NOW_MS), NOW_MS, []
    while not is_over(status):
        decision = decided(assess(safe=THRESHOLD), status, now_ms)
        if decision.status != status:
            seen.append((decision.outcome, decision.reason, decision.status.state, decision.status.share))
            assert decision.status.since_ms == now_ms
        status, now_ms = decision.status, now_ms + 10 * MINUTE_MS
    assert seen == [
        ("advance", "safe", "ramp", 0.1),
        ("advance", "safe", "ramp", 0.5),
        ("advance", "safe", "holdback", 0.98),
        ("promote", "holdback", "promoted", 1.0),
    ]
    assert (status.step, status.stage) == (3, 4)
    last = decided(assess(safe=THRESHOLD), replace(RAMP, step=2, stage=3, share=0.5))
    assert last.message == "shown to be safe: from 50% to 98%, the rest stays on the old release for 24 h"
    assert now_ms - NOW_MS == (3 * 30 + 24 * 60 + 10) * MINUTE_MS


def test_a_policy_without_holdback_promotes_at_once() -> None:
    last = replace(RAMP, step=2, stage=3, share=0.5)
    decision = decided(assess(safe=THRESHOLD), last, holdback=None)
    assert (decision.outcome, decision.reason, decision.status.state) == ("promote", "safe", "promoted")
    assert (decision.status.share, decision.status.step, decision.status.stage) == (1.0, 3, 3)
    assert decision.message == "shown to be safe: from 50% to 100%"


UNSEEN = replace(figures(THUMBS), candidate_observations=0)
HOLDS = {
    "dwell": (assess(safe=9.0), NOW_MS + 10 * MINUTE_MS, {}, "10 min of 30 min in this stage"),
    "min_units": (
        assess(safe=9.0, stage_units=(5000, 49)),
        LATE_MS,
        {},
        "49 of 50 units of the candidate in this stage",
    ),
    "no_data": (
        assess(metrics=(UNSEEN, figures(ERRORS, safe=9.0))),
        LATE_MS,
        {},
        (
            "no observation of thumbs_up of the candidate, and without data nothing passes: see whether clients send"
            " thumbs_up (POST /v1/feedback) for what they are shown"
        ),
    ),
    "evidence": (
        assess(metrics=(figures(THUMBS, safe=9.0), figures(ERRORS, safe=1.0, interactions_to_go=4213.0))),
        LATE_MS,
        {},
        "not yet shown to be safe at 10%: error_rate (E 2.7 of 20); about 4,200 more interactions",
    ),
    "approval": (
        assess(safe=9.0),
        LATE_MS,
        {"stages": (StageRule(0.01), StageRule(0.1, approve=True), StageRule(1.0))},
        "ready for 10%: it waits for a person's approval",
    ),
}


@pytest.mark.parametrize("reason", HOLDS)
def test_each_hold_has_its_reason_and_says_what_is_missing(reason: str) -> None:
    assessment, now_ms, changes, message = HOLDS[reason]
    decision = decided(assessment, RAMP, now_ms, **changes)
    assert (decision.outcome, decision.reason, decision.message) == ("hold", reason, message)
    assert decision.status == RAMP


def test_thresholds_are_reached_at_the_threshold() -> None:
    assert decided(assess(safe=THRESHOLD)).outcome == "advance"
    assert decided(assess(safe=math.nextafter(THRESHOLD, 0))).reason == "evidence"
    assert decided(assess(harm=HARM)).outcome == "roll_back"
    assert decided(assess(harm=math.nextafter(HARM, 0))).outcome == "hold"
    assert decided(assess(sample_ratio_log_e=SAMPLE_RATIO_ALARM)).outcome == "pause"
    assert decided(assess(sample_ratio_log_e=math.nextafter(SAMPLE_RATIO_ALARM, 0))).outcome == "hold"
    assert decided(assess(safe=THRESHOLD, stage_units=(900, 50))).outcome == "advance"
    assert decided(assess(safe=THRESHOLD), now_ms=NOW_MS + 30 * MINUTE_MS).outcome == "advance"
    assert decided(assess(safe=THRESHOLD), now_ms=NOW_MS + 30 * MINUTE_MS - 1).reason == "dwell"


def test_only_evidence_for_the_next_share_counts() -> None:
    other = tuple(SafeFigure(share, 9.0) for share in (0.5, 1.0))
    decision = decided(assess(metrics=(figures(THUMBS, safe=9.0), figures(ERRORS, safe=9.0))))
    assert decision.outcome == "advance"
    decision = decided(assess(metrics=(figures(THUMBS, safe=9.0), replace(figures(ERRORS), safe=()))))
    assert (decision.reason, decision.metric) == ("evidence", "error_rate")
    decision = decided(assess(metrics=(figures(THUMBS, safe=9.0), replace(figures(ERRORS), safe=other))))
    assert decision.message == "not yet shown to be safe at 10%: error_rate (E unknown of 20)"


def test_a_vacuous_step_needs_no_evidence_but_units_and_data() -> None:
    vacuous = tuple(SafeFigure(stage.share, -3.0, vacuous=True) for stage in POLICY.stages)
    metrics = (replace(figures(THUMBS), safe=vacuous), figures(ERRORS, safe=9.0))
    assert decided(assess(metrics=metrics)).outcome == "advance"
    assert decided(assess(metrics=metrics, stage_units=(900, 3))).reason == "min_units"
    unseen = (replace(metrics[0], stable_observations=0, candidate_observations=0), metrics[1])
    assert decided(assess(metrics=unseen)).reason == "no_data"


@pytest.mark.parametrize(
    ("metric", "advice"),
    [
        ("cost", "usd_per_million_tokens"),
        ("first_token_p95", "only streamed answers have a first token"),
        ("thumbs_up", "POST /v1/feedback"),
        ("error_rate", "whether interactions are recorded"),
    ],
)
def test_a_metric_without_data_never_passes_and_the_message_says_what_to_do(metric: str, advice: str) -> None:
    rule = replace(ERRORS, metric=metric)
    for metrics in ((), (replace(figures(rule, safe=math.inf), stable_observations=0),)):
        decision = decided(Assessment(metrics, stage_units=(900, 60)), rules=(rule,))
        assert (decision.outcome, decision.reason, decision.metric) == ("hold", "no_data", metric)
        assert advice in decision.message


def test_nothing_at_all_is_no_pass_either() -> None:
    assert decided(Assessment()).reason == "min_units"
    assert decided(Assessment(stage_units=(900, 60))).reason == "no_data"


def test_a_figure_that_is_not_a_number_passes_nothing() -> None:
    decision = decided(assess(safe=math.nan))
    assert (decision.reason, decision.status) == ("evidence", RAMP)
    assert decided(assess(safe=9.0, sample_ratio_log_e=math.nan)).outcome == "pause"


def test_a_superior_goal_is_asked_for_at_100_percent_only() -> None:
    rules = (replace(THUMBS, require="superior"), ERRORS)
    last = replace(RAMP, step=2, stage=3, share=0.5)
    assert decided(assess(safe=9.0), rules=rules).outcome == "advance"
    lacking = decided(assess(safe=9.0), last, rules=rules)
    assert (lacking.reason, lacking.metric) == ("evidence", "thumbs_up")
    assert lacking.message == "thumbs_up is not yet shown to be better than stable's, as 100% needs (E unknown of 20)"
    for log_e, outcome in ((THRESHOLD, "advance"), (THRESHOLD - 0.1, "hold"), (math.nan, "hold")):
        goal = figures(THUMBS, safe=9.0, superior_log_e=log_e)
        assert decided(assess(metrics=(goal, figures(ERRORS, safe=9.0))), last, rules=rules).outcome == outcome


def test_an_approval_may_come_before_the_evidence() -> None:
    gated = terms(stages=(StageRule(0.01), StageRule(0.1, approve=True), StageRule(0.5), StageRule(1.0, approve=True)))
    approved = obey(gated, RAMP, "approve", "looks good", NOW_MS)
    assert (approved.outcome, approved.reason, approved.status.approved_step) == ("approve", "command", 1)
    assert approved.message == "approved the step to 10%: looks good"
    assert decide(gated, approved.status, assess(), LATE_MS).reason == "evidence"
    advanced = decide(gated, approved.status, assess(safe=9.0), LATE_MS)
    assert advanced.status.share == 0.1
    second = obey(gated, approved.status, "approve", "", NOW_MS)
    assert second.status.approved_step == 3
    with pytest.raises(ConflictError, match="no step ahead of this rollout waits for approval"):
        obey(gated, second.status, "approve", "", NOW_MS)


# --- what stops a rollout ---


def test_harm_rolls_back_and_names_metric_estimate_interval_and_lines() -> None:
    decision = decided(assess(metrics=(figures(THUMBS, harm=HARM + 0.1), figures(ERRORS, harm=HARM + 2))))
    assert (decision.outcome, decision.reason, decision.metric) == ("roll_back", "harm", "error_rate")
    assert decision.message == (
        "error_rate is beyond its harm line: ×2.00 (95% interval ×1.40 to ×2.90; harm line ×1.25, margin ×1.50),"
        " E 443 of 60"
    )
    assert decision.status == replace(RAMP, state="rolled_back", share=0.0, since_ms=LATE_MS)
    assert is_over(decision.status)
    thumbs = decided(assess(metrics=(figures(THUMBS, harm=HARM),)))
    assert "-10.0 pp (95% interval -15.0 to -4.0 pp; harm line -2.5 pp, margin -5.0 pp)" in thumbs.message


def test_harm_acts_at_once_whatever_the_dwell() -> None:
    assert decided(assess(harm=HARM, stage_units=(1, 1)), now_ms=NOW_MS).outcome == "roll_back"


def test_the_sample_ratio_freezes_the_share() -> None:
    decision = decided(assess(sample_ratio_log_e=SAMPLE_RATIO_ALARM))
    assert (decision.outcome, decision.reason) == ("pause", "sample_ratio")
    assert "E 1,000 of 1,000; this stage has 900 units of stable and 60 of the candidate" in decision.message
    after = decision.status
    assert (after.state, after.share, after.paused_state, after.paused_since_ms) == ("paused", 0.01, "ramp", LATE_MS)


@pytest.mark.parametrize(
    ("switch", "changes", "what"),
    [
        (KillSwitch(safety_events=3), {"safety_events": 3}, "3 of the candidate's answers were refused or filtered"),
        (
            KillSwitch(failures=5, of_first=10),
            {"first_failures": 6},
            "6 of the candidate's first 10 interactions failed",
        ),
    ],
)
@pytest.mark.parametrize("status", [RAMP, HOLDBACK, KEPT, paused(RAMP)])
def test_the_kill_switch_acts_in_every_serving_state_and_is_labelled(
    switch: KillSwitch, changes: dict[str, int], what: str, status: Status
) -> None:
    decision = decided(assess(**changes), status, kill_switch=switch)
    assert (decision.outcome, decision.reason, decision.status.state) == ("roll_back", "kill_switch", "rolled_back")
    assert decision.message.startswith(f"kill switch, the hard limit beside the guarantee: {what}, the limit is")
    assert decision.status.paused_since_ms is None
    fewer = {name: count - 2 for name, count in changes.items()}
    fewest = {name: count - (name == "first_failures") for name, count in changes.items()}
    assert decided(assess(**fewest), status, kill_switch=switch).reason == "kill_switch"  # at the limit itself
    assert decided(assess(**fewer), status, kill_switch=switch).reason != "kill_switch"
    assert decided(assess(**changes), status).reason != "kill_switch"  # off unless asked for


@pytest.mark.parametrize("status", [RAMP, SHADOW, replace(RAMP, step=2, stage=3, share=0.5)])
def test_a_rollout_that_takes_too_long_is_inconclusive(status: Status) -> None:
    few = assess(stage_interactions=(900, 3))
    assert decided(few, status, NOW_MS + DAY_MS, shadow=ShadowRule()).outcome == "hold"
    decision = decided(few, status, NOW_MS + DAY_MS + 1, shadow=ShadowRule())
    assert (decision.outcome, decision.reason) == ("inconclusive", "max_duration")
    assert (decision.status.state, decision.status.share) == ("inconclusive", 0.0)
    assert decision.message == "no decision within 24 h, pauses not counted: all traffic is back on stable"
    assert is_over(decision.status)


def test_pauses_do_not_count_as_time() -> None:
    rested = replace(RAMP, paused_ms=2 * DAY_MS)
    assert decided(assess(), rested, NOW_MS + 3 * DAY_MS).outcome == "hold"
    assert decided(assess(), rested, NOW_MS + 3 * DAY_MS + 1).outcome == "inconclusive"


def test_an_inconclusive_rollout_may_keep_its_share_until_a_person_decides() -> None:
    keep: dict[str, Any] = {"on_inconclusive": "keep"}
    decision = decided(assess(), RAMP, NOW_MS + 2 * DAY_MS, **keep)
    assert (decision.outcome, decision.status) == ("inconclusive", KEPT)
    assert not is_over(KEPT)
    for assessment in (assess(), assess(harm=HARM), assess(safe=9.0), assess(sample_ratio_log_e=99.0)):
        held = decided(assessment, KEPT, NOW_MS + 3 * DAY_MS, **keep)
        assert (held.outcome, held.reason, held.status) == ("hold", "max_duration", KEPT)
        assert held.message == "inconclusive at 1%, kept until a person decides. Possible: promote, rollback"
    # With nothing on the candidate there is nothing to keep.
    nothing = decided(assess(), SHADOW, NOW_MS + 2 * DAY_MS, **keep)
    assert is_over(nothing.status)
    assert nothing.message.endswith("all traffic is back on stable")


def test_a_change_at_the_provider_opens_a_stratum() -> None:
    decision = decided(assess(safe=9.0, provider_changed=True))
    assert (decision.outcome, decision.reason) == ("hold", "provider_changed")
    assert decision.status == replace(RAMP, stage=2)
    assert decided(assess(provider_changed=True), HOLDBACK).status == replace(HOLDBACK, stage=6)
    assert decided(assess(provider_changed=True), SHADOW, NOW_MS).status == SHADOW  # one stage 0, whatever happens
    assert decided(assess(provider_changed=True), paused(RAMP)).status == paused(RAMP)


def test_the_checks_come_in_their_order() -> None:
    """All alarms at once; then without the first, and so on."""
    alarms: list[tuple[str, dict[str, Any]]] = [
        ("kill_switch", {"safety_events": 0}),
        ("sample_ratio", {"sample_ratio_log_e": 0.0}),
        ("harm", {"metrics": assess(safe=9.0).metrics}),
    ]
    policy: dict[str, Any] = {"kill_switch": KillSwitch(safety_events=1)}
    now_ms = NOW_MS + 2 * DAY_MS
    given = assess(harm=HARM, safe=9.0, sample_ratio_log_e=99.0, safety_events=1, provider_changed=True)
    for reason, without in alarms:
        assert decided(given, RAMP, now_ms, **policy).reason == reason
        given = replace(given, **without)
    assert decided(given, RAMP, now_ms).reason == "max_duration"
    assert decided(given, RAMP, LATE_MS).reason == "provider_changed"
    given = replace(given, provider_changed=False)
    assert decided(given, RAMP, NOW_MS).reason == "dwell"
    assert decided(replace(given, stage_units=(9, 9)), RAMP, LATE_MS).reason == "min_units"
    assert decided(given, RAMP, LATE_MS).reason == "safe"


# --- baseline, shadow, holdback ---


def test_a_rollout_begins_with_its_first_stage_ungated() -> None:
    assert begin(terms(), NOW_MS) == RAMP
    assert begin(terms(shadow=ShadowRule()), NOW_MS) == SHADOW
    assert begin(replace(terms(), baseline=Baseline()), NOW_MS) == BASELINE


def test_the_baseline_says_what_it_lacks() -> None:
    poor = Baseline(600, {"thumbs_up": MetricBaseline(120, 0.7), "error_rate": MetricBaseline(600, 0.01)})
    lacking = replace(terms(), baseline=poor)
    assert baseline_gaps(lacking) == (
        BaselineGap("thumbs_up", 120, 200, "ratings"),
        BaselineGap("error_rate", 600, 1000, "interactions"),
    )
    decision = decide(lacking, BASELINE, Assessment(), LATE_MS)
    assert (decision.outcome, decision.reason, decision.status) == ("hold", "baseline", BASELINE)
    assert "thumbs_up has 120 of 200 ratings, error_rate has 600 of 1,000 interactions" in decision.message
    assert decision.metric is None
    declared = {"thumbs_up": MetricBaseline(0, 0.7), "error_rate": MetricBaseline(0, 0.01)}
    assert baseline_gaps(replace(terms(), baseline=Baseline(0, declared))) == ()


def test_rates_per_unit_need_as_many_interactions_not_units() -> None:
    rule = replace(ERRORS, metric="report_rate")
    known = {"report_rate": MetricBaseline(150, 0.01)}
    assert baseline_gaps(replace(terms(rules=(rule,)), baseline=Baseline(BASELINE_INTERACTIONS, known))) == ()
    assert baseline_gaps(replace(terms(rules=(rule,)), baseline=Baseline(BASELINE_INTERACTIONS, {}))) == (
        BaselineGap("report_rate", 0, 1000, "interactions"),
    )


def test_a_metric_that_stable_never_shows_is_told_within_a_dwell() -> None:
    unseen = replace(terms(), baseline=Baseline(5000, {"error_rate": MetricBaseline(5000, 0.01)}))
    assert decide(unseen, BASELINE, Assessment(), NOW_MS).reason == "baseline"
    decision = decide(unseen, BASELINE, Assessment(), LATE_MS)
    assert (decision.reason, decision.metric) == ("no_data", "thumbs_up")
    assert "POST /v1/feedback" in decision.message
    for interactions, reason in ((1000, "no_data"), (999, "baseline")):
        known = {"error_rate": MetricBaseline(1000, 0.01)}
        early = decide(replace(terms(), baseline=Baseline(interactions, known)), BASELINE, Assessment(), LATE_MS)
        assert (early.reason, early.metric) == (reason, "thumbs_up")


@pytest.mark.parametrize(
    ("shadow", "state", "stage", "share", "onto"),
    [(ShadowRule(), "shadow", 0, 0.0, "the shadow stage"), (None, "ramp", 1, 0.01, "1%")],
)
def test_a_complete_baseline_starts_the_clock(
    shadow: ShadowRule | None, state: str, stage: int, share: float, onto: str
) -> None:
    waited = replace(BASELINE, paused_ms=7)
    decision = decide(terms(shadow=shadow), waited, Assessment(), NOW_MS + 30 * DAY_MS)
    after = decision.status
    assert (decision.outcome, decision.reason, after.state, after.stage) == ("advance", "baseline", state, stage)
    assert (after.share, after.started_ms, after.paused_ms) == (share, NOW_MS + 30 * DAY_MS, 0)
    assert decision.message == f"the baseline is complete: on to {onto}"


def test_the_shadow_stage_is_left_after_enough_mirrored_answers() -> None:
    shadow = ShadowRule(interactions=80, budget_usd=5)
    assert decided(assess(), SHADOW, NOW_MS, shadow=shadow).reason == "dwell"
    held = decided(assess(), SHADOW, shadow=shadow)
    assert (held.reason, held.message) == (
        "shadow",
        "60 of 80 mirrored answers; mirroring ends at $5, a person may advance",
    )
    left = decided(assess(stage_interactions=(900, 80)), SHADOW, shadow=shadow)
    assert (left.outcome, left.reason) == ("advance", "shadow")
    assert left.status == replace(RAMP, since_ms=LATE_MS)


def test_an_approval_can_be_asked_for_between_shadow_and_ramp() -> None:
    gated: dict[str, Any] = {"shadow": ShadowRule(), "stages": (StageRule(0.01, approve=True), StageRule(1.0))}
    held = decided(assess(), SHADOW, **gated)
    assert (held.reason, held.status) == ("approval", SHADOW)
    approved = obey(terms(**gated), SHADOW, "approve", "", NOW_MS)
    assert decided(assess(), approved.status, **gated).status.share == 0.01


def test_harm_in_the_shadow_stage_pauses_and_a_person_may_go_on() -> None:
    decision = decided(assess(harm=HARM), SHADOW, shadow=ShadowRule())
    assert (decision.outcome, decision.reason, decision.metric) == ("pause", "shadow", "thumbs_up")
    assert decision.status.paused_state == "shadow"
    resumed = obey(terms(shadow=ShadowRule()), decision.status, "resume", "", LATE_MS).status
    assert (resumed.state, resumed.stage) == ("shadow", 0)
    assert decided(assess(harm=HARM), resumed, shadow=ShadowRule()).outcome == "advance"
    # Who had paused it for another reason has excused nothing.
    other = obey(terms(), paused(SHADOW), "resume", "", LATE_MS).status
    assert decided(assess(harm=HARM), other, shadow=ShadowRule()).outcome == "pause"


def test_the_kill_switch_pauses_in_the_shadow_stage_where_nobody_sees_the_answers() -> None:
    policy: dict[str, Any] = {"kill_switch": KillSwitch(safety_events=3), "shadow": ShadowRule()}
    given = assess(safety_events=3)
    decision = decided(given, SHADOW, NOW_MS, **policy)
    assert (decision.outcome, decision.reason, decision.status.paused_state) == ("pause", "kill_switch", "shadow")
    assert decided(given, decision.status, **policy).reason == "paused"
    resumed = obey(terms(**policy), decision.status, "resume", "", NOW_MS).status
    assert decided(given, resumed, **policy).status.state == "ramp"


def test_the_shadow_stage_knows_no_sample_ratio() -> None:
    assert decided(assess(sample_ratio_log_e=99.0), SHADOW, shadow=ShadowRule()).outcome == "advance"


def test_the_holdback_ends_in_promotion_or_back_at_stable() -> None:
    waiting = decided(assess(), HOLDBACK, NOW_MS + 90 * MINUTE_MS)
    assert (waiting.reason, waiting.message) == (
        "holdback",
        "2% of the units stay on the old release: 1 h 30 min of 24 h",
    )
    done = decided(Assessment(), HOLDBACK, NOW_MS + DAY_MS)
    assert (done.outcome, done.reason, done.status.state, done.status.share) == ("promote", "holdback", "promoted", 1.0)
    harmed = decided(assess(harm=HARM), HOLDBACK, NOW_MS + DAY_MS)
    assert (harmed.outcome, harmed.status.state) == ("roll_back", "rolled_back")
    assert decided(assess(), HOLDBACK, NOW_MS + 20 * HOUR_MS, max_duration_seconds=3600.0).reason == "holdback"
    alarmed = decided(assess(sample_ratio_log_e=99.0), HOLDBACK)
    assert (alarmed.outcome, alarmed.status.paused_state) == ("pause", "holdback")


def test_every_message_is_one_line() -> None:
    for reason, (assessment, now_ms, changes, _) in HOLDS.items():
        assert re.fullmatch(r"[^\n]+", decided(assessment, RAMP, now_ms, **changes).message), reason


@pytest.mark.parametrize(
    ("assessment", "status", "told"),
    [
        (assess(harm=HARM), RAMP, True),
        (assess(harm=HARM), SHADOW, True),
        (assess(), HOLDBACK, True),
        (assess(safe=9.0), RAMP, False),
        (assess(), RAMP, False),
        (assess(sample_ratio_log_e=SAMPLE_RATIO_ALARM), RAMP, False),
    ],
)
def test_a_verdict_says_what_it_can_come_from(assessment: Assessment, status: Status, told: bool) -> None:
    """Steps and holds are none, and when units do not arrive as they were sent no release is at fault."""
    difference = Difference(("index",), "handbook@3", "handbook@4")
    decision = decide(replace(terms(), difference=difference), status, assessment, NOW_MS + DAY_MS)
    plain = decide(terms(), status, assessment, NOW_MS + DAY_MS)
    cause = "; the releases differ in the index version only: handbook@3 -> handbook@4"
    assert decision == replace(plain, message=plain.message + (cause if told else ""))
