"""Who gets in, for how long, and what a form must bring."""

from __future__ import annotations

import base64

import pytest

from headway.console.sessions import (
    SESSION_SECONDS,
    Session,
    cookie_name,
    form_token,
    is_form_token,
    open_session,
    seal,
    unseal,
)
from headway.domain.snapshot import SigningKeys
from headway.storage import keys, routing
from tests.integration.console.conftest import ORIGIN, OWN, Console, words

PAGES = ("/", "/rollouts", "/rollouts/1", "/rollouts/1/decisions", "/rollouts/1/answers", "/rollouts/1/figures")
SIGNING = SigningKeys({1: b"a" * 32, 2: b"b" * 32}, 2, b"u" * 32)


def test_sessions_end_and_cannot_be_made_up() -> None:
    session = open_session(SIGNING, 7, 1_000)
    text = seal(SIGNING, session)
    assert unseal(SIGNING, text, 1_000) == session
    assert unseal(SIGNING, text, session.until_ms - 1) == session
    assert unseal(SIGNING, text, session.until_ms) is None
    assert unseal(SigningKeys({1: b"a" * 32}, 1, b"u" * 32), text, 1_000) is None  # the signing key is retired
    assert unseal(SigningKeys({2: b"x" * 32}, 2, b"u" * 32), text, 1_000) is None  # another installation
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    for place in range(len(raw)):
        altered = bytearray(raw)
        altered[place] ^= 1
        assert unseal(SIGNING, base64.urlsafe_b64encode(altered).rstrip(b"=").decode(), 1_000) is None
    for other in ("", "x", text[:-1], text + "A", "ä" * len(text), "!" * len(text)):
        assert unseal(SIGNING, other, 1_000) is None


def test_form_tokens_are_of_one_session() -> None:
    one, other = open_session(SIGNING, 7, 1_000), open_session(SIGNING, 7, 1_000)
    assert is_form_token(SIGNING, one, form_token(SIGNING, one))
    assert not is_form_token(SIGNING, other, form_token(SIGNING, one))
    assert not is_form_token(SIGNING, one, "")
    assert not is_form_token(SIGNING, one, "ä")
    assert form_token(SIGNING, one) not in seal(SIGNING, one)


def test_installations_on_one_host_have_cookies_of_their_own() -> None:
    assert cookie_name(SIGNING) == cookie_name(SigningKeys({3: b"c" * 32}, 3, b"u" * 32))
    assert cookie_name(SIGNING) != cookie_name(SigningKeys(SIGNING.keys, 2, b"v" * 32))


async def test_nobody_sees_anything_without_signing_in(console: Console) -> None:
    await console.story()
    browser = console.browser()
    for path in PAGES:
        answer = await browser.client.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"] == ("/sign-in" if path == "/" else f"/sign-in?next={path}")
        assert answer.text == ""
    answer = await browser.client.get("/rollouts?application=a%26b")
    assert answer.headers["location"] == "/sign-in?next=/rollouts%3Fapplication%3Da%2526b"
    answer = await browser.client.post("/rollouts/1/rollback", data={"reason": "x"}, headers=OWN)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


async def test_signing_in_and_out(console: Console) -> None:
    browser = console.browser()
    page = await browser.get("/sign-in?next=/rollouts%3Fapplication%3Dsupport")
    assert 'value="/rollouts?application=support"' in page
    answer = await browser.post("/sign-in", key=f" {console.secrets['viewer']} ", next="/rollouts?application=support")
    assert answer.headers["location"] == "/rollouts?application=support"
    cookie = answer.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    assert f"Max-Age={SESSION_SECONDS}" in cookie
    assert "secure" not in cookie.lower()  # over http on this machine a browser would not keep it
    assert console.secrets["viewer"] not in cookie
    assert keys.hash_key(console.secrets["viewer"]) not in cookie
    assert "support" in await browser.get("/")
    assert (await browser.client.get("/sign-in")).status_code == 303
    await browser.post("/sign-out")
    assert (await browser.client.get("/")).status_code == 303


@pytest.mark.parametrize("headers", [{"x-forwarded-proto": "https"}, {}])
async def test_over_https_the_cookie_stays_there(console: Console, headers: dict[str, str]) -> None:
    scheme = "http" if headers else "https"
    answer = await console.browser().client.get(f"{scheme}://console/sign-in", headers=headers)
    assert "secure" in answer.headers["set-cookie"].lower()


async def test_keys_that_do_not_open(console: Console) -> None:
    browser = console.browser()
    await browser.get("/sign-in")
    async with console.database.connection() as connection:
        gone, secret = await keys.create(connection, keys.Grant("gone", ("admin",)), author="ann")
        await keys.revoke(connection, gone.number, author="ann")
    await console.follow()
    for key, status, what in (
        ("", 401, "an API key is needed"),
        ("hw-" + "x" * 43, 401, "not known here"),
        ("hw-ä\udcff".encode("utf-8", "replace").decode(), 401, "not known here"),
        (secret, 401, "revoked"),
        (console.secrets["caller"], 403, "lacks the scope 'view'"),
    ):
        answer = await browser.post("/sign-in", status, key=key)
        assert what.lower() in words(answer.text).lower()
        assert key == "" or key not in answer.text
    assert (await browser.client.get("/")).status_code == 303


async def test_too_many_wrong_keys_have_to_wait(console: Console) -> None:
    browser = console.browser()
    await browser.get("/sign-in")
    for _ in range(10):
        await browser.post("/sign-in", 401, key="hw-wrong")
    answer = await browser.post("/sign-in", 429, key=console.secrets["operator"])
    assert "wait a minute" in words(answer.text)
    console.clock.advance(61)
    await browser.post("/sign-in", 303, key=console.secrets["operator"])


async def test_a_session_is_as_good_as_its_key(console: Console) -> None:
    async with console.database.connection() as connection:
        key, secret = await keys.create(connection, keys.Grant("short", ("view",)), author="ann")
    await console.follow()
    browser = console.browser()
    await browser.sign_in(secret)
    await browser.get("/")
    async with console.database.connection() as connection:
        await keys.revoke(connection, key.number, author="ann")
    await console.follow()
    assert (await browser.client.get("/")).status_code == 303
    live = await browser.client.get("/rollouts/1", headers={"hx-request": "true"})
    assert (live.status_code, live.headers["hx-refresh"], live.text) == (401, "true", "")


async def test_a_session_ends(console: Console) -> None:
    browser = await console.signed_in("viewer")
    console.clock.advance(SESSION_SECONDS - 1)
    await browser.get("/")
    console.clock.advance(1)
    assert (await browser.client.get("/")).status_code == 303


async def test_a_session_ends_with_its_key(console: Console) -> None:
    browser = await console.signed_in("viewer")
    key = next(each for each in console.snapshots[-1].keys.values() if each.name == "viewer")
    async with console.database.connection() as connection:
        await connection.execute(
            "UPDATE api_key SET expires_at = to_timestamp(%s) WHERE id = %s",
            (console.clock.unix_ms() / 1000 + 60, key.number),
        )
        await routing.publish(connection)
    await console.follow()
    await browser.get("/")
    console.clock.advance(60)
    assert (await browser.client.get("/")).status_code == 303


async def test_a_retired_signing_key_ends_sessions(console: Console) -> None:
    browser = await console.signed_in("viewer")
    async with console.database.connection() as connection:
        await routing.rotate_signing_key(connection, author="ann")
    await console.follow()
    await browser.get("/")
    async with console.database.connection() as connection:
        await connection.execute("UPDATE signing_key SET retired_at = now() WHERE number = 1")
        await routing.publish(connection)
    await console.follow()
    assert (await browser.client.get("/")).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://[bad"},
        {"origin": f"{ORIGIN}:81"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", **OWN},
        {"sec-fetch-site": "none", **OWN},
    ],
)
async def test_forms_of_other_sites_are_refused(console: Console, headers: dict[str, str]) -> None:
    await console.story()
    browser = await console.signed_in()
    await browser.get("/rollouts/1")
    for path, fields in (
        ("/rollouts/1/pause", {"reason": "x"}),
        ("/sign-out", {}),
        ("/sign-in", {"key": console.secrets["viewer"]}),
    ):
        answer = await browser.client.post(path, data={"token": browser.token, **fields}, headers=headers)
        assert answer.status_code == 403, path
    assert "paused" not in words(await browser.get("/rollouts/1"))


async def test_what_the_browser_says_of_the_site_is_enough_behind_a_proxy(console: Console) -> None:
    await console.story()
    browser = await console.signed_in()
    await browser.get("/rollouts/1")
    answer = await browser.client.post(
        "/rollouts/1/pause",
        data={"token": browser.token, "reason": "x"},
        headers={"sec-fetch-site": "same-origin", "origin": "https://console.example"},
    )
    assert answer.status_code == 303


async def test_forms_need_the_token_of_their_session(console: Console) -> None:
    story = await console.story()
    browser, other = await console.signed_in(), await console.signed_in()
    await browser.get("/rollouts/1")
    await other.get("/rollouts/1")
    for token in ("", "0" * 64, "ä", other.token):
        answer = await browser.client.post("/rollouts/1/pause", data={"token": token, "reason": "x"}, headers=OWN)
        assert answer.status_code == 403
    for body, status in ((b"token=%ff", 400), (b"\xff", 400), (b"x" * 40_000, 413), (b"a&" * 60, 400)):
        answer = await browser.client.post("/rollouts/1/pause", content=body, headers=OWN)
        assert answer.status_code == status, body[:10]
    assert (await story.rollout()).state == "shadow"
    # Signing in starts another session: a token from before is of no use.
    fresh = console.browser()
    await fresh.get("/sign-in")
    before = fresh.token
    await fresh.sign_in(console.secrets["operator"])
    answer = await fresh.client.post("/rollouts/1/pause", data={"token": before, "reason": "x"}, headers=OWN)
    assert answer.status_code == 403


async def test_signing_in_leads_to_pages_of_the_console_only(console: Console) -> None:
    for target in ("https://evil.example", "//evil.example", "/\\evil.example", "rollouts", "/sign-in", "/a\nb", ""):
        answer = await console.browser().sign_in(console.secrets["viewer"], next=target)
        assert answer.headers["location"] == "/", target


async def test_a_link_from_elsewhere_asks_again_with_the_cookie(console: Console) -> None:
    """Browsers keep a strict cookie to themselves when another site leads here."""
    client = console.browser().client
    answer = await client.get("/rollouts", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 200
    assert 'http-equiv="refresh" content="0"' in answer.text
    assert "support" not in answer.text
    answer = await client.get("/rollouts", headers={"sec-fetch-site": "same-origin"})
    assert answer.status_code == 303


def test_a_session_holds_no_secret() -> None:
    session = Session(7, 5, b"n" * 16, 2)
    raw = base64.urlsafe_b64decode(seal(SIGNING, session) + "==")
    assert SIGNING.keys[2] not in raw
    assert len(raw) == 30 + 32
