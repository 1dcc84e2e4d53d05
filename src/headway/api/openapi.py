"""OpenAPI of both planes: the control plane's comes from its routes, the data plane's is declared here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, get_args

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from headway import __version__
from headway.api.messages import Answer, Request
from headway.api.problems import PROBLEM_CONTENT_TYPE
from headway.api.resources import FeedbackAnswer, Health, Page, Problem, Report, ReportAnswer, ReportDetail
from headway.api.structures import read_docstring
from headway.domain.feedback import CHOICES, LINKED_INTERACTIONS, ReportStatus
from headway.feedback.intake import FeedbackPost
from headway.feedback.reporting import CommentPost, ReportPatch, ReportPost
from headway.gateway.grounding import QUERY_CHARACTERS
from headway.gateway.searching import MOST_PASSAGES, SearchAnswer, SearchPost
from headway.storage.paging import LARGEST_PAGE, PAGE_SIZE

Json = dict[str, Any]

_REF = "#/components/schemas/"
_JSON = "application/json"
_SHOWN: tuple[type[BaseModel], ...] = (FeedbackAnswer, ReportAnswer, ReportDetail, Page[Report], Problem, Health)
_STRUCTS = (FeedbackPost, ReportPost, ReportPatch, CommentPost, SearchPost, SearchAnswer)
_KEYED: list[Json] = [{"bearer": []}, {"api-key": []}]

_ERRORS: Mapping[int, str] = {
    400: "The request is malformed.",
    401: "There is no API key, or it is unknown, revoked or expired.",
    403: "The key lacks the scope, or may not use the application.",
    404: "What the request names does not exist.",
    408: "The body did not come in time.",
    409: "Somebody else was first, or the present state forbids it.",
    410: "It is past retention.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The value does not fit its metric.",
    429: "A limit was reached; `Retry-After` says when to come back, where that is known.",
    500: "Headway's own fault, or its configuration's.",
    502: "The provider failed.",
    503: "The provider or the database cannot be reached.",
    504: "The provider took too long.",
}


def tidy(document: Json) -> Json:
    """Take FastAPI's own idea of validation errors out of its document: Headway answers 400 with problem JSON."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    response["content"] = {PROBLEM_CONTENT_TYPE: {"schema": {"$ref": _REF + "Problem"}}}
            # The server's own answer, before any of ours.
            operation["responses"]["414"] = {"description": "The URL is longer than 64 KiB. There is no body."}
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


@cache
def dataplane_document() -> Json:
    """Declare the data plane."""
    _, shown = models_json_schema([(model, "serialization") for model in _SHOWN], ref_template=_REF + "{model}")
    _, structs = msgspec.json.schema_components(_STRUCTS, ref_template=_REF + "{name}")
    for schema in structs.values():
        _describe(schema)
    _bound(structs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headway data plane",
            "version": __version__,
            "description": "OpenAI-compatible routes, search, and feedback and reports on what was answered.",
        },
        "paths": {**_invocations(), **_models(), **_search(), **_feedback(), **_reports(), **_health()},
        "components": {
            "schemas": {**shown["$defs"], **structs, **_openai_schemas()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `hw-...`"},
                "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
            },
        },
    }


async def serve_dataplane_document(_: Request) -> Answer:
    """Answer ``GET /openapi.json`` on the data plane."""
    return Answer(200, msgspec.json.encode(dataplane_document()))


def _describe(schema: Json) -> None:
    """Put what the docstring says of each attribute where readers of the document look for it."""
    schema["description"], attributes = read_docstring(schema.get("description", ""))
    for name, text in attributes.items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = text


def _bound(schemas: Json) -> None:
    """Add the bounds that the handlers check themselves."""
    schemas["FeedbackPost"]["properties"]["choice"]["anyOf"][0].update(minimum=0, maximum=CHOICES - 1)
    schemas["ReportPost"]["properties"]["interaction_ids"]["maxItems"] = LINKED_INTERACTIONS
    schemas["SearchPost"]["properties"]["query"].update(minLength=1, maxLength=QUERY_CHARACTERS)
    schemas["SearchPost"]["properties"]["top_k"]["anyOf"][0].update(minimum=1, maximum=MOST_PASSAGES)


def _operation(summary: str, scope: str | None, responses: Json, **more: Any) -> Json:
    security = {} if scope is None else {"security": _KEYED}
    note = {} if scope is None else {"description": f"Needs an API key with the scope `{scope}`."}
    return {"summary": summary, **note, **security, **more, "responses": responses}


def _body(schema: str) -> Json:
    return {"required": True, "content": {_JSON: {"schema": {"$ref": _REF + schema}}}}


def _answer(description: str, schema: str, content_type: str = _JSON) -> Json:
    return {"description": description, "content": {content_type: {"schema": {"$ref": _REF + schema}}}}


def _problems(*statuses: int) -> Json:
    return {str(status): _answer(_ERRORS[status], "Problem", PROBLEM_CONTENT_TYPE) for status in statuses}


def _openai_errors(*statuses: int) -> Json:
    return {str(status): _answer(_ERRORS[status], "OpenAIError") for status in statuses}


def _invocations() -> Json:
    errors = _openai_errors(400, 401, 403, 404, 408, 409, 413, 415, 429, 500, 502, 503, 504)
    headers: Json = {
        "x-headway-interaction": {"description": "The interaction id.", "schema": {"type": "string"}},
        "x-headway-release": {"description": "The release that answered.", "schema": {"type": "string"}},
    }
    answer: Json = {
        "200": {
            "description": "The answer; its `id` is the interaction id. With `stream: true`, server-sent events.",
            "headers": headers,
            "content": {_JSON: {"schema": {"type": "object"}}, "text/event-stream": {}},
        }
    }
    azure: list[Json] = [
        {"name": "application", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "api-version", "in": "query", "schema": {"type": "string"}},
    ]
    routes = (
        ("chat/completions", "Answer a chat", "ChatRequest"),
        ("responses", "Answer with the Responses API", "ResponsesRequest"),
        ("embeddings", "Embed texts", "EmbeddingsRequest"),
    )
    paths: Json = {}
    for route, summary, schema in routes:
        for prefix in ("/v1/", "/openai/v1/"):
            more: Json = {"requestBody": _body(schema), "parameters": [_groups()], "tags": ["openai"]}
            paths[prefix + route] = {"post": _operation(summary, "invoke", {**answer, **errors}, **more)}
    for route, summary, schema in routes:
        if route == "responses":
            path, parameters = "/openai/responses", azure[1:]
        else:
            path, parameters = "/openai/deployments/{application}/" + route, azure
        body = _body(schema if route == "responses" else f"Azure{schema}")
        more = {"requestBody": body, "parameters": [*parameters, _groups()], "tags": ["azure"]}
        paths[path] = {"post": _operation(summary, "invoke", {**answer, **errors}, **more)}
    return paths


def _models() -> Json:
    model: Json = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    listed = {"200": _answer("The applications that the key may use.", "ModelList"), **_openai_errors(401, 403)}
    shown = {"200": _answer("The application.", "Model"), **_openai_errors(401, 403, 404)}
    more = {"tags": ["openai"]}
    return {
        "/v1/models": {"get": _operation("List the applications", "invoke", listed, **more)},
        "/v1/models/{model}": {"get": _operation("Show an application", "invoke", shown, parameters=[model], **more)},
        "/openai/v1/models": {"get": _operation("List the applications", "invoke", listed, **more)},
    }


def _groups() -> Json:
    return {
        "name": "x-headway-groups",
        "in": "header",
        "description": "The end user's groups, separated by commas; needs the scope `delegate`.",
        "schema": {"type": "string"},
    }


def _search() -> Json:
    responses = {
        "200": _answer("Passages that the caller may see, best first.", "SearchAnswer"),
        **_problems(400, 401, 403, 404, 408, 413, 415, 429, 503),
    }
    more: Json = {"parameters": [_groups()], "requestBody": _body("SearchPost"), "tags": ["search"]}
    return {"/v1/search": {"post": _operation("Search as a release does", "invoke", responses, **more)}}


def _feedback() -> Json:
    responses: Json = {
        "201": _answer("A new value; an earlier one of the same author is superseded.", "FeedbackAnswer"),
        "200": _answer("The same value was there already; its id.", "FeedbackAnswer"),
        "202": _answer("Kept on disk until the database is back.", "FeedbackAnswer"),
        **_problems(400, 401, 403, 404, 408, 410, 413, 415, 422, 429, 503),
    }
    operation = _operation("Rate an answer or a conversation", None, responses)
    operation |= {
        "description": (
            "With an interaction id alone for end users, from a browser too; with an API key of scope `feedback` for"
            " conversations, and for other sources and authors. Idempotent per target, metric and author."
        ),
        "security": [*_KEYED, {}],
        "requestBody": _body("FeedbackPost"),
        "tags": ["feedback"],
    }
    return {"/v1/feedback": {"post": operation}}


def _reports() -> Json:
    identity: Json = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    once: Json = {
        "name": "idempotency-key",
        "in": "header",
        "description": "The same one again is the same report.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 127, "pattern": "^[!-~]+$"},
    }
    limit: Json = {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE, "default": PAGE_SIZE}
    queries: Sequence[tuple[str, Json]] = (
        ("status", {"type": "string", "enum": list(get_args(ReportStatus))}),
        ("limit", limit),
        ("cursor", {"type": "string", "maxLength": 500}),
    )
    parameters: list[Json] = [{"name": name, "in": "query", "schema": schema} for name, schema in queries]
    posted: Json = {
        "201": _answer("A new report.", "ReportAnswer"),
        "200": _answer("The report of this idempotency key was there already.", "ReportAnswer"),
        "202": _answer("Kept on disk until the database is back.", "ReportAnswer"),
        **_problems(400, 401, 403, 404, 408, 410, 413, 415, 429, 503),
    }
    whole = _answer("The report.", "ReportDetail")
    listed = {"200": _answer("A page of reports.", "Page_Report_"), **_problems(400, 401, 403, 503)}
    changed = {"200": whole, **_problems(400, 401, 403, 404, 408, 409, 413, 415, 429, 503)}
    commented = {"201": whole, **_problems(400, 401, 403, 404, 408, 413, 415, 429, 503)}
    tags = ["reports"]
    scope = "feedback"
    return {
        "/v1/reports": {
            "post": _operation(
                "Report an issue", scope, posted, parameters=[once], requestBody=_body("ReportPost"), tags=tags
            ),
            "get": _operation("List this key's reports, newest first", scope, listed, parameters=parameters, tags=tags),
        },
        "/v1/reports/{id}": {
            "parameters": [identity],
            "get": _operation("Show a report", scope, {"200": whole, **_problems(401, 403, 404, 503)}, tags=tags),
            "patch": _operation("Change a report", scope, changed, requestBody=_body("ReportPatch"), tags=tags),
        },
        "/v1/reports/{id}/comments": {
            "parameters": [identity],
            "post": _operation("Comment on a report", scope, commented, requestBody=_body("CommentPost"), tags=tags),
        },
    }


def _health() -> Json:
    alive = {"200": _answer("The process is alive.", "Health")}
    ready = {"200": _answer("It serves a routing snapshot.", "Health"), **_problems(503)}
    document = {"200": {"description": "This document.", "content": {_JSON: {"schema": {"type": "object"}}}}}
    tags = ["health"]
    return {
        "/healthz": {"get": _operation("Say that the process is alive", None, alive, tags=tags)},
        "/readyz": {"get": _operation("Say whether requests can be served", None, ready, tags=tags)},
        "/openapi.json": {"get": _operation("Describe the data plane", None, document, tags=tags)},
    }


def _object(required: Sequence[str], properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties}


def _openai_schemas() -> Json:
    """The parts of OpenAI's shapes that Headway reads; everything else passes through to the provider."""
    text: Json = {"type": "string"}
    nullable: Json = {"anyOf": [text, {"type": "null"}]}
    words: Json = {"anyOf": [text, {"type": "array"}]}
    model: Json = {**text, "description": "`application`, or `application@release` with the scope `pin`."}
    stream: Json = {"type": "boolean"}
    messages: Json = {"type": "array", "items": _object(["role"], {"role": text}), "minItems": 1}
    chat: Json = {"model": model, "messages": messages, "stream": stream, "user": nullable}
    embeddings: Json = {"model": model, "input": words}
    responses: Json = {"model": model, "input": words, "stream": stream, "previous_response_id": nullable}
    detail: Json = {"message": text, "type": text, "param": nullable, "code": nullable}
    shown: Json = {"id": text, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": text}
    listed: Json = {"object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": _REF + "Model"}}}
    return {
        "ChatRequest": _object(["model", "messages"], chat),
        "AzureChatRequest": _object(["messages"], chat),
        "EmbeddingsRequest": _object(["model", "input"], embeddings),
        "AzureEmbeddingsRequest": _object(["input"], embeddings),
        "ResponsesRequest": _object(["model"], responses),
        "OpenAIError": _object(["error"], {"error": _object(list(detail), detail)}),
        "Model": _object(list(shown), shown),
        "ModelList": _object(list(listed), listed),
    }
