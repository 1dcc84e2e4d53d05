"""What filters mean in SQL, and which ways a search takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from psycopg.types.json import Jsonb

from headway.domain.filters import parse_filter
from headway.storage.database import Database
from headway.storage.partitions import Figures
from headway.storage.search import (
    Question,
    Reach,
    Scope,
    Searched,
    choose_way,
    measure,
    plan_terms,
    read_searched,
    search,
)
from tests.indexes import Page, publish
from tests.lakes import CountingEmbedder

METADATA: dict[str, dict[str, Any]] = {
    "a.md": {"year": 2023, "tags": ["x", "y"], "draft": True, "day": "2024-05-01"},
    "b.md": {"year": "2023", "tags": "x", "draft": False, "day": "2023-12-31"},
    "c.md": {"year": 2020.5, "tags": [], "draft": 1},
    "d.md": {"year": None, "tags": {"x": 1}, 'say "it\'s"': "50%_\\"},
}
CASES: list[tuple[dict[str, Any], str]] = [
    ({"year": 2023}, "a"),
    ({"year": "2023"}, "b"),
    ({"year": [2023, "2023"]}, "ab"),
    ({"year": {"gte": 2020}}, "ac"),
    ({"year": {"gt": 2020.5}}, "a"),
    ({"year": {"gte": "2020"}}, "b"),
    ({"year": {"not": 2023}}, "bcd"),
    ({"tags": "x"}, "ab"),
    ({"tags": {"not": "y"}}, "bcd"),
    ({"draft": True}, "a"),
    ({"draft": 1}, "c"),
    ({"day": {"gte": "2024-01-01"}}, "a"),
    ({"day": {"prefix": "202"}}, "ab"),
    ({"path": {"prefix": "c"}}, "c"),
    ({"path": {"prefix": "%"}}, ""),
    ({"title": {"lte": "b.md"}}, "ab"),
    ({"unknown": "x"}, ""),
    ({"unknown": {"not": "x"}}, "abcd"),
    ({'say "it\'s"': "50%_\\"}, "d"),
    ({"year": {"gte": 2020, "lt": 2023}, "tags": {"not": "x"}}, "c"),
]
FIGURES = Figures(100_000, 200.0, 0.2, ())


@pytest.fixture
async def searched(database: Database) -> Searched:
    async with database.connection() as connection:
        pages = [Page(path, path, "leave") for path in METADATA]
        version = await publish(connection, "handbook", 1, pages, CountingEmbedder().embed)
        for path, metadata in METADATA.items():
            await connection.execute(
                "WITH changed AS (UPDATE index_document SET metadata = %(metadata)s"
                "  WHERE version_id = %(version)s AND path = %(path)s RETURNING id)"
                " UPDATE index_chunk c SET metadata = %(metadata)s || c.metadata FROM changed"
                " WHERE c.version = %(version)s AND c.document = changed.id",
                {"metadata": Jsonb(metadata), "version": version, "path": path},
            )
        return await read_searched(connection, version)


async def test_a_filter_means_the_same_for_documents_and_chunks(database: Database, searched: Searched) -> None:
    vector = np.ones(searched.dimensions, np.float32)
    async with database.connection() as connection:
        for given, passing in CASES:
            scope = Scope(None, parse_filter(given))
            reach = await measure(connection, searched, scope)
            assert reach.chunks == len(passing), given
            for tried in (reach, Reach(4)):  # documents that passed, and chunks one by one
                for question in (Question("leave", None, 10, 0.0), Question("", vector, 10, 1.0)):
                    found = await search(connection, searched, scope, tried, question)
                    assert "".join(sorted(passage.document[0] for passage in found)) == passing, given


def test_every_chunk_that_passes_is_looked_at_unless_there_are_too_many() -> None:
    assert choose_way(FIGURES, Reach(100_000)) == "graph"
    assert choose_way(FIGURES, Reach(5_000, "{1,2}")) == "listed"
    assert choose_way(FIGURES, Reach(60_000, "{1,2}")) == "graph"
    assert choose_way(Figures(2_000, 200.0, 0.2, ()), Reach(2_000)) == "each"
    assert choose_way(Figures(10_000, 200.0, 0.2, ()), Reach(9_000, "{1}")) == "graph"


def test_rare_words_bring_candidates_and_common_ones_only_with_them() -> None:
    terms = plan_terms([("python", 60_000), ("decorator", 30), ("it's", 400)], FIGURES, FIGURES.chunks)
    assert [(term.word, term.probe) for term in terms] == [
        ("'decorator'", "'decorator'"),
        ("'it''s'", "'it''s'"),
        ("'python'", None),  # all that the rare ones bring is looked at anyway
    ]
    assert terms[0].weight > terms[1].weight > terms[2].weight > 0
    terms = plan_terms([("python", 60_000), ("decorator", 3_000)], FIGURES, FIGURES.chunks)
    assert terms[1].probe == "'python' & ('decorator')"


def test_a_query_of_common_words_goes_by_the_rarest() -> None:
    terms = plan_terms([("python", 60_000), ("use", 80_000), ("way", 70_000)], FIGURES, FIGURES.chunks)
    assert [term.probe for term in terms] == ["'python'", "'way' & ('python')", "'use' & ('python')"]


def test_of_a_long_query_the_rarest_words_count() -> None:
    terms = plan_terms([(f"word{number}", number) for number in range(1, 500)], FIGURES, FIGURES.chunks)
    assert len(terms) == 32
    assert terms[-1].word == "'word32'"
