"""The control plane's routes on search indexes: their versions, what these hold, and building them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from headway.api.control_parts import Admin, Name, Number, Services, Viewer, problems, signature
from headway.api.index_resources import (
    DiffQuery,
    DocumentQuery,
    Index,
    IndexDiff,
    IndexDocument,
    IndexList,
    IndexVersion,
    ReasonWish,
    VersionQuery,
)
from headway.api.resources import Page
from headway.api.rollout_resources import plain
from headway.config.indexes import IndexReference
from headway.config.spec import specify_version
from headway.domain.access import may_read
from headway.errors import NotFoundError
from headway.storage import builds, configuration, versions
from headway.storage.database import Connection
from headway.storage.paging import read_page
from headway.storage.versions import Version

router = APIRouter()


@router.get("/indexes", response_model=IndexList, responses=problems())
async def list_indexes(services: Services, _: Viewer) -> Any:
    """List the search indexes, those of the applied file and those that have versions."""
    async with services.database.connection() as connection:
        return {"items": await _indexes(connection)}


@router.get("/indexes/{index}", response_model=Index, responses=problems(404))
async def get_index(services: Services, _: Viewer, index: Name) -> Any:
    """Show an index: what its next version is built by, and its newest versions."""
    async with services.database.connection() as connection:
        for found in await _indexes(connection):
            if found["name"] == index:
                return found
    raise NotFoundError(f"there is no index called {index!r}", param="index")


@router.get("/index-versions", response_model=Page[IndexVersion], responses=problems())
async def list_versions(services: Services, _: Viewer, wanted: Annotated[VersionQuery, Query()]) -> Any:
    """List the versions of all indexes or of one, newest first."""
    async with services.database.connection() as connection:
        page = await read_page(
            connection,
            versions.VERSIONS,
            [("i.name = %s", wanted.index), ("v.state = %s", wanted.state)],
            limit=wanted.limit,
            cursor=wanted.cursor,
        )
        uses = await versions.list_uses(connection)
    return {"items": [_shown(versions.make_version(row, uses)) for row in page.items], "next": page.next}


@router.get("/indexes/{index}/versions/{number}", response_model=IndexVersion, responses=problems(404))
async def get_version(services: Services, _: Viewer, index: Name, number: Number) -> Any:
    """Show a version: what it is built by, how far its build is, what it consists of, and who uses it."""
    async with services.database.connection() as connection:
        return _shown(await versions.find_version(connection, IndexReference(index, number)))


@router.get("/indexes/{index}/versions/{number}/documents", response_model=Page[IndexDocument], responses=problems(404))
async def list_documents(
    services: Services, key: Viewer, index: Name, number: Number, wanted: Annotated[DocumentQuery, Query()]
) -> Any:
    """List the documents of a version in the order of their paths; those left out with their reasons.

    The metadata of a document for other groups is left out, unless the key has the scope `admin`.
    """
    async with services.database.connection() as connection:
        version = await versions.find_version(connection, IndexReference(index, number))
        page = await read_page(
            connection,
            versions.DOCUMENTS,
            [("d.version_id = %s", version.version), ("d.state = %s", wanted.state)],
            limit=wanted.limit,
            cursor=wanted.cursor,
        )
    items = [each if may_read(key, each["groups"]) else each | {"metadata": {}} for each in page.items]
    return {"items": items, "next": page.next}


@router.get("/indexes/{index}/diff", response_model=IndexDiff, responses=problems(404))
async def compare_versions(services: Services, _: Viewer, index: Name, wanted: Annotated[DiffQuery, Query()]) -> Any:
    """Compare two versions of an index: the documents that differ, in the order of their paths."""
    async with services.database.connection() as connection:
        older = await versions.find_version(connection, IndexReference(index, wanted.before))
        newer = await versions.find_version(connection, IndexReference(index, wanted.after))
        counts = await versions.count_changes(connection, older, newer)
        page = await read_page(
            connection,
            versions.CHANGES,
            versions.between(older, newer),
            limit=wanted.limit,
            cursor=wanted.cursor,
        )
    return {"before": older.label, "after": newer.label, **counts, "items": page.items, "next": page.next}


@router.post("/indexes/{index}/builds", response_model=IndexVersion, status_code=202, responses=problems(404, 409))
async def build_version(services: Services, key: Admin, index: Name) -> Any:
    """Begin to build the next version of an index of the applied file, in the background."""
    builds.require_builder()
    async with services.database.connection() as connection:
        entry = await configuration.current(connection)
        if entry is None:
            raise NotFoundError("no configuration is applied", param="index")
        spec = specify_version(entry.specification, index)
        build = await builds.begin(connection, index, spec, author=signature(key))
        return _shown(await versions.find_version(connection, IndexReference(index, build.number)))


@router.post("/indexes/{index}/cancel", response_model=IndexVersion, responses=problems(404))
async def cancel_build(services: Services, key: Admin, index: Name, wish: ReasonWish) -> Any:
    """Give up the build of an index; whoever builds it stops at its next step."""
    async with services.database.connection() as connection:
        build = await versions.cancel(connection, index, author=signature(key), reason=wish.reason)
        return _shown(await versions.find_version(connection, IndexReference(index, build.number)))


@router.delete("/indexes/{index}/versions/{number}", response_model=IndexVersion, responses=problems(404, 409))
async def drop_version(services: Services, key: Admin, index: Name, number: Number) -> Any:
    """Drop a version that no release in use names."""
    async with services.database.connection() as connection:
        wanted = IndexReference(index, number)
        await versions.drop(connection, await versions.find_version(connection, wanted), author=signature(key))
        return _shown(await versions.find_version(connection, wanted))


async def _indexes(connection: Connection) -> list[dict[str, Any]]:
    entry = await configuration.current(connection)
    specified = {} if entry is None else entry.specification.indexes
    made: dict[str, list[Version]] = {name: [] for name in specified}
    for version in await versions.list_versions(connection):
        made.setdefault(version.index, []).append(version)
    return [
        {
            "name": name,
            "spec": plain(specified.get(name)),
            "latest": _newest(found, "published"),
            "building": _newest(found, "building"),
        }
        for name, found in sorted(made.items())
    ]


def _newest(found: list[Version], state: str) -> dict[str, Any] | None:
    return next((_shown(version) for version in found if version.state == state), None)


def _shown(version: Version) -> dict[str, Any]:
    fields = {name: getattr(version, name) for name in IndexVersion.model_fields}
    return {**fields, "spec": plain(version.spec), "progress": plain(version.progress)}
