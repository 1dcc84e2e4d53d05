"""What a rollout is decided by, in a terminal: policy, baseline, and every stage with who set it and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from headway.cli.rollout_screen import Reading
from headway.cli.terminal import cell
from headway.domain.difference import explain_difference
from headway.domain.display import describe_evidence, format_rate, format_seconds, format_share, format_usd, scale_of
from headway.domain.policy import Policy
from headway.domain.recording import Terms
from headway.domain.rollout import SAMPLE_RATIO_ALARM
from headway.storage.losses import Losses, describe_share_lost
from headway.storage.rollouts import Stage

_INCONCLUSIVE: Mapping[str, str] = MappingProxyType({"roll_back": "back to stable", "keep": "a person decides"})


def draw_terms(reading: Reading) -> Iterator[RenderableType]:
    """Draw what a rollout is decided by, and every stage with who set it and why."""
    rollout, terms = reading.rollout, reading.rollout.terms
    if terms is not None:
        yield Text("\nPolicy", "bold")
        yield _rules(terms)
        yield Text()
        yield _settings(terms.policy)
    yield Text("\nRollout", "bold")
    facts = [
        ("started", f"{cell(rollout.started_at)} by {cell(rollout.started_by)}"),
        ("ended", cell(rollout.ended_at)),
    ]
    if rollout.difference.parts:
        facts.insert(0, ("difference", explain_difference(rollout.difference)))
    if terms is not None:
        ratio = describe_evidence(reading.assessment.sample_ratio_log_e, SAMPLE_RATIO_ALARM)
        facts += [
            ("restarts", f"{rollout.restarts}"),
            ("sample ratio", f"E {ratio.e}, alarm at {ratio.threshold}"),
            ("mirrored answers", f"cost {format_usd(rollout.shadow_usd)}"),
        ]
    yield _pairs(facts if terms is None or terms.policy.shadow is not None else facts[:-1])
    if reading.stages:
        yield Text("\nStages", "bold")
        yield _stages(reading.stages)


def draw_losses(losses: Losses, stable: str) -> Iterator[RenderableType]:
    """Draw which documents, lost with the candidate's index version, answers of the stable release came from."""
    yield Text(f"\nLost with {cell(losses.after)}", "bold")
    yield Text(describe_share_lost(losses, stable), "dim")
    if not losses.documents:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("document", overflow="fold")
    table.add_column("title", overflow="fold")
    table.add_column("is now")
    table.add_column("answers", justify="right")
    for each in losses.documents:
        table.add_row(cell(each.path), cell(each.title), each.state, f"{each.interactions:,}")
    yield table
    more = losses.removed + losses.changed - len(losses.documents)
    if more > 0:
        yield Text(f"and {more:,} more", "dim")


def _rules(terms: Terms) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("metric", "role", "margin", "harm line", "part of alpha", "stable before"):
        table.add_column(name, overflow="fold")
    for rule in terms.policy.rules:
        scale = scale_of(rule, terms.feedback)
        known = terms.baseline.metrics.get(rule.metric)
        sign = -1 if scale.form == "points" and not scale.lower_is_better else 1
        role = "goal, superior" if rule.require == "superior" else rule.role
        level = scale.level(None if known is None else known.level)
        declared = known is not None and known.observations == 0
        table.add_row(
            cell(rule.metric),
            role,
            scale.effect(rule.margin * sign),
            scale.effect(rule.harm * sign),
            format_rate(rule.weight),
            f"{level} (declared)" if declared else level,
        )
    return table


def _settings(policy: Policy) -> Table:
    kept, switch = policy.holdback, policy.kill_switch
    limits = []
    if switch.safety_events:
        limits.append(f"{switch.safety_events:,} refused or filtered answers")
    if switch.failures:
        limits.append(f"{switch.failures:,} failures of the first {switch.of_first:,}")
    holdback = "none"
    if kept is not None:
        holdback = f"{format_share(kept.share)} for {format_seconds(kept.seconds)}, alpha {kept.alpha:g}"
    return _pairs(
        [
            ("alpha, beta", f"{policy.alpha:g}, {policy.beta:g}"),
            ("feedback window", format_seconds(policy.feedback_window_seconds)),
            (
                "ends after",
                f"{format_seconds(policy.max_duration_seconds)}, then {_INCONCLUSIVE[policy.on_inconclusive]}",
            ),
            ("cut-off gateways", "keep the share" if policy.on_lost_control == "keep" else "serve stable"),
            ("holdback", holdback),
            ("kill switch", ", ".join(limits) or "none"),
        ]
    )


def _stages(stages: Sequence[Stage]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "phase", "share", "since", "author", "reason"):
        table.add_column(name, overflow="fold")
    for stage in stages:
        table.add_row(
            f"{stage.stage}",
            stage.phase,
            format_share(stage.share),
            cell(stage.since),
            Text(cell(stage.author)),
            Text(cell(stage.reason)),
        )
    return table


def _pairs(pairs: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text(value))
    return table
