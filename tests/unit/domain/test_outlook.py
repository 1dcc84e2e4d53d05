"""What a rollout waits for agrees with what `decide` waits for."""

import math

from msgspec.structs import replace

from headway.domain.assessment import Assessment, MetricFigures, SafeFigure
from headway.domain.metric import BUILT_IN_FEEDBACK
from headway.domain.outlook import Outlook, look_ahead
from headway.domain.policy import HoldbackRule, MetricRule, Policy, ShadowRule, StageRule
from headway.domain.recording import Baseline, MetricBaseline, Terms
from headway.domain.rollout import Status, decide

NOW_MS = 10_000_000
POLICY = Policy(
    "careful",
    (StageRule(0.05), StageRule(0.5), StageRule(1.0, approve=True)),
    (
        MetricRule("thumbs_up", "goal", "two_sample", "points", "higher", 0.05, 0.025, 0.5),
        MetricRule("error_rate", "guardrail", "event_ratio", "ratio", "lower", 1.5, 1.25, 0.5),
    ),
)
TERMS = Terms(
    POLICY,
    "conversation",
    {"thumbs_up": BUILT_IN_FEEDBACK["thumbs_up"]},
    Baseline(5000, {"thumbs_up": MetricBaseline(500, 0.7), "error_rate": MetricBaseline(5000, 0.01)}),
)
RAMP = Status("ramp", 0, 1, 0.05, since_ms=NOW_MS - 3_600_000, started_ms=NOW_MS - 3_600_000)


def figures(
    metric: str, safe_e: float, *, share: float = 0.5, to_go: float | None = None, n: int = 900
) -> MetricFigures:
    return MetricFigures(
        metric=metric,
        role="goal",
        stable_observations=n,
        candidate_observations=n,
        stable_level=0.5,
        candidate_level=0.5,
        estimate=0.0,
        lower=None,
        upper=None,
        margin=-0.05,
        harm=-0.025,
        harm_log_e=0.0,
        harm_threshold=4.0,
        safe=(SafeFigure(share, math.log(safe_e)),),
        safe_threshold=math.log(20),
        interactions_to_go=to_go,
    )


def assessed(*metrics: MetricFigures, units: int = 100) -> Assessment:
    return Assessment(metrics, stage_units=(1900, units), stage_interactions=(1900, units))


READY = assessed(figures("thumbs_up", 30.0), figures("error_rate", 30.0))


def ahead(found: Assessment = READY, status: Status = RAMP, terms: Terms = TERMS, pace: float | None = 2.0) -> Outlook:
    """What is ahead; where nothing is missing, `decide` must take the step, and else hold."""
    outlook = look_ahead(terms, status, found, NOW_MS, pace)
    decision = decide(terms, status, found, NOW_MS)
    if outlook.share is not None:
        assert (decision.outcome == "hold") == bool(outlook.missing), decision
    return replace(outlook, progress=round(outlook.progress, 3))


def test_nothing_is_missing() -> None:
    assert ahead() == Outlook(0.5, (), 0.0, 1.0)


def test_dwell_units_evidence_and_data() -> None:
    fresh = replace(RAMP, since_ms=NOW_MS - 600_000)
    assert ahead(status=fresh) == Outlook(0.5, ("20 min of dwell",), 1200.0, 0.333)
    few = assessed(*READY.metrics, units=20)
    assert ahead(few) == Outlook(0.5, ("20 of 50 conversations of the candidate",), None, 0.4)
    lacking = assessed(figures("thumbs_up", math.sqrt(20), to_go=6000.0), figures("error_rate", 30.0))
    assert ahead(lacking) == Outlook(0.5, ("evidence on thumbs up",), 3000.0, 0.5)
    assert ahead(lacking, pace=None).seconds is None
    both = assessed(figures("thumbs_up", 2.0, to_go=6000.0), figures("error_rate", 3.0, to_go=60_000.0))
    assert ahead(both).missing == ("evidence on thumbs up, error rate",)
    assert ahead(both).seconds == 30_000
    silent = assessed(figures("thumbs_up", 30.0, n=0), figures("error_rate", 30.0))
    assert ahead(silent) == Outlook(0.5, ("data on thumbs up",), None, 0.0)


def test_approval() -> None:
    last = replace(RAMP, step=1, share=0.5)
    ready = assessed(figures("thumbs_up", 30.0, share=1.0), figures("error_rate", 30.0, share=1.0))
    assert ahead(ready, last) == Outlook(1.0, ("approval",), None, 1.0)
    assert ahead(ready, replace(last, approved_step=2)).missing == ()


def test_a_superior_goal_needs_more_for_everything() -> None:
    rules = (replace(POLICY.rules[0], require="superior"), POLICY.rules[1])
    terms = replace(TERMS, policy=replace(POLICY, rules=rules))
    status = replace(RAMP, step=1, share=0.5, approved_step=2)
    goal = replace(figures("thumbs_up", 30.0, share=1.0), superior_log_e=math.log(math.sqrt(20)))
    found = ahead(assessed(goal, figures("error_rate", 30.0, share=1.0)), status, terms)
    assert (found.missing, found.progress) == (("evidence on thumbs up",), 0.5)


def test_baseline_and_shadow() -> None:
    empty = replace(TERMS, baseline=Baseline(40, {"error_rate": MetricBaseline(40, 0.0)}))
    status = Status("baseline", -1, 0, 0.0, NOW_MS, NOW_MS)
    found = ahead(Assessment(), status, empty)
    assert found.missing == (
        "0 of 200 ratings of stable for thumbs up",
        "40 of 1,000 interactions of stable for error rate",
    )
    assert found.share == 0.05
    shadow = replace(TERMS, policy=replace(POLICY, shadow=ShadowRule(interactions=200)))
    status = Status("shadow", -1, 0, 0.0, NOW_MS - 3_600_000, NOW_MS)
    assert ahead(assessed(units=50), status, shadow) == Outlook(0.05, ("50 of 200 mirrored answers",), None, 0.25)
    assert ahead(assessed(units=200), status, shadow).missing == ()


def test_holdback_and_ends() -> None:
    terms = replace(TERMS, policy=replace(POLICY, holdback=HoldbackRule(seconds=7200.0)))
    status = replace(RAMP, state="holdback", step=2, share=0.98)
    assert ahead(status=status, terms=terms) == Outlook(1.0, ("1 h of holdback",), 3600.0, 0.5)
    assert ahead(status=replace(status, since_ms=0), terms=terms).missing == ()
    for state in ("promoted", "rolled_back"):
        assert ahead(status=replace(RAMP, state=state, share=0.0)) == Outlook()
    for state in ("paused", "inconclusive"):
        found = ahead(status=replace(RAMP, state=state, paused_state="ramp"))
        assert "a person" in found.missing[0]
        assert found.share is None
