"""What stands between a worker and a deployment: places, the queue, the circuit breaker."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.clock import ManualClock
from headway.errors import OverloadedError
from headway.gateway.deployments import CircuitBreaker, Deployments, Gate
from tests.routes import make_deployment


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


class _Callers:
    """Callers at a gate, as an outsider sees them."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.tasks: list[asyncio.Task[None]] = []
        self.inside: list[int] = []
        self.refused: list[int] = []
        self.left: set[int] = set()

    async def come(self) -> None:
        self.tasks.append(asyncio.create_task(self._enter(len(self.tasks))))

    async def _enter(self, number: int) -> None:
        try:
            await self.gate.enter("d")
        except OverloadedError:
            self.refused.append(number)
        else:
            self.inside.append(number)

    def go(self, which: int) -> None:
        """One of those inside leaves."""
        present = [number for number in self.inside if number not in self.left]
        if present:
            self.left.add(present[which % len(present)])
            self.gate.leave()

    def give_up(self, which: int) -> None:
        waiting = [task for task in self.tasks if not task.done()]
        if waiting:
            waiting[which % len(waiting)].cancel()


class TestGate:
    async def test_so_many_are_let_in_and_the_rest_waits_in_order(self) -> None:
        callers = _Callers(Gate(2, 10, 60))
        for _ in range(5):
            await callers.come()
        await settle()
        assert callers.inside == [0, 1]
        for _ in range(3):
            callers.go(0)
            await settle()
        assert callers.inside == [0, 1, 2, 3, 4]
        assert callers.gate.in_flight == 2

    async def test_a_newcomer_does_not_overtake(self) -> None:
        callers = _Callers(Gate(1, 10, 60))
        for _ in range(2):
            await callers.come()
        await settle()
        callers.go(0)  # The place is for the second, who has not run yet.
        await callers.come()
        await settle()
        assert callers.inside == [0, 1]

    async def test_a_full_queue_refuses(self) -> None:
        gate = Gate(1, 1, 60)
        callers = _Callers(gate)
        for _ in range(2):
            await callers.come()
        await settle()
        with pytest.raises(OverloadedError, match="'d' is busy and its queue is full") as caught:
            await gate.enter("d")
        assert caught.value.retry_after_seconds
        callers.go(0)
        await settle()
        callers.go(0)
        assert gate.in_flight == 0

    async def test_no_queue_refuses_at_once(self) -> None:
        gate = Gate(1, 0, 60)
        await gate.enter("d")
        with pytest.raises(OverloadedError):
            await gate.enter("d")
        gate.leave()
        await gate.enter("d")

    async def test_who_waits_too_long_is_sent_away_and_leaves_no_trace(self) -> None:
        gate = Gate(1, 1, 0.001)
        await gate.enter("d")
        for _ in range(2):
            with pytest.raises(OverloadedError, match=r"no place within 0\.001 s"):
                await gate.enter("d")
        gate.leave()
        assert gate.in_flight == 0
        await gate.enter("d")

    async def test_without_a_limit_everybody_is_let_in_and_counted(self) -> None:
        gate = Gate(0, 0, 0)
        for _ in range(1000):
            await gate.enter("d")
        assert gate.in_flight == 1000
        for _ in range(1000):
            gate.leave()
        assert gate.in_flight == 0

    async def test_a_place_given_in_the_moment_of_giving_up_goes_to_the_next(self) -> None:
        callers = _Callers(Gate(1, 10, 60))
        for _ in range(3):
            await callers.come()
        await settle()
        callers.go(0)
        callers.give_up(0)
        await settle()
        assert callers.inside == [0, 2]
        callers.go(0)
        assert callers.gate.in_flight == 0

    actions = st.tuples(st.sampled_from(["come", "come", "go", "give up", "wait"]), st.integers(0, 20))

    @settings(max_examples=60)
    @given(st.integers(1, 3), st.integers(0, 4), st.lists(actions, max_size=60))
    def test_whatever_happens_no_place_is_lost_or_given_twice(
        self, places: int, queue_size: int, actions: Sequence[tuple[str, int]]
    ) -> None:
        asyncio.run(self._play(places, queue_size, actions))

    async def _play(self, places: int, queue_size: int, actions: Sequence[tuple[str, int]]) -> None:
        gate = Gate(places, queue_size, 60)
        callers = _Callers(gate)
        for action, which in actions:
            if action == "come":
                await callers.come()
            elif action == "go":
                callers.go(which)
            elif action == "give up":
                callers.give_up(which)
            else:
                await settle()
                self._check(callers, places, queue_size)
        await settle()
        self._check(callers, places, queue_size)
        while not all(task.done() for task in callers.tasks):
            callers.go(0)
            await settle()
        while len(callers.left) < len(callers.inside):
            callers.go(0)
        assert gate.in_flight == 0
        for _ in range(places):
            await asyncio.wait_for(gate.enter("d"), 1)

    @staticmethod
    def _check(callers: _Callers, places: int, queue_size: int) -> None:
        present = len(callers.inside) - len(callers.left)
        waiting = sum(not task.done() for task in callers.tasks)
        assert callers.gate.in_flight == present <= places
        assert waiting <= queue_size
        assert not waiting or present == places


class TestCircuitBreaker:
    def test_it_opens_after_failures_in_a_row(self) -> None:
        breaker = CircuitBreaker(3, 10)
        for _ in range(2):
            breaker.fail(0)
        assert breaker.allows(0)
        breaker.succeed()
        for _ in range(2):
            breaker.fail(0)
        assert breaker.allows(0)
        breaker.fail(0)
        assert not breaker.allows(0)
        assert breaker.wait_seconds(4) == 6

    def test_when_the_time_is_up_one_call_may_try(self) -> None:
        breaker = CircuitBreaker(1, 10)
        breaker.fail(0)
        assert not breaker.allows(9.9)
        assert breaker.allows(10)
        assert not breaker.allows(10)
        breaker.fail(11)
        assert not breaker.allows(20.9)
        assert breaker.allows(21)
        breaker.succeed()
        assert [breaker.allows(21) for _ in range(3)] == [True] * 3
        assert breaker.wait_seconds(21) == 0

    def test_a_try_that_never_ends_is_not_the_last(self) -> None:
        breaker = CircuitBreaker(1, 10)
        breaker.fail(0)
        assert breaker.allows(10)
        assert not breaker.allows(19)
        assert breaker.allows(20)

    def test_a_success_closes_it_for_all(self) -> None:
        breaker = CircuitBreaker(2, 10)
        for _ in range(5):
            breaker.fail(0)
        breaker.succeed()
        breaker.fail(1)
        assert breaker.allows(1)

    def test_it_can_be_switched_off(self) -> None:
        breaker = CircuitBreaker(0, 10)
        for _ in range(100):
            breaker.fail(0)
        assert breaker.allows(0)


class TestDeployments:
    async def test_a_deployment_keeps_its_state_while_it_stays_as_it_is(self) -> None:
        deployments = Deployments(ManualClock(), workers=1)
        state = deployments.state(make_deployment())
        assert deployments.state(make_deployment()) is state
        assert deployments.state(make_deployment(queue_size=1)) is not state
        assert deployments.state(make_deployment("other")) is not state

    @pytest.mark.parametrize(("places", "workers", "each"), [(10, 2, 5), (10, 3, 4), (1, 4, 1)])
    async def test_places_are_shared_out_among_workers(self, places: int, workers: int, each: int) -> None:
        deployment = make_deployment(max_concurrency=places, queue_size=0)
        gate = Deployments(ManualClock(), workers).state(deployment).gate
        for _ in range(each):
            await gate.enter("d")
        with pytest.raises(OverloadedError):
            await gate.enter("d")

    async def test_states_nobody_needs_are_forgotten(self) -> None:
        deployments = Deployments(ManualClock(), workers=1)
        busy = deployments.state(make_deployment("busy"))
        await busy.gate.enter("busy")
        for number in range(2500):
            deployments.state(make_deployment(f"d{number}"))
        assert deployments.state(make_deployment("busy")) is busy
        assert len(deployments._states) <= 1001

    def test_it_goes_by_the_clock_it_is_given(self) -> None:
        clock = ManualClock()
        deployments = Deployments(clock, workers=1)
        clock.advance(5)
        assert deployments.now() == 5
