"""Routing: which release answers, and as what the interaction is booked."""

from __future__ import annotations

from typing import NamedTuple

from headway.domain.assignment import fingerprint, is_candidate
from headway.domain.snapshot import ApplicationRoute, KeyRoute, ReleaseRoute, Snapshot
from headway.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from headway.gateway.parsing import ParsedRequest
from headway.ids import Arm, InteractionId, Kind

_MAX_NAME = 512


class Unit(NamedTuple):
    """What is assigned: its name, the conversation it belongs to, and whether the request is its own unit."""

    name: str
    conversation: str
    own: bool = False


class Route(NamedTuple):
    """Where a request goes and how its interaction is booked."""

    application: ApplicationRoute
    release: ReleaseRoute
    rollout: int
    stage: int
    arm: int
    kind: int


def find_application(snapshot: Snapshot, key: KeyRoute, name: str) -> ApplicationRoute:
    """Find the application that a key asks for.

    Raises:
        NotFoundError: There is none of that name.
        PermissionDeniedError: The key may not use it.
    """
    application = snapshot.applications.get(name)
    if application is None:
        known = sorted(name for name in snapshot.applications if not key.applications or name in key.applications)
        hint = f"known: {', '.join(known[:20])}" if known else "none is configured: run `headway apply`"
        message = f"the model {name[:100]!r} is not an application here ({hint})"
        raise NotFoundError(message, param="model", code="model_not_found")
    if key.applications and name not in key.applications:
        message = f"the API key {key.name!r} may not use the application {name!r}"
        raise PermissionDeniedError(message, param="model", code="application_not_allowed")
    return application


def choose_unit(
    snapshot: Snapshot, application: ApplicationRoute, key: KeyRoute, parsed: ParsedRequest, header: str, own: str
) -> Unit:
    """Name the unit of a request.

    Args:
        snapshot: Holds the key for fingerprints.
        application: Says what is a unit.
        key: The caller's.
        parsed: The request.
        header: Value of ``x-headway-unit``, or an empty string.
        own: Name for a request that is its own unit.

    Raises:
        InvalidRequestError: A name is longer than 512 characters.
    """
    given = (("x-headway-unit", header), ("metadata.conversation_id", parsed.conversation), ("user", parsed.user))
    for name, value in given:
        if value and len(value) > _MAX_NAME:
            raise InvalidRequestError(f"{name} is longer than {_MAX_NAME} characters", param=name)
    if application.unit == "conversation":
        explicit = header or parsed.conversation
        if explicit:
            return Unit(explicit, explicit)
        if parsed.operation == "embeddings":
            return Unit(own, own, own=True)
    conversation = parsed.conversation or _fingerprint(snapshot, key, parsed) or own
    if header:
        return Unit(header, conversation)
    if application.unit == "conversation":
        return Unit(conversation, conversation, own=conversation == own)
    if application.unit == "user" and parsed.user:
        return Unit(parsed.user, conversation)
    return Unit(own, conversation, own=True)


def _fingerprint(snapshot: Snapshot, key: KeyRoute, parsed: ParsedRequest) -> str:
    if parsed.operation == "embeddings":
        return ""
    message = parsed.first_user_message()
    return fingerprint(snapshot.signing.unit_key, key.number, parsed.user or "", message) if message else ""


def choose_release(
    snapshot: Snapshot, application: ApplicationRoute, key: KeyRoute, unit: str, pinned: str | None
) -> Route:
    """Choose the release for a unit: the pinned one, or the one of the unit's arm.

    Raises:
        PermissionDeniedError: The key may not pin.
        NotFoundError: The pinned release does not exist.
    """
    if pinned is not None:
        return Route(application, _pinned(snapshot, application, key, pinned), 0, 0, Arm.STABLE, Kind.PINNED)
    rollout = application.rollout
    if rollout is None:
        return Route(application, snapshot.releases[application.stable], 0, 0, Arm.STABLE, Kind.RANDOMISED)
    if is_candidate(rollout.salt, unit, rollout.share):
        release, arm = snapshot.releases[rollout.candidate], Arm.CANDIDATE
    else:
        release, arm = snapshot.releases[application.stable], Arm.STABLE
    return Route(application, release, rollout.number, rollout.stage, arm, rollout.kind)


def continue_from(snapshot: Snapshot, application: ApplicationRoute, previous: InteractionId) -> Route:
    """Keep a later turn on the release that gave the earlier answer.

    Raises:
        NotFoundError: That release is no longer served.
    """
    release = snapshot.releases.get(previous.release)
    if release is None or previous.application != application.number:
        message = "previous_response_id: its release is no longer served by this application; start a new conversation"
        raise NotFoundError(message, param="previous_response_id", code="previous_response_not_found")
    rollout = application.rollout
    if rollout is not None and rollout.number == previous.rollout:
        return Route(application, release, rollout.number, rollout.stage, previous.arm, previous.kind)
    # Its rollout has ended: the turn is nobody's evidence any more.
    kind = Kind.PINNED if previous.kind == Kind.PINNED else Kind.RANDOMISED
    return Route(application, release, 0, 0, Arm.STABLE, kind)


def _pinned(snapshot: Snapshot, application: ApplicationRoute, key: KeyRoute, name: str) -> ReleaseRoute:
    if "pin" not in key.scopes:
        raise PermissionDeniedError(f"the API key {key.name!r} lacks the scope 'pin'", param="model")
    number = application.releases.get(name)
    if number is None:
        known = ", ".join(sorted(application.releases)[-20:])
        message = f"application {application.name!r} has no release {name[:100]!r} (known: {known})"
        raise NotFoundError(message, param="model", code="release_not_found")
    return snapshot.releases[number]
