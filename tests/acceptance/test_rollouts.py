"""Rollouts end to end: real users' sockets, four gateway workers, PostgreSQL; faults in the middle of them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import psutil
import pytest
import yaml

from headway.cli.demo.stories import STORIES, Story
from headway.testing import ProviderProcess, run_traffic
from tests.acceptance.harness import Headway, running, wait_for
from tests.acceptance.load import read_books
from tests.acceptance.proxy import DatabaseProxy, database_proxy

pytestmark = [pytest.mark.fault, pytest.mark.timeout(600)]

WORKERS = 4
BURST_SECONDS = 4.0
PATIENCE_SECONDS = 240.0


@pytest.fixture
def proxy(database_url: str) -> Iterator[DatabaseProxy]:
    folder = Path(tempfile.mkdtemp(prefix="headway-proxy-"))
    try:
        with database_proxy(folder, database_url) as opened:
            yield opened
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def configuration(provider: ProviderProcess, release: int) -> dict[str, Any]:
    """The demo's own configuration, without the real model and the documents."""
    text = resources.files("headway.cli.demo").joinpath("files", "headway.yaml").read_text("utf-8")
    port = provider.base_url.rsplit(":", 1)[1].removesuffix("/v1")
    wanted = {"model_port": 1, "simulator_port": port, "support": "none", "simulated": release, "left_out": ""}
    found: dict[str, Any] = yaml.safe_load(Template(text).substitute(wanted))
    for name in ("support", "guide", "manual"):
        del found["applications"][name]
    del found["deployments"]["smollm"], found["indexes"]
    return found


@dataclass
class Users:
    """What the users of an application have met; ``errors`` by status or word."""

    answers: int = 0
    ratings: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rating_errors: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def users(headway: Headway, stories: Sequence[Story]) -> AsyncIterator[dict[str, Users]]:
    """Let users come in bursts until the block ends; the last burst is waited for."""
    met = {story.application: Users() for story in stories}
    leave = asyncio.Event()

    async def come(story: Story, seed: int) -> None:
        mine, burst = met[story.application], 0
        while not leave.is_set():
            traffic = replace(story.traffic(1000 * seed + burst), users=5_000, max_seconds=BURST_SECONDS)
            summary = await run_traffic(headway.url, headway.first_key, traffic)
            mine.answers += sum(tally.answers for tally in summary.releases.values())
            mine.ratings += sum(tally.ratings for tally in summary.releases.values())
            mine.errors.update(summary.errors)
            mine.rating_errors.update(summary.rating_errors)
            burst += 1

    async with asyncio.TaskGroup() as group:
        for seed, story in enumerate(stories):
            group.create_task(come(story, seed))
        yield met
        leave.set()


def control_worker(headway: Headway) -> psutil.Process:
    """The process that the controller runs in."""

    def look() -> list[psutil.Process]:
        servers = [each for each in headway.processes() if each.cmdline()[-2:] == ["headway.runtime.serve", "control"]]
        return [each for each in servers if each.ppid() in {server.pid for server in servers}]

    return wait_for("the controller's process", look)[0]


async def decided(headway: Headway) -> dict[str, dict[str, Any]]:
    """Wait until all three rollouts are over."""

    def look() -> dict[str, dict[str, Any]]:
        rollouts = {each["application"]: each for each in headway.run_json("rollout", "list")}
        return rollouts if all(each["ended_at"] for each in rollouts.values()) else {}

    return await asyncio.to_thread(wait_for, "the end of the rollouts", look, PATIENCE_SECONDS)


async def test_three_rollouts_decide_themselves_while_things_break(
    tmp_path: Path, proxy: DatabaseProxy, proof: bool
) -> None:
    """The better release is promoted, the worse ones go; a killed controller and a database away change nothing."""
    behaviours = {model: behaviour for story in STORIES for model, behaviour in story.behaviours.items()}
    headway = Headway(tmp_path, database_url=proxy.url, workers=WORKERS, environment={"HEADWAY_TICK_SECONDS": "1"})
    async with ProviderProcess(behaviours) as provider:
        with running(headway, configuration(provider, 1)):
            async with users(headway, STORIES) as met:
                await asyncio.to_thread(
                    wait_for, "the baseline", lambda: min(each.answers for each in met.values()) > 1_000, 60
                )
                headway.write(configuration(provider, 2))
                await asyncio.to_thread(headway.run, "apply", "--yes")
                control_worker(headway).kill()
                await asyncio.sleep(2)
                proxy.refuse()
                await asyncio.sleep(60 if proof else 3)
                proxy.restore()
                control_worker(headway).kill()
                rollouts = await decided(headway)

            assert {name: each["state"] for name, each in rollouts.items()} == {
                story.application: story.ending for story in STORIES
            }
            check_history(headway, rollouts)
            for story in STORIES:
                failing = met[story.application]
                assert not failing.rating_errors, story
                if not story.second.errors:  # who meets a provider that fails may see it
                    assert not failing.errors, story
            answers = sum(each.answers + each.errors.total() for each in met.values())
            wait_for("all interactions", lambda: read_books(headway).interactions >= answers, 30)
            books = read_books(headway)
            assert books.ids == books.interactions == answers
            assert books.evidence == books.of_rollout > 0
            ratings = sum(each.ratings for each in met.values())
            wait_for("all ratings", lambda: headway.value("SELECT count(*) FROM feedback") == ratings, 60)


def check_history(headway: Headway, rollouts: dict[str, dict[str, Any]]) -> None:
    """No step was lost or taken twice, and every decision follows from the stored evidence."""
    for name, rollout in rollouts.items():
        number = rollout["number"]
        decisions = headway.rows("SELECT * FROM decision WHERE rollout_id = %s ORDER BY number", number)
        assert [each["number"] for each in decisions] == list(range(1, len(decisions) + 1))
        for each in decisions:
            print(f"{name} {each['at']:%T} {each['outcome']} {each['reason']} {each['after']['share']}")
        for earlier, later in pairwise(decisions):
            assert earlier["after"] == later["before"], name
        stages = headway.rows("SELECT stage, share FROM rollout_stage WHERE rollout_id = %s ORDER BY stage", number)
        assert [each["stage"] for each in stages] == list(range(1, len(stages) + 1))
        headway.run("rollout", "replay", str(number))
    shares = headway.rows(
        "SELECT share FROM rollout_stage WHERE rollout_id = %s AND phase = 'ramp' ORDER BY stage",
        rollouts["tutor"]["number"],
    )
    assert [each["share"] for each in shares][:2] == [0.25, 0.5]
