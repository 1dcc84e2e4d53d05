"""The commands around configuration, releases, shares and keys, as an operator types them."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from headway.config.settings import Settings
from headway.runtime import open_database
from tests.commands import headway, listed
from tests.project import Project

SECRET = "s3cr3t-" + "x" * 20


@pytest.fixture
def project(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project folder that is the current one, with a database of its own and a secret in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWAY_DATABASE_URL", database_url)
    monkeypatch.setenv("MAIN_KEY", SECRET)
    monkeypatch.delenv("HEADWAY_CONFIG", raising=False)
    return Project(tmp_path)


def release_names() -> list[str]:
    """Names of the releases, oldest first."""
    return [release["name"] for release in reversed(listed("releases", "list"))]


def test_from_an_empty_folder_to_a_promoted_release(project: Project) -> None:
    assert "wrote headway.yaml" in headway("init").stdout
    assert "headway.yaml is sound: 1 deployment, 1 application" in headway("check").stdout
    planned = headway("plan").stdout
    assert "+ application support" in planned
    assert re.search(r"support: new release r-\w{8} is the application's first", planned)
    assert listed("releases", "list") == []

    assert "Applied as configuration 1." in headway("apply").stdout
    assert headway("apply").stdout == headway("plan").stdout == "No changes: the file is applied already.\n"

    prompt = project.folder / "prompts" / "support.j2"
    prompt.write_text(prompt.read_text() + "Be kind.\n")
    difference = headway("diff").stdout
    assert "release.prompt: 1 line added, 0 removed" in difference
    assert "+Be kind." in difference
    applied = headway("apply", "--yes").stdout
    first, second = release_names()
    assert f"to roll it out: headway share support {second} 10%" in applied

    assert f"{second} goes to 10% (rollout 1, stage 1); {first} keeps 90%" in shared("10%", second)
    assert f"{second} has 10% of support already" in shared("0.1", second)
    assert f"{second} goes from 10% to 50% (rollout 1, stage 2)" in shared("50%", second)
    assert "90%" not in headway("releases", "list", "support").stdout
    assert f"{second} is now the stable release" in shared("100%", second)
    assert [stage["share"] for stage in listed("rollout", "show", "1")["stages"]] == [0.1, 0.5, 1.0]
    assert listed("rollout", "list")[0]["state"] == "promoted"
    assert "Be kind." in headway("releases", "show", "support", second).stdout
    assert [entry["number"] for entry in listed("history")] == [2, 1]
    assert "+Be kind." in headway("diff", "1", "2").stdout
    assert headway("diff", "2").stderr == "No differences.\n"


def shared(share: str, release: str) -> str:
    return headway("share", "support", release, share, "--reason", "test").stdout


def test_init_overwrites_nothing(project: Project) -> None:
    project.file.write_text("mine")
    assert "headway.yaml: there already; nothing was written" in headway("init", status=1).stderr
    assert project.file.read_text() == "mine"
    assert not (project.folder / "prompts").exists()


def test_init_says_what_cannot_be_written(project: Project) -> None:
    (project.folder / "prompts").write_text("a file where a folder should be")
    assert "prompts/support.j2 cannot be written: " in headway("init", status=1).stderr


def test_check_lists_problems_for_people_and_for_programs(project: Project) -> None:
    project.file.write_text("deployments: {d: {provider: opnai}}\napplications: []\n")
    told = headway("check", status=1).stderr
    assert "headway.yaml has 3 problems:" in told
    assert "headway.yaml:1: deployments.d.provider: expected openai or azure_openai" in told
    found = json.loads(headway("check", "--json", status=1).stdout)
    assert [(problem["line"], problem["place"]) for problem in found] == [
        (1, "deployments.d"),
        (1, "deployments.d.provider"),
        (2, "applications"),
    ]


def test_check_needs_no_database(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWAY_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    project.write()
    assert "is sound" in headway("check").stdout
    assert "the database at 127.0.0.1:1/none is away" in headway("plan", status=1).stderr


def test_check_tells_which_secrets_are_missing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write()
    assert headway("check").stderr == ""
    monkeypatch.delenv("MAIN_KEY")
    assert "note: env:MAIN_KEY is not there for this process" in headway("check").stderr


def test_a_named_file_and_the_environment_choose_the_configuration(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write()
    project.file.rename(project.folder / "staging.yaml")
    assert "headway.yaml does not exist" in headway("check", status=1).stderr
    assert "staging.yaml is sound" in headway("check", "staging.yaml").stdout
    monkeypatch.setenv("HEADWAY_CONFIG", "staging.yaml")
    assert "staging.yaml is sound" in headway("check").stdout


def test_keys(project: Project) -> None:
    plain = headway("keys", "create", "web")
    assert re.fullmatch(r"hw-[\w-]{43}\n", plain.stdout)  # the key alone, to be captured
    created = listed(
        "keys",
        "create",
        "ci",
        "--scope",
        "invoke",
        "--scope",
        "pin",
        "--application",
        "support",
        "--requests-per-minute",
        "60",
        "--concurrency",
        "2",
        "--monthly-usd",
        "5",
        "--expires",
        "7d",
    )
    assert created["key"].startswith(created["hint"])
    table = headway("keys", "list").stdout
    assert created["key"] not in table
    assert "active" in table
    rows = listed("keys", "list")
    assert [row["name"] for row in rows] == ["web", "ci"]
    assert (rows[0]["scopes"], rows[1]["scopes"]) == (["invoke", "feedback"], ["invoke", "pin"])
    assert (rows[1]["applications"], rows[1]["requests_per_minute"], rows[1]["monthly_usd"]) == (["support"], 60, 5)
    assert "Key 2 is in hr, it." in headway("keys", "groups", "2", "hr", "it", "hr").stderr
    assert [row["groups"] for row in listed("keys", "list")] == [[], ["hr", "it"]]
    assert "no comma" in headway("keys", "groups", "2", "hr,it", status=1).stderr
    headway("keys", "revoke", "1", "--reason", "leaked")
    assert "key 1 is revoked already" in headway("keys", "revoke", "1", status=1).stderr
    headway("keys", "expire", "2", "1ms")
    assert [row["state"] for row in listed("keys", "list")] == ["revoked", "expired"]
    assert "never ends" in headway("keys", "expire", "2", "never").stderr
    assert "unknown scope 'root'" in headway("keys", "create", "x", "--scope", "root", status=1).stderr
    assert "a duration is a number and a unit" in headway("keys", "create", "x", "--expires", "soon", status=1).stderr
    assert "signed with key 2" in headway("keys", "rotate-signing").stderr


def test_what_is_not_there_is_told_in_one_line(project: Project) -> None:
    project.write()
    headway("apply")
    wrong: list[tuple[tuple[str, ...], str]] = [
        (("share", "suport", "r-1", "10%"), "no application is called 'suport'; did you mean 'support'?"),
        (("share", "support", "r-1", "10%"), "support has no release called 'r-1'"),
        (("share", "support", "r-1", "10"), "10 is not clear: write 10% or 100%"),
        (("releases", "list", "suport"), "no application is called 'suport'; did you mean 'support'?"),
        (("releases", "show", "support", "r-1"), "support has no release called 'r-1'"),
        (("rollout", "show", "9"), "there is no rollout 9"),
        (("diff", "9"), "there is no applied configuration 9"),
        (("keys", "revoke", "9"), "there is no key 9"),
    ]
    for arguments, complaint in wrong:
        told = headway(*arguments, status=1)
        assert told.stdout == ""
        assert complaint in told.stderr
        assert "Traceback" not in told.stderr


def test_lists_are_json_even_when_empty(project: Project) -> None:
    for arguments in (("history",), ("releases", "list"), ("rollout", "list"), ("keys", "list")):
        assert listed(*arguments) == []
        assert headway(*arguments).stderr == "none\n"


def test_every_command_explains_itself(project: Project) -> None:
    commands: list[tuple[str, ...]] = [
        ("init",),
        ("check",),
        ("plan",),
        ("apply",),
        ("diff",),
        ("history",),
        ("share",),
    ]
    commands += [("releases", "list"), ("releases", "show"), ("rollout", "list"), ("rollout", "show")]
    commands += [
        ("keys", "create"),
        ("keys", "list"),
        ("keys", "revoke"),
        ("keys", "expire"),
        ("keys", "rotate-signing"),
    ]
    for command in commands:
        told = headway(*command, "--help").stdout
        assert f"Example: headway {' '.join(command)}" in " ".join(told.split()), command


# --- secrets ---


def dump(url: str) -> str:
    """All rows of all tables as text, snapshots decoded."""
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [row for (name,) in tables for row in connection.execute(f'SELECT t::text FROM "{name}" t').fetchall()]
        rows += connection.execute("SELECT convert_from(body, 'UTF8') FROM routing_snapshot").fetchall()
    return "\n".join(str(row[0]) for row in rows)


def test_secrets_are_never_stored_or_shown(
    project: Project, database_url: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    secret_file = tmp_path / "token"
    secret_file.write_text(SECRET)
    deployments = (
        "deployments:\n  main: {provider: openai, base_url: http://127.0.0.1:9/v1, model: m, api_key: env:MAIN_KEY,"
        f' headers: {{X-Token: "file:{secret_file}"}}}}\n'
    )
    shown = []
    for prompt in ("One.", "Two."):
        project.write(prompt, deployments=deployments)
        commands: list[tuple[str, ...]] = [("check",), ("plan",), ("plan", "--json"), ("diff",), ("apply", "--yes")]
        shown += [headway(*command).output for command in commands]
    first, second = release_names()
    shown.append(shared("10%", second))
    for command in (
        ("history", "--json"),
        ("releases", "list", "--json"),
        ("releases", "show", "support", first, "--json"),
    ):
        shown.append(headway(*command).output)
    everything = "\n".join(shown) + caplog.text + dump(database_url)
    assert "env:MAIN_KEY" in everything
    assert str(secret_file) in everything
    assert SECRET not in everything


@pytest.mark.parametrize("place", ["api_key: {}", "headers: {{Authorization: Bearer {}}}", "api_kee: {}"])
def test_a_literal_secret_is_refused_and_repeated_nowhere(
    place: str, project: Project, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    project.file.write_text(
        "deployments:\n  main: {provider: openai, base_url: http://h, model: m, " + place.format(SECRET) + "}\n"
        "applications:\n  support:\n    release: {deployment: main}\n"
    )
    commands: list[tuple[str, ...]] = [("check",), ("check", "--json"), ("plan",), ("apply", "--yes"), ("diff",)]
    told = [headway(*command, status=1).output for command in commands]
    assert all("headway.yaml" in text and "main" in text for text in told)
    assert SECRET not in "\n".join(told) + caplog.text + dump(database_url)


# --- a real process ---


def start(arguments: list[str], **options: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", "from headway.cli import main; main()", *arguments]
    return subprocess.Popen(command, **options)


def ask(answer: bytes) -> tuple[str, int]:
    """Run `headway apply` at a terminal, answer its question, and return what it showed and its status."""
    ours, theirs = pty.openpty()
    process = start(["apply"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := read(ours):
            asked = b"Apply?" in shown
            shown += chunk
            if b"Apply?" in shown and not asked:
                os.write(ours, answer)
        return shown.decode(), process.wait(timeout=60)
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def test_apply_asks_at_a_terminal(project: Project) -> None:
    project.write()
    shown, status = ask(b"n\n")
    assert "application support" in shown
    assert "Nothing was applied." in shown
    assert status == 1
    assert listed("history") == []
    shown, status = ask(b"y\n")
    assert "Applied as configuration 1." in shown
    assert status == 0


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that the embedded server can live in: reachable for whoever runs it."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="headway-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def test_commands_start_the_embedded_database_by_themselves(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADWAY_DATABASE_URL", raising=False)
    monkeypatch.setenv("HEADWAY_HOME", str(home / ".headway"))
    process = start(["keys", "create", "web", "--json"], cwd=home, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    assert json.loads(output)["name"] == "web"
    async with open_database(Settings(home=home / ".headway")) as database, database.connection() as connection:
        cursor = await connection.execute("SELECT name FROM api_key")
        assert await cursor.fetchall() == [("web",)]
