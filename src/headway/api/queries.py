"""Query parameters of the control plane's lists; an unknown one is an error."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from headway.domain.feedback import ReportStatus, Severity, Source
from headway.storage.paging import LARGEST_CURSOR, LARGEST_PAGE, PAGE_SIZE

Word = Annotated[str | None, Field(max_length=2000, pattern=r"^[^\x00]*$")]


def _refuse_numbers(value: object) -> object:
    """Take ISO 8601 only: a bare number could be seconds or milliseconds, and pydantic would guess."""
    if isinstance(value, str) and not re.match(r"\d{4}-", value, re.ASCII):
        raise ValueError("expected a date and time with a time zone, like 2026-01-31T12:00:00Z")
    return value


Time = Annotated[
    Annotated[AwareDatetime, BeforeValidator(_refuse_numbers)] | None,
    Field(description="With a time zone: `2026-01-31T12:00:00Z`."),
]


class SpanQuery(BaseModel):
    """A span of time: from ``since`` on, and before ``until``."""

    model_config = ConfigDict(extra="forbid")

    since: Time = None
    until: Time = None


class PageQuery(BaseModel):
    """Which page of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=PAGE_SIZE, ge=1, le=LARGEST_PAGE, description="Items on a page.")
    cursor: str | None = Field(default=None, max_length=LARGEST_CURSOR, description="`next` of the page before.")


class ReleaseQuery(PageQuery):
    """Which releases."""

    application: Word = None
    name: Word = None


class InteractionQuery(PageQuery, SpanQuery):
    """Which interactions; ``failed`` for those with an error, or without."""

    application: Word = None
    release: Word = None
    conversation: Word = None
    failed: bool | None = None


class FeedbackQuery(PageQuery):
    """Which feedback; with ``history`` superseded values too."""

    application: Word = None
    release: Word = None
    metric: Word = None
    source: Source | None = None
    target_id: Word = Field(default=None, description="UUID of an interaction, or a conversation's id.")
    since: Time = None
    history: bool = False


class ReportQuery(PageQuery):
    """Which reports."""

    application: Word = None
    status: ReportStatus | None = None
    severity: Severity | None = None
