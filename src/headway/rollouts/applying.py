"""Applying a configuration with all that follows from it: rollouts begin where releases change under a policy."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headway.config.load import ConfigurationFile
from headway.domain.difference import Difference
from headway.errors import ConflictError
from headway.rollouts.forecasting import Forecast
from headway.rollouts.operations import take
from headway.rollouts.starting import Preparation, explain_refusal, open_rollout, prepare
from headway.storage import applications, configuration, rollouts, routing
from headway.storage.configuration import Applied, Plan
from headway.storage.database import Connection
from headway.storage.rollouts import Rollout


class RolloutPlan(msgspec.Struct, frozen=True):
    """A rollout that applying the file would start.

    Attributes:
        application: Of which application.
        stable: From which release.
        candidate: To which.
        policy: Under which policy.
        forecast: What can be foretold of it.
        difference: By which parts the two releases differ.
        refusal: Why it is not started, whatever is accepted; or empty.
    """

    application: str
    stable: str
    candidate: str
    policy: str
    forecast: Forecast
    difference: Difference
    refusal: str = ""


class FilePlan(msgspec.Struct, frozen=True):
    """What applying a file means.

    Attributes:
        configuration: What changes.
        rollouts: Which rollouts begin.
    """

    configuration: Plan
    rollouts: tuple[RolloutPlan, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether applying the file would do nothing at all."""
        return self.configuration.is_empty

    def obstacles(self, *, accept: bool) -> list[str]:
        """List why the file is not applied; empty when it is.

        Args:
            accept: Rollouts that cannot finish are started all the same.
        """
        refused = [f"{each.application}: {each.refusal}" for each in self.configuration.releases if each.refusal]
        refused += [f"{each.application}: {each.refusal}" for each in self.rollouts if each.refusal]
        unfinished = [each for each in self.rollouts if each.forecast.problems and not accept]
        return [*refused, *(explain_refusal(each.application, each.forecast) for each in unfinished)]


@dataclass(frozen=True)
class AppliedFile:
    """What applying a file did: the configuration, the rollouts that have begun, and the newest snapshot."""

    configuration: Applied
    rollouts: tuple[Rollout, ...]
    snapshot: int


async def plan(connection: Connection, file: ConfigurationFile, now_ms: int, *, retry: bool = False) -> FilePlan:
    """Work out what applying the file would change, and foretell the rollouts that it would start; writes nothing.

    Args:
        connection: Reads only.
        file: The file.
        now_ms: Unix milliseconds.
        retry: Start releases again that were rolled back.

    Raises:
        ConfigurationError: The file is sound by itself but does not fit what is applied.
    """
    planned, _ = await _plan(connection, await configuration.resolve(connection, file), now_ms, retry=retry)
    return planned


async def apply(
    connection: Connection,
    file: ConfigurationFile,
    *,
    author: str,
    now_ms: int,
    base: int | None = None,
    accept: bool = False,
    retry: bool = False,
    reason: str = "",
) -> AppliedFile:
    """Apply a file and start the rollouts that follow from it, all or nothing. Run it in a transaction of its own.

    Args:
        connection: Of the transaction.
        file: The file.
        author: Who applies it.
        now_ms: Unix milliseconds.
        base: Number of the entry that the author saw the plan against; None to apply whatever came meanwhile.
        accept: Start rollouts that cannot finish within their policy's longest duration.
        retry: Start releases again that were rolled back.
        reason: Why, for the rollouts that begin.

    Raises:
        ConfigurationError: The file is sound by itself but does not fit what is applied.
        ConflictError: Somebody else has applied another configuration since ``base``, or a rollout cannot start.
    """
    await configuration.lock(connection)
    file = await configuration.resolve(connection, file, lock=True)
    planned, preparations = await _plan(connection, file, now_ms, retry=retry)
    obstacles = planned.obstacles(accept=accept)
    if obstacles:
        raise ConflictError("\n".join(obstacles))
    await _end_retired(connection, file, author=author, now_ms=now_ms)
    applied = await configuration.apply(connection, file, author=author, base=base)
    started = []
    for each in planned.rollouts:
        application = await applications.find_application(connection, each.application, lock=True)
        candidate = await applications.find_release(connection, each.application, each.candidate)
        prepared = preparations[each.application]
        started.append(
            await open_rollout(
                connection, application, candidate, prepared, author=author, reason=reason, now_ms=now_ms
            )
        )
    snapshot = await routing.publish(connection) if started else applied.snapshot
    return AppliedFile(applied, tuple(started), snapshot)


async def _plan(
    connection: Connection, file: ConfigurationFile, now_ms: int, *, retry: bool
) -> tuple[FilePlan, dict[str, Preparation]]:
    planned = await configuration.plan(connection, file, retry=retry)
    known = {each.name: each for each in await applications.list_applications(connection)}
    names = {each.number: each.name for each in await applications.list_releases(connection)}
    preparations: dict[str, Preparation] = {}
    starts = []
    for release in planned.releases:
        if release.action != "rollout":
            continue
        application, wanted = known[release.application], file.specification.applications[release.application]
        policy = file.specification.policies[wanted.policy]
        prepared = await prepare(connection, application, wanted.release.bundle, wanted, policy, now_ms)
        preparations[release.application] = prepared
        stable = names[application.stable_release or 0]
        starts.append(
            RolloutPlan(
                release.application,
                stable,
                release.release,
                policy.name,
                prepared.forecast,
                prepared.terms.difference,
                prepared.refusal,
            )
        )
    return FilePlan(planned, tuple(starts)), preparations


async def _end_retired(connection: Connection, file: ConfigurationFile, *, author: str, now_ms: int) -> None:
    """Roll back what is being rolled out of applications that the file does not have any more."""
    for rollout in await rollouts.list_rollouts(connection, active=True):
        if rollout.terms is not None and rollout.application not in file.specification.applications:
            reason = "the application was taken out of the configuration"
            await take(connection, rollout.number, "rollback", author=author, reason=reason, now_ms=now_ms)
