"""What feedback and reports are about: interaction ids are read, not looked up."""

from __future__ import annotations

from headway.domain.access import require_application
from headway.domain.feedback import Attribution
from headway.domain.snapshot import ApplicationRoute, KeyRoute, Snapshot
from headway.errors import ExpiredError, InvalidRequestError, NotFoundError
from headway.ids import InteractionId

DAY_MS = 86_400_000


def application_by_number(snapshot: Snapshot, number: int) -> ApplicationRoute:
    """Find an application by its number.

    Raises:
        NotFoundError: It is not served any more.
    """
    for application in snapshot.applications.values():
        if application.number == number:
            return application
    raise NotFoundError("the interaction's application is not served any more", param="interaction_id")


def application_by_name(snapshot: Snapshot, name: str, key: KeyRoute | None) -> ApplicationRoute:
    """Find an application by its name.

    Raises:
        NotFoundError: There is none of that name.
        PermissionDeniedError: The key may not use it.
    """
    if key is not None:
        require_application(key, name)
    application = snapshot.applications.get(name)
    if application is None:
        raise NotFoundError(f"there is no application {name!r}", param="application")
    return application


def read_interaction(
    snapshot: Snapshot, text: str, key: KeyRoute | None, unix_ms: int
) -> tuple[InteractionId, ApplicationRoute]:
    """Read an interaction id and find its application.

    Args:
        snapshot: Holds the signing keys and the applications.
        text: The id as an answer carried it.
        key: The caller's API key, if there is one.
        unix_ms: Now.

    Raises:
        InteractionIdError: The id is forged or truncated.
        NotFoundError: Its application is not served any more.
        PermissionDeniedError: The key may not use its application.
        ExpiredError: The interaction is past its application's retention.
    """
    interaction = snapshot.signing.signer().read(text)
    application = application_by_number(snapshot, interaction.application)
    if key is not None:
        require_application(key, application.name)
    age_ms = unix_ms - interaction.unix_ms
    if age_ms > application.retention_days * DAY_MS:
        message = (
            f"the interaction is {age_ms / DAY_MS:.0f} days old;"
            f" {application.name!r} keeps interactions for {application.retention_days} days"
        )
        raise ExpiredError(message, param="interaction_id")
    return interaction, application


def same_application(given: str | None, application: ApplicationRoute) -> None:
    """Refuse a request that names another application than its interaction id does.

    Raises:
        InvalidRequestError: It does.
    """
    if given is not None and given != application.name:
        message = f"the interaction belongs to the application {application.name!r}, not {given!r}"
        raise InvalidRequestError(message, param="application")


def attribution(interaction: InteractionId) -> Attribution:
    """Say which release an interaction id attributes a statement to."""
    return Attribution(
        application=interaction.application,
        release=interaction.release,
        rollout=interaction.rollout,
        stage=interaction.stage,
        arm=interaction.arm,
        kind=interaction.kind,
        unit=interaction.unit,
        exposed_unix_ms=interaction.unix_ms,
    )
