"""Search indexes as an operator meets them: built in the background, whatever happens to Headway meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.harness import Headway, application, openai_deployment, running, wait_for
from tests.acceptance.stand import call
from tests.lakes import write_documents

DOCUMENTS = 1200


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_a_build_outlives_the_headway_that_began_it(tmp_path: Path, database_url: str) -> None:
    write_documents(tmp_path / "docs", DOCUMENTS)
    configuration: dict[str, Any] = {
        "deployments": {"local": openai_deployment("http://127.0.0.1:9/v1", "m")},
        "indexes": {"handbook": {"lake": "file:./docs"}},
        "applications": {"support": application("local")},
    }
    headway = Headway(tmp_path, database_url=database_url)
    with running(headway, configuration):
        key = headway.create_key("ops", "--scope", "admin", "--scope", "view")
        headway.wait_for_snapshot()

        def version() -> Any:
            return call(f"{headway.admin_url}/admin/v1/indexes/handbook/versions/1", key=key).json

        begun = call(f"{headway.admin_url}/admin/v1/indexes/handbook/builds", key=key, method="POST")
        assert begun.status == 202, begun
        wait_for("a first batch", lambda: version()["progress"]["loaded"] > 0, 60)
        headway.kill_all()
        (row,) = headway.rows("SELECT state, (progress->>'loaded')::int AS loaded FROM index_version")
        assert (row["state"], 0 < row["loaded"] < DOCUMENTS) == ("building", True)
        headway.start()
        wait_for("the version", lambda: version()["state"] == "published", 120)
        assert version()["manifest"]["documents"] == DOCUMENTS
        configuration["applications"]["support"]["release"] |= {"name": "grounded", "index": "handbook@1"}
        headway.write(configuration)
        headway.run("apply", "--yes")
        assert [row["label"] for row in headway.run_json("index", "list")] == ["handbook@1"]
        assert headway.run_json("index", "show", "handbook")["used_by"] == ["support: grounded"]
