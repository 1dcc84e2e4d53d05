"""The database: a pool of direct connections to PostgreSQL, and its migration to this version of Headway."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from headway.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from alembic.config import Config

Connection = AsyncConnection[TupleRow]

_MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x6865_6164_7761_79  # "headway"
_CONNECT_SECONDS = 5
# A server that went away without a word is noticed within about 10 seconds, not when the kernel gives up.
_LIVENESS = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
_OLDEST_SERVER = 150000


class Database:
    """A pool of connections to one PostgreSQL database; every session runs in UTC.

    Args:
        url: libpq URL or connection string. Direct: not through a transaction pooler, which loses NOTIFY and locks.
        min_size: Connections kept open.
        max_size: Most connections open at once.
        wait_seconds: Longest wait for a connection before the database counts as away.
    """

    def __init__(self, url: str, *, min_size: int = 1, max_size: int = 8, wait_seconds: float = 5.0) -> None:
        self.url = url
        self._pool = AsyncConnectionPool[Connection](
            _conninfo(url),
            open=False,
            min_size=min_size,
            max_size=max_size,
            timeout=wait_seconds,
            check=AsyncConnectionPool.check_connection,  # a restarted server costs a reconnect, not an error
            reconnect_timeout=wait_seconds,
        )
        self._wait_seconds = wait_seconds

    async def open(self, *, wait: bool = True) -> None:
        """Open the pool; ``close`` must follow, also when this fails.

        Args:
            wait: See whether the database can be reached.

        Raises:
            StorageError: It cannot. The pool is open all the same, and finds the database when it is back.
        """
        await self._pool.open()
        if wait:
            async with self.connection():
                pass  # there is one, and it works

    async def close(self) -> None:
        """Close all connections; closing twice is harmless."""
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection: committed when the block ends, rolled back when it raises.

        Raises:
            StorageError: The database cannot be reached, or went away meanwhile. Whether a commit that was under way
                took effect is then unknown.
        """
        task = asyncio.current_task()
        cancels = 0 if task is None else task.cancelling()
        try:
            async with self._pool.connection() as connection:
                if task is not None and task.cancelling() > cancels:
                    # The pool waits with asyncio.wait_for, which before Python 3.12 may lose a cancellation.
                    raise asyncio.CancelledError
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, PoolClosed, TooManyRequests) as error:
            if task is not None and task.cancelling():
                # What a cancelled statement leaves behind must not take the place of the cancellation.
                raise asyncio.CancelledError from error
            raise StorageError(f"{_away(self.url)}: {_first_line(error)}") from error


def migrate(url: str) -> None:
    """Bring the database to this version's schema; harmless when it is there already, safe from several replicas.

    Raises:
        ConfigurationError: The URL is not one.
        StorageError: The database cannot be reached, is too old or not in UTF-8, was migrated by a newer Headway, or
            holds other tables.
    """
    try:
        with psycopg.connect(_conninfo(url), autocommit=True) as connection:
            if current_revision(connection) == head_revision():
                return
            _check_server(connection)
            connection.execute("SELECT pg_advisory_lock(%s)", (_MIGRATION_LOCK,))  # held until the connection closes
            found = current_revision(connection)
            if found == head_revision():
                return
            if found is not None and found > head_revision():
                raise StorageError(
                    f"the database is at revision {found}, this Headway knows up to {head_revision()}:"
                    " a newer Headway has migrated it. Run that version, or restore a backup from before."
                )
            _upgrade(url)
    except psycopg.OperationalError as error:
        raise StorageError(f"{_away(url)}: {_first_line(error)}") from error
    except psycopg.Error as error:
        raise StorageError(f"the database refuses: {_first_line(error)}") from error


def current_revision(connection: psycopg.Connection[TupleRow]) -> str | None:
    """Read which revision the database is at; None for an empty one."""
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def head_revision() -> str:
    """Name the newest revision: four digits, which sort in order."""
    return max(revisions())


def revisions() -> list[str]:
    """List all revisions, oldest first: the first four characters of the files in ``migrations/versions``."""
    return sorted(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _check_server(connection: psycopg.Connection[TupleRow]) -> None:
    version, encoding = connection.info.server_version, connection.info.parameter_status("server_encoding")
    if version < _OLDEST_SERVER:
        raise StorageError(f"Headway needs PostgreSQL {_OLDEST_SERVER // 10000} or newer, not {version // 10000}")
    if encoding != "UTF8":
        raise StorageError(f"the database's encoding is {encoding}; create it with ENCODING 'UTF8' TEMPLATE template0")


def _upgrade(url: str, revision: str = "head") -> None:
    # Imported here: together they cost every start 0.3 s, and most starts have nothing to migrate.
    import sqlalchemy as sa  # noqa: PLC0415
    from alembic import command  # noqa: PLC0415

    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(_conninfo(url)), poolclass=sa.NullPool
    )
    config = _alembic_config()
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except sa.exc.DBAPIError as error:
        reason = _first_line(error.orig or error)
        raise StorageError(f"the migration failed and was undone: {reason}") from error
    finally:
        engine.dispose()


def _alembic_config() -> Config:
    from alembic.config import Config  # noqa: PLC0415 (see _upgrade)

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _conninfo(url: str) -> str:
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        # The reason may quote the URL, and with it a password.
        raise ConfigurationError(
            "HEADWAY_DATABASE_URL is not a PostgreSQL URL; it looks like postgresql://user:password@host:5432/database"
        ) from error
    options = f"{given.get('options', '')} -c timezone=UTC".strip()
    given.setdefault("application_name", "headway")
    for name, value in _LIVENESS.items():
        given.setdefault(name, value)
    given.setdefault("connect_timeout", _CONNECT_SECONDS)
    return make_conninfo("", **{**given, "options": options})


def _away(url: str) -> str:
    given = conninfo_to_dict(url)
    place = f"{given.get('host', 'localhost')}:{given.get('port', 5432)}/{given.get('dbname', '')}"
    return f"the database at {place} is away"


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n", 1)[0]
    return re.sub(r"password=\S+", "password=...", line) or type(error).__name__
