"""What a worker and the process that asks it send each other: frames of eight bytes of length and a content."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from headway.lake.parsing.parsed import Parsed

HEAD_BYTES = 8


class Reply(msgspec.Struct, frozen=True):
    """What became of one document.

    Attributes:
        parsed: The document, or None.
        code, message: Of the error, where it could not be parsed.
        out_of_memory: It needed more than the process may have.
    """

    parsed: Parsed | None = None
    code: str = ""
    message: str = ""
    out_of_memory: bool = False


def head(content: bytes) -> bytes:
    """What goes in front of a content."""
    return len(content).to_bytes(HEAD_BYTES)


def read_frame(stream: BinaryIO) -> bytes | None:
    """Read the next content; None at the end of the stream."""
    length = stream.read(HEAD_BYTES)
    if len(length) < HEAD_BYTES:
        return None
    content = stream.read(int.from_bytes(length))
    return content if len(content) == int.from_bytes(length) else None
