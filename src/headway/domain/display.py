"""Figures and states as people read them: one wording for the terminal, the console and messages.

Rates are per cent, their differences percentage points ("-1.3 pp"); latencies milliseconds; cost US dollars; ratios
"×1.12". Without data there is no figure: "no data", and None for what would be a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Literal

import msgspec

from headway.domain.assessment import Assessment, MetricFigures
from headway.domain.metric import FeedbackMetric, Form, Metric, find_metric
from headway.domain.policy import MetricRule
from headway.domain.recording import Terms

NO_DATA = "no data"

Standing = Literal["no_data", "harmful", "safe", "undecided"]
"""Where a metric stands: its evidence of harm, or of safety at the next share, is strong enough, or neither."""

_STATES = {
    "running": "set by hand",
    "baseline": "collecting the baseline",
    "shadow": "shadow",
    "ramp": "ramp",
    "paused": "paused",
    "holdback": "holdback",
    "rolled_back": "rolled back",
    "promoted": "promoted",
    "inconclusive": "inconclusive",
}
_OUTCOMES = {
    "advance": "advanced",
    "hold": "held",
    "promote": "promoted",
    "roll_back": "rolled back",
    "pause": "paused",
    "resume": "resumed",
    "approve": "approved",
    "inconclusive": "inconclusive",
}
_LARGEST_E = 1e5  # beyond, only the power of ten matters


class Scale(msgspec.Struct, frozen=True):
    """How the figures of one metric are written, and where they lie between no loss and the margin.

    Attributes:
        metric: The metric.
        form: Whether its estimates are differences or ratios.
        margin: The largest acceptable loss, signed as an estimate: -0.05, or 1.5.
    """

    metric: Metric
    form: Form
    margin: float

    @property
    def lower_is_better(self) -> bool:
        """Whether a larger estimate is a loss."""
        return self.margin > (1.0 if self.form == "ratio" else 0.0)

    @property
    def unit(self) -> str:
        """What stands behind a difference: "pp", "stars", "points"; nothing behind a ratio."""
        if self.form == "ratio":
            return ""
        if self._is_rate:
            return "pp"
        return "stars" if self.metric.name == "stars" else "points"

    def level(self, value: float | None) -> str:
        """Write a rate, a mean or a quantile: "4.25%", "1,240 ms", "$0.00314", "412 tokens", "3.81"."""
        if value is None or not math.isfinite(value):
            return NO_DATA
        if self._is_rate:
            return format_rate(value)
        if self.metric.unit == "ms":
            return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"
        if self.metric.unit == "USD":
            return format_usd(value)
        if self.metric.unit:
            return f"{value:,.0f} {self.metric.unit}"
        return f"{value:,.2f}"

    def effect(self, value: float | None, *, unit: bool = True) -> str:
        """Write an estimate, an end of its interval or a line: "-1.3 pp", "+0.12 stars", "×1.12"."""
        if value is None:
            return NO_DATA
        if self.form == "ratio":
            return format_ratio(value)
        scaled = value * 100 if self._is_rate else value
        text = f"{scaled:+.{self._places}f}" if math.isfinite(value) else ("∞" if value > 0 else "-∞")
        if not text.strip("+-0."):
            text = text.lstrip("+-")  # a zero has no sign
        return f"{text} {self.unit}" if unit else text

    def interval(self, lower: float | None, upper: float | None) -> str:
        """Write an interval: "-4.1 to +1.6 pp", "×0.92 to ×1.31", "at most ×1.31", "no interval yet"."""
        low = None if lower is None or math.isinf(lower) else lower
        high = None if upper is None or math.isinf(upper) else upper
        if low is None and high is None:
            return "no interval yet"
        if low is None:
            return f"at most {self.effect(high)}"
        if high is None:
            return f"at least {self.effect(low)}"
        return f"{self.effect(low, unit=False)} to {self.effect(high)}"

    def place(self, value: float | None) -> float | None:
        """Measure an effect in margins, worse to the left: no difference is 0, a loss of the margin -1, a gain above 0.

        Ratios are measured on the log scale. So all metrics of a rollout can be drawn on one axis.
        """
        if value is None or math.isnan(value):
            return None
        if self.form == "points":
            return _towards(value, self.margin)
        if value <= 0:
            return math.inf if self.lower_is_better else -math.inf
        return _towards(math.log(value), math.log(self.margin))

    @property
    def _is_rate(self) -> bool:
        return self.metric.kind in ("event", "binary")

    @property
    def _places(self) -> int:
        size = abs(self.margin) * (100 if self._is_rate else 1)
        return max(1, 1 - math.floor(math.log10(size))) if size > 0 else 1


class Evidence(msgspec.Struct, frozen=True):
    """An E-value beside what it has to reach.

    Attributes:
        e: The E-value, written for people: "3.2", "<0.01", "10^8".
        threshold: What it has to reach, likewise.
        progress: How far it has come on the log scale, 0 to 1.
        reached: Whether it is there.
        vacuous: It need not get there: the tolerance is as wide as the metric itself.
    """

    e: str
    threshold: str
    progress: float
    reached: bool
    vacuous: bool = False


class MetricText(msgspec.Struct, frozen=True):
    """One metric of a rollout, written for people. Places are in margins: see ``Scale.place``.

    Attributes:
        metric: Its name; ``label`` is its name for people.
        role: ``goal`` or ``guardrail``.
        standing: Where it stands.
        summary: The same in a sentence.
        stable_level, candidate_level: Per arm.
        estimate: Candidate against stable, with its unit.
        interval: Anytime-valid 95 % interval of it.
        margin, harm: The two lines.
        observations: Of stable and candidate: "12,204 / 610".
        harm_evidence: Of a loss beyond the harm line; rolls back when reached.
        safe_share: The next share; None when there is none.
        safe_evidence: That entering it is safe; None when there is none.
        superior_evidence: Of being better than stable, where the policy asks for it.
        estimate_place, harm_place: Where to draw them; infinite for a ratio without an event.
        worst_place, best_place: The ends of the interval, worst the left one; infinite where nothing can be said.
        interactions_to_go: About how many more the next step needs: "4,200"; empty if unknown.
    """

    metric: str
    label: str
    role: str
    standing: Standing
    summary: str
    stable_level: str
    candidate_level: str
    estimate: str
    interval: str
    margin: str
    harm: str
    observations: str
    harm_evidence: Evidence
    safe_share: float | None
    safe_evidence: Evidence | None
    superior_evidence: Evidence | None
    harm_place: float
    estimate_place: float | None
    worst_place: float | None
    best_place: float | None
    interactions_to_go: str


def scale_of(rule: MetricRule, feedback: Mapping[str, FeedbackMetric]) -> Scale:
    """Say how the figures of a metric are written.

    Args:
        rule: What the policy asks of it.
        feedback: The rollout's feedback metrics (``Terms.feedback``).
    """
    margin = -rule.margin if rule.form == "points" and rule.direction == "higher" else rule.margin
    return Scale(find_metric(rule.metric, feedback), rule.form, margin)


def describe_metric(terms: Terms, figures: MetricFigures) -> MetricText:
    """Write one metric's figures for people.

    Args:
        terms: Of the rollout.
        figures: Of one of its metrics.
    """
    rule = next(each for each in terms.policy.rules if each.metric == figures.metric)
    scale = scale_of(rule, terms.feedback)
    following = figures.safe[0] if figures.safe else None
    harm = describe_evidence(figures.harm_log_e, figures.harm_threshold)
    safe = None
    if following is not None:
        safe = describe_evidence(following.log_e, figures.safe_threshold, vacuous=following.vacuous)
    superior = None
    if figures.superior_log_e is not None:
        superior = describe_evidence(figures.superior_log_e, -math.log(terms.policy.beta))
    standing = _standing(figures, harm, safe)
    worst, best = _ends(scale, figures)
    return MetricText(
        metric=figures.metric,
        label=scale.metric.label,
        role=figures.role,
        standing=standing,
        summary=_summarise(standing, scale, figures, following.share if following else None),
        stable_level=scale.level(figures.stable_level),
        candidate_level=scale.level(figures.candidate_level),
        estimate=_estimate(scale, figures),
        interval=scale.interval(figures.lower, figures.upper),
        margin=scale.effect(figures.margin),
        harm=scale.effect(figures.harm),
        observations=f"{figures.stable_observations:,} / {figures.candidate_observations:,}",
        harm_evidence=harm,
        safe_share=following.share if following else None,
        safe_evidence=safe,
        superior_evidence=superior,
        harm_place=scale.place(figures.harm) or 0.0,
        estimate_place=scale.place(figures.estimate),
        worst_place=worst,
        best_place=best,
        interactions_to_go="" if figures.interactions_to_go is None else format_count(figures.interactions_to_go),
    )


def describe_evidence(log_e: float, threshold: float, *, vacuous: bool = False) -> Evidence:
    """Write an E-value against its threshold; both are natural logs, as in ``MetricFigures``.

    Example:
        >>> evidence = describe_evidence(math.log(4.5), math.log(20))
        >>> evidence.e, evidence.threshold, round(evidence.progress, 2), evidence.reached
        ('4.5', '20', 0.5, False)
    """
    progress = 1.0 if threshold <= 0 else min(1.0, max(0.0, log_e / threshold))
    return Evidence(format_e(log_e), format_e(threshold), progress, log_e >= threshold, vacuous)


def describe_state(state: str) -> str:
    """Write the state of a rollout for people."""
    return _STATES.get(state, state)


def describe_outcome(outcome: str) -> str:
    """Write what a decision did for people."""
    return _OUTCOMES.get(outcome, outcome)


def pace(readings: Sequence[tuple[int, Assessment]]) -> float | None:
    """Give the traffic, interactions of both arms per second, between the first and the last of some readings.

    Args:
        readings: (Unix milliseconds, what was assessed then), oldest first; the last ten minutes are a good choice.

    Returns:
        None where the readings do not tell.
    """
    if len(readings) < 2:
        return None
    (start_ms, first), (end_ms, last) = readings[0], readings[-1]
    grown = sum(last.interactions) - sum(first.interactions)
    return grown * 1000 / (end_ms - start_ms) if grown > 0 and end_ms > start_ms else None


def format_share(share: float) -> str:
    """Write a share of traffic as a percentage without needless digits.

    Example:
        >>> format_share(0.125), format_share(1 - 0.98)
        ('12.5%', '2%')
    """
    return f"{(Decimal(repr(round(float(share), 12))) * 100).normalize():f}%"


def format_rate(rate: float) -> str:
    """Write a rate (0 to 1) as a percentage with two or three digits that count.

    Example:
        >>> format_rate(0.7042), format_rate(0.0125), format_rate(0.00042), format_rate(0.0), format_rate(1.0)
        ('70.4%', '1.25%', '0.042%', '0%', '100%')
    """
    percent = rate * 100
    if percent >= 10:
        return "100%" if rate == 1 else f"{percent:.1f}%"
    if percent >= 1:
        return f"{percent:.2f}%"
    return f"{percent:.2g}%" if percent >= 0.001 else f"{percent:.0g}%" if percent else "0%"


def format_ratio(ratio: float) -> str:
    """Write a ratio of candidate over stable.

    Example:
        >>> format_ratio(1.1234), format_ratio(14.2), format_ratio(250.0)
        ('×1.12', '×14.2', '×250')
    """
    if math.isinf(ratio):
        return "×∞"
    return f"×{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def format_usd(usd: float) -> str:
    """Write an amount with three digits that count, cents from a dollar on.

    Example:
        >>> format_usd(0.00314159), format_usd(12.5), format_usd(0.0), format_usd(0.00000706)
        ('$0.00314', '$12.50', '$0', '$7.06e-06')
    """
    if usd == 0:
        return "$0"
    if abs(usd) >= 1:
        return f"${usd:,.2f}"
    if abs(usd) < 0.0001:
        return f"${usd:.2e}"
    places = 2 - math.floor(math.log10(abs(usd)))
    return f"${usd:.{places}f}"


def format_e(log_e: float) -> str:
    """Write an E-value, given its natural log.

    Example:
        >>> format_e(math.log(20)), format_e(math.log(133.33)), format_e(-9.0), format_e(30.0)
        ('20', '133', '<0.01', '10^13')
    """
    if math.isnan(log_e):
        return NO_DATA
    if log_e == math.inf:
        return "∞"
    if log_e >= math.log(_LARGEST_E):
        return f"10^{math.floor(log_e / math.log(10) + 1e-9)}"
    value = math.exp(log_e)
    if value < 0.01:
        return "<0.01"
    return f"{value:.2g}" if value < 9.95 else f"{value:,.0f}"


def format_count(count: float) -> str:
    """Write about how many, two digits that count.

    Example:
        >>> format_count(4213.0), format_count(86.3), format_count(1_260_000.0)
        ('4,200', '87', '1.3 million')
    """
    if count < 100:
        return f"{math.ceil(count)}"
    if count >= 1e6:
        return f"{count / 1e6:.{1 if count < 1e7 else 0}f} million"
    step = 10 ** (math.floor(math.log10(count)) - 1)
    return f"{round(count / step) * step:,}"


def format_seconds(seconds: float) -> str:
    """Write a length of time in its two largest units.

    Example:
        >>> format_seconds(41.0), format_seconds(905.0), format_seconds(7_500.0), format_seconds(200_000.0)
        ('41 s', '15 min', '2 h 5 min', '2 d 7 h')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 10:
        return _join(minutes, "min", whole % 60, "s")
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return _join(minutes // 60, "h", minutes % 60, "min")
    return _join(minutes // 1440, "d", minutes % 1440 // 60, "h")


def _join(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"


def _towards(value: float, margin: float) -> float:
    return -value / margin if value else 0.0


def _ends(scale: Scale, figures: MetricFigures) -> tuple[float | None, float | None]:
    if figures.estimate is None or (figures.lower is None and figures.upper is None):
        return None, None
    low, high = scale.place(figures.lower), scale.place(figures.upper)
    worst, best = (high, low) if scale.lower_is_better else (low, high)
    return -math.inf if worst is None else worst, math.inf if best is None else best


def _estimate(scale: Scale, figures: MetricFigures) -> str:
    if figures.estimate is not None or not _is_observed(figures):
        return scale.effect(figures.estimate)
    # Observed, but a ratio to nothing has no value.
    return "no events" if not figures.candidate_level else "no estimate"


def _is_observed(figures: MetricFigures) -> bool:
    return figures.stable_observations > 0 and figures.candidate_observations > 0


def _standing(figures: MetricFigures, harm: Evidence, safe: Evidence | None) -> Standing:
    if harm.reached:
        return "harmful"
    if not _is_observed(figures):
        return "no_data"
    return "safe" if safe is not None and (safe.reached or safe.vacuous) else "undecided"


def _summarise(standing: Standing, scale: Scale, figures: MetricFigures, share: float | None) -> str:
    name = scale.metric.label
    if standing == "no_data":
        return f"{name}: {NO_DATA} yet"
    found = f"{name}: {_estimate(scale, figures)} ({scale.interval(figures.lower, figures.upper)})"
    if standing == "harmful":
        return f"{found}, beyond the harm line of {scale.effect(figures.harm)}"
    if share is None:
        return found
    if standing == "safe":
        return f"{found}, safe at {format_share(share)}"
    return f"{found}, not yet shown to be safe at {format_share(share)}"
