"""Feedback values: attribution, idempotence, history, who may say what."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from headway.domain.feedback import KEYLESS_REVISIONS, KEYLESS_TEXT_BYTES, REVISIONS, TEXT_BYTES
from headway.ids import Kind
from tests.integration.feedback.conftest import Desk
from tests.world import RETENTION_DAYS


async def test_an_interaction_id_alone_attributes_an_end_users_rating(desk: Desk) -> None:
    interaction = desk.world.interaction()
    text = desk.world.snapshot.signing.signer().issue(interaction)
    status, body = await desk.feedback({"interaction_id": text, "metric": "thumbs_up", "value": True})
    assert (status, body["outcome"], body["metric"]) == (201, "created", "thumbs_up")
    rows = await desk.rows(
        "SELECT id, target, target_id, application, release, rollout, stage, arm, kind, unit, number, source, author,"
        " key, extract(epoch FROM exposed_at) * 1000, superseded_at FROM feedback"
    )
    unit = interaction.unit
    assert rows == [
        (
            uuid.UUID(body["id"]),
            "interaction",
            str(uuid.UUID(bytes=interaction.uuid)),
            1,
            2,
            1,
            1,
            1,
            Kind.MANUAL,
            unit,
            1.0,
            "end_user",
            f"unit:{unit.hex()}",
            0,
            interaction.unix_ms,
            None,
        )
    ]


async def test_the_same_value_again_is_the_same_feedback(desk: Desk) -> None:
    post = {"interaction_id": desk.world.issue(), "metric": "stars", "value": 4, "comment": "good"}
    first = await desk.feedback(post)
    again = await desk.feedback(post)
    assert first[0] == 201
    assert again == (200, {**first[1], "outcome": "unchanged"})
    assert len(await desk.rows("SELECT 1 FROM feedback")) == 1


async def test_a_later_value_supersedes_and_both_stay(desk: Desk) -> None:
    text = desk.world.issue()
    ids = []
    for value in (4, 2, 4):
        desk.world.clock.advance(10)
        status, body = await desk.feedback({"interaction_id": text, "metric": "stars", "value": value})
        assert status == 201
        ids.append(body["id"])
    assert len(set(ids)) == 3
    rows = await desk.rows("SELECT id::text, number, superseded_at, at FROM feedback ORDER BY at")
    assert [(row[0], row[1]) for row in rows] == list(zip(ids, (4, 2, 4), strict=True))
    assert [row[2] for row in rows] == [rows[1][3], rows[2][3], None]


@pytest.mark.parametrize("values", [[True] * 8, [True, False] * 4])
async def test_posts_at_the_same_moment_leave_one_current_value(desk: Desk, values: list[bool]) -> None:
    text = desk.world.issue()
    posts = [{"interaction_id": text, "metric": "thumbs_up", "value": value} for value in values]
    answers = await asyncio.gather(*map(desk.feedback, posts))
    assert {status for status, _ in answers} <= {200, 201}
    assert len(await desk.rows("SELECT 1 FROM feedback WHERE superseded_at IS NULL")) == 1
    created = {body["id"] for status, body in answers if status == 201}
    assert len(await desk.rows("SELECT 1 FROM feedback")) == len(created)
    if len(set(values)) == 1:
        assert len({body["id"] for _, body in answers}) == 1


@pytest.mark.parametrize(
    ("key", "other", "most"), [(None, "developer", KEYLESS_REVISIONS), ("developer", None, REVISIONS)]
)
async def test_history_has_an_end(desk: Desk, key: str | None, other: str | None, most: int) -> None:
    text = desk.world.issue()
    minutes = {"interaction_id": text, "metric": "minutes_saved"}
    for value in range(most):
        assert (await desk.feedback({**minutes, "value": value, "choice": value % 3}, key=key))[0] == 201
    status, body = await desk.feedback({**minutes, "value": 1000}, key=key)
    assert (status, body["code"]) == (429, "feedback_history_full")
    # The current value, another metric and another author still pass.
    assert (await desk.feedback({**minutes, "value": most - 1, "choice": (most - 1) % 3}, key=key))[0] == 200
    assert (await desk.feedback({"interaction_id": text, "metric": "stars", "value": 3}, key=key))[0] == 201
    assert (await desk.feedback({**minutes, "value": 9}, key=other))[0] == 201


async def test_who_has_no_key_says_less(desk: Desk) -> None:
    post = {"interaction_id": desk.world.issue(), "comment": "x" * (KEYLESS_TEXT_BYTES + 1)}
    assert (await desk.feedback(post))[0] == 400
    assert (await desk.feedback(post, key="developer"))[0] == 201


async def test_metrics_authors_and_choices_have_values_of_their_own(desk: Desk) -> None:
    text = desk.world.issue()
    thumbs = {"interaction_id": text, "metric": "thumbs_up", "value": True}
    posts: list[tuple[dict[str, Any], str | None]] = [
        (thumbs, None),
        (thumbs, "developer"),
        (thumbs, "colleague"),
        ({**thumbs, "choice": 1}, None),
        ({**thumbs, "author": "bob"}, "developer"),
        ({**thumbs, "metric": "stars", "value": 1}, None),
    ]
    for post, key in posts:
        assert (await desk.feedback(post, key=key))[0] == 201
    assert len(await desk.rows("SELECT 1 FROM feedback WHERE superseded_at IS NULL")) == len(posts)


WORDS: list[tuple[dict[str, str], str, str]] = [
    ({"comment": "too long"}, "comment", "too long"),
    ({"correction": "It is 42."}, "correction", "It is 42."),
    ({"correction": "It is 42.", "comment": "wrong"}, "correction", "It is 42."),
    ({"metric": "comment", "comment": "hm"}, "comment", "hm"),
    ({"metric": "comment", "value": "as a value"}, "comment", "as a value"),
    ({"metric": "mood", "value": "happy"}, "mood", "happy"),
]


async def test_words_are_values_too(desk: Desk) -> None:
    for post, metric, text in WORDS:
        status, body = await desk.feedback({"interaction_id": desk.world.issue(), **post})
        assert (status, body["metric"]) == (201, metric)
        query = "SELECT metric, text, number, comment, correction FROM feedback WHERE id = %s"
        assert await desk.rows(query, (body["id"],)) == [
            (metric, text, None, post.get("comment"), post.get("correction"))
        ]


async def test_keys_speak_as_developers_unless_they_say_otherwise(desk: Desk) -> None:
    interaction = desk.world.interaction()
    text = desk.world.snapshot.signing.signer().issue(interaction)
    number = desk.world.key("developer").number
    cases = [
        ({}, "developer", f"key:{number}"),
        ({"source": "end_user"}, "end_user", f"unit:{interaction.unit.hex()}"),
        ({"source": "annotator", "author": "bob"}, "annotator", "bob"),
        ({"source": "judge", "author": "judge-1"}, "judge", "judge-1"),
    ]
    for extra, source, author in cases:
        post = {"interaction_id": text, "metric": "grounded", "value": 1, **extra}
        assert (await desk.feedback(post, key="developer"))[0] == 201
        rows = await desk.rows("SELECT source, key FROM feedback WHERE author = %s", (author,))
        assert rows == [(source, number)]


async def test_what_end_users_may_not_say_needs_a_key(desk: Desk) -> None:
    posts: list[dict[str, Any]] = [
        {"metric": "grounded", "value": True},
        {"metric": "stars", "value": 1, "source": "judge"},
        {"metric": "stars", "value": 1, "author": "bob"},
    ]
    for post in posts:
        status, body = await desk.feedback({"interaction_id": desk.world.issue(), **post})
        assert (status, body["code"]) == (401, "missing_api_key")
        assert (await desk.feedback({"interaction_id": desk.world.issue(), **post}, key="developer"))[0] == 201


async def test_nobody_speaks_in_anothers_name(desk: Desk) -> None:
    for author in ("unit:0011223344556677", "key:1"):
        post = {"interaction_id": desk.world.issue(), "metric": "stars", "value": 1, "author": author}
        status, body = await desk.feedback(post, key="developer")
        assert (status, body["param"]) == (400, "author")


async def test_keys_need_the_scope_and_the_application(desk: Desk) -> None:
    post = {"interaction_id": desk.world.issue(), "metric": "stars", "value": 1}
    status, body = await desk.feedback(post, key="caller")
    assert (status, body["code"]) == (403, "insufficient_scope")
    status, body = await desk.feedback(post, key="seller")
    assert (status, body["code"]) == (403, "application_not_allowed")
    post["interaction_id"] = desk.world.issue(application="sales")
    assert (await desk.feedback(post, key="seller"))[0] == 201
    headers = {b"authorization": b"Bearer hw-nobody"}
    status, body = await desk.call("POST", "/v1/feedback", post, headers=headers)
    assert (status, body["code"]) == (401, "invalid_api_key")


async def test_feedback_comes_late_but_not_after_retention(desk: Desk) -> None:
    post = {"metric": "stars", "value": 1}
    text = desk.world.issue(age_days=RETENTION_DAYS - 0.01)
    assert (await desk.feedback({**post, "interaction_id": text}))[0] == 201
    text = desk.world.issue(age_days=RETENTION_DAYS + 0.01)
    status, body = await desk.feedback({**post, "interaction_id": text})
    assert (status, body["code"]) == (410, "expired")
    assert f"{RETENTION_DAYS} days" in body["detail"]


async def test_forged_and_truncated_ids_are_refused(desk: Desk) -> None:
    good = desk.world.issue()
    wrong = [
        good[:-1],
        good + "A",
        good[:-2] + ("AA" if good[-2:] != "AA" else "BB"),
        "",
        "hw_",
        "chatcmpl-1",
        good.upper(),
    ]
    middle = 40
    wrong.append(good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :])
    for text in wrong:
        status, body = await desk.feedback({"interaction_id": text, "metric": "stars", "value": 1})
        assert (status, body["code"], body["param"]) == (400, "invalid_interaction_id", "interaction_id")
    assert await desk.rows("SELECT 1 FROM feedback") == []


MISFITS: list[tuple[str, object]] = [
    ("thumbs_up", "yes"),
    ("thumbs_up", 2),
    ("stars", 6),
    ("stars", 0.5),
    ("stars", True),
    ("stars", 10**30),
    ("minutes_saved", -1),
    ("mood", "angry"),
    ("mood", 1),
    ("comment", 7),
    ("comment", "nul \x00"),
]


async def test_values_that_do_not_fit_their_metric(desk: Desk) -> None:
    for metric, value in MISFITS:
        status, body = await desk.feedback({"interaction_id": desk.world.issue(), "metric": metric, "value": value})
        assert (status, body["code"], body["param"]) == (422, "invalid_feedback_value", "value"), (metric, value)
        assert metric in body["detail"]


MALFORMED: list[tuple[dict[str, Any], str | None]] = [
    ({}, "metric"),
    ({"value": 1}, "metric"),
    ({"metric": "stars"}, "value"),
    ({"metric": "stars", "value": None}, "value"),
    ({"metric": "stars", "value": []}, "value"),
    ({"metric": 5, "value": 1}, "metric"),
    ({"metric": "stars", "value": 1, "choice": -1}, "choice"),
    ({"metric": "stars", "value": 1, "choice": 128}, "choice"),
    ({"metric": "stars", "value": 1, "choice": "0"}, "choice"),
    ({"metric": "stars", "value": 1, "source": "robot"}, "source"),
    ({"comment": "x" * (TEXT_BYTES + 1)}, "comment"),
    ({"correction": "é" * (TEXT_BYTES // 2 + 1)}, "correction"),
    ({"comment": "nul \x00", "metric": "stars", "value": 1}, "comment"),
    ({"comment": "  "}, "metric"),
    ({"metric": "stars", "value": 1, "application": "sales"}, "application"),
    ({"metric": "stars", "value": 1, "conversation_id": "c"}, "interaction_id"),
    ({"metric": "stars", "value": 1, "rating": 5}, None),
]


async def test_malformed_requests(desk: Desk) -> None:
    for post, param in MALFORMED:
        status, body = await desk.feedback({"interaction_id": desk.world.issue(), **post}, key="developer")
        assert (status, body["code"], body.get("param")) == (400, "invalid_request", param), post
    assert await desk.rows("SELECT 1 FROM feedback") == []


async def test_the_error_for_an_unknown_metric_names_the_known_ones(desk: Desk) -> None:
    status, body = await desk.feedback({"interaction_id": desk.world.issue(), "metric": "star", "value": 1})
    assert (status, body["code"], body["param"]) == (404, "unknown_metric", "metric")
    assert "comment, correction, grounded, minutes_saved, mood, stars, thumbs_up" in body["detail"]


async def test_bodies_that_are_no_json_objects(desk: Desk) -> None:
    for raw in (b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"comment": "\xff"}', b"{" * 5000, b'{"value": ' * 5000):
        status, body = await desk.call("POST", "/v1/feedback", raw=raw)
        assert status == 400
        assert body["code"] in ("invalid_json", "invalid_request")


async def test_media_type_and_size_are_checked(desk: Desk) -> None:
    headers = {b"content-type": b"application/x-www-form-urlencoded"}
    assert (await desk.call("POST", "/v1/feedback", {}, headers=headers))[0] == 415
    headers = {b"content-type": b"application/json; charset=utf-8"}
    assert (await desk.call("POST", "/v1/feedback", {}, headers=headers))[0] == 400
    assert (await desk.call("POST", "/v1/feedback", {"comment": "x" * 300_000}))[0] == 413


# --- conversations ---


async def test_conversation_feedback_goes_to_the_latest_interaction(desk: Desk) -> None:
    world = desk.world
    await world.record(world.interaction(age_days=2, release=1, arm=0), "talk-1")
    latest = world.interaction(age_days=1)
    await world.record(latest, "talk-1")
    await world.record(world.interaction(age_days=0.5, kind=Kind.SHADOW, release=1), "talk-1")
    await world.record(world.interaction(application="sales", release=3), "talk-1")
    post = {"conversation_id": "talk-1", "application": "support", "metric": "stars", "value": 5}
    status, body = await desk.feedback(post, key="developer")
    assert status == 201
    rows = await desk.rows(
        "SELECT target, target_id, release, arm, extract(epoch FROM exposed_at) * 1000 FROM feedback"
    )
    assert rows == [("conversation", "talk-1", 2, 1, latest.unix_ms)]
    assert (await desk.feedback(post, key="developer"))[1]["id"] == body["id"]


async def test_two_applications_may_use_the_same_conversation_id(desk: Desk) -> None:
    world = desk.world
    await world.record(world.interaction(), "talk-1")
    await world.record(world.interaction(application="sales"), "talk-1")
    post = {"conversation_id": "talk-1", "metric": "stars", "value": 5, "author": "bob"}
    assert (await desk.feedback({**post, "application": "support"}, key="developer"))[0] == 201
    assert (await desk.feedback({**post, "application": "sales"}, key="developer"))[0] == 201
    # A key for one application need not name it.
    assert (await desk.feedback(post, key="seller"))[0] == 200


IMPOSSIBLE: list[tuple[dict[str, str], str | None, int, str | None]] = [
    ({"application": "support"}, None, 401, None),
    ({}, "developer", 400, "application"),
    ({"application": "support"}, "seller", 403, None),
    ({"application": "nothing"}, "developer", 404, "application"),
    ({"application": "support", "conversation_id": "c" * 2001}, "developer", 400, "conversation_id"),
    ({"application": "support", "conversation_id": ""}, "developer", 400, "conversation_id"),
]


async def test_conversation_feedback_that_cannot_be(desk: Desk) -> None:
    for post, key, status, param in IMPOSSIBLE:
        found = await desk.feedback({"conversation_id": "talk", "metric": "stars", "value": 5, **post}, key=key)
        assert (found[0], found[1].get("param")) == (status, param), post


async def test_a_conversation_is_waited_for_a_moment(desk: Desk) -> None:
    """An answer is out a little before its interaction is written."""
    post = {"conversation_id": "talk", "application": "support", "metric": "stars", "value": 5}
    late = asyncio.ensure_future(desk.feedback(post, key="developer"))
    clock = desk.world.clock
    while not clock.sleepers:  # noqa: ASYNC110 (a manual clock has no event to wait for)
        await asyncio.sleep(0)
    await desk.world.record(desk.world.interaction(), "talk")
    clock.advance(0.2)
    assert (await late)[0] == 201

    unknown = asyncio.ensure_future(desk.feedback({**post, "conversation_id": "other"}, key="developer"))
    while not unknown.done():
        clock.advance(0.2 if clock.sleepers else 0)
        await asyncio.sleep(0.001)
    assert (unknown.result()[0], unknown.result()[1]["param"]) == (404, "conversation_id")


# --- browsers ---


async def test_any_page_may_post_by_default(desk: Desk) -> None:
    post = {"interaction_id": desk.world.issue(), "metric": "stars", "value": 5}
    origin = {b"origin": b"https://shop.example"}
    for body, status in ((post, 201), ({}, 400)):
        answer = await desk.answer("POST", "/v1/feedback", body, headers=origin)
        assert answer.status == status
        assert dict(answer.headers)[b"access-control-allow-origin"] == b"*"
    preflight = dict((await desk.answer("OPTIONS", "/v1/feedback", headers=origin)).headers)
    assert preflight[b"access-control-allow-origin"] == b"*"
    assert b"content-type" in preflight[b"access-control-allow-headers"]


async def test_listed_pages_only(desk_with_origins: Callable[..., Desk]) -> None:
    desk = desk_with_origins("https://shop.example", "https://help.example")
    for origin, allowed in ((b"https://help.example", True), (b"https://evil.example", False), (b"", False)):
        for method in ("OPTIONS", "POST"):
            headers = dict((await desk.answer(method, "/v1/feedback", {}, headers={b"origin": origin})).headers)
            assert headers.get(b"access-control-allow-origin") == (origin if allowed else None)
            assert headers[b"vary"] == b"origin"
