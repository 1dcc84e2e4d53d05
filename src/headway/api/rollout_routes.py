"""The control plane's routes on rollouts: how they stand, and leading them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from headway.api.control_parts import Admin, ControlServices, Name, Number, Services, Viewer, problems, signature
from headway.api.queries import PageQuery
from headway.api.resources import Page
from headway.api.rollout_resources import (
    CommandAnswer,
    CommandWish,
    Decision,
    FigureSeries,
    LossesAnswer,
    LossesQuery,
    ReasonedWish,
    ReplayAnswer,
    Rollout,
    RolloutDetail,
    RolloutQuery,
    SeriesQuery,
    ShareAnswer,
    ShareWish,
    StartAnswer,
    StartWish,
    plain,
)
from headway.domain.rollout import Command, commands
from headway.domain.snapshot import KeyRoute
from headway.rollouts.manual import set_share
from headway.rollouts.operations import take
from headway.rollouts.replaying import replay
from headway.rollouts.starting import start
from headway.storage import records, rollouts
from headway.storage.losses import find_losses
from headway.storage.paging import Condition, read_page

router = APIRouter()


@router.get("/rollouts", response_model=Page[Rollout], responses=problems())
async def list_rollouts(services: Services, _: Viewer, wanted: Annotated[RolloutQuery, Query()]) -> Any:
    """List the rollouts, newest first; `active` for those that run, or for those that have ended."""
    conditions = records.of_application(wanted.application, active=wanted.active, state=wanted.state)
    async with services.database.connection() as connection:
        return await records.read_rollouts(connection, conditions, limit=wanted.limit, cursor=wanted.cursor)


@router.get("/rollouts/{number}", response_model=RolloutDetail, responses=problems(404))
async def get_rollout(services: Services, _: Viewer, number: Number) -> Any:
    """Show a rollout: its stages, what it is decided by, where it stands and its newest figures."""
    async with services.database.connection() as connection:
        found = await rollouts.find_rollout(connection, number)
        stages = await rollouts.list_stages(connection, number)
        figures = await rollouts.latest_figure(connection, number)
    possible = (
        commands(found.terms.policy, found.status) if found.terms is not None and found.status is not None else ()
    )
    return {
        **_shown(found),
        **plain(
            {
                "stages": stages,
                "terms": found.terms,
                "status": found.status,
                "figures": figures,
                "commands": possible,
            }
        ),
    }


@router.get("/rollouts/{number}/decisions", response_model=Page[Decision], responses=problems(404))
async def list_decisions(services: Services, _: Viewer, number: Number, page: Annotated[PageQuery, Query()]) -> Any:
    """List a rollout's decisions, newest first."""
    async with services.database.connection() as connection:
        await rollouts.find_rollout(connection, number)
        condition: Condition = ("rollout_id = %s", number)
        return await read_page(connection, records.DECISIONS, [condition], limit=page.limit, cursor=page.cursor)


@router.get("/rollouts/{number}/figures", response_model=FigureSeries, responses=problems(404))
async def list_figures(services: Services, _: Viewer, number: Number, wanted: Annotated[SeriesQuery, Query()]) -> Any:
    """List a rollout's figures over time, oldest first, thinned out evenly."""
    async with services.database.connection() as connection:
        await rollouts.find_rollout(connection, number)
        items = await rollouts.list_figures(connection, number, since=wanted.since, limit=wanted.limit)
    return {"items": plain(items)}


@router.get("/rollouts/{number}/lost-documents", response_model=LossesAnswer, responses=problems(404))
async def list_lost_documents(
    services: Services, _: Viewer, number: Number, wanted: Annotated[LossesQuery, Query()]
) -> Any:
    """List the documents that answers of the stable release came from and that the candidate's index version lacks."""
    async with services.database.connection() as connection:
        await rollouts.find_rollout(connection, number)
        losses = await find_losses(connection, number, limit=wanted.limit)
    return {"rollout": number, "losses": plain(losses)}


@router.post("/rollouts/{number}/pause", response_model=CommandAnswer, responses=problems(404, 409))
async def pause_rollout(services: Services, key: Admin, number: Number, wish: CommandWish) -> Any:
    """Freeze a rollout at its share; only the kill switch or a person acts from there."""
    return await _take(services, key, number, "pause", wish.reason)


@router.post("/rollouts/{number}/resume", response_model=CommandAnswer, responses=problems(404, 409))
async def resume_rollout(services: Services, key: Admin, number: Number, wish: CommandWish) -> Any:
    """Let a paused rollout go on."""
    return await _take(services, key, number, "resume", wish.reason)


@router.post("/rollouts/{number}/approve", response_model=CommandAnswer, responses=problems(404, 409))
async def approve_rollout(services: Services, key: Admin, number: Number, wish: CommandWish) -> Any:
    """Release the next step that the policy wants a person's approval for; it is still taken on evidence only."""
    return await _take(services, key, number, "approve", wish.reason)


@router.post("/rollouts/{number}/advance", response_model=CommandAnswer, responses=problems(404, 409))
async def advance_rollout(services: Services, key: Admin, number: Number, wish: ReasonedWish) -> Any:
    """Take the next step without waiting for evidence."""
    return await _take(services, key, number, "advance", wish.reason)


@router.post("/rollouts/{number}/promote", response_model=CommandAnswer, responses=problems(404, 409))
async def promote_rollout(services: Services, key: Admin, number: Number, wish: ReasonedWish) -> Any:
    """Make the candidate the stable release now, without waiting for evidence and without holdback."""
    return await _take(services, key, number, "promote", wish.reason)


@router.post("/rollouts/{number}/rollback", response_model=CommandAnswer, responses=problems(404, 409))
async def roll_back(services: Services, key: Admin, number: Number, wish: ReasonedWish) -> Any:
    """Take the candidate back: every next request goes to the stable release."""
    return await _take(services, key, number, "rollback", wish.reason)


@router.post("/rollouts/{number}/replay", response_model=ReplayAnswer, responses=problems(404, 409))
async def replay_rollout(services: Services, _: Viewer, number: Number) -> Any:
    """Take every decision of a rollout again from the stored evidence, and compare; nothing is changed."""
    async with services.database.connection() as connection:
        found = await replay(connection, number)
    return {"rollout": number, **plain(found)}


@router.post(
    "/applications/{application}/rollouts", response_model=StartAnswer, status_code=201, responses=problems(404, 409)
)
async def start_rollout(services: Services, key: Admin, application: Name, wish: StartWish) -> Any:
    """Start to roll out a release under the application's policy."""
    async with services.database.connection() as connection:
        started = await start(
            connection,
            application,
            wish.release,
            author=signature(key),
            reason=wish.reason,
            now_ms=services.clock.unix_ms(),
            accept=wish.accept,
            retry=wish.retry,
        )
    return {
        "rollout": _shown(started.rollout),
        "forecast": plain(started.forecast),
        "snapshot": started.snapshot,
    }


@router.put("/applications/{application}/share", response_model=ShareAnswer, responses=problems(404, 409))
async def put_share(services: Services, key: Admin, application: Name, wish: ShareWish) -> Any:
    """Give a release a share of the application's units; 1 promotes it, 0 takes it back."""
    async with services.database.connection() as connection:
        change = await set_share(
            connection, application, wish.release, wish.share, author=signature(key), reason=wish.reason
        )
    return {
        "rollout": _shown(change.rollout),
        "before": change.before,
        "opened": change.opened,
        "changed": change.changed,
        "snapshot": change.snapshot,
    }


async def _take(services: ControlServices, key: KeyRoute, number: int, command: Command, reason: str) -> dict[str, Any]:
    async with services.database.connection() as connection:
        taken = await take(
            connection,
            number,
            command,
            author=signature(key),
            reason=reason,
            now_ms=services.clock.unix_ms(),
        )
    return {
        "rollout": _shown(taken.rollout),
        "decision": {"rollout": number, **plain(taken.decision)},
        "snapshot": taken.snapshot,
    }


def _shown(rollout: rollouts.Rollout) -> dict[str, Any]:
    difference = rollouts.describe_difference(rollout.difference)
    return {name: getattr(rollout, name) for name in Rollout.model_fields if name not in difference} | difference
