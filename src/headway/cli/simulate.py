"""headway simulate: what a policy does with releases whose true behaviour is known."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from msgspec.structs import replace
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headway.cli.terminal import JsonOption, console, emit, emit_json, notes
from headway.config.load import load
from headway.domain.policy import Policy, StageRule
from headway.errors import InvalidRequestError
from headway.rollouts.simulation.campaign import HEADWAY, run_scenarios
from headway.rollouts.simulation.catalogue import find_scenarios
from headway.rollouts.simulation.population import MEASURABLE
from headway.rollouts.simulation.report import Promise, Rate, Summary

_COLUMNS = (
    "scenario",
    "decided by",
    "rolled back",
    "promoted",
    "holding",
    "interactions to decision\nmedian / 90 %",
    "candidate's before\nrollback, median",
    "because of",
    "promise",
)


def simulate(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Scenarios; all without any. See --list.")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", "-n", min=1, help="Runs of each scenario.")] = 20,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same table.")] = 1,
    interactions: Annotated[
        int | None, typer.Option("--interactions", min=1, help="Where a run ends undecided.", show_default="1,000,000")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Processes; 0: one per core.")] = 0,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE:NAME", help="A policy of a headway.yaml, for all scenarios.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the scenarios and exit.")] = False,
    json: JsonOption = False,
) -> None:
    """Simulate rollouts of releases whose true behaviour is known, through the code that decides on real ones.

    Shows how often a policy rolls a good candidate back, lets a bad one through, and how soon it knows; beside a z-test
    at every peek and a check of thresholds at intervals. Needs no database. Exit status 1: a promise was broken.

    Example: [bold]headway simulate identical errors-x10 --runs 100[/bold]
    """
    found = find_scenarios(names or (), None if policy is None else _read_policy(policy))
    if interactions is not None:
        found = [each.until(interactions) for each in found]
    if listed:
        rows = [{"scenario": each.name, "about": each.about, "candidate": each.truth} for each in found]
        emit(rows, ("scenario", "candidate", "about"), json=json)
        return
    summaries = run_scenarios(found, runs, seed, jobs=jobs or len(os.sched_getaffinity(0)))
    if json:
        shown = list(summaries)
        emit_json([asdict(row) for row in shown])
    else:
        shown = _show_all(summaries)
        notes.print(f"{runs} runs each; after ± one standard error", style="dim")
    if any(row.method == HEADWAY and row.promise in {"broken", "missed"} for row in shown):
        raise typer.Exit(1)


def _show_all(summaries: Iterable[Summary]) -> list[Summary]:
    """Show rows as they come."""
    table, shown = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold"), []
    with Live(table, console=console, auto_refresh=False) as live:
        for row in summaries:
            shown.append(row)
            _show(row, table)
            live.refresh()
    return shown


def _show(row: Summary, table: Table) -> None:
    real = row.method == HEADWAY
    median, late = (_count(number) for number in row.interactions)
    table.add_row(
        row.scenario if real else "",
        row.method,
        _rate(row.rolled_back),
        _rate(row.promoted),
        _rate(row.holding),
        f"{median} / {late}",
        _count(row.candidate_interactions),
        ", ".join(list(row.reasons)[:2]),
        _PROMISE[row.promise] if real else "",
        style=None if real else "dim",
    )


_PROMISE: Mapping[Promise, Text] = MappingProxyType(
    {
        "kept": Text("kept", style="green"),
        "broken": Text("broken", style="bold red"),
        "caught": Text("mistake caught", style="green"),
        "missed": Text("mistake missed", style="bold red"),
        "none": Text("-"),
    }
)


def _rate(rate: Rate) -> str:
    return f"{rate.value:.3f} ± {rate.error:.3f}"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _read_policy(source: str) -> Policy:
    """Read FILE:NAME; what only a person or a provider can do is left out."""
    file, _, name = source.rpartition(":")
    if not file:
        raise InvalidRequestError("a policy is given as FILE:NAME, such as headway.yaml:careful", param="policy")
    policies = load(Path(file)).specification.policies
    policy = policies.get(name)
    if policy is None:
        raise InvalidRequestError(
            f"{file} has no policy {name!r}; it has {', '.join(policies) or 'none'}", param="policy"
        )
    unknown = [rule.metric for rule in policy.rules if rule.metric not in MEASURABLE]
    if unknown:
        known = ", ".join(MEASURABLE)
        raise InvalidRequestError(f"{unknown[0]!r} cannot be simulated; what can: {known}", param="policy")
    stages = tuple(StageRule(stage.share) for stage in policy.stages)
    return replace(policy, shadow=None, stages=stages)
