"""How much is measured: quick to see that it works, the default for a table, full for the memory bar as written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Counts of one run.

    Attributes:
        rounds: Rounds of each target; the median is reported.
        warm_up: Requests before the first round.
        requests: Requests of a cost round.
        connections: Of a closed loop.
        open_loop_seconds: Length of a latency round.
        requests_per_second: Rate of a latency round.
        bursts: Streams of a burst round.
        paced: Streams open at once in a paced round, at its height; twice as many in all.
        events: Events of each stream.
        probes: First-byte and disconnect probes of each kind.
        memory_from, memory_to: The requests between which memory may not grow.
        stalled: Clients that never read, at once.
        ticks: Ticks of the controller.
        claimed_rows: Rows of evidence, and ratings, that earlier ticks have claimed.
        questions: With the shortest answers, for the embedder that is slow; None for all.
        manuals: Pattern of the names of pages that are searched in.
        documents: That an index is built of.
    """

    rounds: int = 5
    warm_up: int = 2_000
    requests: int = 12_000
    connections: int = 32
    open_loop_seconds: float = 5.0
    requests_per_second: float = 500.0
    bursts: int = 1_500
    paced: int = 100
    events: int = 100
    probes: int = 20
    memory_from: int = 50_000
    memory_to: int = 150_000
    stalled: int = 10
    ticks: int = 60
    claimed_rows: int = 200_000
    questions: int | None = None
    manuals: str = "*"
    documents: int = 10_000


DEFAULT = Sizes()
QUICK = Sizes(
    rounds=2,
    warm_up=500,
    requests=3_000,
    open_loop_seconds=2.0,
    bursts=300,
    paced=50,
    probes=5,
    memory_from=4_000,
    memory_to=8_000,
    stalled=5,
    ticks=10,
    claimed_rows=2_000,
    questions=80,
    manuals="perlf*",
    documents=1_000,
)
FULL = Sizes(requests=20_000, open_loop_seconds=10.0, memory_from=100_000, memory_to=1_000_000, claimed_rows=2_000_000)
