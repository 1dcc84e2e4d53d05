"""What `headway init` writes is sound, as it is and with all that it suggests."""

from __future__ import annotations

import re
from pathlib import Path

from headway.cli.starter import STARTER_FILES
from headway.config.load import load
from headway.config.spec import Specification

SUGGESTION = re.compile(r"^( *)# ( *\w+:(?: .*)?)$", re.MULTILINE)


def read(folder: Path, *, suggestions: bool) -> Specification:
    for name, text in STARTER_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SUGGESTION.sub(r"\1\2", text) if suggestions else text)
    return load(folder / "headway.yaml").specification


def test_the_file_is_sound(tmp_path: Path) -> None:
    specification = read(tmp_path, suggestions=False)
    assert set(specification.applications) == {"support"}
    assert specification.indexes == {}


def test_what_it_suggests_is_sound_too(tmp_path: Path) -> None:
    specification = read(tmp_path, suggestions=True)
    assert set(specification.deployments) == {"gpt-4o-mini", "local"}
    assert specification.indexes["handbook"].lake.url == f"file:{tmp_path / 'docs'}"
    retrieval = specification.applications["support"].release.bundle.retrieval
    assert retrieval is not None
    assert (retrieval.label, retrieval.top_k) == ("handbook@1", 5)
    assert set(specification.policies["careful"].baselines) == {"thumbs_up", "latency_p95"}
