"""headway index search: what a release would find in an index version, and why."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from rich.padding import Padding
from rich.text import Text

from headway.cli.terminal import JsonOption, cell, console, emit_json, notes, read_reference, run_async
from headway.clock import SystemClock
from headway.config.indexes import IndexReference
from headway.config.settings import load_settings
from headway.domain.access import is_group
from headway.domain.excerpt import Excerpt
from headway.domain.filters import parse_filter
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.errors import InvalidRequestError
from headway.gateway.searching import MOST_PASSAGES, check_query
from headway.retrieval.inspection import Inspection, inspect, name_section
from headway.runtime import open_database
from headway.runtime.indexes import open_retriever
from headway.storage import applications, versions

_SECONDS = 60.0  # the embedded model may have to be loaded first, on a busy machine
_SHOWN_CHARACTERS = 400
_COLUMNS = 100


class Wish(NamedTuple):
    """How to search, as far as it was said; None for what was not."""

    top_k: int | None
    hybrid_weight: float | None
    minimum_score: float | None
    filter: dict[str, Any] | None


def search(
    version_and_query: Annotated[
        tuple[str, str],
        typer.Argument(
            metavar="NAME[@N] QUERY",
            help="An index version, the latest published one of a bare name; and what to look for.",
            show_default=False,
        ),
    ],
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", min=1, max=MOST_PASSAGES, help="Passages.")] = None,
    hybrid_weight: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="What meaning counts against words: 1 meaning only, 0 words only."),
    ] = None,
    minimum_score: Annotated[
        float | None, typer.Option(min=0, max=1, help="Leave out passages with a lower score.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="""Only documents with this metadata; may be repeated. As in headway.yaml too: 'year={"gte": 2024}',"""
            """ or all of it as one JSON object.""",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="Find what this group may see, beside what everybody may; may be repeated."),
    ] = None,
    application: Annotated[
        str | None, typer.Option(help="Search as this application's stable release does: its retrieval parameters.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Search an index version: passages, their scores, and what these come from.

    Without --group only what everybody may see is found, as for an API key without groups.

    Example: [bold]headway index search handbook@3 "how much leave do I get"[/bold]
    """
    wish = Wish(top_k, hybrid_weight, minimum_score, _read_filters(filters) if filters else None)
    groups = frozenset(group or ())
    for name in groups:
        if not is_group(name):
            raise InvalidRequestError(f"{name[:100]!r} is no name of a group", param="group")
    version, query = read_reference(version_and_query[0]), check_query(version_and_query[1])
    found = run_async(_search(version, query, wish, groups, application))
    if json:
        emit_json(_plain(found, groups))
    else:
        _show(found, groups)


async def _search(
    wanted: IndexReference, query: str, wish: Wish, groups: frozenset[str], application: str | None
) -> Inspection:
    async with open_database(load_settings()) as database:
        async with database.connection() as connection:
            version = await versions.find_version(connection, wanted)
            base = await applications.find_retrieval(connection, application, Retrieval("", 0))
        given = {name: value for name, value in wish._asdict().items() if value is not None}
        retrieval = msgspec.structs.replace(base, index=version.index, version=version.number, **given)
        async with open_retriever(database, SystemClock(), seconds=_SECONDS) as retriever:
            return await inspect(database, retriever, version, query, retrieval, groups)


def _read_filters(given: list[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE``, where the value is JSON if it can be read as such, or a JSON object of keys and values."""
    wanted: dict[str, Any] = {}
    for text in given:
        if text.lstrip().startswith("{"):
            try:
                wanted |= msgspec.json.decode(text, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise InvalidRequestError(f"--filter {text[:100]!r} is no JSON object: {error}") from error
            continue
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise InvalidRequestError(f"--filter {text[:100]!r}: expected KEY=VALUE, such as department=hr")
        wanted[key] = _read_value(value)
    try:
        parse_filter(wanted)
    except ValueError as error:
        raise InvalidRequestError(f"--filter: {error}") from error
    return wanted


def _read_value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _show(found: Inspection, groups: frozenset[str]) -> None:
    retrieval, passages = found.retrieval, found.found.passages
    asked = f"{retrieval.label} · meaning {retrieval.hybrid_weight:.0%}, words {1 - retrieval.hybrid_weight:.0%}"
    took = f"{found.found.embed_ms + found.found.search_ms:,.0f} ms"
    notes.print(Text(f"{asked} · {', '.join(sorted(groups)) or 'what everybody may see'} · {took}", "dim"))
    if not passages:
        notes.print("Nothing found.")
        return
    for place, (passage, excerpt) in enumerate(zip(passages, found.excerpts, strict=True), start=1):
        console.print(_head(place, passage), soft_wrap=True)
        why = _why_remote(passage) if found.is_remote else _why(passage)
        for line in (Text(_where(passage), "dim"), Text(why, "dim"), _text(excerpt)):
            console.print(Padding(line, (0, 0, 0, 4), expand=False), width=min(console.width, _COLUMNS))
        if place < len(passages):
            console.print()


def _head(place: int, passage: Passage) -> Text:
    title = Text(f"{cell(passage.title)}", "bold")
    return Text.assemble((f"{place:>2}  ", "dim"), (f"{passage.score:.2f}", "cyan"), "  ", title)


def _where(passage: Passage) -> str:
    section = name_section(passage)
    return f"{cell(passage.document)}, passage {passage.position + 1}{f' · {cell(section)}' if section else ''}"


def _why(passage: Passage) -> str:
    """Say what a score comes from."""
    near = "not looked at" if passage.similarity is None else f"similarity {passage.similarity:.2f}"
    if passage.vector_rank is not None:
        near = f"place {passage.vector_rank}, {near}"
    worded = "none" if not passage.coverage else f"{passage.coverage:.0%} of the query's"
    if passage.text_rank is not None:
        worded = f"place {passage.text_rank}, {worded}"
    return f"by meaning: {near} · by words: {worded}"


def _why_remote(passage: Passage) -> str:
    """Say what little a search service tells of a score."""
    near = "" if passage.similarity is None else f" · similarity {passage.similarity:.2f}"
    way = " by meaning" if passage.vector_rank else " by words" if passage.text_rank else ""
    return f"ranked by Azure AI Search{way}{near}"


def _text(excerpt: Excerpt) -> Text:
    """Write a text in one paragraph, without what could steer the terminal."""
    text = Text()
    for piece, marked in excerpt.shorten(_SHOWN_CHARACTERS).pieces:
        text.append(cell(piece.replace("\n", " ").replace("\t", " ")), "bold yellow" if marked else "")
    return text


def _plain(found: Inspection, groups: frozenset[str]) -> dict[str, Any]:
    passages = [msgspec.to_builtins(passage) for passage in found.found.passages]
    return {
        "index": found.retrieval.label,
        "retrieval": msgspec.to_builtins(found.retrieval),
        "groups": sorted(groups),
        "passages": passages,
        "embed_ms": found.found.embed_ms,
        "search_ms": found.found.search_ms,
    }
