"""What simulated traffic brought: answers, errors, ratings, latencies; per release."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Answer", "Citation", "Quantiles", "ReleaseTally", "SentRating", "Tally", "TrafficSummary"]


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that an answer was given: its document, the index version that it is from, and its text."""

    document: str
    index: str
    content: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that a simulated user got.

    Attributes:
        interaction_id: The answer's ``id``.
        release: From the header ``x-headway-release``; empty where there was none.
        text: What it says.
        question: What was asked.
        user: Number of the user.
        conversation: Number of the conversation among all.
        turn: 0 for the first question of the conversation.
        streamed: It came as an event stream.
        latency_ms: From sending the request to the end of the answer.
        first_token_ms: From sending the request to the first text; ``None`` without a stream.
        citations: What it was given to go by, in order; empty where it has none.
    """

    interaction_id: str
    release: str
    text: str
    question: str
    user: int
    conversation: int
    turn: int
    streamed: bool
    latency_ms: float
    first_token_ms: float | None
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True, slots=True)
class SentRating:
    """A rating that the gateway acknowledged; ``up`` is whether the user was content."""

    interaction_id: str
    release: str
    up: bool


@dataclass(frozen=True, slots=True)
class ReleaseTally:
    """What came from one release: answers, ratings acknowledged, and those among them that were thumbs up."""

    answers: int
    ratings: int
    thumbs_up: int


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Order statistics of measurements: each is a value that was measured, none is interpolated.

    Example:
        >>> Quantiles.of([3.0, 1.0, 2.0])
        Quantiles(count=3, p50=2.0, p95=3.0, p99=3.0, maximum=3.0)
        >>> Quantiles.of([]) is None
        True
    """

    count: int
    p50: float
    p95: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles | None:
        """Summarise measurements; ``None`` where there are none."""
        if not values:
            return None
        ordered = sorted(values)
        last = len(ordered) - 1
        p50, p95, p99 = (ordered[min(last, int(len(ordered) * share))] for share in (0.5, 0.95, 0.99))
        return cls(len(ordered), p50, p95, p99, ordered[last])


@dataclass(frozen=True, slots=True)
class TrafficSummary:
    """What a run of simulated traffic did and got.

    Attributes:
        seconds: How long it took.
        conversations: Conversations begun.
        requests: Questions sent.
        answers: Questions answered in full.
        errors: Questions not answered, by HTTP status or, without one, ``connection``, ``timeout`` or ``broken`` (an
            answer that stopped in the middle or made no sense).
        split_conversations: Conversations with answers of more than one release.
        releases: By release, as the header ``x-headway-release`` names it.
        ratings: All ratings that were acknowledged.
        rating_errors: Ratings that were not, by status as in ``errors``.
        reports: Ids of the reports that were acknowledged.
        report_errors: Reports that were not, by status as in ``errors``.
        latency_ms: From sending a question to the end of its answer; ``None`` without an answer.
        first_token_ms: From sending a question to the first text of a streamed answer; ``None`` without one.
        interaction_ids: Of all answers, in the order in which they were complete.
    """

    seconds: float
    conversations: int
    requests: int
    answers: int
    errors: Mapping[str, int]
    split_conversations: int
    releases: Mapping[str, ReleaseTally]
    ratings: tuple[SentRating, ...]
    rating_errors: Mapping[str, int]
    reports: tuple[str, ...]
    report_errors: Mapping[str, int]
    latency_ms: Quantiles | None
    first_token_ms: Quantiles | None
    interaction_ids: tuple[str, ...]

    @property
    def ratings_sent(self) -> int:
        """Ratings that were acknowledged."""
        return len(self.ratings)


@dataclass(slots=True)
class Tally:
    """Counts while traffic runs; ``summarise`` freezes it."""

    conversations: int = 0
    requests: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rating_errors: Counter[str] = field(default_factory=Counter)
    report_errors: Counter[str] = field(default_factory=Counter)
    ratings: list[SentRating] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    _answers: Counter[str] = field(default_factory=Counter)
    _latencies_ms: list[float] = field(default_factory=list)
    _first_tokens_ms: list[float] = field(default_factory=list)
    _interaction_ids: list[str] = field(default_factory=list)
    _releases: dict[int, str] = field(default_factory=dict)
    _split: set[int] = field(default_factory=set)

    def add_answer(self, answer: Answer) -> None:
        """Count an answer."""
        self._answers[answer.release] += 1
        self._latencies_ms.append(answer.latency_ms)
        if answer.first_token_ms is not None:
            self._first_tokens_ms.append(answer.first_token_ms)
        self._interaction_ids.append(answer.interaction_id)
        if self._releases.setdefault(answer.conversation, answer.release) != answer.release:
            self._split.add(answer.conversation)

    def summarise(self, seconds: float) -> TrafficSummary:
        """Freeze the counts."""
        rated = Counter(rating.release for rating in self.ratings)
        liked = Counter(rating.release for rating in self.ratings if rating.up)
        return TrafficSummary(
            seconds=seconds,
            conversations=self.conversations,
            requests=self.requests,
            answers=len(self._interaction_ids),
            errors=dict(self.errors),
            split_conversations=len(self._split),
            releases={
                release: ReleaseTally(answers, rated[release], liked[release])
                for release, answers in sorted(self._answers.items())
            },
            ratings=tuple(self.ratings),
            rating_errors=dict(self.rating_errors),
            reports=tuple(self.reports),
            report_errors=dict(self.report_errors),
            latency_ms=Quantiles.of(self._latencies_ms),
            first_token_ms=Quantiles.of(self._first_tokens_ms),
            interaction_ids=tuple(self._interaction_ids),
        )
