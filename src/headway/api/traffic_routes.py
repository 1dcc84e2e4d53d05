"""The control plane's routes on applications, releases and rollouts: where traffic goes."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from headway.api.control_parts import Admin, Name, Number, Services, Viewer, problems, signature
from headway.api.queries import PageQuery, ReleaseQuery, RolloutQuery, SpanQuery
from headway.api.resources import (
    Application,
    Page,
    Release,
    Rollout,
    RolloutDetail,
    ShareAnswer,
    ShareWish,
    Summary,
)
from headway.clock import utc
from headway.errors import InvalidRequestError
from headway.rollouts.manual import set_share
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


@router.put("/applications/{application}/share", response_model=ShareAnswer, responses=problems(404, 409))
async def put_share(services: Services, key: Admin, application: Name, wish: ShareWish) -> Any:
    """Give a release a share of the application's units; 1 promotes it, 0 takes it back."""
    async with services.database.connection() as connection:
        change = await set_share(
            connection, application, wish.release, wish.share, author=signature(key), reason=wish.reason
        )
    return dataclasses.asdict(change)


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


@router.get("/rollouts", response_model=Page[Rollout], responses=problems())
async def list_rollouts(services: Services, _: Viewer, wanted: Annotated[RolloutQuery, Query()]) -> Any:
    """List the rollouts, newest first; `active` for those that run, or for those that have ended."""
    conditions = records.of_application(wanted.application, active=wanted.active)
    async with services.database.connection() as connection:
        return await read_page(connection, records.ROLLOUTS, conditions, limit=wanted.limit, cursor=wanted.cursor)


@router.get("/rollouts/{number}", response_model=RolloutDetail, responses=problems(404))
async def get_rollout(services: Services, _: Viewer, number: Number) -> Any:
    """Show a rollout with its steps."""
    async with services.database.connection() as connection:
        found = await records.read_one(connection, records.ROLLOUTS, ("number = %s", number), f"rollout {number}")
        return {**found, "stages": await records.read_stages(connection, number)}
