"""What people ask of a rollout: pause, resume, approve, advance, promote, roll back."""

from __future__ import annotations

from dataclasses import dataclass

from headway.domain.rollout import Command, obey
from headway.errors import ConflictError
from headway.storage import audit, decisions, routing
from headway.storage.database import Connection
from headway.storage.decisions import Circumstances
from headway.storage.rollouts import Rollout, RolloutDecision, find_rollout, list_decisions


@dataclass(frozen=True)
class Taken:
    """What a person's command did.

    Attributes:
        rollout: As it is now.
        decision: As it is in the log.
        snapshot: Number of the snapshot that carries it; 0 where traffic stays as it is.
    """

    rollout: Rollout
    decision: RolloutDecision
    snapshot: int


async def take(
    connection: Connection, number: int, command: Command, *, author: str, reason: str, now_ms: int
) -> Taken:
    """Do what a person asks of a rollout. Run it in a transaction of its own.

    Args:
        connection: Of the transaction.
        number: Number of the rollout.
        command: What is asked.
        author: Who asks.
        reason: Why.
        now_ms: Unix milliseconds.

    Raises:
        NotFoundError: There is no such rollout.
        ConflictError: It makes no sense in the rollout's state, or the rollout is manual; the message says what does.
    """
    rollout = await find_rollout(connection, number, lock=True)
    if rollout.terms is None or rollout.status is None:
        raise ConflictError(
            f"rollout {number} is manual: `headway share {rollout.application} {rollout.candidate}` sets its share, 0%"
            " takes it back and 100% promotes it"
        )
    decision = obey(rollout.terms, rollout.status, command, reason, now_ms)
    circumstances = Circumstances(author, now_ms, rollout.tick, command=command, words=reason)
    changed = await decisions.change(connection, rollout, decision, circumstances)
    await audit.record(
        connection,
        author=author,
        action=f"rollout.{command}",
        subject=f"rollout {number} of application {rollout.application}",
        reason=reason or None,
        detail={
            "candidate": rollout.candidate,
            "decision": changed.number,
            "from": {"state": rollout.state, "share": rollout.share},
            "to": {"state": changed.rollout.state, "share": changed.rollout.share},
        },
    )
    snapshot = await routing.publish(connection) if changed.routed else 0
    (logged,) = await list_decisions(connection, number, limit=1)
    return Taken(changed.rollout, logged, snapshot)
