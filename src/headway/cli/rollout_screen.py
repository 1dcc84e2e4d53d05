"""How a rollout looks in a terminal: where it stands, what it waits for, its metrics, its decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from headway.cli.terminal import cell
from headway.clock import utc
from headway.domain.assessment import Assessment, MetricFigures
from headway.domain.difference import describe_parts
from headway.domain.display import (
    MetricText,
    describe_evidence,
    describe_metric,
    describe_outcome,
    describe_state,
    format_count,
    format_seconds,
    format_share,
    scale_of,
)
from headway.domain.outlook import Outlook, look_ahead
from headway.domain.recording import Terms
from headway.domain.rollout import SAMPLE_RATIO_ALARM, Status
from headway.storage.losses import Losses, describe_losses
from headway.storage.rollouts import Figure, Rollout, RolloutDecision, Stage

STABLE, CANDIDATE = "cyan", "magenta"
_LARGEST_WIDTH = 132
_WIDE = 112  # from here on there is room for a fourth column
_NAME_WIDTH, _VALUE_WIDTH, _MORE_WIDTH = 22, 26, 28
_AXIS = 2.0  # margins to either side of no difference
_METER_WIDTH = 10
# Lines per metric, and whether the newest decision is cut to one: the first that fits.
_LAYOUTS = ((3, False), (2, False), (2, True), (1, False), (1, True))
_SUSPICIOUS = 0.5  # of the way to the sample-ratio alarm: worth showing
_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "running": "cyan",
        "baseline": "blue",
        "shadow": "blue",
        "ramp": "cyan",
        "paused": "yellow",
        "holdback": "green",
        "rolled_back": "red",
        "promoted": "green",
        "inconclusive": "yellow",
    }
)
_OUTCOME_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "advance": "green",
        "promote": "bold green",
        "roll_back": "bold red",
        "pause": "yellow",
        "inconclusive": "yellow",
        "resume": "cyan",
        "approve": "cyan",
        "hold": "dim",
    }
)
_STANDING_COLOURS: Mapping[str, str] = MappingProxyType(
    {"harmful": "red", "safe": "green", "undecided": "blue", "no_data": "dim"}
)


@dataclass(frozen=True)
class Reading:
    """A rollout at one moment.

    Attributes:
        rollout: The rollout.
        stages: Its steps, first to last.
        decisions: The last of its decisions, newest first.
        figure: Its newest figures; None before the first.
        pace: Interactions of both arms per second; None if unknown.
        now_ms: When it was read, Unix milliseconds.
        losses: Documents that are lost with the candidate's index version, if that was looked for.
    """

    rollout: Rollout
    stages: Sequence[Stage]
    decisions: Sequence[RolloutDecision]
    figure: Figure | None
    pace: float | None
    now_ms: int
    losses: Losses | None = None

    @property
    def assessment(self) -> Assessment:
        """The newest assessment; empty before the first."""
        return Assessment() if self.figure is None else self.figure.assessment

    @property
    def outlook(self) -> Outlook:
        """What it waits for."""
        if self.rollout.terms is None or self.rollout.status is None:
            return Outlook()
        return look_ahead(self.rollout.terms, self.rollout.status, self.assessment, self.now_ms, self.pace)


@dataclass(frozen=True)
class Screen:
    """A reading as it is drawn, as large as its surroundings allow.

    Attributes:
        reading: What to draw.
        whole: All metrics with all their figures and all decisions, however long it gets.
        note: A warning to put on top.
    """

    reading: Reading
    whole: bool = False
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        width = min(options.max_width, _LARGEST_WIDTH)
        head: list[RenderableType] = [Text(self.note, "bold yellow")] if self.note else []
        head += draw_head(self.reading, width)
        room = options.size.height - 1 - len(head)  # the cursor needs a line
        yield Group(*head, *self._arrange(console, options.update(width=width), room))

    def _arrange(self, console: Console, options: ConsoleOptions, lines: int) -> list[RenderableType]:
        """Choose how much of metrics and decisions there is room for."""
        width, parts = options.max_width, []
        for rows, brief in _LAYOUTS:
            metrics: list[RenderableType] = list(_draw_metrics(self.reading, width, rows=rows))
            events = list(draw_events(self.reading, width, brief=brief, whole=self.whole))
            newest = sum(len(console.render_lines(each, options)) for each in events[:2])
            room = lines - len(metrics) - newest
            parts = [*metrics, *(events if self.whole else events[: 2 + max(0, room)])]
            if self.whole or room >= 0:
                break
        return parts


def draw_head(reading: Reading, width: int) -> Iterator[RenderableType]:
    """Draw where a rollout stands and what it waits for, a line each."""
    rollout, status = reading.rollout, reading.rollout.status
    badge = Text(f" {describe_state(rollout.state)} ", f"bold reverse {_COLOURS.get(rollout.state, '')}")
    title = Text.assemble(
        (cell(rollout.application), "bold"), (f"  rollout {rollout.number}, policy {cell(rollout.policy)}", "dim")
    )
    if rollout.restarts:
        title.append(f", restart {rollout.restarts}", "yellow")
    if rollout.difference.parts:
        title.append(f", differs in {describe_parts(rollout.difference)}", "dim")
    yield _justify(title, badge, width)
    yield _traffic(rollout, width)
    if rollout.terms is not None and status is not None:
        yield _ladder(rollout.terms, status, reading.outlook, width)
        yield Text()
        yield from _conditions(reading, rollout.terms, status, width)
    yield Text()


@dataclass(frozen=True)
class Event:
    """Something that happened to a rollout: its number in the rollout, when (UTC), what and why."""

    number: int
    at: datetime
    what: Text
    why: Text


def list_events(reading: Reading) -> list[Event]:
    """List what happened, newest first: decisions, or the shares that an operator has set."""
    if reading.rollout.terms is None:
        return [_set_share(stage) for stage in reversed(reading.stages)]
    return [_decided(decision, reading.losses) for decision in reading.decisions]


def _set_share(stage: Stage) -> Event:
    why = Text.assemble((cell(stage.author), "bold"), f": {cell(stage.reason)}" if stage.reason else "")
    return Event(stage.stage, stage.since, Text(f"to {format_share(stage.share)}", "cyan"), why)


def _decided(decision: RolloutDecision, losses: Losses | None) -> Event:
    why = Text(cell(decision.message), "dim" if decision.outcome == "hold" else "")
    if losses is not None and decision.outcome == "roll_back" and (lost := describe_losses(losses)):
        why.append(f"; {cell(lost)}")
    if decision.command is not None:
        why = Text.assemble((f"{cell(decision.author)}: ", "bold"), why)
    what = Text(describe_outcome(decision.outcome), _OUTCOME_COLOURS.get(decision.outcome, ""))
    return Event(decision.number, decision.at, what, why)


def draw_events(reading: Reading, width: int, *, brief: bool = False, whole: bool = False) -> Iterator[RenderableType]:
    """Draw what happened, newest first, under a heading: the newest in full unless ``brief``, the others in a line.

    Args:
        reading: The rollout.
        width: Columns.
        brief: A line for the newest, too.
        whole: All of them in full.
    """
    events = list_events(reading)
    if not events:
        return
    yield Text("Shares" if reading.rollout.terms is None else "Decisions", "bold")
    moments = [format_moment(event.at, reading.now_ms) for event in events]
    when_width, what_width = max(map(len, moments)), max(event.what.cell_len for event in events)
    for index, (moment, event) in enumerate(zip(moments, events, strict=True)):
        if not whole and (index or brief):
            event.why.truncate(max(10, width - when_width - what_width - 4), overflow="ellipsis")
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, width=when_width)
        table.add_column(no_wrap=True, width=what_width)
        table.add_column()
        table.add_row(Text(moment, "dim"), event.what, event.why)
        yield table


def format_moment(at: datetime, now_ms: int) -> str:
    """Write a point in time (UTC) as short as it stays clear: today's without their date."""
    return f"{at:%H:%M:%S}" if at.date() == utc(now_ms).date() else f"{at:%m-%d %H:%M}"


# --- where it stands -----------------------------------------------------------------------------------------------


def _justify(left: Text, right: Text, width: int) -> Text:
    left.truncate(max(10, width - right.cell_len - 1), overflow="ellipsis")
    return Text.assemble(left, " " * max(1, width - left.cell_len - right.cell_len), right)


def _traffic(rollout: Rollout, width: int) -> Text:
    """Draw both releases with their shares, and the traffic as a bar between them."""
    share = rollout.share
    stable = Text(f"{cell(rollout.stable)} {format_share(1 - share)} ", STABLE)
    candidate = Text(f" {format_share(share)} {cell(rollout.candidate)}", CANDIDATE)
    room = max(8, width - stable.cell_len - candidate.cell_len)
    taken = min(room, max(1 if share > 0 else 0, round(share * room)))
    if share < 1:
        taken = min(taken, room - 1)
    return Text.assemble(stable, ("━" * (room - taken), STABLE), ("━" * taken, f"bold {CANDIDATE}"), candidate)


def _ladder(terms: Terms, status: Status, outlook: Outlook, width: int) -> Text:
    """Draw the stages: those behind, the present one, the way to the next, those ahead."""
    policy = terms.policy
    names = [("shadow", False)] if policy.shadow is not None else []
    names += [(format_share(stage.share), stage.approve) for stage in policy.stages]
    here = status.step + (1 if policy.shadow is not None else 0)
    if "baseline" in {status.state, status.paused_state}:
        here = -1
    over = status.state in {"promoted", "rolled_back", "inconclusive"}
    labels = []
    for index, (name, approve) in enumerate(names):
        if index < here or (status.state == "promoted" and index == here):
            labels.append(Text.assemble(("● ", "green"), name))
        elif index == here:
            colour = _COLOURS.get(status.state, "")
            labels.append(Text.assemble(("◉ ", f"bold {colour}"), (name, f"bold {colour}")))
        else:
            asks = approve and status.approved_step < index - (len(names) - len(policy.stages))
            labels.append(Text.assemble(("◇ " if asks else "○ ", "yellow" if asks else "dim"), (name, "dim")))
    gaps = max(1, len(labels) - 1)
    room = max(2, (width - sum(label.cell_len for label in labels)) // gaps - 2)
    line = labels[0].copy()
    for index, label in enumerate(labels[1:], start=1):
        done = room if index <= here else round(room * outlook.progress) if index == here + 1 and not over else 0
        line.append_text(Text.assemble(" ", ("━" * done, "green"), ("╌" * (room - done), "dim"), " ")).append_text(
            label
        )
    return line


def _conditions(reading: Reading, terms: Terms, status: Status, width: int) -> Iterator[Text]:
    """Write how long and how much in this stage, and what the next step waits for."""
    facts = list(_facts(reading, terms, status))
    if any(reading.assessment.interactions) and width >= _WIDE:
        facts.append(Text(f"{sum(reading.assessment.interactions):,} interactions", "dim"))
    if reading.pace is not None and reading.rollout.ended_at is None:
        facts.append(Text(f"{format_count(reading.pace * 60)}/min", "dim"))
    line = Text("   ").join(facts)
    yield from line.wrap(Console(width=width), width)
    suspicion = describe_evidence(reading.assessment.sample_ratio_log_e, SAMPLE_RATIO_ALARM)
    if suspicion.progress >= _SUSPICIOUS:
        text = f"units may not arrive at the share set: E {suspicion.e} of {suspicion.threshold}"
        yield Text(text, "bold red" if suspicion.reached else "yellow")
    outlook = reading.outlook
    if outlook.missing or outlook.share is not None:
        yield from _next(status, outlook).wrap(Console(width=width), width)
    asked = "resume" if status.state == "paused" else "approve" if outlook.missing == ("approval",) else ""
    if asked:
        yield Text(f"$ headway rollout {asked} {cell(reading.rollout.application)}", "yellow")


def _facts(reading: Reading, terms: Terms, status: Status) -> Iterator[Text]:
    policy, assessment = terms.policy, reading.assessment
    waited = max(0.0, (reading.now_ms - status.since_ms) / 1000)
    if reading.rollout.ended_at is not None:
        length = (reading.rollout.ended_at - reading.rollout.started_at).total_seconds()
        yield Text(f"over after {format_seconds(length)}")
    elif status.state == "paused":
        since = (reading.now_ms - (status.paused_since_ms or reading.now_ms)) / 1000
        why = "by a person" if status.paused_reason == "command" else f"({status.paused_reason.replace('_', ' ')})"
        yield Text(f"paused for {format_seconds(since)} {why}", "yellow")
    elif status.state == "holdback":
        length = 0.0 if policy.holdback is None else policy.holdback.seconds
        yield _fraction("holdback", waited, length, format_seconds)
    elif status.state == "shadow":
        needed = 0 if policy.shadow is None else policy.shadow.interactions
        yield _fraction("dwell", waited, policy.dwell_seconds, format_seconds)
        yield _fraction("mirrored", assessment.stage_interactions[1], needed, "{:,}".format)
    elif status.state == "ramp":
        yield _fraction("dwell", waited, policy.dwell_seconds, format_seconds)
        yield _fraction(f"{terms.unit}s", assessment.stage_units[1], policy.min_units, "{:,}".format)
    else:
        yield Text(f"for {format_seconds(waited)}")


def _fraction(name: str, have: float, needed: float, write: Callable[[float], str]) -> Text:
    """Draw how much there is of what is needed."""
    progress = min(1.0, have / needed) if needed else 1.0
    colour = "green" if progress >= 1 else "cyan"
    return Text.assemble(
        (f"{name} ", "dim"), _meter(progress, colour, _METER_WIDTH), f" {write(have)} of {write(needed)}"
    )


def _next(status: Status, outlook: Outlook) -> Text:
    text = Text()
    if status.state == "holdback":
        text.append("next: promoted ", "bold")
    elif outlook.share is not None:
        text.append(f"next: {format_share(outlook.share) if outlook.share else 'shadow'} ", "bold")
    if not outlook.missing:
        return text.append("at the next tick", "green")
    text.append("waits for ", "dim").append(", ".join(outlook.missing))
    if outlook.seconds and status.state == "ramp":
        text.append(f": about {format_seconds(outlook.seconds)}", "bold")
    return text


# --- metrics -------------------------------------------------------------------------------------------------------


def _draw_metrics(reading: Reading, width: int, *, rows: int) -> Iterator[RenderableType]:
    """Draw the metrics, a renderable per line."""
    terms, figures = reading.rollout.terms, reading.assessment.metrics
    if terms is None or not figures:
        return
    gauge_width = max(16, width - _NAME_WIDTH - _VALUE_WIDTH - 4 - (_MORE_WIDTH + 2 if width >= _WIDE else 0))
    for each in figures:
        for cells in _metric_rows(reading, terms, each, gauge_width, width, rows):
            table = Table.grid(padding=(0, 2, 0, 0))
            table.add_column(width=_NAME_WIDTH, no_wrap=True)
            table.add_column(width=gauge_width, no_wrap=True)
            table.add_column(no_wrap=True, width=_VALUE_WIDTH if width >= _WIDE else None)
            if width >= _WIDE:
                table.add_column(no_wrap=True)
            table.add_row(*cells)
            yield table
    yield from _legend(figures[0], rows)
    yield Text()


def _legend(figures: MetricFigures, rows: int) -> Iterator[Text]:
    indent = " " * (_NAME_WIDTH + 2)
    if rows > 1:
        goes_on = f", safe goes on to {format_share(figures.safe[0].share)}" if figures.safe else ""
        yield Text(f"{indent}evidence (E): harm rolls back{goes_on}", "dim")
    yield Text.assemble(
        indent,
        ("worse  ", "dim"),
        ("┃", "red"),
        (" margin  ", "dim"),
        ("╎", "yellow"),
        (" harm line  ", "dim"),
        "│",
        (" no difference  better", "dim"),
    )


def _metric_rows(
    reading: Reading, terms: Terms, figures: MetricFigures, gauge_width: int, width: int, rows: int
) -> Iterator[list[Text]]:
    """Write the lines of a metric: name, gauge and estimate; levels and evidence; what was counted and is to come."""
    text = describe_metric(terms, figures)
    rule = next(each for each in terms.policy.rules if each.metric == figures.metric)
    scale = scale_of(rule, terms.feedback)
    name = Text(cell(figures.metric), "bold")
    if figures.role == "goal":
        name = Text.assemble(("★ ", "yellow"), name)
    estimate = Text(text.estimate, f"bold {_STANDING_COLOURS[text.standing]}")
    if text.worst_place is not None:
        ends = [
            "…" if end is None or math.isinf(end) else scale.effect(end, unit=False)
            for end in (figures.lower, figures.upper)
        ]
        estimate.append(f" [{ends[0]}, {ends[1]}]", "dim not bold")
    levels = Text.assemble((text.stable_level, STABLE), (" → ", "dim"), (text.candidate_level, CANDIDATE))
    if figures.stable_level is None and figures.candidate_level is None:
        levels = Text()
    seen = Text(f"n {text.observations}", "dim")
    more = Text() if reading.rollout.ended_at is not None else _to_go(text, figures, reading.pace)
    first = [name, _gauge(text, gauge_width), estimate]
    second = [levels, _harm(text, gauge_width), _safe(text)]
    if width >= _WIDE:
        first.append(seen)
        second.append(more)
    yield first
    if rows > 1:
        yield second
    if rows > 2 and width < _WIDE:
        yield [seen, more, Text()]


def _gauge(text: MetricText, width: int) -> Text:
    """Draw estimate and interval on an axis of margins: worse to the left, no difference in the middle."""
    cells = [("─", "bright_black")] * width
    colour = _STANDING_COLOURS[text.standing]
    worst, best = _column(text.worst_place, width), _column(text.best_place, width)
    if worst is not None and best is not None:
        cells[worst : best + 1] = [("━", colour)] * (best + 1 - worst)
    for place, glyph, style in ((-1.0, "┃", "red"), (text.harm_place, "╎", "yellow"), (0.0, "│", "default")):
        column = _column(place, width)
        if column is not None:
            cells[column] = (glyph, style)
    column = _column(text.estimate_place, width)
    if column is not None:
        assert text.estimate_place is not None
        beyond = "◀" if text.estimate_place < -_AXIS else "▶" if text.estimate_place > _AXIS else "●"
        cells[column] = (beyond, f"bold {colour}")
    runs = ((style, "".join(glyph for glyph, _ in run)) for style, run in groupby(cells, key=itemgetter(1)))
    return Text.assemble(*((glyphs, style) for style, glyphs in runs))


def _column(place: float | None, width: int) -> int | None:
    if place is None:
        return None
    clipped = min(_AXIS, max(-_AXIS, place))
    return round((clipped + _AXIS) / (2 * _AXIS) * (width - 1))


def _harm(text: MetricText, width: int) -> Text:
    evidence = text.harm_evidence
    colour = "bold red" if evidence.reached else "red" if evidence.progress > _SUSPICIOUS else "yellow"
    meter = _meter(evidence.progress, colour, min(_METER_WIDTH + 6, max(4, width - 18)))
    return Text.assemble(("harm ", "dim"), meter, f" {evidence.e} of {evidence.threshold}")


def _safe(text: MetricText) -> Text:
    """Draw the evidence that the next share is safe; where that is there, of being better if that is asked for."""
    name, evidence = "safe", text.safe_evidence
    if evidence is None:
        return Text()
    enough = evidence.reached or evidence.vacuous
    if enough and text.safe_share == 1.0 and text.superior_evidence is not None:
        name, evidence = "better", text.superior_evidence
    if evidence.vacuous:
        return Text.assemble((f"{name} ", "dim"), ("needs no evidence", "green"))
    meter = _meter(evidence.progress, "green", _METER_WIDTH - 2)
    return Text.assemble((f"{name} ", "dim"), meter, f" {evidence.e} of {evidence.threshold}")


def _meter(progress: float, colour: str, width: int) -> Text:
    """Draw a bar; it is full only when nothing is missing."""
    done = width if progress >= 1 else min(width - 1, int(progress * width))
    return Text.assemble(("━" * done, colour), ("╌" * (width - done), "dim"))


def _to_go(text: MetricText, figures: MetricFigures, pace: float | None) -> Text:
    if not text.interactions_to_go or text.standing in {"safe", "harmful"} or text.safe_share is None:
        return Text()
    to_go = Text(f"~{text.interactions_to_go} to go", "dim")
    if pace is not None and figures.interactions_to_go is not None:
        to_go.append(f", {format_seconds(figures.interactions_to_go / pace)}")
    return to_go
