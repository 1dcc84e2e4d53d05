"""The demo's rollouts: four candidates meet simulated users at the same time, and Headway decides on each."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headway.cli.demo.screen import Screen
from headway.cli.demo.site import Site
from headway.cli.demo.stories import Story
from headway.clock import Clock
from headway.domain.display import MetricText, describe_metric, describe_state, format_seconds, format_share
from headway.runtime import open_database
from headway.storage.database import Database
from headway.storage.losses import describe_losses, find_losses
from headway.storage.rollouts import (
    Figure,
    Rollout,
    RolloutDecision,
    latest_figure,
    list_decisions,
    list_rollouts,
)
from headway.testing import Answer, ProviderProcess, run_traffic

_WARM_ANSWERS = 1_100
"""Of each first release: a baseline takes 1,000 interactions and 200 ratings."""
_WARM_SECONDS = 60.0
_LONGEST_SECONDS = 175.0
_REFRESH_SECONDS = 0.5
_BAR_WIDTH = 20
_COLOURS = {"promoted": "green", "rolled_back": "red", "paused": "yellow", "inconclusive": "yellow"}


@dataclass(frozen=True)
class Outcome:
    """What a rollout has come to.

    Attributes:
        story: What is true.
        rollout: As it stands.
        figure: Its latest figures; None before the first.
        decision: The latest decision; None before the first.
        lost: Documents that answers came from and that the candidate's index version lacks, named; empty for none.
    """

    story: Story
    rollout: Rollout
    figure: Figure | None
    decision: RolloutDecision | None
    lost: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it has ended as the truth demands."""
        return self.rollout.ended_at is not None and self.rollout.state == self.story.ending


async def hold_contest(
    site: Site, key: str, screen: Screen, clock: Clock, stories: Sequence[Story], begin: Callable[[], None]
) -> tuple[Outcome, ...]:
    """Let users come to the applications, start their rollouts, and watch until each is decided.

    Args:
        site: The demo, with Headway running.
        key: Its API key.
        screen: Shows what happens.
        clock: Tells how long it takes.
        stories: The applications.
        begin: Applies the configuration that names the second releases.

    Returns:
        Where each rollout stands in the end: within three minutes, decided or not.
    """
    behaviours = {model: behaviour for story in stories for model, behaviour in story.behaviours.items()}
    async with (
        ProviderProcess(behaviours, port=site.ports.simulator),
        open_database(site.settings()) as database,
        _users(site, key, stories) as answers,
    ):
        with screen.step("Users come: 1,000 answers of each first release are the baseline") as notes:
            deadline = clock.monotonic_seconds() + _WARM_SECONDS
            while min(answers[story.application] for story in stories) < _WARM_ANSWERS:
                if clock.monotonic_seconds() > deadline:
                    break
                await clock.sleep(_REFRESH_SECONDS)
            notes.append(f"{answers.total():,} answers")
        await asyncio.to_thread(begin)
        outcomes = await _watch(database, screen, clock, stories)
        return tuple([replace(outcome, lost=await _find_lost(database, outcome.rollout)) for outcome in outcomes])


@contextlib.asynccontextmanager
async def _users(site: Site, key: str, stories: Sequence[Story]) -> AsyncIterator[Counter[str]]:
    """Let the users come while the block runs; counts answers by application."""
    answers: Counter[str] = Counter()
    crowds = asyncio.gather(
        *(
            run_traffic(site.base_url, key, story.traffic(seed), observe=_counter(answers, story.application))
            for seed, story in enumerate(stories)
        )
    )
    try:
        yield answers
    finally:  # not a task group: what goes wrong meanwhile is to be told as it is, not as a group
        crowds.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await crowds


def _counter(answers: Counter[str], application: str) -> Callable[[Answer], None]:
    def count(_: Answer) -> None:
        answers[application] += 1

    return count


async def _find_lost(database: Database, rollout: Rollout) -> str:
    async with database.connection() as connection:
        losses = await find_losses(connection, rollout.number)
    return describe_losses(losses) if losses is not None else ""


async def _watch(database: Database, screen: Screen, clock: Clock, stories: Sequence[Story]) -> tuple[Outcome, ...]:
    began = clock.monotonic_seconds()
    outcomes: tuple[Outcome, ...] = ()
    told: set[tuple[int, int]] = set()
    with Live(console=screen.console, transient=True, refresh_per_second=4) as live:
        while True:
            outcomes = await _look(database, stories)
            elapsed = clock.monotonic_seconds() - began
            for outcome in outcomes:
                _tell(screen, outcome, told, elapsed)
            if all(outcome.rollout.ended_at for outcome in outcomes) or elapsed > _LONGEST_SECONDS:
                return outcomes
            live.update(Group(*(_draw(outcome) for outcome in outcomes if not outcome.rollout.ended_at)))
            await clock.sleep(_REFRESH_SECONDS)


async def _look(database: Database, stories: Sequence[Story]) -> tuple[Outcome, ...]:
    outcomes = []
    async with database.connection() as connection:
        for story in stories:
            (rollout, *_) = await list_rollouts(connection, application=story.application)
            decisions = await list_decisions(connection, rollout.number, limit=1)
            figure = await latest_figure(connection, rollout.number)
            outcomes.append(Outcome(story, rollout, figure, decisions[0] if decisions else None))
    return tuple(outcomes)


def _tell(screen: Screen, outcome: Outcome, told: set[tuple[int, int]], elapsed: float) -> None:
    """Print each decision that moves traffic, once and for good."""
    decision = outcome.decision
    if decision is None or decision.outcome == "hold" or (outcome.rollout.number, decision.number) in told:
        return
    told.add((outcome.rollout.number, decision.number))
    colour = _COLOURS.get(decision.after.state, "cyan")
    head = Text.assemble(
        (f"{elapsed:>5.0f} s  ", "dim"),
        (f"{outcome.story.application:<7}", "bold"),
        (f"{describe_state(decision.after.state)}, {format_share(decision.after.share)}", colour),
    )
    screen.console.print(head)
    screen.console.print(Padding(Text(decision.message, "dim"), (0, 0, 0, 16), expand=False))


def _draw(outcome: Outcome) -> RenderableType:
    """Draw a rollout: its traffic, and the metrics that matter most."""
    rollout, figure = outcome.rollout, outcome.figure
    filled = round(rollout.share * _BAR_WIDTH)
    title = Text.assemble(
        ("\n" + f"{rollout.application:<8}", "bold"),
        (f"{rollout.stable} → {rollout.candidate}", "cyan"),
        (f"   truth: {outcome.story.truth}", "dim italic"),
    )
    seen = sum(figure.assessment.interactions) if figure else 0
    traffic = Text.assemble(
        ("█" * filled, "magenta"),
        ("░" * (_BAR_WIDTH - filled), "cyan"),
        f" {format_share(rollout.share):>5} candidate, {describe_state(rollout.state)}",
        (f"   {seen:,} interactions", "dim"),
    )
    table = Table.grid(padding=(0, 2))
    for text in _most_telling(outcome):
        table.add_row(
            Text(text.label, "bold" if text.role == "goal" else ""),
            f"{text.stable_level} → {text.candidate_level}",
            text.estimate,
            Text(f"harm {text.harm_evidence.e} of {text.harm_evidence.threshold}", _warmth(text)),
            Text(_safety(text), "green" if text.safe_evidence and text.safe_evidence.reached else "dim"),
        )
    waits = outcome.decision.message if outcome.decision and outcome.decision.outcome == "hold" else ""
    return Group(title, traffic, table, Text(waits, "dim", no_wrap=True, overflow="ellipsis"))


def _most_telling(outcome: Outcome) -> list[MetricText]:
    """The goal, and the guardrail with the most evidence of harm."""
    if outcome.figure is None or outcome.rollout.terms is None:
        return []
    texts = [describe_metric(outcome.rollout.terms, figures) for figures in outcome.figure.assessment.metrics]
    goal = [text for text in texts if text.role == "goal"]
    guardrails = [text for text in texts if text.role != "goal"]
    return goal + sorted(guardrails, key=lambda text: -text.harm_evidence.progress)[:1]


def _warmth(text: MetricText) -> str:
    return "red" if text.harm_evidence.progress > 0.5 else "yellow" if text.harm_evidence.progress > 0 else "dim"


def _safety(text: MetricText) -> str:
    safe = text.safe_evidence
    if safe is None or text.safe_share is None:
        return ""
    if safe.vacuous:
        return f"{format_share(text.safe_share)}: nothing to show yet"
    return f"safe at {format_share(text.safe_share)}: {safe.e} of {safe.threshold}"


def describe_outcomes(outcomes: tuple[Outcome, ...]) -> Table:
    """Sum the rollouts up: what was true, what was decided, after how much."""
    table = Table(title="The rollouts, decided by themselves", title_justify="left", title_style="bold")
    for name in ("application", "truth", "decision", "interactions", "of them candidate", "after"):
        table.add_column(name, justify="left" if name in ("application", "truth", "decision") else "right")
    for outcome in outcomes:
        rollout = outcome.rollout
        stable, candidate = outcome.figure.assessment.interactions if outcome.figure else (0, 0)
        took = (rollout.ended_at - rollout.started_at).total_seconds() if rollout.ended_at else None
        mark = "✓ " if outcome.is_right else "✗ "
        table.add_row(
            Text(rollout.application, "bold"),
            outcome.story.truth,
            Text(mark + describe_state(rollout.state), _COLOURS.get(rollout.state, "")),
            f"{stable + candidate:,}",
            f"{candidate:,}",
            "not yet" if took is None else format_seconds(took),
        )
    return table
