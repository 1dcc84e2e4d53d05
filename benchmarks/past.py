"""A rollout with a long past: a hundred million interactions in its books, their evidence claimed, ratings settled."""

from __future__ import annotations

import hashlib
import random
import secrets
from functools import reduce
from pathlib import Path

import msgspec
from msgspec.structs import replace

from headway.clock import ManualClock, utc
from headway.config.load import load
from headway.domain.books import Books, Intake, Rating
from headway.domain.evidence import Counts, ExposureKey, fold, merge
from headway.domain.interaction import Interaction
from headway.domain.recording import Baseline, MetricBaseline, Terms, plan_recording
from headway.domain.rollout import begin
from headway.ids import Arm, Kind, uuid7
from headway.storage import configuration, routing
from headway.storage.applications import find_application, list_releases
from headway.storage.database import Connection, Database
from headway.storage.rollouts import Opening, list_strata, open_staged

PER_SECOND = 500
TICK_SECONDS = 5
WORKERS = 4
BATCHES_PER_SECOND = 5
RATED = 0.05
"""Part of the interactions that are rated."""

_FILE = """\
deployments:
  main:
    provider: openai
    base_url: http://127.0.0.1:9/v1
    model: large
    usd_per_million_tokens: {input: 0.15, output: 0.6}
applications:
  support:
    policy: careful
    release: {deployment: main, prompt: prompt.j2}
policies:
  careful:
    stages: [1%, 5%, 25%, {share: 50%, approve: true}, 100%]
    goal: {metric: thumbs_up, margin: 5pp}
    guardrails:
      - {metric: error_rate, ratio: 1.5}
      - {metric: latency_p95, ratio: 1.15}
      - {metric: cost, ratio: 1.10}
"""
"""With the two guardrails that every policy has, six metrics."""

STAGE, SHARE = 3, 0.25
_PARTS = 40  # of the past; each closes its blocks
_MULTIPLE = 1024  # ticks in each, of 2,500 interactions
_TICKS = _PARTS * _MULTIPLE

_RATINGS = """
    WITH made AS (
        SELECT gen_random_uuid() AS id, n, decode(md5(%(salt)s || n), 'hex') AS unit, (n %% 4 = 0)::int AS arm
        FROM generate_series(1, %(count)s) AS n
    ), given AS (
        INSERT INTO feedback (id, at, target, target_id, application, release, rollout, stage, arm, kind, unit,
                              exposed_at, metric, number, source, author, key)
        SELECT id, %(at)s::timestamptz - interval '2 minutes', 'interaction', id::text, 1, 1 + arm, %(rollout)s,
               %(stage)s, arm, 1, unit, %(at)s, 'thumbs_up', (n %% 10 < 7)::int, 'end_user', 'u', 1 FROM made
    )
    INSERT INTO rating (rollout, metric, unit, feedback, stage, period, arm, settles_at, tick)
    SELECT %(rollout)s, 'thumbs_up', unit, id, %(stage)s, date_trunc('hour', %(at)s::timestamptz), arm,
           %(at)s::timestamptz - interval '1 minute', %(tick)s FROM made"""
_INTERACTIONS = """
    INSERT INTO interaction (at, id, application, release, rollout, stage, arm, kind, unit, own_unit, key, conversation,
        operation, stream, status, release_error, aborted, refused, filtered, deployment, attempts, attempt_errors,
        fallback, total_ms, overhead_ms, queue_ms, request, answer)
    SELECT greatest(%(now)s::timestamptz - n * interval '2 milliseconds', date_trunc('day', %(now)s::timestamptz)),
           gen_random_uuid(), 1, 1 + (n %% 4 = 0)::int, %(rollout)s, 3, (n %% 4 = 0)::int, 1,
           decode(md5((n / 3)::text), 'hex'), false, 1, 'c', 'chat', true, 200, false, false, false, false, 'main',
           1, 0, false, 900, 1, 0, repeat('x', 600), repeat('y', 1000)
    FROM generate_series(1, %(rows)s) AS n"""


def interactions(count: int, unix_ms: int, rollout: int, seed: int) -> list[Interaction]:
    """Draw interactions of units that come some times each, as a gateway would record them."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        name = f"{seed}:{number % 8}"
        arm = Arm.CANDIDATE if number % 4 == 0 else Arm.STABLE  # exactly: what is multiplied has no luck
        failed = chance.random() < 0.005
        total_ms = chance.lognormvariate(6.5, 0.6)
        found.append(
            Interaction(
                id=uuid7(unix_ms),
                application=1,
                release=1 + arm,
                rollout=rollout,
                stage=STAGE,
                arm=arm,
                kind=Kind.RANDOMISED,
                unit=hashlib.blake2b(name.encode(), digest_size=8).digest(),
                own_unit=False,
                key=1,
                conversation=name,
                user=None,
                operation="chat",
                stream=True,
                status=502 if failed else 200,
                error="provider_error" if failed else None,
                release_error=failed,
                deployment="main",
                attempts=1,
                attempt_errors=int(failed),
                provider_model="large",
                input_tokens=chance.randrange(50, 2000),
                output_tokens=chance.randrange(20, 600),
                cost_usd=chance.lognormvariate(-8, 0.6),
                first_token_ms=total_ms / 4,
                total_ms=total_ms,
            )
        )
    return found


def evidence_of_a_tick(terms: Terms, unix_ms: int, rollout: int, seed: int) -> list[tuple[ExposureKey, Counts]]:
    """Give the rows that the workers of a gateway write in one tick."""
    rows: list[tuple[ExposureKey, Counts]] = []
    batches = WORKERS * BATCHES_PER_SECOND * TICK_SECONDS
    for batch in range(batches):
        drawn = interactions(PER_SECOND * TICK_SECONDS // batches, unix_ms, rollout, seed * 1000 + batch)
        rows += fold(drawn, {}, {rollout: terms.recording})[0].items()
    return rows


async def begin_rollout(database: Database, folder: Path, clock: ManualClock) -> tuple[int, Terms]:
    """Apply a file, and begin a rollout under its policy, two stages up; give its number and terms."""
    (folder / "headway.yaml").write_text(_FILE)
    file = None
    for prompt in ("Be brief.", "Be kind."):
        (folder / "prompt.j2").write_text(prompt)
        file = load(folder / "headway.yaml")
        async with database.connection() as connection:
            await configuration.apply(connection, file, author="bench")
    assert file is not None
    policy = file.specification.policies["careful"]
    feedback = {"thumbs_up": file.specification.applications["support"].metrics["thumbs_up"]}
    baseline = _baseline()
    terms = Terms(policy, "conversation", feedback, baseline, plan_recording(policy, baseline))
    status = replace(begin(terms, clock.unix_ms()), step=STAGE - 1, stage=STAGE, share=SHARE)
    async with database.connection() as connection:
        application = await find_application(connection, "support", lock=True)
        candidate = next(each for each in await list_releases(connection, "support") if each.role != "stable")
        opening = Opening(terms, status, restarts=0, author="bench", reason="", now_ms=clock.unix_ms())
        rollout = await open_staged(connection, application, candidate, opening, secrets.token_bytes(16))
        await connection.execute(
            "INSERT INTO rollout_stage (rollout_id, stage, share, author, reason)"
            " SELECT %s, stage, %s, 'bench', '' FROM generate_series(1, %s) AS stage",
            (rollout.number, SHARE, STAGE - 1),
        )
        await routing.publish(connection)
    return rollout.number, terms


def _baseline() -> Baseline:
    events = ("error_rate", "attempt_error_rate", "fallback_rate")
    known = {name: MetricBaseline(10_000, 0.005, unit_variance=0.01, bucket_interactions=1e4) for name in events}
    known["thumbs_up"] = MetricBaseline(1_000, 0.7)
    known["latency_p95"] = MetricBaseline(10_000, 1_800.0, unit_variance=0.05, bucket_interactions=1e4)
    known["cost"] = MetricBaseline(10_000, 0.0004, limit=0.003, unit_variance=1e-7, bucket_interactions=1e4)
    return Baseline(10_000, known)


async def write_past(database: Database, rollout: int, terms: Terms, now_ms: int, rows: int) -> int:
    """Fill a rollout's books and tables as if it had run for more than two days at 500 requests/s.

    Args:
        database: Migrated; the rollout has begun.
        rollout: Its number.
        terms: Its terms.
        now_ms: Unix milliseconds.
        rows: Claimed rows of evidence, and settled ratings with their feedback, of real size. A tick reads none of
            them; there would be eight and five millions.

    Returns:
        How many interactions the books have counted.
    """
    sample = evidence_of_a_tick(terms, now_ms, rollout, seed=1)
    async with database.connection() as connection:
        strata = await list_strata(connection, rollout)
    books, block, counted = Books.fresh(terms), b"", 0
    for part in range(_PARTS):
        stage = min(STAGE, 1 + part * STAGE // _PARTS)
        at_ms = now_ms - (_PARTS - part) * 3_600_000
        evidence: dict[ExposureKey, Counts] = {}
        for arm in (0, 1):
            counts = reduce(merge, [counts for key, counts in sample if key.arm == arm])
            evidence[ExposureKey(rollout, stage, at_ms // 3_600_000 * 3600, arm)] = _times(counts, _MULTIPLE)
        counted += sum(each.interactions for each in evidence.values())
        closed = books.collect(Intake(evidence=evidence, ratings=_ratings(stage, at_ms, part)), strata, at_ms)
        block = closed or block
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE rollout SET books = %s, tick = %s WHERE id = %s", (books.encode(), _TICKS, rollout)
        )
        await connection.execute(
            "INSERT INTO block (rollout_id, tick, at, body)"
            " SELECT %s, tick, now(), %s FROM generate_series(1, %s) AS tick",
            (rollout, block, _TICKS),
        )
        for key, counts in sample[:2]:
            await connection.execute(
                "INSERT INTO evidence (rollout, stage, period, arm, counts, tick)"
                " SELECT %s, 1, to_timestamp(%s), %s, %s, 1 FROM generate_series(1, %s)",
                (rollout, key.period, key.arm, msgspec.json.encode(counts).decode(), rows // 2),
            )
        await _add_ratings(connection, rollout, now_ms - 3_600_000, rows, tick=1)
        await connection.execute("SELECT ensure_interaction_partition(%s)", (utc(now_ms).date(),))
        await connection.execute(_INTERACTIONS, {"rollout": rollout, "now": utc(now_ms), "rows": rows})
    async with database.connection() as connection:
        await connection.set_autocommit(True)
        await connection.execute("VACUUM ANALYZE")
        await connection.set_autocommit(False)
    return counted


async def write_tick(database: Database, rollout: int, terms: Terms, now_ms: int, seed: int) -> None:
    """Write what arrives in one tick: evidence of four workers, and ratings that have settled."""
    rows = [(*key, counts) for key, counts in evidence_of_a_tick(terms, now_ms, rollout, seed)]
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO evidence (rollout, stage, period, arm, counts) SELECT (e->>0)::int, (e->>1)::int,"
            " to_timestamp((e->>2)::bigint), (e->>3)::smallint, e->4 FROM jsonb_array_elements(%s::jsonb) AS e",
            (msgspec.json.encode(rows).decode(),),
        )
        await _add_ratings(connection, rollout, now_ms, int(PER_SECOND * TICK_SECONDS * RATED), tick=None)


async def _add_ratings(connection: Connection, rollout: int, now_ms: int, count: int, *, tick: int | None) -> None:
    given = {"rollout": rollout, "stage": STAGE, "at": utc(now_ms), "count": count, "tick": tick}
    await connection.execute(_RATINGS, {**given, "salt": secrets.token_hex(8)})


def _ratings(stage: int, at_ms: int, seed: int) -> list[Rating]:
    chance = random.Random(seed)
    period = at_ms // 3_600_000 * 3600
    return [
        Rating("thumbs_up", float(chance.random() < 0.7), chance.randbytes(8), stage, period, number % 4 == 0)
        for number in range(2_000)
    ]


def _times(counts: Counts, multiple: int) -> Counts:
    """Give what this many equal ticks add up to."""
    return reduce(lambda sum_, _: merge(sum_, sum_), range(multiple.bit_length() - 1), counts)
