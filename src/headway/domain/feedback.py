"""Feedback and reports: what people say about answers, as it is kept."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

import msgspec

Target = Literal["interaction", "conversation"]
Source = Literal["end_user", "developer", "annotator", "judge"]
Severity = Literal["low", "medium", "high", "critical"]
ReportStatus = Literal["open", "triaged", "resolved", "rejected"]

TEXT_BYTES = 32 * 1024
"""Longest comment, correction, description or text value, in bytes of UTF-8."""
KEYLESS_TEXT_BYTES = 4 * 1024
"""The same, of who has nothing but an interaction id: anybody who saw an answer can fill no disk."""
CHOICES = 128
"""Choices of one answer that can be rated."""
REVISIONS = 100
"""Values that one author may give one metric of one target before no more are taken."""
KEYLESS_REVISIONS = 10
"""The same, of who has nothing but an interaction id."""
LINKED_INTERACTIONS = 100
"""Interactions that one report may name."""

NEXT_STATUSES: MappingProxyType[ReportStatus, tuple[ReportStatus, ...]] = MappingProxyType(
    {
        "open": ("triaged", "resolved", "rejected"),
        "triaged": ("open", "resolved", "rejected"),
        "resolved": ("open",),
        "rejected": ("open",),
    }
)
"""Where a report can go from each status; closed ones can only be opened again."""


class Attribution(msgspec.Struct, frozen=True):
    """Which release a statement is about, and how that release came to answer.

    Attributes:
        application, release, rollout, stage, arm, kind, unit: As in ``headway.ids.InteractionId``.
        exposed_unix_ms: When the interaction began.
    """

    application: int
    release: int
    rollout: int
    stage: int
    arm: int
    kind: int
    unit: bytes
    exposed_unix_ms: int


class Feedback(msgspec.Struct, frozen=True, tag="feedback"):
    """One value of one metric, by one author, about an interaction or a conversation.

    Attributes:
        id: 16 bytes of UUIDv7, made when it was accepted.
        unix_ms: When it was accepted.
        target: What it is about.
        target_id: UUID of the interaction, or id of the conversation.
        choice: Which of the answer's choices it is about; 0 is the first, or the whole answer.
        attribution: Which release it is about.
        metric: Name of the metric.
        number: Value of a binary, bounded or positive metric.
        text: Value of a label or text metric.
        comment: What the author adds in words.
        correction: What the answer should have been.
        source: Who speaks.
        author: Name of who speaks; one author has one current value per target and metric.
        key: Number of the API key; 0 when it came with the interaction id alone.
    """

    id: bytes
    unix_ms: int
    target: Target
    target_id: str
    choice: int
    attribution: Attribution
    metric: str
    number: float | None
    text: str | None
    comment: str | None
    correction: str | None
    source: Source
    author: str
    key: int


class LinkedInteraction(msgspec.Struct, frozen=True):
    """An interaction that a report names.

    Attributes:
        interaction_id: As it was issued.
        uuid: 16 bytes.
        release, rollout, stage, arm, kind, unit: As in ``headway.ids.InteractionId``; of a report that was spooled by
            an older Headway no more than the release.
        exposed_unix_ms: When it began.
    """

    interaction_id: str
    uuid: bytes
    release: int
    exposed_unix_ms: int
    rollout: int = 0
    stage: int = 0
    arm: int = 0
    kind: int = 0
    unit: bytes = b""


class Report(msgspec.Struct, frozen=True, tag="report"):
    """An issue raised by a developer user of the API, as it was raised.

    Attributes:
        id: 16 bytes; made from the idempotency key where the client sent one.
        unix_ms: When it was accepted.
        application: Number of the application, if it is about one.
        title: One line.
        description: The rest.
        severity: How bad it is.
        author: Name of who raised it.
        key: Number of the API key.
        interactions: What it is about.
    """

    id: bytes
    unix_ms: int
    application: int | None
    title: str
    description: str
    severity: Severity
    author: str
    key: int
    interactions: tuple[LinkedInteraction, ...]
