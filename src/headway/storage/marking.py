"""Where the words of a query stand in texts, as full-text search sees words: whatever their endings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import LiteralString

from psycopg import sql

from headway.domain.excerpt import Excerpt
from headway.storage.database import Connection
from headway.storage.partitions import WORDS

# One private character each; a text that has them itself loses them.
_OPEN, _CLOSE = "\ue000", "\ue001"
# What keeps words together (as ``partitions.WORDS``), or would be taken for markup and left out; lengths stay.
_BLANKS: Mapping[int, str] = MappingProxyType(dict.fromkeys(map(ord, "./_:@=-<>&\0" + _OPEN + _CLOSE), " "))
_QUERY: LiteralString = """
    WITH asked AS (
        SELECT string_agg('''' || replace(replace(word, '\\', '\\\\'), '''', '''''') || '''', ' | ')::tsquery AS words
        FROM unnest(tsvector_to_array({words})) AS word
    )
    SELECT CASE WHEN words IS NULL THEN shown
                ELSE ts_headline(%(language)s::regconfig, shown, words, %(options)s) END
    FROM asked, unnest(%(texts)s::text[]) WITH ORDINALITY AS t (shown, place) ORDER BY place
"""


async def mark(connection: Connection, language: str, query: str, texts: Sequence[str]) -> list[Excerpt]:
    """Mark the words of a query in texts.

    Args:
        connection: Nothing is written.
        language: PostgreSQL's text search configuration.
        query: Whose words.
        texts: What they are looked for in.

    Returns:
        Each text, in order, whole.
    """
    cursor = await connection.execute(
        sql.SQL(_QUERY).format(words=sql.SQL(WORDS).format(text=sql.SQL("%(query)s"))),
        {
            "language": language,
            "query": _plain(query),
            "texts": [_plain(text) for text in texts],
            "options": f"HighlightAll=true, StartSel={_OPEN}, StopSel={_CLOSE}",
        },
    )
    rows = await cursor.fetchall()
    return [_read(text, marked) for text, (marked,) in zip(texts, rows, strict=True)]


def _plain(text: str) -> str:
    """Make a text of the same length that PostgreSQL takes, and takes apart as search does."""
    return text.translate(_BLANKS).encode("utf-8", "replace").decode()


def _read(text: str, marked: str) -> Excerpt:
    marks: list[tuple[int, int]] = []
    place = begin = 0
    for character in marked:
        if character == _OPEN:
            begin = place
        elif character == _CLOSE:
            marks.append((begin, place))
        else:
            place += 1
    # PostgreSQL left something out: then the marks stand elsewhere.
    return Excerpt(text, tuple(marks) if place == len(text) else ())
