"""headway rollout: looking at rollouts, and leading them."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.text import Text

from headway.cli.rollout_screen import Reading, Screen
from headway.cli.rollout_terms import draw_losses, draw_terms
from headway.cli.terminal import JsonOption, author, console, emit, emit_json, notes, run_async
from headway.cli.watch import Reader, find, watch
from headway.clock import SystemClock
from headway.config.settings import load_settings
from headway.domain.difference import describe_parts
from headway.domain.display import describe_state, format_seconds, format_share
from headway.domain.rollout import Command
from headway.errors import InvalidRequestError
from headway.rollouts.operations import Taken, take
from headway.rollouts.replaying import Replay, replay
from headway.rollouts.starting import Started, start
from headway.runtime import open_database
from headway.storage import rollouts
from headway.storage.losses import find_losses
from headway.storage.rollouts import Rollout

app = typer.Typer(help="List, watch and lead rollouts.", no_args_is_help=True)

_SHOWN_DECISIONS = 100

RolloutArgument = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="Number of the rollout, or its application: that one's newest.")
]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why; kept with the decision and in the audit log.")]


@app.command("list")
def list_rollouts(
    application: Annotated[str | None, typer.Argument(help="Only this application's.")] = None,
    active: Annotated[bool, typer.Option("--active", help="Only those that run.")] = False,
    json: JsonOption = False,
) -> None:
    """List rollouts, newest first.

    Example: [bold]headway rollout list --active[/bold]
    """
    found = run_async(_list(application, active))
    if json:
        emit_json(found)
        return
    rows = [
        {
            "number": rollout.number,
            "application": rollout.application,
            "stable": rollout.stable,
            "candidate": rollout.candidate,
            "differs": describe_parts(rollout.difference),
            "policy": rollout.policy,
            "state": describe_state(rollout.state),
            "share": format_share(rollout.share),
            "started": rollout.started_at,
            "ended": rollout.ended_at,
        }
        for rollout in found
    ]
    emit(rows, tuple(rows[0]) if rows else (), json=False)


@app.command()
def show(rollout: RolloutArgument, json: JsonOption = False) -> None:
    """Show a rollout whole: where it stands, its metrics, decisions, policy and stages.

    Example: [bold]headway rollout show support[/bold]
    """
    reading = run_async(_show(rollout))
    if json:
        emit_json(
            {
                "rollout": reading.rollout,
                "stages": reading.stages,
                "decisions": reading.decisions,
                "figures": reading.figure,
                "losses": reading.losses,
            }
        )
        return
    console.print(Screen(reading, whole=True))
    if reading.losses is not None:
        for part in draw_losses(reading.losses, reading.rollout.stable):
            console.print(part)
    for part in draw_terms(reading):
        console.print(part)


@app.command("watch")
def watch_rollout(
    rollout: RolloutArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay after its end; of an application, with its next rollout.")
    ] = False,
) -> None:
    """Watch a rollout live until it ends. Into a pipe or a file, its decisions are printed line by line.

    Example: [bold]headway rollout watch support[/bold]
    """
    try:
        run_async(_watch(rollout, follow))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command("start")
def start_rollout(
    application: Annotated[str, typer.Argument(help="Name of the application.")],
    release: Annotated[str, typer.Argument(help="Name of the release; `headway releases list` shows them.")],
    accept: Annotated[bool, typer.Option("--accept", help="Even if it cannot finish at the present traffic.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Even if the release was rolled back before.")] = False,
    reason: ReasonOption = "",
    json: JsonOption = False,
) -> None:
    """Start to roll out a release that is there already; [bold]headway apply[/bold] does it for one that is new.

    Example: [bold]headway rollout start support r-1f2e3d4c --reason "once more"[/bold]
    """
    started = run_async(_start(application, release, reason, accept=accept, retry=retry))
    if json:
        emit_json(started)
        return
    rollout, forecast = started.rollout, started.forecast
    console.print(
        Text(f"Rollout {rollout.number} of {rollout.application} has begun. {_stands(rollout)}"), soft_wrap=True
    )
    if forecast.seconds is not None and math.isfinite(forecast.seconds):
        console.print(f"At the present traffic it takes about {format_seconds(forecast.seconds)}.")
    for remark in (*forecast.problems, *forecast.notes):
        notes.print(Text(f"note: {remark}", "yellow"), soft_wrap=True)
    console.print(Text(f"To follow it: headway rollout watch {rollout.application}", "dim"), soft_wrap=True)


@app.command()
def pause(rollout: RolloutArgument, reason: ReasonOption = "", json: JsonOption = False) -> None:
    """Freeze a rollout at its share. Evidence is still collected; only the kill switch or a person acts.

    Example: [bold]headway rollout pause support --reason "odd answers"[/bold]
    """
    _do(rollout, "pause", reason, json=json)


@app.command()
def resume(rollout: RolloutArgument, reason: ReasonOption = "", json: JsonOption = False) -> None:
    """Let a paused rollout go on.

    Example: [bold]headway rollout resume support[/bold]
    """
    _do(rollout, "resume", reason, json=json)


@app.command()
def approve(rollout: RolloutArgument, reason: ReasonOption = "", json: JsonOption = False) -> None:
    """Release the next step that the policy wants a person's approval for. It is still taken on evidence only.

    Example: [bold]headway rollout approve support[/bold]
    """
    _do(rollout, "approve", reason, json=json)


NeededReasonOption = Annotated[
    str, typer.Option("--reason", "-r", help="Why, needed; kept with the decision and in the audit log.")
]


@app.command()
def advance(rollout: RolloutArgument, reason: NeededReasonOption, json: JsonOption = False) -> None:
    """Take the next step without waiting for evidence. The promise about bad candidates does not cover this step.

    Example: [bold]headway rollout advance support --reason "checked by hand"[/bold]
    """
    _do(rollout, "advance", _needed(reason), json=json)


@app.command()
def promote(rollout: RolloutArgument, reason: NeededReasonOption, json: JsonOption = False) -> None:
    """Make the candidate the stable release now, without waiting for evidence and without holdback.

    Example: [bold]headway rollout promote support --reason "the old model is being shut down"[/bold]
    """
    _do(rollout, "promote", _needed(reason), json=json)


@app.command()
def rollback(rollout: RolloutArgument, reason: NeededReasonOption, json: JsonOption = False) -> None:
    """Take the candidate back: every next request goes to the stable release.

    Example: [bold]headway rollout rollback support --reason "wrong prompt"[/bold]
    """
    _do(rollout, "rollback", _needed(reason), json=json)


@app.command("replay")
def replay_rollout(rollout: RolloutArgument, json: JsonOption = False) -> None:
    """Recompute every decision of a rollout from its stored evidence, and compare. Exit status 1 if any differs.

    Example: [bold]headway rollout replay 3[/bold]
    """
    number, found = run_async(_replay(rollout))
    if json:
        emit_json({"rollout": number, **asdict(found)})
    else:
        for mismatch in found.mismatches:
            what = f"decision {mismatch.number}: {mismatch.what} differs"
            console.print(Text.assemble((what, "bold red"), f"\n  stored    {mismatch.stored}"), soft_wrap=True)
            console.print(Text(f"  replayed  {mismatch.replayed}"), soft_wrap=True)
        console.print(_summarise(number, found))
    if found.mismatches:
        raise typer.Exit(1)


def _summarise(number: int, found: Replay) -> str:
    checked = "1 decision" if found.checked == 1 else f"{found.checked:,} decisions"
    differing = len({mismatch.number for mismatch in found.mismatches})
    agree = f"{differing:,} differ" if differing else "each as it was taken"
    rest = f" ({found.passed_over:,} more rest on no evidence)" if found.passed_over else ""
    return f"Rollout {number}: {checked} recomputed from the stored evidence, {agree}{rest}."


def _do(name: str, command: Command, reason: str, *, json: bool) -> None:
    taken = run_async(_take(name, command, reason))
    if json:
        emit_json(taken)
        return
    rollout, decision = taken.rollout, taken.decision
    text = Text.assemble((f"{rollout.application}: rollout {rollout.number} ", ""), decision.message, ".")
    text.append(f"\n{_stands(rollout)}", "dim")
    console.print(text, soft_wrap=True)


def _stands(rollout: Rollout) -> str:
    if rollout.state == "promoted":
        return f"{rollout.candidate} is now the stable release of {rollout.application}."
    if rollout.share == 0:
        return f"{rollout.stable} has all traffic of {rollout.application}."
    return f"{rollout.candidate} has {format_share(rollout.share)}, {rollout.stable} the rest."


def _needed(reason: str) -> str:
    if not reason.strip():
        raise InvalidRequestError("say why with --reason: it is kept with the decision", param="reason")
    return reason


async def _list(application: str | None, active: bool) -> list[Rollout]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await rollouts.list_rollouts(connection, application=application, active=active)


async def _show(name: str) -> Reading:
    async with open_database(load_settings()) as database, database.connection() as connection:
        reading = await Reader(name, SystemClock(), _SHOWN_DECISIONS).read(connection)
        if reading.losses is not None or "index" not in reading.rollout.difference.parts:
            return reading
        return replace(reading, losses=await find_losses(connection, reading.rollout.number))


async def _watch(name: str, follow: bool) -> None:
    async with open_database(load_settings()) as database:
        await watch(database, Reader(name, SystemClock()), console, follow=follow)


async def _start(application: str, release: str, reason: str, *, accept: bool, retry: bool) -> Started:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await start(
            connection,
            application,
            release,
            author=author(),
            reason=reason,
            now_ms=SystemClock().unix_ms(),
            accept=accept,
            retry=retry,
        )


async def _take(name: str, command: Command, reason: str) -> Taken:
    async with open_database(load_settings()) as database, database.connection() as connection:
        rollout = await find(connection, name)
        return await take(
            connection,
            rollout.number,
            command,
            author=author(),
            reason=reason,
            now_ms=SystemClock().unix_ms(),
        )


async def _replay(name: str) -> tuple[int, Replay]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        rollout = await find(connection, name)
        return rollout.number, await replay(connection, rollout.number)
