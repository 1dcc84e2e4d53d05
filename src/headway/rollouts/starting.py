"""Starting rollouts under a policy: what they are decided by is frozen here, and the first stage entered."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from headway.config.spec import MANUAL, ApplicationSpec
from headway.domain.difference import explain_incomparable, find_difference
from headway.domain.display import describe_state, format_share
from headway.domain.policy import Policy
from headway.domain.recording import Terms, plan_recording
from headway.domain.release import Bundle
from headway.domain.rollout import begin
from headway.errors import ConflictError
from headway.rollouts.forecasting import Forecast, forecast
from headway.storage import audit, baselines, configuration, rollouts, routing
from headway.storage.applications import Application, Release, find_application, find_bundle, find_release
from headway.storage.database import Connection
from headway.storage.rollouts import Opening, Rollout
from headway.storage.versions import require_published

_SALT_BYTES = 16


@dataclass(frozen=True)
class Preparation:
    """What a rollout would be decided by, what can be foretold of it, and why it is not started, if it is not."""

    terms: Terms
    forecast: Forecast
    refusal: str


@dataclass(frozen=True)
class Started:
    """A rollout that has begun; ``snapshot`` is the number of the one that carries it."""

    rollout: Rollout
    forecast: Forecast
    snapshot: int


async def start(
    connection: Connection,
    application: str,
    release: str,
    *,
    author: str,
    reason: str,
    now_ms: int,
    accept: bool = False,
    retry: bool = False,
) -> Started:
    """Start the rollout of a release, under the policy that the applied configuration gives its application.

    The first stage is entered without evidence. Run it in a transaction of its own.

    Args:
        connection: Of the transaction.
        application: Name of the application.
        release: Name of the candidate.
        author: Who.
        reason: Why.
        now_ms: Unix milliseconds.
        accept: Start it although it cannot finish within the policy's longest duration.
        retry: Start it although it was rolled back before.

    Raises:
        NotFoundError: No such application or release.
        ConflictError: The release is stable already; a rollout is running; the policy is ``manual``; the release was
            rolled back before (code ``retry_needed``); the rollout cannot finish (code ``accept_needed``); the policy
            names metrics of retrieval, and one of the releases has no index.
    """
    target = await find_application(connection, application, lock=True)
    candidate = await find_release(connection, application, release)
    await _refuse_conflicts(connection, target, candidate)
    wanted, policy = await _find_policy(connection, target, candidate)
    stopped = None if retry else await configuration.find_stopped(connection, application, release)
    if stopped is not None:
        raise ConflictError(
            f"{release} was stopped before ({describe_state(stopped.state)}, rollout {stopped.number}); retry starts it"
            " again, with new evidence and a new chance of either error",
            code="retry_needed",
        )
    prepared = await prepare(connection, target, msgspec.convert(candidate.bundle, Bundle), wanted, policy, now_ms)
    if prepared.refusal:
        raise ConflictError(f"{application} cannot be rolled out to {release}: {prepared.refusal}")
    if prepared.forecast.problems and not accept:
        raise ConflictError(explain_refusal(application, prepared.forecast), code="accept_needed")
    rollout = await open_rollout(connection, target, candidate, prepared, author=author, reason=reason, now_ms=now_ms)
    return Started(rollout, prepared.forecast, await routing.publish(connection))


async def prepare(
    connection: Connection,
    application: Application,
    candidate: Bundle,
    wanted: ApplicationSpec,
    policy: Policy,
    now_ms: int,
) -> Preparation:
    """Measure the stable release, freeze the terms of a rollout that would begin now, and foretell it; writes nothing.

    Args:
        connection: Reads only.
        application: With a stable release.
        candidate: What it would be rolled out to.
        wanted: What the file says of it.
        policy: Its policy.
        now_ms: Unix milliseconds.
    """
    stable = application.stable_release
    assert stable is not None, "an application's first release is stable at once"
    feedback = {rule.metric: wanted.metrics[rule.metric] for rule in policy.rules if rule.metric in wanted.metrics}
    found = await baselines.survey(
        connection, application.number, stable, policy, feedback, wanted.unit, now_ms
    )  # fmt: skip
    recording = plan_recording(policy, found.baseline)
    bundle = await find_bundle(connection, stable)
    difference = find_difference(bundle, candidate)
    terms = Terms(policy, wanted.unit, feedback, found.baseline, recording, difference)
    return Preparation(terms, forecast(terms, found.traffic), explain_incomparable(policy, bundle, candidate))


async def open_rollout(
    connection: Connection,
    application: Application,
    candidate: Release,
    prepared: Preparation,
    *,
    author: str,
    reason: str,
    now_ms: int,
) -> Rollout:
    """Open a rollout that has been prepared in this transaction; the snapshot is the caller's.

    Raises:
        ConflictError: A rollout is running, the stable release has changed meanwhile, or the candidate's index version
            was dropped.
    """
    await require_published(connection, candidate.bundle)
    restarts = await rollouts.count_restarts(connection, candidate)
    status = begin(prepared.terms, now_ms)
    opening = Opening(prepared.terms, status, restarts, author, reason, now_ms)
    salt = secrets.token_bytes(_SALT_BYTES)
    rollout = await rollouts.open_staged(connection, application, candidate, opening, salt)
    await audit.record(
        connection,
        author=author,
        action="rollout.start",
        subject=f"rollout {rollout.number} of application {application.name}",
        reason=reason or None,
        detail={
            "stable": rollout.stable,
            "candidate": rollout.candidate,
            "policy": rollout.policy,
            "state": rollout.state,
            "share": rollout.share,
            "restarts": restarts,
            "problems": list(prepared.forecast.problems),
        },
    )
    return rollout


def explain_refusal(application: str, foretold: Forecast) -> str:
    """Say why a rollout that cannot finish is not started, and what helps."""
    problems = "; ".join(foretold.problems)
    return (
        f"the rollout of {application} cannot finish: {problems}. Wider margins, fewer stages or a longer max_duration"
        " help (docs/howto/choose-margins.md); accept starts it all the same"
    )


async def _refuse_conflicts(connection: Connection, application: Application, candidate: Release) -> None:
    running = await rollouts.active_rollout(connection, application.name)
    if candidate.number == application.stable_release:
        message = f"{candidate.name} is the stable release of {application.name} already; there is nothing to roll out"
        if running is not None:
            message = f"{message} (to take {running.candidate} back, roll back rollout {running.number})"
        raise ConflictError(message, param="release")
    if running is not None:
        raise ConflictError(
            f"{application.name} is being rolled out to {running.candidate} already (rollout {running.number}, at"
            f" {format_share(running.share)}); an application has one rollout at a time: end that first"
        )


async def _find_policy(
    connection: Connection, application: Application, candidate: Release
) -> tuple[ApplicationSpec, Policy]:
    entry = await configuration.current(connection)
    wanted = None if entry is None else entry.specification.applications.get(application.name)
    if entry is None or wanted is None or wanted.policy == MANUAL:
        raise ConflictError(
            f"{application.name} has the policy {MANUAL!r}: `headway share {application.name} {candidate.name} 10%`"
            " sets the share; for staged rollouts give it a policy in headway.yaml and apply that"
        )
    return wanted, entry.specification.policies[wanted.policy]
