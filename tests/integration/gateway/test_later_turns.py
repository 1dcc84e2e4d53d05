"""Later turns of stored responses, in and after a rollout: which release goes on, and whose evidence that is."""

import asyncio
import json
from typing import Any

import pytest

from headway.ids import Arm, Kind
from headway.testing import Behaviour, Lognormal
from tests.integration.gateway.conftest import CANDIDATE, STABLE, Reply, WorkerStand

ALL_TO_CANDIDATE = "UPDATE rollout SET share = 1, stage = 1, kind = 1 RETURNING 1"
ROLL_BACK = "UPDATE rollout SET share = 0, stage = 2, state = 'rolled_back', ended_at = now() RETURNING 1"


@pytest.fixture
async def stand(worker_stand: WorkerStand) -> WorkerStand:
    """The candidate has all units, in stage 1."""
    await worker_stand.rows(ALL_TO_CANDIDATE)
    await worker_stand.publish()
    await worker_stand.start()
    return worker_stand


async def begin(stand: WorkerStand, **fields: Any) -> Reply:
    return await stand.ask("/v1/responses", **{"input": "hi", **fields})


async def go_on(stand: WorkerStand, earlier: Reply, **fields: Any) -> Reply:
    body = {"input": "more", "previous_response_id": json.loads(earlier.body)["id"], **fields}
    return await stand.ask("/v1/responses", **body)


def booked(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["release"], row["rollout"], row["stage"], row["arm"], row["kind"]


async def test_a_turn_is_evidence_of_the_stage_that_assigned_it(stand: WorkerStand) -> None:
    first = await begin(stand)
    await stand.rows("UPDATE rollout SET share = 0.001, stage = 2 RETURNING 1")
    await stand.publish()
    assert (await go_on(stand, first)).headers["x-headway-release"] == "bold"
    found = await stand.interactions(2)
    assert [booked(row) for row in found] == [(2, 1, 1, Arm.CANDIDATE, Kind.RANDOMISED)] * 2
    units = await stand.rows("SELECT sum((counts->>'units')::int), count(DISTINCT stage) FROM evidence")
    assert units == [(1, 1)]


async def test_after_a_rollback_every_next_request_goes_to_stable(stand: WorkerStand) -> None:
    """The provider keeps the conversation, so it goes on there, on the stable release's model and prompt."""
    await stand.deploy(1, "stable", STABLE)
    await stand.deploy(2, "candidate", CANDIDATE)
    await stand.publish()
    first = await begin(stand)
    second = await go_on(stand, first)
    await stand.rows(ROLL_BACK)
    await stand.publish()
    third = await go_on(stand, second)
    fourth = await go_on(stand, third)
    fresh = await begin(stand, input="hello")
    replies = (first, second, third, fourth, fresh)
    assert {reply.status for reply in replies} == {200}
    served = [reply.headers["x-headway-release"] for reply in replies]
    assert served == ["bold", "bold", "calm", "calm", "calm"]
    asked = stand.asked(STABLE)
    held = stand.asked(CANDIDATE)[-1].answer_id
    assert [received.body.get("previous_response_id") for received in asked[:2]] == [held, asked[0].answer_id]
    assert asked[0].body["instructions"] == "Be calm, support."
    found = await stand.interactions(5)
    assert [booked(row) for row in found[2:]] == [(1, 0, 0, Arm.STABLE, Kind.RANDOMISED)] * 3


async def test_what_only_the_candidates_provider_knows_is_not_found(stand: WorkerStand) -> None:
    first = await begin(stand)
    await stand.rows(
        "UPDATE release SET deployments = replace(deployments::text, '127.0.0.1', 'localhost')::jsonb WHERE id = 1"
        " RETURNING 1"
    )
    await stand.rows(ROLL_BACK)
    await stand.publish()
    later = await go_on(stand, first)
    assert (later.status, json.loads(later.body)["error"]["code"]) == (404, "previous_response_not_found")
    assert len(stand.asked(CANDIDATE)) == 1


async def test_requests_in_flight_finish_where_they_began(stand: WorkerStand) -> None:
    stand.provider.play(CANDIDATE, Behaviour(headers_ms=Lognormal(400)))
    begun = asyncio.create_task(begin(stand))
    await stand.provider.wait_until(lambda: len(stand.asked(CANDIDATE)) == 1)
    await stand.rows(ROLL_BACK)
    await stand.publish()
    assert not begun.done()
    assert (await begin(stand)).headers["x-headway-release"] == "calm"
    reply = await begun
    assert (reply.status, reply.headers["x-headway-release"]) == (200, "bold")


async def test_after_a_promotion_both_go_on(stand: WorkerStand) -> None:
    first = await begin(stand)
    await stand.rows("UPDATE rollout SET share = 0 RETURNING 1")
    await stand.publish()
    old = await begin(stand)
    await stand.rows("UPDATE rollout SET state = 'promoted', ended_at = now() RETURNING 1")
    await stand.rows("UPDATE application SET stable_release = 2 WHERE id = 1 RETURNING 1")
    await stand.publish()
    served = [(await go_on(stand, reply)).headers["x-headway-release"] for reply in (first, old)]
    assert served == ["bold", "calm"]


async def test_the_holdback_is_booked_as_one(stand: WorkerStand) -> None:
    await stand.rows("UPDATE rollout SET kind = 5, share = 0.98, stage = 6 RETURNING 1")
    await stand.publish()
    replies = [await stand.ask(messages=[{"role": "user", "content": f"{n}"}]) for n in range(8)]
    assert "bold" in {reply.headers["x-headway-release"] for reply in replies}
    found = await stand.interactions(8)
    assert {(row["rollout"], row["stage"], row["kind"]) for row in found} == {(1, 6, Kind.HOLDBACK)}


@pytest.mark.parametrize("unit", ["request", "user"])
async def test_a_request_that_was_its_own_unit_is_counted_once(stand: WorkerStand, unit: str) -> None:
    """Its later turns stay where it went; they were not drawn anew, and are nobody's evidence."""
    await stand.rows("UPDATE application SET unit = %s RETURNING 1", unit)
    await stand.publish()
    first = await begin(stand)
    second = await go_on(stand, first)
    third = await go_on(stand, second)
    found = await stand.interactions(3)
    assert [row["kind"] for row in found] == [Kind.RANDOMISED, Kind.PINNED, Kind.PINNED]
    assert {row["release"] for row in found} == {2}
    evidence = await stand.rows("SELECT (counts->>'interactions')::int, (counts->>'units')::int FROM evidence")
    assert evidence == [(1, 1)]
    assert await stand.rows("SELECT 1 FROM unit_state") == []
    await stand.rows(ROLL_BACK)
    await stand.publish()
    assert (await go_on(stand, third)).headers["x-headway-release"] == "calm"


async def test_a_named_units_later_turns_are_evidence(stand: WorkerStand) -> None:
    await stand.rows("UPDATE application SET unit = 'user' RETURNING 1")
    await stand.publish()
    await go_on(stand, await begin(stand, user="ann"))
    await stand.interactions(2)
    evidence = await stand.rows(
        "SELECT sum((counts->>'interactions')::int), sum((counts->>'units')::int) FROM evidence"
    )
    assert evidence == [(2, 1)]
