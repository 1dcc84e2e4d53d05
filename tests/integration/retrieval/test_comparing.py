"""Index versions compared by queries: with labels and without, and which documents lost answers came from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from headway.clock import SystemClock
from headway.config.indexes import EmbedderSpec, IndexReference
from headway.domain.knowledge import Found
from headway.domain.release import Retrieval
from headway.errors import NotFoundError, RetrievalError
from headway.retrieval.building import start
from headway.retrieval.comparing import Comparison, QueryLostDocument, Trial, compare_versions
from headway.retrieval.queries import Label, LabelledQuery
from headway.retrieval.retriever import VersionRetriever, Versions
from headway.retrieval.searching import VersionSearch
from headway.runtime.indexes import open_retriever, open_tools
from headway.storage import versions
from headway.storage.database import Database
from headway.storage.versions import Version
from headway.testing.faq import load_faq
from tests.asked import CHANGED, PAGES
from tests.indexes import SPEC, Page, publish
from tests.lakes import CountingEmbedder, specify

WORDS_ONLY = Retrieval("", 0, top_k=2, hybrid_weight=0)
TRAINS = LabelledQuery("how are trains booked?", (Label("travel.md"),))
LEAVE = LabelledQuery("days of leave", (Label("leave.md"),))
LAPTOPS = LabelledQuery("broken laptops", (Label("laptop.md"),))
WAGES = LabelledQuery("wages on the first", (Label("pay.md"),))


class Stand:
    """Two versions, and a comparison of them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.embedder = CountingEmbedder()
        self.retriever = VersionRetriever(
            database, Versions(lambda _: self.embedder), VersionSearch(), SystemClock(), seconds=30
        )

    async def publish(self, index: str, number: int, pages: Sequence[Page], **changes: object) -> None:
        async with self.database.connection() as connection:
            await publish(connection, index, number, pages, self.embedder.embed, **changes)  # type: ignore[arg-type]

    async def find(self, label: str) -> Version:
        index, _, number = label.partition("@")
        async with self.database.connection() as connection:
            return await versions.find_version(connection, IndexReference(index, int(number)))

    async def compare(
        self,
        *queries: LabelledQuery,
        after: str = "handbook@2",
        retrieval: Retrieval = WORDS_ONLY,
        groups: frozenset[str] | None = None,
    ) -> Comparison:
        trial = Trial(await self.find("handbook@1"), await self.find(after), retrieval, groups)
        return await compare_versions(self.database, self.retriever, trial, queries)


@pytest.fixture
async def stand(database: Database) -> AsyncIterator[Stand]:
    made = Stand(database)
    await made.publish("handbook", 1, PAGES)
    await made.publish("handbook", 2, CHANGED)
    yield made
    await made.retriever.close()


async def test_with_labels_it_is_told_which_version_answers_better(stand: Stand) -> None:
    found = await stand.compare(TRAINS, LEAVE, LAPTOPS, WAGES, *[LEAVE] * 16)
    assert (found.before, found.after, found.queries, found.labelled) == ("handbook@1", "handbook@2", 20, 20)
    assert found.relevance is not None
    recall = found.relevance.recall
    assert (recall.before.mean, recall.after.mean) == (1.0, 0.95)
    assert recall.difference.mean == pytest.approx(-0.05)
    assert (recall.better, recall.worse, recall.equal) == (0, 1, 19)
    assert recall.difference.lower < -0.05 < recall.difference.upper
    assert recall.difference.queries == 20
    assert found.relevance.reciprocal_rank.before.mean == found.relevance.ndcg.before.mean == 1.0
    assert (found.lost.queries, found.lost.removed, found.lost.changed) == (1, 1, 0)
    assert found.lost.documents == (QueryLostDocument("travel.md", "Travel", "removed", 1, (TRAINS.text,)),)
    assert found.unknown_labels == ()


async def test_without_labels_it_is_told_how_far_both_agree(stand: Stand) -> None:
    texts = ("how are trains booked?", "twenty five leave", "broken laptops", "wages on the first")
    found = await stand.compare(*[LabelledQuery(text) for text in texts])
    assert found.relevance is None
    assert found.labelled == 0
    assert found.documents is not None
    assert found.passages is not None
    assert found.documents.overlap.mean == 0.75, "laptop.md has moved, pay.md has changed: both are found again"
    assert found.passages.overlap.mean == 0.5, "what pay.md says is not the same"
    assert found.documents.churn is not None
    assert found.documents.churn.mean == 0.25
    assert found.identical == 2
    assert (found.empty.before, found.empty.after, found.empty.newly) == (0, 1, 1)
    assert found.empty.examples == ("how are trains booked?",)
    assert found.best_score is not None
    assert found.best_score.difference.queries == 3, "of those that find something in both"
    assert [lost.document for lost in found.lost.documents] == ["travel.md"]


async def test_why_a_document_is_lost(stand: Stand) -> None:
    pages = (
        Page("leave.md", "Leave", "Nothing is said any more."),
        Page("new.md", "Trains", "Trains trains trains: booked through the travel office."),
        *PAGES[2:],
    )
    await stand.publish("handbook", 3, pages)
    one = Retrieval("", 0, top_k=1, hybrid_weight=0)
    queries = [LabelledQuery("twenty five"), LabelledQuery("wages at the bank")]
    queries += [LabelledQuery("trains are booked"), LabelledQuery("are trains booked?")]
    found = await stand.compare(*queries, after="handbook@3", retrieval=one)
    assert [(lost.document, lost.state, lost.queries) for lost in found.lost.documents] == [
        ("pay.md", "removed", 1),
        ("leave.md", "changed", 1),
        ("travel.md", "outranked", 2),
    ]
    assert found.lost.documents[2].examples == ("trains are booked", "are trains booked?")
    counts = (found.lost.queries, found.lost.removed, found.lost.changed, found.lost.outranked, found.lost.unknown)
    assert counts == (4, 1, 1, 1, 0)


async def test_labels_of_sections_and_chunks(stand: Stand) -> None:
    text = "## Trains\n\nTrains are booked.\n\n## Planes\n\nPlanes are not."
    await stand.publish("travels", 1, [Page("all.md", "Going places", text)])
    both = (Label("all.md", "planes"), Label("all.md", "Going places"))
    queries = [
        LabelledQuery("trains booked", both),
        LabelledQuery("trains booked", (Label("all.md", "Ships"),)),
        LabelledQuery("trains booked", (Label("all.md", position=0),)),
        LabelledQuery("trains booked", (Label("all.md", position=1), Label("all.md"))),
    ]
    trial = Trial(await stand.find("travels@1"), await stand.find("travels@1"), WORDS_ONLY)
    for query, wanted in zip(queries, (1.0, 0.0, 1.0, 0.5), strict=True):
        found = await compare_versions(stand.database, stand.retriever, trial, [query])
        assert found.relevance is not None
        assert found.relevance.recall.after.mean == wanted, query
        assert found.identical == 1


async def test_the_better_answer_counts_for_more(stand: Stand) -> None:
    query = LabelledQuery("days leave trains trains", (Label("leave.md", grade=3), Label("travel.md")))
    found = await stand.compare(query)
    assert found.relevance is not None
    before, after = found.relevance.ndcg.before.mean, found.relevance.ndcg.after.mean
    assert after == pytest.approx(3 / (3 + 1 / 1.584962500721156))
    assert before > after


async def test_misspelt_labels_are_told(stand: Stand) -> None:
    queries = [
        LabelledQuery("trains", (Label("travel.md"), Label("travels.md"))),
        LabelledQuery("laptops", (Label("moved/laptop.md"),)),
    ]
    found = await stand.compare(*queries)
    assert found.unknown_labels == ("travels.md",)
    assert (await stand.compare(LabelledQuery("x", (Label("y.md"),)))).unknown_labels == ("y.md",)


async def test_labelled_documents_are_found_unless_groups_are_given(stand: Stand) -> None:
    query = LabelledQuery("salary bands", (Label("salary/bands.md"),))
    for groups, wanted in ((None, 1.0), (frozenset({"hr"}), 1.0), (frozenset({"it"}), 0.0), (frozenset(), 0.0)):
        found = await stand.compare(query, groups=groups)
        assert found.relevance is not None
        assert found.relevance.recall.before.mean == wanted, groups
        assert found.groups == (None if groups is None else tuple(groups))


async def test_a_document_for_fewer_callers_has_changed(stand: Stand) -> None:
    await stand.publish("handbook", 3, [Page("leave.md", "Leave", PAGES[0].text, groups=("hr",)), *PAGES[1:]])
    found = await stand.compare(LEAVE, after="handbook@3", groups=frozenset())
    assert [(lost.document, lost.state) for lost in found.lost.documents] == [("leave.md", "changed")]


async def test_no_queries_are_no_figures(stand: Stand) -> None:
    found = await stand.compare()
    assert found.queries == 0
    assert (found.relevance, found.documents, found.passages, found.best_score) == (None, None, None, None)
    found = await stand.compare(LabelledQuery("zebras"))
    assert found.documents is not None
    assert (found.documents.overlap.mean, found.documents.churn) == (1.0, None)
    assert found.best_score is None
    assert found.identical == 1


async def test_scores_of_other_embedders_are_not_compared(stand: Stand) -> None:
    index = type(SPEC.index)(SPEC.index.lake, embedder=EmbedderSpec("other"))
    await stand.publish("other", 1, PAGES, spec=type(SPEC)(index))
    meaning = Retrieval("", 0, hybrid_weight=0.5)
    assert (await stand.compare(LEAVE, after="other@1", retrieval=meaning)).best_score is None
    assert (await stand.compare(LEAVE, after="other@1")).best_score is not None, "by words alone they mean the same"
    assert (await stand.compare(LEAVE, retrieval=meaning)).best_score is not None


async def test_another_index_may_have_the_documents_elsewhere(stand: Stand) -> None:
    await stand.publish("archive", 7, [Page(f"docs/{page.path}", page.title, page.text) for page in PAGES[:4]])
    found = await stand.compare(TRAINS, LEAVE, LAPTOPS, WAGES, after="archive@7")
    assert found.relevance is not None
    assert found.relevance.recall.after.mean == 1.0
    assert found.identical == 4


async def test_only_published_versions_are_compared(stand: Stand) -> None:
    async with stand.database.connection() as connection:
        await versions.drop(connection, await stand.find("handbook@1"), author="ann")
    with pytest.raises(NotFoundError, match="handbook@1 was dropped: only published versions can be searched"):
        await stand.compare(LEAVE)


async def test_of_real_questions_the_removed_answers_are_named(database: Database, tmp_path: Path) -> None:
    faq = load_faq()
    some = faq.questions[::12]
    gone = {question.path for question in some[::4]}
    others = {question.path for question in faq.questions} - {question.path for question in some}
    faq.write_answers(tmp_path, without=others)
    async with open_tools(database, SystemClock()) as tools:
        spec = specify(tmp_path)
        await start(tools, "faq", spec, author="ann", tell=lambda _: None)
        for path in gone:
            (tmp_path / path).unlink()
        await start(tools, "faq", spec, author="ann", tell=lambda _: None)
    queries = [LabelledQuery(question.text, (Label(question.path),)) for question in some]
    async with database.connection() as connection:
        before, after = [await versions.find_version(connection, IndexReference("faq", number)) for number in (1, 2)]
    async with open_retriever(database, SystemClock(), seconds=60) as retriever:
        found = await compare_versions(database, retriever, Trial(before, after, Retrieval("", 0, top_k=10)), queries)
    assert found.relevance is not None
    recall = found.relevance.recall
    assert recall.difference.upper < 0 < recall.after.mean
    assert recall.worse >= 0.8 * len(gone), "most were found before"
    removed = {lost.document for lost in found.lost.documents if lost.state == "removed"}
    assert removed <= gone
    assert len(removed) == found.lost.removed == recall.worse


class Unlucky:
    """A retriever whose searches fail so many times."""

    def __init__(self, retriever: VersionRetriever, failures: int, retry_after_seconds: int | None) -> None:
        self.retriever, self.failures, self.retry_after_seconds = retriever, failures, retry_after_seconds

    async def retrieve(self, query: str, retrieval: Retrieval, groups: frozenset[str]) -> Found:
        self.failures -= 1
        if self.failures >= 0:
            raise RetrievalError("too slow", retry_after_seconds=self.retry_after_seconds)
        return await self.retriever.retrieve(query, retrieval, groups)


@pytest.mark.parametrize(("failures", "retry_after_seconds", "comes"), [(1, 1, True), (2, 1, False), (1, None, False)])
async def test_a_search_is_tried_twice(
    stand: Stand, failures: int, retry_after_seconds: int | None, comes: bool
) -> None:
    trial = Trial(await stand.find("handbook@1"), await stand.find("handbook@2"), WORDS_ONLY)
    retriever = Unlucky(stand.retriever, failures, retry_after_seconds)
    told: list[int] = []
    work = compare_versions(stand.database, retriever, trial, [LEAVE, LEAVE], places=1, tell=told.append)
    if comes:
        assert (await work).queries == 2
        assert told == [1, 2]
    else:
        with pytest.raises(RetrievalError, match="too slow"):
            await work
