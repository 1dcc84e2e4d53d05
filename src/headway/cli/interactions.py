"""headway interactions: what was asked and answered."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import typer

from headway.cli.records import (
    ApplicationOption,
    LimitOption,
    OutputOption,
    ReleaseOption,
    SinceOption,
    export,
    parse_since,
    read_first,
)
from headway.cli.terminal import JsonOption, emit, emit_record, run_async
from headway.config.settings import load_settings
from headway.errors import NotFoundError
from headway.runtime import open_database
from headway.storage import records, routing

app = typer.Typer(help="List, show and export interactions.", no_args_is_help=True)

ConversationOption = Annotated[str | None, typer.Option("--conversation", "-c", help="Only of this conversation.")]
FailedOption = Annotated[
    bool | None, typer.Option("--failed/--answered", help="Only those that failed, or only those that did not.")
]


@app.command("list")
def list_interactions(
    application: ApplicationOption = None,
    release: ReleaseOption = None,
    conversation: ConversationOption = None,
    failed: FailedOption = None,
    since: SinceOption = None,
    limit: LimitOption = 50,
    json: JsonOption = False,
) -> None:
    """List interactions, newest first, without their content.

    Example: [bold]headway interactions list --application support --failed --since 1h[/bold]
    """
    conditions = records.of_interactions(
        application=application,
        release=release,
        conversation=conversation,
        failed=failed,
        since=parse_since(since),
    )
    rows = read_first(records.INTERACTIONS, conditions, limit)
    columns = ("at", "id", "application", "release", "arm", "kind", "status", "error", "total_ms", "output_tokens")
    emit(rows, (*columns, "cost_usd"), json=json)


@app.command()
def show(
    interaction: Annotated[str, typer.Argument(help="The `id` of an answer, or the interaction's UUID.")],
    json: JsonOption = False,
) -> None:
    """Show an interaction with its content, where the application records it.

    A request that was mirrored in a shadow stage stands beside what the candidate answered.

    Example: [bold]headway interactions show 0199a3c4-7d1e-7abc-8def-0123456789ab[/bold]
    """
    found = run_async(_show(interaction))
    mirror = None if json else found.pop("mirror")
    emit_record(found, json=json, beside=mirror)


@app.command("export")
def export_interactions(
    application: ApplicationOption = None,
    release: ReleaseOption = None,
    conversation: ConversationOption = None,
    failed: FailedOption = None,
    since: SinceOption = None,
    content: Annotated[bool, typer.Option(help="With requests and answers, where they are recorded.")] = True,
    output: OutputOption = None,
) -> None:
    """Export interactions as JSON lines, oldest first.

    Example: [bold]headway interactions export --application support --since 7d > interactions.jsonl[/bold]
    """
    conditions = records.of_interactions(
        application=application,
        release=release,
        conversation=conversation,
        failed=failed,
        since=parse_since(since),
    )
    export(records.WHOLE_INTERACTIONS if content else records.INTERACTIONS, conditions, output)


async def _show(name: str) -> dict[str, Any]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        try:
            number = uuid.UUID(name)
        except ValueError:
            snapshot = await routing.latest(connection)
            if snapshot is None:
                raise NotFoundError("nothing is recorded yet") from None
            number = uuid.UUID(bytes=snapshot.signing.signer().read(name).uuid)
        return await records.read_interaction(connection, number)
