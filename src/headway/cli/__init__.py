"""The `headway` command: one module per group of commands."""

from typing import Annotated

import typer

from headway import __version__
from headway.cli import (
    configuration,
    demo,
    feedback,
    indexes,
    interactions,
    keys,
    openapi,
    postgres,
    releases,
    reports,
    rollout,
    run,
    share,
    simulate,
    terminal,
)

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


_GROUPS = {
    "Traffic": {"releases": releases.app, "rollout": rollout.app},
    "Knowledge": {"index": indexes.app},
    "Records": {"interactions": interactions.app, "feedback": feedback.app, "reports": reports.app},
    "Access": {"keys": keys.app},
}
_COMMANDS = {
    "Configuration": (
        configuration.init,
        configuration.check,
        configuration.plan,
        configuration.apply,
        configuration.diff,
        configuration.history,
    ),
    "Traffic": (share.share, simulate.simulate),
    "Serving": (run.run, demo.demo, openapi.openapi),
}

for panel, commands in _COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.command(rich_help_panel="Serving", context_settings=postgres.CONTEXT)(postgres.postgres)
for panel, groups in _GROUPS.items():
    for name, group in groups.items():
        app.add_typer(group, name=name, rich_help_panel=panel)


def main() -> None:
    """Run the `headway` command."""
    app()
