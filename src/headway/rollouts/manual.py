"""The policy `manual`: an operator sets the candidate's share."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace

from headway.config.quantities import format_share
from headway.errors import ConflictError, InvalidRequestError
from headway.storage import audit, routing
from headway.storage.applications import Application, Release, find_application, find_release
from headway.storage.database import Connection
from headway.storage.rollouts import Rollout, Step, active_rollout, move, open_manual
from headway.storage.versions import require_published

_SALT_BYTES = 16


@dataclass(frozen=True)
class ShareChange:
    """What setting a share did.

    Attributes:
        rollout: The rollout as it is now.
        before: The candidate's share before, 0 to 1.
        opened: A rollout began.
        changed: False when the candidate had this share already.
        snapshot: Number of the snapshot that carries it; 0 when nothing changed.
    """

    rollout: Rollout
    before: float
    opened: bool
    changed: bool
    snapshot: int


async def set_share(
    connection: Connection, application: str, release: str, share: float, *, author: str, reason: str = ""
) -> ShareChange:
    """Give a release a share of the application's units.

    Without a running rollout this begins one from the stable release; 1 promotes the release, 0 takes it back. Units
    that had the candidate keep it as its share grows. Run it in a transaction of its own.

    Args:
        connection: Of the transaction.
        application: Name of the application.
        release: Name of the release.
        share: 0 to 1.
        author: Who.
        reason: Why.

    Raises:
        NotFoundError: No such application or release.
        ConflictError: Another candidate is being rolled out, or a policy sets the share, or the release is the stable
            one.
        InvalidRequestError: The share is not from 0 to 1.
    """
    if not 0 <= share <= 1 or math.isnan(share):
        raise InvalidRequestError(f"a share is a number from 0 to 1, not {share}", param="share")
    target = await find_application(connection, application, lock=True)
    candidate = await find_release(connection, application, release)
    rollout = await active_rollout(connection, application)
    _refuse_staged(rollout)
    _refuse_stable(target, candidate, rollout)
    step = Step(share, author, reason)
    if rollout is None:
        change = await _begin(connection, target, candidate, step)
    elif rollout.candidate != release:
        raise ConflictError(
            f"{application} is being rolled out to {rollout.candidate}, at {format_share(rollout.share)}; end that"
            f" first: `headway share {application} {rollout.candidate}` with 0% or 100%"
        )
    elif rollout.share == share:
        return ShareChange(rollout, before=share, opened=False, changed=False, snapshot=0)
    else:
        moved = await _move(connection, rollout, step)
        change = ShareChange(moved, before=rollout.share, opened=False, changed=True, snapshot=0)
    await audit.record(
        connection,
        author=author,
        action="share.set",
        subject=f"application {application}",
        reason=reason or None,
        detail={"release": release, "from": change.before, "to": share, "rollout": change.rollout.number},
    )
    number = await routing.publish(connection)
    return replace(change, snapshot=number)


def _refuse_staged(rollout: Rollout | None) -> None:
    if rollout is None or rollout.terms is None:
        return
    raise ConflictError(
        f"{rollout.application} is being rolled out to {rollout.candidate} under the policy {rollout.policy}, which"
        f" sets the share; `headway rollout show {rollout.application}` says where it stands, and `headway rollout"
        " advance`, `promote` or `rollback` overrule the policy"
    )


def _refuse_stable(application: Application, release: Release, rollout: Rollout | None) -> None:
    if release.number != application.stable_release:
        return
    if rollout is None:
        raise ConflictError(f"{release.name} is the stable release of {application.name} and has all its traffic")
    raise ConflictError(
        f"{release.name} is the stable release of {application.name}; set the share of the candidate:"
        f" `headway share {application.name} {rollout.candidate}` (0% takes it back)"
    )


async def _begin(connection: Connection, application: Application, candidate: Release, step: Step) -> ShareChange:
    if step.share == 0:
        raise ConflictError(f"{candidate.name} has no share of {application.name}; there is nothing to take back")
    await require_published(connection, candidate.bundle)
    rollout = await open_manual(connection, application, candidate, step, secrets.token_bytes(_SALT_BYTES))
    if step.share == 1:
        rollout = await move(connection, rollout, step, "promoted")
    return ShareChange(rollout, before=0.0, opened=True, changed=True, snapshot=0)


async def _move(connection: Connection, rollout: Rollout, step: Step) -> Rollout:
    if step.share == 1:
        return await move(connection, rollout, step, "promoted")
    return await move(connection, rollout, step, "rolled_back" if step.share == 0 else None)
