"""Rollouts over the API: how they stand, leading them, replaying them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from headway.clock import utc
from headway.config.spec import ApplicationSpec, ReleaseSpec, Specification
from headway.domain.release import Bundle
from headway.domain.rollout import commands
from headway.rollouts.manual import set_share
from tests.asked import ask, found_application
from tests.integration.api.conftest import Control
from tests.lakes import CountingEmbedder
from tests.trial import POLICY, Trial, next_trial

ADMIN = "/admin/v1"


@pytest.fixture
async def trial(control: Control) -> Trial:
    """A rollout at the first step of its ramp, of the application that the control plane shows."""
    async with control.world.database.connection() as connection:
        await set_share(connection, "support", "bold", 0.0, author="ann")  # ends the manual one
    return await next_trial(control.world.database, control.world.clock)


async def post(control: Control, path: str, expected: int = 200, **wish: Any) -> Any:
    status, body = await control.call("POST", ADMIN + path, json=wish)
    assert status == expected, body
    return body


async def test_a_rollout_is_shown_with_all_that_it_is_decided_by(control: Control, trial: Trial) -> None:
    listed = await control.get(f"{ADMIN}/rollouts", params={"application": "support"})
    assert [(item["policy"], item["state"]) for item in listed["items"]] == [
        ("careful", "ramp"),
        ("manual", "rolled_back"),
    ]
    for params, numbers in (
        ({"state": "ramp"}, [trial.number]),
        ({"state": "paused"}, []),
        ({"active": True}, [trial.number]),
    ):
        found = await control.get(f"{ADMIN}/rollouts", params=params)
        assert [item["number"] for item in found["items"]] == numbers, params
    shown = await control.get(f"{ADMIN}/rollouts/{trial.number}")
    assert listed["items"][0].items() <= shown.items()
    assert shown["terms"]["policy"] == json.loads(msgspec.json.encode(POLICY))
    assert shown["status"]["state"] == "ramp"
    assert shown["figures"] is None
    assert [(stage["phase"], stage["share"], stage["reason"]) for stage in shown["stages"]] == [
        ("ramp", 0.2, "a better one")
    ]
    rollout = await trial.rollout()
    assert rollout.status is not None
    assert shown["commands"] == list(commands(POLICY, rollout.status))
    manual = await control.get(f"{ADMIN}/rollouts/{listed['items'][1]['number']}")
    assert (manual["terms"], manual["status"], manual["commands"]) == (None, None, [])


async def test_figures_and_decisions(control: Control, trial: Trial) -> None:
    for _ in range(4):
        await trial.serve(100)
        await trial.tick()
    series = await control.get(f"{ADMIN}/rollouts/{trial.number}/figures")
    assert [item["tick"] for item in series["items"]] == sorted(item["tick"] for item in series["items"])
    last = series["items"][-1]
    assert last["assessment"]["metrics"][0]["metric"] == "error_rate"
    assert sum(last["assessment"]["interactions"]) == 400
    assert (await control.get(f"{ADMIN}/rollouts/{trial.number}"))["figures"] == last
    since = {"since": (utc(control.world.clock.unix_ms()) - timedelta(seconds=1)).isoformat()}
    assert (await control.get(f"{ADMIN}/rollouts/{trial.number}/figures", params=since))["items"] == [last]
    thin = await control.get(f"{ADMIN}/rollouts/{trial.number}/figures", params={"limit": 1})
    assert thin["items"] == [last]

    await trial.take("pause", "odd answers")
    await trial.take("resume")
    seen: list[Any] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = await control.get(f"{ADMIN}/rollouts/{trial.number}/decisions", params=params)
        seen += page["items"]
        if page["next"] is None:
            break
        params["cursor"] = page["next"]
    numbers = [item["number"] for item in seen]
    assert numbers == list(range(len(numbers), 0, -1))
    assert [(item["outcome"], item["command"], item["author"]) for item in seen[:2]] == [
        ("resume", "resume", "ann"),
        ("pause", "pause", "ann"),
    ]
    assert seen[1]["words"] == "odd answers"
    assert seen[-1]["author"] == "controller"
    assert seen[-1]["assessment"]["stage_units"] != [0, 0]


async def test_a_rollout_is_led(control: Control, trial: Trial) -> None:
    path = f"/rollouts/{trial.number}"
    paused = await post(control, f"{path}/pause", reason="odd answers")
    author = f"operator (key {control.world.key('operator').number})"
    assert (paused["rollout"]["state"], paused["snapshot"]) == ("paused", 0)
    assert (paused["decision"]["author"], paused["decision"]["words"]) == (author, "odd answers")
    assert paused["decision"]["after"]["paused_state"] == "ramp"
    assert (await post(control, f"{path}/pause", 409))["code"] == "conflict"
    assert (await post(control, f"{path}/resume"))["rollout"]["state"] == "ramp"
    assert (await post(control, f"{path}/approve", 409))["detail"] == "no step ahead of this rollout waits for approval"
    advanced = await post(control, f"{path}/advance", reason="checked by hand")
    assert advanced["rollout"]["share"] == 0.5
    snapshot = await control.follow()
    assert snapshot.number == advanced["snapshot"]
    route = snapshot.applications["support"].rollout
    assert route is not None
    assert route.share == 0.5
    taken = await post(control, f"{path}/rollback", reason="wrong prompt")
    assert (taken["rollout"]["state"], taken["rollout"]["share"]) == ("rolled_back", 0)
    assert "over" in (await post(control, f"{path}/promote", 409, reason="no, forward"))["detail"]
    actions = [entry["action"] for entry in (await control.get(f"{ADMIN}/audit"))["items"]]
    assert actions[:2] == ["rollout.rollback", "rollout.advance"]


async def test_promotion(control: Control, trial: Trial) -> None:
    answer = await post(control, f"/rollouts/{trial.number}/promote", reason="the old model is shut down")
    assert (answer["rollout"]["state"], answer["decision"]["outcome"]) == ("promoted", "promote")
    assert (await control.get(f"{ADMIN}/applications/support"))["stable"] == "bold"


async def test_who_overrules_the_evidence_says_why(control: Control, trial: Trial) -> None:
    for command in ("advance", "promote", "rollback"):
        for wish in ({}, {"reason": ""}, {"reason": " "}, {"reason": "a\x00"}, {"reason": "x", "extra": 1}):
            status, body = await control.call("POST", f"{ADMIN}/rollouts/{trial.number}/{command}", json=wish)
            assert (status, body["code"]) == (400, "invalid_request"), (command, wish)
    assert await trial.decisions() == []


async def test_bodies_that_are_wrong_are_told_in_words(control: Control, trial: Trial) -> None:
    async def ask(**sent: Any) -> tuple[Any, ...]:
        status, body = await control.call("POST", f"{ADMIN}/rollouts/{trial.number}/advance", **sent)
        return status, body["code"], body["detail"], body.get("param")

    wrong = "invalid_request"
    assert await ask(json={"reason": " "}) == (
        400, wrong, "reason: must not be blank, nor hold control characters", "reason"
    )  # fmt: skip
    assert await ask(json={}) == (400, wrong, "reason: is required", "reason")
    assert await ask(json={"reason": "x", "why": 1}) == (400, wrong, "why: is not known here", "why")
    assert await ask(json=[]) == (400, wrong, "the body: must be a JSON object", None)
    assert await ask(content=b"") == (400, wrong, "the body: is required", None)
    assert await ask(content=b"{", headers={"content-type": "application/json"}) == (
        400, "invalid_json", "the body is not JSON", None
    )  # fmt: skip


async def test_viewers_look_and_do_not_lead(control: Control, trial: Trial) -> None:
    for command in ("pause", "resume", "approve", "advance", "promote", "rollback"):
        path = f"{ADMIN}/rollouts/{trial.number}/{command}"
        status, body = await control.call("POST", path, key="viewer", json={"reason": "because"})
        assert (status, body["code"]) == (403, "insufficient_scope")
    wish = {"release": "bold"}
    path = f"{ADMIN}/applications/support/rollouts"
    assert (await control.call("POST", path, key="viewer", json=wish))[0] == 403
    assert (await control.call("POST", f"{ADMIN}/rollouts/{trial.number}/replay", key="viewer"))[0] == 200


async def test_what_is_not_there(control: Control, trial: Trial) -> None:
    for path in ("", "/decisions", "/figures"):
        assert (await control.call("GET", f"{ADMIN}/rollouts/999{path}"))[0] == 404
    for path in ("pause", "rollback", "replay"):
        assert (await post(control, f"/rollouts/999/{path}", 404, reason="because"))["code"] == "not_found"
    assert (await post(control, "/applications/none/rollouts", 404, release="bold"))["code"] == "not_found"
    assert (await post(control, "/applications/support/rollouts", 404, release="none"))["code"] == "not_found"
    first = (await control.get(f"{ADMIN}/rollouts"))["items"][-1]["number"]
    assert "manual" in (await post(control, f"/rollouts/{first}/replay", 409))["detail"]


async def test_every_decision_can_be_replayed(control: Control, trial: Trial) -> None:
    for _ in range(5):
        await trial.serve(100)
        await trial.tick()
    answer = await post(control, f"/rollouts/{trial.number}/replay")
    assert (answer["rollout"], answer["mismatches"]) == (trial.number, [])
    assert answer["checked"] == len(await trial.decisions()) > 0
    async with control.world.database.connection() as connection:
        await connection.execute("UPDATE decision SET message = 'forged' WHERE number = 1")
    (mismatch,) = (await post(control, f"/rollouts/{trial.number}/replay"))["mismatches"]
    assert (mismatch["number"], mismatch["what"], mismatch["stored"]) == (1, "message", '"forged"')


async def test_a_rollout_is_started_under_the_applied_policy(control: Control, trial: Trial) -> None:
    path = "/applications/support/rollouts"
    assert "already" in (await post(control, path, 409, release="bold"))["detail"]
    await trial.take("rollback")
    assert "manual" in (await post(control, path, 409, release="bold"))["detail"]
    wanted = ApplicationSpec("conversation", "careful", True, 90, {}, ReleaseSpec("bold", Bundle(())))
    specification = Specification({}, {}, {"support": wanted}, {"careful": POLICY})
    async with control.world.database.connection() as connection:
        await connection.execute(
            "INSERT INTO configuration (applied_by, source, spec, hash) VALUES ('ann', '', %s, 'h')",
            (specification.encode().decode(),),
        )
    assert (await post(control, path, 409, release="bold"))["code"] == "retry_needed"
    answer = await post(control, path, 201, release="bold", retry=True, reason="once more")
    assert (answer["rollout"]["state"], answer["rollout"]["restarts"]) == ("baseline", 2)
    assert answer["forecast"]["metrics"][0]["metric"] == "error_rate"
    assert answer["rollout"]["started_by"].startswith("operator (key ")
    assert (await control.follow()).number == answer["snapshot"]


async def test_lost_documents(control: Control) -> None:
    async with control.world.database.connection() as connection:
        await found_application(connection, CountingEmbedder().embed)
        cursor = await connection.execute("SELECT max(id) FROM rollout")
        (number,) = await cursor.fetchone() or (0,)
        await ask(connection, "train?", ["travel.md"], times=3)
        await ask(connection, "paid?", ["pay.md"], times=5)
    path = f"{ADMIN}/rollouts/{number}/lost-documents"
    found = await control.get(path)
    assert found == {
        "rollout": number,
        "losses": {
            "before": "handbook@1",
            "after": "handbook@2",
            "interactions": 8,
            "affected": 3,
            "removed": 1,
            "changed": 1,
            "documents": [
                {"path": "travel.md", "title": "Travel", "state": "removed", "interactions": 3},
                {"path": "pay.md", "title": "Pay", "state": "changed", "interactions": 5},
            ],
        },
    }
    assert len((await control.get(path, params={"limit": 1}))["losses"]["documents"]) == 1
    assert await control.get(f"{ADMIN}/rollouts/1/lost-documents") == {"rollout": 1, "losses": None}
    assert (await control.call("GET", f"{ADMIN}/rollouts/99/lost-documents"))[0] == 404
    listed = (await control.get(f"{ADMIN}/rollouts"))["items"]
    assert [(each["differs"], each["stable_index"], each["candidate_index"]) for each in listed] == [
        (["index"], "handbook@1", "handbook@2"),
        (["prompt"], None, None),
    ]
