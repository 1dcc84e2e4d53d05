"""headway run: everything, on this machine, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.text import Text

from headway.cli.terminal import author, console, is_interactive
from headway.clock import SystemClock
from headway.config.load import load
from headway.config.logs import configure_logs
from headway.config.settings import Settings, load_settings
from headway.domain.snapshot import SCOPES
from headway.storage import configuration, keys, routing
from headway.storage.database import Database

RUNNING = "Headway runs."
"""What is printed once both planes answer."""


def run(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the data plane; HEADWAY_PORT or 8080 by default.")
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the control plane; HEADWAY_ADMIN_PORT or 8081 by default."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Worker processes; HEADWAY_WORKERS or 2 by default.")
    ] = None,
) -> None:
    """Run Headway: database, data plane and control plane, until Ctrl-C or SIGTERM.

    At the first start headway.yaml is applied, if there is one, and an administrator's key is made and shown once.

    Example: [bold]headway run --port 9000[/bold]
    """
    from headway.runtime.supervisor import Supervisor  # noqa: PLC0415 - loads both planes; no other command needs them

    given = {"port": port, "admin_port": admin_port, "workers": workers}
    settings = msgspec.structs.replace(
        load_settings(), **{name: value for name, value in given.items() if value is not None}
    )
    if is_interactive() and settings.log_format == "json":
        settings = msgspec.structs.replace(settings, log_format="console")
    configure_logs(settings)
    Supervisor(settings, SystemClock(), lambda database: _prepare(database, settings)).run(lambda: _greet(settings))


async def _prepare(database: Database, settings: Settings) -> None:
    """Do what only the first start needs: apply the file, publish a snapshot, make the first key."""
    async with database.connection() as connection:
        if await configuration.current(connection) is None and settings.config.exists():
            await configuration.apply(connection, load(settings.config), author=author())
            console.print(Text(f"Applied {settings.config}."))
        if await routing.latest(connection) is None:
            await routing.publish(connection)
        if not await keys.list_keys(connection):
            _, secret = await keys.create(connection, keys.Grant("first", SCOPES), author=author())
            console.print(Text("The first API key, with all scopes; it is shown only now:"))
            console.print(Text(f"  {secret}", style="bold"), soft_wrap=True)


def _greet(settings: Settings) -> None:
    console.print(Text(RUNNING, style="bold green"))
    console.print(Text(f"  data plane     http://{settings.host}:{settings.port}/v1 (an OpenAI base URL)"))
    console.print(Text(f"  control plane  http://{settings.admin_host}:{settings.admin_port}"))
    if not settings.config.exists():
        console.print(Text("  Next: `headway init`, edit headway.yaml, `headway apply`."))
    console.print(Text("  More keys: `headway keys create NAME`. Stop with Ctrl-C."))
