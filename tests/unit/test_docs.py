"""The pages say what is so: commands, links, settings and make targets that they name exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from prometheus_client import CollectorRegistry, generate_latest
from typer.core import TyperGroup

from headway.api.metrics import render_metrics
from headway.cli import app
from headway.clock import ManualClock
from headway.config.settings import Settings
from headway.providers.webhooks import WebhookClient
from headway.retrieval.worker import BuildWorker
from headway.rollouts.controller import Controller
from headway.rollouts.webhooks import Courier
from headway.storage.database import Database
from tests.lakes import make_tools

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
SETTING = re.compile(r"(?<!\{)\bHEADWAY_[A-Z][A-Z_]*\b")
MAKE = re.compile(r"^(?:\w+=\S+ )*make ([a-z]+)", re.MULTILINE)
NOT_SETTINGS = {"HEADWAY_PROOF"}


def snippets(text: str) -> Iterator[str]:
    """Command lines of shell blocks, continuation lines joined, and inline code."""
    for language, body in BLOCK.findall(text):
        if language in ("sh", "bash", "shell"):
            yield from body.replace("\\\n", " ").splitlines()
    yield from INLINE.findall(BLOCK.sub("", text))


def headway_commands(text: str) -> Iterator[list[str]]:
    """What follows ``headway`` in each command line."""
    for line in snippets(text):
        for part in re.split(r"\$\(|[|;&]+|\)", line):
            match = re.match(r"^\s*(?:KEY=)?(?:\S*/)?headway (\S.*)$", part)
            if match and not match[1].startswith("="):
                yield shlex.split(match[1], comments=True)


def complaint(words: list[str]) -> str | None:
    """Why these words are no command of Headway; None if they are."""
    command: Any = typer.main.get_command(app)
    context: Any = click.Context(command)
    trail = "headway"
    while words and isinstance(command, TyperGroup):
        if words[0].startswith("-"):
            break
        name = words.pop(0)
        found: Any = command.get_command(context, name)
        if found is None:
            return f"{trail} has no command {name}"
        command, trail = found, f"{trail} {name}"
    if command.context_settings.get("ignore_unknown_options"):
        return None
    known = {
        "--help",
        *(option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)),
    }
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"{trail} has no option {unknown[0]}" if unknown else None


def slug(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def dead_links(page: Path) -> list[str]:
    dead = []
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        headings = HEADING.findall(BLOCK.sub("", file.read_text())) if anchor and file.is_file() else []
        if not file.exists() or (anchor and anchor not in map(slug, headings)):
            dead.append(target)
    return dead


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_exist(page: Path) -> None:
    assert [found for words in headway_commands(page.read_text()) if (found := complaint(words))] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_settings_exist(page: Path) -> None:
    known = {f"HEADWAY_{name.upper()}" for name in Settings.__struct_fields__} | NOT_SETTINGS
    assert set(SETTING.findall(page.read_text())) - known == set()


def test_metrics_exist(tmp_path: Path) -> None:
    database, clock = Database("host=127.0.0.1"), ManualClock()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Controller(database, clock, tick_seconds=5.0))
    registry.register(Courier(database, clock, WebhookClient()))
    registry.register(BuildWorker(make_tools(database)))
    shown = (render_metrics(Settings(home=tmp_path)) + generate_latest(registry)).decode()
    known = set(re.findall(r"^# HELP (\w+)", shown, re.MULTILINE))
    named = {
        name for page in PAGES for name in INLINE.findall(page.read_text()) if re.fullmatch(r"headway_[a-z_]+", name)
    }
    assert named
    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for line in snippets(page.read_text()) for name in MAKE.findall(line)}
    assert named - targets == set()


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = (target.partition("#")[0] for target in LINK.findall(page.read_text()) if "://" not in target)
        waiting += [(page.parent / link).resolve() for link in links if link]
    assert [relative(page) for page in PAGES if page not in reached] == []


def test_commands_are_found_where_they_stand() -> None:
    text = "```sh\nKEY=$(headway keys create ci --nope)\nheadway nothing | head\n```\nand `headway share a b --what`\n"
    assert [complaint(words) for words in headway_commands(text)] == [
        "headway keys create has no option --nope",
        "headway has no command nothing",
        "headway share has no option --what",
    ]


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two`\n[a](#one-two) [b](#three) [c](gone.md) [d](https://example.com) [e](page.md#one-two)\n"
    )
    assert dead_links(page) == ["#three", "gone.md"]
