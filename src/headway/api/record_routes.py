"""The control plane's routes on what was recorded: interactions, feedback, reports."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from headway.api.control_parts import Admin, Services, Viewer, problems, signature
from headway.api.queries import FeedbackQuery, InteractionQuery, ReportQuery
from headway.api.resources import (
    Comment,
    Feedback,
    Interaction,
    Page,
    Report,
    ReportChange,
    ReportDetail,
    WholeInteraction,
)
from headway.feedback.reporting import CommentPost, ReportPatch
from headway.storage import feedback as feedback_storage
from headway.storage import records
from headway.storage import reports as report_storage
from headway.storage.paging import read_page

router = APIRouter()

InteractionName = Annotated[str, Path(max_length=120, description="The `id` of an answer, or the interaction's UUID.")]


@router.get("/interactions", response_model=Page[Interaction], responses=problems())
async def list_interactions(services: Services, _: Viewer, wanted: Annotated[InteractionQuery, Query()]) -> Any:
    """List the interactions, newest first, without their content."""
    conditions = records.of_interactions(
        application=wanted.application,
        release=wanted.release,
        conversation=wanted.conversation,
        failed=wanted.failed,
        since=wanted.since,
        until=wanted.until,
    )
    async with services.database.connection() as connection:
        return await read_page(connection, records.INTERACTIONS, conditions, limit=wanted.limit, cursor=wanted.cursor)


@router.get("/interactions/{interaction}", response_model=WholeInteraction, responses=problems(404))
async def get_interaction(services: Services, _: Viewer, interaction: InteractionName) -> Any:
    """Show an interaction with its content, where the application records it."""
    try:
        number = uuid.UUID(interaction)
    except ValueError:
        number = uuid.UUID(bytes=services.snapshot().signing.signer().read(interaction).uuid)
    async with services.database.connection() as connection:
        return await records.read_interaction(connection, number)


@router.get("/feedback", response_model=Page[Feedback], responses=problems())
async def list_feedback(services: Services, _: Viewer, wanted: Annotated[FeedbackQuery, Query()]) -> Any:
    """List feedback, newest first: current values, or with `history` superseded ones too."""
    conditions = feedback_storage.conditions(
        application=wanted.application,
        release=wanted.release,
        metric=wanted.metric,
        source=wanted.source,
        target_id=wanted.target_id,
        since=wanted.since,
        current=not wanted.history,
    )
    async with services.database.connection() as connection:
        return await read_page(
            connection, feedback_storage.LISTING, conditions, limit=wanted.limit, cursor=wanted.cursor
        )


@router.get("/feedback/{feedback}", response_model=Feedback, responses=problems(404))
async def get_feedback(services: Services, _: Viewer, feedback: uuid.UUID) -> Any:
    """Show a feedback value."""
    async with services.database.connection() as connection:
        condition = ("f.id = %s", feedback)
        return await records.read_one(connection, feedback_storage.LISTING, condition, f"feedback {feedback}")


@router.get("/reports", response_model=Page[Report], responses=problems())
async def list_reports(services: Services, _: Viewer, wanted: Annotated[ReportQuery, Query()]) -> Any:
    """List the reports, newest first."""
    conditions = report_storage.conditions(
        application=wanted.application, status=wanted.status, severity=wanted.severity
    )
    async with services.database.connection() as connection:
        return await read_page(connection, report_storage.LISTING, conditions, limit=wanted.limit, cursor=wanted.cursor)


@router.get("/reports/{report}", response_model=ReportDetail, responses=problems(404))
async def get_report(services: Services, _: Viewer, report: uuid.UUID) -> Any:
    """Show a report with what it is about and what happened to it."""
    return await services.reports.read(report, None)


@router.patch("/reports/{report}", response_model=ReportDetail, responses=problems(404, 409, 429))
async def patch_report(services: Services, key: Admin, report: uuid.UUID, change: ReportChange) -> Any:
    """Change a report's status or severity; it fails when somebody changed it since `version`."""
    patch = ReportPatch(version=change.version, status=change.status, severity=change.severity, comment=change.comment)
    return await services.reports.change(report, patch, author=signature(key))


@router.post("/reports/{report}/comments", response_model=ReportDetail, status_code=201, responses=problems(404, 429))
async def post_comment(services: Services, key: Admin, report: uuid.UUID, comment: Comment) -> Any:
    """Comment on a report."""
    return await services.reports.comment(report, CommentPost(comment=comment.comment), author=signature(key))
