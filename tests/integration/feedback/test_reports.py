"""Reports: raised once, seen by who raised them, led to their end by compare-and-set."""

import asyncio
import uuid
from typing import Any

from headway.domain.feedback import LINKED_INTERACTIONS
from tests.integration.feedback.conftest import Desk


async def raise_report(desk: Desk, *, key: str = "developer", **post: Any) -> str:
    status, body = await desk.call("POST", "/v1/reports", {"title": "Wrong refund period", **post}, key=key)
    assert (status, body["outcome"]) == (201, "created")
    return str(body["id"])


async def test_a_report_with_everything(desk: Desk) -> None:
    interaction = desk.world.interaction()
    text = desk.world.snapshot.signing.signer().issue(interaction)
    post = {
        "title": "Wrong refund period",
        "description": "It says 14 days.\nIt is 30.",
        "severity": "high",
        "interaction_ids": [text, text],
    }
    answer = await desk.answer("POST", "/v1/reports", post, key="developer")
    assert answer.status == 201
    path = dict(answer.headers)[b"location"].decode()
    status, report = await desk.call("GET", path, key="developer")
    assert status == 200
    interactions = report.pop("interactions")
    assert [(link["interaction_id"], link["interaction"], link["release"]) for link in interactions] == [
        (text, str(uuid.UUID(bytes=interaction.uuid)), "bold")
    ]
    assert report.pop("at") == report.pop("updated_at")
    number = desk.world.key("developer").number
    assert report == {
        "object": "report",
        "id": path.rpartition("/")[2],
        "application": "support",
        "title": "Wrong refund period",
        "description": "It says 14 days.\nIt is 30.",
        "severity": "high",
        "status": "open",
        "author": f"key:{number}",
        "key": number,
        "version": 1,
        "events": [],
    }


async def test_from_open_to_resolved_and_open_again(desk: Desk) -> None:
    path = f"/v1/reports/{await raise_report(desk)}"
    version, report = 1, dict[str, Any]()
    for step in (
        {"status": "triaged", "severity": "critical"},
        {"status": "resolved", "comment": "Fixed in bold-2."},
        {"status": "open"},
        {"status": "rejected"},
    ):
        status, report = await desk.call("PATCH", path, {"version": version, **step}, key="developer")
        assert status == 200
        assert report["status"] == step["status"]
        assert report["version"] == version + 1
        version += 1
    assert [(event["status"], event["severity"], event["comment"]) for event in report["events"]] == [
        ("triaged", "critical", None),
        ("resolved", None, "Fixed in bold-2."),
        ("open", None, None),
        ("rejected", None, None),
    ]
    status, body = await desk.call("PATCH", path, {"version": version, "status": "resolved"}, key="developer")
    assert (status, body["code"], body["param"]) == (409, "conflict", "status")


async def test_of_two_changes_to_one_version_one_wins(desk: Desk) -> None:
    path = f"/v1/reports/{await raise_report(desk)}"
    answers = await asyncio.gather(
        *[
            desk.call("PATCH", path, {"version": 1, "status": status}, key="developer")
            for status in ("triaged", "resolved", "rejected")
        ]
    )
    assert sorted(status for status, _ in answers) == [200, 409, 409]
    assert {body["code"] for status, body in answers if status == 409} == {"version_conflict"}
    _, report = await desk.call("GET", path, key="developer")
    assert report["version"] == 2
    assert len(report["events"]) == 1


async def test_a_change_that_changes_nothing_leaves_no_trace(desk: Desk) -> None:
    path = f"/v1/reports/{await raise_report(desk)}"
    patch = {"version": 1, "status": "open", "severity": "medium"}
    status, report = await desk.call("PATCH", path, patch, key="developer")
    assert (status, report["version"], report["events"]) == (200, 1, [])


async def test_comments_are_kept_in_order_and_need_no_version(desk: Desk) -> None:
    path = f"/v1/reports/{await raise_report(desk)}"
    for text in ("first", "second"):
        desk.world.clock.advance(1)
        assert (await desk.call("POST", f"{path}/comments", {"comment": text}, key="developer"))[0] == 201
    _, report = await desk.call("GET", path, key="developer")
    assert [event["comment"] for event in report["events"]] == ["first", "second"]
    assert report["version"] == 1


async def test_comments_at_the_same_moment_are_all_kept(desk: Desk) -> None:
    path = f"/v1/reports/{await raise_report(desk)}"
    texts = [f"comment {number}" for number in range(8)]
    answers = await asyncio.gather(
        *[desk.call("POST", f"{path}/comments", {"comment": text}, key="developer") for text in texts]
    )
    assert [status for status, _ in answers] == [201] * 8
    _, report = await desk.call("GET", path, key="developer")
    assert sorted(event["comment"] for event in report["events"]) == texts
    assert [event["number"] for event in report["events"]] == list(range(1, 9))


async def test_each_key_sees_its_own_reports(desk: Desk) -> None:
    mine = await raise_report(desk)
    theirs = await raise_report(desk, key="colleague")
    _, page = await desk.call("GET", "/v1/reports", key="developer")
    assert [item["id"] for item in page["items"]] == [mine]
    for method, path, body in (
        ("GET", f"/v1/reports/{theirs}", None),
        ("PATCH", f"/v1/reports/{theirs}", {"version": 1, "status": "triaged"}),
        ("POST", f"/v1/reports/{theirs}/comments", {"comment": "mine now"}),
        ("GET", f"/v1/reports/{uuid.uuid4()}", None),
        ("GET", "/v1/reports/nonsense", None),
    ):
        status, answer = await desk.call(method, path, body, key="developer")
        assert (status, answer["code"]) == (404, "not_found")


async def test_lists_come_in_pages(desk: Desk) -> None:
    made = []
    for number in range(7):
        desk.world.clock.advance(0 if number % 2 else 1)  # some at the same moment
        made.append(await raise_report(desk, title=f"Report {number}"))
    seen: list[str] = []
    query = b"limit=3"
    while True:
        _, page = await desk.call("GET", "/v1/reports", key="developer", query=query)
        seen += [item["id"] for item in page["items"]]
        if page["next"] is None:
            break
        assert len(page["items"]) == 3
        query = b"limit=3&cursor=" + page["next"].encode()
    assert sorted(seen) == sorted(made)
    assert seen == [str(row[0]) for row in await desk.rows("SELECT id FROM report ORDER BY at DESC, id DESC")]
    _, page = await desk.call("GET", "/v1/reports", key="developer", query=b"status=resolved")
    assert page["items"] == []


async def test_queries_that_make_no_sense(desk: Desk) -> None:
    for query, param in (
        (b"limit=0", "limit"),
        (b"limit=501", "limit"),
        (b"limit=-1", "limit"),
        (b"limit=many", "limit"),
        (b"limit=99999999999999999999", "limit"),
        (b"cursor=!!!", "cursor"),
        (b"cursor=WzFd", "cursor"),
        (b"cursor=" + b"A" * 1000, "cursor"),
        (b"status=closed", "status"),
        (b"page=2", "page"),
        (b"status=%ff%00", "status"),
        (b"&".join([b"a=1"] * 50), None),
    ):
        status, body = await desk.call("GET", "/v1/reports", key="developer", query=query)
        assert (status, body.get("param")) == (400, param), query


async def test_posts_that_make_no_sense(desk: Desk) -> None:
    issue = desk.world.issue
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        ({}, 400, None),
        ({"title": " "}, 400, "title"),
        ({"title": "x" * 201}, 400, "title"),
        ({"title": "nul \x00"}, 400, "title"),
        ({"title": "x", "description": "x" * 32_769}, 400, "description"),
        ({"title": "x", "severity": "urgent"}, 400, "severity"),
        ({"title": "x", "interaction_ids": "hw_"}, 400, "interaction_ids"),
        ({"title": "x", "interaction_ids": ["hw_"]}, 400, "interaction_id"),
        ({"title": "x", "interaction_ids": [issue()] * (LINKED_INTERACTIONS + 1)}, 400, "interaction_ids"),
        ({"title": "x", "interaction_ids": [issue(), issue(application="sales")]}, 400, "interaction_ids"),
        ({"title": "x", "interaction_ids": [issue()], "application": "sales"}, 400, "application"),
        ({"title": "x", "application": "nothing"}, 404, "application"),
        ({"title": "x", "interaction_ids": [issue(age_days=91)]}, 410, "interaction_id"),
    ]
    for post, expected, param in cases:
        status, body = await desk.call("POST", "/v1/reports", post, key="developer")
        assert (status, body.get("param")) == (expected, param), post
    assert await desk.rows("SELECT 1 FROM report") == []


async def test_reports_need_a_key_with_the_scope_and_the_application(desk: Desk) -> None:
    post = {"title": "x", "interaction_ids": [desk.world.issue()]}
    for key, status in ((None, 401), ("caller", 403), ("seller", 403), ("operator", 403), ("colleague", 201)):
        assert (await desk.call("POST", "/v1/reports", post, key=key))[0] == status


async def test_idempotency_keys_are_each_keys_own(desk: Desk) -> None:
    headers = {b"idempotency-key": b"once"}
    ids = [
        (await desk.call("POST", "/v1/reports", {"title": "x"}, key=key, headers=headers))
        for key in ("developer", "developer", "colleague")
    ]
    assert [status for status, _ in ids] == [201, 200, 201]
    assert ids[0][1]["id"] == ids[1][1]["id"] != ids[2][1]["id"]
    headers = {b"idempotency-key": b"x" * 256}
    assert (await desk.call("POST", "/v1/reports", {"title": "x"}, key="developer", headers=headers))[0] == 400
