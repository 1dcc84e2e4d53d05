"""The pages of search indexes: what they show, to whom, and what can be done there."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from headway.clock import SystemClock
from headway.config.azure_search import AzureFields, AzureSearchSpec
from headway.config.indexes import EmbedderSpec, IndexSpec, LakeSpec, VersionSpec
from headway.domain.release import Deployment, Endpoint, Operation, Retrieval
from headway.providers.azure_search import SearchServices
from headway.providers.credentials import Credentials
from headway.retrieval.building import resume, start
from headway.retrieval.embedding import StaticEmbedder
from headway.storage import builds, configuration, keys, versions
from headway.storage.database import Database
from headway.storage.keys import Grant
from headway.testing.search_service import SearchServiceSimulator
from tests.indexes import Page, publish
from tests.integration.console.conftest import OWN, Browser, Console, words
from tests.lakes import make_tools, write_documents
from tests.project import Project

EVIL = "<script>alert(1)</script>\"'&{{ 1234567*7 }}"
PAGES = (
    Page("leave.md", "Leave", "Everybody has 25 days of paid holiday a year."),
    Page("print.md", "Printers", "The printer is on the second floor."),
    Page(
        "board/pay.md", "Pay of the board", "The board has sixty days of paid holiday: unobtainium.", groups=("board",)
    ),
)
NEWER = (*PAGES, Page("new.md", EVIL, f"Holiday {EVIL} everywhere. " + "More of that. " * 60))
QUERY = "how many days of paid holiday"


@pytest.fixture
async def handbook(console: Console) -> Console:
    """The console with ``handbook@1`` and ``handbook@2``, and with a viewer who is in the group ``board``."""
    embedder = StaticEmbedder()
    async with console.database.connection() as connection:
        for number, pages in enumerate((PAGES, NEWER), start=1):
            version = await publish(connection, "handbook", number, pages, embedder.embed)
            await connection.execute(
                "INSERT INTO index_document (version_id, path, content_hash, size_bytes, state, problem)"
                " VALUES (%s, 'old.pdf', '', 10, 'skipped', 'is encrypted')",
                (version,),
            )
        _, console.secrets["director"] = await keys.create(
            connection, Grant("director", scopes=("view",), groups=("board",)), author="test"
        )
    return console


async def ask(browser: Browser, status: int = 200, live: bool = True, /, **fields: str) -> str:
    """Search as the search box does."""
    form = {"token": browser.token, "index": "handbook", "query": QUERY, **fields}
    headers = OWN | ({"hx-request": "true"} if live else {})
    answer = await browser.client.post("/search", data=form, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.text


async def use(database: Database, index: str, number: int) -> None:
    """Let the stable release of ``support`` search a version."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE release SET bundle = bundle || jsonb_build_object('retrieval', %s::jsonb) WHERE id ="
            " (SELECT stable_release FROM application WHERE name = 'support')",
            (Jsonb(msgspec.to_builtins(Retrieval(index, number))),),
        )


async def test_what_there_is_and_who_uses_it(handbook: Console) -> None:
    await use(handbook.database, "handbook", 1)
    browser = await handbook.signed_in("viewer")
    page = await browser.get("/indexes")
    assert "handbook no longer in headway.yaml Search" in words(page)
    first, second = re.findall(r'<tr class="published">(.*?)</tr>', page, re.DOTALL)
    assert words(first).startswith("handbook@2 published")
    assert words(first).count("nobody") == 1
    assert words(second).startswith("handbook@1 published")
    assert "support: plain" in words(second)
    assert await browser.get("/indexes", live=True)
    assert "handbook@1" in await browser.get("/indexes/handbook")
    assert '<a href="/indexes" aria-current="page">' in page
    home = await browser.get("/")
    assert "plain has all traffic. It searches handbook@1 ." in words(home)
    assert 'href="/indexes/handbook/1"' in home


async def test_a_version(handbook: Console) -> None:
    browser = await handbook.signed_in("viewer")
    text = words(await browser.get("/indexes/handbook/2"))
    assert "No release in use names it: index: handbook@2 in a release does." in text
    assert "Left out old.pdf is encrypted" in text
    assert "What differs from handbook@1 1 added , 0 changed , 0 removed" in text
    assert "lake file:/docs include ** passages up to 256 tokens, 32 repeated embedder local-static" in text
    changes = await browser.get("/indexes/handbook/2/changes?before=1")
    assert "/indexes/handbook/2/document?path=new.md" in changes
    back = words(await browser.get("/indexes/handbook/1/changes?before=2"))
    assert "0 added , 0 changed , 1 removed − removed new.md" in back
    documents = await browser.get("/indexes/handbook/2/documents")
    assert words(documents).count("only for board") == 1
    assert "leave.md" not in await browser.get("/indexes/handbook/2/documents?state=skipped")
    await use(handbook.database, "handbook", 2)
    assert "Used by support: plain." in words(await browser.get("/indexes/handbook/2"))


async def test_documents_are_listed_page_by_page(handbook: Console) -> None:
    async with handbook.database.connection() as connection:
        await connection.execute(
            "INSERT INTO index_document (version_id, path, content_hash, size_bytes, title, state, chunks)"
            " SELECT id, 'many/' || lpad(n::text, 3, '0'), '', 1, 'T', 'loaded', 0 FROM index_version,"
            " generate_series(1, 60) n WHERE number = 2"
        )
    browser = await handbook.signed_in("viewer")
    page, seen = await browser.get("/indexes/handbook/2/documents?state=loaded"), []
    while True:
        seen += re.findall(r"document\?path=([^\"]+)", page)
        following = re.search(r'href="(\?state=loaded&amp;cursor=[^"]+)">More', page)
        if following is None:
            break
        page = await browser.get("/indexes/handbook/2/documents" + following[1].replace("&amp;", "&"))
    assert len(seen) == len(set(seen)) == 64


async def test_passages_are_shown_with_their_scores_and_why(handbook: Console) -> None:
    browser = await handbook.signed_in("viewer")
    await browser.get("/search")
    found = await ask(browser, top_k="2", index="handbook@1")
    text = words(found)
    assert re.match(r"2 passages of handbook@1 · 50 % meaning · what everybody may see · \d+ ms 1 Leave 0\.\d\d", text)
    assert re.search(r"by meaning 1\. similarity 0\.\d\d by words 1\. \d+ % of the query’s", text)
    assert "<mark>holiday</mark>" in found
    assert "<html" not in found
    assert "/indexes/handbook/1/document?path=leave.md&amp;from=0#passage-1" in found
    by_words = words(await ask(browser, meaning="0", top_k="1"))
    assert "by meaning not looked at by words 1." in by_words
    whole = await ask(browser, 200, False)
    assert "<html" in whole
    assert f'value="{QUERY}"' in whole
    assert '<option value="handbook@2" selected>' in whole


async def test_a_labelled_passage_is_found_by_its_groups_alone(handbook: Console) -> None:
    cases: list[tuple[str, dict[str, str], bool]] = [
        ("viewer", {}, False),
        ("viewer", {"groups": "board"}, False),  # who may only look chooses no groups
        ("director", {}, True),
        ("director", {"groups": ""}, True),
        ("operator", {}, False),
        ("operator", {"groups": "hr, board"}, True),
    ]
    for name, fields, expected in cases:
        browser = await handbook.signed_in(name)
        await browser.get("/search")
        wanted = {"query": "unobtainium of the board", "top_k": "20", **fields}
        whole, found = await ask(browser, 200, False, **wanted), await ask(browser, **wanted)
        for page in (whole, found):
            assert ("sixty" in page) == expected, (name, fields)
            assert ("board/pay.md" in page) == expected, (name, fields)
        assert ("only for board" in words(found)) == expected


async def test_the_text_of_a_labelled_document_is_for_its_groups(handbook: Console) -> None:
    path = "/indexes/handbook/2/document?path=board/pay.md"
    viewer = await handbook.signed_in("viewer")
    page = await viewer.get(path)
    assert "Only board may read it: your API key is in none of these groups." in words(page)
    assert "unobtainium" not in page
    assert "Everybody has" in await viewer.get("/indexes/handbook/2/document?path=leave.md")
    for name in ("director", "operator"):
        browser = await handbook.signed_in(name)
        assert "unobtainium" in await browser.get(path)


async def test_what_others_wrote_is_escaped(handbook: Console) -> None:
    browser = await handbook.signed_in("operator")
    await browser.get("/search")
    for page in (
        await ask(browser, 200, False, query=EVIL, groups=EVIL),
        await ask(browser, 200, False, query=f"holiday everywhere {EVIL}"),
        await ask(browser, query=f"holiday everywhere {EVIL}"),
        await ask(browser, index=EVIL),
        await browser.get("/indexes/handbook/2"),
        await browser.get("/indexes/handbook/2/documents"),
        await browser.get("/indexes/handbook/2/document?path=new.md"),
        await browser.get("/indexes/handbook/2/changes"),
    ):
        assert "<script>alert" not in page
        assert "8641969" not in page
        assert not re.search(r"<[^>]+\s(?:style|on\w+)=|<style|javascript:", page)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query": ""}, "Query has 1 to 2000 characters."),
        ({"query": " \n"}, "Query has 1 to 2000 characters."),
        ({"query": "x" * 2001}, "Query has 1 to 2000 characters."),
        ({"query": "x" * 100_000}, "Query has 1 to 2000 characters."),
        ({"index": "nothing"}, "No index called 'nothing' has a version"),
        ({"index": "handbook@9"}, "There is no handbook@9; the newest is handbook@2."),
        ({"index": "hand book@x"}, "'hand book@x': expected the name of an index"),
        ({"index": ""}, "Choose an index version"),
        ({"top_k": "0"}, "Passages is a whole number from 1 to 20."),
        ({"top_k": "1e3"}, "Passages is a whole number from 1 to 20."),
        ({"meaning": "101"}, "Meaning is a whole number from 0 to 100."),
        ({"meaning": "\u0665"}, "Meaning is a whole number from 0 to 100."),
    ],
)
async def test_what_is_wrong_with_a_search_is_told(handbook: Console, fields: dict[str, str], message: str) -> None:
    browser = await handbook.signed_in("viewer")
    await browser.get("/search")
    assert message in words(await ask(browser, **fields))
    answer = await browser.client.post(
        "/search", data={"token": browser.token, "index": "handbook", "query": QUERY, **fields}, headers=OWN
    )
    assert answer.status_code in (400, 404, 413), answer.text
    assert answer.status_code == 413 or message in words(answer.text)


@pytest.mark.parametrize(
    "query", ["\0", "a\0b", "' OR 1=1; --", "{{ 7*7 }} %s %(x)s", "\N{PILE OF POO}" * 2000, "the of"]
)
async def test_no_query_breaks_a_search(handbook: Console, query: str) -> None:
    browser = await handbook.signed_in("viewer")
    await browser.get("/search")
    text = words(await ask(browser, query=query))
    assert "passages of handbook@2" in text or text == "Query has 1 to 2000 characters."


async def test_a_version_that_went_or_never_came_says_so(handbook: Console) -> None:
    browser = await handbook.signed_in("viewer")
    await browser.get("/search")
    assert "passages of handbook@2" in words(await ask(browser, index="handbook@2"))  # the worker knows it now
    for state, told in (("dropped", "was dropped"), ("building", "is still being built"), ("failed", "failed to be")):
        async with handbook.database.connection() as connection:
            await connection.execute("UPDATE index_version SET state = %s, stage = 'load' WHERE number = 2", (state,))
        assert f"handbook@2 {told}" in words(await browser.get("/indexes/handbook/2/changes?before=1", 404)).lower()
        assert f"Handbook@2 {told}" in words(await ask(browser, index="handbook@2")).replace("handbook", "Handbook")
        await browser.get("/indexes/handbook/2")


async def test_an_embedder_that_is_away_is_named(handbook: Console) -> None:
    endpoint = Endpoint("openai", "http://127.0.0.1:9/v1", "m")
    away = Deployment("embedder", endpoint, Operation(auth="none"))
    spec = VersionSpec(IndexSpec(LakeSpec("file:/docs"), EmbedderSpec("embedder", 256)), away)
    async with handbook.database.connection() as connection:
        await publish(connection, "away", 1, PAGES, StaticEmbedder().embed, spec)
    browser = await handbook.signed_in("viewer")
    await browser.get("/search")
    text = words(await ask(browser, index="away"))
    assert re.search(r"(?i)the deployment 'embedder'|took too long", text)
    assert "1 Leave" in words(await ask(browser, index="away", meaning="0"))


async def test_without_the_extra_the_page_says_what_to_install(
    handbook: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def find_no_model(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "wordllama" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_no_model)
    browser = await handbook.signed_in("viewer")
    await browser.get("/search")
    assert "pip install 'headway[knowledge]'" in words(await ask(browser))


async def test_a_search_is_logged_without_its_words(handbook: Console) -> None:
    browser = await handbook.signed_in("director")
    await browser.get("/search")
    with capture_logs() as logs:
        await ask(browser, query="unobtainium")
        await ask(browser, query="unobtainium", index="nothing")
    (entry,) = [each for each in logs if each["event"] == "searched"]
    assert (entry["name"], entry["index"], entry["groups"]) == ("director", "handbook@2", ["board"])
    assert "unobtainium" not in str(logs)


async def test_a_search_needs_a_session_and_its_token(handbook: Console) -> None:
    stranger = handbook.browser()
    assert (await stranger.client.get("/search")).headers["location"] == "/sign-in?next=/search"
    assert (await stranger.client.post("/search", data={}, headers=OWN)).headers["location"] == "/sign-in"
    browser = await handbook.signed_in("viewer")
    form = {"index": "handbook", "query": QUERY, "token": browser.token}
    foreign = {"origin": "http://evil", "sec-fetch-site": "cross-site"}
    answers = [
        await browser.client.post("/search", data=form, headers=foreign),
        await browser.client.post("/search", data=form | {"token": "0" * 64}, headers=OWN),
    ]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert all("Leave" not in answer.text for answer in answers)


async def test_what_is_not_there(handbook: Console) -> None:
    browser = await handbook.signed_in("viewer")
    for path in (
        "/indexes/nothing",
        "/indexes/nothing/1",
        "/indexes/handbook/9",
        "/indexes/handbook/0",
        "/indexes/handbook/99999999999999",
        "/indexes/handbook/x",
        "/indexes/handbook/2/document?path=nothing",
        "/indexes/handbook/2/document",
        "/indexes/handbook/2/changes?before=9",
        "/indexes/handbook/1/changes",
        "/indexes/a%00b",
        "/indexes/a%00b/1",
    ):
        await browser.get(path, 404)
    for path in (
        "/indexes/handbook?cursor=x",
        "/indexes/handbook/2/documents?cursor=x",
        "/indexes/handbook/2/documents?state=x",
        "/indexes/handbook/2/document?path=leave.md&from=x",
    ):
        await browser.get(path, 400)
    assert "choose" not in (await browser.get("/search?index=" + "x" * 3000)).lower()


async def apply(database: Database, folder: Path) -> None:
    """Apply a file with the index ``manual`` over a folder of documents."""
    (folder / "lake").mkdir()
    write_documents(folder / "lake", 30)
    file = Project(folder).write(more=f"indexes:\n  manual: {{lake: 'file:{folder}/lake'}}\n")
    async with database.connection() as connection:
        await configuration.apply(connection, file, author="ann")


async def test_a_build_is_begun_and_followed_until_it_is_published(console: Console, tmp_path: Path) -> None:
    await apply(console.database, tmp_path)
    browser = await console.signed_in("operator")
    assert "manual Nothing is built yet. Build the next version" in words(await browser.get("/indexes"))
    begun = await browser.post("/indexes/manual/build")
    assert begun.headers["location"] == "/indexes/manual/1"
    text = words(await browser.get("/indexes/manual/1"))
    assert "building Looking through the lake for documents. Nobody builds it right now" in text
    assert "manual@1 is being built already" in words((await browser.post("/indexes/manual/build", 409)).text)
    async with console.database.connection() as connection:
        (waiting,) = await builds.list_unfinished(connection)
        progress = builds.Progress(documents=300, loaded=120, skipped=3, chunks=240, seconds=12.0)
        await connection.execute(
            "UPDATE index_version SET stage = 'load', progress = %s WHERE id = %s",
            (Jsonb(msgspec.to_builtins(progress)), waiting.version),
        )
    answer = await browser.client.get("/indexes/manual/1", headers={"hx-request": "true"})
    assert "123 of 300 documents read, about 17 s to go." in words(answer.text)
    assert 'aria-valuenow="41.0"' in answer.text
    assert "hx-refresh" not in answer.headers
    assert "123 of 300 3 left out" in words(await browser.get("/indexes"))
    async with console.database.connection() as connection:
        await connection.execute("UPDATE index_version SET stage = 'snapshot', progress = '{}'")
    await resume(make_tools(console.database), waiting.version, tell=lambda _: None)
    answer = await browser.client.get("/indexes/manual/1", headers={"hx-request": "true"})
    assert answer.headers["hx-refresh"] == "true"
    text = words(await browser.get("/indexes/manual/1"))
    assert re.search(r"Trying again. published 30 documents in \d+ passages\.", text)
    assert re.search(r"content [0-9a-f]{16} : equal for equal content", text)


async def test_cancelling_and_dropping_need_a_reason_and_the_scope_admin(console: Console, tmp_path: Path) -> None:
    await apply(console.database, tmp_path)
    browser = await console.signed_in("operator")
    await browser.get("/indexes")
    await browser.post("/indexes/manual/build")
    await browser.get("/indexes/manual/1")
    assert "say why" in (await browser.post("/indexes/manual/1/cancel", 400, reason=" ")).text.lower()
    viewer = await console.signed_in("viewer")
    page = await viewer.get("/indexes/manual/1")
    assert not re.search(r"<main.*<button", page, re.DOTALL)
    for path in ("build", "1/cancel", "1/drop"):
        refused = await viewer.post(f"/indexes/manual/{path}", 403, reason="x")
        assert "changes need the scope" in refused.text
    await browser.post("/indexes/manual/1/cancel", reason="wrong folder")
    text = words(await browser.get("/indexes/manual/1"))
    assert "cancelled The build was given up after 0 documents. Wrong folder." in text
    await browser.post("/indexes/manual/1/cancel", reason="again")  # harmless
    await browser.post("/indexes/manual/1/drop", reason="of no use")
    assert "Dropped: what it held is gone" in words(await browser.get("/indexes/manual/1"))
    async with console.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT action, author, reason FROM audit_log WHERE action LIKE 'index.%%' ORDER BY id"
        )
        found: list[Any] = await cursor.fetchall()
    assert [(action, reason) for action, _, reason in found] == [
        ("index.build", None),
        ("index.cancelled", "wrong folder"),
        ("index.drop", "of no use"),
    ]
    assert all(author.startswith("operator (key ") for _, author, _ in found)


async def test_what_is_used_is_not_dropped(handbook: Console) -> None:
    await use(handbook.database, "handbook", 1)
    browser = await handbook.signed_in("operator")
    page = await browser.get("/indexes/handbook/1")
    assert "/drop" not in page
    refused = await browser.post("/indexes/handbook/1/drop", 409, reason="of no use")
    assert "handbook@1 is in use by support: plain" in words(refused.text)
    async with handbook.database.connection() as connection:
        states = {each.number: each.state for each in await versions.list_versions(connection, "handbook")}
    assert states == {1: "published", 2: "published"}


async def test_pages_are_protected(handbook: Console) -> None:
    browser = await handbook.signed_in("operator")
    for path in ("/indexes", "/indexes/handbook", "/indexes/handbook/2", "/search", "/indexes/handbook/2/document"):
        answer = await browser.client.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'"), path
        assert answer.headers["cache-control"] == "no-store"
    answer = await browser.client.post("/search", data={}, headers=OWN | {"hx-request": "true"})
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


async def test_versions_in_a_search_service(console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "admin-key")
    (tmp_path / "leave.md").write_text("# Leave\n\nEverybody has 25 days of paid holiday.\n")
    (tmp_path / "pay.md").write_text("# Pay\n\nThe board has sixty days of paid holiday.\n")
    services = SearchServices(Credentials(SystemClock()), SystemClock())
    async with SearchServiceSimulator() as service:
        await services.start()
        tools = replace(make_tools(console.database), services=services)
        azure = AzureSearchSpec(service.endpoint, api_key="env:SEARCH_KEY")
        labels = (("pay.md", ("board",)),)
        built = VersionSpec(IndexSpec(LakeSpec(f"file:{tmp_path}"), labels=labels, azure_ai_search=azure))
        await start(tools, "remote", built, author="ann", tell=lambda _: None)
        (name,) = service.indexes
        fields = AzureFields("content", title="title", document="path", groups="groups")
        found = VersionSpec(
            IndexSpec(LakeSpec(""), azure_ai_search=msgspec.structs.replace(azure, index=name, fields=fields))
        )
        await start(tools, "found", found, author="ann", tell=lambda _: None)
        browser = await console.signed_in("viewer")
        assert f"Azure AI Search {service.endpoint}" in words(await browser.get("/indexes/remote/1"))
        text = words(await browser.get("/indexes/found/1"))
        assert "An index of Azure AI Search as it is, with 2 documents when it was found." in text
        assert f"index there {name} embedder none" in text
        await browser.get("/search")
        operator = await console.signed_in("operator")
        await operator.get("/search")
        for index in ("remote", "found"):
            seen = await ask(browser, index=index, meaning="0", groups="board")
            assert "ranked by Azure AI Search by words" in words(seen)
            assert ("document?path=" in seen) == (index == "remote")
            assert "sixty" not in seen
            assert "sixty" in await ask(operator, index=index, meaning="0", groups="board")
        assert "25 days" in await browser.get("/indexes/remote/1/document?path=leave.md")
        await services.close()
