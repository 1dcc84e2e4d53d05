"""What the acceptance tests share: one running Headway for each test process."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from tests.acceptance.stand import Stand, open_stand
from tests.conftest import create_database, drop_database


@pytest.fixture(scope="session")
def stand(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Headway with two workers and a simulated provider; the tests leave it as they found it."""
    name = f"stand_{uuid.uuid4().hex[:12]}"
    create_database(postgres_url, name)
    try:
        with open_stand(tmp_path_factory.mktemp("stand"), make_conninfo(postgres_url, dbname=name)) as opened:
            yield opened
    finally:
        drop_database(postgres_url, name)
