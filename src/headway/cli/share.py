"""headway share: an operator moves traffic."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from headway.cli.terminal import JsonOption, author, console, emit_json, run_async
from headway.config.quantities import format_share, parse_share
from headway.config.settings import load_settings
from headway.errors import InvalidRequestError
from headway.rollouts.manual import ShareChange, set_share
from headway.runtime import open_database


def share(
    application: Annotated[str, typer.Argument(help="Name of the application.")],
    release: Annotated[str, typer.Argument(help="Name of the release; `headway releases list` shows them.")],
    wanted: Annotated[str, typer.Argument(metavar="SHARE", help="10%, or 0.1; 100% promotes, 0% takes back.")],
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the audit log.")] = "",
    json: JsonOption = False,
) -> None:
    """Give a release a share of an application's conversations (or users, or requests).

    The first share begins a rollout from the stable release. Whoever had the candidate keeps it as the share grows.
    At 100% it becomes the stable release; at 0% it is taken back. Gateways follow within a second.

    Example: [bold]headway share support r-1f2e3d4c 10% --reason "looks good in staging"[/bold]
    """
    try:
        target = parse_share(wanted)
    except ValueError as error:
        raise InvalidRequestError(str(error), param="share") from error
    change = run_async(_share(application, release, target, reason))
    if json:
        emit_json(asdict(change))
    else:
        console.print(Text(_describe(change)), soft_wrap=True)


def _describe(change: ShareChange) -> str:
    rollout = change.rollout
    if not change.changed:
        return f"{rollout.candidate} has {format_share(rollout.share)} of {rollout.application} already."
    if rollout.state == "promoted":
        return f"{rollout.candidate} is now the stable release of {rollout.application} and has all its traffic."
    if rollout.state == "rolled_back":
        return f"{rollout.candidate} is taken back; {rollout.stable} has all traffic of {rollout.application}."
    moved = f"from {format_share(change.before)} " if change.before else ""
    rest = format_share(1 - rollout.share)
    return (
        f"{rollout.application}: {rollout.candidate} goes {moved}to {format_share(rollout.share)}"
        f" (rollout {rollout.number}, stage {rollout.stage}); {rollout.stable} keeps {rest}."
    )


async def _share(application: str, release: str, share: float, reason: str) -> ShareChange:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await set_share(connection, application, release, share, author=author(), reason=reason)
