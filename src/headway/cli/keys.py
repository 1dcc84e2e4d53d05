"""headway keys: who may call."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, cast

import typer

from headway.cli.terminal import JsonOption, author, emit, emit_json, notes, run_async
from headway.clock import SystemClock, utc
from headway.config.quantities import parse_duration
from headway.config.settings import load_settings
from headway.domain.snapshot import SCOPES, Scope
from headway.errors import InvalidRequestError
from headway.runtime import open_database
from headway.storage import keys, routing
from headway.storage.keys import Grant, Key

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

NumberArgument = Annotated[int, typer.Argument(help="Number of the key; `headway keys list` shows it.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the audit log.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who or what is going to use it.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"What it may do: {', '.join(SCOPES)}; repeat for several. By default invoke and feedback."),
    ] = None,
    application: Annotated[
        list[str] | None, typer.Option(help="The only application it may call; repeat for several. By default all.")
    ] = None,
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0 is no limit.")] = 0,
    concurrency: Annotated[int, typer.Option(min=0, help="Requests in flight; 0 is no limit.")] = 0,
    monthly_usd: Annotated[float | None, typer.Option(min=0, help="Hard cap of cost per calendar month (UTC).")] = None,
    expires: Annotated[str | None, typer.Option(metavar="DURATION", help="Ends after this time, such as 90d.")] = None,
    json: JsonOption = False,
) -> None:
    """Create an API key and print it, once: only its hash is kept.

    The key alone goes to standard output, so it can be captured.

    Example: [bold]headway keys create web --application support --requests-per-minute 600[/bold]

    Example: [bold]KEY=$(headway keys create ci --scope invoke --scope pin --expires 7d)[/bold]
    """
    grant = Grant(
        name=name,
        scopes=cast("tuple[Scope, ...]", tuple(dict.fromkeys(scope or ("invoke", "feedback")))),
        applications=tuple(dict.fromkeys(application or ())),
        requests_per_minute=requests_per_minute,
        concurrency=concurrency,
        monthly_usd=monthly_usd,
        expires_at=_after(expires),
    )
    key, secret = run_async(_create(grant))
    if json:
        emit_json(asdict(key) | {"key": secret})
        return
    if sys.stdout.isatty():
        notes.print(f"Key {key.number} ({', '.join(key.scopes)}). It is shown this once:")
    typer.echo(secret)


@app.command("list")
def list_keys(json: JsonOption = False) -> None:
    """List API keys, revoked and expired ones too. The keys themselves are not kept, only their first characters.

    Example: [bold]headway keys list --json[/bold]
    """
    now = utc(SystemClock().unix_ms())
    rows = [asdict(key) | {"state": _state(key, now)} for key in run_async(_list())]
    columns = ("number", "name", "hint", "state", "scopes", "applications", "groups", "requests_per_minute")
    emit(rows, (*columns, "concurrency", "monthly_usd", "expires_at"), json=json)


@app.command()
def revoke(number: NumberArgument, reason: ReasonOption = "", json: JsonOption = False) -> None:
    """Revoke an API key for good; gateways refuse it within a second.

    Example: [bold]headway keys revoke 3 --reason "leaked"[/bold]
    """
    key = run_async(_revoke(number, reason))
    if json:
        emit_json(asdict(key))
    else:
        notes.print(f"Key {key.number} is revoked.")


@app.command()
def expire(
    number: NumberArgument,
    after: Annotated[str, typer.Argument(metavar="DURATION", help="From now on, such as 24h; `never` takes it back.")],
    reason: ReasonOption = "",
    json: JsonOption = False,
) -> None:
    """Let an API key end after some time, to replace it without an interruption.

    Example: [bold]headway keys expire 3 24h[/bold]
    """
    key = run_async(_expire(number, None if after == "never" else _after(after), reason))
    if json:
        emit_json(asdict(key))
    else:
        ends = "never ends" if key.expires_at is None else f"ends at {key.expires_at:%Y-%m-%d %H:%M:%S} UTC"
        notes.print(f"Key {key.number} {ends}.")


@app.command()
def groups(
    number: NumberArgument,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[GROUP]...", help="All of them; none: no group.")
    ] = None,
    reason: ReasonOption = "",
    json: JsonOption = False,
) -> None:
    """Set the groups of an API key: its callers find the documents that are labelled with one of them.

    Example: [bold]headway keys groups 3 hr it[/bold]
    """
    key = run_async(_set_groups(number, tuple(dict.fromkeys(names or ())), reason))
    if json:
        emit_json(asdict(key))
    else:
        notes.print(f"Key {key.number} is in {', '.join(key.groups) or 'no group'}.")


@app.command()
def rotate_signing() -> None:
    """Sign new interaction ids with a new key. Ids that are out there stay valid.

    Example: [bold]headway keys rotate-signing[/bold]
    """
    number = run_async(_rotate())
    notes.print(f"New interaction ids are signed with key {number}.")


def _after(duration: str | None) -> datetime | None:
    if duration is None:
        return None
    try:
        seconds = parse_duration(duration)
        return utc(SystemClock().unix_ms()) + timedelta(seconds=seconds)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"{duration!r}: {error}", param="expires") from error


def _state(key: Key, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


async def _create(grant: Grant) -> tuple[Key, str]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await keys.create(connection, grant, author=author())


async def _list() -> list[Key]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await keys.list_keys(connection)


async def _revoke(number: int, reason: str) -> Key:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await keys.revoke(connection, number, author=author(), reason=reason or None)


async def _expire(number: int, at: datetime | None, reason: str) -> Key:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await keys.expire(connection, number, at, author=author(), reason=reason or None)


async def _set_groups(number: int, names: tuple[str, ...], reason: str) -> Key:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await keys.set_groups(connection, number, names, author=author(), reason=reason or None)


async def _rotate() -> int:
    async with open_database(load_settings()) as database, database.connection() as connection:
        return await routing.rotate_signing_key(connection, author=author())
