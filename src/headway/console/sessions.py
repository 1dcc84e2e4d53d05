"""Sessions: who signed in, in a signed cookie that ends; and the token that proves that a form came from its page.

A session names an API key by its number and holds nothing secret. It is as good as that key is at each request: revoked
or expired, the key takes its sessions with it. Layout (big endian, then base64url without padding)::

    version 1 | signing key 1 | API key 4 | end in Unix milliseconds 8 | nonce 16 | keyed BLAKE2b MAC 32
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass

from headway.domain.snapshot import SigningKeys

SESSION_SECONDS = 12 * 3600
"""How long a sign-in lasts."""

NOBODY = 0
"""Number of the API key in the session of who has not signed in yet."""

_VERSION = 1
_BODY = struct.Struct(">BBIQ16s")
_MAC_BYTES = 32
_LENGTH = -(-(_BODY.size + _MAC_BYTES) * 4 // 3)
# Signing keys sign interaction ids too: each use has its own personalisation, so no MAC of one is good for another.
_FOR_SESSIONS, _FOR_TOKENS = b"hw-session", b"hw-form-token"


@dataclass(frozen=True)
class Session:
    """Who signed in with which API key, and until when.

    Attributes:
        key: Number of the API key; ``NOBODY`` before signing in.
        until_ms: When it ends, Unix milliseconds.
        nonce: 16 random bytes.
        signed_by: Number of the signing key.
    """

    key: int
    until_ms: int
    nonce: bytes
    signed_by: int


def open_session(signing: SigningKeys, key: int, now_ms: int) -> Session:
    """Begin a session of an API key, or of nobody yet."""
    return Session(key, now_ms + SESSION_SECONDS * 1000, secrets.token_bytes(16), signing.active)


def seal(signing: SigningKeys, session: Session) -> str:
    """Write a session as the value of a cookie."""
    body = _BODY.pack(_VERSION, session.signed_by, session.key, session.until_ms, session.nonce)
    mac = _mac(signing.keys[session.signed_by], body, _FOR_SESSIONS)
    return base64.urlsafe_b64encode(body + mac).rstrip(b"=").decode()


def unseal(signing: SigningKeys, text: str, now_ms: int) -> Session | None:
    """Read a session back; None when it was altered, has ended, or was signed by a key that is retired."""
    if len(text) != _LENGTH:
        return None
    try:
        raw = base64.b64decode(text + "=" * (-_LENGTH % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    body, mac = raw[: _BODY.size], raw[_BODY.size :]
    version, signed_by, key, until_ms, nonce = _BODY.unpack(body)
    secret = signing.keys.get(signed_by)
    if version != _VERSION or secret is None or not hmac.compare_digest(mac, _mac(secret, body, _FOR_SESSIONS)):
        return None
    return Session(key, until_ms, nonce, signed_by) if now_ms < until_ms else None


def form_token(signing: SigningKeys, session: Session) -> str:
    """Make the token that the forms of a session carry."""
    return _mac(signing.keys[session.signed_by], session.nonce, _FOR_TOKENS).hex()


def is_form_token(signing: SigningKeys, session: Session, token: str) -> bool:
    """Say whether a form came from a page of this session."""
    return hmac.compare_digest(form_token(signing, session).encode(), token.encode())


def cookie_name(signing: SigningKeys) -> str:
    """Name the cookie; it differs between installations, since browsers share cookies between ports of a host."""
    return "headway_" + hashlib.blake2b(b"", key=signing.unit_key, digest_size=4, person=_FOR_SESSIONS).hexdigest()


def _mac(secret: bytes, body: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(body, key=secret, digest_size=_MAC_BYTES, person=purpose).digest()
