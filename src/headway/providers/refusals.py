"""What services say when they refuse: their own words, without what they quote of the request."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_SHOWN_CHARACTERS = 300


def quote_refusal(body: bytes, secrets: Iterable[str]) -> str:
    """Quote the message of an error in the shape that OpenAI and Azure share, on a line; empty for any other body.

    Services repeat in their errors what they were sent, so what stands beside the message is left out.

    Args:
        body: Of the answer.
        secrets: What it was asked with; stars stand in their place.
    """
    try:
        error = msgspec.json.decode(body, type=dict[str, object]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    message = error.get("message") if isinstance(error, dict) else None
    if not isinstance(message, str):
        return ""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        message = message.replace(secret, "***")
    return shorten(message)


def shorten(text: str) -> str:
    """Make one line of a text, and of a long one its beginning."""
    return " ".join(text.split())[:_SHOWN_CHARACTERS]
