"""Searches versions in Azure AI Search as releases ask for it: hybrid, filtered, and with the same scores from 0 to 1.

The service ranks by words (BM25) and by meaning, and fuses both rankings: a passage gets ``weight / (60 + rank)`` from
each (reciprocal rank fusion; ranks from 0). As a part of the most that can be had, that is its score here. Where only
vectors count, the score is the cosine similarity; where only words do, it follows from the rank alone; where a semantic
configuration ranks anew, it is the reranker's, as a part of its 4 points.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from headway.config.azure_search import AzureFields, AzureSearchSpec
from headway.domain.filters import parse_filter
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.errors import ProviderError, RetrievalError
from headway.providers.azure_search import KEY, SearchServices
from headway.retrieval.azure_filters import Field, write_entries_filter, write_fields_filter, write_groups

BUILT = AzureFields("content", title="title", document="path", heading="heading", vector="vector", groups="groups")
"""The fields of indexes that Headway builds; beside these ``tokens``, ``position`` and ``metadata``."""

_DEPTH = 50  # passages by meaning; the semantic ranker looks at as many
_RANK_OFFSET = 60  # of the fusion
_RERANKER_POINTS = 4.0
_MOST_WORDS = 200
_MOST_CHARACTERS = 4000
_OPERATOR = re.compile(r"""[-+|"()'*?/~\\]""")  # of the simple syntax


class Remote(msgspec.Struct, frozen=True):
    """An index of a search service, as a version has it pinned in its manifest.

    Attributes:
        index: Its name.
        key: Its key field.
        fields: Its fields, by name.
        metric: How its vectors are compared.
        etag: Of its definition.
        definition: SHA-256 of its definition.
    """

    index: str
    key: str = KEY
    fields: dict[str, Field] = {}
    metric: str = "cosine"
    etag: str = ""
    definition: str = ""


class Sought(NamedTuple):
    """What is searched.

    Attributes:
        label: Of the version.
        service: Where.
        remote: Which index.
        retrieval: How many passages, and which.
        groups: Whose labelled passages may be found.
    """

    label: str
    service: AzureSearchSpec
    remote: Remote
    retrieval: Retrieval
    groups: frozenset[str]


class AzureSearch:
    """Searches indexes of search services.

    Args:
        services: Calls them.
        count_tokens: Counts those of a text, where an index does not say.
    """

    def __init__(self, services: SearchServices, count_tokens: Callable[[str], int]) -> None:
        self._services = services
        self._count_tokens = count_tokens

    async def __call__(
        self, sought: Sought, text: str, vector: Sequence[float] | None, *, seconds: float
    ) -> list[Passage]:
        """Give the passages that fit best and that the groups may see, best first.

        Args:
            sought: What is searched.
            text: The words.
            vector: Their meaning; None, or zero, where it does not count.
            seconds: How long it may take.

        Raises:
            RetrievalError: The filter does not go with the index.
            HeadwayError: The service is away, or refuses.
        """
        if vector is not None and not any(vector):  # nothing is known of its words
            vector = None
        if vector is None and _meaning(sought) == 1:
            return []
        request = make_request(sought, text, vector)
        found = await self._services.search(sought.service, sought.remote.index, request, seconds=seconds)
        return self._read(sought, found, _way(sought, vector))

    def _read(self, sought: Sought, found: Sequence[Mapping[str, Any]], way: _Way) -> list[Passage]:
        passages = []
        for rank, each in enumerate(found[: sought.retrieval.top_k]):
            try:
                passage = self._passage(sought, each, way, rank)
            except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
                what = f"the search service gives a result without what was asked for: {error}"
                raise ProviderError(what) from error
            if passage.text and passage.score >= sought.retrieval.minimum_score:
                passages.append(passage)
        return passages

    def _passage(self, sought: Sought, found: Mapping[str, Any], way: _Way, rank: int) -> Passage:
        fields, key = fields_of(sought.service), str(found[sought.remote.key])
        text = _text(found, fields.content)
        similarity = _similarity(found, fields.vector, sought.remote.metric, way)
        built = not sought.service.index
        return Passage(
            chunk=int(key) if built else number_key(key),
            document=_text(found, fields.document) or key,
            title=_text(found, fields.title),
            heading=_text(found, fields.heading),
            text=text,
            tokens=int(found["tokens"]) if built else self._count_tokens(text),
            position=int(found["position"]) if built else 0,
            score=_score(found, sought, way, rank, similarity),
            vector_rank=rank + 1 if way == "vectors" else None,
            text_rank=rank + 1 if way == "words" else None,
            similarity=similarity,
        )


_Way = Literal["semantic", "hybrid", "vectors", "words"]


def fields_of(service: AzureSearchSpec) -> AzureFields:
    """The fields of the index that is searched."""
    return service.fields or BUILT


def number_key(key: str) -> int:
    """Number the key of a document in an index that exists: 63 bits of its hash, which it always has."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1


def _way(sought: Sought, vector: Sequence[float] | None) -> _Way:
    if sought.service.semantic:
        return "semantic"
    if vector is None:
        return "words"
    return "vectors" if _meaning(sought) == 1 else "hybrid"


def _meaning(sought: Sought) -> float:
    """What vectors count: nothing where the index has none."""
    return sought.retrieval.hybrid_weight if fields_of(sought.service).vector else 0.0


def make_request(sought: Sought, text: str, vector: Sequence[float] | None) -> dict[str, Any]:
    """Write a search as the API takes it.

    Raises:
        RetrievalError: The filter does not go with the index.
    """
    retrieval, fields, remote = sought.retrieval, fields_of(sought.service), sought.remote
    words = _meaning(sought) < 1
    chosen = [remote.key, fields.content, fields.title, fields.document, fields.heading]
    request: dict[str, Any] = {
        "top": retrieval.top_k,
        "select": ",".join(dict.fromkeys(filter(None, [*chosen, *([] if sought.service.index else _OWN)]))),
    }
    if words:
        request |= {"search": escape(text), "searchMode": "any", "searchFields": ",".join(_searched(sought))}
    if vector is not None:
        query = {
            "kind": "vector",
            "vector": vector,
            "fields": fields.vector,
            "k": max(_DEPTH, 2 * retrieval.top_k),
        }
        if words:
            query["weight"] = _weight(retrieval)
            request["debug"] = "vector"  # tells the similarity, which the fused score does not
        request |= {"vectorQueries": [query], "vectorFilterMode": "preFilter"}
    if sought.service.semantic:
        request |= {
            "queryType": "semantic",
            "semanticConfiguration": sought.service.semantic,
            "semanticErrorHandling": "fail",
            "semanticQuery": text[:_MOST_CHARACTERS],  # as it was asked, without the other's escapes
        }
    conditions = _conditions(sought)
    if conditions:
        request["filter"] = " and ".join(conditions)
    return request


_OWN = ("tokens", "position")


def _searched(sought: Sought) -> list[str]:
    fields, known = fields_of(sought.service), sought.remote.fields
    names = list(dict.fromkeys(filter(None, (fields.content, fields.title, fields.heading))))
    return [name for name in names if not known or known[name].searchable]


def _conditions(sought: Sought) -> list[str]:
    fields, names = fields_of(sought.service), _names(fields_of(sought.service))
    try:
        wanted = parse_filter(sought.retrieval.filter)
        if sought.service.index:
            conditions = write_fields_filter(names, sought.remote.fields, wanted)
        else:
            conditions = write_entries_filter("metadata", wanted)
    except ValueError as error:
        raise RetrievalError(f"the filter does not go with {sought.label}: {error}") from error
    return [*([write_groups(fields.groups, sought.groups)] if fields.groups else []), *conditions]


def _names(fields: AzureFields) -> dict[str, str]:
    """The field for each key that a filter may name."""
    known = {key: name for key, name in (("path", fields.document), ("title", fields.title)) if name}
    return known | fields.metadata


def escape(text: str) -> str:
    """Write a text so that none of its characters is an operator of the simple query syntax."""
    return _OPERATOR.sub(r"\\\g<0>", " ".join(text[:_MOST_CHARACTERS].split()[:_MOST_WORDS]))


# --- scores ---------------------------------------------------------------------------------------------------------


def _weight(retrieval: Retrieval) -> float:
    """What vectors count against words, which count 1."""
    return retrieval.hybrid_weight / (1 - retrieval.hybrid_weight)


def _score(found: Mapping[str, Any], sought: Sought, way: _Way, rank: int, similarity: float | None) -> float:
    if way == "semantic":
        points = found["@search.rerankerScore"]
        return _part(float(points if points is not None or not rank else 0.0) / _RERANKER_POINTS)  # it ranks 50
    if way == "hybrid":
        most = (1 + _weight(sought.retrieval)) / _RANK_OFFSET
        return _part(float(found["@search.score"]) / most)
    if way == "vectors" and similarity is not None:
        return _part(similarity)
    return _RANK_OFFSET / (_RANK_OFFSET + rank)


def _part(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a score is no number")
    return min(max(value, 0.0), 1.0)


def _similarity(found: Mapping[str, Any], vector: str, metric: str, way: _Way) -> float | None:
    """Read the cosine similarity, where the service says it."""
    if metric != "cosine":
        return None
    if way == "vectors":
        return min(max(2 - 1 / float(found["@search.score"]), -1.0), 1.0)  # its score is 1 / (1 + distance)
    subscores = ((found.get("@search.documentDebugInfo") or {}).get("vectors") or {}).get("subscores") or {}
    for each in subscores.get("vectors") or ():
        said = (each.get(vector) or {}).get("vectorSimilarity")
        if said is not None:
            return float(said)
    return None


def _text(found: Mapping[str, Any], field: str) -> str:
    value = found[field] if field else ""
    return "" if value is None else str(value)
