"""headway index: building, comparing and dropping versions of search indexes."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from headway.cli.comparison import compare
from headway.cli.searching import search
from headway.cli.terminal import (
    JsonOption,
    author,
    cell,
    console,
    emit,
    emit_json,
    emit_record,
    notes,
    read_reference,
    run_async,
)
from headway.clock import SystemClock
from headway.config.azure_search import AzureSearchSpec
from headway.config.indexes import LATEST, IndexReference, VersionSpec
from headway.config.load import load
from headway.config.settings import load_settings
from headway.config.spec import specify_version
from headway.domain.display import format_seconds
from headway.errors import ConfigurationError, ConflictError, HeadwayError, InvalidRequestError, StorageError
from headway.runtime import open_database
from headway.runtime.indexes import sweep_services
from headway.storage import builds, configuration, versions
from headway.storage.builds import Build
from headway.storage.database import Connection, Database
from headway.storage.paging import read_page
from headway.storage.versions import DocumentChange, Version

app = typer.Typer(help="Build, compare, search and drop versions of search indexes.", no_args_is_help=True)
app.command()(search)
app.command()(compare)

_SHOWN_SKIPPED = 20
_SIGNS = {"added": ("+", "green"), "changed": ("~", "yellow"), "removed": ("-", "red")}

IndexArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the index.")]
VersionArgument = Annotated[
    str, typer.Argument(metavar="NAME[@N]", help="An index version; the latest published one of a bare name.")
]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="The configuration file; headway.yaml, or what is applied, by default."),
]


@app.command("list")
def list_indexes(
    index: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this index's versions.")] = None,
    json: JsonOption = False,
) -> None:
    """List index versions, newest first, and who uses them.

    Example: [bold]headway index list handbook[/bold]
    """
    found = run_async(_list(index))
    if json:
        emit_json([_plain(version) for version in found])
        return
    rows = [
        {
            "version": version.label,
            "state": _state(version),
            **_counts(version),
            "used_by": list(version.used_by),
            "created_at": version.created_at,
            "created_by": version.created_by,
        }
        for version in found
    ]
    emit(rows, tuple(rows[0]) if rows else (), json=False)


@app.command()
def show(version: VersionArgument, json: JsonOption = False) -> None:
    """Show an index version: what it was built of, what it consists of, what was left out and why.

    Example: [bold]headway index show handbook@3[/bold]
    """
    found, skipped = run_async(_show(read_reference(version)))
    if json:
        emit_json(_plain(found) | {"skipped": skipped})
        return
    emit_record(_described(found), json=False)
    if skipped:
        console.print("\n[bold]left out[/bold]")
        for row in skipped[:_SHOWN_SKIPPED]:
            console.print(Text(f"{_line(row['path'])}: {_line(row['problem'])}"), soft_wrap=True)
        more = found.progress.skipped - _SHOWN_SKIPPED
        if more > 0:
            console.print(Text(f"and {more:,} more; --json lists up to 500", "dim"))


@app.command()
def build(index: IndexArgument, file: FileOption = None, json: JsonOption = False) -> None:
    """Build the next version of an index, and publish it when it is whole.

    Only what has changed since the latest version is embedded. A build that was stopped, or killed, goes on where it
    was with the same command. Applications use the new version once a release names it: [bold]headway apply[/bold].

    Example: [bold]headway index build handbook[/bold]
    """
    try:
        built = run_async(_build(index, file, quiet=json))
    except KeyboardInterrupt:
        notes.print(
            Text(f"Stopped. `headway index build {index}` goes on; `headway index cancel {index}` gives it up.")
        )
        raise typer.Exit(130) from None
    if json:
        emit_json(_plain(built))
        return
    _tell_published(built)
    if built.progress.skipped:
        left_out = _count(built.progress.skipped, "document")
        notes.print(Text(f"{left_out} left out: `headway index show {built.label}` tells why", "yellow"))
    console.print(Text(f"To use it: `index: {built.label}` in a release, and `headway apply`.", "dim"))


def _tell_published(built: Build) -> None:
    service = built.spec.index.azure_ai_search
    if service is not None and service.index:
        told = f"{built.label} is published: the index {service.index!r} of {service.endpoint}, as it is defined now."
        console.print(Text(told, "green"), soft_wrap=True)
        return
    progress = built.progress
    took, reused = format_seconds(progress.seconds), f", {progress.reused:,} reused" if progress.reused else ""
    console.print(
        Text(
            f"{built.label} is published: {_count(progress.loaded, 'document')}, {_count(progress.chunks, 'chunk')}"
            f" ({progress.embedded:,} embedded{reused}), in {took}{_cost(progress.cost_usd)}.",
            "green",
        ),
        soft_wrap=True,
    )


@app.command()
def cancel(
    index: IndexArgument,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the audit log.")] = "",
    json: JsonOption = False,
) -> None:
    """Give up the build of an index; whoever builds it stops at its next step.

    Example: [bold]headway index cancel handbook --reason "wrong folder"[/bold]
    """
    given_up = run_async(_cancel(index, reason))
    if json:
        emit_json({"version": given_up.label, "state": given_up.state})
        return
    console.print(f"{given_up.label} is cancelled.")


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="NAME@N", help="The one version.")],
    after: VersionArgument,
    json: JsonOption = False,
) -> None:
    """List the documents that were added, changed or removed from one version to another.

    Example: [bold]headway index diff handbook@3 handbook@4[/bold]
    """
    older, newer, changes = run_async(_diff(read_reference(before), read_reference(after)))
    if json:
        emit_json({"before": older.label, "after": newer.label, "items": [asdict(change) for change in changes]})
        return
    if not changes:
        notes.print("No differences.")
    for change in changes:
        sign, style = _SIGNS[change.change]
        console.print(Text(f"{sign} {_line(change.path)}", style), Text(cell(change.title), "dim"), soft_wrap=True)
    if changes:
        counts = [f"{sum(each.change == kind for each in changes):,} {kind}" for kind in _SIGNS]
        console.print(Text(", ".join(counts), "bold"))


@app.command()
def drop(
    version: Annotated[str, typer.Argument(metavar="NAME@N", help="An index version.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the audit log.")] = "",
    json: JsonOption = False,
) -> None:
    """Drop an index version that no release in use names. What it consisted of is still shown; its content is gone.

    Example: [bold]headway index drop handbook@2[/bold]
    """
    wanted = read_reference(version)
    if wanted.version == LATEST:
        raise InvalidRequestError(f"say which version of {wanted.name}, as {wanted.name}@2", param="version")
    dropped = run_async(_drop(wanted, reason))
    if json:
        emit_json(_plain(dropped))
        return
    console.print(f"{dropped.label} is dropped.")


class _Bar:
    """Shows how far a build is: a bar at a terminal, a line per stage elsewhere, nothing where nobody looks."""

    def __init__(self, *, quiet: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description:9}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[more]}", style="dim"),
            TimeElapsedColumn(),
            console=notes,
            disable=quiet or not notes.is_terminal,
        )
        self._quiet = quiet
        self._task = self._bar.add_task("", total=None, more="")
        self._stage = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, build: Build) -> None:
        """Show a step."""
        progress = build.progress
        more = f"{progress.chunks:,} chunks" + (f", {progress.skipped:,} left out" if progress.skipped else "")
        more += f", {progress.uploaded:,} written" if progress.remote else ""
        known = progress.documents if build.stage != "snapshot" else None
        self._bar.update(self._task, description=build.stage, total=known, completed=progress.done, more=more)
        if self._bar.disable and not self._quiet and build.stage != self._stage:
            notes.print(f"{build.label}: {build.stage}")
        self._stage = build.stage


async def _list(index: str | None) -> list[Version]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await versions.list_versions(connection, index)


async def _show(wanted: IndexReference) -> tuple[Version, list[dict[str, Any]]]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        found = await versions.find_version(connection, wanted)
        page = await read_page(
            connection, versions.DOCUMENTS, [("d.version_id = %s", found.version), ("d.state = %s", "skipped")],
            limit=500,
        )  # fmt: skip
        return found, page.items


async def _build(index: str, file: Path | None, *, quiet: bool) -> Build:
    if importlib.util.find_spec("fsspec") is None:
        raise ConfigurationError("building an index needs the knowledge extra: pip install 'headway[knowledge]'")
    from headway.retrieval.building import start  # noqa: PLC0415 - needs the extra
    from headway.runtime.indexes import open_tools  # noqa: PLC0415 - so does this

    settings = load_settings()
    async with open_database(settings) as database:
        async with database.connection() as connection:
            spec = await _specify(connection, index, file)
        async with open_tools(database, SystemClock()) as tools:
            with _Bar(quiet=quiet) as bar:
                try:
                    return await start(tools, index, spec, author=author(), tell=bar.tell)
                except HeadwayError as error:
                    if not isinstance(error, ConflictError) and await _is_unfinished(database, index):
                        error.message += (
                            f"; `headway index build {index}` goes on from where it was,"
                            f" `headway index cancel {index}` gives it up"
                        )
                    raise


async def _is_unfinished(database: Database, index: str) -> bool:
    try:
        async with database.connection() as connection:
            return await builds.find_unfinished(connection, index) is not None
    except StorageError:  # it is away, and was when the build ended
        return True


async def _specify(connection: Connection, index: str, file: Path | None) -> VersionSpec:
    """Read what to build by: of the given file, else of headway.yaml, else of what is applied."""
    path = load_settings().config if file is None else file
    if file is not None or path.exists():
        return specify_version(load(path).specification, index)
    entry = await configuration.current(connection)
    if entry is None:
        raise ConfigurationError(f"{path} does not exist, and nothing is applied")
    return specify_version(entry.specification, index)


async def _cancel(index: str, reason: str) -> Build:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await versions.cancel(connection, index, author=author(), reason=reason)


async def _diff(before: IndexReference, after: IndexReference) -> tuple[Version, Version, list[DocumentChange]]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        older, newer = await versions.find_version(connection, before), await versions.find_version(connection, after)
        return older, newer, await versions.compare(connection, older, newer)


async def _drop(wanted: IndexReference, reason: str) -> Version:
    async with open_database(load_settings()) as database:
        async with database.connection() as connection:
            found = await versions.find_version(connection, wanted)
            await versions.drop(connection, found, author=author(), reason=reason)
        async with database.connection() as connection:
            await versions.sweep(connection)
        if found.progress.remote:
            await sweep_services(database, SystemClock())
        async with database.connection() as connection:
            return await versions.find_version(connection, wanted)


def _line(text: str) -> str:
    return cell(text).replace("\n", "\N{SYMBOL FOR NEWLINE}")  # a file's name may have one


def _counts(version: Version) -> dict[str, int | None]:
    """Count what a version holds; of an index found in a search service, what it had then."""
    if version.spec.index.is_pinned:
        return {"documents": (version.manifest or {}).get("documents"), "skipped": None, "chunks": None}
    progress = version.progress
    return {"documents": progress.loaded, "skipped": progress.skipped, "chunks": progress.chunks}


def _state(version: Version) -> str:
    if version.state != "building":
        return version.state
    return f"building ({version.stage}{', waits' if version.problem else ''})"


def _described(version: Version) -> dict[str, Any]:
    spec, progress, manifest = version.spec.index, version.progress, version.manifest or {}
    if spec.is_pinned:
        return _described_pinned(version, manifest)
    embedder = manifest.get("recipe", {}).get("embedder") or spec.embedder.deployment or "local-static"
    return {
        "version": version.label,
        "state": _state(version),
        "problem": version.problem,
        "used_by": list(version.used_by),
        "lake": spec.lake.url,
        **({"searched_in": _searched_in(spec.azure_ai_search, progress.remote)} if spec.azure_ai_search else {}),
        "include": list(spec.lake.include),
        "exclude": list(spec.lake.exclude),
        "embedder": embedder,
        "chunks_of": f"up to {spec.chunk.tokens} tokens, {spec.chunk.overlap} of them repeated",
        "documents": f"{progress.loaded:,} of {progress.documents:,}, {progress.skipped:,} left out",
        "chunks": f"{progress.chunks:,}: {progress.embedded:,} embedded, {progress.reused:,} reused",
        "cost": "not known" if progress.cost_usd is None else f"${progress.cost_usd:,.4f}",
        "took": format_seconds(progress.seconds),
        "content_hash": version.manifest_hash,
        "created": f"{version.created_at:%Y-%m-%d %H:%M:%S} by {version.created_by}",
    }


def _described_pinned(version: Version, manifest: dict[str, Any]) -> dict[str, Any]:
    """Describe a version that is an index of a search service, found there."""
    spec = version.spec.index
    assert spec.azure_ai_search is not None
    documents, dimensions = manifest.get("documents"), manifest.get("dimensions")
    return {
        "version": version.label,
        "state": _state(version),
        "problem": version.problem,
        "used_by": list(version.used_by),
        "searched_in": _searched_in(spec.azure_ai_search, spec.azure_ai_search.index),
        "documents": "not known" if documents is None else f"{documents:,} when it was pinned",
        "embedder": (spec.embedder.deployment or "local-static") if dimensions else "none: words only",
        "definition": manifest.get("azure_ai_search", {}).get("definition"),
        "content_hash": version.manifest_hash,
        "created": f"{version.created_at:%Y-%m-%d %H:%M:%S} by {version.created_by}",
    }


def _searched_in(service: AzureSearchSpec, remote: str) -> str:
    return f"Azure AI Search: {remote or 'no index yet'} at {service.endpoint}"


def _plain(version: Any) -> dict[str, Any]:
    plain = {field: getattr(version, field) for field in version.__dataclass_fields__ if field != "version"}
    return {"label": version.label, **msgspec.to_builtins(plain)}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _cost(cost_usd: float | None) -> str:
    return f", for ${cost_usd:,.4f}" if cost_usd else ""
