"""headway releases: what can be rolled out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from headway.cli.terminal import JsonOption, console, emit, emit_json, emit_record, run_async
from headway.config.quantities import format_share
from headway.config.settings import load_settings
from headway.runtime import open_database
from headway.storage import applications
from headway.storage.applications import Release

app = typer.Typer(help="List and show releases: the immutable bundles that answer.", no_args_is_help=True)


@app.command("list")
def list_releases(
    application: Annotated[str | None, typer.Argument(help="Only this application's.")] = None,
    json: JsonOption = False,
) -> None:
    """List releases, newest first, with the share of traffic that each has now.

    Example: [bold]headway releases list support[/bold]
    """
    releases = run_async(_list(application))
    if json:
        emit_json([asdict(release) for release in releases])
        return
    rows = [
        {
            "application": release.application,
            "release": release.name,
            "role": release.role,
            "share": format_share(release.share) if release.role else "-",
            "deployments": [deployment["name"] for deployment in release.deployments],
            "created_at": release.created_at,
            "created_by": release.created_by,
        }
        for release in releases
    ]
    emit(rows, tuple(rows[0]) if rows else (), json=False)


@app.command()
def show(
    application: Annotated[str, typer.Argument(help="Name of the application.")],
    release: Annotated[str, typer.Argument(help="Name of the release.")],
    json: JsonOption = False,
) -> None:
    """Show everything that a release is made of.

    Example: [bold]headway releases show support r-1f2e3d4c[/bold]
    """
    found = run_async(_show(application, release))
    if json:
        emit_json(asdict(found))
        return
    bundle = found.bundle
    emit_record(
        {
            "release": found.name,
            "application": found.application,
            "role": found.role,
            "share": format_share(found.share),
            "created": f"{found.created_at:%Y-%m-%d %H:%M:%S} by {found.created_by}",
            "content_hash": found.content_hash,
            "deployments": [f"{name} ({endpoint['model']})" for name, endpoint in bundle["deployments"]],
            "parameters": [f"{name}={value!r}" for name, value in bundle["parameters"].items()],
            "client_may_override": bundle["client_may_override"],
        },
        json=False,
    )
    if bundle["prompt"]:
        console.print("\n[bold]prompt[/bold]")
        console.print(bundle["prompt"], markup=False, soft_wrap=True, end="")


async def _list(application: str | None) -> list[Release]:
    async with open_database(load_settings()) as database, database.connection() as connection:
        if application is not None:
            await applications.find_application(connection, application)
        return await applications.list_releases(connection, application)


async def _show(application: str, release: str) -> Release:
    async with open_database(load_settings()) as database, database.connection() as connection:
        await applications.find_application(connection, application)
        return await applications.find_release(connection, application, release)
