"""Checks what people write."""

from __future__ import annotations

from headway.errors import InvalidRequestError


def checked_text(name: str, text: str | None, largest_bytes: int) -> str | None:
    """Take a text as it is; a blank one is none.

    Args:
        name: Of the request's field.
        text: Its value.
        largest_bytes: Longest text, in bytes of UTF-8.

    Raises:
        InvalidRequestError: It is too long, or holds a NUL character.
    """
    if text is None or not text.strip():
        return None
    if "\x00" in text:
        raise InvalidRequestError(f"{name} must not hold NUL characters", param=name)
    size = len(text.encode())
    if size > largest_bytes:
        raise InvalidRequestError(f"{name} has {size} bytes, at most {largest_bytes} are kept", param=name)
    return text


def required_text(name: str, text: str | None, largest_bytes: int) -> str:
    """Take a text that must not be blank.

    Raises:
        InvalidRequestError: It is blank, too long, or holds a NUL character.
    """
    checked = checked_text(name, text, largest_bytes)
    if checked is None:
        raise InvalidRequestError(f"{name} is missing", param=name)
    return checked
