"""The pages of search indexes: what there is, how builds get on, what a version holds; and building and dropping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from headway.config.indexes import IndexReference
from headway.config.spec import specify_version
from headway.console.gate import Form, services_of
from headway.console.index_view import VersionView, describe_metadata, describe_version
from headway.console.rendering import Renderer
from headway.console.search_page import Asked
from headway.console.services import Visitor
from headway.errors import InvalidRequestError, NotFoundError
from headway.retrieval import inspection
from headway.storage import builds, configuration, contents, versions
from headway.storage.database import Connection
from headway.storage.paging import read_page
from headway.storage.versions import Version

LARGEST_NUMBER = 2**31 - 1
_FIRST_VERSIONS = 4
_VERSIONS = 30
_DOCUMENTS = 50
_SKIPPED = 10
_CHANGES = 10
_MOST_CHANGES = 100
_CHUNKS = 50
_LONGEST_REASON = 500
_STATES = ("loaded", "skipped", "listed")


async def show_indexes(request: Request, visitor: Visitor) -> Response:
    """Show all indexes, those of the applied file and those that have versions, with their newest versions."""
    async with services_of(request).database.connection() as connection:
        entry = await configuration.current(connection)
        specified = set() if entry is None else set(entry.specification.indexes)
        made: dict[str, list[Version]] = {name: [] for name in sorted(specified)}
        for version in await versions.list_versions(connection):
            made.setdefault(version.index, []).append(version)
    indexes = [
        {
            "name": name,
            "specified": name in specified,
            "versions": [describe_version(version) for version in _choose(found)],
            "more": len(found) - len(_choose(found)),
            "building": any(version.state == "building" for version in found),
            "searchable": any(version.state == "published" for version in found),
        }
        for name, found in sorted(made.items())
    ]
    return _page(request, "indexes.html", visitor, indexes=indexes)


async def show_index(request: Request, visitor: Visitor) -> Response:
    """Show all versions of an index, page by page."""
    name = _name(request)
    async with services_of(request).database.connection() as connection:
        cursor = request.query_params.get("cursor")
        page = await read_page(
            connection, versions.VERSIONS, [("i.name = %s", name)], limit=_VERSIONS, cursor=cursor
        )  # fmt: skip
        uses = await versions.list_uses(connection)
        entry = await configuration.current(connection)
    specified = entry is not None and name in entry.specification.indexes
    found = [describe_version(versions.make_version(row, uses)) for row in page.items]
    if not found and not specified:
        raise NotFoundError(f"there is no index called {name[:100]!r}")
    return _page(
        request, "index.html", visitor, name=name, specified=specified, versions=found, next=page.next, cursor=cursor
    )


async def show_version(request: Request, visitor: Visitor) -> Response:
    """Show a version; to htmx, only what changes while the page is open, and the whole page once it is built."""
    live = "hx-request" in request.headers
    async with services_of(request).database.connection() as connection:
        version = await _find(connection, request)
        held = version.state != "building" or await builds.is_held(connection, version.version)
        if live:
            return _live(request, visitor, describe_version(version, held=held))
        skipped = await read_page(
            connection, versions.DOCUMENTS,
            [("d.version_id = %s", version.version), ("d.state = %s", "skipped")], limit=_SKIPPED,
        )  # fmt: skip
        others = await versions.list_versions(connection, version.index)
        before = _before(version, others)
        changes, counts, _ = await _compare(connection, before, version, limit=_CHANGES)
    return _page(
        request,
        "index_version.html",
        visitor,
        view=describe_version(version, held=held),
        live=False,
        skipped=skipped.items,
        before=before,
        others=[each for each in others if each.state == "published" and each.number != version.number],
        counts=counts,
        changes=changes,
        asked=Asked(version.label, groups=", ".join(sorted(visitor.key_groups))),
    )


def _live(request: Request, visitor: Visitor, view: VersionView) -> Response:
    response = _page(request, "index_version_live.html", visitor, view=view, live=True)
    if view.is_over:
        response.headers["hx-refresh"] = "true"  # there is more to show now
    return response


async def show_documents(request: Request, visitor: Visitor) -> Response:
    """Show the documents of a version, page by page."""
    cursor = request.query_params.get("cursor")
    state = request.query_params.get("state") or None
    if state not in (None, *_STATES):
        raise InvalidRequestError("`state` is loaded, skipped or listed", param="state")
    async with services_of(request).database.connection() as connection:
        version = await _find(connection, request)
        page = await read_page(
            connection, versions.DOCUMENTS,
            [("d.version_id = %s", version.version), ("d.state = %s", state)], limit=_DOCUMENTS, cursor=cursor,
        )  # fmt: skip
    return _page(
        request,
        "index_documents.html",
        visitor,
        version=version,
        documents=page.items,
        state=state,
        next=page.next,
        cursor=cursor,
    )


async def show_document(request: Request, visitor: Visitor) -> Response:
    """Show a document of a version as it was cut; its text only to who may read it."""
    path = request.query_params.get("path", "")
    begin = _position(request.query_params.get("from"))
    async with services_of(request).database.connection() as connection:
        version = await _find(connection, request)
        document = await contents.find_document(connection, version, path)
        readable = visitor.may_read(document.groups)
        chunks = []
        if readable and version.state == "published":
            chunks = await contents.list_chunks(connection, version, document, begin=begin, limit=_CHUNKS + 1)
    return _page(
        request,
        "index_document.html",
        visitor,
        version=version,
        document=document,
        readable=readable,
        facts=describe_metadata(document.metadata) if readable else [],
        chunks=chunks[:_CHUNKS],
        before=max(0, begin - _CHUNKS) if begin else None,
        after=chunks[_CHUNKS].position if len(chunks) > _CHUNKS else None,
    )


async def show_changes(request: Request, visitor: Visitor) -> Response:
    """Show which documents differ between a version and another."""
    number = request.query_params.get("before", "")
    async with services_of(request).database.connection() as connection:
        version = await _find(connection, request)
        others = await versions.list_versions(connection, version.index)
        wanted = [each for each in others if str(each.number) == number]
        before = wanted[0] if wanted else None if number else _before(version, others)
        if before is None:
            raise NotFoundError(f"there is no such version to compare {version.label} with")
        for each in (before, version):
            inspection.require_searchable(each)  # else there are no documents to compare
        cursor = request.query_params.get("cursor")
        changes, counts, following = await _compare(connection, before, version, limit=_MOST_CHANGES, cursor=cursor)
    return _page(
        request,
        "index_changes.html",
        visitor,
        version=version,
        before=before,
        others=[each for each in others if each.state == "published" and each.number != version.number],
        counts=counts,
        changes=changes,
        next=following,
    )


async def build(request: Request, visitor: Visitor, _: Form) -> Response:
    """Begin to build the next version of an index of the applied file, and go to its page."""
    builds.require_builder()
    name = _name(request)
    async with services_of(request).database.connection() as connection:
        entry = await configuration.current(connection)
        if entry is None:
            raise NotFoundError("no configuration is applied")
        spec = specify_version(entry.specification, name)
        begun = await builds.begin(connection, name, spec, author=visitor.signature)
    return RedirectResponse(f"/indexes/{begun.index}/{begun.number}", 303)


async def cancel(request: Request, visitor: Visitor, form: Form) -> Response:
    """Give up the build of a version, with a reason, and go back to its page."""
    reason = _reason(form)
    async with services_of(request).database.connection() as connection:
        version = await _find(connection, request)
        if version.state == "building":
            await versions.cancel(connection, version.index, author=visitor.signature, reason=reason)
    return RedirectResponse(f"/indexes/{version.index}/{version.number}", 303)


async def drop(request: Request, visitor: Visitor, form: Form) -> Response:
    """Drop a version that nobody uses, with a reason, and go back to its page."""
    reason = _reason(form)
    async with services_of(request).database.connection() as connection:
        version = await _find(connection, request)
        await versions.drop(connection, version, author=visitor.signature, reason=reason)
    return RedirectResponse(f"/indexes/{version.index}/{version.number}", 303)


async def _find(connection: Connection, request: Request) -> Version:
    name, number = _name(request), request.path_params["number"]
    if not 1 <= number <= LARGEST_NUMBER:
        raise NotFoundError("there is no version of that number")
    return await versions.find_version(connection, IndexReference(name, number))


def _name(request: Request) -> str:
    name: str = request.path_params["name"]
    if not name.isprintable():
        raise NotFoundError("there is no index of that name")
    return name


def _choose(found: list[Version]) -> list[Version]:
    """The versions that matter: what is built, what is used, and the newest."""
    kept = [each for each in found if each.state == "building" or each.used_by]
    newest = [each for each in found if each not in kept and each.state != "dropped"]
    return sorted([*kept, *newest[: max(0, _FIRST_VERSIONS - len(kept))]], key=lambda each: -each.number)


def _before(version: Version, others: list[Version]) -> Version | None:
    """The published version before one, to compare it with."""
    if version.state != "published" or version.spec.index.is_pinned:
        return None
    return next((each for each in others if each.number < version.number and each.state == "published"), None)


async def _compare(
    connection: Connection, before: Version | None, version: Version, *, limit: int, cursor: str | None = None
) -> tuple[list[dict[str, Any]], Mapping[str, int], str | None]:
    """Read what differs: some of the documents, how many there are of each kind, and where the next ones begin."""
    if before is None:
        return [], {}, None
    conditions = versions.between(before, version)
    page = await read_page(connection, versions.CHANGES, conditions, limit=limit, cursor=cursor)
    return page.items, await versions.count_changes(connection, before, version), page.next


def _reason(form: Form) -> str:
    reason = form.get("reason", "").strip()
    if not reason:
        raise InvalidRequestError("say why: the reason stands in the audit log for whoever looks later", param="reason")
    if len(reason) > _LONGEST_REASON or "\x00" in reason:
        raise InvalidRequestError(f"a reason has at most {_LONGEST_REASON} characters of text", param="reason")
    return reason


def _position(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdecimal() or len(text) > 9:
        raise InvalidRequestError("`from` is the number of a passage", param="from")
    return int(text)


def _page(request: Request, template: str, visitor: Visitor, **values: Any) -> Response:
    renderer: Renderer = request.app.state.renderer
    return renderer.page(template, visitor, now_ms=services_of(request).clock.unix_ms(), **values)
