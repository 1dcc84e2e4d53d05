"""The books of one rollout: evidence comes in, blocks close, E-processes advance (statistics, sections 3 and 4b).

Blocks close at ticks and are never regrouped: everything that a decision sees follows from the closed blocks alone, so
that it can be replayed from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from headway.domain.assessment import Assessment
from headway.domain.evidence import Counts, ExposureKey
from headway.domain.recording import Terms
from headway.domain.rollout import Phase, Status


class Stratum(msgspec.Struct, frozen=True):
    """A period of constant share: one stage, as interactions are booked under it."""

    stage: int
    phase: Phase
    share: float
    ratio_epoch: int = 0


class Rating(NamedTuple):
    """A unit's first value of a metric, settled. ``period`` is the Unix second at which its exposure period begins."""

    metric: str
    value: float
    unit: bytes
    stage: int
    period: int
    arm: int


class ResponseKey(NamedTuple):
    """Units first exposed in a stage, period and arm."""

    stage: int
    period: int
    arm: int


class Intake(msgspec.Struct):
    """What a tick claims.

    Attributes:
        evidence: Merged counts by exposure key.
        ratings: Ratings that have settled since the last tick.
        responses: For each key that ``Books.due`` named: how many of its units gave feedback, and reported.
    """

    evidence: Mapping[ExposureKey, Counts] = {}
    ratings: Sequence[Rating] = ()
    responses: Mapping[ResponseKey, tuple[int, int]] = {}


class Books:
    """See the module. One object per rollout and tick, read from and written to ``encode``'s bytes in between."""

    @classmethod
    def fresh(cls, terms: Terms) -> Books:
        """Open the books of a new rollout."""
        raise NotImplementedError

    @classmethod
    def decode(cls, terms: Terms, body: bytes) -> Books:
        """Read books back."""
        raise NotImplementedError

    @classmethod
    def replay(cls, terms: Terms, closed: Iterable[bytes], strata: Sequence[Stratum]) -> Books:
        """Rebuild the books from the closed blocks of each tick, in order: the same figures to the last bit."""
        raise NotImplementedError

    def encode(self) -> bytes:
        """Write the books, open blocks included, as MessagePack."""
        raise NotImplementedError

    def due(self, now_ms: int) -> list[ResponseKey]:
        """Name the keys whose period is old enough to book late events (booking rule 5)."""
        raise NotImplementedError

    def collect(self, intake: Intake, strata: Sequence[Stratum], now_ms: int) -> bytes | None:
        """Book what a tick has claimed, and close the blocks that are due.

        Returns:
            The blocks that have closed, to be stored for ever; None when none has.
        """
        raise NotImplementedError

    def assess(self, status: Status, strata: Sequence[Stratum]) -> Assessment:
        """Say what the closed blocks mean for a rollout that stands there."""
        raise NotImplementedError
