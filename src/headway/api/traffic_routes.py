"""The control plane's routes on applications and releases."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from headway.api.control_parts import Name, Number, Services, Viewer, problems
from headway.api.queries import PageQuery, ReleaseQuery, SpanQuery
from headway.api.resources import Application, Page, Release, Summary
from headway.clock import utc
from headway.errors import InvalidRequestError
from headway.storage import records
from headway.storage.paging import read_page

router = APIRouter()

_SUMMARY_SPAN = timedelta(hours=24)
_LONGEST_SPAN = timedelta(days=92)


@router.get("/applications", response_model=Page[Application], responses=problems())
async def list_applications(services: Services, _: Viewer, page: Annotated[PageQuery, Query()]) -> Any:
    """List the applications by name, retired ones too."""
    async with services.database.connection() as connection:
        return await read_page(connection, records.APPLICATIONS, limit=page.limit, cursor=page.cursor)


@router.get("/applications/{application}", response_model=Application, responses=problems(404))
async def get_application(services: Services, _: Viewer, application: Name) -> Any:
    """Show an application."""
    async with services.database.connection() as connection:
        condition = ("name = %s", application)
        return await records.read_one(connection, records.APPLICATIONS, condition, f"application {application!r}")


@router.get("/applications/{application}/summary", response_model=Summary, responses=problems(404, 429))
async def summarise_application(
    services: Services, _: Viewer, application: Name, wanted: Annotated[SpanQuery, Query()]
) -> Any:
    """Add up what each release did with the interactions of a span of time: by default the last 24 hours."""
    end = wanted.until or utc(services.clock.unix_ms())
    try:
        start = wanted.since or end - _SUMMARY_SPAN
        span = end - start
    except OverflowError as error:
        raise InvalidRequestError("the span of time is out of range", param="until") from error
    if not timedelta(0) < span <= _LONGEST_SPAN:
        raise InvalidRequestError(f"`since` lies at most {_LONGEST_SPAN.days} days before `until`", param="since")
    async with services.database.connection() as connection:
        condition = ("name = %s", application)
        found = await records.read_one(connection, records.APPLICATIONS, condition, f"application {application!r}")
        releases = await records.summarise(connection, found["number"], start, end)
    return {"application": application, "since": start, "until": end, "releases": releases}


@router.get("/releases", response_model=Page[Release], responses=problems())
async def list_releases(services: Services, _: Viewer, wanted: Annotated[ReleaseQuery, Query()]) -> Any:
    """List the releases, newest first."""
    conditions = records.of_application(wanted.application, release=wanted.name)
    async with services.database.connection() as connection:
        return await read_page(connection, records.RELEASES, conditions, limit=wanted.limit, cursor=wanted.cursor)


@router.get("/releases/{number}", response_model=Release, responses=problems(404))
async def get_release(services: Services, _: Viewer, number: Number) -> Any:
    """Show a release."""
    async with services.database.connection() as connection:
        return await records.read_one(connection, records.RELEASES, ("number = %s", number), f"release {number}")
