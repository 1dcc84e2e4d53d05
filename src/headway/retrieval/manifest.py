"""What an index version is made of, and the hash that tells whether two are the same."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from headway.config.indexes import LOCAL_STATIC, VersionSpec
from headway.domain.knowledge import Document

PIPELINE = 1
"""Counts the ways of parsing and cutting: another number, and nothing is taken over from versions before."""


class Recipe(msgspec.Struct, frozen=True):
    """All that decides what becomes of a document's bytes.

    Attributes:
        pipeline: The ``PIPELINE`` that parsed and cut.
        tokens: Longest chunk.
        overlap: Tokens that a chunk repeats of the one before.
        language: Of the full-text search.
        embedder: What made the vectors: the endpoint and model, or the embedded model's name.
        dimensions: Of the vectors.
    """

    pipeline: int
    tokens: int
    overlap: int
    language: str
    embedder: str
    dimensions: int

    def same_vectors(self, other: Recipe) -> bool:
        """Say whether a text has the same vector in both."""
        return (self.embedder, self.dimensions) == (other.embedder, other.dimensions)


class Manifest(msgspec.Struct, frozen=True):
    """What a published version consists of; its documents, with their hashes, are listed beside it.

    Attributes:
        recipe: How it was made.
        documents: Number of documents.
        skipped: Number of documents left out; each is listed with its reason.
        chunks: Number of chunks.
        tokens: Of all chunks.
        size_bytes: Of all documents that were read.
        embedded: Chunks that were embedded.
        reused: Chunks whose vectors came from an earlier version, or from an equal chunk.
        cost_usd: What embedding has cost; None where the price is not known.
        seconds: Time worked on it.
    """

    recipe: Recipe
    documents: int
    skipped: int
    chunks: int
    tokens: int
    size_bytes: int
    embedded: int
    reused: int
    cost_usd: float | None
    seconds: float


def name_embedder(spec: VersionSpec) -> str:
    """Name what makes the vectors, so that equal names make equal vectors."""
    if spec.deployment is None:
        return LOCAL_STATIC
    endpoint = spec.deployment.endpoint
    version = f" ({endpoint.api_version})" if endpoint.api_version else ""
    return f"{endpoint.model} at {endpoint.base_url}{version}"


class ContentHash:
    """Hashes what a version holds: equal however often its build was interrupted, whatever it took and cost.

    Args:
        recipe: How it was made.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._digest = hashlib.sha256()
        self._add(msgspec.to_builtins(recipe))

    def add(self, document: Document, chunks_hash: str | None) -> None:
        """Add the next document, in the order of the paths, with its chunks' hash; None if it was left out."""
        if chunks_hash is None:
            self._add([document.path])
            return
        groups = sorted(document.groups)
        self._add([document.path, document.content_hash, document.title, document.metadata, groups, chunks_hash])

    def hexdigest(self) -> str:
        """The hash: 64 hexadecimal characters."""
        return self._digest.hexdigest()

    def _add(self, value: Any) -> None:
        self._digest.update(msgspec.json.encode(value, order="sorted"))
        self._digest.update(b"\n")
