"""What an index says of Azure AI Search, key by key: where the service is, and which of its indexes and fields."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from headway.config.document import Document, Place
from headway.config.schema import INVALID, Choice, Key, Named, Secret, Table, Text, check_url

_INDEX_NAME = re.compile(r"[a-z0-9](?:-?[a-z0-9])*", re.ASCII)
_FIELD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_LOCAL_HOSTS = ("localhost",)

Tree = Mapping[str, Any]


class AzureFields(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which fields of an index that exists hold what; empty where it has none.

    Attributes:
        content: The text of a passage.
        title: The title of its document.
        document: What its document is called by, in citations; without it the passage's key.
        heading: The headings that it stands under.
        vector: The vector of the content.
        groups: Who may see it; without it everybody.
        metadata: Fields for filters, by the key that a filter names.
    """

    content: str
    title: str = ""
    document: str = ""
    heading: str = ""
    vector: str = ""
    groups: str = ""
    metadata: dict[str, str] = {}


class AzureSearchSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """A search service, and what is done with it.

    Attributes:
        endpoint: Its URL.
        auth: How to authenticate: an API key, or an Entra token.
        api_key: Secret reference of the key.
        index: The index that is queried as it is; empty where versions get indexes of their own.
        fields: Its fields.
        semantic: Name of the semantic configuration that ranks what was found anew; empty for none.
    """

    endpoint: str
    auth: Literal["api_key", "entra"] = "api_key"
    api_key: str | None = None
    index: str = ""
    fields: AzureFields | None = None
    semantic: str = ""


def _check_endpoint(url: str) -> str:
    url = check_url(url)
    parts = urlsplit(url)
    if parts.path:
        raise ValueError("expected the URL of the service and nothing behind it: https://NAME.search.windows.net")
    if parts.scheme != "https" and not _is_local(parts.hostname or ""):
        raise ValueError("the service is called over https: its key would be read by others")
    return url


def _is_local(host: str) -> bool:
    try:
        return host in _LOCAL_HOSTS or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_index(name: str) -> str:
    if not 2 <= len(name) <= 128 or not _INDEX_NAME.fullmatch(name):
        raise ValueError("an index of Azure AI Search has 2 to 128 lower-case letters, digits and single dashes")
    return name


def _check_field(name: str) -> str:
    if len(name) > 128 or not _FIELD_NAME.fullmatch(name):
        raise ValueError("a field of Azure AI Search begins with a letter, and has letters, digits and _")
    return name


def _check_configuration(name: str) -> str:
    if not 2 <= len(name) <= 128 or not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])", name, re.ASCII):
        raise ValueError("a semantic configuration has 2 to 128 letters, digits, - and _")
    return name


_FIELD = Text("the name of a field", _check_field)
AZURE_FIELDS = Table(
    {
        "content": Key(_FIELD, "The text of a passage.", required=True),
        "title": Key(_FIELD, "The title of its document."),
        "document": Key(_FIELD, "What citations call its document by: a path, or a URL. Without it: the key."),
        "heading": Key(_FIELD, "The headings that it stands under."),
        "vector": Key(_FIELD, "The vector of the content. Without it only words are searched."),
        "groups": Key(_FIELD, "The groups that may see it; none: everybody. Without it everybody sees everything."),
        "metadata": Key(
            Named(_FIELD, "a metadata key"), "Fields that `filter` may name, by the key that it uses.", default={}
        ),
    }
)
AZURE_SEARCH = Table(
    {
        "endpoint": Key(
            Text("a URL", _check_endpoint), "The service: `https://NAME.search.windows.net`.", required=True
        ),
        "api_key": Key(
            Secret(), "Where its API key is: an admin key for `headway index build`; a query key is enough to search."
        ),
        "auth": Key(
            Choice(("api_key", "entra")), "How to authenticate. Without it: `api_key` when there is one, else `entra`."
        ),
        "index": Key(
            Text("the name of an index", _check_index),
            "An index that exists, to be queried as it is. Without it: Headway builds one for each version, of `lake`.",
        ),
        "fields": Key(AZURE_FIELDS, "The fields of `index`, and required with it."),
        "semantic": Key(
            Text("the name of a semantic configuration", _check_configuration),
            "Semantic configuration that ranks what was found anew; one that Headway builds gets it under this name.",
        ),
    }
)


def check_azure_search(entry: Tree, place: Place, document: Document) -> None:
    """Complain of what no single key of an index in Azure AI Search can tell.

    Args:
        entry: The index, whose key ``azure_ai_search`` is sound.
        place: Of the index.
        document: Takes the complaints.
    """
    azure = entry["azure_ai_search"]
    here = (*place, "azure_ai_search")
    if azure["auth"] == "api_key" and azure["api_key"] is None:
        document.complain((*here, "auth"), "auth: api_key needs the key api_key: env:NAME or file:/path")
    if azure["auth"] == "entra" and azure["api_key"] is not None:
        document.complain((*here, "api_key"), "is not used with auth: entra; remove one of them")
    if azure["index"] is INVALID:
        return
    if azure["index"] is not None:
        _check_existing(entry, place, document)
    elif azure["fields"] is not None:
        document.complain((*here, "fields"), "are for an index that exists; that one is missing: index")


def _check_existing(entry: Tree, place: Place, document: Document) -> None:
    fields, here = entry["azure_ai_search"]["fields"], (*place, "azure_ai_search")
    for key in ("lake", "include", "exclude", "prefix", "modified_since", "chunk", "labels"):
        if entry[key] not in (None, {}, [], ["**"], INVALID):
            message = "is for indexes that Headway builds; azure_ai_search.index names one that exists"
            document.complain((*place, key), message)
    if fields is None:
        document.complain(here, "missing key: fields, which say where the index has its content")
        return
    if fields is INVALID or INVALID in fields.values():
        return
    if fields["vector"] is not None and entry["embedder"] is None:
        message = "missing key: embedder, which makes vectors of queries: the model that made the index's"
        document.complain(place, message)
    if fields["vector"] is None and entry["embedder"] not in (None, INVALID):
        document.complain((*place, "embedder"), "is not used: azure_ai_search.fields has no vector")


def freeze_azure_search(entry: Tree) -> AzureSearchSpec:
    """Make the specification of a service whose entry is sound."""
    fields = entry["fields"]
    return AzureSearchSpec(
        endpoint=entry["endpoint"],
        auth=entry["auth"] or ("entra" if entry["api_key"] is None else "api_key"),
        api_key=entry["api_key"],
        index=entry["index"] or "",
        fields=None
        if fields is None
        else AzureFields(
            **{key: value or "" for key, value in fields.items() if key != "metadata"},
            metadata=dict(fields["metadata"]),
        ),
        semantic=entry["semantic"] or "",
    )
