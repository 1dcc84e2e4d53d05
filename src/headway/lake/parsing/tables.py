"""Tables and code as they stand in a section's text: rows between bars, code between fences."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TICKS = re.compile("`{3,}")


def table_row(cells: Iterable[str]) -> str:
    """Write one row: ``| a | b |``."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def fenced(code: str, language: str = "") -> str:
    """Put code between fences that do not occur in it."""
    code = code.strip("\n")
    longest = max((len(ticks) for ticks in _TICKS.findall(code)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}" if code.strip() else ""
