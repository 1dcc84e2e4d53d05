"""Knowledge: documents of a data lake, the chunks they are cut into, and the passages that a search finds."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

IndexState = Literal["building", "published", "failed", "cancelled", "dropped"]


class Document(msgspec.Struct, frozen=True):
    """One document of an index version, without its text.

    Attributes:
        path: Where it is, from the lake's root; unique in a version.
        content_hash: SHA-256 of its bytes, in hexadecimal.
        title: From its front matter, its first heading, or its file name.
        modified: ISO 8601, UTC; empty where the lake does not tell.
        metadata: Front matter and the like, for filters and citations; plain JSON values.
        groups: Who may see it; empty for everybody.
    """

    path: str
    content_hash: str
    title: str
    modified: str = ""
    metadata: dict[str, Any] = {}
    groups: tuple[str, ...] = ()


class Section(msgspec.Struct, frozen=True):
    """A piece of a parsed document: the headings it stands under, outermost first, and its text."""

    headings: tuple[str, ...]
    text: str


class Chunk(msgspec.Struct, frozen=True):
    """A piece of a document as it is embedded and found.

    Attributes:
        position: Its place in the document, from 0.
        heading: The headings it stands under, joined by " > ".
        text: What is shown and put in front of the model.
        tokens: Its length, by the chunker's tokenizer.
        content_hash: SHA-256 of what is embedded (title, heading and text), in hexadecimal.
    """

    position: int
    heading: str
    text: str
    tokens: int
    content_hash: str


class Passage(msgspec.Struct, frozen=True):
    """A chunk that a search has found, and why.

    Attributes:
        chunk: Number of the chunk.
        document: Path of its document.
        title: Title of its document.
        heading: The headings it stands under.
        text: Its text.
        tokens: Its length.
        position: Its place in the document.
        score: 0 to 1, whatever else was found: the weighted mean of how much more alike it is to the query than any two
            chunks of the version are, and of ``coverage``. In a search service what that can tell, which is less
            (``headway.retrieval.azure_search``).
        vector_rank, text_rank: Place by meaning, and by words, from 1; None where it is not among the first.
        similarity: Cosine similarity to the query; None where vectors were not searched.
        coverage: Part of the query's words that it has, rare ones counting more, 0 to 1; None where it has none.
        url: What its document's metadata has as ``url``, whatever that is; None where it has none.
    """

    chunk: int
    document: str
    title: str
    heading: str
    text: str
    tokens: int
    position: int
    score: float
    vector_rank: int | None = None
    text_rank: int | None = None
    similarity: float | None = None
    coverage: float | None = None
    url: str | None = None

    @property
    def link(self) -> str | None:
        """Where its document is on the web; no other address is given to pages to link to."""
        named = (self.url or "", self.document)
        return next((each for each in named if each.lower().startswith(("https://", "http://"))), None)


class Found(msgspec.Struct, frozen=True):
    """What a search came back with: passages, best first, and the time it took."""

    passages: tuple[Passage, ...]
    embed_ms: float = 0.0
    search_ms: float = 0.0
