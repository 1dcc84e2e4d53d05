"""The retriever of tools and pages, put together: the embedded model comes with the first search that needs it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest

from headway.clock import SystemClock
from headway.domain.release import Retrieval
from headway.errors import ConfigurationError, RetrievalError
from headway.retrieval.embedding import StaticEmbedder
from headway.runtime.indexes import open_retriever
from headway.storage.database import Database
from tests.indexes import Page, publish

PAGES = (
    Page("leave.md", "Leave", "Every year you have 25 days of paid holiday."),
    Page("print.md", "Printers", "The printer is on the second floor."),
    Page("pay.md", "Pay", "Holiday pay of the board.", groups=("board",)),
)


@pytest.fixture
async def handbook(database: Database) -> Database:
    async with database.connection() as connection:
        await publish(connection, "handbook", 1, PAGES, StaticEmbedder().embed)
    return database


async def test_it_finds_what_the_groups_may_see_and_says_why(handbook: Database) -> None:
    async with open_retriever(handbook, SystemClock(), seconds=60) as retriever:
        everybody = await retriever.retrieve("How much holiday?", Retrieval("handbook", 1), frozenset())
        board = await retriever.retrieve("How much holiday?", Retrieval("handbook", 1), frozenset(("board",)))
    assert [passage.document for passage in everybody.passages] == ["leave.md", "print.md"]
    assert "pay.md" in [passage.document for passage in board.passages]
    best = everybody.passages[0]
    assert best.vector_rank == best.text_rank == 1
    assert best.similarity is not None
    assert best.coverage is not None


async def test_without_the_extra_a_search_by_meaning_says_what_to_install_and_one_by_words_works(
    handbook: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def find_no_model(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "wordllama" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_no_model)
    async with open_retriever(handbook, SystemClock(), seconds=60) as retriever:
        with pytest.raises(RetrievalError) as failed:
            await retriever.retrieve("How much holiday?", Retrieval("handbook", 1), frozenset())
        worded = await retriever.retrieve("holiday", Retrieval("handbook", 1, hybrid_weight=0), frozenset())
    assert isinstance(failed.value.__cause__, ConfigurationError)
    assert "headway[knowledge]" in failed.value.__cause__.message
    assert [passage.document for passage in worded.passages] == ["leave.md"]


WITHOUT_EXTRA = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"fsspec", "lxml", "markdown_it", "pypdfium2", "wordllama"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import headway.runtime.controlplane, headway.runtime.dataplane, headway.cli.searching
"""


def test_the_planes_and_the_command_are_there_without_the_extra() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_EXTRA], check=True, timeout=60)


async def test_the_embedded_model_is_loaded_by_the_first_search_by_meaning(
    handbook: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = StaticEmbedder.open

    async def note(embedder: StaticEmbedder) -> None:
        loaded.append("model")
        await load(embedder)

    monkeypatch.setattr(StaticEmbedder, "open", note)
    async with open_retriever(handbook, SystemClock(), seconds=60) as retriever:
        await retriever.retrieve("holiday", Retrieval("handbook", 1, hybrid_weight=0), frozenset())
        assert loaded == []
        await retriever.retrieve("holiday", Retrieval("handbook", 1), frozenset())
        assert loaded == ["model"]
