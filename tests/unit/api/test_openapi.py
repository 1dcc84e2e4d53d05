"""The OpenAPI documents in the reference are those that are served."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from headway.api.controlplane import controlplane_document
from headway.api.feedback_routes import FeedbackRoutes
from headway.api.openapi import dataplane_document

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference"
PLANES: dict[str, Callable[[], Mapping[str, Any]]] = {"data": dataplane_document, "control": controlplane_document}


@pytest.mark.parametrize("plane", PLANES)
def test_the_reference_is_current(plane: str) -> None:
    written = json.loads((REFERENCE / f"openapi-{plane}.json").read_text())
    hint = f"run: headway openapi {plane} > docs/reference/openapi-{plane}.json"
    assert written == json.loads(json.dumps(PLANES[plane]())), hint


@pytest.mark.parametrize("document", PLANES.values(), ids=PLANES)
def test_every_reference_inside_leads_somewhere(document: Callable[[], Mapping[str, Any]]) -> None:
    found = document()
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
    assert named - set(found["components"]["schemas"]) == set()
    assert "422" not in str(PLANES["control"]()["paths"].get("/admin/v1/keys", {}).get("post", {}).get("responses"))


def test_every_feedback_route_is_documented() -> None:
    routes = FeedbackRoutes.__new__(FeedbackRoutes).routes
    documented = {
        (method.upper(), path) for path, methods in dataplane_document()["paths"].items() for method in methods
    }
    assert {(route.method, route.pattern) for route in routes} - documented == {("OPTIONS", "/v1/feedback")}
