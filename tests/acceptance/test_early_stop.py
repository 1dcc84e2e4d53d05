"""Ctrl-C while Headway still starts: it ends at once, and not only when its patience with the workers is over."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.acceptance.harness import Headway, wait_for


@pytest.mark.parametrize("delay_seconds", [0.0, 0.1, 0.2, 0.3])
def test_a_stop_in_the_start_is_heard(tmp_path: Path, module_database_url: str, delay_seconds: float) -> None:
    """The signal comes while the workers load, at points that differ."""
    headway = Headway(tmp_path, database_url=module_database_url)
    command = [str(Path(sys.executable).with_name("headway")), "run"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=headway.environment, stdout=log, stderr=log)
    try:
        supervisor = psutil.Process(process.pid)
        # The supervisor, a server for each plane, and their three workers.
        wait_for("the worker processes", lambda: len(supervisor.children(recursive=True)) >= 5, 30)
        time.sleep(delay_seconds)  # not to wait for something, but to meet the start at different points
        process.terminate()
        # A worker that did not hear it would be killed after 40 s. (Granian may log so of one that has just ended.)
        assert process.wait(20) == 0
    finally:
        headway.kill_all()
        process.wait(10)
