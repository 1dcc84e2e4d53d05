"""A process that parses documents for another: ``python -m headway.lake.parsing.worker``.

It reads frames from standard input: the limits, then the path and the body of each document; and writes a reply to
each to standard output. A document that takes too much computing time ends the process, by SIGPROF. It can write no
file, and the environment it is given holds no secret.
"""

from __future__ import annotations

import logging
import resource
import signal
import sys
from typing import BinaryIO

import msgspec

from headway.errors import HeadwayError
from headway.lake.parsing.documents import parse
from headway.lake.parsing.frames import Reply, head, read_frame
from headway.lake.parsing.parsed import Limits


def main() -> None:
    """Serve standard input and output."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    serve(sys.stdin.buffer, sys.stdout.buffer)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until the requests end."""
    first = read_frame(requests)
    if first is None:
        return
    limits = msgspec.msgpack.decode(first, type=Limits)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    _send(replies, msgspec.msgpack.encode(Reply()))
    while (path := read_frame(requests)) is not None:
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
        content = _answer(path.decode(), requests, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, content)


def _answer(path: str, requests: BinaryIO, limits: Limits) -> bytes:
    try:
        body = read_frame(requests)
        reply = Reply() if body is None else Reply(parse(path, body, limits))
        return msgspec.msgpack.encode(reply)
    except HeadwayError as error:
        reply = Reply(code=error.error_code, message=error.message)
    except MemoryError:
        reply = Reply(out_of_memory=True)
    return msgspec.msgpack.encode(reply)


def _send(replies: BinaryIO, content: bytes) -> None:
    replies.write(head(content))
    replies.write(content)
    replies.flush()


if __name__ == "__main__":
    main()
