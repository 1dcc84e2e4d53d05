"""The page of a rollout, what it asks for while it is open, and what is asked of the rollout there."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from headway.clock import utc
from headway.console.curves import draw
from headway.console.gate import Form, services_of
from headway.console.rendering import Renderer
from headway.console.services import Visitor
from headway.console.texts import read_answer, read_question
from headway.console.view import describe_rollout
from headway.domain.difference import Comparison, compare, explain_difference
from headway.domain.release import Bundle
from headway.domain.rollout import Command
from headway.errors import InvalidRequestError, NotFoundError
from headway.rollouts import manual
from headway.rollouts.operations import take
from headway.storage import records
from headway.storage.database import Connection
from headway.storage.losses import describe_losses, describe_share_lost, find_losses
from headway.storage.mirrors import Pair, list_pairs
from headway.storage.paging import read_page
from headway.storage.rollouts import Rollout, find_rollout, list_decisions, list_figures, list_stages

_LARGEST_NUMBER = 2**31 - 1
_DECISIONS = 20
_CURVE_POINTS = 400
_PACE = timedelta(minutes=10)
_PACE_POINTS = 20
_PAIRS = 20
_LOST = 20
_FIRST_PAIRS = 3
_LONGEST_REASON = 500


async def show_rollout(request: Request, visitor: Visitor) -> Response:
    """Show a rollout; to htmx, only what changes while the page is open."""
    services = services_of(request)
    renderer: Renderer = request.app.state.renderer
    live = "hx-request" in request.headers
    now_ms = services.clock.unix_ms()
    async with services.database.connection() as connection:
        rollout = await find_rollout(connection, _number(request))
        stages = await list_stages(connection, rollout.number)
        decisions = await list_decisions(connection, rollout.number, limit=_DECISIONS + 1)
        since = (rollout.ended_at or utc(now_ms)) - _PACE
        figures = await list_figures(connection, rollout.number, since=since, limit=_PACE_POINTS)
        if not figures:  # none lately, such as while the controller is away: the last ones there are
            figures = (await list_figures(connection, rollout.number, limit=1))[-1:]
        difference = None if live else await _compare(connection, rollout)
        pairs = [] if live else await list_pairs(connection, rollout.number, limit=_FIRST_PAIRS)
        # Not while it moves: what is live is asked for every other second.
        looks = "index" in rollout.difference.parts and (not live or rollout.state == "rolled_back")
        losses = await find_losses(connection, rollout.number, limit=_LOST) if looks else None
    view = describe_rollout(rollout, decisions, figures, now_ms)
    return renderer.page(
        "rollout_live.html" if live else "rollout.html",
        visitor,
        live=live,
        view=view,
        rollout=rollout,
        stages=stages,
        decisions=decisions[:_DECISIONS],
        older=decisions[_DECISIONS - 1].number if len(decisions) > _DECISIONS else None,
        cause=explain_difference(rollout.difference),
        difference=difference,
        losses=losses,
        lost="" if losses is None else describe_losses(losses),
        lost_share="" if losses is None else describe_share_lost(losses, rollout.stable),
        pairs=[_words(pair) for pair in pairs],
        now_ms=now_ms,
    )


async def show_decisions(request: Request, visitor: Visitor) -> Response:
    """Show the decisions of a rollout, page by page."""
    renderer: Renderer = request.app.state.renderer
    before = request.query_params.get("before", "")
    start = int(before) if before.isdecimal() and len(before) < 10 else None
    async with services_of(request).database.connection() as connection:
        rollout = await find_rollout(connection, _number(request))
        decisions = await list_decisions(connection, rollout.number, limit=_DECISIONS + 1, before=start)
    return renderer.page(
        "decisions.html",
        visitor,
        rollout=rollout,
        decisions=decisions[:_DECISIONS],
        older=decisions[_DECISIONS - 1].number if len(decisions) > _DECISIONS else None,
        now_ms=services_of(request).clock.unix_ms(),
    )


async def show_answers(request: Request, visitor: Visitor) -> Response:
    """Show mirrored answers beside those that callers got; to htmx, the latest few."""
    renderer: Renderer = request.app.state.renderer
    live = "hx-request" in request.headers
    before = _time(request.query_params.get("before"))
    limit = _FIRST_PAIRS if live else _PAIRS
    async with services_of(request).database.connection() as connection:
        rollout = await find_rollout(connection, _number(request))
        pairs = await list_pairs(connection, rollout.number, limit=limit, before=before)
    return renderer.page(
        "answers_live.html" if live else "answers.html",
        visitor,
        rollout=rollout,
        pairs=[_words(pair) for pair in pairs],
        older=pairs[-1].at.isoformat() if len(pairs) == _PAIRS else None,
        now_ms=services_of(request).clock.unix_ms(),
    )


async def give_figures(request: Request, _: Visitor) -> Response:
    """Give the figures over time as JSON: all, thinned out, or those after ``since`` (Unix seconds)."""
    since = _seconds(request.query_params.get("since"))
    async with services_of(request).database.connection() as connection:
        rollout = await find_rollout(connection, _number(request))
        if rollout.terms is None:
            raise NotFoundError("under the policy `manual` there are no figures")
        stages = await list_stages(connection, rollout.number)
        figures = await list_figures(connection, rollout.number, since=since, limit=_CURVE_POINTS)
    body = msgspec.json.encode(draw(rollout.terms, figures, stages))
    return Response(body, media_type="application/json")


async def command(request: Request, visitor: Visitor, form: Form) -> Response:
    """Ask something of a rollout, with a reason, and go back to its page."""
    number, reason = _number(request), form.get("reason", "").strip()
    wish = next((each for each in get_args(Command) if each == request.path_params["command"]), None)
    if wish is None:
        raise NotFoundError("there is nothing of that name to ask of a rollout")
    if not reason:
        raise InvalidRequestError("say why: the reason stands in the log for whoever looks later", param="reason")
    if len(reason) > _LONGEST_REASON or "\x00" in reason:
        raise InvalidRequestError(f"a reason has at most {_LONGEST_REASON} characters of text", param="reason")
    services = services_of(request)
    async with services.database.connection() as connection:
        rollout = await find_rollout(connection, number)
        if rollout.terms is None and wish in ("promote", "rollback"):
            share = 1.0 if wish == "promote" else 0.0
            await manual.set_share(
                connection, rollout.application, rollout.candidate, share, author=visitor.signature, reason=reason
            )
        else:
            now_ms = services.clock.unix_ms()
            await take(connection, number, wish, author=visitor.signature, reason=reason, now_ms=now_ms)
    return RedirectResponse(f"/rollouts/{number}", 303)


async def _compare(connection: Connection, rollout: Rollout) -> Comparison:
    bundles = []
    for release in (rollout.stable, rollout.candidate):
        conditions = records.of_application(rollout.application, release=release)
        page = await read_page(connection, records.RELEASES, conditions, limit=1)
        bundles.append(msgspec.convert(page.items[0]["bundle"], Bundle))
    return compare(bundles[0], bundles[1])


def _words(pair: Pair) -> dict[str, object]:
    return {
        "pair": pair,
        "question": read_question(pair.request),
        "stable": read_answer(pair.stable.body) if pair.stable is not None else None,
        "candidate": read_answer(pair.candidate.body),
    }


def _number(request: Request) -> int:
    number: int = request.path_params["number"]
    if not 1 <= number <= _LARGEST_NUMBER:
        raise NotFoundError("there is no rollout of that number")
    return number


def _seconds(text: str | None) -> datetime | None:
    try:
        return None if text is None else utc(int(float(text) * 1000))
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidRequestError("`since` is a time in Unix seconds", param="since") from error


def _time(text: str | None) -> datetime | None:
    try:
        at = None if text is None else datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequestError("`before` is a time", param="before") from error
    if at is not None and at.tzinfo is None:
        raise InvalidRequestError("`before` is a time with its zone", param="before")
    return at
