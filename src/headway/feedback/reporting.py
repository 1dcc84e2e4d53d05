"""Takes reports and leads each to its end: open, triaged, resolved or rejected."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

import msgspec

from headway.clock import Clock, utc
from headway.domain.feedback import (
    LINKED_INTERACTIONS,
    TEXT_BYTES,
    LinkedInteraction,
    Report,
    ReportStatus,
    Severity,
)
from headway.domain.snapshot import ApplicationRoute, KeyRoute, Snapshot
from headway.errors import InvalidRequestError
from headway.feedback.keeping import Keeper, Kept
from headway.feedback.targets import application_by_name, read_interaction, same_application
from headway.feedback.texts import checked_text, required_text
from headway.ids import InteractionId, uuid7
from headway.storage import reports as storage
from headway.storage.database import Database
from headway.storage.paging import Page, read_page

TITLE_BYTES = 200
_IDEMPOTENCY_KEY_BYTES = 255


class ReportPost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``POST /v1/reports`` takes.

    Attributes:
        title: One line.
        description: The rest.
        severity: How bad it is.
        interaction_ids: Ids of the answers that it is about; all of one application.
        application: The application that it is about; by default that of the interactions.
    """

    title: str
    description: str = ""
    severity: Severity = "medium"
    interaction_ids: list[str] = []
    application: str | None = None


class ReportPatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``PATCH /v1/reports/{id}`` takes.

    Attributes:
        version: The version that the change is made to; it fails when somebody was faster.
        status: New status.
        severity: New severity.
        comment: Why.
    """

    version: int
    status: ReportStatus | None = None
    severity: Severity | None = None
    comment: str | None = None


class CommentPost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``POST /v1/reports/{id}/comments`` takes."""

    comment: str


class ReportIntake:
    """Takes reports of API keys with scope ``feedback``."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock

    async def accept(
        self, snapshot: Snapshot, key: KeyRoute, post: ReportPost, idempotency_key: str | None = None
    ) -> Kept:
        """Check a report and keep it.

        Args:
            snapshot: Applications and signing keys.
            key: The caller's API key, its scope checked.
            post: What it says.
            idempotency_key: The same one again, from the same API key, is the same report.

        Raises:
            InvalidRequestError: Something in it is wrong.
            PermissionDeniedError: The key may not use the application.
            NotFoundError: There is no such application.
            ExpiredError: One of the interactions is past retention.
        """
        now = self._clock.unix_ms()
        found = self._interactions(snapshot, key, post)
        application = found[0][2] if found else None
        if application is None and post.application is not None:
            application = application_by_name(snapshot, post.application, key)
        report = Report(
            id=uuid7(now) if idempotency_key is None else _repeatable_id(key, idempotency_key),
            unix_ms=now,
            application=None if application is None else application.number,
            title=required_text("title", post.title, TITLE_BYTES),
            description=checked_text("description", post.description, TEXT_BYTES) or "",
            severity=post.severity,
            author=f"key:{key.number}",
            key=key.number,
            interactions=tuple(
                LinkedInteraction(
                    interaction_id=text,
                    uuid=interaction.uuid,
                    release=interaction.release,
                    exposed_unix_ms=interaction.unix_ms,
                    rollout=interaction.rollout,
                    stage=interaction.stage,
                    arm=interaction.arm,
                    kind=interaction.kind,
                    unit=interaction.unit,
                )
                for text, interaction, _ in found
            ),
        )
        return await self._keeper.keep(report)

    def _interactions(
        self, snapshot: Snapshot, key: KeyRoute, post: ReportPost
    ) -> list[tuple[str, InteractionId, ApplicationRoute]]:
        if len(post.interaction_ids) > LINKED_INTERACTIONS:
            message = f"a report names at most {LINKED_INTERACTIONS} interactions"
            raise InvalidRequestError(message, param="interaction_ids")
        now = self._clock.unix_ms()
        found: dict[bytes, tuple[str, InteractionId, ApplicationRoute]] = {}
        for text in post.interaction_ids:
            interaction, application = read_interaction(snapshot, text, key, now)
            same_application(post.application, application)
            found.setdefault(interaction.uuid, (text, interaction, application))
        if len({application.number for _, _, application in found.values()}) > 1:
            message = "the interactions belong to several applications: make one report for each"
            raise InvalidRequestError(message, param="interaction_ids")
        return list(found.values())


class ReportDesk:
    """Shows reports and leads them to their end."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def read_page(
        self, key: KeyRoute, *, status: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page:
        """List the key's reports, newest first.

        Raises:
            InvalidRequestError: The limit or the cursor is wrong.
            StorageError: The database is away.
        """
        conditions = storage.conditions(key=key.number, status=status)
        async with self._database.connection() as connection:
            return await read_page(connection, storage.LISTING, conditions, limit=limit, cursor=cursor)

    async def read(self, report: uuid.UUID, key: KeyRoute | None) -> dict[str, Any]:
        """Read a report with its interactions and events; with a key only if it is that key's own.

        Raises:
            NotFoundError: There is none.
            StorageError: The database is away.
        """
        async with self._database.connection() as connection:
            return await storage.read(connection, report, key=None if key is None else key.number)

    async def change(
        self, report: uuid.UUID, patch: ReportPatch, *, author: str, key: KeyRoute | None = None
    ) -> dict[str, Any]:
        """Change a report's status or severity; with a key only if it is that key's own.

        Returns:
            The report as it is then.

        Raises:
            NotFoundError: There is none.
            ConflictError: Somebody was faster, or it cannot go to that status.
            StorageError: The database is away.
        """
        return await self._apply(
            storage.Change(
                id=report,
                author=author,
                at=utc(self._clock.unix_ms()),
                version=patch.version,
                status=patch.status,
                severity=patch.severity,
                comment=checked_text("comment", patch.comment, TEXT_BYTES),
                key=None if key is None else key.number,
            )
        )

    async def comment(
        self, report: uuid.UUID, post: CommentPost, *, author: str, key: KeyRoute | None = None
    ) -> dict[str, Any]:
        """Comment on a report; with a key only if it is that key's own.

        Returns:
            The report as it is then.

        Raises:
            NotFoundError: There is none.
            StorageError: The database is away; nothing was kept.
        """
        return await self._apply(
            storage.Change(
                id=report,
                author=author,
                at=utc(self._clock.unix_ms()),
                comment=required_text("comment", post.comment, TEXT_BYTES),
                key=None if key is None else key.number,
            )
        )

    async def _apply(self, change: storage.Change) -> dict[str, Any]:
        async with self._database.connection() as connection:
            await storage.change(connection, change)
            return await storage.read(connection, change.id)


def _repeatable_id(key: KeyRoute, idempotency_key: str) -> bytes:
    """Make the same 16 bytes (UUIDv8) of the same key and idempotency key."""
    given = required_text("idempotency-key", idempotency_key, _IDEMPOTENCY_KEY_BYTES)
    digest = bytearray(hashlib.blake2b(f"{key.number}\x00{given}".encode(), digest_size=16).digest())
    digest[6] = 0x80 | (digest[6] & 0x0F)
    digest[8] = 0x80 | (digest[8] & 0x3F)
    return bytes(digest)
