"""Nobody but who is in a document's groups ever sees a passage of it, in nothing that Headway says or keeps.

Somebody in the group asks, searches, rates, reports, is mirrored to a candidate and meets errors, with logs at their
most talkative, traces, metrics and webhooks on. Then everything there is to see is looked through.
"""

from __future__ import annotations

import gzip
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from headway.testing import Behaviour, overloaded
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.stand import Provider, Reply, Stand, call, simulated_provider, unique

WORD = "zanzibar" + secrets.token_hex(3)
SALARY = "What is the salary of a manager?"
GROUPS = "x-headway-groups"
POLICY: dict[str, Any] = {
    "stages": [{"shadow": "100%", "interactions": 100_000}, "10%", "100%"],
    "goal": {"metric": "error_rate", "ratio": 2.0},
    "baselines": {name: {"level": 0.01} for name in ("error_rate", "attempt_error_rate", "fallback_rate")},
}


class Listener:
    """Takes whatever is posted: traces and webhooks."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {"/v1/traces": [], "/hook": []}
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                listener.bodies[self.path].append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def listening() -> Iterator[Listener]:
    listener = Listener()
    thread = threading.Thread(target=listener.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield listener
    finally:
        listener.server.shutdown()
        thread.join()
        listener.server.server_close()


def configuration(provider: Provider, listener: Listener) -> dict[str, Any]:
    deployments = {name: openai_deployment(provider.base_url, name, attempts=1) for name in ("stable", "candidate")}
    return {
        "deployments": deployments,
        "indexes": {"handbook": {"lake": "file:./docs", "labels": {"hr/**": ["hr"]}}},
        "policies": {"mirroring": POLICY},
        "webhooks": [{"url": f"{listener.url}/hook"}],
        "applications": {"other": application("stable")},
    }


@pytest.fixture(scope="module")
def watched(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, Listener]]:
    """Headway with an index that has a document for the group hr, and with everything on that tells of anything."""
    folder = tmp_path_factory.mktemp("access")
    (folder / "docs" / "hr").mkdir(parents=True)
    (folder / "docs" / "leave.md").write_text("# Annual leave\n\nEverybody has 25 days of annual leave.\n")
    (folder / "docs" / "hr" / "salaries.md").write_text(f"# Salaries\n\nThe salary of a manager is 90,000: {WORD}.\n")
    answers = {name: Behaviour(answer_text="See [1].") for name in ("stable", "candidate")}
    with simulated_provider(answers) as provider, listening() as listener:
        environment = {
            "HEADWAY_LOG_LEVEL": "debug",
            "HEADWAY_TICK_SECONDS": "0.2",
            "OTEL_EXPORTER_OTLP_ENDPOINT": listener.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        headway = Headway(folder, database_url=module_database_url, environment=environment)
        wanted = configuration(provider, listener)
        with running(headway, wanted):
            headway.run("index", "build", "handbook")
            for release, deployment in (("grounded", "stable"), ("better", "candidate")):
                wanted["applications"]["support"] = application(
                    deployment, release, index="handbook@1", policy="mirroring"
                )
                headway.write(wanted)
                headway.run("apply", "--yes", "--accept")
            yield (
                Stand(headway, provider, headway.create_key("web", "--scope", "invoke", "--scope", "feedback"), ""),
                listener,
            )


def searched(stand: Stand, key: str) -> Reply:
    return call(f"{stand.headway.base_url}/search", {"application": "support", "query": SALARY}, key=key)


def admin_pages(stand: Stand, key: str, answer_id: str) -> Iterator[tuple[str, bytes]]:
    """Every page of the control API that can be read, its lists and their first members."""
    headway = stand.headway
    document = call(f"{headway.admin_url}/openapi.json", key=key).json
    numbers = {"application": "support", "index": "handbook", "interaction": answer_id, "number": "1"}
    for table in ("feedback", "report"):
        numbers[table] = str(headway.value(f"SELECT id FROM {table} LIMIT 1"))
    for path, methods in document["paths"].items():
        if "get" in methods:
            reply = call(headway.admin_url + path.format_map(numbers), key=key)
            assert reply.status in (200, 400, 404), (path, reply)
            yield path, reply.body


def test_a_labelled_passage_is_seen_by_its_group_alone(watched: tuple[Stand, Listener]) -> None:
    stand, listener = watched
    headway = stand.headway
    reader = headway.run_json("keys", "create", "hr", "--scope", "invoke", "--scope", "feedback")
    headway.run("keys", "groups", str(reader["number"]), "hr")
    viewer = headway.create_key("viewer", "--scope", "view")
    headway.wait_for_snapshot()
    answers = [stand.chat("support", unique(SALARY), key=reader["key"], stream=stream) for stream in (False, True)]
    answers.append(
        call(f"{headway.base_url}/responses", {"model": "support", "input": unique(SALARY)}, key=reader["key"])
    )
    assert all(WORD in each.body.decode() for each in (*answers, searched(stand, reader["key"])))
    history = [{"role": "user", "content": SALARY}, answers[0].json["choices"][0]["message"]]
    assert WORD in str(history)  # as a client sends it back
    more = [*history, {"role": "user", "content": unique(SALARY)}]
    assert (
        call(f"{headway.base_url}/chat/completions", {"model": "support", "messages": more}, key=reader["key"]).status
        == 200
    )
    asked = len(stand.provider.received(WORD))
    wait_for("the mirrored requests", lambda: len(stand.provider.received(WORD)) >= 6)
    assert asked >= 3
    (first, *_) = answers
    answer_id = first.json["id"]
    stand.rate(answer_id, comment="Right.")
    report = {"title": "Wrong salary", "description": "It is more.", "interaction_ids": [answer_id]}
    posted = call(f"{headway.base_url}/reports", report, key=reader["key"])
    assert posted.status == 201, posted
    stand.provider.play("stable", Behaviour(errors=(overloaded(),)))
    assert stand.chat("support", unique(SALARY), key=reader["key"]).status >= 500
    headway.run("rollout", "rollback", "support", "--reason", "enough")
    wait_for("the webhooks", lambda: any(b"rolled_back" in each for each in listener.bodies["/hook"]))
    headway.interaction(answers[2].json["id"])

    others = [stand.chat("support", SALARY, key=stand.key), searched(stand, stand.key)]
    assert all(each.status == 200 for each in others)
    said = {f"answer {number}": each.body for number, each in enumerate(others)}
    said.update(admin_pages(stand, viewer, answer_id))
    for page in ("", "/rollouts", "/rollouts/1", "/interactions", "/indexes", "/reports"):
        said[f"page {page}"] = call(f"{headway.admin_url}/console{page}", key=viewer).body
    said["interactions show"] = headway.run("interactions", "show", answer_id).encode()
    said["metrics"] = call(f"{headway.admin_url}/metrics", key=viewer).body
    wait_for("traces", lambda: any(b"retrieval handbook@1" in each for each in listener.bodies["/v1/traces"]))
    said["traces"] = b"".join(listener.bodies["/v1/traces"])
    said["webhooks"] = b"".join(listener.bodies["/hook"])
    said["log"] = headway.log().encode()
    assert b"alembic.runtime" in said["log"]  # libraries talk too
    assert {where for where, body in said.items() if WORD.encode() in body} == set()
    assert len(said) > 30
    check_tables(headway)
    check_files(headway.home)


def check_tables(headway: Headway) -> None:
    """The index has the text; no other table has."""
    tables = headway.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    wanted = f"{WORD}|{WORD.encode().hex()}"
    having = {
        table["relname"]
        for table in tables
        if headway.value(f'SELECT count(*) FROM "{table["relname"]}" t WHERE t::text ~* %s', wanted)
    }
    assert having
    assert all(name.startswith("index_") for name in having), having


def check_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert WORD.encode() not in path.read_bytes(), path


def test_groups_and_keys_change_within_a_second_in_every_worker(watched: tuple[Stand, Listener]) -> None:
    stand, _ = watched
    headway = stand.headway
    key = headway.run_json("keys", "create", "mover", "--scope", "invoke")
    headway.run("keys", "groups", str(key["number"]), "hr")
    headway.wait_for_snapshot()
    assert WORD in searched(stand, key["key"]).body.decode()

    def await_end(status: int) -> float:
        """Seconds until many requests in a row, over connections of their own, are treated in the new way."""
        began = ended = time.monotonic()
        in_a_row = 0
        while in_a_row < 20:
            reply = searched(stand, key["key"])
            is_new = reply.status == status and WORD not in reply.body.decode()
            in_a_row = in_a_row + 1 if is_new else 0
            if not is_new:
                ended = time.monotonic()
                assert ended - began < 10
        return ended - began

    headway.run("keys", "groups", str(key["number"]))
    assert await_end(200) < 2  # a second, on a machine that does more
    headway.run("keys", "revoke", str(key["number"]))
    assert await_end(401) < 2


def test_groups_come_as_they_may_over_a_socket(watched: tuple[Stand, Listener]) -> None:
    """Bytes that are no UTF-8, a header that is far too long, and one that is there twice."""
    stand, _ = watched
    proxy = stand.headway.create_key("proxy", "--scope", "invoke", "--scope", "delegate")

    def ask(*lines: bytes) -> bytes:
        body = json.dumps({"application": "support", "query": SALARY}).encode()
        head = [
            b"POST /v1/search HTTP/1.1",
            b"host: headway",
            b"connection: close",
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"authorization: Bearer " + proxy.encode(),
            *lines,
        ]
        with socket.create_connection(("127.0.0.1", stand.headway.port), timeout=10) as connection:
            connection.sendall(b"\r\n".join(head) + b"\r\n\r\n" + body)
            with connection.makefile("rb") as answer:
                return answer.read()

    name = GROUPS.encode()
    assert WORD.encode() in ask(name + b": hr")
    assert WORD.encode() in ask(b"X-Headway-Groups: it, hr")
    for lines, status in (
        ((name + b": hr\xff",), b"400"),
        ((name + b": hr", name + b": it"), b"400"),
        ((name + b": it", b"X-Headway-GROUPS: hr"), b"400"),
        ((name + b": " + b",".join(b"%d" % number for number in range(1001)),), b"400"),
        ((name + b": " + b"x" * 300,), b"400"),
        ((name + b": " + b"hr," * 300_000,), b"4"),
        ((name + b": h r",), b"200"),
    ):
        answer = ask(*lines)
        assert answer.startswith(b"HTTP/1.1 " + status) or (status == b"4" and not answer), (lines[0][:80], answer[:80])
        assert WORD.encode() not in answer
    assert WORD.encode() not in stand.headway.log().encode()
