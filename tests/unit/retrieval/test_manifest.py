"""Manifests: the same content has the same hash, and nothing else."""

import msgspec
import pytest

from headway.config.indexes import ChunkSpec, EmbedderSpec, IndexSpec, LakeSpec, VersionSpec
from headway.domain.knowledge import Document
from headway.domain.release import Deployment, Endpoint
from headway.retrieval.manifest import ContentHash, Recipe, name_embedder

RECIPE = Recipe(1, 256, 32, "english", "local-static", 256)
LEAVE = Document("hr/leave.md", "a", "Leave", "2026", {"b": 1, "a": [2]}, ("hr", "staff"))
TRAVEL = Document("travel.md", "b", "Travel")
BROKEN = Document("x.pdf", "", "")


def hash_content(*documents: tuple[Document, str | None], recipe: Recipe = RECIPE) -> str:
    content = ContentHash(recipe)
    for document, chunks_hash in documents:
        content.add(document, chunks_hash)
    return content.hexdigest()


WHOLE = hash_content((LEAVE, "c"), (TRAVEL, "d"), (BROKEN, None))


def test_what_does_not_matter_changes_nothing() -> None:
    leave = msgspec.structs.replace(LEAVE, modified="2027", metadata={"a": [2], "b": 1}, groups=("staff", "hr"))
    assert hash_content((leave, "c"), (TRAVEL, "d"), (BROKEN, None)) == WHOLE


@pytest.mark.parametrize(
    ("change", "chunks_hash"),
    [
        ({"path": "hr/leaves.md"}, "c"),
        ({"content_hash": "z"}, "c"),
        ({"title": "Leaves"}, "c"),
        ({"metadata": {}}, "c"),
        ({"groups": ()}, "c"),
        ({}, "z"),
        ({}, None),
    ],
)
def test_what_matters_changes_it(change: dict[str, object], chunks_hash: str | None) -> None:
    leave = msgspec.structs.replace(LEAVE, **change)
    assert hash_content((leave, chunks_hash), (TRAVEL, "d"), (BROKEN, None)) != WHOLE


def test_so_do_the_recipe_and_what_is_there() -> None:
    other = msgspec.structs.replace(RECIPE, overlap=0)
    assert hash_content((LEAVE, "c"), (TRAVEL, "d"), (BROKEN, None), recipe=other) != WHOLE
    assert hash_content((LEAVE, "c"), (BROKEN, None)) != WHOLE
    assert hash_content((LEAVE, "c"), (TRAVEL, "d")) != WHOLE


def test_an_embedder_is_named_by_what_makes_its_vectors() -> None:
    spec = IndexSpec(LakeSpec("file:/docs"), EmbedderSpec("e"), ChunkSpec())
    endpoint = Endpoint("azure_openai", "https://c.openai.azure.com", "small", "2024-10-21")
    named = name_embedder(VersionSpec(spec, Deployment("e", endpoint)))
    assert named == "small at https://c.openai.azure.com (2024-10-21)"
    assert name_embedder(VersionSpec(spec, Deployment("other", endpoint))) == named
    assert name_embedder(VersionSpec(IndexSpec(LakeSpec("file:/docs")))) == "local-static"
    assert RECIPE.same_vectors(msgspec.structs.replace(RECIPE, tokens=128))
    assert not RECIPE.same_vectors(msgspec.structs.replace(RECIPE, dimensions=128))
