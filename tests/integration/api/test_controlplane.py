"""The control plane: who may look, who may change, and what they see."""

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headway.api.controlplane import create_app
from headway.clock import utc
from headway.domain.feedback import Report
from headway.errors import LimitError, StorageError
from headway.ids import Kind, uuid7
from headway.storage import records
from headway.storage import reports as report_storage
from headway.storage.database import Database
from tests.integration.api.conftest import Control
from tests.integration.feedback.conftest import make_desk

ADMIN = "/admin/v1"


async def rate(control: Control, **post: Any) -> str:
    status, body = await make_desk(control.world, control.world.database).feedback(post, key="developer")
    assert status == 201, body
    return str(body["id"])


async def test_everything_but_health_needs_a_key(control: Control) -> None:
    paths = {"/openapi.json", *control.app.openapi()["paths"]}
    assert len(paths) > 20
    for path in paths:
        status = (await control.answer("GET", path, key=None)).status_code
        assert status == (200 if path in {"/healthz", "/readyz", "/openapi.json"} else 401), path
    for key, status in (("developer", 403), ("viewer", 200), ("operator", 200)):
        assert (await control.call("GET", f"{ADMIN}/applications", key=key))[0] == status
    status, body = await control.call("GET", f"{ADMIN}/nothing", key=None)
    assert (status, body["code"]) == (401, "missing_api_key")


async def test_viewers_change_nothing(control: Control) -> None:
    report = uuid.uuid4()
    for method, path, body in (
        ("PUT", "/applications/support/share", {"release": "bold", "share": 1}),
        ("POST", "/keys", {"name": "mine"}),
        ("DELETE", "/keys/1", None),
        ("PATCH", f"/reports/{report}", {"version": 1}),
        ("POST", f"/reports/{report}/comments", {"comment": "x"}),
    ):
        status, answer = await control.call(method, ADMIN + path, key="viewer", json=body)
        assert (status, answer["code"]) == (403, "insufficient_scope")


async def test_applications_and_releases(control: Control) -> None:
    page = await control.get(f"{ADMIN}/applications")
    assert [(item["name"], item["stable"], item["candidate"], item["share"]) for item in page["items"]] == [
        ("sales", "calm", None, None),
        ("support", "calm", "bold", 0.5),
    ]
    support = await control.get(f"{ADMIN}/applications/support")
    assert support == page["items"][1]
    releases = await control.get(f"{ADMIN}/releases", params={"application": "support"})
    assert [(item["name"], item["role"]) for item in releases["items"]] == [("bold", "candidate"), ("calm", "stable")]
    number = releases["items"][0]["number"]
    assert await control.get(f"{ADMIN}/releases/{number}") == releases["items"][0]
    for path in ("applications/none", "releases/999", "rollouts/999", "configurations/1", f"feedback/{uuid.uuid4()}"):
        status, body = await control.call("GET", f"{ADMIN}/{path}")
        assert (status, body["code"]) == (404, "not_found")


async def test_a_share_is_set_and_audited(control: Control) -> None:
    wish = {"release": "bold", "share": 0.75, "reason": "going well"}
    status, body = await control.call("PUT", f"{ADMIN}/applications/support/share", json=wish)
    assert (status, body["before"], body["rollout"]["share"], body["changed"]) == (200, 0.5, 0.75, True)
    snapshot = await control.follow()
    rollout = snapshot.applications["support"].rollout
    assert rollout is not None
    assert (rollout.share, snapshot.number) == (0.75, body["snapshot"])
    entry = (await control.get(f"{ADMIN}/audit", params={"limit": 1}))["items"][0]
    number = control.world.key("operator").number
    assert (entry["action"], entry["author"], entry["reason"]) == (
        "share.set",
        f"operator (key {number})",
        "going well",
    )
    detail = await control.get(f"{ADMIN}/rollouts/{body['rollout']['number']}")
    assert [stage["share"] for stage in detail["stages"]] == [0.5, 0.75]
    running = await control.get(f"{ADMIN}/rollouts", params={"active": True})
    assert [item["number"] for item in running["items"]] == [detail["number"]]
    assert (await control.get(f"{ADMIN}/rollouts", params={"active": False}))["items"] == []


async def test_shares_that_cannot_be(control: Control) -> None:
    path = f"{ADMIN}/applications/support/share"
    for wish, expected in (
        ({"release": "none", "share": 0.1}, 404),
        ({"release": "calm", "share": 0.1}, 409),
        ({"release": "bold", "share": 1.1}, 400),
        ({"release": "bold", "share": "half"}, 400),
        ({"release": "bold"}, 400),
        ({"release": "bold", "share": 0.1, "extra": 1}, 400),
        ({"release": "a\x00", "share": 0.1}, 400),
    ):
        status, _ = await control.call("PUT", path, json=wish)
        assert status == expected, wish


async def test_interactions_are_listed_and_shown(control: Control) -> None:
    world = control.world
    first, second = world.interaction(age_days=1.5), world.interaction(age_days=0.5)
    await world.record(first, "talk-1", content=('{"messages": []}', "Hello"))
    await world.record(second, "talk-2")
    await world.record(world.interaction(application="sales", release=3), "talk-1")
    names = [str(uuid.UUID(bytes=item.uuid)) for item in (second, first)]

    async def ids(**params: Any) -> list[str]:
        page = await control.get(f"{ADMIN}/interactions", params=params)
        return [item["id"] for item in page["items"]]

    assert len(await ids()) == 3
    assert await ids(application="support") == names
    assert await ids(application="support", release="bold") == names
    assert await ids(application="support", release="calm") == []
    assert await ids(application="support", conversation="talk-1") == names[1:]
    day_ago = utc(world.clock.unix_ms()) - timedelta(days=1)
    assert await ids(application="support", since=day_ago.isoformat()) == names[:1]
    assert await ids(until=day_ago.isoformat()) == names[1:]
    assert await ids(failed=True) == []

    whole = await control.get(f"{ADMIN}/interactions/{names[1]}")
    assert (whole["request"], whole["answer"], whole["arm"], whole["kind"]) == (
        '{"messages": []}',
        "Hello",
        "candidate",
        "manual",
    )
    issued = world.snapshot.signing.signer().issue(first)
    assert await control.get(f"{ADMIN}/interactions/{issued}") == whole
    assert (await control.get(f"{ADMIN}/interactions/{names[0]}"))["answer"] is None
    for name, expected in (
        (uuid.uuid4(), 404),
        (uuid.UUID(bytes=uuid7(2**48 - 1)), 404),
        (issued[:-1], 400),
        ("nonsense", 400),
    ):
        assert (await control.call("GET", f"{ADMIN}/interactions/{name}"))[0] == expected


async def test_pages_meet_without_gap_or_overlap(control: Control) -> None:
    world = control.world
    made = set()
    for number in range(11):
        interaction = world.interaction(age_days=number // 2)  # pairs of about the same time
        made.add(str(uuid.UUID(bytes=interaction.uuid)))
        await world.record(interaction, "talk")
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 3, "application": "support"}
    while True:
        page = await control.get(f"{ADMIN}/interactions", params=params)
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        await world.record(world.interaction(), "talk")  # what arrives meanwhile does not shift the pages
        params["cursor"] = page["next"]
    assert len(seen) == len(set(seen)) == 11
    assert set(seen) == made


async def test_feedback_is_listed_with_and_without_history(control: Control) -> None:
    issued = control.world.issue()
    old = await rate(control, interaction_id=issued, metric="stars", value=2)
    control.world.clock.advance(1)
    new = await rate(control, interaction_id=issued, metric="stars", value=5, comment="better")
    mood = await rate(control, interaction_id=issued, metric="mood", value="happy", source="annotator")

    async def ids(**params: Any) -> set[str]:
        return {item["id"] for item in (await control.get(f"{ADMIN}/feedback", params=params))["items"]}

    assert await ids() == {new, mood}
    assert await ids(history=True) == {old, new, mood}
    assert await ids(metric="stars") == {new}
    assert await ids(source="annotator", application="support", release="bold") == {mood}
    assert await ids(application="sales") == set()
    shown = await control.get(f"{ADMIN}/feedback/{new}")
    assert (shown["value"], shown["comment"], shown["superseded_at"]) == (5, "better", None)
    assert (await control.get(f"{ADMIN}/feedback/{mood}"))["value"] == "happy"
    assert await ids(target_id=shown["target_id"]) == {new, mood}


async def test_operators_see_and_lead_all_reports(control: Control) -> None:
    report = Report(
        id=uuid7(control.world.clock.unix_ms()),
        unix_ms=control.world.clock.unix_ms(),
        application=1,
        title="Wrong",
        description="",
        severity="high",
        author="key:1",
        key=1,
        interactions=(),
    )
    async with control.world.database.connection() as connection:
        assert await report_storage.insert(connection, report)
    name = uuid.UUID(bytes=report.id)
    page = await control.get(
        f"{ADMIN}/reports", params={"status": "open", "severity": "high", "application": "support"}
    )
    assert [item["id"] for item in page["items"]] == [str(name)]
    change = {"version": 1, "status": "resolved", "comment": "Fixed."}
    status, body = await control.call("PATCH", f"{ADMIN}/reports/{name}", json=change)
    assert (status, body["status"], body["version"]) == (200, "resolved", 2)
    assert body["events"][0]["author"].startswith("operator (key ")
    status, body = await control.call("PATCH", f"{ADMIN}/reports/{name}", json=change)
    assert (status, body["code"]) == (409, "version_conflict")
    status, body = await control.call("POST", f"{ADMIN}/reports/{name}/comments", json={"comment": "Thanks."})
    assert (status, [event["comment"] for event in body["events"]]) == (201, ["Fixed.", "Thanks."])
    assert await control.get(f"{ADMIN}/reports/{name}") == body
    assert (await control.call("POST", f"{ADMIN}/reports/{name}/comments", json={"comment": " "}))[0] == 400


async def test_keys_are_made_shown_once_and_revoked(control: Control) -> None:
    wish = {"name": "ci", "scopes": ["view"], "expires_days": 1}
    status, made = await control.call("POST", f"{ADMIN}/keys", json=wish)
    assert (status, made["scopes"], made["revoked_at"]) == (201, ["view"], None)
    await control.follow()
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert (await control.call("GET", f"{ADMIN}/keys", key=None, headers=headers))[0] == 200
    listed = await control.get(f"{ADMIN}/keys", params={"limit": 1})
    assert listed["items"][0] == {name: value for name, value in made.items() if name != "secret"}
    assert made["secret"] not in str(listed)

    status, revoked = await control.call("DELETE", f"{ADMIN}/keys/{made['number']}")
    assert status == 200
    assert revoked["revoked_at"] is not None
    assert (await control.call("DELETE", f"{ADMIN}/keys/{made['number']}"))[0] == 409
    assert (await control.call("DELETE", f"{ADMIN}/keys/999"))[0] == 404
    await control.follow()
    status, body = await control.call("GET", f"{ADMIN}/keys", key=None, headers=headers)
    assert (status, body["code"]) == (401, "revoked_api_key")
    actions = [entry["action"] for entry in (await control.get(f"{ADMIN}/audit"))["items"]]
    assert actions[:2] == ["key.revoke", "key.create"]


async def test_configurations_are_shown_as_they_were_applied(control: Control) -> None:
    async with control.world.database.connection() as connection:
        await connection.execute(
            "INSERT INTO configuration (applied_by, source, spec, hash) VALUES ('ann', 'applications: {}', '{}', 'h')"
        )
    page = await control.get(f"{ADMIN}/configurations")
    assert [item["applied_by"] for item in page["items"]] == ["ann"]
    shown = await control.get(f"{ADMIN}/configurations/{page['items'][0]['number']}")
    assert shown == {**page["items"][0], "source": "applications: {}"}


async def test_the_summary_has_figures_only_where_there_is_data(control: Control) -> None:
    world = control.world
    empty = await control.get(f"{ADMIN}/applications/support/summary")
    assert empty["releases"] == []
    for _ in range(3):
        interaction = world.interaction(age_days=0.1)
        await world.record(interaction)
        issued = world.snapshot.signing.signer().issue(interaction)
        await rate(control, interaction_id=issued, metric="thumbs_up", value=_ > 0)
        await rate(control, interaction_id=issued, metric="mood", value="happy" if _ else "sad")
        await rate(control, interaction_id=issued, comment="well")
    await world.record(world.interaction(kind=Kind.SHADOW, release=1))
    await rate(control, interaction_id=world.issue(age_days=0.2, release=1, arm=0), metric="stars", value=3)
    summary = await control.get(f"{ADMIN}/applications/support/summary")
    calm, bold = summary["releases"]
    assert (calm["release"], calm["interactions"], calm["error_rate"], calm["latency_p95_ms"]) == (
        "calm",
        0,
        None,
        None,
    )
    assert [(item["metric"], item["mean"]) for item in calm["feedback"]] == [("stars", 3)]
    assert (bold["release"], bold["interactions"], bold["units"], bold["error_rate"]) == ("bold", 3, 1, 0)
    assert (bold["latency_p50_ms"], bold["output_tokens"]) == (12, 6)
    assert bold["cost_usd"] == pytest.approx(0.003)
    feedback = {item["metric"]: item for item in bold["feedback"]}
    assert feedback["thumbs_up"]["mean"] == pytest.approx(2 / 3)
    assert (feedback["mood"]["labels"], feedback["mood"]["mean"]) == ({"happy": 2, "sad": 1}, None)
    assert (feedback["comment"]["values"], feedback["comment"]["labels"]) == (3, None)
    since = (utc(world.clock.unix_ms()) - timedelta(hours=1)).isoformat()
    later = await control.get(f"{ADMIN}/applications/support/summary", params={"since": since})
    assert later["releases"] == []
    for params in ({"until": "0001-01-01T00:00:00Z"}, {"since": "2000-01-01T00:00:00Z"}, {"since": "yesterday"}):
        assert (await control.call("GET", f"{ADMIN}/applications/support/summary", params=params))[0] == 400


async def test_a_summary_that_takes_too_long_is_broken_off(control: Control) -> None:
    async with control.world.database.connection() as connection:
        await connection.execute("SELECT ensure_interaction_partition('2026-01-02')")
        await connection.execute(
            "INSERT INTO interaction SELECT '2026-01-02Z'::timestamptz + n * interval '1 s', gen_random_uuid(), 1, 1,"
            " 0, 0, 0, 3, 'unit', false, 1, 'c', NULL, 'chat', false, 200, NULL, false, false, false, false, 'd', 1, 0,"
            " false, NULL, NULL, NULL, NULL, 1, 0, 1, NULL, NULL, 1, 1, 0, NULL, NULL FROM generate_series(1, 20000) n"
        )
    start = datetime(2026, 1, 2, tzinfo=UTC)
    async with control.world.database.connection() as connection:
        (bold,) = await records.summarise(connection, 1, start, start + timedelta(days=1))
    assert bold["interactions"] == 20_000
    with pytest.raises(LimitError, match="shorter span"):
        async with control.world.database.connection() as connection:
            await records.summarise(connection, 1, start, start + timedelta(days=1), seconds=0.001)


async def test_every_fault_is_problem_json(control: Control) -> None:
    for method, path, more, status, code in (
        ("GET", f"{ADMIN}/nothing", {}, 404, "route_not_found"),
        ("GET", "/nothing", {}, 404, "route_not_found"),
        ("POST", f"{ADMIN}/applications", {}, 405, "method_not_allowed"),
        ("PATCH", f"{ADMIN}/keys", {}, 405, "method_not_allowed"),
        ("GET", f"{ADMIN}/feedback?since=0.5", {}, 400, "invalid_request"),
        ("GET", f"{ADMIN}/applications?limit=0", {}, 400, "invalid_request"),
        ("GET", f"{ADMIN}/applications?page=2", {}, 400, "invalid_request"),
        ("GET", f"{ADMIN}/applications?cursor=x", {}, 400, "invalid_request"),
        ("GET", f"{ADMIN}/releases?application=%00", {}, 400, "invalid_request"),
        ("GET", f"{ADMIN}/releases/99999999999", {}, 400, "invalid_request"),
        ("POST", f"{ADMIN}/keys", {"content": b"{", "headers": {"content-type": "application/json"}}, 400, None),
        ("POST", f"{ADMIN}/keys", {"content": b"\xff", "headers": {"content-type": "application/json"}}, 400, None),
        ("POST", f"{ADMIN}/keys", {"content": b"name=x"}, 415, "unsupported_media_type"),
        ("POST", f"{ADMIN}/keys", {"content": b"x" * 2_000_000}, 413, "body_too_large"),
        ("POST", f"{ADMIN}/keys", {}, 400, "invalid_request"),
    ):
        answer = await control.answer(method, path, **more)
        body = answer.json()
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), path
        assert body["status"] == status
        assert code in (None, body["code"])
        if status == 405:
            assert answer.headers["allow"] == ("GET, POST" if path.endswith("keys") else "GET")


async def test_health_tells_alive_from_ready(control: Control) -> None:
    assert await control.call("GET", "/healthz", key=None) == (200, {"status": "ok", "snapshot": None})
    number = control.world.snapshot.number
    assert await control.call("GET", "/readyz", key=None) == (200, {"status": "ready", "snapshot": number})
    metrics = await control.answer("GET", "/metrics", key="viewer")
    assert (metrics.status_code, metrics.text) == (200, "headway_up 1\n")
    assert (await control.answer("GET", "/metrics", key="developer")).status_code == 403


async def test_not_ready_while_the_database_is_away(control: Control) -> None:
    def no_snapshot() -> Any:
        raise StorageError("no routing snapshot yet")

    away = Database("postgresql://127.0.0.1:1/none", wait_seconds=0.05)
    for services in (
        dataclasses.replace(control.services, database=away),
        dataclasses.replace(control.services, snapshot=no_snapshot),
    ):
        control.client._transport.app = create_app(services)  # type: ignore[attr-defined]
        assert (await control.call("GET", "/healthz", key=None))[0] == 200
        for path in ("/readyz", f"{ADMIN}/applications"):
            status, body = await control.call("GET", path)
            assert (status, body["code"]) == (503, "storage_unavailable")
