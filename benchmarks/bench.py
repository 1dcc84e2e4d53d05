"""One run of the benchmark: its cores and sizes, its event loop, and the measured rounds every area is made of."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.exchange import PROVIDER_ID, Endpoint, ResponseReader, write_requests
from benchmarks.figures import VoidRunError
from benchmarks.load import Check, Outcome, run_closed_loop, run_open_loop
from benchmarks.machine import Cores, read_busy_seconds
from benchmarks.processes import Tree
from benchmarks.sizes import Sizes
from benchmarks.targets import Site, Target

Starter = Callable[[Site], AbstractContextManager[Target]]
Load = Coroutine[None, None, Outcome]


@dataclass(frozen=True)
class Spend:
    """What one round used.

    Attributes:
        requests: Requests sent and answered.
        cpu_seconds: CPU of the target's process tree, until all was recorded.
        database_seconds: CPU of its database, where it has one.
        elapsed_seconds: Length of the load.
        lag_seconds: From the last answer to the last recorded row, to the half second.
        latencies_ms: Of each request.
    """

    requests: int
    cpu_seconds: float
    database_seconds: float | None
    elapsed_seconds: float
    lag_seconds: float
    latencies_ms: list[float]

    @property
    def cpu_us(self) -> float:
        """CPU per request, in microseconds."""
        return self.cpu_seconds / self.requests * 1e6

    @property
    def database_us(self) -> float | None:
        """Database CPU per request, in microseconds."""
        return None if self.database_seconds is None else self.database_seconds / self.requests * 1e6


@dataclass(frozen=True)
class Bench:
    """What all areas share.

    Attributes:
        cores: Which core is measured, and which carries the rest.
        sizes: How much is measured.
        folder: Where everything is kept until the run ends.
        runner: The event loop of the load generator and the stream upstream.
        numbers: Numbers of the requests: none comes twice in a run.
        starters: The targets, by name.
        upstream_port: Fixed port of the upstream, if any.
        recorded_within_seconds: How long records may take after the last answer.
        foreign_shares: Of each round, the share of the two cores that others used.
    """

    cores: Cores
    sizes: Sizes
    folder: Path
    runner: asyncio.Runner
    numbers: Iterator[int]
    starters: Mapping[str, Starter]
    upstream_port: int | None = None
    recorded_within_seconds: float = 20.0
    foreign_shares: list[float] = field(default_factory=list)

    def open_targets(self, stack: ExitStack, area: str, upstream_port: int) -> list[Target]:
        """Start every target before the given upstream; they end with the stack."""
        return [
            stack.enter_context(starter(Site(self.cores, self.folder / area / name, upstream_port)))
            for name, starter in self.starters.items()
        ]

    def close_loop(self, target: Target, count: int, check: Check, *, stream: bool = False) -> Load:
        """Make a closed-loop load on a target."""
        requests = write_requests(target.endpoint, self.numbers, stream=stream)
        return run_closed_loop(target.endpoint.port, requests, count, self.sizes.connections, check)

    def open_loop(
        self, endpoint: Endpoint, count: int, requests_per_second: float, check: Check, *, stream: bool = False
    ) -> Load:
        """Make an open-loop load on an endpoint."""
        requests = write_requests(endpoint, self.numbers, stream=stream)
        return run_open_loop(endpoint.port, requests, count, requests_per_second, check)

    def run(self, load: Load, what: str) -> Outcome:
        """Run a load and insist that every request was answered as it should be.

        Raises:
            VoidRunError: It was not.
        """
        outcome = self.runner.run(load)
        if outcome.faults or outcome.answered != outcome.sent:
            faults = ", ".join(f"{count} x {fault}" for fault, count in outcome.faults.most_common(3))
            raise VoidRunError(f"{what}: {outcome.answered} of {outcome.sent} requests answered; {faults}")
        return outcome

    def measure(self, target: Target, load: Load) -> Spend:
        """Run a load on a target and account for what it used, from the first request to the last recorded row.

        Raises:
            VoidRunError: Not every request was answered, or recorded exactly once.
        """
        recorder = target.recorder
        rows_before = recorder.count() if recorder else 0
        database_before = recorder.tree.cpu_seconds() if recorder else 0.0
        cpu_before = target.tree.cpu_seconds()
        begun = self._read_foreign(target)
        outcome = self.run(load, target.name)
        ended = self._read_foreign(target)
        self.foreign_shares.append((ended[1] - begun[1]) / (ended[0] - begun[0]) / 2)
        answered_at = time.monotonic()
        database_after = self._await_records(target, rows_before + outcome.answered) if recorder else None
        return Spend(
            requests=outcome.answered,
            cpu_seconds=target.tree.cpu_seconds() - cpu_before,
            database_seconds=None if database_after is None else database_after - database_before,
            elapsed_seconds=outcome.elapsed_seconds,
            lag_seconds=time.monotonic() - answered_at,
            latencies_ms=outcome.latencies_ms,
        )

    def _read_foreign(self, target: Target) -> tuple[float, float]:
        """Read the time, and the seconds that the two cores have spent on neither this run nor its database."""
        ours = Tree(os.getpid()).cpu_seconds()
        if target.recorder is not None:
            ours += target.recorder.tree.cpu_seconds()
        return time.monotonic(), read_busy_seconds(self.cores) - ours

    def _await_records(self, target: Target, expected: int) -> float:
        """Wait until all is recorded; give the database's CPU from before the count, which is ours."""
        assert target.recorder is not None
        deadline = time.monotonic() + self.recorded_within_seconds
        while True:
            time.sleep(0.5)  # the recorder writes every 200 ms: most often the first count is right
            database_seconds = target.recorder.tree.cpu_seconds()
            rows = target.recorder.count()
            if rows == expected:
                return database_seconds
            if rows > expected or time.monotonic() > deadline:
                raise VoidRunError(f"{target.name}: {rows} interactions recorded of {expected} requests sent")


def check_answer(target: Target) -> Check:
    """Make the check of a plain answer: 200, whole, with usage, and an id of the gateway's own where it makes one."""
    foreign = PROVIDER_ID.encode() if target.rewrites_ids else None

    def check(reader: ResponseReader) -> str | None:
        if reader.status != 200:
            return f"status {reader.status}: {bytes(reader.body[:200])!r}"
        if b'"usage"' not in reader.body:
            return "an answer without usage"
        if foreign is not None and foreign in reader.body:
            return "an answer with the provider's id"
        return None

    return check


def check_stream(target: Target, events: int) -> Check:
    """Make the check of a stream: 200, every event, the end, no usage that was not asked for, no provider's id."""
    foreign = PROVIDER_ID.encode() if target.rewrites_ids else None

    def check(reader: ResponseReader) -> str | None:
        if reader.status != 200:
            return f"status {reader.status}: {bytes(reader.body[:200])!r}"
        if not reader.body.endswith(b"data: [DONE]\n\n"):
            return "a stream without its end"
        if reader.body.count(b"data: ") != events + 1:
            return f"a stream of {reader.body.count(b'data: ') - 1} events instead of {events}"
        if foreign is not None and foreign in reader.body:
            return "a stream with the provider's id"
        return None

    return check
