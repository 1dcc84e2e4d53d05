"""Parses documents in processes of their own, so that none can hang or exhaust the process that builds an index."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from typing import Self

import msgspec

from headway.errors import ConfigurationError, HeadwayError, UnreadableDocumentError
from headway.lake.parsing.frames import HEAD_BYTES, Reply, head
from headway.lake.parsing.parsed import Limits, Parsed

_NEEDED = ("lxml", "markdown_it", "pypdfium2")
_INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_DOCUMENTS = 2_000
_LARGE_BYTES = 16 * 2**20
_SLICE_BYTES = 1 << 20


class _EndedError(UnreadableDocumentError):
    """A document ended its worker, or filled it.

    Attributes:
        killed: The worker was killed, which no document does by itself.
    """

    killed = False


class Parsers:
    """A few processes that parse; an asynchronous context manager.

    A process that a document ended or filled is replaced. If it had parsed others before, or was killed, the document
    is tried once more in a fresh one: what becomes of a document does not depend on those before it.

    Args:
        workers: Number of processes; each starts when it is first needed.
        limits: For each document.

    Raises:
        ConfigurationError: The extra ``knowledge`` is not installed.
    """

    def __init__(self, workers: int, limits: Limits | None = None) -> None:
        if not all(map(importlib.util.find_spec, _NEEDED)):
            raise ConfigurationError("indexes need the knowledge extra: pip install 'headway[knowledge]'")
        self._workers = [_Worker(limits or Limits()) for _ in range(workers)]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        for worker in self._workers:
            self._idle.put_nowait(worker)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            await worker.stop()

    async def parse(self, path: str, body: bytes) -> Parsed:
        """Parse one document as soon as a process is free; as :func:`headway.lake.parsing.documents.parse` does.

        Raises:
            UnreadableDocumentError: Also where it takes more time or memory than the limits allow, or ends the parser.
        """
        worker = await self._idle.get()
        try:
            return await self._parse(worker, path, body)
        finally:
            self._idle.put_nowait(worker)

    async def _parse(self, worker: _Worker, path: str, body: bytes, *, again: bool = True) -> Parsed:
        fresh = worker.parsed == 0
        try:
            return await worker.parse(path, body)
        except _EndedError as error:
            await worker.stop()
            if not again or (fresh and not error.killed):
                raise
        return await self._parse(worker, path, body, again=False)


class _Worker:
    """One process, started when it is needed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: asyncio.subprocess.Process | None = None
        self.parsed = 0  # documents, by the process that runs

    async def parse(self, path: str, body: bytes) -> Parsed:
        try:
            process = self._process or await self._start()
            self.parsed += 1
            reply = await _ask(process, path.encode(), body)
        except asyncio.CancelledError:  # half a request may be on its way
            await self.stop()
            raise
        if reply is None:
            raise self._error(await process.wait())
        if reply.out_of_memory:
            message = f"needs more than {self._limits.memory_bytes >> 20:,} MiB of memory"
            raise _EndedError(message, code="document_too_large")
        if len(body) > _LARGE_BYTES or self.parsed >= _DOCUMENTS:
            await self.stop()  # what a document leaves behind counts against the next
        if reply.parsed is None:
            raise UnreadableDocumentError(reply.message, code=reply.code)
        return reply.parsed

    async def stop(self) -> None:
        """End the process; the next document starts another."""
        process, self._process, self.parsed = self._process, None, 0
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()  # closes the pipes too

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = await asyncio.create_subprocess_exec(
            # -P: a file of the working directory must not pass for a module.
            *(sys.executable, "-P", "-m", "headway.lake.parsing.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
        )
        if await _ask(self._process, msgspec.msgpack.encode(self._limits)) is None:
            status = await self._process.wait()
            raise HeadwayError(f"the process that parses documents does not start (status {status})")
        return self._process

    def _error(self, status: int) -> _EndedError:
        if status == -signal.SIGPROF:
            message = f"takes more than {self._limits.cpu_seconds:g} s of computing time"
            return _EndedError(message, code="document_too_large")
        ended = signal.Signals(-status).name if status < 0 else f"status {status}"
        error = _EndedError(f"ends the parser ({ended}): it is damaged, or needs too much memory")
        error.killed = status == -signal.SIGKILL
        return error


async def _ask(process: asyncio.subprocess.Process, *contents: bytes) -> Reply | None:
    """Send some frames and read the reply; None if the process ended over it."""
    if process.stdin is None or process.stdout is None:
        return None
    try:
        for content in contents:
            process.stdin.write(head(content))
            for begin in range(0, len(content), _SLICE_BYTES):
                process.stdin.write(content[begin : begin + _SLICE_BYTES])
                await process.stdin.drain()  # rather than a copy of all of it in the pipe's buffer
        length = int.from_bytes(await process.stdout.readexactly(HEAD_BYTES))
        return msgspec.msgpack.decode(await process.stdout.readexactly(length), type=Reply)
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
