"""The applied configuration: its history, what applying a file would change, and applying it in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from datetime import datetime
from typing import Any, Literal, LiteralString

import msgspec
from msgspec.structs import replace
from psycopg.rows import dict_row

from headway.config.changes import Change, compare
from headway.config.document import nearest
from headway.config.indexes import LATEST
from headway.config.load import ConfigurationFile
from headway.config.spec import MANUAL, Specification, decode_specification
from headway.domain.display import describe_state, format_share
from headway.domain.release import Retrieval
from headway.errors import ConfigurationError, ConflictError, NotFoundError
from headway.storage import applications, audit, rollouts, routing
from headway.storage.applications import Application, Release
from headway.storage.database import Connection
from headway.storage.rollouts import Rollout, Step

_APPLY_LOCK = 0x6865_6164_7761_7B

ReleaseAction = Literal["live", "stable", "candidate", "running", "rollout"]


@dataclass(frozen=True)
class Entry:
    """One applied configuration: the file as it stood, who applied it and when. It holds references, no secrets."""

    number: int
    applied_at: datetime
    applied_by: str
    hash: str
    source: str
    specification: Specification


class ReleasePlan(msgspec.Struct, frozen=True):
    """What applying the file means for one application's release.

    Attributes:
        application: Which application.
        release: Name of the release that the file describes.
        new: Whether it has yet to be created.
        action: ``live``: the application's first, it gets all traffic at once. ``stable``: it has the traffic already.
            ``running``: it is being rolled out. ``rollout``: its rollout begins. ``candidate``: it waits; traffic stays
            where it is.
        next_step: What an operator does next, or empty.
        note: What else to know, or empty.
        refusal: Why the file is not applied as it is, or empty.
    """

    application: str
    release: str
    new: bool
    action: ReleaseAction
    next_step: str = ""
    note: str = ""
    refusal: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What applying a file changes, compared with what is applied.

    Attributes:
        base: Number of the history entry it was compared with; 0 for none.
        changes: Differences in deployments, metrics and applications.
        releases: One per application of the file.
        text_only: The file reads differently but means the same.
    """

    base: int
    changes: tuple[Change, ...]
    releases: tuple[ReleasePlan, ...]
    text_only: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether applying the file would do nothing at all."""
        return not self.is_new and all(release.action != "rollout" for release in self.releases)

    @property
    def is_new(self) -> bool:
        """Whether the file is not the one that is applied."""
        return bool(self.changes) or self.text_only


@dataclass(frozen=True)
class Applied:
    """What applying a file did; ``entry`` and ``snapshot`` are the new numbers, 0 where there is no new one."""

    plan: Plan
    entry: int
    snapshot: int


async def current(connection: Connection) -> Entry | None:
    """Read what is applied; None before the first time."""
    found = await history(connection, limit=1)
    return found[0] if found else None


async def history(connection: Connection, *, limit: int = 100) -> list[Entry]:
    """List what has been applied, newest first."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id AS number, applied_at, applied_by, hash, source, spec FROM configuration"
            " ORDER BY id DESC LIMIT %s",
            (limit,),
        )
        return [_entry(row) for row in await cursor.fetchall()]


async def find(connection: Connection, number: int) -> Entry:
    """Find an entry of the history.

    Raises:
        NotFoundError: There is none of that number.
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id AS number, applied_at, applied_by, hash, source, spec FROM configuration WHERE id = %s",
            (number,),
        )
        row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"there is no applied configuration {number}; `headway history` lists them")
    return _entry(row)


async def resolve(connection: Connection, file: ConfigurationFile, *, lock: bool = False) -> ConfigurationFile:
    """Say of each release of a file which index version it means: one that it names, else the latest published one.

    Args:
        connection: Reads only.
        file: The file; what is resolved already stays so.
        lock: Keep these versions from being dropped until the transaction ends.

    Raises:
        ConfigurationError: There is no such version, or it is not published.
    """
    specification = file.specification
    published = await _published_versions(connection, lock=lock)
    resolved, misfits = {}, []
    for name, spec in specification.applications.items():
        retrieval = spec.release.bundle.retrieval
        if retrieval is None:
            continue
        numbers = published.get(retrieval.index, [])
        wanted = retrieval.version if retrieval.version != LATEST else max(numbers, default=LATEST)
        if wanted not in numbers:
            misfits.append(f"applications.{name}.release.index: {_unpublished(retrieval, numbers)}")
            continue
        bundle = replace(spec.release.bundle, retrieval=replace(retrieval, version=wanted))
        resolved[name] = replace(spec, release=spec.release.holding(bundle))
    if misfits:
        raise ConfigurationError("\n".join(misfits))
    if not resolved:
        return file
    applications = specification.applications | resolved
    return replace_fields(file, specification=replace(specification, applications=applications))


async def _published_versions(connection: Connection, *, lock: bool) -> dict[str, list[int]]:
    query: LiteralString = (
        "SELECT i.name, v.number FROM index_version v JOIN search_index i ON i.id = v.index_id"
        " WHERE v.state = 'published' ORDER BY v.id"
    )
    found: dict[str, list[int]] = {}
    cursor = await connection.execute(query + " FOR SHARE OF v" if lock else query)
    async for name, number in cursor:
        found.setdefault(name, []).append(number)
    return found


def _unpublished(retrieval: Retrieval, numbers: list[int]) -> str:
    build = f"`headway index build {retrieval.index}` makes one"
    if not numbers:
        return f"the index {retrieval.index} has no published version; {build}"
    known = nearest("", [f"{retrieval.index}@{number}" for number in numbers])
    return f"{retrieval.label} is not published{known}; {build}"


async def plan(connection: Connection, file: ConfigurationFile, *, retry: bool = False) -> Plan:
    """Work out what applying the file would change; writes nothing.

    Args:
        connection: Reads only.
        file: The file.
        retry: Start releases again that were rolled back.

    Raises:
        ConfigurationError: The file is sound by itself but does not fit what is applied.
    """
    file = await resolve(connection, file)
    entry = await current(connection)
    known = {application.name: application for application in await applications.list_applications(connection)}
    releases: dict[str, list[Release]] = {}
    for release in await applications.list_releases(connection):
        releases.setdefault(release.application, []).append(release)
    running = {rollout.application: rollout for rollout in await rollouts.list_rollouts(connection, active=True)}
    specification = file.specification
    _refuse_misfits(specification, known, releases, running)
    same = entry is not None and entry.hash == specification.content_hash()
    before = None if entry is None else entry.specification
    plans = []
    for name in specification.applications:
        target = _Target(name, specification, before, known.get(name), releases.get(name, []), running.get(name))
        stopped = await find_stopped(connection, name, target.label) if target.may_start else None
        plans.append(target.plan(None if retry else stopped))
    return Plan(
        base=0 if entry is None else entry.number,
        changes=() if same else compare(before, specification) or (Change("changed", "built-in metrics"),),
        releases=tuple(plans),
        text_only=same and entry is not None and entry.source != file.source,
    )


async def find_stopped(connection: Connection, application: str, release: str) -> Rollout | None:
    """Find the newest rollout of a release that has ended, unless it was promoted then."""
    for rollout in await rollouts.list_rollouts(connection, application=application):
        if rollout.candidate == release and rollout.ended_at is not None:
            return None if rollout.state == "promoted" else rollout
    return None


async def lock(connection: Connection) -> None:
    """Take turns with all who apply a configuration, and let nobody change an application until the commit."""
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_APPLY_LOCK,))
    await connection.execute("SELECT 1 FROM application ORDER BY id FOR NO KEY UPDATE")


async def apply(connection: Connection, file: ConfigurationFile, *, author: str, base: int | None = None) -> Applied:
    """Apply a file: history, applications, releases and a new snapshot, all or nothing.

    Applying is serialised. A file that is applied already changes nothing. Run it in a transaction of its own. Rollouts
    are not started here: see ``headway.rollouts.applying``.

    Args:
        connection: Of the transaction.
        file: The file.
        author: Who applies it.
        base: Number of the entry that the author saw the plan against; None to apply whatever came meanwhile.

    Raises:
        ConfigurationError: The file is sound by itself but does not fit what is applied.
        ConflictError: Somebody else has applied another configuration since ``base``.
    """
    await lock(connection)
    file = await resolve(connection, file, lock=True)
    planned = await plan(connection, file)
    if base is not None and planned.base != base:
        message = "somebody else has applied a configuration meanwhile (`headway history`); look at the plan again"
        raise ConflictError(message)
    if not planned.is_new:
        return Applied(planned, entry=0, snapshot=0)
    specification = file.specification
    entry = await _record(connection, file, author)
    for name, spec in specification.applications.items():
        number = await applications.save_application(connection, name, spec)
        serving = [specification.deployments[deployment] for deployment, _ in spec.release.bundle.deployments]
        await applications.save_release(connection, number, spec.release, serving, author=author)
    for application in await applications.list_applications(connection, retired=False):
        if application.name not in specification.applications:
            await _retire(connection, application, author)
    await audit.record(
        connection,
        author=author,
        action="configuration.apply",
        subject=f"configuration {entry}",
        detail=msgspec.to_builtins(planned),
    )
    return Applied(planned, entry, await routing.publish(connection))


async def _record(connection: Connection, file: ConfigurationFile, author: str) -> int:
    cursor = await connection.execute(
        "INSERT INTO configuration (applied_at, applied_by, source, spec, hash)"
        " VALUES (clock_timestamp(), %s, %s, %s, %s) RETURNING id",
        (author, file.source, file.specification.encode().decode(), file.specification.content_hash()),
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def _retire(connection: Connection, application: Application, author: str) -> None:
    """Take an application out of service; its rollout ends, so that it does not go on when the application returns."""
    rollout = await rollouts.active_rollout(connection, application.name)
    if rollout is not None:
        step = Step(0.0, author, "the application was taken out of the configuration")
        await rollouts.move(connection, rollout, step, "rolled_back")
    await applications.retire_application(connection, application.name)


def _entry(row: dict[str, Any]) -> Entry:
    specification = decode_specification(row.pop("spec"))
    return Entry(**row, specification=specification)


def _refuse_misfits(
    specification: Specification,
    known: Mapping[str, Application],
    releases: Mapping[str, list[Release]],
    running: Mapping[str, Rollout],
) -> None:
    """Refuse what would change a release, or move units that a rollout has assigned."""
    misfits = []
    for name, spec in specification.applications.items():
        wanted = spec.release.bundle.content_hash()
        taken = {release.name: release.content_hash for release in releases.get(name, [])}
        if taken.get(spec.release.name, wanted) != wanted:
            misfits.append(
                f"applications.{name}.release.name: the release {spec.release.name!r} exists with other content, and"
                " releases never change; choose a new name, or remove the key to get one from the content"
            )
        rollout = running.get(name)
        if rollout is not None and known[name].unit != spec.unit:
            misfits.append(
                f"applications.{name}.unit: cannot change while {rollout.candidate} is being rolled out;"
                f" end that first: `{_take_back(rollout)}`"
            )
    if misfits:
        raise ConfigurationError("\n".join(misfits))


@dataclass(frozen=True)
class _Target:
    """One application of the file, beside what there is of it."""

    name: str
    specification: Specification
    before: Specification | None
    application: Application | None
    releases: list[Release]
    rollout: Rollout | None

    @property
    def found(self) -> Release | None:
        content_hash = self.specification.applications[self.name].release.bundle.content_hash()
        return next((release for release in self.releases if release.content_hash == content_hash), None)

    @property
    def label(self) -> str:
        return self.specification.applications[self.name].release.name if self.found is None else self.found.name

    @property
    def is_staged(self) -> bool:
        return self.specification.applications[self.name].policy != MANUAL

    @property
    def is_first(self) -> bool:
        return self.application is None or self.application.stable_release is None

    @property
    def is_stable(self) -> bool:
        found, application = self.found, self.application
        return found is not None and application is not None and found.number == application.stable_release

    @property
    def may_start(self) -> bool:
        """Whether the file asks for a rollout, and nothing stands in its way."""
        return self.is_staged and self.rollout is None and not self.is_first and not self.is_stable

    @property
    def is_wished_anew(self) -> bool:
        """Whether it is this file that asks for the rollout, and not the applied one already."""
        old = None if self.before is None else self.before.applications.get(self.name)
        return old is None or old.release != self.specification.applications[self.name].release or old.policy == MANUAL

    def plan(self, stopped: Rollout | None) -> ReleasePlan:
        """Say what becomes of the release; ``stopped`` is its last rollout, if it is not to be tried again."""
        release = ReleasePlan(self.name, self.label, new=self.found is None, action="candidate", note=self._note())
        if self.is_first:
            return replace(release, new=True, action="live")
        if self.is_stable:
            return replace(release, action="stable")
        if self.rollout is not None:
            return self._beside(release, self.rollout)
        if not self.is_staged:
            return replace(release, next_step=f"headway share {self.name} {self.label} 10%")
        if stopped is None:
            return replace(release, action="rollout")
        ended = f"{self.label} was stopped before ({describe_state(stopped.state)}, rollout {stopped.number})"
        if not self.is_wished_anew:
            return replace(release, next_step="headway apply --retry", note=ended)
        return replace(
            release, refusal=f"{ended}; --retry starts it again, with new evidence and a new chance of either error"
        )

    def _beside(self, release: ReleasePlan, rollout: Rollout) -> ReleasePlan:
        """Plan beside a rollout that is running."""
        if rollout.candidate == self.label:
            return replace(release, action="running")
        back = _take_back(rollout)
        if not self.is_staged:
            end = f"{back} (or 100%)" if rollout.terms is None else back
            return replace(release, next_step=f"{end}, then headway share {self.name} {self.label} 10%")
        if not self.is_wished_anew:
            return replace(release, next_step=f"{back}, then headway apply")
        refusal = (
            f"{rollout.candidate} is being rolled out (rollout {rollout.number}, at {format_share(rollout.share)}), and"
            f" an application has one rollout at a time; end it first: `{back}`"
        )
        return replace(release, refusal=refusal)

    def _note(self) -> str:
        """Say what a running rollout takes no notice of."""
        rollout = self.rollout
        if rollout is None:
            return ""
        if self.is_stable:
            return f"{rollout.candidate} is still being rolled out; to take it back: `{_take_back(rollout)}`"
        wanted = self.specification.policies.get(self.specification.applications[self.name].policy)
        frozen = None if rollout.terms is None else rollout.terms.policy
        if wanted == frozen:
            return ""
        return f"the running rollout keeps the policy it was started under ({rollout.policy})"


def _take_back(rollout: Rollout) -> str:
    if rollout.terms is None:
        return f"headway share {rollout.application} {rollout.candidate} 0%"
    return f"headway rollout rollback {rollout.application}"
