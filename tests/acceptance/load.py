"""Load for tests that break things meanwhile: answers that are rated, and books that must balance."""

from __future__ import annotations

import http.client
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.acceptance.harness import Headway, wait_for
from tests.acceptance.stand import Reply, call, unique


@dataclass
class Tally:
    """What the clients have seen.

    Attributes:
        answered: Ids of the answers that were read to their end.
        acknowledged: Ids of the answers whose rating got a 2xx.
        failures: What went wrong, in words.
    """

    answered: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Load:
    """Clients that ask, every other time streamed, and rate each answer; from ``with`` to its end.

    Args:
        headway: Whom to ask.
        key: API key.
        clients: How many at a time.
        pause_seconds: Of each client between two answers: the load is to be steady, not to fill the machine.
    """

    def __init__(self, headway: Headway, key: str, *, clients: int = 4, pause_seconds: float = 0.01) -> None:
        self._headway = headway
        self._key = key
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._tallies = [Tally() for _ in range(clients)]
        self._threads = [threading.Thread(target=self._run, args=(tally,), daemon=True) for tally in self._tallies]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def tally(self) -> Tally:
        """What all clients together have seen so far."""
        total = Tally()
        for tally in self._tallies:
            total.answered += tally.answered
            total.acknowledged += tally.acknowledged
            total.failures += tally.failures
        return total

    def wait_for_more(self, answers: int, seconds: float = 20.0) -> None:
        """Return when so many more answers have been rated."""
        target = len(self.tally.acknowledged) + answers
        wait_for(f"{answers} more ratings", lambda: len(self.tally.acknowledged) >= target, seconds)

    def _run(self, tally: Tally) -> None:
        stream = False
        while not self._stop.is_set():
            stream = not stream
            try:
                answer = self._ask(stream)
                problem = _problem(answer, stream=stream)
                if problem:
                    tally.failures.append(problem)
                    continue
                answer_id = answer.headers["x-headway-interaction"]
                tally.answered.append(answer_id)
                rating = {"interaction_id": answer_id, "metric": "stars", "value": 1 + len(tally.answered) % 5}
                posted = call(f"{self._headway.base_url}/feedback", rating, timeout_seconds=10)
                if posted.status in (200, 201, 202):
                    tally.acknowledged.append(answer_id)
                else:
                    tally.failures.append(f"rating: {posted}")
                self._stop.wait(self._pause_seconds)
            except (OSError, http.client.HTTPException) as error:
                tally.failures.append(f"{type(error).__name__}: {error}")
                self._stop.wait(0.02)  # nobody there: do not burn the processor that the restart needs

    def _ask(self, stream: bool) -> Reply:
        body = {"model": "support", "messages": [{"role": "user", "content": unique("load")}], "stream": stream}
        return call(f"{self._headway.base_url}/chat/completions", body, key=self._key, timeout_seconds=10)


def _problem(answer: Reply, *, stream: bool) -> str:
    """Say what is wrong with an answer; nothing when all is well."""
    if answer.status != 200:
        return f"answer: {answer}"
    if stream and not answer.body.endswith(b"data: [DONE]\n\n"):
        return f"cut stream: {answer.body[-200:]!r}"
    return ""


@dataclass(frozen=True)
class Books:
    """What is recorded, counted in the database.

    Attributes:
        interactions: Rows.
        ids: Different ids among them.
        of_rollout: Rows that are evidence.
        evidence: Interactions that the evidence counts.
        batched: Interactions that the written batches say they hold.
        used: Requests in the usage of all keys.
    """

    interactions: int
    ids: int
    of_rollout: int
    evidence: int
    batched: int
    used: int


def read_books(headway: Headway) -> Books:
    """Count what is recorded, all in one look."""
    (row,) = headway.rows(
        "SELECT count(*) AS interactions, count(DISTINCT id) AS ids, count(*) FILTER (WHERE rollout > 0) AS of_rollout,"
        " (SELECT coalesce(sum((counts->>'interactions')::int), 0)::int FROM evidence) AS evidence,"
        " (SELECT coalesce(sum(interactions), 0)::int FROM recorder_batch) AS batched,"
        " (SELECT coalesce(sum(requests), 0)::int FROM key_usage) AS used FROM interaction"
    )
    return Books(**row)


def missing(headway: Headway, answer_ids: list[str]) -> set[str]:
    """Which of these interactions are not recorded."""
    signer = headway.snapshot().signing.signer()
    by_id = {uuid.UUID(bytes=signer.read(each).uuid): each for each in answer_ids}
    found = headway.rows("SELECT id FROM interaction WHERE id = ANY(%s)", list(by_id))
    return set(by_id.values()) - {by_id[row["id"]] for row in found}


def unrated(headway: Headway, answer_ids: list[str]) -> set[str]:
    """Which of these answers do not have exactly one rating."""
    signer = headway.snapshot().signing.signer()
    by_id = {str(uuid.UUID(bytes=signer.read(each).uuid)): each for each in answer_ids}
    rows = headway.rows("SELECT target_id FROM feedback WHERE metric = 'stars' AND target_id = ANY(%s)", list(by_id))
    times = Counter(row["target_id"] for row in rows)
    return {answer_id for target, answer_id in by_id.items() if times[target] != 1}


def check_books(headway: Headway, tally: Tally, *, complete: bool) -> int:
    """See that nothing acknowledged is lost and nothing is counted twice; gives the number of unrecorded answers.

    Args:
        headway: Whose books.
        tally: What its clients have seen.
        complete: Whether every answer must be recorded: no process was killed with some in memory.
    """
    assert tally.acknowledged, "no rating was acknowledged: the test has shown nothing"
    # What waited on disk is replayed in a quarter of the time, so that live traffic does not starve behind it.
    patience = 60 + len(tally.acknowledged) / 15
    wait_for("all acknowledged ratings", lambda: not unrated(headway, tally.acknowledged), patience)
    if complete:
        wait_for("all interactions", lambda: not missing(headway, tally.answered), 30)
    else:
        _wait_for_the_queues(headway)
    lost = len(missing(headway, tally.answered))
    books = read_books(headway)
    print(
        f"{len(tally.answered)} answers, {len(tally.acknowledged)} acknowledged ratings, {len(tally.failures)}"
        f" failures; lost: 0 acknowledged ratings, {lost} unacknowledged interactions; {books}"
    )
    assert books.ids == books.interactions
    assert books.batched == books.interactions
    assert books.used == books.interactions
    assert books.evidence == books.of_rollout
    return lost


def _wait_for_the_queues(headway: Headway) -> None:
    """Wait until every worker has written what it had in memory, and what was on disk is in the database."""
    for _ in range(8):  # each on a connection of its own: to every worker, most probably
        answer = call(f"{headway.base_url}/chat/completions", _LAST, key=headway.first_key)
        headway.interaction(answer.json["id"])
    spool = headway.home / "spool"
    wait_for("an empty spool", lambda: not any(path.stat().st_size for path in spool.rglob("*.spool")), 20)


_LAST = {"model": "support", "messages": [{"role": "user", "content": "the last one"}]}
