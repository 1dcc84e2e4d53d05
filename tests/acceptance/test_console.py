"""The console in a real Chromium, on a running Headway: what a person sees, while it happens, and what they do."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Request, Route, async_playwright, expect

from headway.clock import SystemClock
from headway.storage import keys
from headway.storage.database import Database
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.integration.console.story import Story, add_application, add_key, make_policy, start_story

pytestmark = pytest.mark.browser

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
TOO_WIDE = """
    [...document.querySelectorAll("body *")]
        .filter(each => !each.closest(".unseen, .skip, .sprite"))
        .filter(each => each.getBoundingClientRect().right > innerWidth + 0.5)
        .map(each => each.outerHTML.slice(0, 80))
"""
_names = itertools.count(1)


def chromium() -> str | None:
    """Where the machine's browser is; None for Playwright's own. `make test` sees to it that there is one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def headway(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headway]:
    """Headway whose controller stands still: the tests write what it would."""
    made = Headway(
        tmp_path_factory.mktemp("console"),
        database_url=module_database_url,
        workers=1,
        environment={"HEADWAY_TICK_SECONDS": "3600"},
    )
    deployment = openai_deployment("http://127.0.0.1:9/v1", "m", auth="none")
    with running(made, {"deployments": {"d": deployment}, "applications": {"idle": application("d")}}):
        yield made


@dataclass
class Visit:
    """A page of the browser, and all that went wrong on it."""

    headway: Headway
    page: Page
    complaints: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _see(self, request: Request) -> None:
        if not request.url.startswith(self.headway.admin_url):
            self.complaints.append(f"asked elsewhere: {request.url}")

    async def sign_in(self, key: str, path: str = "/") -> None:
        """As a person does, from the page that they wanted to see."""
        await self.page.goto(self.headway.admin_url + path)
        await expect(self.page).to_have_url(re.compile("/sign-in"))
        await self.page.get_by_label("API key").fill(key)
        await self.page.keyboard.press("Enter")
        await expect(self.page).to_have_url(self.headway.admin_url + path)


@pytest.fixture
async def database(headway: Headway) -> AsyncIterator[Database]:
    """Headway's own database."""
    opened = Database(headway.database_url)
    await opened.open()
    yield opened
    await opened.close()


@asynccontextmanager
async def browsing(headway: Headway, *, dark: bool = False, phone: bool = False) -> AsyncIterator[Visit]:
    """A browser of somebody who has never been here; it fails when the page complained about anything."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser: Browser = await playwright.chromium.launch(executable_path=chromium(), args=arguments)
        context = await browser.new_context(
            viewport=PHONE if phone else WIDE,  # type: ignore[arg-type]  # a TypedDict of just these two
            color_scheme="dark" if dark else "light",
        )
        visit = Visit(headway, await context.new_page())
        visit.listen()
        yield visit
        await browser.close()
    assert visit.complaints == []


async def begin(database: Database, headway: Headway, **more: object) -> tuple[Story, str, str]:
    """A rollout of an application of its own at its first share; gives the keys of an admin and a viewer too."""
    number = next(_names)
    name, clock = f"support-{number}", SystemClock()
    await add_application(database, name, "plain", "concise")
    admin = await add_key(database, f"ann-{number}", "admin")
    viewer = await add_key(database, f"ben-{number}", "view")
    story = await start_story(
        database, clock, name, "concise", ago_seconds=5_000, policy=make_policy(shadow=None, min_units=10), **more
    )
    for _ in range(12):
        await story.tick()
    newest = headway.snapshot().number
    wait_for("the snapshot in the control plane", lambda: control_snapshot(headway) >= newest)
    return story, admin, viewer


def control_snapshot(headway: Headway) -> int:
    """The number of the snapshot that the control plane knows."""
    with urllib.request.urlopen(f"{headway.admin_url}/readyz", timeout=5) as answer:
        return int(json.load(answer)["snapshot"])


async def test_watching_a_rollout_and_taking_it_back(headway: Headway, database: Database) -> None:
    story, admin, _ = await begin(database, headway)
    path = f"/rollouts/{story.number}"
    async with browsing(headway) as visit:
        page = visit.page
        await visit.sign_in(admin)
        await page.get_by_role("link", name=f"Rollout {story.number}").click()
        await expect(page).to_have_url(headway.admin_url + path)
        await expect(page.locator(".headline")).to_have_text("1% of conversations get concise.")
        await expect(page.locator(".chart canvas")).to_have_count(6)
        width = await page.locator(".traffic .candidate").first.get_attribute("width")
        reason = page.get_by_label("Reason")
        await reason.fill("Answers are too")

        # It moves while one looks, and leaves alone what one is typing.
        await story.run_until(2, 3)
        await expect(page.locator(".headline")).to_have_text("5% of conversations get concise.", timeout=10_000)
        await expect(page).to_have_title(re.compile("concise at 5%"))
        await expect(page.locator("[aria-current=step]")).to_contain_text("5%")
        await expect(page.locator(".log .advance").first).to_contain_text("1% → 5%")
        assert await page.locator(".traffic .candidate").first.get_attribute("width") != width
        await expect(page.locator(".chart canvas")).to_have_count(6)
        await expect(reason).to_have_value("Answers are too")
        await expect(reason).to_be_focused()

        # The charts tell the figures under the pointer.
        chart = page.locator(".chart").first
        await chart.scroll_into_view_if_needed()
        box = await chart.bounding_box()
        assert box is not None
        await page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] / 2)
        await expect(chart.locator(".hover")).to_have_text(re.compile(r"\d\d:\d\d .+ pp .+ to .+"))

        # Without a reason nothing happens; with one, the rollout ends.
        await reason.fill("")
        await page.get_by_role("button", name="Roll back").click()
        assert (await story.rollout()).ended_at is None
        await reason.fill("Answers are too short")
        await page.get_by_role("button", name="Roll back").click()
        await expect(page.locator(".headline")).to_have_text("concise was rolled back: plain has all traffic.")
        await expect(page.locator(".log li").first).to_contain_text("Rolled back from 5%: Answers are too short.")
        await expect(page.get_by_role("button", name="Roll back")).to_have_count(0)
        await expect(page.locator(".chart canvas")).to_have_count(6)
    rollout = await story.rollout()
    assert (rollout.state, rollout.share) == ("rolled_back", 0.0)
    assert headway.snapshot().applications[rollout.application].rollout is None


async def test_a_viewer_looks_at_everything_on_a_phone(headway: Headway, database: Database) -> None:
    story, _, viewer = await begin(database, headway)
    paths = ["/", "/rollouts", *(f"/rollouts/{story.number}{more}" for more in ("", "/decisions", "/answers"))]
    for dark in (False, True):
        async with browsing(headway, phone=True, dark=dark) as visit:
            await visit.sign_in(viewer, "/rollouts")
            backgrounds = set()
            for path in paths:
                await visit.page.goto(headway.admin_url + path)
                await expect(visit.page.locator("h1")).to_be_visible()
                if path.endswith(str(story.number)):
                    await expect(visit.page.locator(".chart canvas")).to_have_count(6)
                wide = await visit.page.evaluate(TOO_WIDE)
                assert wide == [], path
                assert await visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
                assert await visit.page.locator("main button").count() == 0
                backgrounds.add(await visit.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            (background,) = backgrounds
            brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
            assert brightness < 100 if dark else brightness > 700


async def test_the_colours_follow_the_system(headway: Headway, database: Database) -> None:
    story, _, viewer = await begin(database, headway)
    async with browsing(headway) as visit:
        await visit.sign_in(viewer, f"/rollouts/{story.number}")
        canvas = visit.page.locator(".chart canvas").first
        await expect(canvas).to_be_visible()
        light = await canvas.evaluate("each => each.toDataURL()")
        await visit.page.emulate_media(color_scheme="dark")
        await expect(visit.page.locator(".chart canvas")).to_have_count(6)
        await visit.page.wait_for_function(
            "light => document.querySelector('.chart canvas').toDataURL() !== light", arg=light
        )


async def test_the_keyboard_is_enough(headway: Headway, database: Database) -> None:
    story, admin, _ = await begin(database, headway)
    async with browsing(headway) as visit:
        await visit.sign_in(admin, f"/rollouts/{story.number}")
        page = visit.page
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        for _ in range(40):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.id") == "reason":
                break
        await page.keyboard.type("Lunch")
        for _ in range(6):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.textContent") == "Pause":
                break
        await page.keyboard.press("Enter")
        await expect(page.locator(".headline")).to_contain_text("Paused for")
        await expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert (await story.rollout()).state == "paused"


async def test_a_page_that_nobody_looks_at_asks_for_nothing(headway: Headway, database: Database) -> None:
    story, _, viewer = await begin(database, headway)
    async with browsing(headway) as visit:
        page, asked = visit.page, 0

        def count(request: Request) -> None:
            nonlocal asked
            asked += "hx-request" in request.headers

        page.on("request", count)
        await page.clock.install()
        await visit.sign_in(viewer, f"/rollouts/{story.number}")
        for expected in (1, 2):
            async with page.expect_response(re.compile("/rollouts/")):
                await page.clock.run_for(2_000)
            assert asked == expected
        await page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true})")
        await page.evaluate("window.away = true")
        await page.clock.run_for(60_000)
        assert asked == 2
        async with page.expect_response(re.compile("/rollouts/")):
            await page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
        assert asked == 3


async def test_the_applications_keep_up_too(headway: Headway, database: Database) -> None:
    story, _, viewer = await begin(database, headway)
    rollout = await story.rollout()
    async with browsing(headway) as visit:
        await visit.page.clock.install()
        await visit.sign_in(viewer)
        card = visit.page.locator("section", has_text=rollout.application)
        await expect(card.locator(".arm.candidate")).to_have_text("1% concise")
        await story.run_until(2)
        await visit.page.clock.run_for(10_000)
        await expect(card.locator(".arm.candidate")).to_have_text("5% concise")


async def test_a_console_that_does_not_answer_says_so(headway: Headway, database: Database) -> None:
    story, _, viewer = await begin(database, headway)

    async def refuse(route: Route) -> None:
        await route.abort()

    async with browsing(headway) as visit:
        await visit.sign_in(viewer, f"/rollouts/{story.number}")
        notice = visit.page.get_by_text("Headway does not answer")
        await expect(notice).to_be_hidden()
        await visit.page.route("**/rollouts/*", refuse)
        await expect(notice).to_be_visible(timeout=10_000)
        await visit.page.unroute("**/rollouts/*")
        await expect(notice).to_be_hidden(timeout=10_000)
        assert all("ailed to " in complaint for complaint in visit.complaints), visit.complaints
        visit.complaints.clear()


async def test_a_revoked_key_is_signed_out_while_it_looks(headway: Headway, database: Database) -> None:
    story, _, viewer = await begin(database, headway)
    async with browsing(headway) as visit:
        await visit.sign_in(viewer, f"/rollouts/{story.number}")
        async with database.connection() as connection:
            cursor = await connection.execute("SELECT id FROM api_key WHERE hash = %s", (keys.hash_key(viewer),))
            (number,) = await cursor.fetchone() or (0,)
            await keys.revoke(connection, number, author="ann")
        await expect(visit.page).to_have_url(re.compile("/sign-in"), timeout=10_000)
        assert all("401" in complaint for complaint in visit.complaints)
        visit.complaints.clear()
        await visit.page.get_by_label("API key").fill(viewer)
        await visit.page.get_by_role("button", name="Sign in").click()
        await expect(visit.page.get_by_role("alert")).to_contain_text("was revoked")
        assert all("401" in complaint for complaint in visit.complaints)
        visit.complaints.clear()


async def test_a_link_from_another_site_finds_who_is_signed_in(headway: Headway, database: Database) -> None:
    story, _, viewer = await begin(database, headway)
    path = f"/rollouts/{story.number}"
    async with browsing(headway) as visit:
        await visit.sign_in(viewer)
        other = f"http://localhost:{headway.admin_port}/elsewhere"  # another site than 127.0.0.1

        async def mail(route: Route) -> None:
            body = f'<!doctype html><a href="{headway.admin_url}{path}">Rolled back</a>'
            await route.fulfill(body=body, content_type="text/html")

        await visit.page.route(other, mail)
        await visit.page.goto(other)
        await visit.page.get_by_text("Rolled back").click()
        await expect(visit.page.locator(".headline")).to_be_visible()
        assert visit.page.url == headway.admin_url + path
        visit.complaints[:] = [each for each in visit.complaints if "elsewhere" not in each and "localhost" not in each]


async def test_the_cookie_opens_the_console_and_nothing_else(headway: Headway, database: Database) -> None:
    _, admin, _ = await begin(database, headway)
    async with browsing(headway) as visit:
        await visit.sign_in(admin)
        cookies = await visit.page.context.cookies()
        (cookie,) = [each for each in cookies if each.get("name", "").startswith("headway_")]
        assert (cookie.get("httpOnly"), cookie.get("sameSite")) == (True, "Strict")
        assert await visit.page.evaluate("document.cookie") == ""
        for path, status in (("/admin/v1/rollouts", 401), ("/healthz", 200), ("/nothing", 404)):
            answer = await visit.page.request.get(headway.admin_url + path)
            assert answer.status == status
        await visit.page.get_by_role("button", name="Sign out").click()
        await expect(visit.page.get_by_label("API key")).to_be_focused()


def test_the_licences_of_what_is_vendored_are_there() -> None:
    static = Path(__file__).parents[2] / "src/headway/console/static"
    vendored = {path.name.partition("-")[0] for path in static.glob("*.min.*")}
    assert vendored == {path.name.partition("-")[0] for path in static.glob("*-LICENSE.txt")}
