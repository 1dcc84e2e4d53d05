"""Routing: which release answers, and as what the interaction is booked."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from headway.domain.assignment import fingerprint, is_candidate
from headway.domain.release import Endpoint
from headway.domain.snapshot import ApplicationRoute, KeyRoute, ReleaseRoute, Snapshot
from headway.errors import InvalidRequestError, NotFoundError, PermissionDeniedError
from headway.gateway.parsing import ParsedRequest
from headway.ids import Arm, InteractionId, Kind
from headway.storage.links import ResponseLink

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

    @property
    def is_shadowed(self) -> bool:
        """Whether it is served by stable while its rollout mirrors requests to the candidate."""
        return self.stage == 0 and self.rollout > 0


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
    """Keep a later turn on the release that gave the earlier answer, if that is no candidate of a rollout that is over.

    While the rollout goes on, the turn is booked under the stage at which its conversation was assigned: at today's
    share it would not have been. A candidate that was taken back answers no more; the turn goes to stable.

    Raises:
        NotFoundError: That release is no longer served.
    """
    release = snapshot.releases.get(previous.release)
    if release is None or previous.application != application.number:
        message = "previous_response_id: its release is no longer served by this application; start a new conversation"
        raise NotFoundError(message, param="previous_response_id", code="previous_response_not_found")
    rollout = application.rollout
    if rollout is not None and rollout.number == previous.rollout and previous.stage:
        return Route(application, release, rollout.number, previous.stage, previous.arm, previous.kind)
    if previous.kind == Kind.PINNED and not previous.rollout:
        return Route(application, release, 0, 0, Arm.STABLE, Kind.PINNED)
    # The turn is nobody's evidence (any more).
    if previous.arm == Arm.CANDIDATE:
        release = snapshot.releases[application.stable]
    return Route(application, release, 0, 0, Arm.STABLE, Kind.RANDOMISED)


def carry_over(link: ResponseLink, origin: ReleaseRoute, release: ReleaseRoute) -> ResponseLink:
    """Find a deployment of another release that can go on from a stored response: one at the same provider's place.

    Args:
        link: Where the response lives.
        origin: The release that answered.
        release: The release that shall go on.

    Raises:
        NotFoundError: It has none.
    """
    held = [each.endpoint for each in origin.deployments if each.name == link.deployment]
    for deployment in release.deployments:
        if any(_place(deployment.endpoint) == _place(each) for each in held):
            return msgspec.structs.replace(link, deployment=deployment.name)
    message = (
        "previous_response_id: the release that answered has been taken back, and the stable one cannot reach its"
        " provider; send the whole conversation anew"
    )
    raise NotFoundError(message, param="previous_response_id", code="previous_response_not_found")


def _place(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.provider, endpoint.base_url


def outside(route: Route) -> Route:
    """Keep a route that goes to stable out of its rollout."""
    return route._replace(rollout=0, stage=0)


def _pinned(snapshot: Snapshot, application: ApplicationRoute, key: KeyRoute, name: str) -> ReleaseRoute:
    if "pin" not in key.scopes:
        raise PermissionDeniedError(f"the API key {key.name!r} lacks the scope 'pin'", param="model")
    number = application.releases.get(name)
    if number is None:
        known = ", ".join(sorted(application.releases)[-20:])
        message = f"application {application.name!r} has no release {name[:100]!r} (known: {known})"
        raise NotFoundError(message, param="model", code="release_not_found")
    return snapshot.releases[number]
