"""The steps that a batch of documents goes through: read, parse, label, cut. Values in, values out; nothing is written.

A document that cannot be had comes out as its outcome, with the reason, and does not stop the others.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from headway.config.indexes import ChunkSpec
from headway.domain.knowledge import Chunk, Document
from headway.errors import ChangedDocumentError, UnreadableDocumentError
from headway.lake.globs import Globs
from headway.lake.parsing.parsed import Parsed
from headway.lake.parsing.workers import Parsers
from headway.lake.sources import Lake, LakeObject
from headway.retrieval.chunking import chunk
from headway.retrieval.tasks import do_all
from headway.storage.builds import Earlier, Listed, Outcome

_READS = 8  # at a time: an object store answers slowly, and side by side


class Read(msgspec.Struct, frozen=True):
    """A document's bytes, and their hash."""

    listed: Listed
    body: bytes
    content_hash: str


class Prepared(msgspec.Struct, frozen=True):
    """A document to be loaded: its chunks, or the row of the same document in an earlier version, to take over."""

    listed: Listed
    document: Document
    chunks: tuple[Chunk, ...] = ()
    earlier: Earlier | None = None


class Labels:
    """Says which groups see a document: the last pattern that matches decides; none matches: everybody."""

    def __init__(self, labels: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        self._labels = [(Globs([pattern], hidden=True), groups) for pattern, groups in reversed(labels)]

    def groups(self, path: str) -> tuple[str, ...]:
        """The groups that see the document at a path; empty for everybody."""
        return next((groups for globs, groups in self._labels if globs.match(path)), ())


async def read(lake: Lake, listed: Sequence[Listed], limit_bytes: int) -> list[Read | Outcome]:
    """Read documents as they were listed; one that changed meanwhile is looked up and read once more, as it is now.

    Raises:
        LakeError: The lake is away.
    """
    places = asyncio.Semaphore(_READS)

    async def read_one(each: Listed) -> Read | Outcome:
        async with places:
            return await asyncio.to_thread(_read, lake, each, limit_bytes)

    return await do_all(map(read_one, listed))


def _read(lake: Lake, listed: Listed, limit_bytes: int) -> Read | Outcome:
    try:
        try:
            body = lake.read(_object(listed), limit_bytes)
        except ChangedDocumentError:
            now = lake.look(listed.path)
            listed = replace(listed, size=now.size, modified=now.modified, etag=now.etag)
            body = lake.read(now, limit_bytes)
    except UnreadableDocumentError as error:
        return Outcome(listed.number, listed.size, problem=error.message)
    return Read(listed, body, hashlib.sha256(body).hexdigest())


def _object(listed: Listed) -> LakeObject:
    return LakeObject(listed.path, listed.size, listed.modified, listed.etag)


async def prepare(
    documents: Sequence[Read], earlier: Mapping[str, Earlier], parsers: Parsers, chunking: ChunkSpec, labels: Labels
) -> list[Prepared | Outcome]:
    """Parse and cut documents, except those that an earlier version holds with the same content.

    Args:
        documents: Read ones.
        earlier: What an earlier version of the same recipe has, by path.
        parsers: Parse in processes of their own.
        chunking: How to cut.
        labels: Who may see what.
    """

    async def prepare_one(each: Read) -> Prepared | Outcome:
        listed, same = each.listed, earlier.get(each.listed.path)
        document = Document(
            listed.path, each.content_hash, "", modified=listed.modified, groups=labels.groups(listed.path)
        )
        if same is not None and same.content_hash == each.content_hash:
            return Prepared(listed, replace(document, title=same.title, metadata=same.metadata), earlier=same)
        try:
            parsed = await parsers.parse(listed.path, each.body)
        except UnreadableDocumentError as error:
            return Outcome(listed.number, len(each.body), problem=error.message)
        chunks = await asyncio.to_thread(_cut, parsed, chunking)
        return Prepared(listed, replace(document, title=parsed.title, metadata=parsed.metadata), chunks)

    return await do_all(map(prepare_one, documents))


def _cut(parsed: Parsed, chunking: ChunkSpec) -> tuple[Chunk, ...]:
    return tuple(chunk(parsed.title, parsed.sections, tokens=chunking.tokens, overlap=chunking.overlap))
