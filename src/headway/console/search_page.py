"""The search box: what a version finds for a query, and why. Queries travel in forms, so no address or log has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import structlog
from starlette.requests import Request
from starlette.responses import Response

from headway.config.indexes import IndexReference, parse_reference
from headway.console.gate import Form, asking, services_of
from headway.console.rendering import Renderer
from headway.console.services import Visitor
from headway.domain.access import is_group
from headway.domain.excerpt import Excerpt
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.errors import BodyTooLargeError, HeadwayError, InvalidRequestError, NotFoundError
from headway.gateway.searching import QUERY_LENGTH, check_query
from headway.retrieval.inspection import Inspection, inspect, name_section
from headway.storage import contents, versions
from headway.storage.versions import Version

MOST_PASSAGES = 20
"""Passages on a page."""

_DEFAULTS = Retrieval("", 0)
_SHOWN_CHARACTERS = 420
_LISTED = 200

_NOTHING: Mapping[str, Any] = MappingProxyType(
    {"problem": "", "version": None, "found": None, "views": (), "groups": ()}
)

_log = structlog.get_logger("headway.console")


@dataclass(frozen=True)
class FoundView:
    """A passage as the page shows it.

    Attributes:
        passage: As found.
        section: The headings it stands under, without its document's title.
        excerpt: The part of its text that is shown, with the query's words marked.
        whole: All of it, where that is more.
        groups: Who may see it; empty for everybody.
    """

    passage: Passage
    section: str
    excerpt: Excerpt
    whole: Excerpt | None
    groups: Sequence[str]


@dataclass(frozen=True)
class Asked:
    """What a form asked for.

    Attributes:
        index: Name of a version, or of an index.
        query: What to look for.
        top_k: Most passages.
        meaning: What meaning counts, per cent.
        groups: Whose labelled passages may be found, as they were typed; only an admin chooses.
    """

    index: str = ""
    query: str = ""
    top_k: str = str(_DEFAULTS.top_k)
    meaning: str = f"{_DEFAULTS.hybrid_weight * 100:.0f}"
    groups: str = ""


async def show_search(request: Request, visitor: Visitor) -> Response:
    """Show the search box, for a version or for any."""
    asked = Asked(index=request.query_params.get("index", ""), groups=", ".join(sorted(visitor.key_groups)))
    return await _show(request, visitor, asked)


async def search(request: Request) -> Response:
    """Search, for who is signed in; to htmx what was found, or what is wrong, to others the page with it."""
    try:
        return await asking(_search)(request)
    except HeadwayError as error:
        if "hx-request" not in request.headers:
            raise
        return _fragment(request, problem=QUERY_LENGTH if isinstance(error, BodyTooLargeError) else error.message)


async def _search(request: Request, visitor: Visitor, form: Form) -> Response:
    given = {name: form[name] for name in ("index", "query", "top_k", "meaning", "groups") if name in form}
    asked = Asked(**given)
    live = "hx-request" in request.headers
    try:
        version, found = await _look(request, visitor, asked)
        views = await _describe(request, version, found)
    except HeadwayError as error:
        if live:
            return _fragment(request, problem=error.message)
        status = services_of(request).status_of(error)
        return await _show(request, visitor, asked, status=status, problem=error.message)
    groups = _groups(visitor, asked)
    if live:
        return _fragment(request, version=version, found=found, views=views, groups=sorted(groups))
    return await _show(
        request, visitor, asked, version=version, found=found, views=views, groups=sorted(groups)
    )  # fmt: skip


async def _look(request: Request, visitor: Visitor, asked: Asked) -> tuple[Version, Inspection]:
    services = services_of(request)
    query = check_query(asked.query)
    groups = _groups(visitor, asked)
    top_k = _number(asked.top_k, 1, MOST_PASSAGES, "passages")
    weight = _number(asked.meaning, 0, 100, "meaning") / 100
    async with services.database.connection() as connection:
        version = await versions.find_version(connection, _reference(asked.index))
    retrieval = Retrieval(version.index, version.number, top_k=top_k, hybrid_weight=weight)
    found = await inspect(services.database, services.retriever, version, query, retrieval, groups)
    # Who looked into what, never for which words.
    _log.info(
        "searched", key=visitor.key.number, name=visitor.key.name, index=version.label, groups=sorted(groups),
        passages=len(found.found.passages),
    )  # fmt: skip
    return version, found


def _groups(visitor: Visitor, asked: Asked) -> frozenset[str]:
    """Whose labelled passages are found: those of the visitor's key, unless it may do everything anyway."""
    if not visitor.is_admin:
        return visitor.key_groups
    groups = frozenset(filter(None, (name.strip() for name in asked.groups.split(","))))
    for name in groups:
        if not is_group(name):
            raise InvalidRequestError(f"{name[:100]!r} is no name of a group", param="groups")
    return groups


async def _describe(request: Request, version: Version, found: Inspection) -> list[FoundView]:
    passages = found.found.passages
    async with services_of(request).database.connection() as connection:
        groups = await contents.read_groups(connection, version, [passage.document for passage in passages])
    views = []
    for passage, whole in zip(passages, found.excerpts, strict=True):
        excerpt = whole.shorten(_SHOWN_CHARACTERS)
        more = None if excerpt is whole else whole
        views.append(FoundView(passage, name_section(passage), excerpt, more, groups.get(passage.document, ())))
    return views


async def _show(request: Request, visitor: Visitor, asked: Asked, *, status: int = 200, **found: Any) -> Response:
    async with services_of(request).database.connection() as connection:
        listed = await versions.list_versions(connection)
    published = [version for version in listed if version.state == "published"]
    # What is used comes first, then the newest.
    published.sort(key=lambda version: (not version.used_by, version.index, -version.number))
    chosen = next((each.label for each in published if asked.index in (each.label, each.index)), asked.index)
    renderer: Renderer = request.app.state.renderer
    return renderer.page(
        "search.html",
        visitor,
        status=status,
        asked=asked,
        chosen=chosen,
        published=published[:_LISTED],
        **{**_NOTHING, **found},
    )


def _fragment(request: Request, **found: Any) -> Response:
    renderer: Renderer = request.app.state.renderer
    return renderer.page("search_found.html", None, **{**_NOTHING, **found})


def _reference(text: str) -> IndexReference:
    if not text:
        raise NotFoundError("choose an index version: none is published yet, or none was chosen", param="index")
    try:
        return parse_reference(text)
    except ValueError as error:
        raise InvalidRequestError(f"{text[:100]!r}: {error}", param="index") from error


def _number(text: str, least: int, most: int, name: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and least <= int(text) <= most):
        raise InvalidRequestError(f"{name} is a whole number from {least} to {most}", param=name)
    return int(text)
