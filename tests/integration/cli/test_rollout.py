"""headway rollout: what an operator types, and what is shown for it."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace
from rich.console import Console
from typer.testing import CliRunner, Result

from headway.cli import app
from headway.cli.terminal import author
from headway.cli.watch import Reader, watch
from headway.clock import ManualClock
from headway.errors import NotFoundError, StorageError
from headway.storage.database import Connection, Database
from tests import commands
from tests.project import Project
from tests.trial import POLICY, Trial, begin_trial, next_trial


def headway(*arguments: str, status: int = 0) -> Result:
    return commands.headway("rollout", *arguments, status=status)


def listed(*arguments: str) -> Any:
    return commands.listed("rollout", *arguments)


@pytest.fixture
def number(database_url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """A rollout of support that has served 300 units and decided: its number."""

    async def prepare() -> int:
        database = Database(database_url)
        await database.open()
        try:
            trial = await begin_trial(database, ManualClock(), replace(POLICY, dwell_seconds=3600.0))
            for _ in range(3):
                await trial.serve(100)
                await trial.tick()
            return trial.number
        finally:
            await database.close()

    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    return asyncio.run(prepare())


def test_rollouts_are_listed(number: int) -> None:
    assert [(row["number"], row["policy"]) for row in listed("list")] == [(number, "careful"), (1, "manual")]
    assert [row["number"] for row in listed("list", "support", "--active")] == [number]
    assert listed("list", "sales") == []
    table = headway("list").stdout
    assert re.search(rf"^{number} +support +calm +bold +prompt +careful +ramp +20%", table, re.MULTILINE)
    assert "set by hand" not in table


def test_a_rollout_is_shown_whole(number: int) -> None:
    by_number, by_name = listed("show", str(number)), listed("show", "support")
    assert by_number == by_name
    assert by_number["rollout"]["status"]["state"] == "ramp"
    assert by_number["figures"]["assessment"]["metrics"][0]["metric"] == "error_rate"
    assert by_number["stages"][0]["share"] == 0.2
    assert by_number["decisions"]
    text = headway("show", "support").stdout
    for part in (
        "calm 80%",
        "20% bold",
        "★ error_rate",
        "harm",
        "×3.00",
        "a better one",
        "sample ratio",
        "Decisions",
        "the releases differ in the prompt only",
    ):
        assert part in text
    assert "set by hand" not in text
    assert "set by hand" not in headway("show", "1").stdout
    assert "policy manual" in headway("show", "1").stdout


def test_a_rollout_is_led(number: int) -> None:
    assert (
        f"support: rollout {number} paused at 20%: odd answers.\nbold has 20%"
        in headway("pause", "support", "--reason", "odd answers").stdout
    )
    assert "pause is not possible in the state paused" in headway("pause", "support", status=1).stderr
    taken = listed("resume", str(number))
    assert (taken["rollout"]["state"], taken["decision"]["author"]) == ("ramp", author())
    assert "no step ahead of this rollout waits for approval" in headway("approve", "support", status=1).stderr
    assert "past the gates" in headway("advance", "support", "-r", "checked by hand").stdout
    assert "calm has all traffic of support." in headway("rollback", "support", "-r", "wrong prompt").stdout
    assert "the rollout is over" in headway("promote", "support", "-r", "forward", status=1).stderr
    assert "manual" in headway("pause", "1", status=1).stderr


def test_promotion(number: int) -> None:
    told = headway("promote", "support", "--reason", "the old model is shut down").stdout
    assert "bold is now the stable release of support." in told


def test_who_overrules_the_evidence_says_why(number: int) -> None:
    for command in ("advance", "promote", "rollback"):
        assert "--reason" in headway(command, "support", status=2).output
        assert "say why with --reason" in headway(command, "support", "--reason", " ", status=1).stderr
    assert listed("show", "support")["rollout"]["state"] == "ramp"


def test_a_rollout_is_replayed(number: int, database_url: str) -> None:
    assert re.search(
        rf"Rollout {number}: \d+ decisions? recomputed from the stored evidence, each as it was taken",
        headway("replay", "support").stdout,
    )
    found = listed("replay", str(number))
    assert (found["rollout"], found["mismatches"]) == (number, [])
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE decision SET message = 'forged' WHERE number = 1")
    told = headway("replay", "support", status=1).stdout
    assert "decision 1: message differs" in told
    assert 'stored    "forged"' in told
    assert "1 differ" in told
    assert "nothing to replay" in headway("replay", "1", status=1).stderr


def test_what_is_not_there_is_told(number: int) -> None:
    for name, complaint in (
        ("99", "there is no rollout 99; `headway rollout list` shows them"),
        ("suport", "no application is called 'suport'; did you mean 'support'?"),
        ("sales", "sales has had no rollout yet"),
        ("99999999999999999999", "there is no rollout 99999999999999999999"),
    ):
        for command in ("show", "watch", "pause", "replay"):
            assert complaint in headway(command, name, status=1).stderr


def test_a_release_is_started_again(tmp_path: Any, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    monkeypatch.setenv("MAIN_KEY", "secret")
    monkeypatch.delenv("HEADWAY_CONFIG", raising=False)
    project, runner = Project(tmp_path), CliRunner()
    policy = (
        "policies:\n  careful:\n    stages: [10%, 100%]\n    goal: {metric: error_rate, ratio: 2}\n"
        "    baselines: {error_rate: {level: 0.01}, attempt_error_rate: {level: 0.01}, fallback_rate: {level: 0.01}}\n"
    )
    for prompt in ("Be brief.", "Be kind."):
        project.write(prompt, keys="    policy: careful\n", more=policy)
        done = runner.invoke(app, ["apply", "--yes", "--accept"])
        assert done.exit_code == 0, done.output
    rollout = listed("show", "support")["rollout"]
    assert (rollout["state"], rollout["share"]) == ("ramp", 0.1)
    assert "already" in headway("start", "support", rollout["candidate"], status=1).stderr
    headway("rollback", "support", "--reason", "wrong prompt")
    assert "stopped before" in headway("start", "support", rollout["candidate"], status=1).stderr
    told = headway("start", "support", rollout["candidate"], "--retry", "--accept", "--reason", "once more")
    assert f"Rollout 2 of support has begun. {rollout['candidate']} has 10%" in told.stdout
    assert "headway rollout watch support" in told.stdout
    assert (listed("show", "support")["rollout"]["restarts"], listed("list")[0]["number"]) == (1, 2)


def test_every_command_explains_itself() -> None:
    commands = (
        "list",
        "show",
        "watch",
        "start",
        "pause",
        "resume",
        "approve",
        "advance",
        "promote",
        "rollback",
        "replay",
    )
    for command in commands:
        told = " ".join(headway(command, "--help").stdout.split())
        assert f"Example: headway rollout {command}" in told


# --- watch ---


class Paused(ManualClock):
    """A clock whose sleepers say that they sleep, and sleep until they are told."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock.unix_ms())
        self.sleeps: asyncio.Queue[float] = asyncio.Queue()
        self.wakes: asyncio.Queue[None] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.put_nowait(seconds)
        await self.wakes.get()


class Watched:
    """Somebody watching a rollout."""

    def __init__(self, database: Database, clock: ManualClock, *, terminal: bool, follow: bool = False) -> None:
        self.clock = Paused(clock)
        self.seen = io.StringIO()
        console = Console(file=self.seen, force_terminal=terminal, width=100, height=40, highlight=False)
        self.task = asyncio.create_task(watch(database, Reader("support", self.clock), console, follow=follow))

    async def look(self) -> str:
        """Give what the next reading has added; it has been read when this returns."""
        before = len(self.seen.getvalue())
        if before:
            self.clock.wakes.put_nowait(None)
        sleeps = asyncio.ensure_future(self.clock.sleeps.get())
        await asyncio.wait({sleeps, self.task}, return_when=asyncio.FIRST_COMPLETED)
        sleeps.cancel()
        return self.seen.getvalue()[before:]


@pytest.fixture
async def trial(database: Database) -> Trial:
    return await begin_trial(database, ManualClock())


async def test_a_pipe_gets_a_line_per_decision_until_the_end(database: Database, trial: Trial) -> None:
    watched = Watched(database, trial.clock, terminal=False)
    first = await watched.look()
    assert re.fullmatch(r"\S+ \S+ support: rollout 2 from calm to bold, ramp at 20%\n", first)
    await trial.take("pause", "odd answers")
    await trial.take("resume", "fine")
    more = (await watched.look()).splitlines()
    assert [line[20:] for line in more] == [
        "paused: ann: paused at 20%: odd answers",
        "resumed: ann: resumed after 0 s: fine",
    ]
    await trial.take("rollback", "wrong prompt")
    assert (await watched.look()).splitlines()[-1][20:] == "rolled back: ann: rolled back from 20%: wrong prompt"
    await asyncio.wait_for(watched.task, 10)


async def test_a_terminal_gets_the_whole_picture_again_and_again(database: Database, trial: Trial) -> None:
    watched = Watched(database, trial.clock, terminal=True)
    assert "error_rate" not in await watched.look()
    await trial.serve(200)
    await trial.tick()
    assert "★" in await watched.look()
    await trial.take("promote", "the old model is shut down")
    shown = await watched.look()
    await asyncio.wait_for(watched.task, 10)
    assert "promoted" in shown


async def test_following_goes_on_with_the_next_rollout(database: Database, trial: Trial) -> None:
    watched = Watched(database, trial.clock, terminal=False, follow=True)
    await watched.look()
    await trial.take("rollback", "wrong prompt")
    await watched.look()
    following = await next_trial(database, trial.clock)
    assert f"rollout {following.number} from calm to bold" in await watched.look()
    assert not watched.task.done()
    watched.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watched.task


class Flaky(Database):
    """A database that is away at times."""

    away = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        if self.away:
            raise StorageError("the database is away")
        async with super().connection() as connection:
            yield connection


async def test_a_database_that_is_away_is_waited_for(database_url: str, database: Database, trial: Trial) -> None:
    flaky = Flaky(database_url)
    await flaky.open()
    try:
        watched = Watched(flaky, trial.clock, terminal=True)
        assert "the database is away" not in await watched.look()
        flaky.away = True
        shown = await watched.look()
        assert "the database is away" in shown
        flaky.away = False
        await trial.take("rollback", "wrong prompt")
        assert "rolled back" in await watched.look()
        await asyncio.wait_for(watched.task, 10)
        flaky.away = True
        with pytest.raises(StorageError):
            await Watched(flaky, trial.clock, terminal=True).task
    finally:
        await flaky.close()


async def test_nothing_to_watch(database: Database, trial: Trial) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(NotFoundError):
        await watch(database, Reader("sales", trial.clock), console, follow=False)


async def test_the_pace_is_that_of_the_last_minutes(database: Database, trial: Trial) -> None:
    reader = Reader("support", trial.clock)
    for count in (50, 50, 150):
        await trial.serve(count)
        await trial.tick(5)
    async with database.connection() as connection:
        reading = await reader.read(connection)
        assert reading.pace == 20  # 200 in 10 s
        trial.clock.advance(590)
        await trial.serve(590)
        await trial.tick(5)
    async with database.connection() as connection:
        reading = await reader.read(connection)
    assert reading.pace is not None
    assert round(reading.pace * 600) == 740, "what came before does not count any more"
