"""headway demo: two releases on a real model, rated and recorded, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headway.cli.terminal import notes

_INTERRUPTED = 130


def demo(
    once: Annotated[bool, typer.Option("--once", help="End when everything is shown, instead of at Ctrl-C.")] = False,
    home: Annotated[Path, typer.Option(help="The demo's folder: configuration, database, log.")] = Path(
        ".headway-demo"
    ),
) -> None:
    """Show Headway at work: two releases of one application on a real language model, rated and recorded.

    Everything happens on this machine and in one folder; your own configuration and database are left alone. The
    demo can be run again, and goes on where it was.

    Example: [bold]headway demo[/bold], or in a pipeline [bold]headway demo --once[/bold]
    """
    from headway.cli.demo.play import play  # noqa: PLC0415 - loads the test kit; no other command needs it

    try:
        play(home, once=once)
    except KeyboardInterrupt:
        notes.print("Stopped.", style="dim")
        raise typer.Exit(_INTERRUPTED) from None
