"""headway index compare: two index versions, by queries, before any caller meets the second one."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from headway.cli.terminal import JsonOption, cell, console, emit_json, notes, read_reference, run_async
from headway.clock import SystemClock
from headway.config.settings import load_settings
from headway.domain.access import is_group
from headway.domain.release import Retrieval
from headway.domain.relevance import CONFIDENCE, Mean, Paired
from headway.errors import InvalidRequestError
from headway.gateway.asked import Asked, read_asked
from headway.gateway.searching import MOST_PASSAGES
from headway.retrieval.comparing import TOP_K, Agreement, Comparison, QueryLostDocument, Trial, compare_versions
from headway.retrieval.queries import MOST_QUERIES, LabelledQuery, read_queries
from headway.runtime import open_database
from headway.runtime.indexes import open_retriever
from headway.storage import applications, versions

_SECONDS = 60.0  # the embedded model may have to be loaded first, on a busy machine
_COLUMNS = 100
_MEASURES = {"recall": "recall", "mrr": "reciprocal_rank", "ndcg": "ndcg"}
_STATES = {
    "removed": ("removed", "red"),
    "changed": ("changed", "yellow"),
    "outranked": ("now found below", "none"),
    "unknown": ("not known", "dim"),
}


class Options(NamedTuple):
    """What can be said on the command line."""

    before: Annotated[str, typer.Argument(metavar="NAME@N", help="The version in use.")]
    after: Annotated[str, typer.Argument(metavar="NAME[@N]", help="The version that may follow it.")]
    queries: Annotated[
        Path | None,
        typer.Option("--queries", "-q", help="A file of queries, with or without what answers them: JSONL or CSV."),
    ] = None
    interactions_of: Annotated[
        str | None,
        typer.Option("--from-interactions", metavar="APPLICATION", help="Take what this application was asked last."),
    ] = None
    limit: Annotated[int, typer.Option(min=1, max=MOST_QUERIES, help="Of these, so many different queries.")] = 500
    application: Annotated[
        str | None,
        typer.Option(help="Search as this application's stable release does; by default that of --from-interactions."),
    ] = None
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", min=1, max=MOST_PASSAGES, help="Passages of a search; else 10.")
    ] = None
    hybrid_weight: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="What meaning counts against words: 1 meaning only, 0 words only."),
    ] = None
    minimum_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out passages with a lower score.")
    ] = None
    group: Annotated[
        list[str] | None,
        typer.Option(help="Search as who is in this group; may be repeated. Else all documents are found."),
    ] = None
    public: Annotated[bool, typer.Option("--public", help="Search as who is in no group.")] = False
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE=DIFFERENCE",
            help="Exit with 1 unless it is sure that recall, mrr or ndcg has not fallen further: recall=-0.02.",
        ),
    ] = None
    json: JsonOption = False


def compare(**given: Any) -> None:
    """Compare two index versions by queries: what is found, what is lost, and which documents that came from.

    The file has a JSON object in each line: {"query": "...", "relevant": ["path.md", "path.md#Heading"]}.

    Example: [bold]headway index compare handbook@3 handbook@4 --queries questions.jsonl[/bold]
    """
    options = Options(**given)
    if (options.queries is None) == (options.interactions_of is None):
        raise InvalidRequestError("give either --queries FILE or --from-interactions APPLICATION", param="queries")
    limits = dict(_read_limit(text) for text in options.fail_below or ())
    try:
        with _hushed():
            found, asked = run_async(_compare(options))
    except KeyboardInterrupt:
        notes.print("Stopped.")
        raise typer.Exit(130) from None
    if options.json:
        emit_json(msgspec.to_builtins(found) | {"asked": None if asked is None else asked.counts})
    else:
        _show(found, asked)
    if not _check(found, limits):
        raise typer.Exit(1)


def _sign(command: Callable[..., None], options: type[NamedTuple]) -> None:
    """Let a command take these options: typer reads them off its signature."""
    defaults = options._field_defaults
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, inspect.Parameter.empty), annotation=hint
        )
        for name, hint in get_type_hints(options, include_extras=True).items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # as inspect documents it


_sign(compare, Options)


async def _compare(options: Options) -> tuple[Comparison, Asked | None]:
    wanted = read_reference(options.before), read_reference(options.after)
    groups = _read_groups(options.group or [], public=options.public)
    labelled = [] if options.queries is None else read_queries(options.queries)
    async with open_database(load_settings()) as database:
        async with database.connection() as connection:
            before = await versions.find_version(connection, wanted[0])
            after = await versions.find_version(connection, wanted[1])
            plain = Retrieval("", 0, top_k=TOP_K)
            base = await applications.find_retrieval(
                connection, options.application, plain, otherwise=options.interactions_of
            )
        asked = None
        if options.interactions_of is not None:
            async with database.connection() as connection:
                application = await applications.find_application(connection, options.interactions_of)
                asked = await read_asked(connection, application, options.limit, base.turns)
            labelled = [LabelledQuery(text) for text in asked.queries]
        said = {name: getattr(options, name) for name in ("top_k", "hybrid_weight", "minimum_score")}
        retrieval = msgspec.structs.replace(base, **{name: value for name, value in said.items() if value is not None})
        trial = Trial(before, after, retrieval, groups)
        async with open_retriever(database, SystemClock(), seconds=_SECONDS) as retriever:
            with _open_bar(quiet=options.json) as bar:
                task = bar.add_task("comparing", total=len(labelled))
                found = await compare_versions(
                    database, retriever, trial, labelled, tell=lambda done: bar.update(task, completed=done)
                )
        return found, asked


@contextmanager
def _hushed() -> Iterator[None]:
    """Say nothing of the searches that Ctrl-C cuts off."""
    log = logging.getLogger("psycopg")
    was = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(was)


def _open_bar(*, quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=notes,
        transient=True,
        disable=quiet or not notes.is_terminal,
    )


def _read_groups(groups: list[str], *, public: bool) -> frozenset[str] | None:
    if public and groups:
        raise InvalidRequestError("give either --group or --public", param="group")
    for name in groups:
        if not is_group(name):
            raise InvalidRequestError(f"{name[:100]!r} is no name of a group", param="group")
    return frozenset(groups) if groups or public else None


def _read_limit(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if name not in _MEASURES or not -1 <= limit <= 1:
        raise InvalidRequestError(
            f"--fail-below {text[:100]}: expected {', '.join(_MEASURES)} and a number from -1 to 1, such as"
            " recall=-0.02",
            param="fail-below",
        )
    return name, limit


def _check(found: Comparison, limits: dict[str, float]) -> bool:
    """Say whether the differences are surely no less than they may be, and on the terminal why not."""
    passed = True
    for name, limit in limits.items():
        if found.relevance is None:
            notes.print(Text(f"{name}: no data, because no query says what answers it", "red"), soft_wrap=True)
            return False
        difference = getattr(found.relevance, _MEASURES[name]).difference
        if difference.lower >= limit:
            continue
        passed = False
        message = f"{name}: the difference may be {difference.lower:+.3f}, and {limit:+g} is the least that is wanted"
        if difference.mean >= limit:
            message += f"; {difference.queries:,} queries cannot rule it out"
            least = _count_needed(limit)
            if least > difference.queries:
                message += f", and at least {least:,} are needed to"
        notes.print(Text(message, "red"), soft_wrap=True)
    return passed


def _count_needed(limit: float) -> int:
    """How many queries must agree before a difference below the limit can be ruled out."""
    return math.ceil(math.log((1 - CONFIDENCE) / 2) / math.log1p(limit)) if -1 < limit < 0 else 0


def _show(found: Comparison, asked: Asked | None) -> None:
    _line(Text(f"{found.before} → {found.after}", "bold"))
    if asked is not None:
        _line(Text(_describe_asked(asked), "dim"))
    _line(Text(_describe_search(found), "dim"))
    console.print()
    for verdict in _judge(found):
        _line(verdict)
    if found.relevance is not None:
        _show_relevance(found)
    if found.documents is not None and found.passages is not None:
        _show_agreement(found, found.documents, found.passages)
    _show_losses(found)
    if found.unknown_labels:
        names = ", ".join(cell(name) for name in found.unknown_labels[:3])
        more = f" and {len(found.unknown_labels) - 3:,} more" if len(found.unknown_labels) > 3 else ""
        notes.print(Text(f"Labels name documents that neither version has: {names}{more}", "yellow"), soft_wrap=True)


def _line(text: Text) -> None:
    console.print(text, width=min(console.width, _COLUMNS))


def _describe_asked(asked: Asked) -> str:
    parts = [_count(asked.interactions, "recorded interaction")]
    for count, what in (
        (asked.repeated, "ask the same again"),
        (asked.without_content, "without stored content"),
        (asked.without_query, "ask for nothing in words"),
    ):
        parts += [f"{count:,} {what}"] if count else []
    return " · ".join(parts)


def _describe_search(found: Comparison) -> str:
    groups = "all documents" if found.groups is None else ", ".join(found.groups) or "what everybody may see"
    parts = [
        f"{_count(found.queries, 'query')}, {found.labelled:,} with labels",
        "first passage" if found.top_k == 1 else f"first {found.top_k} passages",
        f"meaning {found.hybrid_weight:.0%}, words {1 - found.hybrid_weight:.0%}",
        f"minimum score {found.minimum_score:g}" if found.minimum_score else "",
        cell(groups),
    ]
    return " · ".join(part for part in parts if part)


def _judge(found: Comparison) -> list[Text]:
    """Say in words what the figures show."""
    verdicts = []
    if found.relevance is None:
        verdicts.append(Text("No query says what answers it: whether a difference is for the better is not known."))
    else:
        recall, k = found.relevance.recall.difference, found.top_k
        if recall.upper < 0:
            said, style = (
                f"{found.after} answers worse: it finds less of what answers, among the first {k}.",
                "bold red",
            )
        elif recall.lower > 0:
            said, style = f"{found.after} answers better: it finds more of what answers, among the first {k}.", "green"
        else:
            said, style = f"No difference is shown in how much of what answers is found, among the first {k}.", "bold"
        verdicts.append(Text(said, style))
        place = found.relevance.reciprocal_rank.difference
        if place.upper < 0 or place.lower > 0:
            where, style = ("later", "red") if place.upper < 0 else ("earlier", "green")
            verdicts.append(Text(f"The first answer comes {where} than in {found.before}.", style))
    if found.empty.newly:
        verdicts.append(Text(f"{_count(found.empty.newly, 'query')} found something before and nothing now.", "red"))
    if found.lost.removed:
        was = "was" if found.lost.removed == 1 else "were"
        said = f"{_count(found.lost.removed, 'document')} of what was found before {was} removed."
        verdicts.append(Text(said, "red"))
    return verdicts


def _show_relevance(found: Comparison) -> None:
    assert found.relevance is not None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("before", "after", "difference", f"{CONFIDENCE:.0%} sure", "better", "worse", "same"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = (
        ("recall", found.relevance.recall),
        ("MRR", found.relevance.reciprocal_rank),
        ("nDCG", found.relevance.ndcg),
    )
    for name, paired in rows:
        table.add_row(f"{name}@{found.top_k}", *_cells(paired))
    console.print()
    console.print(table)


def _cells(paired: Paired) -> list[str | Text]:
    gap = paired.difference
    style = "red" if gap.upper < 0 else "green" if gap.lower > 0 else ""
    return [
        f"{paired.before.mean:.3f}",
        f"{paired.after.mean:.3f}",
        Text(f"{gap.mean:+.3f}", style),
        f"{gap.lower:+.3f} to {gap.upper:+.3f}",
        *(f"{count:,}" for count in (paired.better, paired.worse, paired.equal)),
    ]


def _show_agreement(found: Comparison, documents: Agreement, passages: Agreement) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "documents", "passages"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("both find", _share(documents.overlap), _share(passages.overlap))
    table.add_row("both find, by place", _share(documents.rank_overlap), _share(passages.rank_overlap))
    table.add_row("found no longer", _share(documents.churn), _share(passages.churn))
    console.print()
    console.print(table)
    same = f"{_count(found.identical, 'query')} find{'s' if found.identical == 1 else ''} exactly the same."
    empty = f"Nothing is found by {found.empty.before:,} before, {found.empty.after:,} after."
    _line(Text(f"{same} {empty}"))
    if found.best_score is not None:
        score = found.best_score
        gap = f"{score.difference.lower:+.3f} to {score.difference.upper:+.3f}"
        _line(Text(f"Score of the best passage: {score.before.mean:.3f}, then {score.after.mean:.3f} ({gap})."))


def _share(mean: Mean | None) -> str:
    return "no data" if mean is None else f"{mean.mean:.1%}  ({mean.lower:.1%} to {mean.upper:.1%})"


def _show_losses(found: Comparison) -> None:
    lost = found.lost
    if not lost.documents:
        return
    console.print()
    what = "an answer" if found.labelled == found.queries else "a document"
    _line(Text(f"{_count(lost.queries, 'query')} lost {what}", "bold"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("document", "is", "queries", "such as"):
        table.add_column(name, justify="right" if name == "queries" else "left", overflow="fold")
    shown = lost.documents[:20]
    for document in shown:
        table.add_row(*_row(document))
    console.print(table, width=min(console.width, _COLUMNS + 20))
    total = lost.removed + lost.changed + lost.outranked + lost.unknown
    if total > len(shown):
        _line(Text(f"and {total - len(shown):,} more documents; --json lists up to 100", "dim"))


def _row(document: QueryLostDocument) -> list[Text]:
    said, style = _STATES[document.state]
    example = cell(document.examples[0].replace("\n", " "))
    return [
        Text(cell(document.document)),
        Text(said, style),
        Text(f"{document.queries:,}"),
        Text(example if len(example) <= 60 else example[:59] + "…", "dim"),
    ]


def _count(number: int, noun: str) -> str:
    plural = "queries" if noun == "query" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
