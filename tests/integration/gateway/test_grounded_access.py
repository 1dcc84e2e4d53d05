"""Who sees what: groups of keys and of those they speak for, in answers, stored responses and what is kept."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from headway.testing import Behaviour, overloaded
from tests.integration.gateway.conftest import CANDIDATE, STABLE, Reply, WorkerStand
from tests.integration.gateway.grounded import PATHS, SALARIES, SECRET, citations, fields, prepare, told

SALARY = "What is the salary of a manager?"
GROUPS = "x-headway-groups"


@pytest.fixture
async def grounded(worker_stand: WorkerStand) -> WorkerStand:
    await prepare(worker_stand)
    await worker_stand.start()
    return worker_stand


def sees(reply: Reply) -> bool:
    assert reply.status == 200, reply
    return SALARIES.path in [each["document"] for each in citations(reply)]


async def ask_by(stand: WorkerStand, path: str, headers: Any) -> Reply:
    if path == "/v1/search":
        return await stand.ask(path, key="proxy", headers=headers, application="support", query=SALARY)
    return await stand.ask(path, key="proxy", headers=headers, **fields(path, SALARY))


async def respond(stand: WorkerStand, key: str, groups: str | None = None, earlier: Reply | None = None) -> Reply:
    more = {} if earlier is None else {"previous_response_id": json.loads(earlier.body)["id"]}
    headers = {} if groups is None else {GROUPS: groups}
    return await stand.ask("/v1/responses", key=key, headers=headers, **fields(PATHS[1], SALARY, **more))


async def test_only_who_sees_the_same_goes_on_from_a_stored_response(grounded: WorkerStand) -> None:
    """What the provider keeps may repeat the passages: a proxy that mixes up its users must not give them away."""
    first = await respond(grounded, "proxy", "hr,it")
    assert sees(first)
    for groups in ("it", "", "hr", "hr,it,board", None):
        refused = await respond(grounded, "proxy", groups, first)
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (404, "previous_response_not_found")
    second = await respond(grounded, "proxy", "it , hr", first)
    assert sees(second)
    assert (await respond(grounded, "proxy", "it", second)).status == 404
    assert (await respond(grounded, "hr", None, first)).status == 404  # another key's
    plain = await respond(grounded, "proxy", "")  # was told nothing that is not for everybody
    assert sees(await respond(grounded, "proxy", "hr", plain))


async def test_what_was_said_in_between_without_an_index_is_not_forgotten(grounded: WorkerStand) -> None:
    first = await respond(grounded, "proxy", "hr")
    await grounded.rows("UPDATE release SET bundle = bundle - 'retrieval' RETURNING 1")
    await grounded.publish()
    second = await respond(grounded, "proxy", "hr", first)
    assert second.status == 200
    assert (await respond(grounded, "proxy", "it", second)).status == 404


async def test_a_response_from_before_a_key_lost_its_group_is_not_gone_on_from(grounded: WorkerStand) -> None:
    first = await respond(grounded, "hr")
    assert sees(first)
    await grounded.rows("UPDATE api_key SET groups = '{}' WHERE name = 'hr' RETURNING 1")
    await grounded.publish()
    assert (await respond(grounded, "hr", None, first)).status == 404
    assert not sees(await respond(grounded, "hr"))


async def test_groups_and_keys_change_within_a_second(grounded: WorkerStand) -> None:
    async def wait(*, status: int, found: bool | None) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 5:
            reply = await grounded.ask(key="hr", **fields("", SALARY))
            if reply.status == status and (found is None or sees(reply) is found):
                break
        return loop.time() - began

    for statement, status, found in (
        ("UPDATE api_key SET groups = '{}' WHERE name = 'hr' RETURNING 1", 200, False),
        ("UPDATE api_key SET groups = '{hr}' WHERE name = 'hr' RETURNING 1", 200, True),
        ("UPDATE api_key SET revoked_at = now() WHERE name = 'hr' RETURNING 1", 401, None),
    ):
        await grounded.rows(statement)
        published = asyncio.create_task(grounded.publish())
        assert await wait(status=status, found=found) < 1
        await published


HEADERS: tuple[tuple[str, int, bool | None], ...] = (
    ("hr", 200, True),
    (" hr , hr,, ", 200, True),
    ("HR", 200, False),
    ("hr;it", 200, False),
    ("*", 200, False),
    ("hr%", 200, False),
    ("{hr}", 200, False),
    ("hr\u200b", 200, False),
    ("' OR true --", 200, False),
    (",,,", 200, False),
    ("hr\u00a0", 200, True),  # blanks at either end are no part of a name
    ("ｈｒ", 200, False),
    ("人事, hr", 200, True),
    ("h\tr", 400, None),
    ("h\x00r", 400, None),
    ("x" * 201, 400, None),
    (",".join(str(number) for number in range(1001)), 400, None),
    (",".join(["hr", *[str(number) for number in range(999)]]), 200, True),
)


async def test_a_header_says_which_groups_and_nothing_else(grounded: WorkerStand) -> None:
    for header, status, found in HEADERS:
        for path in (*PATHS, "/v1/search"):
            reply = await ask_by(grounded, path, {GROUPS: header})
            assert (header, reply.status) == (header, status)
            assert (header, SECRET in reply.body.decode()) == (header, found is True)


async def test_a_header_that_is_there_twice_is_nobodys(grounded: WorkerStand) -> None:
    """A proxy adds its own behind what its client sent, or in front of it: neither may count."""
    for path in (*PATHS, "/v1/search"):
        for pair in (("hr", "it"), ("it", "hr"), ("hr", "hr")):
            reply = await ask_by(grounded, path, [(GROUPS, each) for each in pair])
            assert reply.status == 400
            assert GROUPS in reply.body.decode()
    assert list(grounded.provider.received) == []


# --- what is kept ---


@pytest.fixture
def all_logs() -> Iterator[list[str]]:
    """Everything that anybody logs, at every level."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record) + str(record.__dict__))

    def keep(_: Any, __: str, entry: Any) -> Any:
        lines.append(str(entry))
        raise structlog.DropEvent

    root, handler, level = logging.getLogger(), Keep(), logging.getLogger().level
    configured = structlog.get_config()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    structlog.configure(processors=[keep], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    yield lines
    structlog.configure(**configured)
    root.removeHandler(handler)
    root.setLevel(level)


async def test_a_labelled_passage_is_kept_nowhere_but_in_its_index(
    worker_stand: WorkerStand, all_logs: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """Its reader asks, searches, rates, is mirrored and meets errors: no table, file or log has the text."""
    stand = worker_stand
    await prepare(stand)
    terms = '{"policy": {"shadow": {"sample": 1.0}, "on_lost_control": "keep"}}'
    await stand.rows(
        "WITH stage AS (UPDATE rollout_stage SET stage = 0, share = 0, phase = 'shadow')"
        f" UPDATE rollout SET stage = 0, share = 0, state = 'shadow', kind = 1, terms = '{terms}' RETURNING 1"
    )
    await stand.publish()
    await stand.start()
    for path in PATHS:
        for stream in (False, True):
            assert sees(await stand.ask(path, key="hr", **fields(path, SALARY, stream=stream)))
    assert SECRET in told(stand)
    searched = await stand.ask("/v1/search", key="hr", application="support", query=SALARY)
    assert SECRET in searched.body.decode()
    for model in (STABLE, CANDIDATE):
        stand.provider.set_behaviour(model, Behaviour(errors=(overloaded(),)))
    failed = await stand.ask(key="hr", **fields("", SALARY))
    assert failed.status >= 400
    rated: dict[str, Any] = {
        "interaction_id": failed.headers["x-headway-interaction"],
        "metric": "thumbs_up",
        "value": True,
    }
    assert (await stand.ask("/v1/feedback", key="developer", **rated)).status in (200, 201)
    await stand.interactions(10)  # five, and their mirrors
    await stand.close()
    tables = await stand.rows(
        "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND n.nspname = 'public'"
    )
    having = []
    for (table,) in tables:
        ((count,),) = await stand.rows(f"SELECT count(*) FROM \"{table}\" t WHERE t::text ILIKE '%%{SECRET}%%'")
        having += [table] * bool(count)
    assert having
    assert all(table.startswith(("index_chunk", "index_word")) for table in having), having
    files = [each for each in stand.home.rglob("*") if each.is_file()]
    assert files
    assert [each for each in files if SECRET.encode() in each.read_bytes()] == []
    captured = capfd.readouterr()
    assert all_logs
    assert SECRET not in captured.out + captured.err + "".join(all_logs)
