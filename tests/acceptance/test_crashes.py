"""Processes are killed and the database goes away, under load: nothing acknowledged is lost, nothing counted twice."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from headway.testing import Behaviour, Fault, Lognormal
from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.load import Load, check_books
from tests.acceptance.stand import CHATTY, Provider, Reply, call, simulated_provider, unique

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with simulated_provider({"chatty": CHATTY}) as opened:
        yield opened


@pytest.fixture(scope="module")
def installed(provider: Provider) -> Iterator[Headway]:
    """Headway with the embedded database, two workers and a rollout at 50%; the tests stop and start it."""
    folder = Path(tempfile.mkdtemp(prefix="headway-crashes-"))
    folder.chmod(0o755)  # as root, PostgreSQL runs as somebody else
    configuration = {
        "deployments": {
            "main": openai_deployment(provider.base_url, "chatty", attempts=3),
            "slow": openai_deployment(provider.base_url, "slow"),
        },
        "applications": {"support": application("main"), "slow": application("slow")},
    }
    try:
        with running(Headway(folder), configuration) as headway:
            configuration["applications"]["support"] = application("main", "second", prompt={"text": "Be brief."})
            headway.write(configuration)
            headway.run("apply", "--yes")
            headway.run("share", "support", "second", "50%")
            yield headway
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def headway(installed: Headway) -> Headway:
    """The same, running."""
    if not installed.is_running:
        installed.start()
    return installed


def test_postgres_is_killed(headway: Headway, proof: bool) -> None:
    """kill -9 of PostgreSQL, again and again: no client notices, and the books are complete."""
    with Load(headway, headway.first_key) as load:
        load.wait_for_more(100)
        for _ in range(10 if proof else 2):
            headway.kill_postgres()
            load.wait_for_more(150)
        load.wait_for_more(100)
    assert load.tally.failures == []
    assert check_books(headway, load.tally, complete=True) == 0


def test_a_worker_is_killed(headway: Headway, proof: bool) -> None:
    """kill -9 of a worker: its clients lose their connection, all others go on; a new worker takes its place."""
    times = 10 if proof else 2
    with Load(headway, headway.first_key) as load:
        load.wait_for_more(100)
        for _ in range(times):
            kill_a_worker(headway)
            load.wait_for_more(100)
    failures = load.tally.failures
    assert len(failures) <= 4 * times, failures  # only those who were connected to it at that moment
    lost_connection = ("ConnectionReset", "RemoteDisconnected", "IncompleteRead")
    assert not [each for each in failures if not each.startswith(lost_connection)]
    lost = check_books(headway, load.tally, complete=False)
    # What Headway itself says is lost: all but the answers that were just going out.
    counts = [json.loads(line)["count"] for line in headway.log().splitlines() if '"interactions_lost"' in line]
    assert sum(counts) >= lost - 4 * times


def kill_a_worker(headway: Headway) -> None:
    """Kill the oldest worker of the data plane and wait for its successor."""
    before = headway.workers()
    victim = min(before, key=lambda worker: worker.create_time())
    victim.kill()

    def is_replaced() -> bool:
        serving = [each.pid for each in headway.workers() if headway.is_serving(each)]
        return len(serving) == len(before) and victim.pid not in serving

    wait_for("a new worker", is_replaced, 20)


def test_a_killed_worker_gives_back_what_its_requests_held(headway: Headway, provider: Provider) -> None:
    """The places of a key with a concurrency limit are free again when the workers that held them are dead."""
    key = headway.create_key("two", "--concurrency", "2")
    provider.set("slow", Behaviour(fault=Fault.HANG_BEFORE_HEADERS))
    url = f"{headway.base_url}/chat/completions"
    question = unique("hang")
    hanging = {"model": "slow", "messages": [{"role": "user", "content": question}]}
    quick = {"model": "support", "messages": [{"role": "user", "content": unique("quick")}]}
    with ThreadPoolExecutor(2) as pool:
        holding = [pool.submit(call, url, hanging, key=key) for _ in range(2)]
        wait_for("two calls that hang", lambda: len(provider.received(question)) == 2)
        refused = call(url, quick, key=key)
        assert (refused.status, refused.code) == (429, "concurrency_limit_exceeded")
        kill_a_worker(headway)
        kill_a_worker(headway)
    assert all(isinstance(each.exception(), OSError | HTTPException) for each in holding)
    wait_for("a free place", lambda: call(url, quick, key=key).status == 200, 5)


def test_a_server_is_killed(headway: Headway) -> None:
    """kill -9 of the process between supervisor and workers: its workers end, and the supervisor starts others."""
    before = headway.workers()
    with Load(headway, headway.first_key) as load:
        load.wait_for_more(50)
        before[0].parent().kill()  # type: ignore[union-attr] # it has one: the supervisor's child
        psutil.wait_procs(before, timeout=30)
        assert not [worker for worker in before if worker.is_running()]
        wait_for("new workers", lambda: sum(map(headway.is_serving, headway.workers())) == len(before), 20)
        load.wait_for_more(50)
    assert check_books(headway, load.tally, complete=False) == 0, "the workers ended by themselves: nothing is lost"


def test_everything_is_killed(headway: Headway, proof: bool) -> None:
    """kill -9 of all processes at once, PostgreSQL included, as a power cut would; then it is started again."""
    for _ in range(5 if proof else 1):
        with Load(headway, headway.first_key) as load:
            load.wait_for_more(200)
            headway.kill_all()
            assert headway.processes() == []
            headway.start()
            load.wait_for_more(100)
        lost = check_books(headway, load.tally, complete=False)
        assert lost < len(load.tally.answered) / 2


def test_the_supervisor_is_killed(headway: Headway) -> None:
    """kill -9 of `headway run` alone: everything that it started ends by itself, and writes down what it had."""
    with Load(headway, headway.first_key) as load:
        load.wait_for_more(100)
        headway.kill_supervisor()
        headway.end_all()
    headway.start()
    assert check_books(headway, load.tally, complete=False) == 0


def test_a_stream_ends_before_headway_does(headway: Headway, provider: Provider) -> None:
    """SIGTERM while an answer is streamed: it is streamed to its end, and recorded; then nothing is left."""
    provider.set("slow", Behaviour(answer_tokens=Lognormal(40), inter_token_ms=Lognormal(50)))
    question = unique("drain")
    body = {"model": "slow", "messages": [{"role": "user", "content": question}], "stream": True}
    answers: list[Reply] = []

    def ask() -> None:
        answers.append(call(f"{headway.base_url}/chat/completions", body, key=headway.first_key))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_for("the stream", lambda: any(each.events_sent > 3 for each in provider.received(question)))
    begun = time.monotonic()
    assert headway.stop() == 0
    took = time.monotonic() - begun
    asking.join()
    (answer,) = answers
    assert answer.status == 200
    assert answer.body.endswith(b"data: [DONE]\n\n"), answer.body[-300:]
    assert 0.5 < took < 20
    headway.start()
    record = headway.interaction(answer.headers["x-headway-interaction"])
    assert (record["status"], record["error"], record["aborted"]) == (200, None, False)
    content = "".join(
        choice["delta"].get("content") or ""
        for line in answer.body.decode().splitlines()
        if line.startswith("data: {")
        for choice in json.loads(line[6:])["choices"]
    )
    assert json.loads(record["answer"])["choices"][0]["message"]["content"] == content


def test_a_stream_that_outlasts_the_drain_is_cut_off_and_recorded(provider: Provider) -> None:
    """SIGTERM while a stream hangs: it is cut off after the drain, and recorded as broken off."""
    provider.set("slow", Behaviour(fault=Fault.HANG_MID_STREAM))
    question = unique("outlast")
    body = {"model": "slow", "messages": [{"role": "user", "content": question}], "stream": True}
    configuration = {
        "deployments": {"slow": openai_deployment(provider.base_url, "slow")},
        "applications": {"slow": application("slow")},
    }
    folder = Path(tempfile.mkdtemp(prefix="headway-drain-"))
    folder.chmod(0o755)
    try:
        with running(Headway(folder, environment={"HEADWAY_DRAIN_SECONDS": "1"}), configuration) as headway:
            with ThreadPoolExecutor(1) as pool:
                url, key = f"{headway.base_url}/chat/completions", headway.first_key
                asking = pool.submit(call, url, body, key=key)
                wait_for("the stream", lambda: any(each.events_sent > 1 for each in provider.received(question)))
                begun = time.monotonic()
                assert headway.stop() == 0
                assert 0.9 < time.monotonic() - begun < 8
                with pytest.raises((HTTPException, OSError)):
                    asking.result()
            headway.start()
            wait_for("the record", lambda: headway.value("SELECT count(*) FROM interaction WHERE aborted") == 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
