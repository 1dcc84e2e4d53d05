"""Forecasts against simulation through the real books and decisions: medians within a factor of two.

Reduced sizes by default, more scenarios and runs with HEADWAY_PROOF=1. Seeds are fixed; -s shows the figures.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from headway.domain.recording import Terms
from headway.rollouts.forecasting import expected_roll_back, forecast
from headway.rollouts.simulation.catalogue import SCENARIOS
from headway.rollouts.simulation.history import agree_terms
from headway.rollouts.simulation.run import play
from headway.rollouts.simulation.scenarios import Scenario
from headway.storage.baselines import Traffic

REDUCED = ("identical", "thumbs-10", "errors-x4")
LOSSES: Mapping[str, Mapping[str, float]] = {
    "identical": {},
    "thumbs-10": {"thumbs_up": 0.10},
    "errors-x4": {"error_rate": 3.0},
    "errors-x10": {"error_rate": 9.0},
    "refusals-x3": {"refusal_rate": 2.0},
    "conversations": {},
    "p95+25": {"latency_p95": 0.25},
    "p95+100": {"latency_p95": 1.0},
    "cost+10": {"cost": 0.10},
    "silent": {"feedback_rate": 1 / 0.7 - 1},
}


def expected_traffic(scenario: Scenario) -> Traffic:
    """What a survey of the stable release would tell of the scenario's traffic."""
    traffic, rated = scenario.traffic, scenario.stable.feedback
    stays = 1 - 1 / traffic.per_unit  # a unit comes back with this probability, again and again
    silent = (1 - stays) * (1 - rated) / (1 - stays * (1 - rated))
    per_hour = float(traffic.per_hour)
    return Traffic(per_hour, per_hour / traffic.per_unit, ratings_per_unit={"thumbs_up": 1 - silent})


def foretell(scenario: Scenario, terms: Terms, losses: Mapping[str, float]) -> float:
    """Interactions until an equal candidate is let through, or a worse one is rolled back."""
    traffic = expected_traffic(scenario)
    if losses:
        back = expected_roll_back(terms, traffic, losses)
        assert back is not None
        assert back.metric in losses
        return back.seconds / 3600 * traffic.interactions_per_hour
    seconds = forecast(terms, traffic).seconds
    assert seconds is not None
    return seconds / 3600 * traffic.interactions_per_hour


def test_simulated_medians_are_near_the_forecast(proof: bool) -> None:
    for name in LOSSES if proof else REDUCED:
        scenario, losses = SCENARIOS[name], LOSSES[name]
        terms = agree_terms(scenario)
        foretold = foretell(scenario, terms, losses)
        verdict = "rolled_back" if losses else "promoted"
        runs = [play(scenario, terms, (7, number)) for number in range(31 if proof else 3)]
        lengths = [run.interactions for run in runs if run.verdict == verdict]
        median = statistics.median(lengths)
        print(f"{name}: foretold {foretold:,.0f}, simulated {median:,.0f} interactions; {len(lengths)} of {len(runs)}")
        assert len(lengths) >= 0.85 * len(runs)
        assert 0.5 <= foretold / median <= 2, name
