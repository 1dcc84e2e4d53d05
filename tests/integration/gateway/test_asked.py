"""What an application was asked, read of its recorded interactions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headway.domain.release import Retrieval
from headway.errors import LimitError, NotFoundError
from headway.gateway.asked import read_asked
from headway.storage.applications import Application, find_application, find_retrieval
from headway.storage.database import Connection, Database
from tests.asked import ask, found_application
from tests.lakes import CountingEmbedder


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with database.connection() as opened:
        await found_application(opened, CountingEmbedder().embed)
        yield opened


@pytest.fixture
async def application(connection: Connection) -> Application:
    return await find_application(connection, "help")


async def test_each_question_comes_once_the_latest_first(connection: Connection, application: Application) -> None:
    for ago, text in ((4, "first"), (3, "again"), (2, " again\n"), (1, "latest")):
        await ask(connection, text, ago=f"{ago} minutes")
    asked = await read_asked(connection, application, 10)
    assert asked.queries == ("latest", "again", "first")
    assert asked.counts == {"interactions": 4, "without_content": 0, "without_query": 0, "repeated": 1}
    few = await read_asked(connection, application, 2)
    assert (few.queries, few.interactions) == (("latest", "again"), 2), "no more is read than is needed"


async def test_what_is_erased_is_gone(connection: Connection, application: Application) -> None:
    await ask(connection, "secret", ago="1 minute")
    await connection.execute("UPDATE interaction SET request = NULL")
    with pytest.raises(NotFoundError, match="the content of its 1 interactions is not stored"):
        await read_asked(connection, application, 10)
    await connection.execute("DELETE FROM interaction")
    with pytest.raises(NotFoundError, match="it was not asked anything yet"):
        await read_asked(connection, application, 10)


async def test_too_slow_is_given_up(connection: Connection, application: Application) -> None:
    await ask(connection, "again and again", times=30_000)
    with pytest.raises(LimitError, match="what help was asked cannot be read in"):
        await read_asked(connection, application, 500, seconds=0.001)


async def test_how_its_stable_release_searches(connection: Connection) -> None:
    plain = Retrieval("", 0, top_k=3)
    assert await find_retrieval(connection, None, plain) == plain
    for name, otherwise in (("help", None), (None, "help"), ("help", "sales")):
        assert (await find_retrieval(connection, name, plain, otherwise=otherwise)).label == "handbook@1"
    await connection.execute("UPDATE release SET bundle = bundle - 'retrieval'")
    assert await find_retrieval(connection, None, plain, otherwise="help") == plain
    with pytest.raises(NotFoundError, match="the stable release of help has no search index"):
        await find_retrieval(connection, "help", plain)
