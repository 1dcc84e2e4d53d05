"""What the control plane shows of search indexes, and takes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from headway.api.queries import PageQuery, Word
from headway.api.resources import Resource, Wish
from headway.api.structures import Mirrored
from headway.domain.knowledge import IndexState
from headway.storage import builds

Progress = Annotated[builds.Progress, Mirrored()]
DocumentState = Literal["listed", "loaded", "skipped"]
VersionNumber = Annotated[int, Field(ge=1, le=2**31 - 1, description="Number of a version: 3 of `handbook@3`.")]
_REASON = r"^[^\x00]*$"


class IndexVersion(Resource):
    """A version of a search index; once published it never changes."""

    index: str = Field(description="Name of the index.")
    number: int = Field(description="Its number in the index.")
    label: str = Field(description="What a release names: `handbook@3`.")
    state: IndexState = Field(description="Where it stands.")
    stage: builds.Stage = Field(description="The step that its build is at, or was when it ended.")
    progress: Progress = Field(description="How far its build is, or was.")
    problem: str | None = Field(description="Why it failed, or waits.")
    spec: dict[str, Any] = Field(description="What it is built by, frozen; it holds references to secrets, no secrets.")
    manifest: dict[str, Any] | None = Field(description="What it consists of; null until it is published.")
    manifest_hash: str | None = Field(description="Equal for equal content; null until it is published.")
    created_at: datetime = Field(description="When its build began.")
    created_by: str = Field(description="Who wanted it.")
    ended_at: datetime | None = Field(description="When its build ended.")
    used_by: list[str] = Field(description="Releases in use that name it, as `application: release`.")


class Index(Resource):
    """A search index: what its next version is built by, and its newest versions."""

    name: str = Field(description="Its name.")
    spec: dict[str, Any] | None = Field(description="As the applied file has it; null where it has it no more.")
    latest: IndexVersion | None = Field(description="The latest published version.")
    building: IndexVersion | None = Field(description="The version that is being built.")


class IndexList(Resource):
    """All indexes, by name."""

    object: Literal["list"] = "list"
    items: list[Index]


class IndexDocument(Resource):
    """A document of an index version."""

    path: str = Field(description="Where it is, from the lake's root.")
    state: DocumentState = Field(description="`listed`: to be loaded. `skipped`: left out.")
    problem: str | None = Field(description="Why it was left out.")
    title: str = Field(description="Its title.")
    content_hash: str = Field(description="SHA-256 of its bytes; empty until it was read.")
    size_bytes: int = Field(description="Its size.")
    modified: str = Field(description="ISO 8601, UTC; empty where the lake does not tell.")
    metadata: dict[str, Any] = Field(description="Front matter and the like; empty for who may not read the document.")
    groups: list[str] = Field(description="Who may see it; empty for everybody.")
    chunks: int = Field(description="Chunks that it was cut into.")


class DocumentChange(Resource):
    """A document that differs between two versions."""

    change: Literal["added", "changed", "removed"] = Field(description="What became of it.")
    path: str = Field(description="Where it is, from the lake's root.")
    title: str = Field(description="Its title.")


class IndexDiff(Resource):
    """What differs between two versions, document by document, in the order of their paths."""

    before: str = Field(description="The one version.")
    after: str = Field(description="The other.")
    added: int = Field(description="Documents that only the other has.")
    changed: int = Field(description="Documents with other content, or other groups.")
    removed: int = Field(description="Documents that only the one has.")
    items: list[DocumentChange] = Field(description="Some of them.")
    next: str | None = Field(description="The `cursor` of the next page; null on the last.")


class VersionQuery(PageQuery):
    """Which versions."""

    index: Word = None
    state: IndexState | None = None


class DocumentQuery(PageQuery):
    """Which documents."""

    state: DocumentState | None = None


class DiffQuery(PageQuery):
    """Which versions to compare."""

    before: VersionNumber
    after: VersionNumber


class ReasonWish(Wish):
    """Why."""

    reason: str = Field(default="", max_length=2000, pattern=_REASON, description="Why; kept in the audit log.")
