"""What a policy of headway.yaml may hold, key by key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import yaml

from headway.config.document import Document, Place
from headway.config.quantities import format_duration, format_share
from headway.config.schema import (
    Absent,
    Amount,
    Choice,
    Duration,
    Either,
    Flag,
    Key,
    Listing,
    Named,
    Number,
    Share,
    Table,
    Text,
)
from headway.domain.policy import (
    DEFAULT_FLOOR,
    DEFAULT_GUARDRAILS,
    DEFAULT_RATIO,
    DEFAULT_STAGES,
    HoldbackRule,
    KillSwitch,
    Policy,
    Require,
    ShadowRule,
)

SHADOW = "shadow"
OFF = "off"

_LONGEST_SECONDS = 365 * 86_400.0
_POLICY = Policy(name="", stages=DEFAULT_STAGES, rules=())
_HOLDBACK = HoldbackRule()


@dataclass(frozen=True)
class Step:
    """A share, or the word shadow."""

    def read(self, node: yaml.Node, place: Place, document: Document) -> str | float | Absent:
        """Read the word as it is, anything else as a share."""
        is_word = isinstance(node, yaml.ScalarNode) and node.value == SHADOW
        return SHADOW if is_word else Share().read(node, place, document)

    def describe(self) -> str:
        """Name both."""
        return f"{Share().describe()}, or {SHADOW}"

    def format(self, value: Any) -> str:
        """Write the word, or the percentage."""
        return SHADOW if value == SHADOW else format_share(value)


STEP = Table(
    {
        "share": Key(Share(), "The candidate's share of the units.", required=True),
        "approve": Key(Flag(), "Whether a person has to release the step, when all else is met.", default=False),
    }
)
MIRROR = Table(
    {
        SHADOW: Key(Share(), "Part of the requests that is mirrored.", required=True),
        "budget_usd": Key(
            Number(0, 1e9, between=True),
            "What mirrored answers may cost, in US dollars; it ends mirroring, not the stage. Without it: no limit.",
        ),
        "interactions": Key(
            Number(1, 1_000_000, whole=True),
            "Mirrored answers needed to leave the stage.",
            default=ShadowRule().interactions,
        ),
    }
)
_RULE = {
    "metric": Key(Text("the name of a metric"), "What is measured.", required=True),
    "margin": Key(
        Amount("a difference such as 5pp or 0.15"),
        "Largest acceptable loss as a difference: percentage points (`5pp`) of binary metrics, a number of bounded.",
    ),
    "ratio": Key(
        Number(0, 1000, between=True),
        "Largest acceptable loss as a ratio, candidate over stable: above 1 where lower is better, else below 1.",
    ),
    "harm": Key(
        Amount("a line such as 2pp or 1.2"),
        "Harm line, written as the margin is: beyond it the candidate is rolled back. Without it: half of the margin.",
    ),
    "weight": Key(
        Number(0, 1, between=True),
        "Its part of `alpha`. Without it: what the others leave, in equal parts.",
    ),
    "floor": Key(
        Amount("a rate such as 0.1%"),
        "Of events: a candidate shown below this rate passes whatever its ratio; 0 is no floor. Without it:"
        f" {format_share(DEFAULT_FLOOR)}.",
    ),
}
GUARDRAIL = Table(_RULE)
GOAL = Table(
    _RULE
    | {
        "require": Key(
            Choice(get_args(Require)),
            "`superior`: it must be shown to be better than stable's to reach 100%.",
            default="non_inferior",
        )
    }
)
HOLDBACK = Table(
    {
        "share": Key(Share(), "Share of the units that stays on the old release.", default=_HOLDBACK.share),
        "duration": Key(Duration(1, _LONGEST_SECONDS), "For how long.", default=_HOLDBACK.seconds),
        "alpha": Key(
            Number(0, 1, between=True),
            "Chance that a candidate within its harm lines is rolled back in it.",
            default=_HOLDBACK.alpha,
        ),
    }
)
KILL_SWITCH = Table(
    {
        "safety_events": Key(
            Number(0, 1_000_000, whole=True),
            "Refusals and filtered answers of the candidate that roll it back; 0 is no limit.",
            default=KillSwitch().safety_events,
        ),
        "failures": Key(
            Number(0, 1_000_000, whole=True),
            "Failures among its first interactions that roll it back; 0 is no limit.",
            default=KillSwitch().failures,
        ),
        "of_first": Key(Number(1, 1_000_000, whole=True), "Among how many of them.", default=KillSwitch().of_first),
    }
)
DECLARED = Table(
    {
        "level": Key(
            Amount("a level such as 0.5%, 4.1 or 800ms"),
            "Stable's rate, mean, or quantile (in ms without a unit).",
            required=True,
        ),
        "limit": Key(
            Number(0, 1e15, between=True),
            "Of cost, tokens and positive feedback, and required there: near their 99.9th percentile. Values are cut"
            " off there, times the margin.",
        ),
    }
)
POLICY = Table(
    {
        "stages": Key(
            Listing(Either(Step(), (STEP, MIRROR)), repeats=True),
            f"The ramp: rising shares up to 100%, `{SHADOW}` before them if wanted. Without it:"
            f" {', '.join(format_share(stage.share) for stage in DEFAULT_STAGES)}.",
        ),
        "goal": Key(GOAL, "The metric that a new release is for.", required=True),
        "guardrails": Key(
            Listing(GUARDRAIL, repeats=True),
            "Metrics that must not get worse by more than their margin."
            f" {' and '.join(f'`{name}`' for name in DEFAULT_GUARDRAILS)} are added unless named,"
            f" with ratio {DEFAULT_RATIO:g}.",
            default=[],
        ),
        "alpha": Key(
            Number(0, 1, between=True),
            "Chance that a candidate within its harm lines is rolled back.",
            default=_POLICY.alpha,
        ),
        "beta": Key(
            Number(0, 1, between=True),
            "Chance that a candidate worse than a margin reaches 100%.",
            default=_POLICY.beta,
        ),
        "min_units": Key(
            Number(1, 1_000_000_000, whole=True),
            "Units of the candidate in a stage before it is left.",
            default=_POLICY.min_units,
        ),
        "dwell": Key(Duration(0.001, _LONGEST_SECONDS), "Least time in a stage.", default=_POLICY.dwell_seconds),
        "feedback_window": Key(
            Duration(1, _LONGEST_SECONDS),
            "How old an exposure must be to count for promotion, so that slow raters have answered too.",
            default=_POLICY.feedback_window_seconds,
        ),
        "settle": Key(
            Duration(0, 86_400),
            "How long a rating may still be changed before it counts.",
            default=_POLICY.settle_seconds,
        ),
        "max_duration": Key(
            Duration(1, _LONGEST_SECONDS),
            "Longest time for the ramp, pauses not counted.",
            default=_POLICY.max_duration_seconds,
        ),
        "on_inconclusive": Key(
            Choice(("roll_back", "keep")),
            "What happens when it is over: back to stable, or keep the share until a person decides.",
            default=_POLICY.on_inconclusive,
        ),
        "on_lost_control": Key(
            Choice(("keep", "stable")),
            "What a gateway does that cannot reach the database: keep the share, or serve stable.",
            default=_POLICY.on_lost_control,
        ),
        "holdback": Key(
            Either(Choice((OFF,)), (HOLDBACK,)),
            "What stays on the old release for a while at 100%."
            f" Without it: {format_share(_HOLDBACK.share)} for {format_duration(_HOLDBACK.seconds)}.",
        ),
        "kill_switch": Key(KILL_SWITCH, "Hard limit beside the guarantee: it counts and does not test."),
        "baselines": Key(
            Named(DECLARED, "a metric"),
            "Stable's levels of metrics, used while too little of them is recorded.",
            default={},
        ),
    }
)
