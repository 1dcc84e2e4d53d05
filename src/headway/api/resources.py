"""What the two planes show, as documented: the shapes of their answers."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from headway.domain.feedback import ReportStatus, Severity, Source, Target
from headway.domain.snapshot import SCOPES, Scope

T = TypeVar("T")
Arm = Literal["stable", "candidate"]
KindName = Literal["randomised", "pinned", "manual", "shadow", "holdback"]


class Resource(BaseModel):
    """Something shown; it has exactly the declared fields."""

    model_config = ConfigDict(extra="forbid")


class Wish(BaseModel):
    """Something asked for: no other fields than the declared ones, and nothing is made to fit a type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    """RFC 9457 problem details; ``code`` is stable, ``param`` names the field at fault."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None = None


class Page(Resource, Generic[T]):
    """One page of a list; ``next`` is the cursor of the next page, null on the last."""

    object: Literal["list"] = "list"
    items: list[T]
    next: str | None


class Application(Resource):
    """An application and where its traffic goes; ``share`` (0 to 1) is the candidate's."""

    number: int
    name: str
    unit: str
    policy: str
    record_content: bool
    retention_days: int
    metrics: dict[str, Any]
    stable: str | None
    candidate: str | None
    share: float | None
    rollout: int | None
    retired_at: datetime | None


class Release(Resource):
    """A release and what it bundles; ``role`` is null for one without traffic."""

    number: int
    application: str
    name: str
    content_hash: str
    bundle: dict[str, Any]
    created_at: datetime
    created_by: str
    role: Arm | None


class Interaction(Resource):
    """One caller request, without its content."""

    id: uuid.UUID
    at: datetime
    application: str | None
    release: str | None
    rollout: int
    stage: int
    arm: Arm
    kind: KindName
    unit: str
    own_unit: bool
    key: int
    conversation: str
    user: str | None
    operation: str
    stream: bool
    status: int
    error: str | None
    release_error: bool
    aborted: bool
    refused: bool
    filtered: bool
    deployment: str
    attempts: int
    attempt_errors: int
    fallback: bool
    provider_id: str | None
    provider_model: str | None
    provider_fingerprint: str | None
    finish_reason: str | None
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    first_token_ms: float | None
    total_ms: float
    overhead_ms: float
    queue_ms: float
    mirror_of: uuid.UUID | None = Field(description="Of a mirrored request: the interaction that it mirrors.")
    retrieval_ms: float | None = Field(description="Time spent on finding passages; null where none are searched.")
    passages: int | None = Field(description="Passages that were put in front of the model.")
    context_tokens: int | None = Field(description="What they take together, by the index's tokenizer.")
    retrieval_error: str | None = Field(description="Code of the error, if the search failed.")
    cited: bool | None = Field(description="Whether the answer names a passage; null without retrieval or an answer.")
    retrieved: list[int] | None = Field(description="Numbers of the chunks that were put in front of the model.")


class InteractionContent(Interaction):
    """One caller request with its content; null where the application records metadata only."""

    request: str | None
    answer: str | None


class WholeInteraction(InteractionContent):
    """One caller request with its content, and what a candidate answered to the same request in its shadow stage."""

    mirror: InteractionContent | None


class Feedback(Resource):
    """A feedback value; ``superseded_at`` says when the author changed it."""

    id: uuid.UUID
    at: datetime
    application: str | None
    release: str | None
    rollout: int
    stage: int
    arm: Arm
    kind: KindName
    target: Target
    target_id: str
    choice: int
    metric: str
    value: float | str
    comment: str | None
    correction: str | None
    source: Source
    author: str
    key: int
    unit: str
    exposed_at: datetime
    superseded_at: datetime | None


class FeedbackAnswer(Resource):
    """What became of posted feedback: created, unchanged (it was there already), or spooled (the database is away)."""

    object: Literal["feedback"] = "feedback"
    id: uuid.UUID
    outcome: Literal["created", "unchanged", "spooled"]
    metric: str


class ReportAnswer(Resource):
    """What became of a posted report: created, unchanged (it was there already), or spooled (the database is away)."""

    object: Literal["report"] = "report"
    id: uuid.UUID
    outcome: Literal["created", "unchanged", "spooled"]


class Report(Resource):
    """An issue raised by a developer user of the API."""

    id: uuid.UUID
    at: datetime
    application: str | None
    title: str
    description: str
    severity: Severity
    status: ReportStatus
    author: str
    key: int
    version: int
    updated_at: datetime


class LinkedInteraction(Resource):
    """An interaction that a report names: its id as issued, and its UUID in the lists."""

    interaction_id: str
    interaction: uuid.UUID
    release: str | None
    exposed_at: datetime


class ReportEvent(Resource):
    """A comment, a change of status or of severity."""

    number: int
    at: datetime
    author: str
    comment: str | None
    status: ReportStatus | None
    severity: Severity | None


class ReportDetail(Report):
    """A report with what it is about and what happened to it, oldest first."""

    object: Literal["report"] = "report"
    interactions: list[LinkedInteraction]
    events: list[ReportEvent]


class ReportChange(Wish):
    """A change to a report; it fails when ``version`` is not the present one."""

    version: int = Field(ge=1, le=2**31 - 1)
    status: ReportStatus | None = None
    severity: Severity | None = None
    comment: str | None = None


class Comment(Wish):
    """A comment on a report."""

    comment: str = Field(min_length=1)


class Key(Resource):
    """An API key; ``hint`` is how it begins."""

    number: int
    name: str
    hint: str
    scopes: list[Scope]
    applications: list[str]
    groups: list[str]
    requests_per_minute: int
    concurrency: int
    monthly_usd: float | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKey(Key):
    """A key that was just made; ``secret`` is shown this once."""

    secret: str


class KeyWish(Wish):
    """What a new API key should be allowed."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")
    scopes: list[Scope] = Field(default=["invoke", "feedback"], min_length=1, max_length=len(SCOPES))
    applications: list[str] = Field(default=[], max_length=1000)
    groups: list[str] = Field(default=[], max_length=1000, description="Whose labelled documents its callers see.")
    requests_per_minute: int = Field(default=0, ge=0, le=2**31 - 1)
    concurrency: int = Field(default=0, ge=0, le=2**31 - 1)
    monthly_usd: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    expires_days: float | None = Field(default=None, gt=0, le=36500, allow_inf_nan=False)


class AuditEntry(Resource):
    """Who changed what, when and why."""

    number: int
    at: datetime
    author: str
    action: str
    subject: str
    reason: str | None
    detail: dict[str, Any]


class Configuration(Resource):
    """An applied configuration."""

    number: int
    applied_at: datetime
    applied_by: str
    hash: str


class ConfigurationDetail(Configuration):
    """An applied configuration with the file as it was."""

    source: str


class FeedbackSummary(Resource):
    """Current values of one metric from one source; ``labels`` counts those of a label metric."""

    metric: str
    source: Source
    values: int
    mean: float | None
    labels: dict[str, int] | None


class ReleaseSummary(Resource):
    """What a release did in a span of time; a figure without data is null."""

    number: int
    release: str | None
    interactions: int
    units: int | None = None
    errors: int | None = None
    error_rate: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    first_token_p50_ms: float | None = None
    overhead_p50_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    feedback: list[FeedbackSummary] = []


class Summary(Resource):
    """What each release of an application did with the interactions that began in a span of time."""

    application: str
    since: datetime
    until: datetime
    releases: list[ReleaseSummary]


class Health(Resource):
    """That the process is alive, or ready to work."""

    status: Literal["ok", "ready"]
    snapshot: int | None = None
