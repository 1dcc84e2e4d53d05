"""What the pages show and what can be done there."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from headway.clock import utc
from headway.console.rendering import load_assets
from headway.errors import LimitError
from headway.rollouts.manual import set_share
from headway.storage import records
from tests.asked import ask, found_application
from tests.integration.console.conftest import Console, words
from tests.integration.console.story import add_application, add_key, make_policy, record
from tests.lakes import CountingEmbedder

EVIL = "<script>alert(1)</script>\"'&{{ 7*7 }}"
ESCAPED = "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;{{ 7*7 }}"
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


async def test_every_answer_is_protected(console: Console) -> None:
    story = await console.story()
    await story.tick()
    browser = await console.signed_in()
    page = await browser.get("/rollouts/1")
    asset = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert len(asset) >= 5
    paths = ["/", "/sign-in", "/rollouts", "/rollouts/1", "/rollouts/1/figures", "/rollouts/9", "/static/none", *asset]
    for path in paths:
        answer = await browser.client.get(path)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';"), path
        assert "unsafe" not in policy
        assert HEADERS.items() <= dict(answer.headers).items(), path
        kept = answer.headers["cache-control"]
        assert kept == ("public, max-age=31536000, immutable" if path in asset else "no-store"), path
        if answer.headers.get("content-type", "").startswith("text/html"):
            assert not re.search(r"<[^>]+\s(?:style|on\w+)=|<style|<script(?![^>]*\ssrc=)|javascript:", answer.text), (
                path
            )
            assert not re.search(r'(?:src|href|action)="(?:https?:)?//', answer.text), path


async def test_files_are_whole_and_licensed(console: Console) -> None:
    assets = load_assets()
    assert {"console.css", "console.js", "mark.svg"} < set(assets)
    vendored = [name for name in assets if re.search(r"-\d+\.\d+\.\d+\.min\.", name)]
    assert {name.partition("-")[0] for name in vendored} == {"htmx", "uplot"}
    client = console.browser().client
    plain = await client.get("/static/console.js", headers={"accept-encoding": "identity"})
    packed = await client.get("/static/console.js", headers={"accept-encoding": "gzip"})
    assert plain.content == packed.content == assets["console.js"].body
    assert (plain.headers["cache-control"], packed.headers["content-encoding"]) == ("no-cache", "gzip")
    assert (await client.post("/static/console.js")).status_code == 405


async def test_other_paths_are_not_the_consoles(console: Console) -> None:
    client = console.browser().client
    for path in ("/admin/v1/rollouts", "/healthz", "/metrics", "/openapi.json", "/rolloutsx", "/sign-inx", "/staticx"):
        assert (await client.get(path)).status_code == 418, path


async def test_what_is_not_there(console: Console) -> None:
    browser = await console.signed_in("viewer")
    for path in ("/rollouts/1", "/rollouts/0", "/rollouts/99999999999999999999", "/rollouts/x", "/rollouts/1/figures"):
        page = await browser.get(path, 404)
        assert "Sign out" in page
    await console.story()
    for path in (
        "/rollouts/1/figures?since=soon",
        "/rollouts/1/figures?since=1e300",
        "/rollouts/1/figures?since=nan",
        "/rollouts/1/answers?before=soon",
        "/rollouts/1/answers?before=2026-01-01T00:00:00",
        "/?cursor=x",
        "/rollouts?cursor=x",
    ):
        await browser.get(path, 400)
    assert (await browser.client.get("/rollouts/1/pause")).status_code == 405


async def test_applications(console: Console) -> None:
    await add_application(console.database, "sales", "only")
    await add_application(console.database, "empty", "first")
    async with console.database.connection() as connection:
        await connection.execute("UPDATE application SET stable_release = NULL WHERE name = 'empty'")
    story = await console.story()
    await story.run_until(1, 1)
    console.catch_up(story)
    for number in range(12):
        at = console.clock.unix_ms() - number * 1000 - 1
        await record(
            console.database,
            at,
            names=("sales", "only"),
            ask="?",
            answer="!",
            release_error=number == 0,
            total_ms=100.0 * (number + 1),
        )
    await rate(console, "sales", "only", 1.0, 1.0, 0.0)
    browser = await console.signed_in("viewer")
    text = words(await browser.get("/"))
    assert "empty policy careful · by conversation Past rollouts No release yet." in text
    assert "sales policy careful · by conversation Past rollouts only has all traffic." in text
    assert "only stable Thumbs up 66.7% of 3 0.2 8.33% 600 ms 1,200 ms Thumbs up 66.7% of 3" in text
    assert "support policy careful · by conversation Rollout 1 1% concise ramp plain 99% No traffic in the" in text


async def rate(console: Console, application: str, release: str, *values: float) -> None:
    async with console.database.connection() as connection:
        at = utc(console.clock.unix_ms() - 1000)
        for author, value in enumerate(values):
            await connection.execute(
                "INSERT INTO feedback (id, at, target, target_id, application, release, rollout, stage, arm, kind,"
                " unit, exposed_at, metric, number, source, author, key) SELECT gen_random_uuid(), %s, 'interaction',"
                " 'x', a.id, r.id, 0, 0, 0, 1, 'u', %s, 'thumbs_up', %s, %s, %s, 0 FROM application a JOIN release r"
                " ON r.application_id = a.id WHERE a.name = %s AND r.name = %s",
                (at, at, value, "end_user" if author else "developer", str(author), application, release),
            )


async def test_what_is_too_much_to_add_up_is_not(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    async def refuse(connection: Any, application: int, since: Any, until: Any, *, seconds: float) -> list[Any]:
        asked.append(until - since)
        raise LimitError("too much")

    monkeypatch.setattr(records, "summarise", refuse)
    browser = await console.signed_in("viewer")
    assert "too much traffic to add up" in words(await browser.get("/"))
    assert [span.total_seconds() for span in asked] == [3600, 300]
    await browser.get("/")
    assert len(asked) == 2  # kept for the next who look
    console.clock.advance(10)
    await browser.get("/")
    assert len(asked) == 4


async def test_a_rollout_as_it_goes(console: Console) -> None:
    story = await console.story()
    browser = await console.signed_in("viewer")
    page = words(await browser.get("/rollouts/1"))
    assert "plain answers everything; 10% of requests go to concise too, its answers are dropped." in page
    assert "Before 1%: 30 min of dwell; 0 of 50 mirrored answers." in page
    assert "No figures yet." in page
    assert "None yet." in page
    await story.run_until(2, 5)
    console.catch_up(story)
    page = await browser.get("/rollouts/1")
    text = words(page)
    assert "5% of conversations get concise." in text
    assert "Before 25%: 27 min of dwell" in text
    assert re.search(r"shadow 1% 5% now · 2 min 30 s 25% 50% 100% needs approval", text)
    assert "advanced 1% → 5%" in text
    assert "Thumbs up goal" in text
    assert text.count("of 133") == 5
    assert "deployment main next" in text
    assert "− Answer briefly and politely." in text
    assert "+ Answer in at most three sentences." in text
    assert "<button" not in page.partition("<main")[2]
    live = await browser.get("/rollouts/1", live=True)
    assert "<html" not in live
    assert "<title>support: concise at 5% · Headway</title>" in live
    assert words(live.partition("</title>")[2]) in text
    listed = words(await browser.get("/rollouts"))
    assert "1 support concise replaces plain; differs in model, prompt, parameters ramp 5%" in listed
    assert "The releases differ in model, prompt and parameters, and the evidence cannot tell these apart" in text
    assert "so far" in listed
    assert words(await browser.get("/rollouts?application=none")).endswith("headway apply .")


async def test_a_bad_rollout_is_taken_back(console: Console) -> None:
    truth = {"thumbs_up": -0.2, "error_rate": 1.0, "attempt_error_rate": 1.0, "fallback_rate": 1.0}
    story = await console.story(truth={**truth, "latency_p95": 1.0, "cost": 1.0}, policy=make_policy(shadow=None))
    await story.run_until(9)
    console.catch_up(story)
    browser = await console.signed_in()
    page = await browser.get("/rollouts/1")
    text = words(page)
    assert "concise was rolled back: plain has all traffic." in text
    assert "thumbs_up is beyond its harm line: −" in text
    assert "ended here" in text
    assert "harm shown" in text
    assert "data-over" in page
    assert "<textarea" not in page
    listed = words(await browser.get("/rollouts"))
    assert "rolled back 0%" in listed
    assert "so far" not in listed


async def test_people_act_with_a_reason(console: Console) -> None:
    story = await console.story()
    browser = await console.signed_in()
    await browser.get("/rollouts/1")
    for reason in ("", "  ", "x" * 501, "a\x00b"):
        answer = await browser.post("/rollouts/1/pause", 400, reason=reason)
        assert "reason" in words(answer.text)
    await browser.post("/rollouts/1/nonsense", 404, reason="x")
    await browser.post("/rollouts/2/pause", 404, reason="x")
    answer = await browser.post("/rollouts/1/resume", 409, reason="x")
    assert "not paused" in words(answer.text)
    answer = await browser.post("/rollouts/1/pause", reason=f"lunch {EVIL}")
    assert answer.headers["location"] == "/rollouts/1"
    console.clock.advance(125)
    page = await browser.get("/rollouts/1")
    assert "Paused for 2 min 5 s." in words(page)
    assert f"lunch {ESCAPED}" in page
    assert EVIL not in page
    for wish, reason in (("resume", "back"), ("approve", "fine"), ("advance", "in a hurry"), ("rollback", "no good")):
        await browser.post(f"/rollouts/1/{wish}", reason=reason)
    rollout = await story.rollout()
    assert (rollout.state, rollout.share) == ("rolled_back", 0.0)
    await browser.post("/rollouts/1/promote", 409, reason="after all")
    text = words(await browser.get("/rollouts/1"))
    assert "Rolled back from 1%: no good." in text
    assert "Approved the step to 100%: fine." in text
    async with console.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT author, action, reason FROM audit_log WHERE subject LIKE 'rollout%%' ORDER BY id"
        )
        rows = await cursor.fetchall()
    key = next(each for each in console.snapshots[-1].keys.values() if each.name == "operator")
    assert {author for author, _, _ in rows} == {f"operator (key {key.number})"}
    assert [(action, reason) for _, action, reason in rows][1:] == [
        ("rollout.resume", "back"),
        ("rollout.approve", "fine"),
        ("rollout.advance", "in a hurry"),
        ("rollout.rollback", "no good"),
    ]


async def test_viewers_only_look(console: Console) -> None:
    story = await console.story()
    browser = await console.signed_in("viewer")
    page = await browser.get("/rollouts/1")
    assert "<textarea" not in page
    for wish in ("pause", "approve", "advance", "promote", "rollback"):
        answer = await browser.post(f"/rollouts/1/{wish}", 403, reason="x")
        assert "changes need the scope" in words(answer.text)
    rollout = await story.rollout()
    assert (rollout.state, rollout.version) == ("shadow", 0)


async def test_what_can_be_asked_is_offered(console: Console) -> None:
    story = await console.story()
    browser = await console.signed_in()

    async def offered() -> list[str]:
        page = await browser.get("/rollouts/1")
        return re.findall(r'formaction="/rollouts/1/(\w+)"', page)

    assert await offered() == ["approve", "pause", "advance", "promote", "rollback"]
    await story.ask("pause", "x")
    assert await offered() == ["resume", "approve", "promote", "rollback"]
    await story.ask("approve", "x")
    assert await offered() == ["resume", "promote", "rollback"]
    await story.ask("promote", "x")
    assert await offered() == []
    assert "concise was promoted: it has all traffic." in words(await browser.get("/rollouts/1"))


async def test_manual_rollouts(console: Console) -> None:
    async with console.database.connection() as connection:
        await set_share(connection, "support", "concise", 0.2, author="ann", reason="a look")
    browser = await console.signed_in()
    page = await browser.get("/rollouts/1")
    text = words(page)
    assert "20% of traffic gets concise, set by hand." in text
    assert "20%" in text
    assert "a look" in text
    assert re.findall(r'formaction="/rollouts/1/(\w+)"', page) == ["promote", "rollback"]
    await browser.get("/rollouts/1/figures", 404)
    await browser.post("/rollouts/1/pause", 409, reason="x")
    await browser.post("/rollouts/1/rollback", reason="enough")
    text = words(await browser.get("/rollouts/1"))
    assert "concise was taken back: plain has all traffic." in text
    assert "enough operator (key" in text


async def test_figures_over_time(console: Console) -> None:
    story = await console.story()
    await story.run_until(1, 3)
    browser = await console.signed_in("viewer")
    answer = await browser.client.get("/rollouts/1/figures")
    assert answer.headers["content-type"] == "application/json"
    figures = json.loads(answer.text)
    times = figures["times"]
    assert times == sorted(times)
    assert [stage["label"] for stage in figures["stages"]][-1] == "1%"
    names = [curve["name"] for curve in figures["metrics"]]
    assert names[0] == "thumbs_up"
    for curve in figures["metrics"]:
        assert {len(curve[name]) for name in ("estimate", "lower", "upper")} == {len(times)}
    thumbs, errors = figures["metrics"][:2]
    assert (thumbs["margin"], thumbs["harm"], thumbs["factor"], thumbs["unit"]) == (-0.05, -0.025, 100, "pp")
    assert (errors["margin"], errors["harm"], errors["form"]) == (1.5, 1.25, "ratio")
    # The shadow stage and the ramp have their own processes: the line breaks between them.
    gap = next(place for place, time in enumerate(times) if 0 < time - times[place - 1] < 0.01)
    assert [curve["estimate"][gap] for curve in figures["metrics"]] == [None] * 6
    assert errors["estimate"][gap - 1] is not None
    later = json.loads(await browser.get(f"/rollouts/1/figures?since={times[-3]}"))
    assert later["times"] == times[-2:]
    assert later["metrics"][1]["estimate"] == errors["estimate"][-2:]


async def test_decisions_page_by_page(console: Console) -> None:
    story = await console.story()
    for number in range(12):
        await story.ask("pause", f"stop {number}")
        await story.ask("resume", f"go {number}")
    browser = await console.signed_in("viewer")
    page = await browser.get("/rollouts/1")
    assert "go 11" in page
    assert "stop 0" not in page
    (older,) = re.findall(r'href="(/rollouts/1/decisions\?before=\d+)"', page)
    text = words(await browser.get(older))
    assert "stop 0" in text
    assert "go 1:" not in text
    assert len(re.findall(r"(?:go|stop) \d+", text)) == 24 - 20
    assert len(re.findall("<li class", await browser.get("/rollouts/1/decisions?before=x"))) == 20


async def test_mirrored_answers_side_by_side(console: Console) -> None:
    story = await console.story()
    now = console.clock.unix_ms()
    for number in range(23):
        at = now + number * 1000
        ask = EVIL if number == 22 else f"question {number}"
        caller = await record(console.database, at, names=("support", "plain"), ask=ask, answer=f"long answer {number}")
        await record(
            console.database,
            at + 400,
            names=("support", "concise"),
            ask=None,
            answer=None if number == 21 else f"short answer {number}",
            error="provider_timeout" if number == 21 else None,
            rollout=story.number,
            mirror_of=caller,
        )
    console.clock.advance(60)
    browser = await console.signed_in("viewer")
    page = await browser.get("/rollouts/1")
    text = words(page)
    assert ESCAPED in page
    assert EVIL not in page
    assert "asked question 20 stable 900 ms · 3 tokens · $0.00180 long answer 20 candidate 900 ms" in text
    assert "short answer 20" in text
    assert "failed: provider_timeout" in text
    assert "question 19" not in text
    live = await browser.get("/rollouts/1/answers", live=True)
    assert "<html" not in live
    assert words(live) in text
    page = await browser.get("/rollouts/1/answers")
    assert "short answer 3" in page
    assert "question 2<" not in page
    (older,) = re.findall(r'href="(\?before=[^"]+)"', page)
    text = words(await browser.get(f"/rollouts/1/answers{older}"))
    assert [f"question {number}" in text for number in range(4)] == [True, True, True, False]
    assert await browser.get("/rollouts/1/answers?before=2020-01-01T00:00:00%2B00:00")


async def test_an_answer_past_its_retention_leaves_the_other(console: Console) -> None:
    story = await console.story()
    at = console.clock.unix_ms()
    caller = await record(console.database, at, names=("support", "plain"), ask=None, answer=None)
    await record(
        console.database,
        at + 1,
        names=("support", "concise"),
        ask=None,
        answer="only mine",
        rollout=1,
        mirror_of=caller,
    )
    async with console.database.connection() as connection:
        await connection.execute("DELETE FROM interaction WHERE id = %s", (caller,))
    browser = await console.signed_in("viewer")
    text = words(await browser.get(f"/rollouts/{story.number}/answers"))
    assert "asked not recorded stable not recorded candidate 900 ms" in text
    assert "only mine" in text


async def test_names_of_people_and_releases_are_escaped(console: Console) -> None:
    secret = await add_key(console.database, EVIL, "admin")
    await add_application(console.database, EVIL, "plain", f"x {EVIL}")
    story = await console.story(EVIL, f"x {EVIL}")
    await story.run_until(1, 2)
    await story.ask("pause", "x", author=EVIL)
    console.catch_up(story)
    await console.follow()
    browser = console.browser()
    await browser.sign_in(secret)
    for path in ("/", "/rollouts", "/rollouts/1", "/rollouts/1/decisions", "/rollouts/1/answers"):
        page = await browser.get(path)
        assert "<script>alert" not in page, path
        assert ESCAPED in page, path
    page = await browser.get("/rollouts/%3Cscript%3E", 404)
    assert "<script>" not in page


async def test_the_applications_page_asks_again_for_itself(console: Console) -> None:
    browser = await console.signed_in("viewer")
    page = await browser.get("/", live=True)
    assert 'id="live"' in page


async def test_lost_documents_are_shown(console: Console) -> None:
    async with console.database.connection() as connection:
        await found_application(connection, CountingEmbedder().embed)
        await ask(connection, "train?", ["travel.md"], times=3, ago="1 minute")
        await connection.execute(
            "INSERT INTO rollout_stage (rollout_id, stage, share, author, reason) VALUES (1, 1, 0.5, 'ann', 'try')"
        )
    browser = await console.signed_in("viewer")
    page = await browser.get("/rollouts/1")
    text = words(page)
    assert "The releases differ in the index version only: handbook@1 → handbook@2." in text
    assert "Lost with handbook@2 3 of the latest 3 answers of on-1 had passages of documents" in text
    assert "Travel travel.md removed 3" in text
    assert "Lost with" not in await browser.get("/rollouts/1", live=True)
