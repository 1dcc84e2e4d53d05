"""Policies keep their own rules wherever they come from."""

import doctest

import msgspec
import pytest

from headway.domain import policy as module
from headway.domain.policy import DEFAULT_STAGES, Policy, StageRule


def stages(*shares: float) -> tuple[StageRule, ...]:
    return tuple(map(StageRule, shares))


@pytest.mark.parametrize("shares", [(), (1.0,), (0.5,), (0.0, 1.0), (0.5, 0.5, 1.0), (0.5, 0.1, 1.0), (0.5, 0.9)])
def test_a_ramp_that_does_not_climb_to_everything_is_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="the shares of a policy grow from above 0 to 1 in at least two stages"):
        Policy("p", stages(*shares), ())
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": "p", "stages": [{"share": share} for share in shares], "rules": []}, Policy)


@pytest.mark.parametrize(("window_seconds", "period_seconds"), [(3600.0, 3600), (7200.0, 3600), (90.5, 90), (0.2, 1)])
def test_periods_are_hours_unless_the_feedback_window_is_shorter(window_seconds: float, period_seconds: int) -> None:
    assert Policy("p", DEFAULT_STAGES, (), feedback_window_seconds=window_seconds).period_seconds == period_seconds


def test_a_policy_survives_being_stored() -> None:
    policy = Policy("p", DEFAULT_STAGES, ())
    assert msgspec.json.decode(msgspec.json.encode(policy), type=Policy) == policy


def test_the_examples_of_the_module_hold() -> None:
    assert doctest.testmod(module).failed == 0
