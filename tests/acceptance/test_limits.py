"""Limits: of keys, over both workers, and of deployments."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from headway.testing import Behaviour, Lognormal
from tests.acceptance.harness import wait_for
from tests.acceptance.stand import Reply, Stand, call, unique

SLOW = Behaviour(headers_ms=Lognormal(600))


def ask_at_once(stand: Stand, application: str, count: int, key: str) -> list[Reply]:
    """Ask many questions at the same time, each over a connection of its own."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda number: stand.chat(application, unique(f"{number}"), key=key), range(count)))


def split(replies: list[Reply]) -> tuple[list[Reply], list[Reply]]:
    """Answers and refusals; nothing else may be among them."""
    assert {reply.status for reply in replies} <= {200, 429}, [reply.status for reply in replies]
    return [reply for reply in replies if reply.status == 200], [reply for reply in replies if reply.status == 429]


def test_requests_per_minute(stand: Stand) -> None:
    """Thirty requests over both workers, of which twenty a minute are allowed."""
    key = stand.headway.create_key("often", "--requests-per-minute", "20")
    answered, refused = split([stand.chat("support", unique("often"), key=key) for _ in range(30)])
    assert len(answered) == 20
    for reply in refused:
        assert reply.code == "rate_limit_exceeded"
        assert 1 <= int(reply.headers["retry-after"]) <= 120
    assert stand.chat("support", unique("another key")).status == 200


def test_concurrency_of_a_key(stand: Stand) -> None:
    """Twelve requests at once, of which three may be in flight, on whichever worker they are."""
    key = stand.headway.create_key("parallel", "--concurrency", "3")
    stand.provider.set("slow", SLOW)
    answered, refused = split(ask_at_once(stand, "slow", 12, key))
    # Two workers may each let one in at the very same moment.
    assert 3 <= len(answered) <= 4
    for reply in refused:
        assert reply.code == "concurrency_limit_exceeded"
        assert int(reply.headers["retry-after"]) >= 1
    again, refused = split(ask_at_once(stand, "slow", 3, key))
    assert (len(again), refused) == (3, [])


def test_monthly_cost_cap(stand: Stand) -> None:
    """A key stops at its cap, in every worker, and what it spent is what was recorded."""
    cap = 0.2
    key = stand.headway.create_key("capped", "--monthly-usd", str(cap))
    replies = [stand.chat("support", unique("spend"), key=key)]
    while replies[-1].status == 200 and len(replies) < 200:
        replies.append(stand.chat("support", unique("spend"), key=key))
    assert (replies[-1].status, replies[-1].code) == (429, "cost_cap_reached")
    number = stand.headway.snapshot().keys
    (number_of_key,) = [route.number for route in number.values() if route.name == "capped"]

    def spent() -> float:
        query = "SELECT coalesce(sum(cost_usd), 0)::float8 FROM key_usage WHERE key_id = %s"
        return float(stand.headway.value(query, number_of_key))

    wait_for("the recorded cost", lambda: spent() >= cap)
    wait_for("the cap in every worker", lambda: {_try(stand, key) for _ in range(10)} == {429}, 10)
    query = (
        "SELECT (SELECT sum(cost_usd) FROM key_usage WHERE key_id = %s)"
        " - (SELECT sum(cost_usd) FROM interaction WHERE key = %s)"
    )
    assert abs(stand.headway.value(query, number_of_key, number_of_key)) < 1e-9
    assert spent() < 3 * cap, "the overshoot is what was in flight, and the last second of the other worker"


def _try(stand: Stand, key: str) -> int:
    return stand.chat("support", unique("once more"), key=key).status


def test_deployment_concurrency(stand: Stand) -> None:
    """A deployment for two calls at a time: one waits in each worker, the others are told to come back."""
    stand.provider.set("narrow", SLOW)
    replies = ask_at_once(stand, "narrow", 12, stand.key)
    answered, refused = split(replies)
    assert 2 <= len(answered) <= 4  # of each worker one call and one that waits; all may have come to one worker
    for reply in refused:
        assert reply.code == "overloaded"
        assert int(reply.headers["retry-after"]) >= 1
    calls = [each for each in stand.provider.received() if each.model == "narrow"]
    spans = sorted((each.arrived_seconds, each.ended_seconds or 0.0) for each in calls)
    most = max(sum(begun <= start < ended for begun, ended in spans) for start, _ in spans)
    assert most <= 2
    records = [stand.headway.interaction(reply.headers["x-headway-interaction"]) for reply in replies]
    waited = [record["queue_ms"] for record in records if record["status"] == 200]
    assert max(waited) > 300
    assert {record["error"] for record in records if record["status"] == 429} == {"overloaded"}


def test_a_client_that_leaves_the_queue_frees_its_place(stand: Stand) -> None:
    """Who gives up waiting for a place does not take it from the next."""
    stand.provider.set("narrow", SLOW)
    url = f"{stand.headway.base_url}/chat/completions"
    body = {"model": "narrow", "messages": [{"role": "user", "content": unique("impatient")}]}

    def ask_impatiently(_: int) -> bool:
        try:
            call(url, body, key=stand.key, timeout_seconds=0.2)
        except TimeoutError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert any(pool.map(ask_impatiently, range(8)))
    wait_for("free places", lambda: stand.chat("narrow", unique("patient")).status == 200, 5)
