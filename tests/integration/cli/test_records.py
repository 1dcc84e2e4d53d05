"""headway interactions, feedback and reports, against a real database."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from headway.cli import app
from headway.domain.feedback import LinkedInteraction, Report
from headway.ids import uuid7
from headway.storage import reports
from headway.storage.database import Database
from tests.integration.feedback.conftest import make_desk
from tests.world import World, found_world

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
async def world(database: Database) -> World:
    return await found_world(database)


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; its own event loop runs in a thread of its own."""
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)

    async def invoke(*arguments: str, ok: bool = True) -> Result:
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        assert (result.exit_code == 0) == ok, result.output
        return result

    return invoke


async def rows(run: Run, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((await run(*arguments, "--json")).stdout)
    return found


async def test_interactions(world: World, run: Run, tmp_path: Path) -> None:
    old, new = world.interaction(age_days=3), world.interaction(age_days=1)
    await world.record(old, "talk-1", content=('{"messages": []}', "Hel\x1b[31mlo"))
    await world.record(new, "talk-2")
    await world.record(world.interaction(application="sales", release=3), "talk-1")
    names = [str(uuid.UUID(bytes=item.uuid)) for item in (new, old)]

    listed = await rows(run, "interactions", "list", "--application", "support")
    assert [item["id"] for item in listed] == names
    assert "request" not in listed[0]
    assert [item["id"] for item in await rows(run, "interactions", "list", "-a", "support", "-n", "1")] == names[:1]
    assert [
        item["id"] for item in await rows(run, "interactions", "list", "--release", "bold", "-c", "talk-1")
    ] == names[1:]
    assert await rows(run, "interactions", "list", "--failed") == []
    assert names[0] in (await run("interactions", "list")).stdout

    shown = json.loads((await run("interactions", "show", names[1], "--json")).stdout)
    assert shown["answer"] == "Hel\x1b[31mlo"
    plain = (await run("interactions", "show", world.snapshot.signing.signer().issue(old))).stdout
    assert "Hel\N{REPLACEMENT CHARACTER}[31mlo" in plain
    assert "\x1b[31m" not in plain
    for wrong in (str(uuid.uuid4()), "hw_forged"):
        assert (await run("interactions", "show", wrong, ok=False)).exit_code == 1

    exported = (await run("interactions", "export", "-a", "support")).stdout.splitlines()
    assert [json.loads(line)["id"] for line in exported] == names[::-1]
    assert json.loads(exported[0])["answer"] == "Hel\x1b[31mlo"
    target = tmp_path / "out.jsonl"
    await run("interactions", "export", "--no-content", "--output", str(target))
    assert [json.loads(line).get("answer", "none") for line in target.read_text().splitlines()] == ["none"] * 3


async def test_since_takes_durations_and_dates(world: World, run: Run) -> None:
    await world.record(world.interaction(age_days=3), "talk")
    for when, count in (
        ("2000-01-01", 1),
        ("2000-01-01T12:00", 1),
        ("2000-01-01T12:00:00+02:00", 1),
        ("2099-01-01", 0),
    ):
        assert len(await rows(run, "interactions", "list", "--since", when)) == count
    assert len(await rows(run, "interactions", "list", "--since", "36500d")) == 1
    for wrong in ("yesterday", "7", "2026-13-01", "999999999999d"):
        assert "point in time" in (await run("interactions", "list", "--since", wrong, ok=False)).stderr


async def test_feedback(world: World, run: Run) -> None:
    desk = make_desk(world, world.database)
    issued = world.issue()
    for value in (2, 5):
        await desk.feedback({"interaction_id": issued, "metric": "stars", "value": value})
        world.clock.advance(1)
    await desk.feedback({"interaction_id": issued, "comment": "good", "source": "annotator"}, key="developer")

    async def values(*arguments: str) -> list[object]:
        return [item["value"] for item in await rows(run, "feedback", "list", *arguments)]

    assert await values() == ["good", 5]
    assert await values("--history") == ["good", 5, 2]
    assert await values("--metric", "stars", "-a", "support", "--release", "bold", "--source", "end_user") == [5]
    assert await values("-a", "sales") == []
    assert "stars" in (await run("feedback", "list")).stdout
    exported = (await run("feedback", "export", "--history")).stdout.splitlines()
    assert [json.loads(line)["value"] for line in exported] == [2, 5, "good"]
    assert "annotator" in (await run("feedback", "list", "--source", "robot", ok=False)).stderr


async def test_reports(world: World, run: Run) -> None:
    interaction = world.interaction()
    issued = world.snapshot.signing.signer().issue(interaction)
    link = LinkedInteraction(issued, interaction.uuid, interaction.release, interaction.unix_ms)
    now = world.clock.unix_ms()
    report = Report(uuid7(now), now, 1, "Wrong refund", "It says 14.", "high", "key:1", 1, (link,))
    async with world.database.connection() as connection:
        await reports.insert(connection, report)
    name = str(uuid.UUID(bytes=report.id))

    assert [item["id"] for item in await rows(run, "reports", "list", "--status", "open", "-a", "support")] == [name]
    assert await rows(run, "reports", "list", "--status", "resolved") == []
    await run("reports", "triage", name)
    await run("reports", "comment", name, "Looking into it.")
    resolved = json.loads((await run("reports", "resolve", name, "--comment", "Fixed.", "--json")).stdout)
    assert (resolved["status"], resolved["version"]) == ("resolved", 3)
    shown = await run("reports", "show", name)
    for text in ("Wrong refund", "Looking into it.", "Fixed.", "bold"):
        assert text in shown.stdout
    assert "can" in (await run("reports", "reject", name, ok=False)).stderr
    await run("reports", "reopen", name)
    assert "rejected" in (await run("reports", "reject", name)).stderr
    for wrong in ([str(uuid.uuid4())], ["nonsense"]):
        assert "no report" in (await run("reports", "show", *wrong, ok=False)).stderr
    assert "severity is one of" in (await run("reports", "list", "--severity", "worst", ok=False)).stderr
    exported = (await run("reports", "export")).stdout.splitlines()
    assert [json.loads(line)["id"] for line in exported] == [name]


async def test_export_streams_in_bounded_memory(world: World, database_url: str) -> None:
    """10,000 interactions of 20 kB are 200 MB; the export never holds them."""
    async with world.database.connection() as connection:
        await connection.execute("SELECT ensure_interaction_partition('2026-01-02')")
        await connection.execute(
            "INSERT INTO interaction SELECT '2026-01-02Z'::timestamptz + n * interval '1 s', gen_random_uuid(), 1, 1,"
            " 0, 0, 0, 3, 'unit', false, 1, 'c', NULL, 'chat', false, 200, NULL, false, false, false, false, 'd', 1, 0,"
            " false, NULL, NULL, NULL, NULL, 1, 0, 1, NULL, NULL, 1, 1, 0, repeat(md5(n::text), 640), NULL"
            " FROM generate_series(1, 10000) AS n"
        )
    program = (
        "import resource, sys; from headway.cli import main\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = used()\n"
        "try: main()\n"
        "finally: print(used() - before, file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "interactions", "export"]
    environment = {**os.environ, "HEADWAY_DATABASE_URL": database_url}
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, limit=1 << 20
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines = size = 0
    async for line in process.stdout:
        lines += 1
        size += len(line)
    told = (await process.stderr.read()).decode()
    assert await process.wait() == 0, told
    assert lines == 10_000
    assert size > 200e6
    assert int(told.split()[-1]) < 60_000  # kB


async def test_an_export_may_be_cut_short(world: World, database_url: str) -> None:
    for _ in range(300):
        await world.record(world.interaction(), "talk", content=("x" * 10_000, "y"))
    command = f"{sys.executable} -c 'from headway.cli import main; main()' interactions export | head -1"
    process = await asyncio.create_subprocess_shell(
        f"set -o pipefail; {command}",
        executable="/bin/bash",
        env={**os.environ, "HEADWAY_DATABASE_URL": database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert json.loads(out)["application"] == "support"
    assert process.returncode in (0, 128 + signal.SIGPIPE), err
    assert b"Traceback" not in err


async def test_labels_are_shown_as_they_are(world: World, run: Run) -> None:
    """Square brackets are Rich's markup, but not in what people write."""
    desk = make_desk(world, world.database)
    await desk.feedback({"interaction_id": world.issue(), "comment": "[bold]not markup[/bold]"})
    assert "[bold]not markup[/bold]" in (await run("feedback", "list")).stdout.replace("\n", "")
