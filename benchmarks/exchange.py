"""One HTTP exchange as bytes: the chat requests that are sent, and a reader for the answers that come back."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MODEL = "support"
PROVIDER_ID = "chatcmpl-bench0123456789abcdefghijkl"
PROVIDER_MODEL = "bench-model"

_PLACE = "0000000000"  # in the first user message: replaced by the request's number, so that units differ


@dataclass(frozen=True)
class Endpoint:
    """Where a chat completion is asked for."""

    port: int
    path: str = "/v1/chat/completions"
    model: str = MODEL
    headers: Mapping[str, str] = field(default_factory=dict)


def write_requests(endpoint: Endpoint, numbers: Iterator[int], *, stream: bool = False) -> Iterator[bytes]:
    """Write chat requests of about 600 bytes, each with its number in the first user message."""
    before, _, after = _write_request(endpoint, stream=stream).partition(_PLACE.encode())
    return (b"%b%010d%b" % (before, number, after) for number in numbers)


def count_requests() -> Iterator[int]:
    """Number requests; one counter serves a whole run, so no unit comes twice."""
    return itertools.count(1)


def write_answer() -> str:
    """Write the fixed chat completion of about 1 KB that the JSON upstream gives."""
    content = (
        "You can return any item within thirty days of delivery. Start in the order page under Returns, print the "
        "label, and hand the parcel to the carrier; the refund is issued to the original payment method within five "
        "working days after the warehouse has checked the item. Opened software and gift cards cannot be returned, "
        "and shipping is refunded only when the item arrived damaged."
    )
    answer = {
        "id": PROVIDER_ID,
        "object": "chat.completion",
        "created": 1790000000,
        "model": f"{PROVIDER_MODEL}-2026-07-01",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content, "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 118,
            "completion_tokens": 79,
            "total_tokens": 197,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
    }
    return json.dumps(answer)


def _write_request(endpoint: Endpoint, *, stream: bool) -> bytes:
    body: dict[str, object] = {
        "model": endpoint.model,
        "messages": [
            {"role": "user", "content": f"Hello, this is about my order {_PLACE}: the kettle arrived with a dent."},
            {
                "role": "assistant",
                "content": "I am sorry to hear that. I can see the order. Would you like a replacement or a refund, "
                "and is the kettle otherwise unused and still in its box?",
            },
            {
                "role": "user",
                "content": "A refund, please. It is unused and in its box. How do I send it back, who pays for the "
                "parcel, and how long will it take until I see the money on my account?",
            },
        ],
        "temperature": 0.2,
    }
    if stream:
        body["stream"] = True
    payload = json.dumps(body).encode()
    headers = {
        "host": f"127.0.0.1:{endpoint.port}",
        "content-type": "application/json",
        "accept": "application/json",
        "user-agent": "headway-benchmark",
        "content-length": str(len(payload)),
        **endpoint.headers,
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {endpoint.path} HTTP/1.1\r\n{head}\r\n".encode() + payload


class ResponseReader:
    """Reads one HTTP/1.1 response after the other from bytes as they arrive, by length or chunked."""

    __slots__ = ("_buffer", "_chunked", "_length", "body", "status")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.start()

    def start(self) -> None:
        """Expect the next response."""
        self.status = 0
        self.body = bytearray()
        self._chunked = False
        self._length = 0

    def feed(self, data: bytes) -> bool:
        """Take bytes; True once the response is whole.

        Raises:
            ValueError: The bytes are not a response framed by length or chunks, or go on after its end.
        """
        self._buffer += data
        if not self.status and not self._read_head():
            return False
        whole = self._read_chunks() if self._chunked else self._read_length()
        if whole and self._buffer:
            raise ValueError(f"{len(self._buffer)} bytes after the end of a response")
        return whole

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[: end + 2]).lower()
        del self._buffer[: end + 4]
        self.status = int(head[9:12])
        self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in head
        if not self._chunked:
            _, found, rest = head.partition(b"\r\ncontent-length: ")
            if not found:
                raise ValueError("a response with neither a length nor chunks")
            self._length = int(rest[: rest.find(b"\r\n")])
        return True

    def _read_length(self) -> bool:
        if len(self._buffer) < self._length:
            return False
        self.body += self._buffer[: self._length]
        del self._buffer[: self._length]
        return True

    def _read_chunks(self) -> bool:
        buffer, position, size = self._buffer, 0, -1
        while size:
            line_end = buffer.find(b"\r\n", position)
            if line_end < 0:
                break
            size = int(buffer[position:line_end].partition(b";")[0], 16)
            start, end = line_end + 2, line_end + 2 + size
            if len(buffer) < end + 2:
                size = -1
                break
            if buffer[end : end + 2] != b"\r\n":
                raise ValueError("a chunk that does not end where it says, or trailers")
            self.body += buffer[start:end]
            position = end + 2
        del buffer[:position]
        return size == 0
