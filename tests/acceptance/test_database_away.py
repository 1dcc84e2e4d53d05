"""The database is away for a while, under load: no client error, and the books are complete afterwards."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.load import Load, check_books
from tests.acceptance.proxy import DatabaseProxy, database_proxy
from tests.acceptance.stand import CHATTY, call, simulated_provider

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def proxy(module_database_url: str) -> Iterator[DatabaseProxy]:
    folder = Path(tempfile.mkdtemp(prefix="headway-proxy-"))
    try:
        with database_proxy(folder, module_database_url) as opened:
            yield opened
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def headway(proxy: DatabaseProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Headway]:
    """Headway with two workers and a rollout at 50%, its database behind the proxy."""
    with simulated_provider({"chatty": CHATTY}) as provider:
        configuration = {
            "deployments": {"main": openai_deployment(provider.base_url, "chatty")},
            "applications": {"support": application("main")},
        }
        with running(Headway(tmp_path_factory.mktemp("away"), database_url=proxy.url), configuration) as opened:
            configuration["applications"]["support"] = application("main", "second", prompt={"text": "Be brief."})
            opened.write(configuration)
            opened.run("apply", "--yes")
            opened.run("share", "support", "second", "50%")
            opened.wait_for_snapshot()
            yield opened


def test_the_database_is_stopped(headway: Headway, proxy: DatabaseProxy, proof: bool) -> None:
    """It refuses connections for a while: no client sees an error, and afterwards everything is recorded once."""
    seconds = 60 if proof else 3
    with Load(headway, headway.first_key, pause_seconds=0.04) as load:
        load.wait_for_more(30)
        back = time.monotonic() + seconds
        proxy.refuse()
        load.wait_for_more(20, 30)
        report = check_what_needs_the_database(headway)
        wait_for("the end of the outage", lambda: time.monotonic() > back, seconds + 5)
        proxy.restore()
        load.wait_for_more(30)
    assert load.tally.failures == []
    assert check_books(headway, load.tally, complete=True) == 0
    query = "SELECT title FROM report WHERE id = %s"
    wait_for("the report", lambda: headway.rows(query, report), 20)
    wait_for("the control plane", lambda: call(f"{headway.admin_url}/readyz").status == 200, 20)


def test_the_network_to_the_database_is_cut(headway: Headway, proxy: DatabaseProxy, proof: bool) -> None:
    """It falls silent with all connections open: no client sees an error, and everything is recorded once."""
    seconds = 60 if proof else 2
    with Load(headway, headway.first_key, pause_seconds=0.04) as load:
        load.wait_for_more(30)
        proxy.fall_silent()
        back = time.monotonic() + seconds
        wait_for("the end of the outage", lambda: time.monotonic() > back, seconds + 5)
        proxy.restore()
        load.wait_for_more(30)
    assert load.tally.failures == []
    assert check_books(headway, load.tally, complete=True) == 0


def check_what_needs_the_database(headway: Headway) -> str:
    """While it is away: a report is kept, listing reports is 503, the control plane is alive and not ready.

    Returns:
        The id of the report.
    """
    reports = f"{headway.base_url}/reports"
    key = headway.first_key
    with ThreadPoolExecutor(4) as pool:  # at once: each of them finds out for itself, which takes some seconds
        posting = pool.submit(call, reports, {"title": "Wrong", "description": "It said 5."}, key=key)
        listing = pool.submit(call, reports, key=key)
        ready = pool.submit(call, f"{headway.admin_url}/readyz")
        alive = pool.submit(call, f"{headway.admin_url}/healthz")
    assert posting.result().status == 202, posting.result()
    assert (listing.result().status, listing.result().code) == (503, "storage_unavailable")
    assert (ready.result().status, alive.result().status) == (503, 200)
    return str(posting.result().json["id"])


def test_a_worker_starts_while_the_database_is_away(headway: Headway, proxy: DatabaseProxy) -> None:
    """It serves the last snapshot from disk, and follows the database once that is back."""
    before = headway.workers()
    with Load(headway, headway.first_key, pause_seconds=0.04) as load:
        load.wait_for_more(20)
        proxy.refuse()
        before[0].kill()

        def is_replaced() -> bool:
            serving = [each.pid for each in headway.workers() if headway.is_serving(each)]
            return len(serving) == len(before) and before[0].pid not in serving

        wait_for("a new worker", is_replaced, 30)
        load.wait_for_more(20)
        proxy.restore()
        load.wait_for_more(20)
    assert len(load.tally.failures) <= 4, load.tally.failures
    check_books(headway, load.tally, complete=False)
    headway.run("share", "support", "second", "60%")
    headway.wait_for_snapshot()
