"""The control plane's route that compares two index versions by queries."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from pydantic import Field, create_model

from headway.api.control_parts import ControlServices, Services, Viewer, problems
from headway.api.resources import Resource, Wish
from headway.api.structures import resource_of
from headway.config.indexes import IndexReference, parse_reference
from headway.domain.access import has_scope, is_group
from headway.domain.release import Retrieval
from headway.domain.snapshot import KeyRoute
from headway.errors import InvalidRequestError, LimitError, OverloadedError, PermissionDeniedError
from headway.gateway.asked import Asked, read_asked
from headway.gateway.searching import MOST_PASSAGES
from headway.retrieval.comparing import TOP_K, Comparison, Trial, compare_versions
from headway.retrieval.queries import MOST_CHARACTERS, Label, LabelledQuery, make_query
from headway.storage import applications, versions

MOST_QUERIES = 500
"""Of one request: it takes seconds."""
_SECONDS = 120.0  # the embedded model may have to be loaded first
_RETRY_SECONDS = 10.0
_PLACES = 2  # at a time; somebody may want to search by hand

router = APIRouter()

Text = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS, pattern=r"^[^\x00]*$")]


class LabelWish(Wish):
    """What answers a query: a document, a section of it, or one of its chunks."""

    document: Text = Field(description="Its path in the lake.")
    heading: str = Field(
        default="", max_length=MOST_CHARACTERS, description="A heading of it; empty for the whole document."
    )
    position: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None, description="Number of a chunk, from 0; it means the same only in versions that are cut alike."
    )
    grade: float = Field(default=1.0, gt=0, le=1e6, description="How well it answers; nDCG goes by it.")


class QueryWish(Wish):
    """A query."""

    query: Text = Field(description="What to search for.")
    relevant: list[Text | LabelWish] = Field(
        default=[], max_length=1000, description="What answers it: `path`, `path#heading`, or labels; empty: not known."
    )


class CompareWish(Wish):
    """Which versions to compare, and by what: give either `queries` or `from_interactions`."""

    before: Text = Field(description="The version in use, as `handbook@3`.")
    after: Text = Field(description="The version that may follow it.")
    queries: list[QueryWish] | None = Field(default=None, min_length=1, max_length=MOST_QUERIES)
    from_interactions: Text | None = Field(default=None, description="Take what this application was asked last.")
    limit: int = Field(default=MOST_QUERIES, ge=1, le=MOST_QUERIES, description="Of these, so many different queries.")
    application: Text | None = Field(
        default=None,
        description="Search as this application's stable release does; by default that of `from_interactions`.",
    )
    top_k: int | None = Field(default=None, ge=1, le=MOST_PASSAGES, description="Passages of a search; else 10.")
    hybrid_weight: float | None = Field(default=None, ge=0, le=1, description="What meaning counts against words.")
    minimum_score: float | None = Field(default=None, ge=0, le=1, description="Leave out what scores lower.")
    groups: list[Text] | None = Field(
        default=None,
        max_length=1000,
        description="Search as who is in these groups. By default all documents are found with a key of scope `admin`,"
        " and with others those that everybody and the key's own groups see.",
    )


class AskedCounts(Resource):
    """Recorded interactions that queries were taken of."""

    interactions: int = Field(description="How many were looked at, the latest ones.")
    without_content: int = Field(description="Of them, those whose content is not stored.")
    without_query: int = Field(description="Of them, those that ask for nothing in words.")
    repeated: int = Field(description="Of them, those that ask for the same as a later one.")


IndexComparison = create_model(
    "IndexComparison",
    __base__=resource_of(Comparison),
    __doc__=resource_of(Comparison).__doc__,
    asked=(AskedCounts | None, Field(description="What the queries were taken of; null where they were given.")),
)


@router.post("/index-comparisons", response_model=IndexComparison, responses=problems(404, 429))
async def compare_index_versions(services: Services, key: Viewer, wish: CompareWish) -> Any:
    """Compare two index versions by queries, before any caller meets the second one.

    With labels: recall, MRR and nDCG of either, and their differences. Without: how far both agree. Intervals hold the
    mean over all such queries in 95 of 100 cases. Lost documents are named, with what became of them.
    """
    groups = _choose_groups(key, wish.groups)
    if (wish.queries is None) == (wish.from_interactions is None):
        raise InvalidRequestError("give either queries or from_interactions", param="queries")
    queries = [_read_query(number, each) for number, each in enumerate(wish.queries or ())]
    wanted = _read_reference("before", wish.before), _read_reference("after", wish.after)
    async with services.database.connection() as connection:
        before, after = [await versions.find_version(connection, each) for each in wanted]
    if services.comparisons.locked():
        message = "other comparisons are running: come back when one has ended"
        raise OverloadedError(message, retry_after_seconds=_RETRY_SECONDS)
    async with services.comparisons:
        base, asked = await _read_asked(services, wish)
        if asked is not None:
            queries = [LabelledQuery(text) for text in asked.queries]
        said = {name: getattr(wish, name) for name in ("top_k", "hybrid_weight", "minimum_score")}
        retrieval = msgspec.structs.replace(base, **{name: value for name, value in said.items() if value is not None})
        found = await _compare(services, Trial(before, after, retrieval, groups), queries)
    return msgspec.to_builtins(found) | {"asked": None if asked is None else asked.counts}


async def _compare(services: ControlServices, trial: Trial, queries: list[LabelledQuery]) -> Comparison:
    try:
        async with asyncio.timeout(_SECONDS):
            return await compare_versions(services.database, services.retriever, trial, queries, places=_PLACES)
    except TimeoutError as error:
        message = (
            f"comparing by {len(queries)} queries took more than {_SECONDS:g} s: give fewer, or use"
            " `headway index compare`, which takes its time"
        )
        raise LimitError(message, param="queries", code="comparison_too_long") from error


async def _read_asked(services: ControlServices, wish: CompareWish) -> tuple[Retrieval, Asked | None]:
    """Read how to search, and what was asked, where the queries come from there."""
    plain = Retrieval("", 0, top_k=TOP_K)
    async with services.database.connection() as connection:
        base = await applications.find_retrieval(connection, wish.application, plain, otherwise=wish.from_interactions)
        if wish.from_interactions is None:
            return base, None
        application = await applications.find_application(connection, wish.from_interactions)
        return base, await read_asked(connection, application, wish.limit, base.turns)


def _choose_groups(key: KeyRoute, wanted: list[str] | None) -> frozenset[str] | None:
    """Say whose documents are found: an admin may search as anybody, others as themselves."""
    own, is_admin = frozenset(key.groups), has_scope(key, "admin")
    if wanted is None:
        return None if is_admin else own
    groups = frozenset(wanted)
    if not all(map(is_group, groups)):
        raise InvalidRequestError("groups: a group has 1 to 200 printable characters, no comma", param="groups")
    if not is_admin and not groups <= own:
        raise PermissionDeniedError(f"the API key {key.name!r} is not in all of these groups", param="groups")
    return groups


def _read_query(number: int, wish: QueryWish) -> LabelledQuery:
    labels = [each if isinstance(each, str) else Label(**each.model_dump()) for each in wish.relevant]
    try:
        return make_query(wish.query, labels)
    except ValueError as error:
        param = f"queries.{number}"
        raise InvalidRequestError(f"{param}: {error}", param=param) from error


def _read_reference(param: str, text: str) -> IndexReference:
    try:
        return parse_reference(text)
    except ValueError as error:
        raise InvalidRequestError(f"{param}: {error}", param=param) from error
