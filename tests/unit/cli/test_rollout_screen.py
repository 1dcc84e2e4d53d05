"""What a rollout looks like in a terminal: readable at 80 columns, true in every state."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from headway.cli.rollout_screen import Reading, Screen, list_events
from headway.cli.rollout_terms import draw_terms
from headway.clock import utc
from headway.domain.assessment import SafeFigure
from headway.domain.rollout import State
from headway.storage.rollouts import Figure
from tests.unit.cli.readings import (
    DECISIONS,
    NOW_MS,
    POLICY,
    RULES,
    STATUS,
    assessment,
    decision,
    figures,
    reading,
    rollout,
)


def drawn(screen: Any, width: int = 80, height: int = 60) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False, record=True)
    console.print(screen)
    return console.export_text()


def standing(state: State, *, changes: dict[str, Any] | None = None, **more: Any) -> Reading:
    """A reading of a rollout in a state; ``changes`` are those of its assessment."""
    status = replace(STATUS, state=state, **more)
    found = Figure(1140, utc(NOW_MS), status, assessment(**(changes or {})))
    ended = utc(NOW_MS) if state in {"rolled_back", "promoted"} else None
    shown = rollout(state=state, status=status, share=status.share, stage=status.stage, ended_at=ended)
    return reading(rollout=shown, figure=found)


def row(text: str, name: str, offset: int = 0) -> str:
    lines = text.splitlines()
    return lines[next(index for index, line in enumerate(lines) if line.startswith((name, f"★ {name}"))) + offset]


@pytest.mark.parametrize("width", [80, 100, 132, 200])
@pytest.mark.parametrize("height", [24, 36, 60])
def test_it_fits_the_terminal(width: int, height: int) -> None:
    lines = drawn(Screen(reading()), width, height).splitlines()
    assert len(lines) <= height - 1
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for rule in RULES:
        assert rule.metric in text
    assert "-1.3 pp [-4.1, +1.6]" in text
    assert "safe ━╌╌╌╌╌╌╌ 2.1 of 20" in text
    assert "waits for 18 min of dwell, evidence on thumbs up, latency p95" in " ".join(text.split())


def test_detail_gives_way_in_a_low_terminal() -> None:
    assert "n 1,204 / 391" in drawn(Screen(reading()), 80, 60)
    assert "n 1,204 / 391" not in drawn(Screen(reading()), 80, 24)
    assert "harm ━" not in drawn(Screen(reading()), 80, 16)
    assert "n 1,204 / 391" in drawn(Screen(reading(), whole=True), 80, 10)


def test_the_head_says_where_the_rollout_stands() -> None:
    text = drawn(Screen(reading()))
    assert row(text, "support").endswith(" ramp ")
    assert "r-1f2e3d4c 75% ━" in text
    assert "━ 25% r-9a8b7c6d" in text
    assert "● 5% ━━━━━━━ ◉ 25% ━━╌╌╌╌╌ ○ 50% ╌╌╌╌╌╌╌ ◇ 100%" in text
    assert "dwell ━━━━╌╌╌╌╌╌ 12 min of 30 min" in text
    assert "conversations ━━━━━━━━━━ 123 of 50" in text
    assert "restart" not in text
    assert "restart 2" in drawn(Screen(reading(rollout=rollout(restarts=2))))


def test_the_gauge_has_worse_to_the_left() -> None:
    text = drawn(Screen(reading()))
    thumbs, cost = row(text, "thumbs_up")[24:52], row(text, "cost")[24:52]
    assert thumbs == "───────┃━━╎━●━│━━───────────"
    assert cost.index("●") > cost.index("│"), "cheaper is better"
    assert row(text, "fallback_rate")[24:52] == "───────┃──╎───│─────────────", "nothing to draw without an estimate"
    assert "no events" in row(text, "fallback_rate")
    far = assessment(metrics=(figures("thumbs_up", estimate=-0.4, lower=-0.5, upper=-0.3),))
    beyond = drawn(Screen(reading(figure=Figure(1, utc(NOW_MS), STATUS, far))))
    assert row(beyond, "thumbs_up")[24:52] == "◀──────┃──╎───│─────────────"


def test_evidence_is_drawn_on_the_log_scale_and_full_only_when_it_is_there() -> None:
    def meters(**changes: Any) -> str:
        one = assessment(metrics=(figures("thumbs_up", **changes),))
        return row(drawn(Screen(reading(figure=Figure(1, utc(NOW_MS), STATUS, one)))), "thumbs_up", 1)

    assert "harm ━━━━━╌╌╌╌╌ 10 of 100" in meters(harm_log_e=math.log(10))
    assert "harm ━━━━━━━━━╌ 99 of 100" in meters(harm_log_e=math.log(99))
    assert "harm ━━━━━━━━━━ 101 of 100" in meters(harm_log_e=math.log(101))
    assert "harm ╌╌╌╌╌╌╌╌╌╌ <0.01 of 100" in meters(harm_log_e=-9.0)
    assert "safe needs no evidence" in meters(safe=(SafeFigure(0.5, -1.0, vacuous=True),))
    assert "better ━━━━╌╌╌╌ 4.5 of 20" in meters(safe=(SafeFigure(1.0, 9.0),), superior_log_e=math.log(4.5))


def test_missing_data_is_said() -> None:
    silent = figures("thumbs_up", candidate_observations=0, estimate=None, lower=None, upper=None)
    found = assessment(metrics=(silent, *(figures(rule.metric) for rule in RULES[1:])))
    text = drawn(Screen(reading(figure=Figure(1, utc(NOW_MS), STATUS, found))))
    assert "no data" in row(text, "thumbs_up")
    assert "data on thumbs up" in text


def test_before_the_first_figures() -> None:
    text = drawn(Screen(reading(figure=None, pace=None, decisions=())))
    assert "harm" not in text
    assert "Decisions" not in text
    assert "conversations ╌╌╌╌╌╌╌╌╌╌ 0 of 50" in text


def test_baseline_and_shadow() -> None:
    text = drawn(Screen(standing("baseline", step=-1, stage=0, share=0.0)))
    assert "collecting the baseline" in text
    assert "next: shadow waits for 0 of 200 ratings of stable for thumbs up" in text
    text = drawn(Screen(standing("shadow", step=-1, stage=0, share=0.0, changes={"stage_interactions": (200, 20)})))
    assert "◉ shadow" in text
    assert "mirrored ━━━━╌╌╌╌╌╌ 20 of 50" in text


def test_a_pause_names_its_reason_and_a_suspicious_sample_ratio_shows() -> None:
    paused = {"paused_since_ms": NOW_MS - 300_000, "paused_state": "ramp", "paused_reason": "sample_ratio"}
    text = drawn(Screen(standing("paused", changes={"sample_ratio_log_e": 7.5}, **paused)))
    assert "paused for 5 min (sample ratio)" in text
    assert "units may not arrive at the share set: E 1,808 of 1,000" in text
    assert "waits for a person" in text
    assert "$ headway rollout resume support" in text


def test_a_step_that_waits_for_approval_says_how_to_give_it() -> None:
    ready = tuple(figures(rule.metric, safe=(SafeFigure(1.0, 9.0),)) for rule in RULES)
    at_half = {"step": 3, "share": 0.5, "since_ms": NOW_MS - 3_600_000}
    text = drawn(Screen(standing("ramp", changes={"metrics": ready}, **at_half)))
    assert "next: 100% waits for approval" in text
    assert "$ headway rollout approve support" in text
    assert "$" not in drawn(Screen(standing("ramp", changes={"metrics": ready}, approved_step=4, **at_half))).replace(
        "$0", ""
    )


def test_holdback_and_ends() -> None:
    metrics = tuple(figures(rule.metric, safe=(), interactions_to_go=None) for rule in RULES)
    text = drawn(
        Screen(standing("holdback", step=4, share=0.98, since_ms=NOW_MS - 3_600_000, changes={"metrics": metrics}))
    )
    assert "holdback ╌╌╌╌╌╌╌╌╌╌ 1 h of 24 h" in text
    assert "r-1f2e3d4c 2% " in text
    assert "next: promoted waits for 23 h of holdback" in text
    text = drawn(Screen(standing("rolled_back", share=0.0)))
    assert "over after 1 h 35 min" in text
    assert "to go" not in text
    assert "waits for" not in text
    assert "● 100%" in drawn(Screen(standing("promoted", step=4, share=1.0)))


def test_a_manual_rollout_shows_its_shares() -> None:
    shown = reading(rollout=rollout(policy="manual", state="running", terms=None, status=None), figure=None)
    text = drawn(Screen(shown))
    assert "set by hand" in text
    assert "ann: a kinder prompt" in text
    assert [event.number for event in list_events(shown)] == [3, 2, 1]
    assert "Policy" not in "".join(drawn(part) for part in draw_terms(shown))


def test_people_are_named_and_what_they_wrote_does_not_steer_the_terminal() -> None:
    told = decision(
        8, "pause", "command", "paused at 25%: \x1b[2J[red]odd[/red]", 0, command="pause", author="eve\x1b[1m"
    )
    text = drawn(Screen(reading(decisions=(told, *DECISIONS))))
    assert "\x1b" not in text
    assert "[red]odd[/red]" in text
    assert "eve" in text


def test_only_the_newest_decision_is_written_in_full_unless_all_is_wanted() -> None:
    long = decision(8, "hold", "evidence", "word " * 60, 0)
    assert drawn(Screen(reading(decisions=(long, *DECISIONS)))).count("word") == 60
    assert drawn(Screen(reading(decisions=(*DECISIONS, long)))).count("word") < 20
    assert drawn(Screen(reading(decisions=(*DECISIONS, long)), whole=True)).count("word") == 60


def test_the_terms_in_words() -> None:
    text = "".join(drawn(part, width=120) for part in draw_terms(reading()))
    assert "goal" in row(text, "thumbs_up")
    assert row(text, "thumbs_up").split()[2:6] == ["-5.0", "pp", "-2.5", "pp"]
    assert row(text, "cost").split()[2:4] == ["×1.10", "×1.05"]
    assert "no data" in row(text, "cost")
    assert "2% for 24 h, alpha 0.01" in text
    assert f"sample ratio      E {math.exp(0.2):.1f}, alarm at 1,000" in text
    assert "a kinder prompt" in text
    assert POLICY.name in drawn(Screen(reading()))


def test_parts_of_alpha_have_no_more_digits_than_count() -> None:
    thirds = replace(POLICY, rules=tuple(replace(rule, weight=1 / 3) for rule in RULES))
    terms = reading().rollout.terms
    assert terms is not None
    shown = reading(rollout=rollout(terms=replace(terms, policy=thirds)))
    text = "".join(drawn(part, width=120) for part in draw_terms(shown))
    assert "33.3%" in row(text, "cost")
    assert "33.33" not in text
