"""Metrics, each declared once: what is recorded, decided on and shown all come from these declarations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from headway.domain.interaction import Interaction
from headway.errors import ConfigurationError, FeedbackValueError

Direction = Literal["higher", "lower"]
FeedbackKind = Literal["binary", "bounded", "positive", "label", "text"]
MetricKind = Literal["event", "quantile", "binary", "bounded", "positive", "label", "text"]
Form = Literal["points", "ratio"]
Method = Literal["two_sample", "event_ratio", "betting", "normal_mixture", "slow_calls"]
Per = Literal["interaction", "unit", "rater"]


class FeedbackMetric(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A metric whose values people (or judges) send.

    Attributes:
        kind: binary (yes / no), bounded (minimum to maximum), positive (a number >= 0), label, or text.
        direction: Which way is better.
        minimum: Lowest value of a bounded metric.
        maximum: Highest value of a bounded metric.
        labels: Allowed values of a label metric.
        end_users: Whether end users may send it with nothing but the interaction id.
    """

    kind: FeedbackKind
    direction: Direction = "higher"
    minimum: float = 0.0
    maximum: float = 1.0
    labels: tuple[str, ...] = ()
    end_users: bool = True

    def parse(self, name: str, value: Any) -> tuple[float | None, str | None]:
        """Check a value and split it into a number or a text.

        Returns:
            (number, None) for binary (0 or 1), bounded and positive; (None, text) for label and text.

        Raises:
            FeedbackValueError: The value does not fit the metric; the message says what does.
        """
        if self.kind in ("label", "text"):
            return None, self._parse_text(name, value)
        return self._parse_number(name, value), None

    def _parse_text(self, name: str, value: Any) -> str:
        if self.kind == "label":
            if isinstance(value, str) and value in self.labels:
                return value
            raise _misfit(name, f"one of {', '.join(map(repr, self.labels))}", value)
        if isinstance(value, str) and value.strip() and "\x00" not in value:
            return value
        raise _misfit(name, "a non-empty string", value)

    def _parse_number(self, name: str, value: Any) -> float:
        if self.kind == "binary":
            if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
                return float(value)
            raise _misfit(name, "true, false, 1 or 0", value)
        high = self.maximum if self.kind == "bounded" else 1e15
        low = self.minimum if self.kind == "bounded" else 0.0
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)
        what = f"a number from {low:g} to {high:g}" if self.kind == "bounded" else "a number of at least 0"
        raise _misfit(name, what, value)


def _misfit(name: str, expected: str, value: Any) -> FeedbackValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return FeedbackValueError(f"metric {name!r} takes {expected}, not {shown}", param="value")


BUILT_IN_FEEDBACK: dict[str, FeedbackMetric] = {
    "thumbs_up": FeedbackMetric(kind="binary"),
    "stars": FeedbackMetric(kind="bounded", minimum=1.0, maximum=5.0),
    "comment": FeedbackMetric(kind="text"),
    "correction": FeedbackMetric(kind="text"),
}


class EventMetric(msgspec.Struct, frozen=True):
    """A binary metric that Headway reads from every interaction itself.

    Attributes:
        name: Name in policies, evidence and summaries.
        label: Name for people.
        occurred: Whether the event happened in an interaction (truthy).
        direction: Which way is better.
        observed: What is None in an interaction that tells nothing of the event, and is not at risk of it; without it
            all of them tell.
    """

    name: str
    label: str
    occurred: Callable[[Interaction], object]
    direction: Direction = "lower"
    observed: Callable[[Interaction], object] | None = None


class ValueMetric(msgspec.Struct, frozen=True):
    """A positive metric that Headway reads from every interaction itself.

    Attributes:
        name: Name in policies, evidence and summaries.
        label: Name for people.
        unit: Of its values: USD, tokens or ms.
        value: The value of an interaction; None where it has none, and it is then left out.
        per_unit: Evidence adds up whole numbers, so that order never shows: it counts in 1 / ``per_unit``.
        histogram: Whether evidence keeps a log-histogram of it; policies then name its quantiles, else its mean.
        direction: Which way is better.
    """

    name: str
    label: str
    unit: str
    value: Callable[[Interaction], float | None]
    per_unit: int = 1
    histogram: bool = False
    direction: Direction = "lower"


def _latency(interaction: Interaction) -> float | None:
    # Of complete answers: a failure or an abort says how long somebody waited, not how fast the release answers.
    return None if interaction.error is not None or interaction.aborted else interaction.total_ms


def _found_nothing(interaction: Interaction) -> bool:
    return interaction.passages == 0


def _retrieval(interaction: Interaction) -> float | None:
    return None if interaction.retrieval_error is not None else interaction.retrieval_ms


# The order is that of the bits in unit_state.events: only ever append.
EVENT_METRICS: tuple[EventMetric, ...] = (
    EventMetric("error_rate", "Error rate", attrgetter("release_error")),
    EventMetric("attempt_error_rate", "Attempt error rate", attrgetter("attempt_errors")),
    EventMetric("fallback_rate", "Fallback rate", attrgetter("fallback")),
    EventMetric("refusal_rate", "Refusal rate", attrgetter("refused")),
    EventMetric("content_filter_rate", "Content filter rate", attrgetter("filtered")),
    EventMetric("abort_rate", "Abort rate", attrgetter("aborted")),
    EventMetric("empty_result_rate", "Empty result rate", _found_nothing, observed=attrgetter("passages")),
    EventMetric(
        "retrieval_error_rate",
        "Retrieval error rate",
        attrgetter("retrieval_error"),
        observed=attrgetter("retrieval_ms"),
    ),
    EventMetric("cited_answer_rate", "Cited answer rate", attrgetter("cited"), "higher", attrgetter("cited")),
)

COST = ValueMetric("cost", "Cost", "USD", attrgetter("cost_usd"), per_unit=1_000_000_000)
LATENCY = ValueMetric("latency", "Latency", "ms", _latency, per_unit=1_000, histogram=True)
FIRST_TOKEN = ValueMetric(
    "first_token", "Time to first token", "ms", attrgetter("first_token_ms"), per_unit=1_000, histogram=True
)
RETRIEVAL = ValueMetric("retrieval", "Retrieval time", "ms", _retrieval, per_unit=1_000, histogram=True)

VALUE_METRICS: tuple[ValueMetric, ...] = (
    COST,
    ValueMetric("input_tokens", "Input tokens", "tokens", attrgetter("input_tokens")),
    ValueMetric("output_tokens", "Output tokens", "tokens", attrgetter("output_tokens")),
    LATENCY,
    FIRST_TOKEN,
    ValueMetric("context_tokens", "Context tokens", "tokens", attrgetter("context_tokens")),
    RETRIEVAL,
)


class Metric(msgspec.Struct, frozen=True):
    """A metric as policies name it.

    Attributes:
        name: Its name.
        kind: ``event`` (a rate), ``quantile``, or the kind of the feedback.
        direction: Which way is better.
        label: Name for people.
        unit: Of its level: USD, tokens, ms; empty for rates (0 to 1) and feedback.
        per: What is observed once: an interaction, a unit (its exposure long before the event), or a rater.
        value: Of a quantile, and of a mean of what Headway measures: the value metric it is read from.
        quantile: Which one, in (0, 1).
        minimum: Lowest value of a bounded metric.
        maximum: Highest value of a bounded metric.
    """

    name: str
    kind: MetricKind
    direction: Direction
    label: str
    unit: str = ""
    per: Per = "interaction"
    value: str | None = None
    quantile: float | None = None
    minimum: float = 0.0
    maximum: float = 1.0


SLOW_RATE = Metric("slow_rate", "event", "lower", "Slow call rate", value=LATENCY.name)
"""Calls slower than stable's 95th percentile was."""
FEEDBACK_RATE = Metric("feedback_rate", "event", "higher", "Feedback rate", per="unit")
REPORT_RATE = Metric("report_rate", "event", "lower", "Report rate", per="unit")

MEASURED: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            *(Metric(event.name, "event", event.direction, event.label) for event in EVENT_METRICS),
            SLOW_RATE,
            FEEDBACK_RATE,
            REPORT_RATE,
            *(
                Metric(each.name, "positive", each.direction, each.label, each.unit, value=each.name)
                for each in VALUE_METRICS
                if not each.histogram
            ),
            *(
                Metric(
                    f"{each.name}_p{percent}",
                    "quantile",
                    each.direction,
                    f"{each.label} p{percent}",
                    each.unit,
                    value=each.name,
                    quantile=percent / 100,
                )
                for each in VALUE_METRICS
                if each.histogram
                for percent in (50, 95)
            ),
        )
    }
)
"""What Headway measures itself and a policy can name."""

RETRIEVAL_METRICS = frozenset(
    (
        *(event.name for event in EVENT_METRICS if event.observed is not None),
        *("context_tokens", "retrieval_p50", "retrieval_p95"),
    )
)
"""What only releases with a search index have."""

# Statistics, section 4: every other pair is a configuration error.
_METHODS: Mapping[MetricKind, tuple[Form, Method]] = MappingProxyType(
    {
        "binary": ("points", "two_sample"),
        "event": ("ratio", "event_ratio"),
        "bounded": ("points", "betting"),
        "positive": ("ratio", "normal_mixture"),
        "quantile": ("ratio", "slow_calls"),
    }
)


def find_metric(name: str, feedback: Mapping[str, FeedbackMetric]) -> Metric:
    """Find a metric that Headway measures, or that feedback brings.

    Args:
        name: Its name.
        feedback: The application's feedback metrics, the built-in ones included.

    Raises:
        ConfigurationError: There is none of that name; the message lists those that a policy can name.
    """
    measured = MEASURED.get(name)
    if measured is not None:
        return measured
    rated = feedback.get(name)
    if rated is None:
        known = ", ".join([*MEASURED, *(each for each in feedback if feedback[each].kind in _METHODS)])
        raise ConfigurationError(f"there is no metric {name!r}; a policy can name {known}", param=name)
    label = name.replace("_", " ").capitalize()
    return Metric(name, rated.kind, rated.direction, label, "", "rater", None, None, rated.minimum, rated.maximum)


def method_for(kind: MetricKind, form: Form) -> Method:
    """Say how a metric is tested: it follows from its kind and the form of the margin.

    Raises:
        ConfigurationError: There is no test for the two; the message says what the kind needs.
    """
    needed = _METHODS.get(kind)
    if needed is None:
        raise ConfigurationError(f"a {kind} metric has no number to compare: it cannot be a goal or a guardrail")
    if form != needed[0]:
        raise ConfigurationError(f"the margin of a metric of kind {kind} is {_FORMS[needed[0]]}")
    return needed[1]


_FORMS: Mapping[Form, str] = MappingProxyType(
    {
        "points": "a difference (`margin: 5pp`, `margin: 0.15`), not as a ratio",
        "ratio": "a ratio (`ratio: 1.5`), not in points",
    }
)
