"""Controllers are killed, by kill -9, at any moment: another one leads at once, and no step is lost or taken twice."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import psutil
import pytest

from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.load import Load, check_books
from tests.acceptance.stand import CHATTY, Provider, call, simulated_provider

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

STAGES = [f"{percent}%" for percent in (10, 20, 30, 40, 50, 60, 70)]
TICK_SECONDS = 0.1


def configuration(provider: Provider, release: str) -> dict[str, Any]:
    """An application under a policy whose steps people take: it never has enough evidence."""
    levels = ("error_rate", "attempt_error_rate", "fallback_rate")
    prompt = {"text": f"You are the {release}."}
    policy = {
        "stages": [*STAGES, "100%"],
        "goal": {"metric": "error_rate", "ratio": 1.5},
        "baselines": {name: {"level": 0.01} for name in levels},
        "min_units": 1_000_000,
        "dwell": "1s",
    }
    return {
        "deployments": {"main": openai_deployment(provider.base_url, "chatty")},
        "policies": {"patient": policy},
        "applications": {"support": {**application("main", release, prompt=prompt), "policy": "patient"}},
    }


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with simulated_provider({"chatty": CHATTY}) as opened:
        yield opened


@pytest.fixture(scope="module")
def replicas(
    provider: Provider, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Headway]]:
    """Two replicas with two workers each on one database, and a rollout that has begun."""
    environment = {"HEADWAY_TICK_SECONDS": str(TICK_SECONDS)}
    one, two = (
        Headway(tmp_path_factory.mktemp(name), database_url=module_database_url, environment=environment)
        for name in ("one", "two")
    )
    with running(one, configuration(provider, "first")), running(two, configuration(provider, "first")):
        two.first_key = one.first_key
        one.write(configuration(provider, "second"))
        one.run("apply", "--yes", "--accept")
        one.wait_for_snapshot()
        yield [one, two]


def control_worker(headway: Headway) -> psutil.Process:
    """The process that a replica's controller runs in."""

    def look() -> list[psutil.Process]:
        servers = [each for each in headway.processes() if each.cmdline()[-2:] == ["headway.runtime.serve", "control"]]
        return [each for each in servers if each.ppid() in {server.pid for server in servers}]

    return wait_for("the controller's process", look)[0]


def leader(replicas: list[Headway]) -> Headway:
    """The replica whose controller leads."""

    def look() -> list[Headway]:
        return [each for each in replicas if "\nheadway_controller_leading 1.0\n" in metrics(each)]

    return wait_for("a leader", look, 15)[0]


def metrics(headway: Headway) -> str:
    try:
        return call(f"{headway.admin_url}/metrics", key=headway.first_key).body.decode()
    except OSError:
        return ""  # it has just been killed


def tick_of(headway: Headway) -> int:
    return int(headway.value("SELECT tick FROM rollout"))


def test_the_leader_is_killed_again_and_again(replicas: list[Headway], proof: bool) -> None:
    """Under load: another controller decides within about two seconds, and every interaction is booked once."""
    one = replicas[0]
    chance = random.Random(11)
    pauses = []
    with Load(one, one.first_key) as load:
        load.wait_for_more(50)
        for _ in range(20 if proof else 3):
            leading = leader(replicas)
            time.sleep(chance.random() * 2 * TICK_SECONDS)  # somewhere in a tick, or between two
            control_worker(leading).kill()
            tick, began = tick_of(one), time.monotonic()
            wait_for("the next tick", lambda tick=tick: tick_of(one) > tick, 15)  # type: ignore[misc]  # bound at once
            pauses.append(time.monotonic() - began)
        load.wait_for_more(50)
    print(f"nobody decided for {', '.join(f'{pause:.2f}' for pause in pauses)} s after a kill")
    assert median(pauses) < (2.5 if proof else 10)  # the reduced tests run beside others
    assert load.tally.failures == []
    assert check_books(one, load.tally, complete=True) == 0
    check_story(one)


def test_a_step_is_in_every_worker_within_a_second(replicas: list[Headway]) -> None:
    """From the answer to the one who asked until all four workers of both replicas serve it."""
    one = replicas[0]
    url = f"{one.admin_url}/admin/v1/rollouts/{one.value('SELECT id FROM rollout')}/advance"
    wait_for("the control plane", lambda: metrics(one), 15)
    delays = []
    for _ in range(5):
        taken = call(url, {"reason": "test"}, key=one.first_key)
        assert taken.status == 200, taken
        began, newest = time.monotonic(), one.snapshot().number
        for replica in replicas:
            wait_for("the step", lambda replica=replica: replica.snapshot_numbers() == {newest}, 10)  # type: ignore[misc]  # noqa: B023
        delays.append(time.monotonic() - began)
    print(f"in every worker after {', '.join(f'{delay * 1000:.0f}' for delay in delays)} ms")
    assert median(delays) < 1.0
    check_story(one)


def check_story(headway: Headway) -> None:
    """Every interaction is booked once, decisions follow one another, and all of them are replayed exactly."""

    def is_booked() -> bool:
        (row,) = headway.rows(
            "SELECT (SELECT count(*) FROM evidence WHERE tick IS NULL) AS unclaimed,"
            " (SELECT sum((counts->>'interactions')::int) FROM evidence) AS recorded,"
            " (SELECT (assessment->'interactions'->>0)::int + (assessment->'interactions'->>1)::int"
            "  FROM figure ORDER BY tick DESC LIMIT 1) AS booked"
        )
        return bool(row["unclaimed"] == 0 and row["recorded"] == row["booked"])

    wait_for("the books", is_booked, 20)
    decisions = headway.rows("SELECT * FROM decision ORDER BY number")
    assert [each["number"] for each in decisions] == list(range(1, len(decisions) + 1))
    assert all(earlier["after"] == later["before"] for earlier, later in pairwise(decisions))
    stages = headway.rows("SELECT stage FROM rollout_stage ORDER BY stage")
    assert [each["stage"] for each in stages] == list(range(1, len(stages) + 1))
    assert headway.value("SELECT count(*) FROM rollout WHERE version = (SELECT count(*) FROM decision)") == 1
    headway.run("rollout", "replay", "support")
