"""What comes back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Source = Literal["end_user", "developer", "annotator", "judge"]
Severity = Literal["low", "medium", "high", "critical"]
Status = Literal["open", "triaged", "resolved", "rejected"]
Outcome = Literal["created", "unchanged", "spooled"]
Value = bool | float | str


@dataclass(frozen=True)
class FeedbackReceipt:
    """What became of feedback.

    Attributes:
        id: Of the value that stands for it.
        outcome: created; unchanged: it was there already; spooled: it is safe on disk until the database is back.
        metric: The metric that it is a value of.
    """

    id: str
    outcome: Outcome
    metric: str


@dataclass(frozen=True)
class ReportReceipt:
    """What became of a report; ``outcome`` as in ``FeedbackReceipt``."""

    id: str
    outcome: Outcome


@dataclass(frozen=True)
class ReportEvent:
    """A comment, a change of status or of severity."""

    number: int
    at: datetime
    author: str
    comment: str | None
    status: Status | None
    severity: Severity | None


@dataclass(frozen=True)
class Report:
    """A report as it is; ``version`` goes with every change to it.

    ``interaction_ids`` and ``events`` are there where one report was asked for, and empty in lists.
    """

    id: str
    at: datetime
    updated_at: datetime
    application: str | None
    title: str
    description: str
    severity: Severity
    status: Status
    author: str
    version: int
    interaction_ids: tuple[str, ...] = ()
    events: tuple[ReportEvent, ...] = ()
