"""Metrics, each declared once: what is recorded, decided on and shown all come from these declarations."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal

import msgspec

from headway.domain.interaction import Interaction
from headway.errors import FeedbackValueError

Direction = Literal["higher", "lower"]
FeedbackKind = Literal["binary", "bounded", "positive", "label", "text"]


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
        occurred: Whether the event happened in an interaction (truthy).
        direction: Which way is better.
    """

    name: str
    occurred: Callable[[Interaction], object]
    direction: Direction = "lower"


class ValueMetric(msgspec.Struct, frozen=True):
    """A positive metric that Headway reads from every interaction itself.

    Attributes:
        name: Name in policies, evidence and summaries.
        value: The value of an interaction; None where it has none, and it is then left out.
        per_unit: Evidence adds up whole numbers, so that order never shows: it counts in 1 / ``per_unit``.
        histogram: Whether evidence keeps a log-histogram of it.
        direction: Which way is better.
    """

    name: str
    value: Callable[[Interaction], float | None]
    per_unit: int = 1
    histogram: bool = False
    direction: Direction = "lower"


def _latency(interaction: Interaction) -> float | None:
    # Of complete answers: a failure or an abort says how long somebody waited, not how fast the release answers.
    return None if interaction.error is not None or interaction.aborted else interaction.total_ms


# The order is that of the bits in unit_state.events: only ever append.
EVENT_METRICS: tuple[EventMetric, ...] = (
    EventMetric("error_rate", attrgetter("release_error")),
    EventMetric("attempt_error_rate", attrgetter("attempt_errors")),
    EventMetric("fallback_rate", attrgetter("fallback")),
    EventMetric("refusal_rate", attrgetter("refused")),
    EventMetric("content_filter_rate", attrgetter("filtered")),
    EventMetric("abort_rate", attrgetter("aborted")),
)

LATENCY = ValueMetric("latency", _latency, per_unit=1_000, histogram=True)

VALUE_METRICS: tuple[ValueMetric, ...] = (
    ValueMetric("cost", attrgetter("cost_usd"), per_unit=1_000_000_000),
    ValueMetric("input_tokens", attrgetter("input_tokens")),
    ValueMetric("output_tokens", attrgetter("output_tokens")),
    LATENCY,
    ValueMetric("first_token", attrgetter("first_token_ms"), per_unit=1_000, histogram=True),
)
