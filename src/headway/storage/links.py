"""Where a stored response lives: from an interaction to the provider's own id of its answer."""

from __future__ import annotations

from uuid import UUID

import msgspec

from headway.clock import utc
from headway.storage.database import Connection


class ResponseLink(msgspec.Struct, frozen=True):
    """What a later turn needs to know of an earlier one.

    Attributes:
        id: 16 bytes, the interaction's UUID.
        provider_id: The provider's id of the response.
        deployment: Name of the deployment that holds it.
        conversation: The conversation that goes on.
        unit: Name of the unit that goes on.
        groups: Fingerprint of the groups whose passages it may hold; only who is in these goes on from it.
    """

    id: bytes
    provider_id: str
    deployment: str
    conversation: str
    unit: str
    groups: str = ""


async def save_link(connection: Connection, link: ResponseLink) -> None:
    """Keep a link; keeping it twice is harmless."""
    await connection.execute(
        "INSERT INTO response_link (id, at, provider_id, deployment, conversation, unit_name, groups)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (
            UUID(bytes=link.id),
            utc(int.from_bytes(link.id[:6], "big")),
            link.provider_id,
            link.deployment,
            link.conversation,
            link.unit,
            link.groups,
        ),
    )


async def find_link(connection: Connection, interaction: bytes) -> ResponseLink | None:
    """Find the link of an interaction (its 16 bytes of UUID); None when there is none."""
    cursor = await connection.execute(
        "SELECT provider_id, deployment, conversation, unit_name, groups FROM response_link WHERE id = %s",
        (UUID(bytes=interaction),),
    )
    row = await cursor.fetchone()
    return None if row is None else ResponseLink(interaction, *row)
