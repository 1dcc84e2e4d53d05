import asyncio
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from benchmarks.bench import Bench, check_stream
from benchmarks.exchange import PROVIDER_ID, Endpoint, ResponseReader
from benchmarks.figures import VoidRunError
from benchmarks.machine import Cores
from benchmarks.probes import StalledClients, probe_disconnects, probe_first_events, wait_until_stuck
from benchmarks.processes import Tree
from benchmarks.sizes import QUICK
from benchmarks.streaming import measure_streaming
from benchmarks.targets import Target
from benchmarks.upstreams import Burst, Flood, Paced, Script, StreamUpstream

EVENTS = 7


@dataclass
class Ledger:
    """Stands for a gateway's database: counts what reached the provider, give or take an error."""

    upstream: StreamUpstream
    error: int = 0
    tree: Tree = field(default_factory=lambda: Tree(0))

    def count(self) -> int:
        return self.upstream.calls + (self.error if self.upstream.calls else 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield Bench(Cores(0, 1), QUICK, tmp_path, runner, itertools.count(), {}, recorded_within_seconds=1.0)


def serve(bench: Bench, stack: ExitStack, script: Script) -> tuple[StreamUpstream, Endpoint]:
    upstream = StreamUpstream(script)
    port = bench.runner.run(upstream.open())
    stack.callback(lambda: bench.runner.run(upstream.close()))
    return upstream, Endpoint(port)


@pytest.mark.parametrize("one_write", [True, False])
def test_a_round_counts_its_requests_and_records(bench: Bench, one_write: bool) -> None:
    with ExitStack() as stack:
        upstream, endpoint = serve(bench, stack, Burst(EVENTS, one_write=one_write))
        target = Target("ledger", endpoint, Tree(0), Ledger(upstream))
        spend = bench.measure(target, bench.close_loop(target, 50, check_stream(target, EVENTS), stream=True))
    assert spend.requests == upstream.calls == 50
    assert spend.database_us == 0


@pytest.mark.parametrize(("error", "recorded"), [(-1, 49), (1, 51)])
def test_a_round_with_a_row_too_few_or_too_many_is_void(bench: Bench, error: int, recorded: int) -> None:
    with ExitStack() as stack:
        upstream, endpoint = serve(bench, stack, Burst(EVENTS, one_write=True))
        target = Target("ledger", endpoint, Tree(0), Ledger(upstream, error))
        load = bench.close_loop(target, 50, check_stream(target, EVENTS), stream=True)
        with pytest.raises(VoidRunError, match=f"ledger: {recorded} interactions recorded of 50 requests sent"):
            bench.measure(target, load)


def test_a_round_with_a_wrong_answer_is_void(bench: Bench) -> None:
    with ExitStack() as stack:
        _, endpoint = serve(bench, stack, Burst(EVENTS - 1, one_write=True))
        target = Target("short", endpoint, Tree(0))
        load = bench.close_loop(target, 5, check_stream(target, EVENTS), stream=True)
        with pytest.raises(VoidRunError, match="5 x a stream of 6 events instead of 7"):
            bench.measure(target, load)


def test_streams_are_checked_for_what_a_gateway_must_hide() -> None:
    def check(body: bytes) -> str | None:
        reader = ResponseReader()
        reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        return check_stream(Target("gateway", Endpoint(1), Tree(0), rewrites_ids=True), 1)(reader)

    end = b"data: [DONE]\n\n"
    assert check(b'data: {"id":"own"}\n\n' + end) is None
    assert check(b'data: {"id":"own"}\n\n') == "a stream without its end"
    assert check(b'data: {"id":"own"}\n\ndata: {"usage":{}}\n\n' + end) == "a stream of 2 events instead of 1"
    assert check(b'data: {"id":"%b"}\n\n' % PROVIDER_ID.encode() + end) == "a stream with the provider's id"


def test_paced_events_keep_their_pace(bench: Bench) -> None:
    with ExitStack() as stack:
        paced = Paced(20, 0.01)
        _, endpoint = serve(bench, stack, paced)
        target = Target("direct", endpoint, Tree(0))
        load = bench.open_loop(endpoint, 10, 100.0, check_stream(target, 20), stream=True)
        latencies_ms = bench.measure(target, load).latencies_ms
        paced.close()
    assert min(latencies_ms) >= 189
    assert sorted(latencies_ms)[5] < 230


def test_probes_see_a_direct_connection_as_immediate(bench: Bench) -> None:
    with ExitStack() as stack:
        upstream, endpoint = serve(bench, stack, Burst(1, one_write=True))
        first = bench.runner.run(probe_first_events(endpoint, upstream, itertools.count(), 3))
        before = bench.runner.run(probe_disconnects(endpoint, upstream, itertools.count(), 3, headers_sent=False))
        after = bench.runner.run(probe_disconnects(endpoint, upstream, itertools.count(), 3, headers_sent=True))
    for delays_ms in (first, before, after):
        assert len(delays_ms) == 3
        assert 0 < sorted(delays_ms)[1] < 20


def test_a_client_that_never_reads_stops_the_provider(bench: Bench) -> None:
    with ExitStack() as stack:
        flood = Flood(64 * 2**20)
        _, endpoint = serve(bench, stack, flood)
        clients = StalledClients()
        stack.callback(clients.close)
        bench.runner.run(clients.connect(endpoint, itertools.count(), 2))
        bench.runner.run(wait_until_stuck(flood, still_seconds=0.2))
        assert 0 < flood.written_bytes < 2 * 64 * 2**20


def test_streaming_without_targets_still_measures_the_provider(bench: Bench) -> None:
    figures = measure_streaming(bench)
    assert [(figure.target, figure.name) for figure in figures] == [("direct", "first event, upstream to client")]
    assert 0 < figures[0].value < 20
