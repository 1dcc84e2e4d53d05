"""Batches of interactions: each written exactly once, in one transaction with its evidence."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any, LiteralString, NamedTuple

import msgspec
import psycopg
from psycopg import sql

from headway.clock import utc
from headway.domain.evidence import NO_BIN, Counts, ExposureKey, Exposures, UnitKey, UnitState
from headway.domain.interaction import Interaction
from headway.domain.recording import Recording
from headway.errors import HeadwayError, StorageError
from headway.storage.copy_format import COLUMNS, RowEncoder
from headway.storage.database import Connection, Database

_DAY_MS = 86_400_000
# Classes of SQLSTATE that blame the data: exception, integrity, a limit of PostgreSQL exceeded.
_DATA_ERRORS = ("22", "23", "54")
_SPLIT = uuid.UUID("6b2f9f3e-6f5c-4a53-9d0c-8a5f4b1c7d20")

_INSERT_BATCH = (
    "INSERT INTO recorder_batch (worker, sequence, interactions) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING RETURNING 1"
)
_COPY = (
    sql.SQL("COPY interaction ({}) FROM STDIN (FORMAT binary)").format(sql.SQL(", ").join(map(sql.Identifier, COLUMNS)))
).as_bytes()

_QUIET = UnitState(0, 0, 0)  # of a unit that has had no event: nobody asks when and where it was first exposed
_NO_BINS = sql.Literal([NO_BIN] * len(_QUIET.bins))

_READ_RECORDINGS = "SELECT id, terms->'recording' FROM rollout WHERE id = ANY(%s)"
# Units and counts travel as one JSON parameter: far cheaper to write here than arrays.
_GIVEN_UNITS = sql.SQL(
    "(SELECT (u->>0)::int AS rollout, decode(u->>1, 'hex') AS unit, (u->>2)::smallint AS arm, (u->>3)::int AS stage,"
    " to_timestamp((u->>4)::bigint / 1000.0) AS first_at, (u->>5)::int AS events, (u->>6)::smallint[] AS bins"
    " FROM jsonb_array_elements(%s::jsonb) AS u ORDER BY 1, 2) AS given"
)


def _composed(query: LiteralString) -> bytes:
    return sql.SQL(query).format(_GIVEN_UNITS, no_bins=_NO_BINS).as_bytes()


# New units, then all of them, locked in one order: two workers with the same units never wait for each other in a ring.
_INSERT_UNITS = _composed(
    "INSERT INTO unit_state (rollout, unit, arm, stage, first_at, events, latency_bins)"
    " SELECT rollout, unit, arm, stage, first_at, events, coalesce(bins, {no_bins}::smallint[]) FROM {}"
    " ON CONFLICT DO NOTHING RETURNING rollout, unit"
)
# Materialized: the filter must see the rows as they are once they are locked, not as the snapshot has them.
_LOCK_UNITS = _composed(
    "WITH locked AS MATERIALIZED (SELECT s.rollout, s.unit, s.events, s.latency_bins FROM unit_state AS s"
    " JOIN {} USING (rollout, unit) ORDER BY s.rollout, s.unit FOR NO KEY UPDATE OF s)"
    " SELECT rollout, unit, events, latency_bins FROM locked WHERE events <> 0 OR latency_bins <> {no_bins}::smallint[]"
)
# headway.domain.evidence.UnitState.add; what is the same already is not written again.
_ADVANCE_UNITS = _composed(
    "UPDATE unit_state AS s SET events = s.events | given.events, latency_bins = ARRAY["
    " greatest(s.latency_bins[1], given.bins[1]), greatest(s.latency_bins[2], given.bins[2]),"
    " greatest(s.latency_bins[3], given.bins[3]), greatest(s.latency_bins[4], given.bins[4]),"
    " greatest(s.latency_bins[5], given.bins[5]), greatest(s.latency_bins[6], given.bins[6])]"
    " FROM {} WHERE s.rollout = given.rollout AND s.unit = given.unit AND (s.events | given.events <> s.events"
    " OR s.latency_bins[1] < given.bins[1] OR s.latency_bins[2] < given.bins[2]"
    " OR s.latency_bins[3] < given.bins[3] OR s.latency_bins[4] < given.bins[4]"
    " OR s.latency_bins[5] < given.bins[5] OR s.latency_bins[6] < given.bins[6])"
)
_INSERT_EVIDENCE = (
    "INSERT INTO evidence (rollout, stage, period, arm, counts) SELECT (e->>0)::int, (e->>1)::int,"
    " to_timestamp((e->>2)::bigint), (e->>3)::smallint, e->4 FROM jsonb_array_elements(%s::jsonb) AS e"
)
# Last, and sorted: every batch of a key needs its row, and holds it until the commit.
_ADD_USAGE = (
    "INSERT INTO key_usage (key_id, month, requests, cost_usd)"
    " SELECT k.id, (u->>1)::date, (u->>2)::bigint, (u->>3)::float8"
    " FROM jsonb_array_elements(%s::jsonb) AS u JOIN api_key AS k ON k.id = (u->>0)::int ORDER BY 1, 2"
    " ON CONFLICT (key_id, month) DO UPDATE SET requests = key_usage.requests + excluded.requests,"
    " cost_usd = key_usage.cost_usd + excluded.cost_usd"
    " RETURNING key_id, to_char(month, 'YYYY-MM'), requests, cost_usd"
)


class BatchRefusedError(HeadwayError):
    """PostgreSQL refuses a batch because of what is in it; nothing of it was written."""

    code = "batch_refused"


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """Interactions that are written together, once.

    Attributes:
        worker: Instance of the worker that made it.
        sequence: Its number there; the two are its key.
        interactions: At least one.
    """

    worker: uuid.UUID
    sequence: int
    interactions: list[Interaction]

    def split(self) -> tuple[Batch, Batch]:
        """Halve a refused batch; the halves' keys follow from its own, so that a replay finds them again."""
        middle = len(self.interactions) // 2
        first, second = (uuid.uuid5(_SPLIT, f"{self.worker} {half}") for half in ("first", "second"))
        return (
            Batch(first, self.sequence, self.interactions[:middle]),
            Batch(second, self.sequence, self.interactions[middle:]),
        )


class KeyUsage(NamedTuple):
    """What an API key has used in a month, on all workers.

    Attributes:
        key: Number of the key.
        month: ``YYYY-MM``, UTC.
        requests: How many.
        cost_usd: What they cost.
        batch_usd: The part of the cost that this batch brought.
    """

    key: int
    month: str
    requests: int
    cost_usd: float
    batch_usd: float


class BatchWriter:
    """Writes batches: interactions, usage of keys, units and evidence."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._encoder = RowEncoder()
        self._days: set[int] = set()
        self._recordings: dict[int, Recording] = {}

    async def write(self, batch: Batch) -> list[KeyUsage]:
        """Write a batch, unless it has been written before.

        Returns:
            What the keys have used; nothing when the batch had been written before.

        Raises:
            BatchRefusedError: Something in the batch does not fit; nothing of it was written.
            StorageError: The database is away, full, or has another schema. Whether the batch was written may be
                unknown; writing it again is always right.
        """
        try:
            try:
                return await self._write(batch)
            except psycopg.errors.CheckViolation:
                if not self._days:
                    raise
                self._days.clear()  # retention has dropped a day that is known here
                return await self._write(batch)
        except psycopg.Error as error:
            raise _judged(error) from error
        except StorageError as error:
            if isinstance(error.__cause__, psycopg.Error):
                raise _judged(error.__cause__, error) from error
            raise

    async def has_written(self, worker: uuid.UUID, sequence: int) -> bool:
        """Say whether a batch has been written.

        Raises:
            StorageError: The database is away.
        """
        async with self._database.connection() as connection:
            cursor = await connection.execute(
                "SELECT 1 FROM recorder_batch WHERE worker = %s AND sequence = %s", (worker, sequence)
            )
            return await cursor.fetchone() is not None

    async def _write(self, batch: Batch) -> list[KeyUsage]:
        async with self._database.connection() as connection:
            await self._ensure_days(connection, batch.interactions)
            await self._learn_recordings(connection, batch.interactions)
            exposures = Exposures(batch.interactions, self._recordings)
            known = await _begin(connection, batch, exposures.states())
            if known is None:
                return []
            counts = exposures.counts(known)
            rows = self._encoder.encode(batch.interactions)
            async with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                await copy.write(rows)
            return await _finish(connection, counts, batch.interactions)

    async def _ensure_days(self, connection: Connection, interactions: Iterable[Interaction]) -> None:
        """Make the partitions that a batch needs, each in a transaction of its own."""
        days = {int.from_bytes(each.id[:6], "big") // _DAY_MS for each in interactions}
        for day in sorted(days - self._days):
            await connection.execute("SELECT ensure_interaction_partition(%s)", (_date(day),))
            await connection.commit()
            self._days.add(day)

    async def _learn_recordings(self, connection: Connection, interactions: Iterable[Interaction]) -> None:
        """Read how rollouts that are new here are recorded; that is frozen when they start."""
        unknown = {each.rollout for each in interactions if each.rollout and each.rollout not in self._recordings}
        if unknown:
            async for rollout, recording in await connection.execute(_READ_RECORDINGS, (sorted(unknown),)):
                self._recordings[rollout] = msgspec.convert(recording or {}, Recording)


async def _begin(
    connection: Connection, batch: Batch, states: Mapping[UnitKey, UnitState]
) -> dict[UnitKey, UnitState] | None:
    """Insert the batch's key; lock its units and bring them up to date.

    Returns:
        The earlier states of those units that the rollout had met before; None when the batch had been written before.
    """
    key = (batch.worker, batch.sequence, len(batch.interactions))
    if not states:
        inserted = await connection.execute(_INSERT_BATCH, key)
        return {} if await inserted.fetchone() else None
    units = (_units_json(states),)
    changed = {unit: state for unit, state in states.items() if state.events or state.bins != _QUIET.bins}
    async with connection.pipeline():
        inserted = await connection.execute(_INSERT_BATCH, key)
        new = await connection.execute(_INSERT_UNITS, units)
        eventful = await connection.execute(_LOCK_UNITS, units)
        if changed:
            await connection.execute(_ADVANCE_UNITS, (_units_json(changed),))
    if not await inserted.fetchone():
        await connection.rollback()
        return None
    known = dict.fromkeys(states, _QUIET)
    for rollout, unit, events, bins in await eventful.fetchall():
        known[rollout, unit] = UnitState(0, 0, 0, events, tuple(bins))
    for rollout, unit in await new.fetchall():
        del known[rollout, unit]
    return known


async def _finish(
    connection: Connection, counts: Mapping[ExposureKey, Counts], interactions: Iterable[Interaction]
) -> list[KeyUsage]:
    """Write evidence and usage, and commit."""
    spent = _spent(interactions)
    async with connection.pipeline():
        if counts:
            await connection.execute(_INSERT_EVIDENCE, (_evidence_json(counts),))
        usage = await connection.execute(_ADD_USAGE, (_json([(*key, *sums) for key, sums in spent.items()]),))
        await connection.commit()
    return [
        KeyUsage(key, month, requests, cost_usd, spent[key, f"{month}-01"][1])
        for key, month, requests, cost_usd in await usage.fetchall()
    ]


def _spent(interactions: Iterable[Interaction]) -> dict[tuple[int, str], tuple[int, float]]:
    """Add up requests and cost by key and first day of the month."""
    spent: dict[tuple[int, str], tuple[int, float]] = {}
    months: dict[int, str] = {}
    for each in interactions:
        day = int.from_bytes(each.id[:6], "big") // _DAY_MS
        month = months.get(day)
        if month is None:
            month = months[day] = f"{_date(day):%Y-%m}-01"
        requests, cost_usd = spent.get((each.key, month), (0, 0.0))
        spent[each.key, month] = (requests + 1, cost_usd + (each.cost_usd or 0.0))
    return spent


def _units_json(states: Mapping[UnitKey, UnitState]) -> str:
    quiet = _QUIET.bins
    return _json(
        [
            (
                rollout,
                unit.hex(),
                state.arm,
                state.stage,
                state.first_unix_ms,
                state.events,
                None if state.bins == quiet else "{" + ",".join(map(str, state.bins)) + "}",
            )
            for (rollout, unit), state in states.items()
        ]
    )


def _evidence_json(counts: Mapping[ExposureKey, Counts]) -> str:
    return _json([(*key, found) for key, found in counts.items()])


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _date(day: int) -> date:
    return utc(day * _DAY_MS).date()


def _judged(error: psycopg.Error, storage_error: StorageError | None = None) -> HeadwayError:
    """Say whether the batch or the database is at fault."""
    reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
    if (error.sqlstate or "")[:2] in _DATA_ERRORS:
        return BatchRefusedError(f"PostgreSQL refuses the batch: {reason}")
    return storage_error or StorageError(f"the database cannot record: {reason}")
