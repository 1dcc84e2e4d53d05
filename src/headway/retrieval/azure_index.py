"""Indexes in Azure AI Search: made for a version and filled with its chunks, or found there and pinned.

What a version consists of is in the database first, as of any other: what has changed is embedded, the rest is taken
over, and the two can be compared. From there it is written into an index of its own in the service. Chunks have their
number as key and come in one order, so that a build that ends at any moment goes on from there, with the same result.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec.structs import replace

from headway.clock import Clock
from headway.config.azure_search import AzureFields, AzureSearchSpec
from headway.config.indexes import VersionSpec
from headway.errors import ConfigurationError, HeadwayError, NotFoundError, ProviderError, ProviderUnavailableError
from headway.providers.azure_search import KEY, SearchServices
from headway.retrieval.azure_filters import Field, make_entries
from headway.retrieval.azure_search import BUILT, Remote
from headway.storage import remotes
from headway.storage.builds import Build
from headway.storage.database import Database
from headway.storage.remotes import Written

if TYPE_CHECKING:  # it needs the extra; deleting an index does not
    from headway.retrieval.loading import Book

MOST_DIMENSIONS = 4096
"""The longest vectors that the service takes."""

_READ_CHUNKS = 500
_SAMPLE = 8  # chunks that are searched for before a version is published
_ALIKE = 0.99  # similarity of a vector to itself: half precision, and the service's own
_COUNT_SECONDS = 120.0  # until what was written is counted: the service indexes behind its answer
_COUNT_PAUSE_SECONDS = 1.0
_DIGITS = 6  # of a vector's values; they have half precision
_STEM_CHARACTERS = 90
_SEARCH_SECONDS = 30.0
_VECTORS = ("Collection(Edm.Single)", "Collection(Edm.Half)")
_ALGORITHMS = ("hnswParameters", "exhaustiveKnnParameters")
_VECTOR_SEARCH = {
    "algorithms": [
        {
            "name": "graph",
            "kind": "hnsw",
            "hnswParameters": {"metric": "cosine", "m": 8, "efConstruction": 400, "efSearch": 500},
        }
    ],
    "profiles": [{"name": "vectors", "algorithm": "graph"}],
}
# Lucene's analyzers where there is one, else Microsoft's, else the one for no language.
_ANALYZERS = {
    "arabic": "ar.lucene",
    "armenian": "hy.lucene",
    "basque": "eu.lucene",
    "catalan": "ca.lucene",
    "danish": "da.lucene",
    "dutch": "nl.lucene",
    "english": "en.lucene",
    "finnish": "fi.lucene",
    "french": "fr.lucene",
    "german": "de.lucene",
    "greek": "el.lucene",
    "hindi": "hi.lucene",
    "hungarian": "hu.lucene",
    "indonesian": "id.lucene",
    "irish": "ga.lucene",
    "italian": "it.lucene",
    "lithuanian": "lt.microsoft",
    "norwegian": "no.lucene",
    "portuguese": "pt-PT.lucene",
    "romanian": "ro.lucene",
    "russian": "ru.lucene",
    "spanish": "es.lucene",
    "swedish": "sv.lucene",
    "tamil": "ta.microsoft",
    "turkish": "tr.lucene",
}

_log = structlog.get_logger("headway.retrieval.azure_search")


def has_vectors(spec: VersionSpec) -> bool:
    """Say whether an index that exists has vectors, so that queries need some."""
    fields = _service(spec).fields
    return fields is not None and bool(fields.vector)


def describe(remote: Remote | None) -> dict[str, Any]:
    """Write for a manifest which index of a service is searched; nothing where none is."""
    return {} if remote is None else {"azure_ai_search": msgspec.to_builtins(remote)}


def hash_pinned(spec: VersionSpec, remote: Remote) -> str:
    """Hash what was pinned: equal for the same index with the same definition, used in the same way."""
    service = _service(spec)
    used = (service.endpoint, service.index, service.fields, service.semantic, remote.definition)
    return hashlib.sha256(msgspec.json.encode(used, order="sorted")).hexdigest()


# --- indexes that exist ---------------------------------------------------------------------------------------------


async def pin(services: SearchServices, spec: VersionSpec, dimensions: int) -> tuple[Remote, int]:
    """Look at an index that exists: is all there that searches need? Gives it, and how many documents it has.

    Args:
        services: Call the service.
        spec: Of the version.
        dimensions: Of the vectors that queries will have; 0 for none.

    Raises:
        ConfigurationError: It is not, or the service refuses.
        ProviderError: The service is away.
    """
    service = _service(spec)
    assert service.fields is not None
    try:
        definition = await services.get_index(service, service.index)
    except NotFoundError as error:
        raise ConfigurationError(f"the search service has no index {service.index!r}") from error
    described = _read_fields(definition)
    problems = list(_problems(service.fields, described, definition, dimensions))
    if service.semantic and service.semantic not in _semantic_names(definition):
        problems.append(f"there is no semantic configuration {service.semantic!r}")
    key = next((name for name, field in described.items() if field.get("key")), "")
    if not key:
        problems.append("it has no key field")
    if problems:
        raise ConfigurationError(f"the index {service.index!r} does not go with headway.yaml: {'; '.join(problems)}")
    return _remote(definition, key, service.fields.vector), await services.count(service, service.index)


def _read_fields(definition: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    fields = definition.get("fields")
    given = [each for each in fields if isinstance(each, dict)] if isinstance(fields, list) else []
    return {str(each.get("name")): each for each in given}


def _problems(
    wanted: AzureFields, fields: Mapping[str, dict[str, Any]], definition: Mapping[str, Any], dimensions: int
) -> Iterator[str]:
    texts = {"title": wanted.title, "document": wanted.document, "heading": wanted.heading}
    for use, name in {"content": wanted.content, **texts}.items():
        if not name:
            continue
        field = fields.get(name, {})
        if not field:
            yield _missing(use, name, fields)
        elif field.get("type") != "Edm.String" or not field.get("retrievable", True):
            yield f"{use}: the field {name!r} is no retrievable Edm.String"
        elif use == "content" and not field.get("searchable"):
            yield f"{use}: the field {name!r} is not searchable"
    if wanted.groups:
        field = fields.get(wanted.groups, {})
        if not field:
            yield _missing("groups", wanted.groups, fields)
        elif field.get("type") != "Collection(Edm.String)" or not field.get("filterable"):
            yield f"groups: the field {wanted.groups!r} is no filterable Collection(Edm.String)"
    for key, name in wanted.metadata.items():
        if name not in fields:
            yield _missing(f"metadata.{key}", name, fields)
        elif not fields[name].get("filterable"):
            yield f"metadata.{key}: the field {name!r} is not filterable"
    if wanted.vector:
        yield from _vector_problems(wanted.vector, fields, definition, dimensions)


def _missing(use: str, name: str, fields: Mapping[str, Any]) -> str:
    return f"{use}: there is no field {name!r}, only {', '.join(sorted(fields))[:300]}"


def _vector_problems(
    name: str, fields: Mapping[str, dict[str, Any]], definition: Mapping[str, Any], dimensions: int
) -> Iterator[str]:
    field = fields.get(name, {})
    if not field:
        yield _missing("vector", name, fields)
    elif field.get("type") not in _VECTORS or not field.get("searchable", True):
        yield f"vector: the field {name!r} is none of vectors that can be searched ({', '.join(_VECTORS)})"
    elif field.get("dimensions") != dimensions:
        yield (
            f"vector: the field {name!r} has {field.get('dimensions')} dimensions, the embedder's vectors {dimensions}:"
            " it must be the model that made the index's vectors"
        )
    elif not _metric(definition, name):
        yield f"vector: the index does not say how the field {name!r} is compared"


def _metric(definition: Mapping[str, Any], vector: str) -> str:
    """Find how the vectors of a field are compared; empty where that is not said."""
    search = definition.get("vectorSearch") or {}
    profile = _read_fields(definition).get(vector, {}).get("vectorSearchProfile")
    algorithm = next(
        (each.get("algorithm") for each in search.get("profiles") or () if each.get("name") == profile), ""
    )
    for each in search.get("algorithms") or ():
        if each.get("name") == algorithm:
            said = [each[key].get("metric") for key in _ALGORITHMS if isinstance(each.get(key), dict)]
            return str(next(filter(None, said), "cosine"))
    return ""


def _semantic_names(definition: Mapping[str, Any]) -> set[str]:
    return {str(each.get("name")) for each in (definition.get("semantic") or {}).get("configurations") or ()}


def _remote(definition: Mapping[str, Any], key: str, vector: str) -> Remote:
    content = {name: value for name, value in definition.items() if not name.startswith("@odata")}
    fields = {
        name: Field(str(each.get("type")), bool(each.get("filterable")), bool(each.get("searchable")))
        for name, each in _read_fields(definition).items()
    }
    return Remote(
        index=str(definition.get("name")),
        key=key,
        fields=fields,
        metric=_metric(definition, vector) or "cosine",
        etag=str(definition.get("@odata.etag", "")),
        definition=hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest(),
    )


# --- indexes that Headway makes -------------------------------------------------------------------------------------


def name_index(build: Build) -> str:
    """Name the index of a version in the service: its own name, its number, and what no other Headway has there."""
    service = _service(build.spec)
    origin = f"{build.index} {build.number} {build.created_at.isoformat()} {service.endpoint}"
    stem = re.sub(r"[^a-z0-9]+", "-", build.index.lower())[:_STEM_CHARACTERS].strip("-")
    return f"{stem or 'index'}-{build.number}-{hashlib.sha256(origin.encode()).hexdigest()[:8]}"


def define_index(name: str, spec: VersionSpec, dimensions: int) -> dict[str, Any]:
    """Define the index of a version, as the API takes it.

    Raises:
        ConfigurationError: Its vectors are not what the service takes.
    """
    if not 2 <= dimensions <= MOST_DIMENSIONS:
        message = f"the search service takes vectors of 2 to {MOST_DIMENSIONS:,} dimensions, not {dimensions:,}"
        raise ConfigurationError(message)
    # All is said: what is not said is on, and a text that can be sorted or filtered by has at most 32 kB.
    plain = {"searchable": False, "filterable": False, "sortable": False, "facetable": False}
    words = {"type": "Edm.String", **plain, "searchable": True, "analyzer": _analyzer(spec)}
    label = {"type": "Edm.String", **plain, "filterable": True}
    number = {"type": "Edm.Int32", **plain}
    entries = [{"name": each, **label, "retrievable": False} for each in ("key", "value", "text")]
    entries.append({"name": "number", **label, "type": "Edm.Double", "retrievable": False})
    definition: dict[str, Any] = {
        "name": name,
        "fields": [
            {"name": KEY, **label, "key": True},
            {"name": BUILT.document, "type": "Edm.String", **plain},
            *({"name": each, **words} for each in (BUILT.title, BUILT.heading, BUILT.content)),
            *({"name": each, **number} for each in ("tokens", "position")),
            {"name": BUILT.groups, **label, "type": "Collection(Edm.String)", "retrievable": False},
            {"name": "metadata", "type": "Collection(Edm.ComplexType)", "fields": entries},
            {
                "name": BUILT.vector,
                "type": "Collection(Edm.Single)",
                **plain,
                "searchable": True,
                "retrievable": False,
                "stored": False,
                "dimensions": dimensions,
                "vectorSearchProfile": "vectors",
            },
        ],
        "similarity": {"@odata.type": "#Microsoft.Azure.Search.BM25Similarity"},
        "vectorSearch": _VECTOR_SEARCH,
    }  # fmt: skip
    semantic = _service(spec).semantic
    if semantic:
        ranked = {
            "titleField": {"fieldName": BUILT.title},
            "prioritizedContentFields": [{"fieldName": BUILT.content}],
            "prioritizedKeywordsFields": [{"fieldName": BUILT.heading}],
        }
        definition["semantic"] = {"configurations": [{"name": semantic, "prioritizedFields": ranked}]}
    return definition


def _analyzer(spec: VersionSpec) -> str:
    return _ANALYZERS.get(spec.index.language, "standard.lucene")


def make_document(chunk: Written) -> dict[str, Any]:
    """Make what is written of a chunk. A vector of zeros has no direction, and is left out."""
    vector = [round(value, _DIGITS) for value in chunk.vector]
    document = {
        KEY: str(chunk.number),
        BUILT.document: chunk.path,
        BUILT.title: chunk.title,
        BUILT.heading: chunk.heading,
        BUILT.content: chunk.text,
        "tokens": chunk.tokens,
        "position": chunk.position,
        BUILT.groups: chunk.groups,
        "metadata": make_entries(chunk.metadata),
    }
    return document | ({BUILT.vector: vector} if any(vector) else {})


async def require_access(services: SearchServices, build: Build) -> None:
    """See that the service answers, and lets Headway see indexes, before anything is read or embedded.

    Raises:
        ConfigurationError: It refuses.
        ProviderError: It is away.
    """
    try:
        await services.get_index(_service(build.spec), name_index(build))
    except NotFoundError:
        return


async def upload(services: SearchServices, database: Database, build: Build, dimensions: int, book: Book) -> None:
    """Write the chunks of a version into an index of its own, from where it was left.

    Args:
        services: Call the service.
        database: Where the chunks are.
        build: Of the version, whose chunks are whole.
        dimensions: Of its vectors.
        book: Books a step.

    Raises:
        ConfigurationError: The service refuses.
        ProviderError: It is away.
    """
    service, name, progress = _service(build.spec), name_index(build), build.progress
    definition = define_index(name, build.spec, dimensions)
    progress = await book(replace(progress, remote=name), "index")  # before it is there: it has to be found again
    await services.put_index(service, definition)
    async with database.connection() as connection:
        place = await remotes.find_place(connection, build.version, progress.uploaded)
    while True:
        async with database.connection() as connection:
            chunks = await remotes.read_chunks(connection, build.version, after=place, limit=_READ_CHUNKS)
        if not chunks:
            return
        place = chunks[-1].document, chunks[-1].position
        await services.upload(service, name, [make_document(each) for each in chunks])
        progress = await book(replace(progress, uploaded=progress.uploaded + len(chunks)), "index")


async def verify(services: SearchServices, database: Database, clock: Clock, build: Build, chunks: int) -> Remote:
    """See that all of a version is in its index, and that what is there is found.

    Args:
        services: Call the service.
        database: Where the chunks are.
        clock: Waits until the service has indexed what it was given.
        build: Of the version.
        chunks: How many it has.

    Raises:
        HeadwayError: It is not.
        ProviderError: The service is away, or has not indexed it all yet.
    """
    service, name = _service(build.spec), build.progress.remote
    deadline = clock.monotonic_seconds() + _COUNT_SECONDS
    while (count := await services.count(service, name)) < chunks:
        if clock.monotonic_seconds() >= deadline:
            message = f"the search service has indexed {count:,} of {chunks:,} chunks so far"
            raise ProviderUnavailableError(message)
        await clock.sleep(_COUNT_PAUSE_SECONDS)
    if count != chunks:
        message = f"the index {name!r} has {count:,} chunks, the version {chunks:,}: somebody else writes into it"
        raise HeadwayError(message, code="index_not_whole")
    async with database.connection() as connection:
        skips = range(0, chunks, max(1, chunks // _SAMPLE))
        places = [await remotes.find_place(connection, build.version, skip) for skip in skips]
        read = [await remotes.read_chunks(connection, build.version, after=place, limit=1) for place in places]
    sample = [chunk for (chunk,) in read if any(chunk.vector)]
    found = 0
    for chunk in sample:
        found += await _is_found(services, service, name, chunk.vector)
    if 2 * found < len(sample):
        message = f"of {len(sample)} chunks only {found} are found by their own vectors"
        raise HeadwayError(message, code="index_not_whole")
    return _remote(await services.get_index(service, name), KEY, BUILT.vector)


async def _is_found(services: SearchServices, service: AzureSearchSpec, name: str, vector: Sequence[float]) -> bool:
    query = {"kind": "vector", "vector": [round(each, _DIGITS) for each in vector], "fields": BUILT.vector, "k": 1}
    request = {"vectorQueries": [query], "select": KEY, "top": 1}
    found = await services.search(service, name, request, seconds=_SEARCH_SECONDS)
    return bool(found) and 2 - 1 / max(float(found[0].get("@search.score", 0)), 0.01) > _ALIKE


async def sweep(services: SearchServices, database: Database) -> int:
    """Delete the indexes of versions that failed, were cancelled or dropped; what cannot be now is left for later.

    A service that is away is asked once, and no connection is held while it is.

    Returns:
        How many are gone.
    """
    async with database.connection() as connection:
        unused = await remotes.list_unused(connection)
    swept = 0
    away: set[str] = set()
    for each in unused:
        service = _service(each.spec)
        if service.endpoint in away:
            continue
        async with database.connection() as connection:
            if not await remotes.is_free(connection, each):
                continue
        try:
            await services.delete_index(service, each.remote)
        except HeadwayError as error:
            if isinstance(error, ProviderError):
                away.add(service.endpoint)
            _log.warning("index_left", index=each.label, remote=each.remote, detail=error.message)
            continue
        async with database.connection() as connection:
            await remotes.forget(connection, each)
        swept += 1
    return swept


def _service(spec: VersionSpec) -> AzureSearchSpec:
    service = spec.index.azure_ai_search
    assert service is not None, "a version of another kind"
    return service
