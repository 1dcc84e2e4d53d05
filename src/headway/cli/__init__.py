"""The `headway` command: one module per group of commands."""

from typing import Annotated

import typer

from headway import __version__
from headway.cli import terminal

app = typer.Typer(name="headway", cls=terminal.Group, no_args_is_help=True, rich_markup_mode="rich")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headway {__version__}")
        raise typer.Exit


@app.callback()
def headway(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Move an LLM application to a new release without losing ground."""


def main() -> None:
    """Run the `headway` command."""
    app()
