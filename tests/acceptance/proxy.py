"""A proxy in front of PostgreSQL that can be cut: the database is away for exactly as long as a test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from anyio.from_thread import BlockingPortal, start_blocking_portal
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PORT = 5432


class DatabaseProxy:
    """Passes connections on a socket in a folder on to a database.

    Attributes:
        url: The database through the proxy.
    """

    def __init__(self, portal: BlockingPortal, folder: Path, url: str) -> None:
        self._portal = portal
        self._path = folder / f".s.PGSQL.{_PORT}"
        target = conninfo_to_dict(url)
        self._host, self._port = str(target["host"]), int(target.get("port") or _PORT)
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self.url = make_conninfo(url, host=str(folder), port=_PORT)

    def restore(self) -> None:
        """Let the database be there again."""
        self._portal.call(self._open)

    def refuse(self) -> None:
        """Cut all connections and refuse new ones, as when the server is stopped."""
        self._portal.call(self._close)

    def fall_silent(self) -> None:
        """Pass nothing on any more and keep all connections, as when the network is cut."""
        self._portal.call(self._flows.clear)

    async def _open(self) -> None:
        self._flows.set()
        if self._listener is None:
            self._path.unlink(missing_ok=True)
            self._listener = await asyncio.start_unix_server(self._serve, self._path)

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._path.unlink(missing_ok=True)
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._join(reader, writer)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._port}"
            server_reader, server_writer = await asyncio.open_unix_connection(path)
        else:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        try:
            pumps = [
                asyncio.ensure_future(self._pump(reader, server_writer)),
                asyncio.ensure_future(self._pump(server_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            server_writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._flows.wait()
            sink.write(data)
            await sink.drain()


@contextlib.contextmanager
def database_proxy(folder: Path, url: str) -> Iterator[DatabaseProxy]:
    """Run a proxy; the database is there at first.

    Args:
        folder: For the proxy's socket; its path must be short.
        url: The database.
    """
    with start_blocking_portal() as portal:
        proxy = DatabaseProxy(portal, folder, url)
        proxy.restore()
        try:
            yield proxy
        finally:
            proxy.refuse()
