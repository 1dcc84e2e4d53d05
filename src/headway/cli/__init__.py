"""The `headway` command: one module per group of commands."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
import typer.main

from headway import __version__
from headway.cli import terminal


class _Place(NamedTuple):
    """Where a command is: its panel of the help, its module, and what it is called there; ``app`` is a group."""

    panel: str
    module: str
    attribute: str = "app"


_PLACES = {
    **{
        name: _Place("Configuration", "configuration", name)
        for name in ("init", "check", "plan", "apply", "diff", "history")
    },
    "share": _Place("Traffic", "share", "share"),
    "simulate": _Place("Traffic", "simulate", "simulate"),
    "releases": _Place("Traffic", "releases"),
    "rollout": _Place("Traffic", "rollout"),
    "run": _Place("Serving", "run", "run"),
    "demo": _Place("Serving", "demo", "demo"),
    "openapi": _Place("Serving", "openapi", "openapi"),
    "postgres": _Place("Serving", "postgres", "postgres"),
    "index": _Place("Knowledge", "indexes"),
    "interactions": _Place("Records", "interactions"),
    "feedback": _Place("Records", "feedback"),
    "reports": _Place("Records", "reports"),
    "keys": _Place("Access", "keys"),
}


class _Commands(terminal.Group):
    """All commands. The module of one is imported when it is asked for, as most need little of what others need."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - as typer calls it
        """Name them, in the order of the help."""
        return list(_PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as typer calls it
        """Give a command; None if there is none of that name."""
        if cmd_name in _PLACES and cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command to run; for a name that is not there, the nearest is suggested."""
        if args[0] not in _PLACES:
            for name in _PLACES:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    place = _PLACES[name]
    module = import_module(f"headway.cli.{place.module}")
    found = getattr(module, place.attribute)
    alone = typer.Typer(rich_markup_mode="rich", callback=lambda: None)
    if isinstance(found, typer.Typer):
        alone.add_typer(found, name=name, rich_help_panel=place.panel)
    else:
        settings = getattr(module, "CONTEXT", None)
        alone.command(name, rich_help_panel=place.panel, context_settings=settings)(found)
    return typer.main.get_group(alone).commands[name]


app = typer.Typer(name="headway", cls=_Commands, no_args_is_help=True, rich_markup_mode="rich")


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
