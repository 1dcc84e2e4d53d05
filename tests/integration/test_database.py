"""The pool and the migrations, on a real server."""

import asyncio
import contextlib
import re
import subprocess
import sys
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

from headway.errors import ConfigurationError, StorageError
from headway.storage import database as storage
from headway.storage.database import Database, current_revision, head_revision, migrate, revisions

ROOT = Path(__file__).resolve().parents[2]


def schema(url: str) -> list[tuple[object, ...]]:
    """Everything that makes up a schema, comparable."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            """
            SELECT 'column', table_name, column_name, data_type, is_nullable, column_default
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL SELECT 'index', tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT 'function', proname, '', prosrc, '', '' FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace
            ORDER BY 1, 2, 3, 4
            """
        ).fetchall()
    return [row for row in rows if not re.match(r"interaction_\d{8}", row[1])]  # days come and go


def test_migrates_from_empty(empty_database_url: str) -> None:
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert current_revision(connection) == head_revision()
    assert "interaction" in {row[1] for row in schema(empty_database_url)}


@pytest.mark.parametrize("earlier", revisions())
def test_migrates_from_each_earlier_revision(earlier: str, empty_database_url: str, database_url: str) -> None:
    storage._upgrade(empty_database_url, earlier)
    with psycopg.connect(empty_database_url) as connection:
        assert current_revision(connection) == earlier
        rows = ROOT / "tests" / "integration" / "rows" / f"{earlier}.sql"  # what that version would have written
        connection.execute(rows.read_bytes())
    migrate(empty_database_url)
    assert schema(empty_database_url) == schema(database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT name FROM application").fetchall() == [("support",)]
        assert connection.execute("SELECT count(*) FROM interaction").fetchone() == (1,)


def test_migrating_twice_changes_nothing(empty_database_url: str) -> None:
    migrate(empty_database_url)
    before = schema(empty_database_url)
    migrate(empty_database_url)
    assert schema(empty_database_url) == before


def test_replicas_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate, empty_database_url) for _ in range(4)]:
            done.result()
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(head_revision(),)]


def test_a_failed_migration_leaves_nothing_behind(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE audit_log (mine integer)")  # the last table that 0001 creates
    with pytest.raises(StorageError, match=r'migration failed.*"audit_log" already exists'):
        migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regclass('application')").fetchone() == (None,)
        assert current_revision(connection) is None


def test_a_database_of_a_newer_headway_is_refused(empty_database_url: str) -> None:
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StorageError, match=r"revision 9999.*newer Headway"):
        migrate(empty_database_url)


def test_a_database_in_another_encoding_is_refused(postgres_url: str) -> None:
    name = f"latin_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        connection.execute(create.format(sql.Identifier(name)))
        try:
            with pytest.raises(StorageError, match="encoding is SQL_ASCII; create it with ENCODING 'UTF8'"):
                migrate(make_conninfo(postgres_url, dbname=name))
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_broken_url_is_named_without_its_password() -> None:
    for call in (migrate, Database):
        with pytest.raises(ConfigurationError, match="HEADWAY_DATABASE_URL") as caught:
            call("postgresql://headway:hunter2@:::/%%")
        assert "hunter2" not in str(caught.value)


async def test_an_absent_server_is_a_storage_error() -> None:
    url = "postgresql://headway:hunter2@127.0.0.1:1/headway"
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1/headway is away") as caught:
        migrate(url)
    assert "hunter2" not in str(caught.value)
    away = Database(url, wait_seconds=0.2)
    with pytest.raises(StorageError, match="is away"):
        await away.open()
    await away.close()


async def test_sessions_run_in_utc_whatever_the_url_says(database_url: str) -> None:
    url = make_conninfo(database_url, options="-c statement_timeout=12345 -c timezone=Asia/Tokyo")
    opened = Database(url)
    await opened.open()
    async with opened.connection() as connection:
        cursor = await connection.execute("SELECT current_setting('timezone'), current_setting('statement_timeout')")
        assert await cursor.fetchone() == ("UTC", "12345ms")
    await opened.close()


async def test_a_server_that_goes_without_a_word_is_noticed_unless_the_url_says_otherwise(database_url: str) -> None:
    for options, expected in ({}, ("10000", "5")), ({"tcp_user_timeout": "700"}, ("700", "5")):
        opened = Database(make_conninfo(database_url, **options))
        await opened.open()
        async with opened.connection() as connection:
            given = connection.info.get_parameters()
        await opened.close()
        assert (given["tcp_user_timeout"], given["keepalives_idle"]) == expected


async def test_a_block_is_one_transaction(database: Database) -> None:
    with pytest.raises(ValueError, match="stop"):  # noqa: PT012 (the block is what is tested)
        async with database.connection() as connection:
            await connection.execute("INSERT INTO audit_log (author, action, subject) VALUES ('a', 'b', 'c')")
            raise ValueError("stop")
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM audit_log")
        assert await cursor.fetchone() == (0,)


async def test_lost_connections_are_replaced(database: Database, postgres_url: str) -> None:
    with pytest.raises(StorageError, match="is away"):  # noqa: PT012 (the block is what is tested)
        async with database.connection() as connection:
            kill_sessions(postgres_url, connection.info.dbname)
            await connection.execute("SELECT 1")
    async with database.connection() as connection:  # the same pool goes on
        await connection.execute("SELECT 1")
    kill_sessions(postgres_url, connection.info.dbname)
    async with database.connection() as connection:  # killed while idle: not even an error
        await connection.execute("SELECT 1")


def kill_sessions(postgres_url: str, name: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))


def test_revisions_are_numbered_and_carry_their_sql() -> None:
    folder = ROOT / "src" / "headway" / "storage" / "migrations" / "versions"
    for number, revision in enumerate(revisions(), start=1):
        assert revision == f"{number:04d}"
        (script,) = folder.glob(f"{revision}_*.py")
        assert f'revision = "{revision}"' in script.read_text()
        assert script.with_suffix(".sql").is_file()


def test_the_wheel_carries_the_migrations(tmp_path: Path) -> None:
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "src" / "headway" / "storage" / "migrations"
    expected = {
        path.relative_to(ROOT / "src").as_posix() for path in folder.rglob("*") if path.suffix in (".py", ".sql")
    }
    assert expected <= names


async def test_a_cancellation_that_the_pool_loses_is_not_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``asyncio.wait_for`` loses it before Python 3.12, when a connection comes at that very moment."""
    get = AsyncConnectionPool.getconn

    async def lose(pool: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - as the pool has it
        found = await get(pool, timeout)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return found

    async def use() -> None:
        async with database.connection():
            pytest.fail("it was cancelled")

    monkeypatch.setattr(AsyncConnectionPool, "getconn", lose)
    task = asyncio.create_task(use())
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    async with database.connection() as connection:
        await connection.execute("SELECT 1")
