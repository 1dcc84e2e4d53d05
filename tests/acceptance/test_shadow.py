"""The shadow stage end to end: requests are put to the candidate as well, and callers cannot tell."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headway.clock import SystemClock
from headway.testing import Behaviour, Fault, Lognormal, server_error
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.stand import Provider, Reply, Stand, simulated_provider, unique

STABLE = Behaviour(answer_tokens=Lognormal(8), headers_ms=Lognormal(5), inter_token_ms=Lognormal(1))
QUICK = Behaviour(answer_tokens=Lognormal(8))
PRICES = {"input": 1000, "output": 1000}
PAIRS = (
    "SELECT s.stream, s.kind AS stable_kind, s.arm AS stable_arm, s.stage AS stable_stage, s.rollout, m.* FROM"
    " interaction m JOIN interaction s ON s.id = m.mirror_of JOIN application a ON a.id = m.application"
    " WHERE a.name = %s ORDER BY m.at"
)


def configuration(provider: Provider, *, second: bool) -> dict[str, Any]:
    """Three applications; with the second releases, two of them have a rollout in its shadow stage."""
    release = "second" if second else "first"

    def policy(**shadow: Any) -> dict[str, Any]:
        return {
            "stages": [{"shadow": "100%", "interactions": 100_000, **shadow}, "10%", "100%"],
            "goal": {"metric": "error_rate", "ratio": 2.0},
            "baselines": {name: {"level": 0.01} for name in ("error_rate", "attempt_error_rate", "fallback_rate")},
        }

    deployments = {
        model: openai_deployment(provider.base_url, model, attempts=1, usd_per_million_tokens=PRICES)
        for model in ("stable", "candidate", "costly")
    }
    return {
        "deployments": deployments,
        "policies": {"mirroring": policy(), "frugal": policy(budget_usd=0.05)},
        "applications": {
            "plain": application("stable", "first"),
            "mirrored": {**application("candidate" if second else "stable", release), "policy": "mirroring"},
            "frugal": {**application("costly" if second else "stable", release), "policy": "frugal"},
        },
    }


@pytest.fixture(scope="module")
def shadow(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Headway with two workers and the two rollouts."""
    folder = tmp_path_factory.mktemp("shadow")
    headway = Headway(folder, database_url=module_database_url, environment={"HEADWAY_TICK_SECONDS": "0.2"})
    behaviours = {"stable": STABLE, "candidate": QUICK, "costly": QUICK}
    with simulated_provider(behaviours) as provider, running(headway, configuration(provider, second=False)):
        headway.write(configuration(provider, second=True))
        headway.run("apply", "--yes", "--accept")
        key = headway.create_key("caller", "--scope", "invoke")
        states = {each["application"]: each["state"] for each in headway.run_json("rollout", "list")}
        assert states == {"mirrored": "shadow", "frugal": "shadow"}
        yield Stand(headway, provider, key, "")


def pairs(stand: Stand, name: str, count: int) -> list[dict[str, Any]]:
    """The mirrored answers of an application with what they mirror, once there are so many."""

    def look() -> list[dict[str, Any]]:
        found = stand.headway.rows(PAIRS, name)
        return found if len(found) >= count else []

    return wait_for(f"{count} mirrored answers", look)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_put_to_the_candidate_as_well(shadow: Stand, stream: bool) -> None:
    before = len(shadow.headway.rows(PAIRS, "mirrored"))
    question = unique("mirrored")
    answer = shadow.chat("mirrored", question, stream=stream)
    assert (answer.status, answer.headers["x-headway-release"]) == (200, "first")
    pair = pairs(shadow, "mirrored", before + 1)[-1]
    assert (pair["stream"], pair["stable_kind"], pair["stable_arm"], pair["stable_stage"]) == (stream, 1, 0, 0)
    assert (pair["kind"], pair["arm"], pair["stage"], pair["status"], pair["key"]) == (4, 1, 0, 200, 0)
    assert {received.model for received in shadow.provider.received(question)} == {"stable", "candidate"}
    shown = shadow.headway.run_json("interactions", "show", answer.headers["x-headway-interaction"])
    assert (shown["release"], shown["mirror"]["release"]) == ("first", "second")
    text = shadow.headway.run("interactions", "show", answer.headers["x-headway-interaction"])
    (kind,) = [line.split() for line in text.splitlines() if line.startswith("kind")]
    assert kind == ["kind", "randomised", "shadow"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "candidate",
    [
        Behaviour(fault=Fault.HANG_BEFORE_HEADERS),
        Behaviour(fault=Fault.HANG_MID_STREAM),
        Behaviour(fault=Fault.RESET_BEFORE_HEADERS),
        Behaviour(errors=(server_error(),)),
        Behaviour(headers_ms=Lognormal(2_000)),
    ],
    ids=["hangs", "hangs half way", "resets", "fails", "is slow"],
)
def test_callers_wait_no_longer(shadow: Stand, candidate: Behaviour, stream: bool) -> None:
    """Beside an application without a rollout, on the same deployment, request by request in turn."""
    shadow.provider.set("candidate", candidate)
    clock = SystemClock()
    took: dict[str, list[float]] = {"plain": [], "mirrored": []}
    try:
        for _ in range(25):
            for name, waits in took.items():
                started = clock.monotonic_seconds()
                assert shadow.chat(name, unique("in turn"), stream=stream).status == 200
                waits.append(clock.monotonic_seconds() - started)
    finally:
        shadow.provider.set("candidate", QUICK)
    plain, mirrored = (statistics.median(took[name]) for name in ("plain", "mirrored"))
    assert mirrored < plain + 0.02, (plain, mirrored)  # the candidate takes 2 s, if it answers at all


def test_a_budget_ends_the_mirroring_and_not_the_stage(shadow: Stand) -> None:
    """Each mirrored answer costs about 2 cents: a few of them use it up, and the controller says so."""

    def paused() -> bool:
        assert shadow.chat("frugal", unique("spending")).status == 200
        rollout = shadow.headway.snapshot().applications["frugal"].rollout
        assert rollout is not None
        assert rollout.shadow is not None
        return rollout.shadow.paused

    wait_for("the budget to be used up", paused, 30)
    shadow.headway.wait_for_snapshot()
    mirrored = len(shadow.provider.received("costly"))
    answers: list[Reply] = [shadow.chat("frugal", unique("spent")) for _ in range(10)]
    assert {answer.status for answer in answers} == {200}
    for answer in answers:
        record = shadow.headway.interaction(answer.json["id"])
        assert (record["stage"], record["arm"], record["release_name"]) == (0, 0, "first")
    assert len(shadow.provider.received("costly")) == mirrored
    (rollout,) = [each for each in shadow.headway.run_json("rollout", "list") if each["application"] == "frugal"]
    assert (rollout["state"], rollout["shadow_usd"] >= 0.05) == ("shadow", True)


def test_what_is_mirrored_keeps_no_shutdown_waiting(tmp_path: Path, module_database_url: str, shadow: Stand) -> None:
    """A second Headway beside the first, with a candidate that hangs: it stops at once, and counts what it gave up."""
    headway = Headway(tmp_path, database_url=module_database_url, workers=1)
    headway.write(configuration(shadow.provider, second=True))
    shadow.provider.set("candidate", Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
    clock = SystemClock()
    try:
        with running(headway):
            beside = Stand(headway, shadow.provider, shadow.key, "")
            asked: list[str] = []

            def mirrored() -> bool:
                asked.append(unique("given up"))
                assert beside.chat("mirrored", asked[-1]).status == 200
                return any(len(shadow.provider.received(question)) == 2 for question in asked)

            wait_for("a mirrored request", mirrored)
            started = clock.monotonic_seconds()
            headway.stop()
            assert clock.monotonic_seconds() - started < 10  # a drain would take 30 s, the candidate ten minutes
    finally:
        shadow.provider.set("candidate", QUICK)
    records = shadow.headway.rows("SELECT mirror_of FROM interaction WHERE request LIKE %s", "%given up%")
    assert [record["mirror_of"] for record in records] == [None] * len(asked)
