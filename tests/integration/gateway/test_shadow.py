"""The shadow stage in one worker: who is mirrored, what is kept of it, and that callers never notice."""

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from psycopg.types.json import Jsonb

from headway.clock import SystemClock
from headway.domain.evidence import Counts
from headway.domain.release import Retrieval
from headway.gateway.measurements import MIRRORED, MIRRORED_COST, MIRRORS_DROPPED, REQUESTS
from headway.ids import Arm, Kind
from headway.storage.records import read_interaction
from headway.testing import Behaviour, Fault, Lognormal, server_error
from tests.integration.gateway.conftest import CANDIDATE, STABLE, WorkerStand
from tests.integration.gateway.grounded import fields, ground, prepare


@pytest.fixture
async def stand(worker_stand: WorkerStand) -> WorkerStand:
    """Everything is mirrored."""
    await worker_stand.rows(
        "WITH stage AS (UPDATE rollout_stage SET stage = 0, share = 0, phase = 'shadow')"
        " UPDATE rollout SET stage = 0, share = 0, state = 'shadow', kind = 1 RETURNING 1"
    )
    await set_shadow(worker_stand)
    await worker_stand.start()
    return worker_stand


async def set_shadow(stand: WorkerStand, **shadow: Any) -> None:
    """Change the shadow stage; the worker serves by it."""
    terms = {"policy": {"shadow": {"sample": 1.0, **shadow}, "on_lost_control": "keep"}}
    await stand.rows("UPDATE rollout SET terms = %s RETURNING 1", Jsonb(terms))
    await stand.publish()


def pairs(found: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split into what callers asked and what was mirrored."""
    served = [row for row in found if row["mirror_of"] is None]
    return served, [row for row in found if row["mirror_of"] is not None]


# --- what is kept ---


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_put_to_the_candidate_as_well(stand: WorkerStand, stream: bool) -> None:
    reply = await stand.ask(stream=stream, user="ann")
    assert reply.status == 200
    assert reply.headers["x-headway-release"] == "calm"
    (served,), (mirrored,) = pairs(await stand.interactions(2))
    assert served["id"] == mirrored["mirror_of"] == reply.id
    booked = ("rollout", "stage", "arm", "kind", "release")
    assert [served[name] for name in booked] == [1, 0, Arm.STABLE, Kind.RANDOMISED, 1]
    assert [mirrored[name] for name in booked] == [1, 0, Arm.CANDIDATE, Kind.SHADOW, 2]
    for name in ("unit", "conversation", "user_id", "stream", "operation", "application"):
        assert mirrored[name] == served[name], name
    assert (mirrored["status"], mirrored["error"], mirrored["aborted"]) == (200, None, False)
    assert (mirrored["first_token_ms"] is not None) == stream
    assert mirrored["total_ms"] > 0
    assert mirrored["cost_usd"] > 0
    assert json.loads(mirrored["answer"])["choices"][0]["message"]["content"]
    assert (served["request"] is None, mirrored["request"]) == (False, None)
    (asked,) = stand.asked(CANDIDATE)
    assert asked.body["messages"][0] == {"role": "system", "content": "Be bold, support."}
    assert asked.body["stream"] is stream if stream else not asked.body.get("stream")


async def test_a_mirror_searches_the_index_version_of_the_candidate(stand: WorkerStand) -> None:
    await prepare(stand)
    await ground(stand, 2, Retrieval("handbook", 2))  # of which this caller sees nothing
    await stand.publish()
    await stand.ask(**fields("/v1/chat/completions"))
    (served,), (mirrored,) = pairs(await stand.interactions(2))
    assert (served["passages"], served["cited"], mirrored["passages"], mirrored["context_tokens"]) == (2, True, 0, 0)
    assert mirrored["retrieval_ms"] > 0
    rows = await stand.rows("SELECT arm, counts FROM evidence WHERE stage = 0")
    booked: dict[int, list[Counts]] = {0: [], 1: []}
    for arm, counts in rows:
        booked[arm].append(msgspec.convert(counts, Counts, strict=False))
    empty = [sum(each.events["empty_result_rate"].count for each in booked[arm]) for arm in (0, 1)]
    searched = [sum(each.events["empty_result_rate"].at_risk for each in booked[arm]) for arm in (0, 1)]
    assert (empty, searched) == ([0, 1], [1, 1])


async def test_it_costs_no_key_anything_and_is_counted_apart(stand: WorkerStand) -> None:
    await stand.ask()
    (served,), (mirrored,) = pairs(await stand.interactions(2))
    assert mirrored["key"] == 0
    usage = await stand.rows("SELECT key_id, requests, cost_usd FROM key_usage")
    assert usage == [(served["key"], 1, pytest.approx(served["cost_usd"]))]
    await stand.close()
    assert await stand.measured(REQUESTS) == 1
    assert await stand.measured(MIRRORED, "1", "2", "2xx") == 1
    assert await stand.measured(MIRRORED_COST, "1", "2") == pytest.approx(mirrored["cost_usd"])
    assert await stand.measured(MIRRORS_DROPPED) == 0


async def test_the_two_answers_are_read_side_by_side(stand: WorkerStand) -> None:
    reply = await stand.ask()
    _, (mirrored,) = pairs(await stand.interactions(2))
    async with stand.world.database.connection() as connection:
        found = await read_interaction(connection, reply.id)
        beside = await read_interaction(connection, mirrored["id"])
    mirror = found.pop("mirror")
    assert mirror.keys() == found.keys()
    assert (found["release"], mirror["release"], mirror["kind"]) == ("calm", "bold", "shadow")
    assert (found["mirror_of"], mirror["mirror_of"]) == (None, reply.id)
    assert mirror["answer"] == mirrored["answer"] != found["answer"]
    assert beside == {**mirror, "mirror": None}


async def test_both_are_evidence_of_the_shadow_stage_and_of_no_unit(stand: WorkerStand) -> None:
    for _ in range(3):
        await stand.ask()
    await stand.interactions(6)
    evidence = await stand.rows(
        "SELECT stage, arm, sum((counts->>'interactions')::int), sum((counts->>'units')::int) FROM evidence"
        " GROUP BY 1, 2 ORDER BY 2"
    )
    assert evidence == [(0, 0, 3, 0), (0, 1, 3, 0)]
    assert await stand.rows("SELECT 1 FROM unit_state") == []


async def test_a_candidate_that_fails_is_recorded_and_nobody_else_notices(stand: WorkerStand) -> None:
    stand.provider.set_behaviour(CANDIDATE, Behaviour(errors=(server_error(),)))
    replies = [await stand.ask(stream=bool(n % 2)) for n in range(4)]
    assert {reply.status for reply in replies} == {200}
    served, mirrored = pairs(await stand.interactions(8))
    assert {row["release_error"] for row in served} == {False}
    assert [(row["release_error"], row["error"] is None) for row in mirrored] == [(True, False)] * 4
    assert mirrored[0]["status"] == 502


async def test_what_the_caller_was_refused_is_mirrored_too(stand: WorkerStand) -> None:
    """Also failures and aborts of stable: or the candidate would get easier requests."""
    stand.provider.set_behaviour(STABLE, Behaviour(errors=(server_error(),)))
    assert (await stand.ask()).status == 502
    stand.provider.set_behaviour(STABLE, Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
    await stand.ask(leave_after=0.05)
    served, mirrored = pairs(await stand.interactions(4))
    assert sorted(row["aborted"] for row in served) == [False, True]
    assert {row["status"] for row in mirrored} == {200}


# --- who is mirrored ---


async def test_a_sample_is_drawn_by_the_ids(stand: WorkerStand) -> None:
    await set_shadow(stand, sample=0.4)
    ids = [(await stand.ask()).raw_id for _ in range(40)]
    drawn = {uuid.UUID(bytes=each) for each in ids if int.from_bytes(each[9:], "big") * 2.0**-56 < 0.4}
    _, mirrored = pairs(await stand.interactions(40 + len(drawn)))
    assert {row["mirror_of"] for row in mirrored} == drawn
    assert 3 < len(drawn) < 37


async def test_a_pause_stops_it_and_the_traffic_goes_on(stand: WorkerStand) -> None:
    """So does a budget that is used up: either way the snapshot says so."""
    await stand.ask()
    await stand.interactions(2)
    await stand.rows("UPDATE rollout SET shadow_usd = 5 RETURNING 1")
    await set_shadow(stand, budget_usd=5.0)
    await stand.ask()
    await stand.rows("UPDATE rollout SET shadow_usd = 4.9, state = 'paused' RETURNING 1")
    await stand.publish()
    await stand.ask()
    served, mirrored = pairs(await stand.interactions(4))
    assert (len(served), len(mirrored)) == (3, 1)
    assert {(row["rollout"], row["stage"]) for row in served} == {(1, 0)}
    await stand.rows("UPDATE rollout SET state = 'shadow' RETURNING 1")
    await stand.publish()
    await stand.ask()
    await stand.interactions(6)


async def test_what_waits_when_the_stage_ends_is_not_begun(stand: WorkerStand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.gateway.shadow._RUNNING", 1)
    stand.provider.play(CANDIDATE, Behaviour(headers_ms=Lognormal(600)))
    for _ in range(4):
        await stand.ask()
    await stand.rows("UPDATE rollout SET ended_at = now() RETURNING 1")
    await stand.publish()
    served, mirrored = pairs(await stand.interactions(5))
    assert (len(served), len(mirrored)) == (4, 1)
    assert len(stand.asked(CANDIDATE)) == 1


async def test_pinned_requests_are_not_mirrored(stand: WorkerStand) -> None:
    await stand.rows("UPDATE api_key SET scopes = scopes || '{pin}' RETURNING 1")
    await stand.publish()
    await stand.ask(model="support@calm")
    await stand.ask()
    (_, served), (mirrored,) = pairs(await stand.interactions(3))
    assert mirrored["mirror_of"] == served["id"]


async def test_what_the_provider_keeps_is_neither_used_nor_added_to(stand: WorkerStand) -> None:
    """A mirrored answer is not stored; later turns of stored responses are no part of the comparison."""
    first = await stand.ask("/v1/responses", input="hi")
    await stand.interactions(2)
    (asked,) = stand.asked(CANDIDATE)
    assert asked.body["store"] is False
    assert [row[0] for row in await stand.rows("SELECT id FROM response_link")] == [first.id]
    later = await stand.ask("/v1/responses", input="more", previous_response_id=json.loads(first.body)["id"])
    there = await stand.ask("/v1/responses", input="hi", conversation="conv_1")
    assert (later.status, there.status) == (200, 200)
    served, mirrored = pairs(await stand.interactions(4))
    assert [(row["rollout"], row["release"]) for row in served] == [(1, 1), (0, 1), (0, 1)]
    assert len(mirrored) == len(stand.asked(CANDIDATE)) == 1


# --- that callers never notice ---


@pytest.mark.parametrize("fault", [Fault.HANG_BEFORE_HEADERS, Fault.HANG_MID_STREAM])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_candidate_that_hangs_keeps_nobody_waiting(stand: WorkerStand, fault: Fault, stream: bool) -> None:
    stand.provider.set_behaviour(CANDIDATE, Behaviour(fault=fault))
    clock = SystemClock()
    started = clock.monotonic_seconds()
    replies = [await stand.ask(stream=stream) for _ in range(30)]
    assert clock.monotonic_seconds() - started < 5  # the candidate would take minutes for one
    assert {reply.status for reply in replies} == {200}
    await stand.provider.wait_until(lambda: len(stand.asked(CANDIDATE)) >= 16)
    served, mirrored = pairs(await stand.interactions(30))
    assert (len(served), mirrored) == (30, [])


async def test_what_there_is_no_room_for_is_dropped_and_counted(
    stand: WorkerStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.gateway.shadow._RUNNING", 2)
    monkeypatch.setattr("headway.gateway.shadow._WAITING", 3)
    stand.provider.set_behaviour(CANDIDATE, Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
    for _ in range(10):
        await stand.ask()
    await stand.provider.wait_until(lambda: len(stand.asked(CANDIDATE)) == 2)
    await stand.close()
    assert await stand.measured(MIRRORS_DROPPED, "1", "2") == 10
    await stand.interactions(10)


async def test_bodies_that_would_fill_the_memory_are_not_held(
    stand: WorkerStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.gateway.shadow._HELD_BYTES", 3000)
    stand.provider.play(CANDIDATE, *[Behaviour(headers_ms=Lognormal(100))] * 2)
    large = [{"role": "user", "content": "x" * 2000}]
    for _ in range(3):
        await stand.ask(messages=large)
    await stand.interactions(4)
    await stand.ask(messages=large)  # what was held has been let go of
    await stand.interactions(6)
    assert len(stand.asked(CANDIDATE)) == 2


async def test_it_is_given_up_at_shutdown(stand: WorkerStand) -> None:
    stand.provider.set_behaviour(CANDIDATE, Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
    await stand.ask()
    await stand.provider.wait_until(lambda: len(stand.asked(CANDIDATE)) == 1)
    clock = SystemClock()
    started = clock.monotonic_seconds()
    await stand.close()
    assert clock.monotonic_seconds() - started < 2
    await stand.interactions(1)
    await stand.provider.wait_until(lambda: stand.asked(CANDIDATE)[0].ended_seconds is not None)


async def test_mirrors_leave_the_places_at_a_deployment_to_callers(stand: WorkerStand) -> None:
    """Stable and candidate share a deployment with four places: mirrors begin only while half of them are free."""
    await share_deployment(stand, max_concurrency=4)
    await set_shadow(stand, sample=0.0)
    stand.provider.play(STABLE, *[Behaviour(headers_ms=Lognormal(700))] * 2)
    slow = [asyncio.create_task(stand.ask()) for _ in range(2)]
    await stand.provider.wait_until(lambda: len(stand.asked(STABLE)) == 2)
    await set_shadow(stand)
    assert (await stand.ask()).status == 200
    await asyncio.gather(*slow)
    assert (await stand.ask()).status == 200
    served, mirrored = pairs(await stand.interactions(5))
    assert [row["mirror_of"] for row in mirrored] == [served[-1]["id"]]
    await stand.close()
    assert await stand.measured(MIRRORS_DROPPED) == 1


async def test_mirrors_that_fail_close_no_deployment_to_callers(stand: WorkerStand) -> None:
    await share_deployment(stand, breaker_failures=1)
    stand.provider.play(STABLE, Behaviour(), Behaviour(errors=(server_error(),)))
    await stand.ask()
    _, (failed,) = pairs(await stand.interactions(2))
    assert failed["release_error"]
    assert [(await stand.ask()).status for _ in range(3)] == [200] * 3


async def share_deployment(stand: WorkerStand, **operation: Any) -> None:
    for release in (1, 2):
        await stand.deploy(release, "shared", STABLE, **operation)
    await stand.publish()
