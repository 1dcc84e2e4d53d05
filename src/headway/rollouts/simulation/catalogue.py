"""The scenarios that come with Headway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import NormalDist
from types import MappingProxyType

import msgspec

from headway.domain.policy import Policy
from headway.errors import NotFoundError
from headway.rollouts.simulation.scenarios import (
    LATENCY_SIGMA,
    Raters,
    Release,
    Scenario,
    Traffic,
    Truth,
    eight_metrics,
    four_metrics,
)


def slower(times: float) -> float:
    """Give the factor on all latencies that makes so many times as many calls slow.

    Example:
        >>> round(slower(2.03), 2)
        1.25
    """
    normal = NormalDist()
    return math.exp(LATENCY_SIGMA * (normal.inv_cdf(0.95) - normal.inv_cdf(1 - 0.05 * times)))


_FOUR, _EIGHT = four_metrics(), eight_metrics()
_SETTLING = msgspec.structs.replace(_FOUR, settle_seconds=60.0)
_CONVERSATIONS = Traffic(unit="conversation", per_unit=3.0, per_tick=500)
_USERS = Traffic(unit="user", per_unit=20.0, correlation=0.2, per_tick=500)
_TROUBLED = replace(_USERS, troubled=0.05)
_DRIFTING = Traffic(hard=(0.1, 0.7), per_tick=500)
_LATE = Raters(delay_seconds=7200.0, delay_sigma=1.0, quick_dislike=0.25)
_REVISING = Raters(slips=0.1, candidate_slips=3.0, changes=0.1)


def _four(name: str, about: str, truth: Truth, **candidate: float) -> Scenario:
    return Scenario(name, about, truth, _FOUR, candidate=Release(**candidate))


def _eight(name: str, about: str, truth: Truth, **candidate: float) -> Scenario:
    return Scenario(name, about, truth, _EIGHT, candidate=Release(**candidate), traffic=_CONVERSATIONS)


def _odd(name: str, about: str, truth: Truth, traffic: Traffic, **candidate: float) -> Scenario:
    return Scenario(name, about, truth, _FOUR, candidate=Release(**candidate), traffic=traffic)


_LISTED = (
    _four("identical", "the candidate is the stable release", "within"),
    _four("better", "3 points more thumbs up", "within", thumbs_up=0.73),
    _four("thumbs-2", "2 points less thumbs up, inside the harm line", "within", thumbs_up=0.68),
    _four("thumbs-5", "5 points less: at the margin", "beyond", thumbs_up=0.65),
    _four("thumbs-10", "10 points less", "beyond", thumbs_up=0.60),
    _four("errors-x2", "twice the errors: at the margin", "beyond", errors=0.01),
    _four("errors-x4", "four times the errors", "beyond", errors=0.02),
    _four("errors-x10", "errors of 5 % instead of 0.5 %", "beyond", errors=0.05),
    _four("slow-x1.2", "a fifth more slow calls, inside the harm line", "within", latency=slower(1.2)),
    _four("slow-x1.5", "half as many slow calls again: at the margin", "beyond", latency=slower(1.5)),
    _four("slow-x2", "p95 of latency 25 % higher: twice the slow calls", "beyond", latency=1.25),
    _four("refusals-x3", "three times the refusals", "beyond", refusals=0.06),
    _four("feedback-x0.7", "the candidate is rated less often, and liked as much", "within", feedback=0.035),
    _four("feedback-x1.4", "the candidate is rated more often, and liked as much", "within", feedback=0.07),
    _eight("conversations", "identical, eight metrics of all kinds, three turns each", "within"),
    _eight("p95+25", "p95 of latency 25 % higher; the margin is 20 %", "beyond", latency=1.25),
    _eight("p95+100", "twice the latency", "beyond", latency=2.0),
    _eight("cost+10", "costs 10 % more: at the margin", "beyond", cost=1.1),
    _eight("silent", "rated 0.7 times as often, where that is a guardrail", "beyond", feedback=0.035),
    _eight("fallback", "always fails over to its fallback", "beyond", attempt_errors=1.0, fallbacks=1.0),
    _odd("retries-x1.25", "every fourth question is asked again", "within", _CONVERSATIONS, calls=1.25),
    _odd("users", "20 interactions a user, ratings correlated", "within", _USERS),
    _odd("users-10", "the same, 10 points less thumbs up", "beyond", _USERS, thumbs_up=0.60),
    _odd("few-users", "5 % of the users have all the errors", "within", _TROUBLED),
    _odd("few-users-x2", "the same, twice the errors: at the margin", "beyond", _TROUBLED, errors=0.01),
    _odd("drift", "hard questions go from 10 % to 70 % during the ramp", "within", _DRIFTING),
    Scenario("late", "ratings come after hours, bad ones first", "within", _SETTLING, raters=_LATE),
    Scenario("revised", "raters correct slips at once, or change their minds", "within", _SETTLING, raters=_REVISING),
    Scenario(
        "swapped-good",
        "a tenth of the errors, but each arm is sent to the other's release",
        "within",
        _FOUR,
        stable=Release(errors=0.05),
        wiring="releases",
    ),
    Scenario(
        "swapped-bad",
        "ten times the errors, but each arm is sent to the other's release",
        "beyond",
        _FOUR,
        candidate=Release(errors=0.05),
        wiring="releases",
    ),
    Scenario("swapped-arms", "each arm is booked as the other", "within", _FOUR, wiring="arms", interactions=100_000),
)
SCENARIOS: Mapping[str, Scenario] = MappingProxyType({each.name: each for each in _LISTED})
"""By name, in the order of the table."""


def find_scenarios(names: Iterable[str] = (), policy: Policy | None = None) -> list[Scenario]:
    """Find scenarios by name, all without any; under another policy if one is given.

    Under a policy that is not the scenario's own, a candidate that differs is neither good nor bad beforehand.

    Raises:
        NotFoundError: There is none of that name.
    """
    wanted = list(names) or list(SCENARIOS)
    unknown = [name for name in wanted if name not in SCENARIOS]
    if unknown:
        raise NotFoundError(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    found = [SCENARIOS[name] for name in wanted]
    return found if policy is None else [_judged_by(policy, each) for each in found]


def _judged_by(policy: Policy, scenario: Scenario) -> Scenario:
    truth: Truth = "within" if scenario.candidate == scenario.stable else "between"
    return replace(scenario, policy=policy, truth=truth)
