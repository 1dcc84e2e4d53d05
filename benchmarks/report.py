"""The report: a table on the terminal, and the same kept in RESULTS.md and results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure

FOLDER = Path(__file__).resolve().parent
_COLUMNS = ("area", "figure", "target", "measured", "bar", "", "note")


def show(console: Console, figures: Sequence[Figure], voids: Mapping[str, str]) -> None:
    """Print the table, and what made an area void."""
    table = Table(title="Headway's bars", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in {"measured", "bar"} else "left")
    before = ""
    for figure in figures:
        if before and figure.area != before:
            table.add_section()
        before = figure.area
        style = {True: "green", False: "bold red", None: ""}[figure.passed]
        table.add_row(*_describe(figure), style=style)
    if figures:
        console.print(table)
    for area, reason in voids.items():
        console.print(f"[bold red]VOID[/] {area}: {reason}", highlight=False)


def write(figures: Sequence[Figure], machine: Mapping[str, str], how: str, when: str) -> list[Path]:
    """Replace the areas that were measured in results.json and RESULTS.md; areas measured earlier stay."""
    kept_path = FOLDER / "results.json"
    kept = json.loads(kept_path.read_text()) if kept_path.exists() else {}
    for area in dict.fromkeys(figure.area for figure in figures):
        kept[area] = {
            "when": when,
            "how": how,
            "machine": dict(machine),
            "figures": [asdict(figure) for figure in figures if figure.area == area],
        }
    kept_path.write_text(json.dumps(kept, indent=2) + "\n")
    table_path = FOLDER / "RESULTS.md"
    table_path.write_text(_write_page(kept))
    return [table_path, kept_path]


def _write_page(kept: Mapping[str, Mapping[str, object]]) -> str:
    lines = [
        "# Results",
        "",
        "Written by `make bench ARGS=--write`; how each figure is taken is said in [README.md](README.md).",
        "Bars are upper limits. `envoy` is bare Envoy in the same run; `reference` is the least a Python proxy does",
        "(Granian and aiohttp passing bytes), without keys, assignment or recording.",
    ]
    for area, entry in kept.items():
        machine = entry["machine"]
        rows = entry["figures"]
        assert isinstance(machine, dict)
        assert isinstance(rows, list)
        words = f"{machine['cores']} cores, {machine['memory']}, {machine['kernel']}, Python {machine['python']}"
        lines += ["", f"## {area}", "", f"{entry['when']}, {entry['how']}. Machine: {words}.", ""]
        lines += ["| figure | target | measured | bar | | note |", "|---|---|---:|---:|---|---|"]
        for row in rows:
            cells = _describe(Figure(**row))[1:]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _describe(figure: Figure) -> list[str]:
    bar = "" if figure.at_most is None else f"{figure.at_most:g} {figure.unit}"
    verdict = {True: "pass", False: "miss", None: ""}[figure.passed]
    digits = 1 if abs(figure.value) >= 10 else 2
    measured = f"{figure.value:,.{digits}f} {figure.unit}"
    return [figure.area, figure.name, figure.target, measured, bar, verdict, figure.note]
