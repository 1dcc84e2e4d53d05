"""Interaction ids: URL-safe, self-describing, signed.

An answer's ``id`` *is* its interaction id. It says which release gave the answer to which unit under which rollout,
so a rating is attributed without a look-up and without a race with the interaction's own write; its keyed MAC means
that a browser can hand it back with a rating and nobody can make one up.

Layout (big endian, then base64url without padding behind ``hw_``: 82 characters)::

    version 1 | signing key 1 | kind 1 | UUIDv7 16 | application 4 | release 4 | rollout 4 | stage 2
    | arm 1 | choice 1 | keyed hash of the unit 8 | API key 4 | keyed BLAKE2b MAC 12
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from headway.errors import InteractionIdError

_PREFIX = "hw_"
_VERSION = 1
_MAC_BYTES = 12
_BODY = struct.Struct(">BBB16sIIIHBB8sI")
_TEXT_LENGTH = len(_PREFIX) + -(-(_BODY.size + _MAC_BYTES) * 4 // 3)
_SHAPE = re.compile(r"hw_[A-Za-z0-9_-]+", re.ASCII)


class Kind(IntEnum):
    """How an interaction came to its release; only randomised and manual ones are evidence."""

    RANDOMISED = 1
    PINNED = 2
    MANUAL = 3
    SHADOW = 4
    HOLDBACK = 5


class Arm(IntEnum):
    """The two roles in a rollout; outside a rollout everything is stable."""

    STABLE = 0
    CANDIDATE = 1


class InteractionId(NamedTuple):
    """What an interaction id says.

    Attributes:
        kind: How the release was chosen.
        uuid: 16 bytes of UUIDv7; its first 6 are the start of the interaction in Unix milliseconds.
        application: Number of the application.
        release: Number of the release that answered.
        rollout: Number of the rollout, 0 outside one.
        stage: Stage of the rollout at assignment.
        arm: Role of the release in the rollout.
        choice: Which of the answer's choices is meant; 0 is the first, or the whole answer.
        unit: 8 bytes, keyed hash of the unit.
        key: Number of the API key that called.
    """

    kind: int
    uuid: bytes
    application: int
    release: int
    rollout: int
    stage: int
    arm: int
    choice: int
    unit: bytes
    key: int

    @property
    def unix_ms(self) -> int:
        """When the interaction began, in Unix milliseconds."""
        return int.from_bytes(self.uuid[:6], "big")


def uuid7(unix_ms: int) -> bytes:
    """Make 16 bytes of a UUIDv7 (RFC 9562) for a time in Unix milliseconds."""
    value = bytearray(unix_ms.to_bytes(6, "big") + os.urandom(10))
    value[6] = 0x70 | (value[6] & 0x0F)
    value[8] = 0x80 | (value[8] & 0x3F)
    return bytes(value)


def uuid7_text(unix_ms: int) -> str:
    """Make a UUIDv7 in its usual text form."""
    return str(uuid.UUID(bytes=uuid7(unix_ms)))


@dataclass(frozen=True)
class Signer:
    """Issues and reads interaction ids; old keys verify until they are retired.

    Args:
        keys: Signing keys (32 bytes each) by number (0 to 255).
        active: Number of the key that signs new ids.
        unit_key: Hashes the names of units (32 bytes). Never rotates: a unit must stay the same unit.
    """

    keys: Mapping[int, bytes]
    active: int
    unit_key: bytes

    def issue(self, interaction: InteractionId) -> str:
        """Write an interaction id: at most 120 characters, URL-safe."""
        body = _BODY.pack(_VERSION, self.active, *interaction)
        mac = hashlib.blake2b(body, digest_size=_MAC_BYTES, key=self.keys[self.active]).digest()
        return _PREFIX + base64.urlsafe_b64encode(body + mac).rstrip(b"=").decode()

    def read(self, text: object) -> InteractionId:
        """Read an interaction id back.

        Raises:
            InteractionIdError: It is truncated, altered, signed by a retired key, or not an interaction id.
        """
        if not isinstance(text, str) or len(text) != _TEXT_LENGTH or not _SHAPE.fullmatch(text):
            message = f"not an interaction id: expected the `id` of an answer ({_TEXT_LENGTH} characters, 'hw_...')"
            raise InteractionIdError(message, param="interaction_id")
        encoded = text[len(_PREFIX) :]
        try:
            raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        except (binascii.Error, ValueError) as error:
            raise InteractionIdError("not an interaction id: broken encoding", param="interaction_id") from error
        body, mac = raw[: _BODY.size], raw[_BODY.size :]
        version, key_number, *fields = _BODY.unpack(body)
        key = self.keys.get(key_number)
        if version != _VERSION or key is None:
            message = "the interaction id was signed with a key that is not known here, or has been retired"
            raise InteractionIdError(message, param="interaction_id")
        expected = hashlib.blake2b(body, digest_size=_MAC_BYTES, key=key).digest()
        canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == encoded
        if not hmac.compare_digest(mac, expected) or not canonical:
            raise InteractionIdError("the interaction id was altered: its signature fails", param="interaction_id")
        return InteractionId(*fields)

    def hash_unit(self, unit: str) -> bytes:
        """Hash a unit's name to 8 bytes, so that ids and tables do not carry names."""
        return hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=self.unit_key).digest()
