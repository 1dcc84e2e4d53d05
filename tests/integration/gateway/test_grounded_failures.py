"""Searches that fail: the release's policy is kept, in a bounded time, on the record, and nobody else is held up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headway.config.indexes import EmbedderSpec, IndexSpec, LakeSpec, VersionSpec
from headway.domain.release import Deployment, Endpoint, Operation, Retrieval
from headway.storage import partitions
from headway.storage.database import Database
from headway.testing import Behaviour, Fault, Lognormal, ProviderSimulator, overloaded, rate_limited
from headway.testing.ledger import Outcome
from tests.indexes import publish, read_vectors
from tests.integration.feedback.conftest import Relay
from tests.integration.gateway.conftest import CANDIDATE, STABLE, Reply, WorkerStand
from tests.integration.gateway.grounded import HANDBOOK, LEAVE, PATHS, TRAVEL, citations, fields, ground, prepare
from tests.world import found_world

VECTORS = "vectors"
BOUND_SECONDS = 4.0
POLICIES = {"support": "fail", "sales": "answer"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not answer counts as away after one second instead of three."""
    monkeypatch.setattr("headway.retrieval.retriever._ANSWER_PART", 0.2)


@pytest.fixture
async def grounded(worker_stand: WorkerStand) -> WorkerStand:
    """``handbook@4`` is embedded by a deployment of the simulator."""
    await prepare(worker_stand)
    endpoint = Endpoint(provider="openai", base_url=worker_stand.provider.base_url, model=VECTORS)
    spec = VersionSpec(
        IndexSpec(LakeSpec("file:/docs"), EmbedderSpec(VECTORS, dimensions=16)),
        Deployment(VECTORS, endpoint, Operation(auth="none")),
    )
    async with worker_stand.world.database.connection() as connection:
        await publish(connection, "handbook", 4, (LEAVE, TRAVEL), read_vectors(16), spec)
    await worker_stand.start()
    return worker_stand


async def use(stand: WorkerStand, version: int) -> None:
    """Let both applications search a version: `support` fails without it, `sales` answers."""
    for release in (1, 2):
        await ground(stand, release, Retrieval("handbook", version, on_failure="fail"))
    await ground(stand, 3, Retrieval("handbook", version, on_failure="answer"))
    await stand.deploy(3, STABLE, STABLE)
    await stand.publish()


def check(reply: Reply, policy: str, *codes: str) -> None:
    """The policy was kept: 503 with the code and when to come again, or an answer without passages."""
    if policy == "answer":
        assert (reply.status, citations(reply)) == (200, [])
        return
    assert reply.status == 503
    assert json.loads(reply.body)["error"]["code"] in codes
    assert int(reply.headers["retry-after"]) >= 1
    for private in (b"127.0.0.1", b"vectors", b"index_chunk"):
        assert private not in reply.body


async def check_rows(stand: WorkerStand, count: int) -> None:
    rows = await stand.interactions(count)
    assert {row["application"] for row in rows} == {1, 2}
    for row in rows:
        assert row["retrieval_error"] in ("retrieval_failed", "retrieval_timeout")
        assert 0 < row["retrieval_ms"] < BOUND_SECONDS * 1000
        assert (row["passages"], row["retrieved"], row["context_tokens"]) == (None, None, None)
        failed = (row["retrieval_error"], True) if row["application"] == 1 else (None, False)
        assert (row["error"], row["release_error"]) == failed


# --- the database ---


@pytest.fixture
async def far(
    database: Database, database_url: str, simulator: ProviderSimulator, tmp_path: Path
) -> AsyncIterator[tuple[WorkerStand, Relay]]:
    """A worker whose database is reached through a relay that can be cut."""
    relay = Relay(database_url)
    await relay.connect()
    stand = WorkerStand(await found_world(database), simulator, tmp_path, database_url=relay.url)
    for release, model in ((1, STABLE), (2, CANDIDATE)):
        await stand.deploy(release, model, model)
    await prepare(stand)
    yield stand, relay
    await stand.close()
    await relay.cut()


@pytest.mark.parametrize("silent", [False, True])
async def test_the_database_goes_away(far: tuple[WorkerStand, Relay], silent: bool) -> None:
    stand, relay = far
    await use(stand, 1)
    await stand.start()
    assert citations(await stand.ask(**fields("")))
    if silent:
        relay.flowing.clear()
    else:
        await relay.cut()
    cases = [(path, name, stream) for path in PATHS for name in POLICIES for stream in (False, True)]
    began = time.monotonic()
    asked = [stand.ask(path, **fields(path, model=name, stream=stream)) for path, name, stream in cases]
    for (_, name, _), reply in zip(cases, await asyncio.gather(*asked), strict=True):
        check(reply, POLICIES[name], "retrieval_failed", "retrieval_timeout")
    assert time.monotonic() - began < BOUND_SECONDS
    began = time.monotonic()  # by now it is known
    for _ in range(10):
        check(await stand.ask(**fields("")), "fail", "retrieval_failed")
    assert time.monotonic() - began < BOUND_SECONDS
    relay.flowing.set()
    if not silent:
        await relay.connect()
    for _ in range(200):
        if b"leave.md" in (await stand.ask(**fields(""))).body:
            break
        await asyncio.sleep(0.1)
    failed: list[Any] = []
    for _ in range(200):
        failed = await stand.rows("SELECT application, error FROM interaction WHERE retrieval_error IS NOT NULL")
        if len(failed) >= 18:
            break
        await asyncio.sleep(0.1)
    assert len(failed) >= 18
    assert all((error is not None) is (application == 1) for application, error in failed)


# --- the embedder ---


@pytest.mark.parametrize(
    "broken",
    [
        Behaviour(errors=(overloaded(),)),
        Behaviour(errors=(rate_limited(retry_after_seconds=60),)),
        Behaviour(headers_ms=Lognormal(60_000)),
        Behaviour(fault=Fault.RESET_BEFORE_HEADERS),
        Behaviour(fault=Fault.END_EARLY),
    ],
    ids=["overloaded", "rate-limited", "hangs", "reset", "junk"],
)
async def test_the_embedder_is_away(grounded: WorkerStand, broken: Behaviour) -> None:
    await use(grounded, 4)
    grounded.provider.set_behaviour(VECTORS, broken)
    began = time.monotonic()
    for name, reply in zip(
        POLICIES, await asyncio.gather(*[grounded.ask(**fields("", model=name)) for name in POLICIES]), strict=True
    ):
        check(reply, POLICIES[name], "retrieval_failed", "retrieval_timeout")
    assert time.monotonic() - began < BOUND_SECONDS
    await check_rows(grounded, 2)
    searched = await grounded.ask("/v1/search", index="handbook@4", query="leave")
    assert searched.status == 503
    await use(grounded, 1)
    assert citations(await grounded.ask(**fields("")))  # other indexes are searched meanwhile


async def test_the_embedder_gives_other_vectors_than_those_of_the_index(grounded: WorkerStand) -> None:
    changed = "jsonb_set(spec, '{index,embedder,dimensions}', '24')"
    await grounded.rows(f"UPDATE index_version SET spec = {changed} WHERE number = 4 RETURNING 1")
    await use(grounded, 4)
    for name, policy in POLICIES.items():
        check(await grounded.ask(**fields("", model=name)), policy, "retrieval_failed")
    await check_rows(grounded, 2)


# --- versions and clients that go ---


async def test_a_version_is_dropped_that_a_release_still_names(grounded: WorkerStand) -> None:
    await use(grounded, 1)
    assert citations(await grounded.ask(**fields("")))
    ((version,),) = await grounded.rows("SELECT id FROM index_version WHERE number = 1")
    async with grounded.world.database.connection() as connection:
        await partitions.drop(connection, version)
        await connection.execute("UPDATE index_version SET state = 'dropped' WHERE number = 1")
    for path in PATHS:
        for name, policy in POLICIES.items():
            for stream in (False, True):
                reply = await grounded.ask(path, **fields(path, model=name, stream=stream))
                check(reply, policy, "retrieval_failed")


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_leaves_during_the_search(grounded: WorkerStand, path: str) -> None:
    await use(grounded, 4)
    grounded.provider.set_behaviour(VECTORS, Behaviour(headers_ms=Lognormal(60_000)))
    await grounded.ask(path, leave_after=0.3, **fields(path))
    (row,) = await grounded.interactions(1)
    assert (row["status"], row["aborted"], row["error"], row["cited"]) == (499, True, None, None)
    assert (row["passages"], row["retrieval_error"], row["attempts"]) == (None, None, 0)
    assert 200 < row["retrieval_ms"] <= row["total_ms"]
    (asked,) = grounded.provider.received  # the embedder; no model was
    assert asked.model == VECTORS
    for _ in range(100):
        if asked.outcome is not Outcome.OPEN:
            break
        await asyncio.sleep(0.02)
    assert asked.outcome is Outcome.CANCELLED
    grounded.provider.set_behaviour(VECTORS, Behaviour())
    assert citations(await grounded.ask(path, **fields(path)))


async def test_one_index_that_hangs_holds_up_no_other_application(grounded: WorkerStand) -> None:
    """More callers than the retriever has places wait for an embedder; those of another index are answered at once."""
    await use(grounded, 4)
    grounded.provider.set_behaviour(VECTORS, Behaviour(headers_ms=Lognormal(60_000)))
    waiting = [asyncio.create_task(grounded.ask(leave_after=30.0, **fields(""))) for _ in range(100)]
    for _ in range(100):
        if len(grounded.provider.received) > 4:
            break
        await asyncio.sleep(0.02)
    assert len(grounded.provider.received) > 4
    await ground(grounded, 3, HANDBOOK)
    await grounded.publish()
    began = time.monotonic()
    reply = await grounded.ask(**fields("", model="sales"))
    assert (reply.status, time.monotonic() - began < 1) == (200, True)
    assert citations(reply)
    for each in await asyncio.gather(*waiting):
        check(each, "fail", "retrieval_failed", "retrieval_timeout")
