"""Index versions in the search service simulator: documents for some to be built, and an index that is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from headway.clock import SystemClock
from headway.config.azure_search import AzureSearchSpec
from headway.config.indexes import ChunkSpec, IndexSpec, LakeSpec, VersionSpec
from headway.domain.knowledge import Passage
from headway.domain.release import Retrieval
from headway.providers.azure_search import SearchServices
from headway.retrieval.azure_search import AzureSearch
from headway.retrieval.building import Tools, start
from headway.retrieval.chunking import approximate_tokens
from headway.retrieval.retriever import VersionRetriever, Versions
from headway.retrieval.searching import VersionSearch
from headway.storage.builds import Build
from headway.storage.database import Database
from headway.testing.search_service import SearchServiceSimulator
from tests.lakes import CountingEmbedder

HANDBOOK = {
    "leave.md": "---\ndepartment: hr\nyear: 2024\ntags: [people, rules]\n---\n# Annual leave\n\n"
    "Everybody has 25 days.\n",
    "it/laptops.md": "---\ndepartment: it\nyear: 2021\nquote: it's ours\n---\n# Laptops\n\n"
    "Every laptop is encrypted.\n",
    "it/c++.md": "# C++ style\n\nUse C++ for the kernel, not for scripts.\n",
    "hr/salaries.md": "# Salaries\n\nThe salary of a manager is zanzibar.\n",
}


@asynccontextmanager
async def open_retriever(database: Database, services: SearchServices) -> AsyncIterator[VersionRetriever]:
    known = Versions(lambda _: CountingEmbedder(), AzureSearch(services, approximate_tokens))
    opened = VersionRetriever(database, known, VersionSearch(), SystemClock())
    yield opened
    await opened.close()


def write_handbook(folder: Path) -> None:
    for path, text in HANDBOOK.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def built_in(service: SearchServiceSimulator, folder: Path, **fields: Any) -> VersionSpec:
    azure = AzureSearchSpec(service.endpoint, api_key="env:SEARCH_KEY", semantic=fields.pop("semantic", ""))
    wanted: dict[str, Any] = {
        "lake": LakeSpec(f"file:{folder}", include=("**/*.md",)),
        "chunk": ChunkSpec(96, 8),
        "labels": (("hr/**", ("hr", "it's")),),
        "azure_ai_search": azure,
    }
    return VersionSpec(IndexSpec(**{**wanted, **fields}))


async def build(tools: Tools, spec: VersionSpec, index: str = "handbook") -> Build:
    return await start(tools, index, spec, author="ann", tell=lambda _: None)


async def found(retriever: VersionRetriever, query: str, *groups: str, **parameters: Any) -> list[Passage]:
    retrieval = Retrieval("handbook", parameters.pop("version", 1), **parameters)
    return list((await retriever.retrieve(query, retrieval, frozenset(groups))).passages)


def paths(passages: Sequence[Passage]) -> list[str]:
    return [passage.document for passage in passages]


async def manifest(database: Database, version: int) -> dict[str, Any]:
    async with database.connection() as connection:
        row = await (
            await connection.execute("SELECT manifest FROM index_version WHERE id = %s", (version,))
        ).fetchone()
    assert row is not None
    return dict(row[0])


LEGACY: dict[str, Any] = {
    "name": "legacy",
    "fields": [
        {"name": "docKey", "type": "Edm.String", "key": True},
        {"name": "chunk", "type": "Edm.String", "searchable": True, "analyzer": "en.microsoft"},
        {"name": "title", "type": "Edm.String", "filterable": False},
        {"name": "url", "type": "Edm.String", "filterable": True},
        {"name": "acl", "type": "Collection(Edm.String)", "filterable": True},
        {"name": "dept", "type": "Edm.String", "filterable": True, "searchable": False},
        {"name": "year", "type": "Edm.Int32", "filterable": True},
        {"name": "public", "type": "Edm.Boolean", "filterable": True},
        {"name": "since", "type": "Edm.DateTimeOffset", "filterable": True},
        {"name": "tags", "type": "Collection(Edm.String)", "filterable": True},
        *(
            {
                "name": name,
                "type": "Collection(Edm.Single)",
                "searchable": True,
                "dimensions": dimensions,
                "vectorSearchProfile": "p",
            }
            for name, dimensions in (("embedding", 32), ("small", 8))
        ),
    ],
    "vectorSearch": {
        "algorithms": [{"name": "a", "kind": "exhaustiveKnn", "exhaustiveKnnParameters": {"metric": "cosine"}}],
        "profiles": [{"name": "p", "algorithm": "a"}],
    },
}
LEGACY_DOCUMENTS: list[dict[str, Any]] = [
    {
        "docKey": "doc_1", "chunk": "Holidays are for everybody.", "title": "Leave", "url": "https://wiki/leave",
        "acl": [], "dept": "hr", "year": 2024, "public": True, "since": "2024-01-01T00:00:00Z", "tags": ["new"],
    },
    {
        "docKey": "doc_2", "chunk": "Notebooks are encrypted.", "title": "Laptops", "url": "https://wiki/laptops",
        "acl": [], "dept": "it", "year": 2021, "public": False, "since": "2021-01-01T00:00:00Z", "tags": ["old"],
    },
    {
        "docKey": "doc_3", "chunk": "The salaries of managers.", "title": "Pay", "url": "https://wiki/pay",
        "acl": ["hr"], "dept": "hr", "year": 2024, "public": False, "since": "2024-01-01T00:00:00Z", "tags": [],
    },
]  # fmt: skip
