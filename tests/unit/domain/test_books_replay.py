"""Books in any order, written and read, and replayed from what has closed."""

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.assessment import Assessment
from headway.domain.books import Books, Intake, Stratum
from headway.domain.evidence import Counts, EventCounts, ExposureKey, ValueCounts, merge
from headway.domain.recording import Terms
from headway.domain.rollout import Status
from tests.ledger_cases import STATUS, STREAMS, closed_blocks, make_counts, make_rule, make_terms, make_values, rate


@st.composite
def claims(draw: st.DrawFn) -> list[Intake]:
    """Ticks of a rollout that runs through two stages."""
    seed = draw(st.integers(0, 2**32))
    chance = random.Random(seed)
    ticks = []
    for number in range(draw(st.integers(1, 12))):
        stages = [1] if number < 4 else [1, 2]
        evidence = {
            ExposureKey(1, stage, chance.choice((0, 3600)), arm): random_counts(chance)
            for stage in stages
            for arm in (0, 1)
        }
        ratings = [
            rating
            for metric, values in (
                ("thumbs_up", (0.0, 1.0)),
                ("stars", (1.0, 2.0, 3.5, 5.0)),
                ("minutes_saved", (2.5, 0.1)),
            )
            for rating in rate(
                metric,
                ([chance.choice(values) for _ in range(chance.randrange(9))],) * 2,
                chance.choice(stages),
                chance.choice((0, 3600)),
            )
        ]
        ticks.append(Intake(evidence, ratings))
    return ticks


def random_counts(chance: random.Random) -> Counts:
    interactions = chance.randrange(400)
    counts = make_counts(interactions, {name: chance.randrange(1 + interactions // 9) for name in STREAMS})
    for name in ("latency_p95:harm", "latency_p95:1.0"):
        slow = chance.randrange(1 + interactions // 9)
        counts.events[name] = EventCounts(slow, interactions, slow, {chance.randrange(256): slow})
    costs = {cell: (count, count * chance.randrange(10**6)) for cell, count in counts.buckets.items()}
    counts.values["cost"] = make_values(costs)
    counts.values["latency"] = ValueCounts(histogram={chance.randrange(300): interactions} if interactions else {})
    return counts


EVERYTHING = (
    make_rule("thumbs_up", 0.05, require="superior"),
    *(make_rule(name, 1.5) for name in STREAMS),
    make_rule("latency_p95", 1.2),
    make_rule("cost", 1.1),
    make_rule("stars", 0.15),
    make_rule("minutes_saved", 0.8),
    make_rule("feedback_rate", 0.8),
)
TWO_STAGES = (Stratum(1, "ramp", 0.05), Stratum(2, "ramp", 0.5))
SECOND = Status("ramp", 1, 2, 0.5, 0, 0)


def everything() -> Terms:
    return make_terms(*EVERYTHING, unit="user", dwell_seconds=60.0)


def run(books: Books, ticks: list[Intake], *, recode: bool = False) -> tuple[Books, list[bytes]]:
    bodies = []
    for number, intake in enumerate(ticks):
        now_ms = number * 1_800_000
        claimed = msgspec.structs.replace(
            intake, responses={key: (key.period % 7, key.stage) for key in books.due(now_ms)}
        )
        body = books.collect(claimed, TWO_STAGES, now_ms)
        bodies += [] if body is None else [body]
        if recode:
            books = Books.decode(everything(), books.encode())
    return books, bodies


def survives_json(assessment: Assessment) -> bool:
    """JSON knows no infinity: it would come back as no data."""
    return msgspec.json.decode(msgspec.json.encode(assessment), type=Assessment) == assessment


@settings(max_examples=25)
@given(claims())
def test_replay_of_the_closed_blocks_gives_the_same_figures_to_the_last_bit(ticks: list[Intake]) -> None:
    books, bodies = run(Books.fresh(everything()), ticks)
    again = Books.replay(everything(), bodies, TWO_STAGES)
    for status in (STATUS, SECOND):
        assert again.assess(status, TWO_STAGES) == books.assess(status, TWO_STAGES)
        assert survives_json(books.assess(status, TWO_STAGES))


@settings(max_examples=25)
@given(claims())
def test_books_written_and_read_at_every_tick_are_the_same_books(ticks: list[Intake]) -> None:
    kept, bodies = run(Books.fresh(everything()), ticks)
    read, other_bodies = run(Books.fresh(everything()), ticks, recode=True)
    assert bodies == other_bodies
    assert kept.encode() == read.encode()
    assert kept.assess(SECOND, TWO_STAGES) == read.assess(SECOND, TWO_STAGES)


@settings(max_examples=25)
@given(claims(), st.randoms(use_true_random=False))
def test_order_inside_a_tick_never_matters(ticks: list[Intake], shuffler: random.Random) -> None:
    def shuffled(intake: Intake) -> Intake:
        keys, ratings = list(intake.evidence), list(intake.ratings)
        shuffler.shuffle(keys)
        shuffler.shuffle(ratings)
        return Intake({key: merge(Counts(), intake.evidence[key]) for key in keys}, ratings)

    one, bodies = run(Books.fresh(everything()), ticks)
    other, other_bodies = run(Books.fresh(everything()), [shuffled(intake) for intake in ticks])
    assert closed_blocks(bodies) == closed_blocks(other_bodies)
    assert one.assess(SECOND, TWO_STAGES, display=False) == other.assess(SECOND, TWO_STAGES, display=False)


@settings(max_examples=25)
@given(claims(), claims())
def test_closed_blocks_are_never_regrouped(ticks: list[Intake], more: list[Intake]) -> None:
    _, bodies = run(Books.fresh(everything()), ticks)
    _, all_bodies = run(Books.fresh(everything()), [*ticks, *more])
    assert all_bodies[: len(bodies)] == bodies
