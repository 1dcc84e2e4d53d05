"""Commands of the terminal, run in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from headway.cli import app


def headway(*arguments: str, status: int = 0) -> Result:
    """Run a command; it must end with this status."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == status, f"{arguments}: {result.output}\n{result.exception!r}"
    return result


def listed(*arguments: str, status: int = 0) -> Any:
    """Run a command with --json and read what it prints."""
    return json.loads(headway(*arguments, "--json", status=status).stdout)
