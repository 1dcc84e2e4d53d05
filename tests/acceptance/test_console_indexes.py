"""The console's pages of search indexes in a real Chromium: a build while it happens, and searching in it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
from playwright.async_api import Route, expect
from psycopg.types.json import Jsonb

from headway.config.spec import specify_version
from headway.storage import builds, configuration
from headway.storage.builds import Progress
from headway.storage.database import Database
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.test_console import PHONE, TOO_WIDE, Visit, browsing, control_snapshot

pytestmark = pytest.mark.browser

TEXTS = {
    "leave.md": "# Leave\n\nEverybody has 25 days of paid holiday a year.\n\n" + "Ask the office for more. " * 60,
    "printers.md": "# Printers\n\nThe printer is on the second floor.\n",
    "board/pay.md": "# Pay of the board\n\nThe board has sixty days of paid holiday.\n",
    "a-folder-with-quite-a-long-name/and-a-document-whose-name-is-longer-than-a-telephone-is-wide.md": "# Long\n\nx\n",
}


@dataclass
class Stand:
    """Headway with an index over a few documents, and the keys of who looks at it."""

    headway: Headway
    admin: str
    viewer: str


@pytest.fixture(scope="module")
def headway(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headway]:
    """Headway with an index over a few documents; nothing of it is built."""
    folder = tmp_path_factory.mktemp("indexes")
    for path, text in TEXTS.items():
        (folder / "docs" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "docs" / path).write_text(text)
    (folder / "docs" / "broken.pdf").write_text("nothing")
    made = Headway(folder, database_url=module_database_url, workers=1, environment={"HEADWAY_TICK_SECONDS": "3600"})
    index = {"lake": "file:./docs", "labels": {"board/**": ["board"]}, "chunk": {"tokens": 64, "overlap": 8}}
    file = {
        "deployments": {"d": openai_deployment("http://127.0.0.1:9/v1", "m", auth="none")},
        "indexes": {"handbook": index, "manual": index},
        "applications": {"idle": application("d")},
    }
    with running(made, file):
        yield made


@pytest.fixture
async def database(headway: Headway) -> AsyncIterator[Database]:
    """Headway's own database."""
    opened = Database(headway.database_url)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture(scope="module")
def stand(headway: Headway) -> Stand:
    """The same with ``handbook@1``, and the keys of an admin and of who may only look."""
    headway.run("index", "build", "handbook")
    admin = headway.create_key("ann", "--scope", "admin")
    viewer = headway.create_key("ben", "--scope", "view")
    newest = headway.snapshot().number
    wait_for("the snapshot in the control plane", lambda: control_snapshot(headway) >= newest)
    return Stand(headway, admin, viewer)


@asynccontextmanager
async def held_build(database: Database) -> AsyncIterator[int]:
    """A build of ``manual`` that stands still while the block runs; gives the number of its row."""
    async with database.connection() as connection:
        entry = await configuration.current(connection)
        assert entry is not None
        spec = specify_version(entry.specification, "manual")
        build = await builds.begin(connection, "manual", spec, author="ann (key 1)")
        assert await builds.hold(connection, build.version)
        await connection.commit()
        yield build.version
        await builds.let_go(connection)


async def search(visit: Visit, query: str, *, groups: str | None = None) -> None:
    """Ask, and wait for what comes."""
    await visit.page.get_by_label("Query").fill(query)
    if groups is not None:
        await visit.page.get_by_label("As a caller of the groups").fill(groups)
    async with visit.page.expect_response(re.compile("/search$")):
        await visit.page.keyboard.press("Enter")


async def test_a_build_is_followed_until_it_is_published_and_searched(stand: Stand, database: Database) -> None:
    async with browsing(stand.headway) as visit:
        page = visit.page
        async with held_build(database) as version:
            await visit.sign_in(stand.admin, "/indexes")
            await expect(page.locator("tr", has_text="manual@1").locator(".state")).to_have_text("building")
            await page.get_by_role("link", name="manual@1").click()
            await expect(page.locator(".headline")).to_have_text("Looking through the lake for documents.")
            await page.get_by_label("Reason").fill("it takes too")
            async with database.connection() as connection:
                progress = Progress(documents=300, loaded=120, skipped=3, seconds=12.0)
                await connection.execute(
                    "UPDATE index_version SET stage = 'load', progress = %s WHERE id = %s",
                    (Jsonb(msgspec.to_builtins(progress)), version),
                )
            await expect(page.locator(".headline")).to_have_text("123 of 300 documents read, about 17 s to go.")
            await expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "41.0")
            await expect(page.locator("[aria-current=step]")).to_contain_text("load")
            await expect(page.get_by_label("Reason")).to_have_value("it takes too")
            async with database.connection() as connection:
                await connection.execute("UPDATE index_version SET stage = 'snapshot', progress = '{}'")
        # Nobody holds it any more: Headway builds it, and the page shows what came of it.
        await expect(page.locator(".headline")).to_have_text(
            re.compile(r"4 documents in \d+ passages\."), timeout=60_000
        )
        await expect(page.get_by_text("broken.pdf")).to_be_visible()

        await search(visit, "days of paid holiday")
        found = page.locator(".found > li")
        await expect(found.first).to_contain_text("Leave")
        await expect(found.first.locator("mark").first).to_be_visible()
        await expect(page.locator("#found")).not_to_contain_text("sixty")
        await search(visit, "days of paid holiday", groups="board")
        await expect(page.locator("#found")).to_contain_text("sixty")
        await expect(page.locator(".only")).to_have_text("only for board")
        await page.get_by_role("link", name="Leave", exact=True).first.click()
        await expect(page).to_have_url(re.compile(r"document\?path=leave\.md&from=0#passage-1$"))
        await expect(page.locator(".passages li").first).to_contain_text("25 days")

        # The next version, from the page; it can be dropped again.
        await page.goto(f"{stand.headway.admin_url}/indexes")
        card = page.locator("section", has_text="manual")
        await card.get_by_role("button", name="Build the next version").click()
        await expect(page).to_have_url(re.compile("/indexes/manual/2$"))
        await expect(page.locator(".state")).to_have_text("published", timeout=60_000)
        await expect(page.get_by_text("No document: the same ones, with the same content.")).to_be_visible()
        await page.get_by_label("Reason").fill("the same as before")
        await page.get_by_role("button", name="Drop").click()
        await expect(page.locator(".state")).to_have_text("dropped")


async def test_a_viewer_looks_and_searches_on_a_phone(stand: Stand) -> None:
    one = "/indexes/handbook/1"
    paths = ["/indexes", "/indexes/handbook", one, f"{one}/documents", f"{one}/document?path=board/pay.md", "/search"]
    for dark in (False, True):
        async with browsing(stand.headway, phone=True, dark=dark) as visit:
            page = visit.page
            await visit.sign_in(stand.viewer, "/indexes")
            for path in paths:
                await page.goto(stand.headway.admin_url + path)
                await expect(page.locator("h1")).to_be_visible()
                if path in (one, "/search"):
                    await search(visit, "days of paid holiday of the board, and of printers")
                    await expect(page.locator(".found > li").first).to_be_visible()
                await expect(page.locator("body")).not_to_contain_text("sixty")
                assert await page.evaluate(TOO_WIDE) == [], path
                assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
                assert await page.get_by_role("button", name=re.compile("Build|Drop|Cancel")).count() == 0


async def test_a_search_that_does_not_come_back_says_so(stand: Stand) -> None:
    async def refuse(route: Route) -> None:
        await route.abort()

    async with browsing(stand.headway) as visit:
        await visit.sign_in(stand.viewer, "/search")
        alert = visit.page.get_by_role("alert")
        await visit.page.get_by_label("Passages").fill("21")
        await visit.page.evaluate("document.querySelector('form.search').noValidate = true")
        await search(visit, "holiday")
        await expect(alert).to_have_text("Passages is a whole number from 1 to 20.")
        await visit.page.get_by_label("Passages").fill("5")
        await visit.page.route("**/search", refuse)
        await visit.page.get_by_role("button", name="Search").click()
        await expect(alert).to_have_text("Headway did not answer this search. Try it again.")
        await visit.page.unroute("**/search")
        await search(visit, "holiday")
        await expect(visit.page.locator(".found > li").first).to_be_visible()
        assert all("ailed to " in complaint for complaint in visit.complaints), visit.complaints
        visit.complaints.clear()


async def test_without_scripts_a_search_works_too(stand: Stand) -> None:
    async with browsing(stand.headway) as visit:
        await visit.page.route("**/static/*.js*", lambda route: route.abort())
        await visit.sign_in(stand.viewer, "/search")
        await search(visit, "days of paid holiday")
        await expect(visit.page.locator(".found > li").first).to_contain_text("Leave")
        await expect(visit.page.get_by_label("Query")).to_have_value("days of paid holiday")
        assert all("ailed to " in complaint for complaint in visit.complaints), visit.complaints
        visit.complaints.clear()
