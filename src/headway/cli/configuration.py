"""headway init, check, plan, apply, diff, history: the configuration file and what is applied of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from headway.cli.rollout_forecast import draw_forecast
from headway.cli.starter import STARTER_FILES
from headway.cli.terminal import (
    JsonOption,
    author,
    console,
    emit,
    emit_json,
    is_interactive,
    notes,
    run_async,
)
from headway.clock import SystemClock
from headway.config.changes import Change, compare, diff_texts, prompts
from headway.config.load import ConfigurationFile, InvalidFileError, load
from headway.config.settings import load_settings
from headway.config.spec import Specification
from headway.errors import ConfigurationError, ConflictError
from headway.rollouts import applying
from headway.rollouts.applying import AppliedFile, FilePlan
from headway.runtime import open_database
from headway.storage import configuration
from headway.storage.configuration import ReleasePlan

FileArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="The configuration file; headway.yaml, or HEADWAY_CONFIG, by default."),
]

AcceptOption = Annotated[
    bool, typer.Option("--accept", help="Start rollouts that cannot finish within their policy's max_duration.")
]
RetryOption = Annotated[bool, typer.Option("--retry", help="Start releases again that were rolled back before.")]

_SIGNS = {"created": ("+", "green"), "changed": ("~", "yellow"), "removed": ("-", "red")}
_RELEASE_NOTES = {
    "live": "is the application's first and gets all traffic at once",
    "stable": "has the traffic already",
    "running": "is being rolled out already",
    "candidate": "waits as a candidate; traffic stays where it is",
    "rollout": "is rolled out",
}


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; made if it does not exist.")] = Path(),
) -> None:
    """Write a small headway.yaml with comments, and a prompt, to begin with.

    Nothing that exists is overwritten.

    Example: [bold]headway init[/bold]
    """
    wanted = {folder / name: text for name, text in STARTER_FILES.items()}
    present = [str(path) for path in wanted if path.exists()]
    if present:
        raise ConfigurationError(f"{', '.join(present)}: there already; nothing was written")
    for path, text in wanted.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
        console.print(Text(f"wrote {path}"))
    notes.print("Next: edit it, then `headway check` and `headway apply`.")


def check(file: FileArgument = None, json: JsonOption = False) -> None:
    """Check the configuration file without network and database; list all its problems at once.

    Exit status 1 when there are any, so it fits into a pipeline.

    Example: [bold]headway check[/bold], [bold]headway check staging.yaml --json[/bold]
    """
    try:
        loaded = _load(file)
    except InvalidFileError as error:
        if not json:
            raise
        emit_json([msgspec.to_builtins(problem) for problem in error.problems])
        raise typer.Exit(1) from error
    if json:
        emit_json([])
        return
    specification = loaded.specification
    counts = f"{_count(specification.deployments, 'deployment')}, {_count(specification.applications, 'application')}"
    if specification.indexes:
        counts += ", 1 index" if len(specification.indexes) == 1 else f", {len(specification.indexes)} indexes"
    console.print(Text(f"{loaded.path} is sound: {counts}", style="green"), soft_wrap=True)
    for reference in _unresolved(specification):
        notes.print(Text(f"note: {reference} is not there for this process; `headway run` will need it", "yellow"))


def plan(
    file: FileArgument = None, accept: AcceptOption = False, retry: RetryOption = False, json: JsonOption = False
) -> None:
    """Show what applying the configuration file would change. Nothing is written.

    For each rollout that it would start: how long that should take at the present traffic, and what it can detect. Exit
    status 1 when [bold]headway apply[/bold] would refuse the file.

    Example: [bold]headway plan[/bold]
    """
    loaded = _load(file)
    planned = run_async(_plan(loaded, retry=retry))
    obstacles = planned.obstacles(accept=accept)
    if json:
        emit_json(_json(planned) | {"obstacles": obstacles})
    else:
        _show_plan(planned, loaded.specification)
        for obstacle in obstacles:
            notes.print(Text(obstacle, style="red"), soft_wrap=True)
    if obstacles:
        raise typer.Exit(1)


def apply(
    file: FileArgument = None,
    accept: AcceptOption = False,
    retry: RetryOption = False,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; kept with the rollouts that begin.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Apply the configuration file: show the plan, ask at a terminal, then make it so in one transaction.

    A new release of an application under a policy starts its rollout; under the policy [bold]manual[/bold] it waits for
    [bold]headway share[/bold]; an application's first release is live at once. Applying a file twice changes nothing.

    Example: [bold]headway apply[/bold], or in a pipeline [bold]headway apply --yes[/bold]
    """
    loaded = _load(file)
    planned = run_async(_plan(loaded, retry=retry))
    if not json:
        _show_plan(planned, loaded.specification)
    if planned.is_empty:
        if json:
            emit_json({"plan": _json(planned), "entry": 0, "snapshot": 0, "rollouts": []})
        return
    obstacles = planned.obstacles(accept=accept)
    if obstacles:
        raise ConflictError("\n".join(obstacles))
    if not yes and not json and is_interactive() and not typer.confirm("Apply?", default=True):
        notes.print("Nothing was applied.")
        raise typer.Exit(1)
    applied = run_async(_apply(loaded, planned.configuration.base, accept=accept, retry=retry, reason=reason))
    if json:
        numbers = [rollout.number for rollout in applied.rollouts]
        entry = applied.configuration.entry
        emit_json({"plan": _json(planned), "entry": entry, "snapshot": applied.snapshot, "rollouts": numbers})
        return
    _show_applied(applied)


def diff(
    before: Annotated[int | None, typer.Argument(help="Number in the history; what is applied now by default.")] = None,
    after: Annotated[int | None, typer.Argument(help="Number in the history; the file by default.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The configuration file; headway.yaml by default.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show the differences between what is applied and the file, or between two entries of the history.

    Example: [bold]headway diff[/bold]

    Example: [bold]headway diff 3[/bold] (entry 3 and the file), [bold]headway diff 3 5[/bold]
    """
    loaded = _load(file) if after is None else None
    older, newer = run_async(_sides(before, after, loaded))
    changes = compare(older.specification, newer.specification)
    texts = _text_diffs(older, newer)
    if json:
        emit_json({"changes": changes, "texts": texts})
        return
    if not changes and not any(texts):
        notes.print("No differences.")
    _show_changes(changes)
    for text in filter(None, texts):
        console.print()
        for line in text.splitlines():
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[0], "")
            console.print(Text(line, style=style), soft_wrap=True)


def history(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 20,
    json: JsonOption = False,
) -> None:
    """List what has been applied, by whom and when, newest first. [bold]headway diff A B[/bold] compares two of them.

    Example: [bold]headway history --limit 5[/bold]
    """
    entries = run_async(_history(limit))
    rows = [
        {
            "number": entry.number,
            "applied_at": entry.applied_at,
            "applied_by": entry.applied_by,
            "hash": entry.hash[:12],
            "applications": sorted(entry.specification.applications),
            "source": entry.source,
        }
        for entry in entries
    ]
    emit(rows, ("number", "applied_at", "applied_by", "hash", "applications"), json=json)


class _Side:
    """One side of a comparison."""

    def __init__(self, label: str, source: str, specification: Specification) -> None:
        self.label = label
        self.source = source
        self.specification = specification


def _load(file: Path | None) -> ConfigurationFile:
    return load(load_settings().config if file is None else file)


async def _plan(loaded: ConfigurationFile, *, retry: bool) -> FilePlan:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await applying.plan(connection, loaded, SystemClock().unix_ms(), retry=retry)


async def _apply(loaded: ConfigurationFile, base: int, *, accept: bool, retry: bool, reason: str) -> AppliedFile:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await applying.apply(
            connection,
            loaded,
            author=author(),
            now_ms=SystemClock().unix_ms(),
            base=base,
            accept=accept,
            retry=retry,
            reason=reason,
        )


async def _history(limit: int) -> list[configuration.Entry]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await configuration.history(connection, limit=limit)


async def _sides(before: int | None, after: int | None, loaded: ConfigurationFile | None) -> tuple[_Side, _Side]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        entry = await (configuration.current(connection) if before is None else configuration.find(connection, before))
        if loaded is not None:
            newer = _Side(str(loaded.path), loaded.source, loaded.specification)
        else:
            found = await configuration.find(connection, after or 0)
            newer = _Side(f"configuration {found.number}", found.source, found.specification)
    if entry is None:
        return _Side("nothing applied", "", Specification(deployments={}, metrics={}, applications={})), newer
    return _Side(f"configuration {entry.number}", entry.source, entry.specification), newer


def _text_diffs(older: _Side, newer: _Side) -> list[str]:
    """Compare the files and then each prompt, as unified diffs."""
    texts = [diff_texts(older.source, newer.source, (older.label, newer.label))]
    before, after = prompts(older.specification), prompts(newer.specification)
    for name in sorted({*before, *after}):
        names = (f"{older.label}: prompt of {name}", f"{newer.label}: prompt of {name}")
        texts.append(diff_texts(before.get(name, ""), after.get(name, ""), names))
    return [text for text in texts if text]


def _json(planned: FilePlan) -> dict[str, Any]:
    return {**msgspec.to_builtins(planned.configuration), "rollouts": msgspec.to_builtins(planned.rollouts)}


def _show_plan(planned: FilePlan, specification: Specification) -> None:
    if planned.is_empty:
        console.print("No changes: the file is applied already.")
        for release in planned.configuration.releases:
            if release.action != "stable" or release.note:
                console.print(Text(_describe(release)), soft_wrap=True)
        return
    if planned.configuration.text_only:
        console.print("The file reads differently, but means the same.")
    _show_changes(planned.configuration.changes)
    starts = {start.application: start for start in planned.rollouts}
    for release in planned.configuration.releases:
        console.print(Text(_describe(release)), soft_wrap=True)
        start = starts.get(release.application)
        if start is not None:
            wanted = specification.applications[release.application]
            for part in draw_forecast(start, specification.policies[start.policy], wanted):
                console.print(part)


def _show_applied(applied: AppliedFile) -> None:
    if applied.configuration.entry:
        console.print(Text(f"Applied as configuration {applied.configuration.entry}.", style="green"))
    for rollout in applied.rollouts:
        console.print(Text(f"Rollout {rollout.number} of {rollout.application} has begun.", style="green"))
        console.print(Text(f"    to follow it: headway rollout watch {rollout.application}"))


def _show_changes(changes: Iterable[Change]) -> None:
    for change in changes:
        sign, style = _SIGNS[change.action]
        console.print(Text(f"{sign} {change.subject}", style=style), soft_wrap=True)
        for detail in change.details:
            console.print(Text(f"    {detail}"), soft_wrap=True)


def _describe(release: ReleasePlan) -> str:
    new = "new release" if release.new else "release"
    note = f"\n    {release.note}" if release.note else ""
    next_step = f"\n    to roll it out: {release.next_step}" if release.next_step else ""
    return f"  {release.application}: {new} {release.release} {_RELEASE_NOTES[release.action]}{note}{next_step}"


def _unresolved(specification: Specification) -> list[str]:
    """List the secret references that lead nowhere from here."""
    references = set()
    for deployment in specification.deployments.values():
        operation = deployment.operation
        references |= {operation.api_key, *(value for _, value in operation.headers)}
    return sorted(reference for reference in references if reference and not _is_there(reference))


def _is_there(reference: str) -> bool:
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        return bool(os.environ.get(rest))
    return scheme != "file" or Path(rest).is_file()


def _count(things: Any, noun: str) -> str:
    return f"{len(things)} {noun}" if len(things) == 1 else f"{len(things)} {noun}s"
