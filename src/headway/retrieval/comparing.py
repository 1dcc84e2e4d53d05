"""Compares two index versions by queries, before any caller meets the second one.

Each query is searched for in both versions, as a release would. Where it is known what answers a query, that gives
recall, MRR and nDCG of either version; where not, how far the two agree. What the first version found and the second
does not is told by document: was it removed, has it changed, or does something else stand before it?

A document that only has another path now, with the same content, is the same document.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec

from headway.domain.knowledge import Found, Passage
from headway.domain.protocols import Retriever
from headway.domain.release import Retrieval
from headway.domain.relevance import (
    Mean,
    Paired,
    churn,
    compare,
    estimate,
    ndcg,
    overlap,
    rank_biased_overlap,
    recall,
    reciprocal_rank,
)
from headway.errors import RetrievalError
from headway.retrieval.inspection import explain, require_searchable
from headway.retrieval.queries import Label, LabelledQuery
from headway.retrieval.tasks import do_all
from headway.storage import differences
from headway.storage.database import Database
from headway.storage.differences import Counterparts
from headway.storage.versions import Version

PLACES = 4
"""Searches at a time."""
TOP_K = 10
"""Passages of a search, where nothing else is said."""
_EXAMPLES = 3
_SHOWN_DOCUMENTS = 100

QueryLossState = Literal["removed", "changed", "outranked", "unknown"]


@dataclass(frozen=True)
class Trial:
    """How two versions are compared.

    Attributes:
        before: The version in use.
        after: The version that may follow it.
        retrieval: How both are searched; its index version does not matter.
        groups: Whose labelled documents are found, beside those that everybody sees; None for all documents.
    """

    before: Version
    after: Version
    retrieval: Retrieval
    groups: frozenset[str] | None = None


class Relevance(msgspec.Struct, frozen=True):
    """How well the queries with labels are answered.

    Attributes:
        recall: Part of what answers a query that is found.
        reciprocal_rank: 1 / the place of the first passage that answers; its mean is MRR.
        ndcg: Normalised discounted cumulative gain.
    """

    recall: Paired
    reciprocal_rank: Paired
    ndcg: Paired


class Agreement(msgspec.Struct, frozen=True):
    """How far the two versions find the same.

    Attributes:
        overlap: What both find, as a part of what either finds.
        rank_overlap: The same with early places counting more: rank-biased overlap.
        churn: Part of what the version before finds that the version after does not; of queries that found something.
    """

    overlap: Mean
    rank_overlap: Mean
    churn: Mean | None


class Emptiness(msgspec.Struct, frozen=True):
    """Queries that find nothing.

    Attributes:
        before: In the version before.
        after: In the version after.
        newly: In the version after only.
        examples: Some of the last.
    """

    before: int
    after: int
    newly: int
    examples: tuple[str, ...]


class QueryLostDocument(msgspec.Struct, frozen=True):
    """A document that the version before finds and the version after does not.

    Attributes:
        document: Its path in the version before.
        title: Its title there.
        state: `removed`: it is not in the version after. `changed`: it is, with other content or for other groups.
            `outranked`: it is, as it was. `unknown`: what is in a version is not known.
        queries: For how many queries: of those with labels, where it is an answer; of others, where it was found.
        examples: Some of them.
    """

    document: str
    title: str
    state: QueryLossState
    queries: int
    examples: tuple[str, ...]


class QueryLosses(msgspec.Struct, frozen=True):
    """What is found no longer.

    Attributes:
        queries: How many lose a document.
        removed: How many documents of those that are lost were removed.
        changed: How many have changed.
        outranked: How many are there as they were.
        unknown: Of how many that is not known.
        documents: The documents that most queries lose, removed ones first, then changed ones.
    """

    queries: int
    removed: int
    changed: int
    outranked: int
    unknown: int
    documents: tuple[QueryLostDocument, ...]


class Comparison(msgspec.Struct, frozen=True):
    """Two index versions, compared by queries.

    Attributes:
        before: The version in use, as `handbook@3`.
        after: The version that may follow it.
        top_k: Most passages of a search.
        hybrid_weight: What meaning counts against words, 0 to 1.
        minimum_score: Passages with a lower score are left out.
        groups: Whose labelled documents were found, beside those that everybody sees; null for all documents.
        queries: How many were searched for.
        labelled: Of them, how many say what answers them.
        identical: How many find the same passages in the same order.
        relevance: How well queries with labels are answered; null without any.
        documents: How far the same documents are found; null without queries.
        passages: How far the same passages are found: the same text of the same document; null without queries.
        empty: Queries that find nothing.
        best_score: Score of the best passage, of queries that find something in both; null where there is none, or the
            versions' scores mean different things because different models made their vectors.
        lost: What is found no longer.
        unknown_labels: Documents that labels name and neither version has: are they misspelt?
    """

    before: str
    after: str
    top_k: int
    hybrid_weight: float
    minimum_score: float
    groups: tuple[str, ...] | None
    queries: int
    labelled: int
    identical: int
    relevance: Relevance | None
    documents: Agreement | None
    passages: Agreement | None
    empty: Emptiness
    best_score: Paired | None
    lost: QueryLosses
    unknown_labels: tuple[str, ...]


class _Hits(NamedTuple):
    """What a search found, a value for each passage: its document, its text's digest, the labels that it satisfies."""

    documents: tuple[str, ...]
    passages: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]
    score: float | None


class _Pair(NamedTuple):
    query: LabelledQuery
    before: _Hits
    after: _Hits


async def compare_versions(
    database: Database,
    retriever: Retriever,
    trial: Trial,
    queries: Sequence[LabelledQuery],
    *,
    places: int = PLACES,
    tell: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Compare two index versions by queries.

    Args:
        database: What the versions hold is there.
        retriever: Searches them.
        trial: Which versions, and how they are searched.
        queries: What to search for; with none every figure is None or a count of 0.
        places: Searches at a time.
        tell: Is told how many queries are done.

    Raises:
        HeadwayError: A version cannot be searched.
    """
    for version in (trial.before, trial.after):
        require_searchable(version)
    async with database.connection() as connection:
        counterparts = await differences.find_counterparts(connection, trial.before, trial.after)
        groups = trial.groups
        if groups is None:
            groups = await differences.list_groups(connection, [trial.before, trial.after])
    search = _Search(retriever, trial.retrieval, groups, counterparts)
    pairs = await _search_all(search, trial, queries, places, tell)
    lost = _list_lost(pairs, counterparts)
    named = {counterparts.name(label.document) for query in queries for label in query.relevant}
    async with database.connection() as connection:
        states = await differences.read_states(connection, trial.before, trial.after, counterparts, lost.keys() | named)
    losses = _tell_losses(pairs, lost, states or {})
    unknown = () if states is None else sorted(named - states.keys())
    return await asyncio.to_thread(_conclude, trial, pairs, losses, unknown)  # it takes seconds of arithmetic


@dataclass(frozen=True)
class _Search:
    retriever: Retriever
    retrieval: Retrieval
    groups: frozenset[str]
    counterparts: Counterparts

    async def __call__(self, version: Version, query: LabelledQuery) -> _Hits:
        wanted = msgspec.structs.replace(self.retrieval, index=version.index, version=version.number)
        found = await self._find(query.text, wanted)
        documents = [self.counterparts.name(passage.document) for passage in found.passages]
        # The best answer first: a passage that satisfies several labels stands for that one.
        labels = [(label, self.counterparts.name(label.document)) for label in query.relevant]
        return _Hits(
            tuple(documents),
            tuple(_digest(*each) for each in zip(documents, found.passages, strict=True)),
            tuple(
                tuple(
                    number
                    for number, (label, wanted_document) in enumerate(labels)
                    if wanted_document == document and _satisfies(label, passage)
                )
                for document, passage in zip(documents, found.passages, strict=True)
            ),
            found.passages[0].score if found.passages else None,
        )

    async def _find(self, text: str, wanted: Retrieval) -> Found:
        """Search, and once more if it did not come to an end: among thousands of searches one may be unlucky."""
        try:
            try:
                return await self.retriever.retrieve(text, wanted, self.groups)
            except RetrievalError as error:
                if error.retry_after_seconds is None:
                    raise
                return await self.retriever.retrieve(text, wanted, self.groups)
        except RetrievalError as error:
            raise explain(error) from error


async def _search_all(
    search: _Search, trial: Trial, queries: Sequence[LabelledQuery], places: int, tell: Callable[[int], None]
) -> list[_Pair]:
    pairs: list[_Pair | None] = [None] * len(queries)
    waiting = iter(enumerate(queries))
    done = 0

    async def work() -> None:
        nonlocal done
        for number, query in waiting:
            pairs[number] = _Pair(query, await search(trial.before, query), await search(trial.after, query))
            done += 1
            tell(done)

    await do_all(work() for _ in range(places))
    return [pair for pair in pairs if pair is not None]


def _digest(document: str, passage: Passage) -> str:
    return hashlib.blake2b(f"{document}\n{passage.text}".encode("utf-8", "replace"), digest_size=8).hexdigest()


def _satisfies(label: Label, passage: Passage) -> bool:
    """Say whether a passage of the label's document is what the label means."""
    if label.position is not None and passage.position != label.position:
        return False
    if not label.heading:
        return True
    wanted = _headings(label.heading)
    has = _headings(passage.heading)
    if any(has[start : start + len(wanted)] == wanted for start in range(len(has) - len(wanted) + 1)):
        return True
    # Short sections are cut together into one chunk, which then has their headings in its text.
    lines = (line.lstrip("# ").strip().casefold() for line in passage.text.splitlines() if line.startswith("#"))
    return wanted[-1] in lines


def _headings(text: str) -> list[str]:
    return [part.strip().casefold() for part in text.split(" > ")]


def _conclude(trial: Trial, pairs: Sequence[_Pair], losses: QueryLosses, unknown_labels: Sequence[str]) -> Comparison:
    retrieval = trial.retrieval
    newly = [pair.query.text for pair in pairs if pair.before.documents and not pair.after.documents]
    return Comparison(
        before=trial.before.label,
        after=trial.after.label,
        top_k=retrieval.top_k,
        hybrid_weight=retrieval.hybrid_weight,
        minimum_score=retrieval.minimum_score,
        groups=None if trial.groups is None else tuple(sorted(trial.groups)),
        queries=len(pairs),
        labelled=sum(bool(pair.query.relevant) for pair in pairs),
        identical=sum(pair.before.passages == pair.after.passages for pair in pairs),
        relevance=_measure_relevance(pairs, retrieval.top_k),
        documents=_measure_agreement([(p.before.documents, p.after.documents) for p in pairs], retrieval.top_k),
        passages=_measure_agreement([(p.before.passages, p.after.passages) for p in pairs], retrieval.top_k),
        empty=Emptiness(
            before=sum(not pair.before.documents for pair in pairs),
            after=sum(not pair.after.documents for pair in pairs),
            newly=len(newly),
            examples=tuple(newly[:_EXAMPLES]),
        ),
        best_score=_compare_scores(trial, pairs),
        lost=losses,
        unknown_labels=tuple(unknown_labels),
    )


def _measure_relevance(pairs: Sequence[_Pair], k: int) -> Relevance | None:
    labelled = [pair for pair in pairs if pair.query.relevant]

    def each(measure: Callable[[LabelledQuery, _Hits], float]) -> Paired | None:
        return compare(
            [measure(pair.query, pair.before) for pair in labelled],
            [measure(pair.query, pair.after) for pair in labelled],
        )

    def found(query: LabelledQuery, hits: _Hits) -> float:
        # A passage may satisfy several labels: it counts for all of them, and takes one place.
        names = [str(number) for answers in hits.answers[:k] for number in answers]
        return recall(_grades(query), names, max(1, len(names)))

    def first(query: LabelledQuery, hits: _Hits) -> float:
        return reciprocal_rank(_grades(query), _rank(query, hits), k)

    def gained(query: LabelledQuery, hits: _Hits) -> float:
        return ndcg(_grades(query), _rank(query, hits), k)

    recalls, ranks, gains = each(found), each(first), each(gained)
    if recalls is None or ranks is None or gains is None:
        return None
    return Relevance(recalls, ranks, gains)


def _grades(query: LabelledQuery) -> dict[str, float]:
    return {str(number): label.grade for number, label in enumerate(query.relevant)}


def _rank(query: LabelledQuery, hits: _Hits) -> list[str]:
    """Name the label that each passage stands for: the best that none before it stands for; empty for none."""
    ranked: list[str] = []
    taken: set[int] = set()
    for answers in hits.answers:
        fresh = [number for number in answers if number not in taken] or answers
        best = max(fresh, key=lambda number: query.relevant[number].grade, default=None)
        ranked.append("" if best is None else str(best))
        taken.update(() if best is None else (best,))
    return ranked


def _measure_agreement(found: Sequence[tuple[Sequence[str], Sequence[str]]], k: int) -> Agreement | None:
    shared = estimate(overlap(before, after, k) for before, after in found)
    ranked = estimate(rank_biased_overlap(before, after, k) for before, after in found)
    if shared is None or ranked is None:
        return None
    return Agreement(shared, ranked, estimate(churn(before, after, k) for before, after in found if before))


def _compare_scores(trial: Trial, pairs: Sequence[_Pair]) -> Paired | None:
    if trial.retrieval.hybrid_weight > 0 and _embedder(trial.before) != _embedder(trial.after):
        return None
    scores = [
        (pair.before.score, pair.after.score)
        for pair in pairs
        if pair.before.score is not None and pair.after.score is not None
    ]
    # Scores of another search engine may be above 1.
    highest = max([1.0, *(score for both in scores for score in both)])
    return compare([before for before, _ in scores], [after for _, after in scores], highest=highest)


def _embedder(version: Version) -> object:
    return version.spec.index.embedder, version.spec.deployment


def _list_lost(pairs: Sequence[_Pair], counterparts: Counterparts) -> dict[str, list[int]]:
    """List the documents that are lost, each with the numbers of the pairs that lose it."""
    lost: defaultdict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        for document in _lost_of(pair, counterparts):
            lost[document].append(number)
    return lost


def _lost_of(pair: _Pair, counterparts: Counterparts) -> Iterator[str]:
    if not pair.query.relevant:
        yield from dict.fromkeys(name for name in pair.before.documents if name not in pair.after.documents)
        return
    had, has = ({number for answers in hits.answers for number in answers} for hits in (pair.before, pair.after))
    gone = [pair.query.relevant[number] for number in sorted(had - has)]
    yield from dict.fromkeys(counterparts.name(label.document) for label in gone)


_ORDER: Sequence[QueryLossState] = ("removed", "changed", "outranked", "unknown")


def _tell_losses(
    pairs: Sequence[_Pair], lost: Mapping[str, Sequence[int]], states: Mapping[str, differences.DocumentState]
) -> QueryLosses:
    documents = []
    for document, numbers in lost.items():
        known = states.get(document)
        state: QueryLossState = "unknown" if known is None else "outranked" if known.state == "same" else known.state
        title = "" if known is None else known.title
        examples = tuple(dict.fromkeys(pairs[number].query.text for number in numbers))[:_EXAMPLES]
        documents.append(QueryLostDocument(document, title, state, len(numbers), examples))
    documents.sort(key=lambda each: (_ORDER.index(each.state), -each.queries, each.document))
    counts = {state: sum(each.state == state for each in documents) for state in _ORDER}
    return QueryLosses(
        queries=len(set().union(*lost.values())),
        documents=tuple(documents[:_SHOWN_DOCUMENTS]),
        **counts,
    )
