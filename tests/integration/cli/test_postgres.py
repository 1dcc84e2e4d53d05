"""Backup and restore as the how-to says, with the embedded server."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.config.settings import Settings
from headway.runtime import open_database
from headway.storage import configuration, keys, routing
from headway.storage.keys import Grant
from tests.project import Project


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the embedded server can live in: reachable for whoever runs it."""
    made = Path(tempfile.mkdtemp(prefix="headway-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def headway(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from headway.cli import main; main()", *arguments]
    environment = {"HEADWAY_HOME": str(home), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, env=environment, cwd=home.parent, capture_output=True, text=True, timeout=90, check=False
    )


async def test_a_backup_restores_into_an_empty_home(folder: Path, tmp_path: Path) -> None:
    async with open_database(Settings(home=folder / "old")) as database, database.connection() as connection:
        await configuration.apply(connection, Project(tmp_path).write(), author="ann")
        await keys.create(connection, Grant("web"), author="ann")
        before = await routing.latest(connection)

    dump = str(folder / "headway.dump")
    saved = headway(folder / "old", "postgres", "pg_dump", "--format", "custom", "--file", dump)
    assert saved.returncode == 0, saved.stderr
    restored = headway(
        folder / "new", "postgres", "pg_restore", "--no-owner", "--exit-on-error", "--dbname", "headway", dump
    )
    assert restored.returncode == 0, restored.stderr

    async with open_database(Settings(home=folder / "new")) as database, database.connection() as connection:
        assert await routing.latest(connection) == before
        entry = await configuration.current(connection)
        assert entry is not None
        assert entry.applied_by == "ann"
        assert await routing.publish(connection) > (before.number if before else 0)


def test_a_tools_failure_is_the_commands_failure(folder: Path) -> None:
    failed = headway(folder / "home", "postgres", "psql", "-c", "nonsense")
    assert failed.returncode == 1
    assert "syntax error" in failed.stderr
    unknown = headway(folder / "home", "postgres", "initdb")
    assert unknown.returncode == 1
    assert "there is no tool called 'initdb'; known are psql" in unknown.stderr
