"""Requests and answers of the data plane, free of any web framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read to its end.

    Attributes:
        method: Upper case.
        path: Decoded path without the query.
        query: Query string as it came, without ``?``.
        headers: Header values by lower-case name.
        body: The whole body; its size was checked while it was read.
        parameters: Values of the placeholders of the route's pattern.
        client: Address of the peer.
    """

    method: str
    path: str
    query: bytes = b""
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    parameters: Mapping[str, str] = field(default_factory=dict)
    client: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer that is sent as a whole.

    Attributes:
        status: HTTP status.
        body: The whole body.
        content_type: Value of ``content-type``; empty for none.
        headers: Further headers, names in lower case.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
