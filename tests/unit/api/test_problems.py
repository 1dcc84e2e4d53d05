"""Errors as HTTP: statuses, shapes, headers; and docs/reference/errors.md, which says them all."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headway import errors
from headway.api.problems import render_openai, render_problem, status_of
from headway.errors import HeadwayError

ROOT = Path(__file__).resolve().parents[3]
CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, HeadwayError) and found.__module__ == errors.__name__
}


def used_codes() -> Iterator[tuple[str, int]]:
    """Every code that an answer can have, with its status: those of the classes and those given where one is raised."""
    for found in CLASSES.values():
        yield found.code, status_of(found)
    own = [path for path in (ROOT / "src/headway").rglob("*.py") if not {"client", "testing"} & set(path.parts)]
    for path in own:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in CLASSES:
                continue
            for keyword in node.keywords:
                if keyword.arg == "code" and isinstance(keyword.value, ast.Constant):
                    yield str(keyword.value.value), status_of(CLASSES[node.func.id])


def test_the_reference_names_every_code_with_its_status() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text()
    documented = {(code, int(status)) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \| ", page, re.MULTILINE)}
    assert len(documented) > 30
    assert documented == set(used_codes())


def test_every_class_has_a_status_of_its_kind() -> None:
    assert status_of(errors.EmbeddedPostgresError) == status_of(errors.StorageError) == 503
    assert {status_of(found) for found in CLASSES.values()} <= set(range(400, 505))
    assert status_of(HeadwayError("x")) == 500
    assert status_of(errors.OverloadedError("x")) == 429


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.AuthenticationError("who?"), "authentication_error"),
        (errors.PermissionDeniedError("no"), "permission_error"),
        (errors.RateLimitError("slow down"), "rate_limit_error"),
        (errors.InvalidRequestError("what?", param="model"), "invalid_request_error"),
        (errors.ProviderTimeoutError("late"), "server_error"),
    ],
)
def test_openai_shape(error: HeadwayError, kind: str) -> None:
    answer = render_openai(error)
    assert (answer.status, answer.content_type) == (status_of(error), "application/json")
    assert msgspec.json.decode(answer.body) == {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.error_code}
    }


def test_problem_shape() -> None:
    answer = render_problem(errors.NotFoundError("no such metric", param="metric", code="unknown_metric"))
    assert (answer.status, answer.content_type, answer.headers) == (404, "application/problem+json", ())
    assert msgspec.json.decode(answer.body) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "no such metric",
        "code": "unknown_metric",
        "param": "metric",
    }
    assert "param" not in msgspec.json.decode(render_problem(errors.ConflictError("x")).body)


@pytest.mark.parametrize(("seconds", "header"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.2, b"2"), (60, b"60")])
def test_retry_after_is_whole_seconds_rounded_up(seconds: float, header: bytes) -> None:
    error = errors.RateLimitError("x", retry_after_seconds=seconds)
    assert dict(render_problem(error).headers) == dict(render_openai(error).headers) == {b"retry-after": header}


def test_missing_keys_are_told_how_to_authenticate() -> None:
    assert dict(render_problem(errors.AuthenticationError("x")).headers) == {b"www-authenticate": b"Bearer"}
