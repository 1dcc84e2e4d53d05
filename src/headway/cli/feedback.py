"""headway feedback: what people said of answers."""

from __future__ import annotations

from typing import Annotated, get_args

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
from headway.cli.terminal import JsonOption, emit
from headway.domain.feedback import Source
from headway.errors import InvalidRequestError
from headway.storage.feedback import LISTING, conditions
from headway.storage.paging import Condition

app = typer.Typer(help="List and export feedback.", no_args_is_help=True)

MetricOption = Annotated[str | None, typer.Option("--metric", "-m", help="Only values of this metric.")]
SourceOption = Annotated[str | None, typer.Option(help=f"Only from this source: {', '.join(get_args(Source))}.")]
HistoryOption = Annotated[bool, typer.Option("--history", help="Superseded values too.")]


@app.command("list")
def list_feedback(
    application: ApplicationOption = None,
    release: ReleaseOption = None,
    metric: MetricOption = None,
    source: SourceOption = None,
    since: SinceOption = None,
    history: HistoryOption = False,
    limit: LimitOption = 50,
    json: JsonOption = False,
) -> None:
    """List feedback, newest first: each author's current value per answer and metric.

    Example: [bold]headway feedback list --application support --metric thumbs_up --since 7d[/bold]
    """
    rows = read_first(LISTING, _wanted(application, release, metric, source, since, history), limit)
    columns = ("at", "application", "release", "metric", "value", "comment", "source", "author", "target_id")
    emit(rows, columns, json=json)


@app.command("export")
def export_feedback(
    application: ApplicationOption = None,
    release: ReleaseOption = None,
    metric: MetricOption = None,
    source: SourceOption = None,
    since: SinceOption = None,
    history: HistoryOption = False,
    output: OutputOption = None,
) -> None:
    """Export feedback as JSON lines, oldest first.

    Example: [bold]headway feedback export --application support --since 30d > feedback.jsonl[/bold]
    """
    export(LISTING, _wanted(application, release, metric, source, since, history), output)


def _wanted(
    application: str | None,
    release: str | None,
    metric: str | None,
    source: str | None,
    since: str | None,
    history: bool,
) -> list[Condition]:
    if source is not None and source not in get_args(Source):
        raise InvalidRequestError(f"sources are {', '.join(get_args(Source))}, not {source!r}", param="source")
    return conditions(
        application=application,
        release=release,
        metric=metric,
        source=source,
        since=parse_since(since),
        current=not history,
    )
