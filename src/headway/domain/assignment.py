"""Assignment: which arm a unit belongs to. Growing the share never moves a unit back."""

from __future__ import annotations

import hashlib


def position(salt: bytes, unit: str) -> float:
    """Place a unit in [0, 1): uniform over units, always the same for a salt and a unit.

    Args:
        salt: The rollout's salt, at most 64 bytes. A new rollout has a new salt.
        unit: The unit's name.
    """
    digest = hashlib.blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=salt).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def is_candidate(salt: bytes, unit: str, share: float) -> bool:
    """Say whether the unit is in the candidate arm at this share (0 to 1)."""
    return position(salt, unit) < share


def fingerprint(unit_key: bytes, key: int, user: str, first_user_message: bytes) -> str:
    """Recognise a conversation that has no explicit id.

    Clients resend the history, so API key + user + first user message are the same on every turn.

    Args:
        unit_key: Headway's key for units; without it nobody can test guesses of a message.
        key: Number of the API key.
        user: The request's ``user``, or an empty string.
        first_user_message: The first user message as it came, in bytes.

    Returns:
        32 hexadecimal characters behind ``fp-``.
    """
    state = hashlib.blake2b(b"%d\x00%d\x00" % (key, len(user)), digest_size=16, key=unit_key)
    state.update(user.encode("utf-8", "surrogatepass"))
    state.update(first_user_message)
    return "fp-" + state.hexdigest()
