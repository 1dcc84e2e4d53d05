"""How the search service simulator finds and ranks documents: words, vectors, and both fused by rank."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_WORD = re.compile(r"\w+(?:[’']\w+)*")
_RANK_OFFSET = 60
_SATURATION, _LENGTH = 1.2, 0.75

Document = Mapping[str, Any]


class SimpleQuery(NamedTuple):
    """A query of the simple syntax, as far as it is simulated: words, words that must be, words that must not."""

    words: tuple[str, ...]
    required: tuple[str, ...]
    excluded: tuple[str, ...]


def read_words(text: str) -> list[str]:
    """Take a text apart into words."""
    return [word.lower() for word in _WORD.findall(text)]


def read_simple_query(text: str) -> SimpleQuery:
    """Read a query of the simple syntax; a backslash takes its meaning from an operator."""
    words: list[str] = []
    required: list[str] = []
    excluded: list[str] = []
    for part in re.findall(r'"(?:\\.|[^"\\])*"|(?:\\.|[^\s"\\])+', text):
        target, literal = words, part
        if part[0] in "+-" and len(part) > 1:
            target, literal = (required, part[1:]) if part[0] == "+" else (excluded, part[1:])
        elif part[0] == '"':
            target = required
        plain = re.sub(r"(?<!\\)[+|()\"*]", " ", literal)
        target += read_words(plain.replace("\\", " "))
    return SimpleQuery(tuple(words), tuple(required), tuple(excluded))


def rank_by_words(documents: Mapping[str, Document], fields: Sequence[str], query: SimpleQuery) -> dict[str, float]:
    """Rank documents by BM25 over some fields; gives the scores of those that match, best first."""
    texts = {key: Counter(read_words(" ".join(str(each.get(name) or "") for name in fields)))
             for key, each in documents.items()}  # fmt: skip
    mean = sum(map(Counter.total, texts.values())) / max(1, len(texts)) or 1.0
    scores: dict[str, float] = {}
    for key, counts in texts.items():
        if any(word in counts for word in query.excluded) or any(word not in counts for word in query.required):
            continue
        score = 0.0
        for word in {*query.words, *query.required} & counts.keys():
            having = sum(word in each for each in texts.values())
            rarity = math.log1p((len(texts) - having + 0.5) / (having + 0.5))
            length = _SATURATION * (1 - _LENGTH + _LENGTH * counts.total() / mean)
            score += rarity * counts[word] * (_SATURATION + 1) / (counts[word] + length)
        if score:
            scores[key] = score
    return _best_first(scores)


def rank_by_vector(documents: Mapping[str, Document], field: str, vector: Sequence[float], k: int) -> dict[str, float]:
    """Rank documents by cosine similarity; gives those of the best ``k``, best first."""
    scores = {key: _cosine(each[field], vector) for key, each in documents.items() if each.get(field)}
    return dict(list(_best_first(scores).items())[:k])


def fuse(rankings: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Fuse rankings by reciprocal rank, each with its weight."""
    scores: dict[str, float] = {}
    for weight, ranking in rankings:
        for rank, key in enumerate(ranking):
            scores[key] = scores.get(key, 0.0) + weight / (_RANK_OFFSET + rank)
    return _best_first(scores)


def _best_first(scores: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(scores.items(), key=lambda each: (-each[1], each[0])))


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    length = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0
