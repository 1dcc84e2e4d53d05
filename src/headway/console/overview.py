"""The pages that lead to rollouts: applications, and the list of all rollouts."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from headway.console.gate import services_of
from headway.console.hour import Hours
from headway.console.rendering import Renderer
from headway.console.services import Visitor
from headway.storage import records, versions
from headway.storage.paging import read_page

_APPLICATIONS = 50
_ROLLOUTS = 30


async def show_applications(request: Request, visitor: Visitor) -> Response:
    """Show the applications: what is stable, what is rolled out, what the last hour was like."""
    services = services_of(request)
    hours: Hours = request.app.state.hours
    renderer: Renderer = request.app.state.renderer
    cursor = request.query_params.get("cursor")
    async with services.database.connection() as connection:
        page = await read_page(connection, records.APPLICATIONS, limit=_APPLICATIONS, cursor=cursor)
        running = await records.read_rollouts(connection, records.of_application(None, active=True), limit=500)
        uses = await versions.list_uses(connection)
    applications = [item for item in page.items if item["retired_at"] is None]
    return renderer.page(
        "applications.html",
        visitor,
        applications=applications,
        rollouts={item["application"]: item for item in running.items},
        hours={item["name"]: await hours.of(item) for item in applications},
        searched={(use.application, use.release): use for use in uses},
        cursor=cursor,
        next=page.next,
    )


async def show_rollouts(request: Request, visitor: Visitor) -> Response:
    """Show the rollouts, newest first."""
    renderer: Renderer = request.app.state.renderer
    application = request.query_params.get("application") or None
    cursor = request.query_params.get("cursor")
    async with services_of(request).database.connection() as connection:
        conditions = records.of_application(application)
        page = await records.read_rollouts(connection, conditions, limit=_ROLLOUTS, cursor=cursor)
    return renderer.page(
        "rollouts.html",
        visitor,
        application=application,
        rollouts=page.items,
        next=page.next,
        now_ms=services_of(request).clock.unix_ms(),
    )
