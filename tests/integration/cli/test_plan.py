"""headway plan and apply under a policy: what an operator sees of rollouts that would start, and do."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from headway.storage.database import Database
from tests.commands import headway, listed
from tests.history import Record, write
from tests.project import Project

POLICY = """\
policies:
  careful:
    stages: [shadow, 10%, 50%, {share: 100%, approve: true}]
    goal: {metric: thumbs_up, margin: 10pp}
    guardrails: [{metric: error_rate, ratio: 3}]
    dwell: 1m
    feedback_window: 10m
"""
KEYS = "    policy: careful\n"


@pytest.fixture
def project(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project folder that is the current one, with a database of its own; its first release is applied."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    monkeypatch.delenv("HEADWAY_CONFIG", raising=False)
    project = Project(tmp_path)
    project.write("Be brief.", keys=KEYS, more=POLICY)
    headway("apply", "--yes")
    return project


@pytest.fixture
async def traffic(project: Project, database_url: str) -> None:
    """Two hours of it, half of the conversations rated."""
    database = Database(database_url)
    await database.open()
    async with database.connection() as connection:
        record = Record(application=1, release=1, until=datetime.now(UTC), count=4_000, hours=2.0, turns=2, thumbs=0.5)
        await write(connection, record)
    await database.close()


def roll_back() -> None:
    headway("rollout", "rollback", "support", "--reason", "no good")


@pytest.mark.usefixtures("traffic")
def test_a_plan_foretells(project: Project, database_url: str) -> None:
    stable = project.write("Be brief.", keys=KEYS, more=POLICY).specification.applications["support"].release.name
    name = project.write("Be long.", keys=KEYS, more=POLICY).specification.applications["support"].release.name
    told = headway("plan").stdout
    assert f"support: new release {name} is rolled out" in told
    assert f"from {stable}, under the policy careful" in told
    assert "now 2,000 interactions an hour of 1,000 conversations; thumbs_up from" in told
    for words in ("shadow", "interactions", "50%", "approval", "holdback", "max_duration is 14 d"):
        assert words in told
    (line,) = (line for line in told.splitlines() if line.strip().startswith("thumbs_up") and "goal" in line)
    assert "-10.0 pp" in line
    assert "-5.0 pp" in line
    (start,) = listed("plan")["rollouts"]
    assert (start["application"], start["stable"], start["candidate"]) == ("support", stable, name)
    forecast = start["forecast"]
    assert forecast["traffic"]["interactions_per_hour"] == pytest.approx(2_000, rel=0.05)
    assert [stage["phase"] for stage in forecast["stages"]] == ["shadow", "ramp", "ramp", "holdback"]
    assert {metric["metric"] for metric in forecast["metrics"]} == {
        "thumbs_up",
        "error_rate",
        "attempt_error_rate",
        "fallback_rate",
    }
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM rollout").fetchone() == (0,)


def test_without_traffic_it_says_no_data(project: Project) -> None:
    project.write("Be long.", keys=KEYS, more=POLICY)
    told = headway("plan").stdout
    assert "how long it takes: no data" in told
    assert "note: no traffic recorded: no data on how long it takes" in told
    assert listed("plan")["rollouts"][0]["forecast"]["traffic"] is None


@pytest.mark.usefixtures("traffic")
def test_apply_starts_and_says_how_to_follow(project: Project, database_url: str) -> None:
    project.write("Be long.", keys=KEYS, more=POLICY)
    told = headway("apply", "--reason", "asked for").stdout
    assert "Applied as configuration 2." in told
    assert "Rollout 1 of support has begun." in told
    assert "headway rollout watch support" in told
    assert headway("apply").stdout.splitlines()[0] == "No changes: the file is applied already."
    assert "is being rolled out already" in headway("plan").stdout
    project.write("Be brief.", keys=KEYS, more=POLICY)
    assert "to take it back: `headway rollout rollback support`" in headway("apply", "--yes").stdout
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT reason FROM rollout_stage").fetchall() == [("asked for",)]


@pytest.mark.usefixtures("traffic")
def test_what_is_refused_is_refused_by_both(project: Project) -> None:
    hurried = POLICY + "    max_duration: 15m\n"
    project.write("Be long.", keys=KEYS, more=hurried)
    refused = headway("plan", status=1)
    assert "the rollout of support cannot finish: it takes about" in refused.stderr
    assert listed("plan", status=1)["obstacles"] != []
    assert "cannot finish" in headway("apply", "--yes", status=1).stderr
    assert headway("plan", "--accept").stderr == ""
    assert listed("apply", "--accept")["rollouts"] == [1]

    project.write("Be quick.", keys=KEYS, more=POLICY)
    assert "is being rolled out (rollout 1, at 0%)" in headway("plan", status=1).stderr
    assert "headway rollout rollback support" in headway("apply", "--accept", status=1).stderr

    roll_back()
    project.write("Be brief.", keys=KEYS, more=POLICY)
    headway("apply", "--yes")
    project.write("Be long.", keys=KEYS, more=POLICY)
    assert "was stopped before (rolled back, rollout 1)" in headway("apply", "--yes", status=1).stderr
    headway("apply", "--yes", "--retry")
    assert [rollout["restarts"] for rollout in listed("rollout", "list")] == [1, 0]
    roll_back()
    assert "to roll it out: headway apply --retry" in headway("plan").stdout
    again = listed("apply", "--retry")
    assert (again["entry"], again["rollouts"]) == (0, [3])
    assert again["snapshot"] > 0


def test_check_needs_no_database(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    project.write("Be long.", keys=KEYS, more=POLICY)
    assert "is sound" in headway("check").stdout
