"""headway reports: issues raised by the developers who use the API."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, get_args

import typer

from headway.cli.records import ApplicationOption, LimitOption, OutputOption, export, read_first
from headway.cli.terminal import JsonOption, author, console, emit, emit_json, emit_record, notes, run_async
from headway.clock import SystemClock, utc
from headway.config.settings import load_settings
from headway.domain.feedback import TEXT_BYTES, ReportStatus, Severity
from headway.errors import InvalidRequestError, NotFoundError
from headway.feedback.texts import checked_text, required_text
from headway.runtime import open_database
from headway.storage import reports
from headway.storage.reports import LISTING, Change

app = typer.Typer(help="List, show and close reports.", no_args_is_help=True)

ReportArgument = Annotated[str, typer.Argument(help="Id of the report; `headway reports list` shows it.")]
CommentOption = Annotated[str | None, typer.Option("--comment", "-c", help="What to say to it.")]
StatusOption = Annotated[str | None, typer.Option(help=f"Only those that are {', '.join(get_args(ReportStatus))}.")]
SeverityOption = Annotated[str | None, typer.Option(help=f"Only {', '.join(get_args(Severity))} ones.")]


@app.command("list")
def list_reports(
    application: ApplicationOption = None,
    status: StatusOption = None,
    severity: SeverityOption = None,
    limit: LimitOption = 50,
    json: JsonOption = False,
) -> None:
    """List reports, newest first.

    Example: [bold]headway reports list --status open[/bold]
    """
    rows = read_first(LISTING, _wanted(application, status, severity), limit)
    emit(rows, ("at", "id", "status", "severity", "application", "title", "author"), json=json)


@app.command("export")
def export_reports(
    application: ApplicationOption = None,
    status: StatusOption = None,
    severity: SeverityOption = None,
    output: OutputOption = None,
) -> None:
    """Export reports as JSON lines, oldest first.

    Example: [bold]headway reports export > reports.jsonl[/bold]
    """
    export(LISTING, _wanted(application, status, severity), output)


@app.command()
def show(report: ReportArgument, json: JsonOption = False) -> None:
    """Show a report with the answers that it is about, its comments and its changes.

    Example: [bold]headway reports show 0199a3c4-7d1e-7abc-8def-0123456789ab[/bold]
    """
    found = run_async(_show(_id(report)))
    if json:
        emit_json(found)
        return
    interactions, events = found.pop("interactions"), found.pop("events")
    emit_record(found, json=False)
    if interactions:
        console.print()
        emit(interactions, ("interaction", "release", "exposed_at", "interaction_id"), json=False)
    if events:
        console.print()
        emit(events, ("at", "author", "status", "severity", "comment"), json=False)


@app.command()
def triage(report: ReportArgument, comment: CommentOption = None, json: JsonOption = False) -> None:
    """Say that a report is understood and waits for its turn.

    Example: [bold]headway reports triage 0199a3c4-7d1e-7abc-8def-0123456789ab[/bold]
    """
    _change(report, json, status="triaged", comment=comment)


@app.command()
def resolve(report: ReportArgument, comment: CommentOption = None, json: JsonOption = False) -> None:
    """Close a report: its cause is gone.

    Example: [bold]headway reports resolve 0199a3c4-7d1e-7abc-8def-0123456789ab --comment "Fixed in r-1f2e3d4c."[/bold]
    """
    _change(report, json, status="resolved", comment=comment)


@app.command()
def reject(report: ReportArgument, comment: CommentOption = None, json: JsonOption = False) -> None:
    """Close a report: nothing will be done.

    Example: [bold]headway reports reject 0199a3c4-7d1e-7abc-8def-0123456789ab --comment "Works as intended."[/bold]
    """
    _change(report, json, status="rejected", comment=comment)


@app.command()
def reopen(report: ReportArgument, comment: CommentOption = None, json: JsonOption = False) -> None:
    """Open a closed report again.

    Example: [bold]headway reports reopen 0199a3c4-7d1e-7abc-8def-0123456789ab[/bold]
    """
    _change(report, json, status="open", comment=comment)


@app.command()
def comment(
    report: ReportArgument, text: Annotated[str, typer.Argument(help="What to say to it.")], json: JsonOption = False
) -> None:
    """Comment on a report.

    Example: [bold]headway reports comment 0199a3c4-7d1e-7abc-8def-0123456789ab "Cannot reproduce."[/bold]
    """
    _change(report, json, comment=required_text("comment", text, TEXT_BYTES))


def _wanted(application: str | None, status: str | None, severity: str | None) -> Any:
    for name, value, known in (
        ("status", status, get_args(ReportStatus)),
        ("severity", severity, get_args(Severity)),
    ):
        if value is not None and value not in known:
            raise InvalidRequestError(f"{name} is one of {', '.join(known)}, not {value!r}", param=name)
    return reports.conditions(application=application, status=status, severity=severity)


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as error:
        raise NotFoundError(f"there is no report {text!r}: its id is a UUID") from error


def _change(report: str, json: bool, *, status: ReportStatus | None = None, comment: str | None = None) -> None:
    change = Change(
        id=_id(report),
        author=author(),
        at=utc(SystemClock().unix_ms()),
        status=status,
        comment=checked_text("comment", comment, TEXT_BYTES),
    )
    found = run_async(_apply(change))
    if json:
        emit_json(found)
    else:
        notes.print(f"Report {found['id']} is {found['status']}.")


async def _show(report: uuid.UUID) -> dict[str, Any]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await reports.read(connection, report)


async def _apply(change: Change) -> dict[str, Any]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        await reports.change(connection, change)
        return await reports.read(connection, change.id)
