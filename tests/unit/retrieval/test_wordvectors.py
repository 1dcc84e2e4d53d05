"""The embedded model: the vectors that it should give, and none of the side effects of the package it comes with."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from headway.errors import ConfigurationError
from headway.retrieval import wordvectors
from headway.retrieval.wordvectors import WordVectors


@pytest.fixture(scope="module")
def model() -> WordVectors:
    return WordVectors.load()


def test_vectors_are_those_of_the_package(model: WordVectors) -> None:
    made = model.embed(["How many days of vacation are there?", "server-side\n`os.path.join`  Übermaß 雪"])
    assert made.shape == (2, model.dimensions) == (2, 256)
    # As wordllama 0.4.0 gives them itself.
    assert made[0, :4] == pytest.approx([0.030848, -0.023240, -0.060171, 0.203970], abs=1e-5)
    assert made[1, :4] == pytest.approx([-0.101806, -0.084818, 0.061702, -0.048308], abs=1e-5)
    assert np.linalg.norm(made, axis=1) == pytest.approx(1.0)


def test_a_vector_does_not_depend_on_its_neighbours(model: WordVectors) -> None:
    texts = [f"rule {number} " * (number % 40) for number in range(600)]
    together = model.embed(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    assert np.array_equal(together, alone)
    assert not together[0].any()
    assert model.embed([]).shape == (0, 256)
    assert not model.embed(["", ""]).any()


def test_a_very_long_text_has_a_vector_too(model: WordVectors) -> None:
    assert model.embed(["word " * 200_000, "x" * 200_000]).any(axis=1).all()


def test_a_package_with_another_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordvectors, "_TABLE", "weights/another.safetensors")
    with pytest.raises(ConfigurationError, match=r"local-static cannot read the embedded model \(.*another"):
        WordVectors.load()


def test_the_package_itself_is_never_imported() -> None:
    script = """
import logging, sys
from headway.retrieval.wordvectors import WordVectors
WordVectors.load().embed(["text"])
assert "wordllama" not in sys.modules and "requests" not in sys.modules
assert not logging.getLogger().handlers
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
