"""The applied configuration: its history, what applying a file would change, and applying it in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec
from psycopg.rows import dict_row

from headway.config.changes import Change, compare
from headway.config.load import ConfigurationFile
from headway.config.spec import Specification, decode_specification
from headway.errors import ConfigurationError, ConflictError, NotFoundError
from headway.storage import applications, audit, rollouts, routing
from headway.storage.applications import Application, Release
from headway.storage.database import Connection
from headway.storage.rollouts import Rollout, Step

_APPLY_LOCK = 0x6865_6164_7761_7B

ReleaseAction = Literal["live", "stable", "candidate", "running"]


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
            ``running``: it is being rolled out. ``candidate``: it waits; traffic stays where it is.
        next_step: What an operator does next, or empty.
    """

    application: str
    release: str
    new: bool
    action: ReleaseAction
    next_step: str = ""


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
        return not self.changes and not self.text_only


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


async def plan(connection: Connection, file: ConfigurationFile) -> Plan:
    """Work out what applying the file would change; writes nothing.

    Raises:
        ConfigurationError: The file is sound by itself but does not fit what is applied.
    """
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
    return Plan(
        base=0 if entry is None else entry.number,
        changes=() if same else compare(before, specification) or (Change("changed", "built-in metrics"),),
        releases=tuple(
            _plan_release(name, specification, known.get(name), releases.get(name, []), running.get(name))
            for name in specification.applications
        ),
        text_only=same and entry is not None and entry.source != file.source,
    )


async def apply(connection: Connection, file: ConfigurationFile, *, author: str, base: int | None = None) -> Applied:
    """Apply a file: history, applications, releases and a new snapshot, all or nothing.

    Applying is serialised. A file that is applied already changes nothing. Run it in a transaction of its own.

    Args:
        connection: Of the transaction.
        file: The file.
        author: Who applies it.
        base: Number of the entry that the author saw the plan against; None to apply whatever came meanwhile.

    Raises:
        ConfigurationError: The file is sound by itself but does not fit what is applied.
        ConflictError: Somebody else has applied another configuration since ``base``.
    """
    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_APPLY_LOCK,))
    planned = await plan(connection, file)
    if base is not None and planned.base != base:
        message = "somebody else has applied a configuration meanwhile (`headway history`); look at the plan again"
        raise ConflictError(message)
    if planned.is_empty:
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
                f" end that first: `headway share {name} {rollout.candidate}` with 0% or 100%"
            )
    if misfits:
        raise ConfigurationError("\n".join(misfits))


def _plan_release(
    name: str,
    specification: Specification,
    application: Application | None,
    releases: list[Release],
    rollout: Rollout | None,
) -> ReleasePlan:
    wanted = specification.applications[name].release
    content_hash = wanted.bundle.content_hash()
    found = next((release for release in releases if release.content_hash == content_hash), None)
    label = wanted.name if found is None else found.name
    if application is None or application.stable_release is None:
        return ReleasePlan(name, label, new=True, action="live")
    if found is not None and found.number == application.stable_release:
        return ReleasePlan(name, label, new=False, action="stable")
    if rollout is None:
        step = f"headway share {name} {label} 10%"
    elif rollout.candidate == label:
        return ReleasePlan(name, label, new=False, action="running")
    else:
        step = f"headway share {name} {rollout.candidate} 0% (or 100%), then headway share {name} {label} 10%"
    return ReleasePlan(name, label, new=found is None, action="candidate", next_step=step)
