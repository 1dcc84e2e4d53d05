"""Words of a query in texts: as full-text search sees them, and in the text as it is."""

from __future__ import annotations

import pytest

from headway.storage.database import Database
from headway.storage.marking import mark


async def marked(database: Database, query: str, *texts: str, language: str = "english") -> list[list[str]]:
    async with database.connection() as connection:
        found = await mark(connection, language, query, texts)
    assert [each.text for each in found] == list(texts)
    return [[piece for piece, is_marked in each.pieces if is_marked] for each in found]


async def test_words_are_marked_whatever_their_ending_and_stop_words_are_not(database: Database) -> None:
    assert await marked(
        database, "How many holidays are there?", "A holiday there is, HOLIDAYS are many.", "Nothing of it."
    ) == [["holiday", "HOLIDAYS", "many"], []]
    assert await marked(database, "Tage", "Jeder Tag zählt.", language="german") == [["Tag"]]


async def test_paths_and_options_are_taken_apart_as_search_does(database: Database) -> None:
    assert await marked(database, "join --dry-run", "See os.path.join and --dry_run.") == [["join", "dry", "run"]]


@pytest.mark.parametrize(
    "text", ["<b>leave</b> &amp; <script>leave", "a\ue000 leave \ue001", "leave\0\ud800", "\N{PILE OF POO} leave"]
)
async def test_what_looks_like_markup_stays_and_shifts_no_mark(database: Database, text: str) -> None:
    assert await marked(database, "leave", text) == [["leave"] * text.count("leave")]


async def test_a_word_too_long_for_the_index_costs_the_marks_and_not_the_text(database: Database) -> None:
    assert await marked(database, "leave", "x" * 5000 + " leave", "A leave.") == [[], ["leave"]]


@pytest.mark.parametrize("query", ["", "the of", "'\\", "a & ! | <-> b:*", "x\0\ud800", "''''"])
async def test_no_query_is_wrong(database: Database, query: str) -> None:
    assert await marked(database, query, "'quoted' \\ text") == [[]]
    assert await marked(database, query) == []
