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
BOUND_SECONDS = 6.0
POLICIES: tuple[Any, ...] = ("fail", "answer")


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


async def use(stand: WorkerStand, version: int, **more: Any) -> None:
    for release in (1, 2):
        await ground(stand, release, Retrieval("handbook", version, **more))
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


async def check_rows(stand: WorkerStand, policy: str, count: int) -> None:
    for row in await stand.interactions(count):
        assert row["retrieval_error"] in ("retrieval_failed", "retrieval_timeout")
        assert 0 < row["retrieval_ms"] < BOUND_SECONDS * 1000
        assert (row["passages"], row["retrieved"], row["context_tokens"]) == (None, None, None)
        assert (row["error"], row["release_error"]) == (
            (row["retrieval_error"], True) if policy == "fail" else (None, False)
        )


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
@pytest.mark.parametrize("policy", POLICIES)
async def test_the_database_goes_away(far: tuple[WorkerStand, Relay], policy: Any, silent: bool) -> None:
    stand, relay = far
    await stand.rows("UPDATE application SET unit = 'request' RETURNING 1")
    for release in (1, 2):
        await ground(stand, release, Retrieval("handbook", 1, on_failure=policy))
    await stand.publish()
    await stand.start()
    assert citations(await stand.ask(**fields("")))
    if silent:
        relay.flowing.clear()
    else:
        await relay.cut()
    for stream in (False, True):
        began = time.monotonic()
        replies = await asyncio.gather(*[stand.ask(path, **fields(path, stream=stream)) for path in PATHS])
        assert time.monotonic() - began < BOUND_SECONDS
        for reply in replies:
            check(reply, policy, "retrieval_failed", "retrieval_timeout")
    began = time.monotonic()  # by now it is known
    for _ in range(10):
        check(await stand.ask(**fields("")), policy, "retrieval_failed")
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
        failed = await stand.rows("SELECT error, release_error FROM interaction WHERE retrieval_error IS NOT NULL")
        if len(failed) >= 14:
            break
        await asyncio.sleep(0.1)
    assert len(failed) >= 14
    assert all((error is not None, ours) == ((policy == "fail"),) * 2 for error, ours in failed)


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
@pytest.mark.parametrize("policy", POLICIES)
async def test_the_embedder_is_away(grounded: WorkerStand, policy: Any, broken: Behaviour) -> None:
    await use(grounded, 4, on_failure=policy)
    grounded.provider.set_behaviour(VECTORS, broken)
    began = time.monotonic()
    check(await grounded.ask(**fields("")), policy, "retrieval_failed", "retrieval_timeout")
    assert time.monotonic() - began < BOUND_SECONDS
    await check_rows(grounded, policy, 1)
    searched = await grounded.ask("/v1/search", index="handbook@4", query="leave")
    assert searched.status == 503
    await use(grounded, 1)
    assert citations(await grounded.ask(**fields("")))  # other indexes are searched meanwhile


async def test_the_embedder_gives_other_vectors_than_those_of_the_index(grounded: WorkerStand) -> None:
    changed = "jsonb_set(spec, '{index,embedder,dimensions}', '24')"
    await grounded.rows(f"UPDATE index_version SET spec = {changed} WHERE number = 4 RETURNING 1")
    await use(grounded, 4)
    check(await grounded.ask(**fields("")), "fail", "retrieval_failed")
    await check_rows(grounded, "fail", 1)


# --- versions and clients that go ---


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_version_is_dropped_that_a_release_still_names(grounded: WorkerStand, policy: Any) -> None:
    await use(grounded, 1, on_failure=policy)
    assert citations(await grounded.ask(**fields("")))
    ((version,),) = await grounded.rows("SELECT id FROM index_version WHERE number = 1")
    async with grounded.world.database.connection() as connection:
        await partitions.drop(connection, version)
        await connection.execute("UPDATE index_version SET state = 'dropped' WHERE number = 1")
    for path in PATHS:
        for stream in (False, True):
            check(await grounded.ask(path, **fields(path, stream=stream)), policy, "retrieval_failed")


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
    await asyncio.sleep(0.3)
    assert len(grounded.provider.received) > 4
    await ground(grounded, 3, HANDBOOK)
    await grounded.deploy(3, STABLE, STABLE)
    await grounded.publish()
    began = time.monotonic()
    reply = await grounded.ask(**fields("", model="sales"))
    assert (reply.status, time.monotonic() - began < 1) == (200, True)
    assert citations(reply)
    for each in await asyncio.gather(*waiting):
        check(each, "fail", "retrieval_failed", "retrieval_timeout")
