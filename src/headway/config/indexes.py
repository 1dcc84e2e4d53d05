"""What an index of headway.yaml may hold, key by key, what a release says of it, and what both become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from headway.config.azure_search import AZURE_SEARCH, AzureSearchSpec, check_azure_search, freeze_azure_search
from headway.config.document import Document, Place, nearest
from headway.config.schema import (
    INVALID,
    Choice,
    Either,
    Json,
    Key,
    Listing,
    Named,
    Number,
    Secret,
    Table,
    Text,
    check_name,
)
from headway.domain.access import is_group
from headway.domain.lake import check_url, find_secrets, is_secret, split_pattern
from headway.domain.release import Deployment, Retrieval

LOCAL_STATIC = "local-static"
LATEST = 0
"""The version of a release that names none, until the file is applied."""
LANGUAGES = (
    *("simple", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish", "french"),
    *("german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian", "nepali", "norwegian"),
    *("portuguese", "romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish"),
)

_REFERENCE = re.compile(r"([^@]+)(?:@(\d{1,9}))?", re.ASCII)
_RETRIEVAL = Retrieval("", LATEST)

Tree = Mapping[str, Any]  # as the schema read it: defaults filled in, INVALID where a problem was noted


class LakeSpec(msgspec.Struct, frozen=True):
    """The subset of a data lake that an index is built over: ``headway.lake.sources.Source``, as it is configured.

    Attributes:
        url: The root; a local folder by its absolute path.
        include, exclude: Patterns; a document matches an include and no exclude.
        prefix: What its path must begin with.
        modified_since: Only what was modified then or later; ISO 8601 in UTC, or empty.
        options: Keywords for the file system; never a secret.
        secrets: Keywords whose values are secret references.
    """

    url: str
    include: tuple[str, ...] = ("**",)
    exclude: tuple[str, ...] = ()
    prefix: str = ""
    modified_since: str = ""
    options: dict[str, Any] = {}
    secrets: dict[str, str] = {}


class EmbedderSpec(msgspec.Struct, frozen=True):
    """What makes vectors of texts.

    Attributes:
        deployment: Name of the deployment; empty for the embedded one, which needs none.
        dimensions: Of the vectors, where it has a choice; None for its own.
        batch: Texts in one call.
    """

    deployment: str = ""
    dimensions: int | None = None
    batch: int = 64


class ChunkSpec(msgspec.Struct, frozen=True):
    """How documents are cut: at most so many tokens, of which the last ``overlap`` begin the next chunk again."""

    tokens: int = 256
    overlap: int = 32


class IndexSpec(msgspec.Struct, frozen=True):
    """A search index as the file wants it.

    Attributes:
        lake: Which documents; its URL is empty where an index that exists is queried.
        embedder: What makes their vectors.
        chunk: How they are cut.
        labels: Patterns and groups. The last pattern that matches a document says which groups see it; none: everybody.
        keep: How many published versions stay, beside those in use.
        language: PostgreSQL's text search configuration.
        azure_ai_search: The service that is searched; None for the database.
    """

    lake: LakeSpec
    embedder: EmbedderSpec = EmbedderSpec()
    chunk: ChunkSpec = ChunkSpec()
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    keep: int = 5
    language: str = "english"
    azure_ai_search: AzureSearchSpec | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether an index that exists is queried, so that there is nothing to build."""
        return self.azure_ai_search is not None and bool(self.azure_ai_search.index)


class VersionSpec(msgspec.Struct, frozen=True):
    """What a version was built by, frozen: its index as the file had it then, and the deployment that embeds.

    Attributes:
        index: The index's.
        deployment: The embedder's; None for the embedded one.
    """

    index: IndexSpec
    deployment: Deployment | None = None


class IndexReference(NamedTuple):
    """An index version by name: ``handbook@3``; the version is ``LATEST`` where none is given."""

    name: str
    version: int

    def __str__(self) -> str:
        """Write it as in the file."""
        return self.name if self.version == LATEST else f"{self.name}@{self.version}"


def parse_reference(text: str) -> IndexReference:
    """Read ``handbook@3``, or ``handbook``.

    Raises:
        ValueError: It is neither; the message says what it should look like.

    Example:
        >>> parse_reference("handbook@3")
        IndexReference(name='handbook', version=3)
    """
    found = _REFERENCE.fullmatch(text)
    if found is None or (found[2] is not None and int(found[2]) < 1):
        raise ValueError("expected the name of an index, or of one of its versions, such as handbook@3")
    return IndexReference(check_name(found[1]), int(found[2] or LATEST))


def _check_reference(text: str) -> str:
    return str(parse_reference(text))


def _check_pattern(pattern: str) -> str:
    split_pattern(pattern)
    return pattern


def _check_option(name: str) -> str:
    if is_secret(name):
        raise ValueError("this option is a secret: give it under secrets, as env:NAME or file:/path")
    return name


def _check_group(group: str) -> str:
    if not is_group(group):
        raise ValueError("a group has 1 to 200 printable characters, no comma and no blank at either end")
    return group


def _check_moment(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError("expected a date such as 2026-01-31, or with a time as in 2026-01-31T12:00:00Z") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


LAKE = Table(
    {
        "url": Key(Text("the URL of a folder", check_url), "The root.", required=True),
        "options": Key(
            Named(Json(), "an option", _check_option),
            "Options of the store, as fsspec's file system takes them: `endpoint_url`, `account_name`, `anon`.",
            default={},
        ),
        "secrets": Key(Named(Secret(), "an option"), "Options whose values are secrets.", default={}),
    }
)
EMBEDDER = Table(
    {
        "deployment": Key(
            Text("the name of a deployment"), "Deployment of an embedding model: its `/embeddings`.", required=True
        ),
        "dimensions": Key(
            Number(1, 4000, whole=True), "Length of the vectors, where the model has a choice. Without it: its own."
        ),
        "batch": Key(Number(1, 2048, whole=True), "Texts in one call.", default=EmbedderSpec().batch),
    }
)
CHUNK = Table(
    {
        "tokens": Key(Number(16, 8000, whole=True), "Longest chunk, in tokens.", default=ChunkSpec().tokens),
        "overlap": Key(
            Number(0, 4000, whole=True),
            "Tokens of a chunk's end that the next one begins with; at most half of `tokens`.",
            default=ChunkSpec().overlap,
        ),
    }
)
INDEX = Table(
    {
        "lake": Key(
            Either(Text("the URL of a folder", check_url), (LAKE,)),
            "Where the documents are: `file:./folder` (from the folder of headway.yaml), `s3://bucket/folder`,"
            " `abfs://container@account.dfs.core.windows.net/folder`. Required, except with `azure_ai_search.index`.",
        ),
        "include": Key(
            Listing(Text("a pattern", _check_pattern), least=1),
            "Which documents: patterns on the path from the root. `*` is part of a name, `**` any number of folders.",
            default=["**"],
        ),
        "exclude": Key(Listing(Text("a pattern", _check_pattern)), "Which of them not.", default=[]),
        "prefix": Key(Text("the beginning of a path"), "What their paths must begin with."),
        "modified_since": Key(Text("a date", _check_moment), "Only what was modified then or later (UTC)."),
        "embedder": Key(
            Either(Choice((LOCAL_STATIC,)), (EMBEDDER,)),
            f"What makes vectors. Without it: `{LOCAL_STATIC}`, which is embedded, fast and needs no network.",
        ),
        "chunk": Key(CHUNK, "How documents are cut."),
        "labels": Key(
            Named(Listing(Text("a group", _check_group), least=1), "a pattern", _check_pattern),
            "Which groups see which documents: the last pattern that matches decides. Documents of none: everybody.",
            default={},
        ),
        "keep": Key(
            Number(1, 1000, whole=True), "Published versions that are kept, beside those in use.", default=5
        ),
        "language": Key(
            Choice(LANGUAGES), "Language of the documents, for full-text search; `simple` for mixed ones.",
            default="english",
        ),
        "azure_ai_search": Key(AZURE_SEARCH, "Search with Azure AI Search instead of the database."),
    }
)  # fmt: skip
RETRIEVAL = Table(
    {
        "hybrid_weight": Key(
            Number(0, 1),
            "What nearness in meaning counts against shared words: 1 is vectors only, 0 full text only.",
            default=_RETRIEVAL.hybrid_weight,
        ),
        "minimum_score": Key(
            Number(0, 1), "Passages with a lower score are left out.", default=_RETRIEVAL.minimum_score
        ),
        "max_context_tokens": Key(
            Number(1, 1_000_000, whole=True),
            "What all passages may take together, in tokens.",
            default=_RETRIEVAL.max_context_tokens,
        ),
        "nothing_found": Key(
            Choice(("answer", "refuse")),
            "Without passages: `answer` all the same, or `refuse` and say so without calling the model.",
            default=_RETRIEVAL.nothing_found,
        ),
        "on_failure": Key(
            Choice(("fail", "answer")),
            "When retrieval fails: `fail` the request, or `answer` without passages; it is recorded either way.",
            default=_RETRIEVAL.on_failure,
        ),
        "filter": Key(
            Named(Json(), "a metadata key"),
            "Values that a document's metadata must have; of a list, one of its values.",
            default={},
        ),
        "turns": Key(
            Number(1, 20, whole=True), "How many of the latest user messages make the query.", default=_RETRIEVAL.turns
        ),
    }
)
RELEASE_KEYS = {
    "index": Key(
        Text("the name of an index or of a version", _check_reference),
        "Index version that answers are grounded in, such as `handbook@3`. Without a number: the latest one published"
        " when the file is applied, and from then on that one.",
    ),
    "top_k": Key(Number(1, 100, whole=True), "Most passages that are put in front of the model. Without it: 5."),
    "retrieval": Key(RETRIEVAL, "How passages are found and used."),
}


def check_indexes(indexes: Any, deployments: Any, document: Document) -> None:
    """Complain of what no single key of an index can tell."""
    for name, entry in {} if indexes is INVALID else indexes.items():
        if entry is INVALID:
            continue
        place = ("indexes", name)
        _check_chunk(entry["chunk"], (*place, "chunk"), document)
        _check_place(entry, place, document)
        _check_options(entry["lake"], (*place, "lake", "options"), document)
        if isinstance(entry["embedder"], Mapping) and deployments is not INVALID:
            wanted = entry["embedder"]["deployment"]
            if wanted is not INVALID and wanted not in deployments:
                hint = nearest(wanted, deployments)
                document.complain((*place, "embedder", "deployment"), f"no deployment is called {wanted!r}{hint}")


def _check_options(lake: Any, place: Place, document: Document) -> None:
    """Complain of secrets within an option, such as those of ``client_kwargs``."""
    options = lake["options"] if isinstance(lake, Mapping) else INVALID
    for option, value in {} if options is INVALID else options.items():
        for name in find_secrets(value):
            document.complain((*place, option), f"{name} is a secret: give it under secrets, as env:NAME or file:/path")


def _check_place(entry: Tree, place: Place, document: Document) -> None:
    azure = entry["azure_ai_search"]
    if azure not in (None, INVALID):
        check_azure_search(entry, place, document)
    exists = azure is INVALID or (azure is not None and azure["index"] is not None)
    if entry["lake"] is None and not exists:
        document.complain(place, "missing key: lake")


def _check_chunk(chunk: Any, place: Place, document: Document) -> None:
    if not isinstance(chunk, Mapping) or INVALID in chunk.values():
        return
    if chunk["overlap"] * 2 > chunk["tokens"]:
        document.complain((*place, "overlap"), f"at most half of the {chunk['tokens']} tokens of a chunk")


def check_retrieval(release: Tree, place: Place, indexes: Any, document: Document) -> None:
    """Complain of an index that is not there, and of parameters without one."""
    wanted = release["index"]
    if wanted is None:
        for key in ("top_k", "retrieval"):
            if release[key] not in (None, INVALID):
                document.complain((*place, key), "is for a release with an index")
    elif wanted is not INVALID and indexes is not INVALID:
        name = parse_reference(wanted).name
        if name not in indexes:
            document.complain((*place, "index"), f"no index is called {name!r}{nearest(name, indexes)}")


def freeze_index(entry: Tree, folder: Path) -> IndexSpec:
    """Make the specification of an index whose entry is sound.

    Args:
        entry: As the schema read it.
        folder: Where local folders begin.
    """
    lake, embedder, chunk, azure = entry["lake"], entry["embedder"], entry["chunk"], entry["azure_ai_search"]
    store = lake if isinstance(lake, Mapping) else {"url": lake or "", "options": {}, "secrets": {}}
    return IndexSpec(
        lake=LakeSpec(
            url=_absolute(store["url"], folder),
            include=tuple(entry["include"]),
            exclude=tuple(entry["exclude"]),
            prefix=entry["prefix"] or "",
            modified_since=entry["modified_since"] or "",
            options=dict(store["options"]),
            secrets=dict(store["secrets"]),
        ),
        embedder=EmbedderSpec(**embedder) if isinstance(embedder, Mapping) else EmbedderSpec(),
        chunk=ChunkSpec(**chunk) if chunk else ChunkSpec(),
        labels=tuple((pattern, tuple(sorted(groups))) for pattern, groups in entry["labels"].items()),
        keep=entry["keep"],
        language=entry["language"],
        azure_ai_search=None if azure is None else freeze_azure_search(azure),
    )


def _absolute(url: str, folder: Path) -> str:
    scheme, _, rest = url.partition(":")
    if scheme != "file" or rest.startswith("/"):
        return url
    return f"file:{(folder / rest).resolve()}"


def freeze_retrieval(release: Tree) -> Retrieval | None:
    """Make the retrieval of a release whose entry is sound; its version is ``LATEST`` where it names none."""
    if release["index"] is None:
        return None
    wanted = parse_reference(release["index"])
    retrieval = Retrieval(wanted.name, wanted.version, **(release["retrieval"] or {}))
    return retrieval if release["top_k"] is None else msgspec.structs.replace(retrieval, top_k=release["top_k"])
