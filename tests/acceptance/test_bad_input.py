"""Bad input, each with its documented status and error code, over real sockets; and Headway answers on afterwards."""

from __future__ import annotations

import base64
import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from headway.clock import SystemClock
from headway.ids import uuid7
from tests.acceptance.harness import wait_for
from tests.acceptance.stand import KIND, Reply, Stand, call, unique

HELLO = {"model": "support", "messages": [{"role": "user", "content": "hello"}]}
DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def _still_answers(stand: Stand) -> Iterator[None]:
    """Whatever the test sent, the next caller is served, and nothing was logged as Headway's own failure."""
    before = stand.headway.log().count('"internal_error"')
    yield
    assert stand.chat("support", unique("still there?")).status == 200
    assert stand.headway.log().count('"internal_error"') == before


@pytest.fixture
def rated(stand: Stand) -> str:
    """The id of an answer."""
    answer = stand.chat("support", unique("rate me"))
    return str(answer.json["id"])


def post(
    stand: Stand, body: Any = HELLO, *, route: str = "chat/completions", key: str | None = "", **more: Any
) -> Reply:
    """Post to the data plane with the stand's key, unless told another one or none."""
    return call(f"{stand.headway.base_url}/{route}", body, key=stand.key if key == "" else key, **more)


def expect(reply: Reply, status: int, code: str, param: str | None = None) -> None:
    """The answer is exactly this error, in the shape of its route."""
    assert (reply.status, reply.code) == (status, code), reply
    found = reply.json
    if "error" in found:
        assert reply.headers["content-type"] == "application/json"
        assert set(found["error"]) == {"message", "type", "param", "code"}
        assert found["error"]["param"] == param
    else:
        assert reply.headers["content-type"] == "application/problem+json"
        assert found["status"] == status
        assert found.get("param") == param


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_unknown_names(stand: Stand) -> None:
    """Applications, releases, models and routes that do not exist."""
    expect(post(stand, {**HELLO, "model": "nobody"}), 404, "model_not_found", "model")
    expect(post(stand, {**HELLO, "model": "support@never"}), 404, "release_not_found", "model")
    expect(post(stand, {**HELLO, "model": "a" * 10_000}), 404, "model_not_found", "model")
    expect(post(stand, {"messages": []}), 400, "invalid_request", "model")
    azure = f"{stand.headway.url}/openai/deployments/nobody/chat/completions?api-version=1"
    expect(call(azure, HELLO, key=stand.key), 404, "model_not_found", "model")
    expect(call(f"{stand.headway.base_url}/completions", HELLO, key=stand.key), 404, "route_not_found")
    expect(call(f"{stand.headway.url}/", key=stand.key), 404, "route_not_found")
    expect(call(f"{stand.headway.base_url}/models/nobody", key=stand.key), 404, "model_not_found")


def test_wrong_methods(stand: Stand) -> None:
    """A route that exists, with a method that it does not take."""
    url = stand.headway.base_url
    expect(call(f"{url}/chat/completions", key=stand.key), 405, "method_not_allowed")
    expect(call(f"{url}/models", HELLO, key=stand.key), 405, "method_not_allowed")
    deleted = call(f"{url}/feedback", method="DELETE", key=stand.key)
    expect(deleted, 405, "method_not_allowed")
    assert deleted.headers["allow"] == "OPTIONS, POST"
    head = call(f"{stand.headway.url}/healthz", method="HEAD")  # as some load balancers ask
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b"null", b'"text"', b'{"model": "support"', b"\xff\xfe", b'{"model": "\xff"}'],
    ids=repr,
)
def test_malformed_json(stand: Stand, body: bytes) -> None:
    """What is not a JSON object is refused, on every route that takes one."""
    for route in ("chat/completions", "responses", "embeddings"):
        reply = post(stand, body, route=route)
        assert reply.status == 400
        assert reply.code in ("invalid_json", "invalid_request")
    reply = post(stand, body, route="feedback")
    assert reply.status == 400
    assert reply.code in ("invalid_json", "invalid_request")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream": "yes"}, "stream"),
        ({"model": 7}, "model"),
        ({"metadata": "text"}, "metadata"),
        ({"metadata": {"conversation_id": 7}}, "metadata.conversation_id"),
        ({"user": ["ann"]}, "user"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [1]}, "messages"),
    ],
    ids=str,
)
def test_fields_of_the_wrong_type(stand: Stand, change: dict[str, Any], param: str) -> None:
    """A field that Headway reads says what is wrong with it; the others are the provider's to judge."""
    expect(post(stand, {**HELLO, **change}), 400, "invalid_request", param)


def test_deep_nesting(stand: Stand) -> None:
    """A hundred thousand brackets neither crash a worker nor take it long."""
    deep = b"[" * 100_000 + b"]" * 100_000
    for field in (b"messages", b"tools", b"metadata", b"user", b"model"):
        reply = post(stand, b'{"model":"support","messages":[],"%s":%s}' % (field, deep))
        assert reply.status in (200, 400), reply
    assert post(stand, b'{"interaction_id":%s}' % deep, route="feedback").status == 400


# --- bodies and headers -----------------------------------------------------------------------------------------------


def test_bodies_too_large(stand: Stand, rated: str) -> None:
    """50 MB are too many; the client is told so, and the body never reaches a provider."""
    filler = "x" * 50_000_000
    for path in ("chat/completions", "responses", "embeddings"):
        expect(post(stand, {**HELLO, "filler": filler}, route=path), 413, "body_too_large")
    expect(post(stand, {"interaction_id": rated, "comment": filler}, route="feedback"), 413, "body_too_large")
    comment = "x" * 300_000
    expect(post(stand, {"interaction_id": rated, "comment": comment}, route="feedback"), 413, "body_too_large")


def test_encodings(stand: Stand) -> None:
    """A compressed body is refused, and so is one that says it is not JSON."""
    body = gzip.compress(json.dumps(HELLO).encode())
    expect(post(stand, body, headers={"content-encoding": "gzip"}), 415, "unsupported_media_type")
    reply = post(stand, b"metric=thumbs_up", route="feedback", headers={"content-type": "text/plain"})
    expect(reply, 415, "unsupported_media_type")


def test_huge_headers(stand: Stand) -> None:
    """Headers beyond the limit end the connection with 431, before anything is read further."""
    head = b"GET /v1/models HTTP/1.1\r\nhost: headway\r\nx-filler: " + b"x" * 300_000 + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stand.headway.port), timeout=10) as connection:
        try:
            connection.sendall(head)
            answer = connection.recv(65536)
        except ConnectionError:  # it was closed while the rest of the headers was still coming
            answer = b""
    assert answer[:12] in (b"", b"HTTP/1.1 431"), answer


def test_not_http(stand: Stand) -> None:
    """Bytes that are not HTTP are refused."""
    with socket.create_connection(("127.0.0.1", stand.headway.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello, TLS?\r\n\r\n")
        answer = connection.recv(65536)
    assert answer[:12] in (b"", b"HTTP/1.1 400"), answer


def begin_request(stand: Stand, sent: bytes, length: int) -> socket.socket:
    """Begin a chat request and send a part of its body."""
    connection = socket.create_connection(("127.0.0.1", stand.headway.port), timeout=15)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: headway\r\nauthorization: Bearer %s\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (stand.key.encode(), length, sent)
    )
    return connection


def test_slow_body(stand: Stand) -> None:
    """A body that does not come is not waited for for ever."""
    for sent in (b"", b'{"model":'):
        with begin_request(stand, sent, 1000) as connection:
            head = connection.recv(65536)
            assert head.startswith(b"HTTP/1.1 408"), head
            assert b"body_timeout" in head


def test_cut_body(stand: Stand) -> None:
    """A client that goes away in the middle of its body leaves nothing behind."""
    before = stand.provider.counts().requests
    for sent in (b"", b'{"model":'):
        begin_request(stand, sent, 1000).close()
    assert stand.chat("support", unique("after the cut")).status == 200
    assert stand.provider.counts().requests == before + 1


def test_half_closed_socket(stand: Stand) -> None:
    """A client that closes its sending side counts as gone: the connection ends, and the request is recorded once."""
    question = unique("half closed")
    body = json.dumps({**HELLO, "messages": [{"role": "user", "content": question}]}).encode()
    with begin_request(stand, body, len(body)) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200"), answer
    if answer or stand.provider.received(question):
        query = "SELECT status, aborted FROM interaction WHERE request LIKE %s"
        (record,) = wait_for("its record", lambda: stand.headway.rows(query, f"%{question}%"))
        # An answer that is ready at the very moment cannot be told from one that is on its way.
        assert record in ({"status": 200, "aborted": False}, {"status": 499, "aborted": True})


# --- keys -------------------------------------------------------------------------------------------------------------


def test_missing_and_wrong_keys(stand: Stand) -> None:
    """No key, one that nobody issued, and headers that carry none."""
    for route, body in (("chat/completions", HELLO), ("responses", HELLO), ("embeddings", HELLO), ("reports", {})):
        missing = post(stand, body, route=route, key=None)
        expect(missing, 401, "missing_api_key")
        assert missing.headers["www-authenticate"] == "Bearer"
        expect(post(stand, body, route=route, key="hw-" + "A" * 43), 401, "invalid_api_key")
    expect(call(f"{stand.headway.base_url}/models"), 401, "missing_api_key")
    expect(post(stand, key=None, headers={"authorization": "Basic aGVhZHdheQ=="}), 401, "missing_api_key")
    expect(post(stand, key=None, headers={"authorization": "Bearer "}), 401, "missing_api_key")
    expect(post(stand, key=stand.key[:-1]), 401, "invalid_api_key")
    expect(post(stand, key=stand.key.lower()), 401, "invalid_api_key")


def test_revoked_keys(stand: Stand) -> None:
    """A revoked key is refused in every worker within a second, and told why."""
    created = stand.headway.run_json("keys", "create", "short-lived")
    stand.headway.wait_for_snapshot()
    assert post(stand, key=created["key"]).status == 200
    stand.headway.run("keys", "revoke", str(created["number"]), "--reason", "leaked")
    stand.headway.wait_for_snapshot()
    for _ in range(8):
        expect(post(stand, key=created["key"]), 401, "revoked_api_key")


def test_expired_keys(stand: Stand) -> None:
    """A key that has ended says so."""
    key = stand.headway.create_key("ended", "--expires", "1s")
    wait_for("the end of the key", lambda: post(stand, key=key).status == 401)
    expect(post(stand, key=key), 401, "expired_api_key")


def test_scopes_and_applications(stand: Stand, rated: str) -> None:
    """Each scope opens its own routes and no others."""
    caller = stand.headway.create_key("caller", "--scope", "invoke", "--application", "narrow")
    critic = stand.headway.create_key("critic", "--scope", "feedback")
    expect(post(stand, key=critic), 403, "insufficient_scope")
    expect(post(stand, {**HELLO, "model": "narrow@first"}, key=caller), 403, "insufficient_scope", "model")
    expect(post(stand, key=caller), 403, "application_not_allowed", "model")
    thumb = {"interaction_id": rated, "metric": "thumbs_up", "value": True}
    expect(post(stand, thumb, route="feedback", key=caller), 403, "insufficient_scope")
    expect(call(f"{stand.headway.admin_url}/admin/v1/keys", key=stand.key), 403, "insufficient_scope")
    expect(call(f"{stand.headway.admin_url}/admin/v1/keys"), 401, "missing_api_key")
    names = {model["id"] for model in call(f"{stand.headway.base_url}/models", key=caller).json["data"]}
    assert names == {"narrow"}


# --- feedback ---------------------------------------------------------------------------------------------------------


def altered(answer_id: str, position: int) -> str:
    """The id with one bit of one byte changed."""
    raw = bytearray(base64.urlsafe_b64decode(answer_id.removeprefix("hw_") + "=="))
    raw[position] ^= 1
    return "hw_" + base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode()


def test_forged_interaction_ids(stand: Stand, rated: str) -> None:
    """Every byte of an id is signed; truncated and made-up ones are refused, with a key and without."""
    forgeries = [altered(rated, position) for position in range(59)]
    forgeries += [rated[:-1], rated[:40], rated + "A", rated.upper(), "hw_", "", "chatcmpl-1", "hw_" + "A" * 79]
    for forged in forgeries:
        expect(stand.rate(forged), 400, "invalid_interaction_id", "interaction_id")
    thumb = {"interaction_id": forgeries[30], "metric": "thumbs_up", "value": True}
    expect(post(stand, thumb, route="feedback"), 400, "invalid_interaction_id", "interaction_id")
    assert stand.rate(rated).status == 201


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("thumbs_up", "yes"),
        ("thumbs_up", 2),
        ("thumbs_up", 0.5),
        ("stars", 0),
        ("stars", 6),
        ("stars", True),
        ("stars", "five"),
        ("minutes_saved", -1),
        ("minutes_saved", 1e300),
        ("mood", "furious"),
        ("mood", 1),
        ("comment", ""),
        ("comment", 7),
    ],
    ids=str,
)
def test_values_that_do_not_fit(stand: Stand, rated: str, metric: str, value: Any) -> None:
    """A rating of the wrong type or out of range says what would fit."""
    expect(stand.rate(rated, metric=metric, value=value), 422, "invalid_feedback_value", "value")
    assert stand.headway.feedback(rated) == []


def test_feedback_that_makes_no_sense(stand: Stand, rated: str) -> None:
    """Unknown metrics, values of the wrong JSON type, targets that are not there."""
    expect(stand.rate(rated, metric="thumbs"), 404, "unknown_metric", "metric")
    expect(stand.rate(rated, value={"deep": []}), 400, "invalid_request", "value")
    expect(stand.rate(rated, value=None), 400, "invalid_request", "value")
    expect(stand.rate(rated, choice=-1), 400, "invalid_request", "choice")
    expect(stand.rate(rated, source="judge"), 401, "missing_api_key")
    expect(stand.rate(rated, metric="grounded"), 401, "missing_api_key")
    expect(post(stand, {}, route="feedback"), 400, "invalid_request", "interaction_id")
    nothing = {"conversation_id": "never", "application": "support", "metric": "thumbs_up", "value": True}
    expect(post(stand, nothing, route="feedback"), 404, "not_found", "conversation_id")
    body = b'{"interaction_id": "%s", "metric": "minutes_saved", "value": NaN}' % rated.encode()
    expect(post(stand, body, route="feedback"), 400, "invalid_json")


def test_feedback_past_retention(stand: Stand, rated: str) -> None:
    """An answer of yesterday can be rated; one older than its application's retention cannot."""
    signer = stand.headway.snapshot().signing.signer()
    interaction = signer.read(rated)
    now = SystemClock().unix_ms()
    assert stand.rate(signer.issue(interaction._replace(uuid=uuid7(now - DAY_MS)))).status == 201
    expired = signer.issue(interaction._replace(uuid=uuid7(now - 31 * DAY_MS)))
    expect(stand.rate(expired), 410, "expired", "interaction_id")
    assert stand.headway.interaction(rated)["release_name"] in (KIND, "blunt")


def test_reports_that_make_no_sense(stand: Stand, rated: str) -> None:
    """Reports without a title, of an unknown severity, about a forged answer; and reports that are not there."""
    good = {"title": "Wrong price", "description": "It said 5.", "interaction_ids": [rated]}
    posted = post(stand, good, route="reports")
    assert posted.status == 201, posted
    assert post(stand, {**good, "title": ""}, route="reports").status == 400
    assert post(stand, {**good, "severity": "terrible"}, route="reports").status == 400
    forged = post(stand, {**good, "interaction_ids": [altered(rated, 30)]}, route="reports")
    assert (forged.status, forged.code) == (400, "invalid_interaction_id")
    url = f"{stand.headway.base_url}/reports"
    expect(call(f"{url}/nonsense", key=stand.key), 404, "not_found")
    expect(call(f"{url}/00000000-0000-7000-8000-000000000000", key=stand.key), 404, "not_found")
    patched = call(f"{url}/{posted.json['id']}", {"status": "perfect"}, method="PATCH", key=stand.key)
    expect(patched, 400, "invalid_request", "status")
