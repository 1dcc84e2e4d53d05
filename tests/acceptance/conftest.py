"""What the acceptance tests share: databases, and one running Headway for each test process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from psycopg.conninfo import make_conninfo

from tests.acceptance.stand import Stand, open_stand
from tests.conftest import create_database, drop_database


@contextmanager
def new_database(postgres_url: str) -> Iterator[str]:
    """Make an empty database; gives its URL."""
    name = f"acceptance_{uuid.uuid4().hex[:12]}"
    create_database(postgres_url, name)
    try:
        yield make_conninfo(postgres_url, dbname=name)
    finally:
        drop_database(postgres_url, name)


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str) -> Iterator[str]:
    """An empty database for the Headway of one module."""
    with new_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def stand(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Headway with two workers and a simulated provider; the tests leave it as they found it."""
    with new_database(postgres_url) as url, open_stand(tmp_path_factory.mktemp("stand"), url) as opened:
        yield opened
