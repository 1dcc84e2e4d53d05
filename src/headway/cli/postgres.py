"""headway postgres: PostgreSQL's own tools, on Headway's database."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Annotated

import typer
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from headway.config.settings import load_settings
from headway.errors import NotFoundError
from headway.runtime import database_url
from headway.storage.cluster import find_binaries

_TOOLS = ("psql", "pg_dump", "pg_restore", "vacuumdb")

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def postgres(
    context: typer.Context, tool: Annotated[str, typer.Argument(help=f"One of {', '.join(_TOOLS)}.")] = "psql"
) -> None:
    """Run one of PostgreSQL's own tools on Headway's database, embedded or not. What follows its name goes to it.

    The embedded server is started when it does not run. [bold]docs/howto/backup-restore-upgrade.md[/bold] has more.

    Example: [bold]headway postgres pg_dump --format custom --file headway.dump[/bold]

    Example: [bold]headway postgres psql -c "SELECT max(at) FROM interaction"[/bold]
    """
    if tool not in _TOOLS:
        raise NotFoundError(f"there is no tool called {tool!r}; known are {', '.join(_TOOLS)}")
    program = find_binaries().root / "bin" / tool
    with database_url(load_settings()) as url:
        # An interrupt is for the tool: psql cancels the query and goes on.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            ended = subprocess.run([program, *context.args], env={**os.environ, **_environment(url)}, check=False)  # noqa: S603 (one of _TOOLS)
        finally:
            signal.signal(signal.SIGINT, before)
    if ended.returncode:
        raise typer.Exit(abs(ended.returncode))


def _environment(url: str) -> dict[str, str]:
    """Say in libpq's variables where the database is: unlike arguments, nobody else can read them."""
    variables = {option.keyword.decode(): option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar}
    given = conninfo_to_dict(url)
    return {variables[name]: str(value) for name, value in given.items() if name in variables and value is not None}
