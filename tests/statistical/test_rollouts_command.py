"""headway simulate."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner, Result

from headway.cli import app, simulate
from headway.rollouts.simulation.catalogue import SCENARIOS

POLICY = """
deployments:
  local: {provider: openai, base_url: "http://127.0.0.1:9/v1", model: m}
applications:
  support: {release: {deployment: local}}
policies:
  quick:
    stages: [10%, {share: 100%, approve: true}]
    goal: {metric: error_rate, ratio: 2.0}
    min_units: 20
  starry:
    stages: [10%, 100%]
    goal: {metric: stars, margin: 0.5}
"""


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == code, result.output
    return result


def rows(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*arguments, "--json").stdout)
    return found


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    path = tmp_path / "headway.yaml"
    path.write_text(POLICY)
    return path


def test_a_table() -> None:
    shown = run("fallback", "swapped-arms", "--runs", "2", "--jobs", "1").stdout
    for part in ("fallback_rate", "z-test at every peek", "interval thresholds", "kept", "mistake caught"):
        assert part in shown


def test_rows_as_json_are_the_same_for_the_same_seed() -> None:
    arguments = ("errors-x10", "--runs", "4", "--interactions", "12000", "-j", "1")
    one, same, other = rows(*arguments), rows(*arguments), rows(*arguments, "--seed", "7")
    assert one == same
    assert [row["method"] for row in one] == ["headway", "z-test at every peek", "interval thresholds"]
    assert one[0]["rolled_back"]["runs"] == 4
    assert other != one


def test_another_policy(policies: Path) -> None:
    """Nobody knows beforehand what it makes of a candidate, but of an identical one."""
    row = rows("identical", "--policy", f"{policies}:quick", "--runs", "2", "--interactions", "20000", "-j", "1")[0]
    assert row["promise"] == "kept"
    row = rows("errors-x10", "--policy", f"{policies}:quick", "--runs", "2", "--interactions", "20000", "-j", "1")[0]
    assert row["promise"] == "none"
    assert row["rolled_back"]["hits"] == 2


def test_a_broken_promise_is_an_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here of a scenario that takes its candidate for a good one."""
    broken = dataclasses.replace(SCENARIOS["errors-x10"], truth="within")
    monkeypatch.setattr(simulate, "find_scenarios", lambda *_: [broken])
    run("--runs", "4", "-j", "1", code=1)


@pytest.mark.fault
def test_its_processes_end_with_it() -> None:
    command = [sys.executable, "-m", "headway", "simulate", "thumbs-2", "--runs", "100", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + 60
        while len(children) < 3:  # two that play, and the one that Python keeps beside them
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.05)
            children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_the_list() -> None:
    assert [row["scenario"] for row in rows("--list")] == list(SCENARIOS)
    assert "10 points less" in run("--list").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "there is no scenario 'nothing'"),
        (("--policy", "quick"), "FILE:NAME"),
        (("--policy", "{file}:slow"), "has no policy 'slow'; it has quick, starry"),
        (("--policy", "{file}:starry"), "'stars' cannot be simulated"),
    ],
)
def test_what_cannot_be(policies: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(*(each.format(file=policies) for each in arguments), code=1)
    assert message in result.stderr.replace("\n", " ")
