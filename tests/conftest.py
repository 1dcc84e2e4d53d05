"""What every test shares: a PostgreSQL server per test process, a database per test."""

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headway.storage.database import Database, migrate
from headway.storage.layout import Layout, read_pid_file

# An example may take long on a busy machine; pytest-timeout guards against what hangs.
settings.register_profile("headway", deadline=None)
settings.load_profile("headway")


@pytest.fixture(scope="session")
def proof() -> bool:
    """True in `make proof`: run at full size instead of the reduced size of `make test`."""
    return os.environ.get("HEADWAY_PROOF", "") not in ("", "0")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A running PostgreSQL server: the embedded one, or that of HEADWAY_TEST_POSTGRES_URL."""
    given = os.environ.get("HEADWAY_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    from headway.storage import embedded

    home = Path(tempfile.mkdtemp(prefix="headway-test-"))
    home.chmod(0o755)  # as root, the server runs as somebody else
    try:
        with embedded.start(home) as server:
            forgo_durability(home)
            yield server.url
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(postgres_url: str) -> Iterator[str]:
    """Name of a migrated database that others are cloned from."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    create_database(postgres_url, name)
    migrate(make_conninfo(postgres_url, dbname=name))
    yield name
    drop_database(postgres_url, name)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """URL of a new database with nothing in it."""
    name = f"empty_{uuid.uuid4().hex[:12]}"
    create_database(postgres_url, name)
    yield make_conninfo(postgres_url, dbname=name)
    drop_database(postgres_url, name)


@pytest.fixture
def database_url(postgres_url: str, template_database: str) -> Iterator[str]:
    """URL of a new, migrated database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    create_database(postgres_url, name, template_database)
    yield make_conninfo(postgres_url, dbname=name)
    drop_database(postgres_url, name)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A new, migrated database, open."""
    opened = Database(database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def refusing(database_url: str) -> AsyncIterator[Callable[[bool], Awaitable[None]]]:
    """Makes the database turn everybody away, and take them back."""
    name = conninfo_to_dict(database_url)["dbname"]

    async def refuse(refused: bool) -> None:
        # Superusers come in all the same: this test's own connections go by another database.
        async with await psycopg.AsyncConnection.connect(
            database_url, dbname="postgres", autocommit=True
        ) as connection:
            await connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {not refused}'.encode())
            if refused:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
                )

    yield refuse
    await refuse(False)


def forgo_durability(home: Path) -> None:
    """Make databases quick to come and go: none of them has to outlive the machine, nor long enough to be vacuumed."""
    layout = Layout(home)
    with (layout.data / "postgresql.auto.conf").open("a") as settings:
        settings.write("autovacuum = off\nfsync = off\nfull_page_writes = off\n")
    server = read_pid_file(layout.data)
    assert server is not None
    os.kill(server.pid, signal.SIGHUP)


def create_database(postgres_url: str, name: str, template: str = "template1") -> None:
    """Make a database; the template of the embedded server holds pgvector."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )


def drop_database(postgres_url: str, name: str) -> None:
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    deadline = time.monotonic() + 30
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        while True:
            try:
                connection.execute(drop)
            except psycopg.errors.InsufficientPrivilege:  # autovacuum is in it, the server's own: it soon leaves
                assert time.monotonic() < deadline, f"{name} cannot be dropped"
                time.sleep(0.1)
            else:
                return
