"""Reading rollouts for people: once, or again and again until they end."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.text import Text

from headway.cli.rollout_screen import Reading, Screen, list_events
from headway.cli.terminal import cell
from headway.clock import Clock, utc
from headway.domain.assessment import Assessment
from headway.domain.display import describe_state, format_share, pace
from headway.errors import NotFoundError, StorageError
from headway.storage import rollouts
from headway.storage.applications import find_application
from headway.storage.database import Connection, Database
from headway.storage.losses import Losses, find_losses
from headway.storage.rollouts import Rollout

_POLL_SECONDS = 1.0
_DECISIONS = 30  # more than a screen holds
_PACE_SPAN = timedelta(minutes=10)
_LARGEST_NUMBER = 2**31 - 1


async def find(connection: Connection, name: str) -> Rollout:
    """Find a rollout by its number, or the newest of an application by that one's name.

    An application has one running rollout at most, and that is the newest.

    Raises:
        NotFoundError: There is none.
    """
    if name.isascii() and name.isdecimal() and int(name) <= _LARGEST_NUMBER:
        found = await rollouts.list_rollouts(connection, number=int(name))
        if found:
            return found[0]
    found = await rollouts.list_rollouts(connection, application=name)
    if found:
        return found[0]
    if name.isdecimal():
        raise NotFoundError(f"there is no rollout {name}; `headway rollout list` shows them")
    application = await find_application(connection, name)
    raise NotFoundError(f"{application.name} has had no rollout yet; `headway apply` of a changed release starts one")


@dataclass
class Reader:
    """Reads a rollout, and how fast interactions come in.

    Attributes:
        name: Number of the rollout, or name of its application.
        clock: Tells the time.
        decisions: How many of its last decisions.
    """

    name: str
    clock: Clock
    decisions: int = _DECISIONS
    _seen: deque[tuple[int, Assessment]] = field(default_factory=deque)
    _number: int = 0
    _losses: dict[int, Losses | None] = field(default_factory=dict)

    async def read(self, connection: Connection) -> Reading:
        """Read it as it is now.

        Raises:
            NotFoundError: There is no such rollout.
        """
        rollout = await find(connection, self.name)
        figure = await rollouts.latest_figure(connection, rollout.number)
        if rollout.number != self._number:
            self._number = rollout.number
            self._seen.clear()
            if figure is not None:
                since = figure.at - _PACE_SPAN
                for each in await rollouts.list_figures(connection, rollout.number, since=since, limit=20):
                    self._keep(each.at.timestamp(), each.assessment)
        if figure is not None:
            self._keep(figure.at.timestamp(), figure.assessment)
        return Reading(
            rollout,
            await rollouts.list_stages(connection, rollout.number),
            await rollouts.list_decisions(connection, rollout.number, limit=self.decisions),
            figure,
            pace(tuple(self._seen)),
            self.clock.unix_ms(),
            await self._read_losses(connection, rollout),
        )

    async def _read_losses(self, connection: Connection, rollout: Rollout) -> Losses | None:
        """Look once, and not before it is over: a watched rollout is read every second."""
        if "index" not in rollout.difference.parts or rollout.state != "rolled_back":
            return None
        if rollout.number not in self._losses:
            self._losses = {rollout.number: await find_losses(connection, rollout.number)}
        return self._losses[rollout.number]

    def _keep(self, seconds: float, assessment: Assessment) -> None:
        at_ms = int(seconds * 1000)
        if self._seen and at_ms <= self._seen[-1][0]:
            return
        self._seen.append((at_ms, assessment))
        while at_ms - self._seen[0][0] > _PACE_SPAN.total_seconds() * 1000:
            self._seen.popleft()


async def watch(database: Database, reader: Reader, console: Console, *, follow: bool) -> None:
    """Show a rollout until it ends: on a terminal as it is, elsewhere what changes, line by line.

    Args:
        database: To read from.
        reader: Of the rollout.
        console: To show it on.
        follow: Go on after its end; of an application, with its next rollout.

    Raises:
        NotFoundError: There is no such rollout.
        StorageError: The database is away from the start; later on that is waited out.
    """
    if console.is_terminal:
        await _show(_poll(database, reader, follow=follow), console)
    else:
        await _print(_poll(database, reader, follow=follow), console)


async def _show(readings: AsyncIterator[Reading | None], console: Console) -> None:
    last: Reading | None = None
    with Live(console=console, auto_refresh=False) as live:
        async for reading in readings:
            last = reading or last
            if last is not None:
                note = "" if reading is not None else "the database is away; this goes on when it is back"
                live.update(Screen(last, note=note), refresh=True)


async def _print(readings: AsyncIterator[Reading | None], console: Console) -> None:
    number = last = 0
    async for reading in readings:
        if reading is None:
            continue
        events = list_events(reading)
        if number != reading.rollout.number:
            number, last = reading.rollout.number, events[0].number if events else 0
            console.print(_describe(reading), soft_wrap=True)
        for event in reversed(events):
            if event.number > last:
                last = event.number
                line = Text.assemble(f"{event.at:%Y-%m-%d %H:%M:%S} ", event.what, ": ", event.why)
                console.print(line, soft_wrap=True)


async def _poll(database: Database, reader: Reader, *, follow: bool) -> AsyncIterator[Reading | None]:
    """Read once a second; None while the database is away."""
    first = True
    while True:
        try:
            async with database.connection() as connection:
                reading = await reader.read(connection)
        except StorageError:
            if first:
                raise
            yield None
        else:
            first = False
            yield reading
            if reading.rollout.ended_at is not None and not follow:
                return
        await reader.clock.sleep(_POLL_SECONDS)


def _describe(reading: Reading) -> Text:
    rollout = reading.rollout
    return Text(
        f"{utc(reading.now_ms):%Y-%m-%d %H:%M:%S} {cell(rollout.application)}: rollout {rollout.number} from"
        f" {cell(rollout.stable)} to {cell(rollout.candidate)}, {describe_state(rollout.state)}"
        f" at {format_share(rollout.share)}"
    )
