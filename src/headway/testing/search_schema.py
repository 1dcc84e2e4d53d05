"""What the search service simulator takes: definitions, documents and searches, held against the documented format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from headway.testing.search_filter import FilterError, read_filter

API_VERSIONS = ("2024-07-01", "2025-09-01")
INDEX_NAME = re.compile(r"[a-z0-9](?:-?[a-z0-9])*", re.ASCII)
KEY = re.compile(r"[A-Za-z0-9\-=][A-Za-z0-9_\-=]{0,1023}", re.ASCII)
MOST_DOCUMENTS = 1000
MOST_BYTES = 16 * 1024 * 1024
_TERM_BYTES = 32766

_INDEX_KEYS = frozenset(
    {
        *("name", "description", "fields", "scoringProfiles", "defaultScoringProfile", "corsOptions", "suggesters"),
        *("analyzers", "tokenizers", "tokenFilters", "charFilters", "normalizers", "encryptionKey", "similarity"),
        *("semantic", "vectorSearch", "@odata.etag"),
    }
)
_FIELD_KEYS = frozenset(
    {
        *("name", "type", "key", "retrievable", "stored", "searchable", "filterable", "sortable", "facetable"),
        *("analyzer", "searchAnalyzer", "indexAnalyzer", "normalizer", "dimensions", "vectorSearchProfile"),
        *("vectorEncoding", "synonymMaps", "fields"),
    }
)
_TYPES: Mapping[str, tuple[type, ...]] = {
    "Edm.String": (str,),
    "Edm.Int32": (int,),
    "Edm.Int64": (int,),
    "Edm.Double": (int, float),
    "Edm.Boolean": (bool,),
    "Edm.DateTimeOffset": (str,),
    "Edm.ComplexType": (dict,),
    "Edm.Single": (int, float),
}
_ANALYZER = re.compile(r"[a-zA-Z-]{2,12}\.(?:lucene|microsoft)|keyword|simple|stop|whitespace|pattern", re.ASCII)
_SEARCH_TYPES: Mapping[str, tuple[type, ...]] = {
    "count": (bool,),
    "debug": (str,),
    "filter": (str,),
    "queryType": (str,),
    "search": (str,),
    "searchFields": (str,),
    "searchMode": (str,),
    "select": (str,),
    "semanticConfiguration": (str,),
    "semanticErrorHandling": (str,),
    "semanticQuery": (str,),
    "skip": (int,),
    "top": (int,),
    "vectorFilterMode": (str,),
    "vectorQueries": (list,),
}
_CHOICES = {
    "debug": ("disabled", "vector"),
    "queryType": ("simple", "full", "semantic"),
    "searchMode": ("any", "all"),
    "semanticErrorHandling": ("partial", "fail"),
    "vectorFilterMode": ("preFilter", "postFilter"),
}
_VECTOR_KEYS = frozenset({"kind", "vector", "fields", "k", "exhaustive", "oversampling", "weight"})


class RefusalError(Exception):
    """The service answers 400; says why."""


def refuse_unless(condition: object, message: str) -> None:
    """Refuse what does not hold.

    Raises:
        RefusalError: It does not.
    """
    if not condition:
        raise RefusalError(message)


# --- definitions ----------------------------------------------------------------------------------------------------


def check_definition(definition: Any, name: str) -> None:
    """Hold the definition of an index against the format.

    Raises:
        RefusalError: It does not fit.
    """
    refuse_unless(isinstance(definition, dict), "the index definition is no object")
    _known(definition, _INDEX_KEYS, "Microsoft.Azure.Search.V2025_09_01.IndexDefinition")
    refuse_unless(definition.get("name") == name, "the index name in the URL does not match that of the body")
    fields = definition.get("fields")
    refuse_unless(isinstance(fields, list) and fields, "the index has no fields")
    keys = [field for field in fields if _check_field(field, definition, top=True)]
    refuse_unless(len(keys) == 1, "an index must have exactly one key field")
    search = definition.get("vectorSearch") or {}
    _known(search, {"profiles", "algorithms", "vectorizers", "compressions"}, "VectorSearch")
    algorithms = {each.get("name") for each in search.get("algorithms", ())}
    for algorithm in search.get("algorithms", ()):
        _check_algorithm(algorithm)
    for profile in search.get("profiles", ()):
        _known(profile, {"name", "algorithm", "vectorizer", "compression"}, "VectorSearchProfile")
        refuse_unless(profile.get("algorithm") in algorithms, "the profile names an algorithm that is not there")
    similarity = definition.get("similarity") or {}
    _known(similarity, {"@odata.type", "k1", "b"}, "Similarity")
    kinds = (None, *(f"#Microsoft.Azure.Search.{kind}Similarity" for kind in ("BM25", "Classic")))
    refuse_unless(similarity.get("@odata.type") in kinds, "unknown similarity")
    _check_semantic(definition)


def _check_field(field: Any, definition: Mapping[str, Any], *, top: bool) -> bool:
    """Check a field; gives whether it is the key."""
    refuse_unless(isinstance(field, dict), "a field is no object")
    _known(field, _FIELD_KEYS, "SearchField")
    name, kind = field.get("name"), field.get("type")
    refuse_unless(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,127}", str(name)), f"invalid field name {name!r}")
    inner = kind[len("Collection(") : -1] if str(kind).startswith("Collection(") else kind
    refuse_unless(inner in _TYPES, f"{name}: unknown type {kind!r}")
    if inner == "Edm.ComplexType":
        refuse_unless(not {"searchable", "filterable", "retrievable"} & field.keys(), f"{name}: not for complex fields")
        for each in field.get("fields", ()):
            _check_field(each, definition, top=False)
        return False
    if kind == "Collection(Edm.Single)":
        profiles = {each.get("name") for each in (definition.get("vectorSearch") or {}).get("profiles", ())}
        refuse_unless(field.get("searchable", True), f"{name}: a vector field is searchable")
        refuse_unless(2 <= field.get("dimensions", 0) <= 4096, f"{name}: dimensions must be 2 to 4096")
        refuse_unless(field.get("vectorSearchProfile") in profiles, f"{name}: no such vector search profile")
        uses = [use for use in ("filterable", "sortable", "facetable") if field.get(use)]
        refuse_unless(not uses, f"{name}: a vector field cannot be {', '.join(uses)}")
        stored, retrievable = field.get("stored", True), field.get("retrievable", True)
        refuse_unless(stored or not retrievable, f"{name}: what is not stored is not retrievable")
    else:
        refuse_unless(inner == "Edm.String" or not field.get("searchable"), f"{name}: only texts are searchable")
        refuse_unless("stored" not in field, f"{name}: stored is for vector fields")
    collection = str(kind).startswith("Collection(")
    refuse_unless(not field.get("sortable") or (top and not collection), f"{name}: only single values are sortable")
    analyzer = field.get("analyzer")
    refuse_unless(analyzer is None or _ANALYZER.fullmatch(analyzer), f"{name}: unknown analyzer {analyzer!r}")
    refuse_unless(analyzer is None or field.get("searchable", True), f"{name}: only a searchable field has an analyzer")
    if field.get("key"):
        refuse_unless(top and kind == "Edm.String", f"{name}: the key must be a top-level Edm.String")
    return bool(field.get("key"))


def _check_algorithm(algorithm: Mapping[str, Any]) -> None:
    _known(algorithm, {"name", "kind", "hnswParameters", "exhaustiveKnnParameters"}, "VectorSearchAlgorithm")
    refuse_unless(algorithm.get("kind") in ("hnsw", "exhaustiveKnn"), "unknown kind of algorithm")
    given = algorithm.get("hnswParameters") or {}
    _known(given, {"m", "efConstruction", "efSearch", "metric"}, "HnswParameters")
    refuse_unless(4 <= given.get("m", 4) <= 10, "m must be 4 to 10")
    for name in ("efConstruction", "efSearch"):
        refuse_unless(100 <= given.get(name, 400) <= 1000, f"{name} must be 100 to 1000")
    refuse_unless(given.get("metric", "cosine") in ("cosine", "euclidean", "dotProduct"), "unknown metric")


def _check_semantic(definition: Mapping[str, Any]) -> None:
    semantic = definition.get("semantic") or {}
    _known(semantic, {"defaultConfiguration", "configurations"}, "SemanticSettings")
    names = {field["name"] for field in definition["fields"]}
    for each in semantic.get("configurations", ()):
        _known(each, {"name", "prioritizedFields"}, "SemanticConfiguration")
        ranked = each.get("prioritizedFields") or {}
        _known(ranked, {"titleField", "prioritizedContentFields", "prioritizedKeywordsFields"}, "PrioritizedFields")
        used = [*ranked.get("prioritizedContentFields", ()), *ranked.get("prioritizedKeywordsFields", ())]
        for field in [*used, *([ranked["titleField"]] if "titleField" in ranked else ())]:
            refuse_unless(field.get("fieldName") in names, f"no field {field.get('fieldName')!r} to rank by")


def fill_in(field: Mapping[str, Any], *, single: bool = True) -> dict[str, Any]:
    """Give a field as the service keeps it: what is not said of it has the documented default."""
    kind = field["type"]
    inner = kind[len("Collection(") : -1] if kind.startswith("Collection(") else kind
    single = single and inner == kind
    if inner == "Edm.ComplexType":
        return {**field, "fields": [fill_in(each, single=single) for each in field["fields"]]}
    vector = kind == "Collection(Edm.Single)"
    defaults = {
        "key": False,
        "retrievable": not vector,
        "searchable": inner == "Edm.String" or vector,
        "filterable": not vector,
        "sortable": single,
        "facetable": not vector,
    }
    return {**defaults, **field}


# --- documents ------------------------------------------------------------------------------------------------------


def check_action(action: Any, fields: Mapping[str, Mapping[str, Any]], key: str) -> None:
    """Hold an action of a batch against the index.

    Raises:
        RefusalError: It does not fit.
    """
    refuse_unless(isinstance(action, dict), "an action is no object")
    kinds = ("upload", "merge", "mergeOrUpload", "delete")
    refuse_unless(action.get("@search.action", "upload") in kinds, "unknown action")
    given = action.get(key)
    refuse_unless(isinstance(given, str) and KEY.fullmatch(given), f"invalid document key: {given!r}")
    _check_values(
        {name: value for name, value in action.items() if name != "@search.action"}, fields, "search.document"
    )


def _check_values(given: Mapping[str, Any], fields: Mapping[str, Mapping[str, Any]], kind: str) -> None:
    _known(given, fields.keys(), kind)
    for name, value in given.items():
        field = fields[name]
        collection = field["type"].startswith("Collection(")
        inner = field["type"][len("Collection(") : -1] if collection else field["type"]
        if collection:
            refuse_unless(isinstance(value, list), f"{name}: expected an array")
        elif value is None:
            continue
        for each in value if collection else [value]:
            fits = isinstance(each, _TYPES[inner]) and (inner == "Edm.Boolean" or not isinstance(each, bool))
            refuse_unless(fits, f"{name}: cannot convert the value to {inner}")
            if inner == "Edm.ComplexType":
                _check_values(each, {sub["name"]: sub for sub in field["fields"]}, name)
            if isinstance(each, str) and any(field.get(use) for use in ("filterable", "sortable", "facetable")):
                refuse_unless(len(each.encode()) <= _TERM_BYTES, f"{name}: the term is longer than {_TERM_BYTES} bytes")
        if inner == "Edm.Single":
            refuse_unless(len(value) == field["dimensions"], f"{name}: expected {field['dimensions']} dimensions")


# --- searches -------------------------------------------------------------------------------------------------------


def check_search(request: Any, definition: Mapping[str, Any], fields: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold a search against the format and the index.

    Raises:
        RefusalError: It does not fit.
    """
    refuse_unless(isinstance(request, dict), "the search is no object")
    _known(request, _SEARCH_TYPES.keys(), "SearchRequest")
    for name, value in request.items():
        fits = isinstance(value, _SEARCH_TYPES[name]) and isinstance(value, bool) == (_SEARCH_TYPES[name] == (bool,))
        refuse_unless(fits, f"{name}: wrong type")
        refuse_unless(name not in _CHOICES or value in _CHOICES[name], f"{name}: {value!r} is not supported")
    refuse_unless(0 <= request.get("top", 50) <= 1000, "top must be 0 to 1000")
    for name in _names(request.get("select", "")):
        refuse_unless(name in fields, f"select: could not find a property named {name!r}")
        refuse_unless(fields[name].get("retrievable", True), f"select: {name!r} is not retrievable")
    for name in _names(request.get("searchFields", "")):
        searchable = name in fields and fields[name].get("searchable") and fields[name]["type"] == "Edm.String"
        refuse_unless(searchable, f"searchFields: {name!r} is not a searchable field")
    queries = request.get("vectorQueries", [])
    for query in queries:
        _check_vector_query(query, fields)
    if request.get("queryType") == "semantic":
        known = {each["name"] for each in (definition.get("semantic") or {}).get("configurations", ())}
        refuse_unless(request.get("semanticConfiguration") in known, "unknown semantic configuration")
        refuse_unless(request.get("search") or request.get("semanticQuery"), "a semantic query needs a text")
    else:
        refuse_unless("semanticConfiguration" not in request, "semanticConfiguration needs queryType semantic")
    if "filter" in request:
        try:
            read_filter(request["filter"], fields)
        except FilterError as error:
            raise RefusalError(f"Invalid expression: {error}\nParameter name: $filter") from error


def _check_vector_query(query: Any, fields: Mapping[str, Mapping[str, Any]]) -> None:
    refuse_unless(isinstance(query, dict), "a vector query is no object")
    _known(query, _VECTOR_KEYS, "VectorQuery")
    refuse_unless(query.get("kind") == "vector", "only vectors are simulated")
    for name in _names(query.get("fields", "")):
        field = fields.get(name, {})
        refuse_unless(field.get("type") == "Collection(Edm.Single)", f"{name!r} is no vector field")
        refuse_unless(
            len(query.get("vector", ())) == field.get("dimensions"),
            f"the vector has {len(query.get('vector', ()))} dimensions, the field {name!r} {field.get('dimensions')}",
        )
    refuse_unless(isinstance(query.get("k", 1), int) and query.get("k", 1) > 0, "k must be at least 1")
    refuse_unless(query.get("weight", 1) > 0, "the weight must be larger than 0")


def _names(text: str) -> Sequence[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _known(given: Mapping[str, Any], known: Any, kind: str) -> None:
    for name in given:
        refuse_unless(name in known, f"The property '{name}' does not exist on type '{kind}'")
