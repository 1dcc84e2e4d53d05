"""Blocks: what an E-process is fed with (statistics, 4b rule 9).

A block is filled by one stream of counts, out of one stage. It closes at the first tick at which it holds at least one
observation of stable and five of the candidate, and what has closed is never regrouped: the candidate's share in it is
what its evidence is worth. After a stage has ended, its open block keeps filling and closes by the same rule.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import msgspec

LEAST_STABLE, LEAST_CANDIDATE = 1, 5
"""Observations of each arm from which a block may close."""

_DEFLATE_BYTES = 1_024
_ZLIB = 0x78  # how zlib's data begins; a MessagePack array does not


class Block(msgspec.Struct, frozen=True, array_like=True):
    """Counts of both arms of one stage, closed.

    Attributes:
        stream: What they are counts of.
        stage: Their stage.
        counts: First those of stable, then those of the candidate, as many; the first of each are its observations.
    """

    stream: str
    stage: int
    counts: list[int]


class Traffic(msgspec.Struct, array_like=True):
    """What one arm of a stage has met, or has met since the tick before.

    Attributes:
        interactions: How many.
        units: Units that the rollout met for the first time.
        unsafe: Interactions refused or filtered.
        failures: Interactions that failed by the release's fault.
    """

    interactions: int = 0
    units: int = 0
    unsafe: int = 0
    failures: int = 0

    def add(self, more: Traffic) -> None:
        """Add what comes later."""
        self.interactions += more.interactions
        self.units += more.units
        self.unsafe += more.unsafe
        self.failures += more.failures


class Sums(msgspec.Struct, frozen=True, array_like=True):
    """Sums by bucket of units that a stratum has got, closed.

    Attributes:
        stream: What they are sums of.
        stage: Their stage.
        part: Which stratum inside the stage.
        denominators: Observations by bucket, of stable and of the candidate; packed (``headway.domain.strata``).
        numerators: For each column of the stream the sums of its values, packed likewise.
    """

    stream: str
    stage: int
    part: int
    denominators: bytes
    numerators: list[bytes]


class Histogram(msgspec.Struct, frozen=True, array_like=True):
    """How often an arm of a stage had a time in each log-histogram bin."""

    metric: str
    stage: int
    arm: int
    bins: dict[int, int]


class Closed(msgspec.Struct, frozen=True, array_like=True):
    """All that closes at one tick; a rollout's books follow from these alone.

    Attributes:
        blocks: For the E-processes.
        sums: For the normal mixtures.
        histograms: For display.
        traffic: (stage, arm, what it has met).
        providers: (stage, arm, who answered) that had not been seen before.
        rated: (stage, arm, metric) of which a first rating has come: it is data before its block is complete.
    """

    blocks: list[Block] = []
    sums: list[Sums] = []
    histograms: list[Histogram] = []
    traffic: list[tuple[int, int, Traffic]] = []
    providers: list[tuple[int, int, str]] = []
    rated: list[tuple[int, int, str]] = []

    def __bool__(self) -> bool:
        return any((self.blocks, self.sums, self.histograms, self.traffic, self.providers, self.rated))


class OpenBlocks:
    """The blocks that are still filling, by stream and stage."""

    def __init__(self, rows: dict[tuple[str, int], list[int]]) -> None:
        self.rows = rows

    def add(self, stream: str, stage: int, arm: int, counts: Sequence[int]) -> None:
        """Add an arm's counts, its observations first."""
        width = len(counts)
        row = self.rows.get((stream, stage))
        if row is None:
            row = self.rows[stream, stage] = [0] * (2 * width)
        start = width * arm
        for place, count in enumerate(counts, start):
            row[place] += count

    def close(self) -> list[Block]:
        """Close those that may, in the order of their names and stages."""
        ready = sorted(
            place
            for place, row in self.rows.items()
            if row[0] >= LEAST_STABLE and row[len(row) // 2] >= LEAST_CANDIDATE
        )
        return [Block(*place, self.rows.pop(place)) for place in ready]


def add_counts(total: list[int] | None, counts: Iterable[int]) -> list[int]:
    """Add up the counts of blocks of one stream."""
    return list(counts) if total is None else [one + other for one, other in zip(total, counts, strict=True)]


def deflate(body: bytes) -> bytes:
    """Compress what is large enough to be worth it."""
    return zlib.compress(body, 1) if len(body) > _DEFLATE_BYTES else body


def inflate(body: bytes) -> bytes:
    """Undo ``deflate``."""
    return zlib.decompress(body) if body[:1] == bytes((_ZLIB,)) else body
