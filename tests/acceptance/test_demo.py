"""The demo as a newcomer runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEADWAY = [sys.executable, "-m", "headway"]
# Who sees the rollouts to their ends is tests/acceptance/test_rollouts.py, and test_index_rollouts.py.
SHORT = (
    "from headway.cli.demo import contest; contest._LONGEST_SECONDS = 8.0; from headway.cli import main; main()",
    "demo",
    "--once",
)
QUESTIONS = 17

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]


def run(folder: Path, *command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADWAY_")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(folder: Path, *arguments: str) -> Any:
    variables = 'set -a; . .headway-demo/env; shift; exec "$@"'
    command = ["sh", "-c", variables, "sh", "-", *HEADWAY, *arguments, "--json"]
    return json.loads(subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout)


def test_the_demo_answers_rates_reports_and_shows_what_was_recorded(tmp_path: Path, proof: bool) -> None:
    told = run(tmp_path, *HEADWAY, "demo", "--once") if proof else run(tmp_path, sys.executable, "-c", *SHORT)
    assert told.count("👍 names") + told.count("👎 does not") + told.count("👎 names") == QUESTIONS
    assert "no data" not in told.partition("What Headway recorded")[2].partition("Four more applications")[0]
    assert "went wrong" not in told
    assert "source .headway-demo/env" in told
    reading = told.partition("A reader asks")[2].partition("Four more applications")[0]
    for document in ("howto/run-in-production.md", "howto/collect-feedback.md"):
        assert re.search(rf"\[[12]] .*{document} .*0\.\d\d  handbook@1", reading)
    assert reading.count("no passage fits") == 1
    assert {release["name"] for release in read(tmp_path, "releases", "list", "support")} == {"plain", "facts"}
    rollouts = {each["application"]: each["state"] for each in read(tmp_path, "rollout", "list")}
    assert rollouts["support"] == "ramp"
    assert rollouts["tutor"] in {"ramp", "holdback", "promoted"}
    assert rollouts["shop"] in {"ramp", "rolled_back"}
    assert rollouts["travel"] in {"ramp", "rolled_back"}
    assert rollouts["manual"] in {"ramp", "rolled_back"}
    if rollouts["manual"] == "rolled_back":
        assert "manual: answers came from documents that handbook@2 lacks: howto/run-in-production.md" in told
    of_support = ("list", "--application", "support", "--limit", "100")
    interactions = read(tmp_path, "interactions", *of_support)
    assert len(interactions) == QUESTIONS
    assert {interaction["status"] for interaction in interactions} == {200}
    assert {interaction["release"] for interaction in interactions} == {"plain", "facts"}
    ratings = read(tmp_path, "feedback", *of_support)
    assert len(ratings) == QUESTIONS
    assert {rating["source"] for rating in ratings} == {"end_user"}
    assert {rating["release"] for rating in ratings} == {"plain", "facts"}
    assert len(read(tmp_path, "reports", "list")) == 1
    asked = read(tmp_path, "interactions", "list", "--application", "guide")
    assert sorted(interaction["passages"] for interaction in asked) == [0, 2, 2, 2]
    for line in re.findall(r"^  (headway [^#\n]*)", told, re.MULTILINE):
        subprocess.run(["sh", "-c", f". .headway-demo/env; {line}"], cwd=tmp_path, check=True)

    if proof:
        again = run(tmp_path, *HEADWAY, "demo", "--once")
        assert "has begun" not in again
        assert len(read(tmp_path, "interactions", *of_support)) == 2 * QUESTIONS
