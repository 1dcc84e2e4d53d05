"""The embedded model: a table of vectors, one for each part of a word. A text's vector is the mean of its parts'.

The table comes with the package ``wordllama``, of which only the files are used: importing it would set up logging for
the whole process. The table stays in its file, mapped into memory, so that all processes of a machine share it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.errors import ConfigurationError

_WORDS = "tokenizers/l2_supercat_tokenizer_config.json"
_TABLE = "weights/l2_supercat_256.safetensors"
_TENSOR = "embedding.weight"
_HEAD_BYTES = 8
_TOGETHER = 256  # texts that are embedded at a time

Vectors = NDArray[np.float32]


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, int]
    data_offsets: tuple[int, int]  # from the end of the head


class WordVectors:
    """Makes vectors of texts; made by :meth:`load`. Several threads may use it at once."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - of an extra

        self._tokenizer = Tokenizer.from_file(str(folder / _WORDS))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._table = _map_table(folder / _TABLE)
        if self._tokenizer.get_vocab_size() > len(self._table):
            raise ValueError(f"{self._tokenizer.get_vocab_size()} words, and {len(self._table)} vectors")

    @classmethod
    def load(cls) -> WordVectors:
        """Load the model; takes some 50 ms.

        Raises:
            ConfigurationError: The extra ``knowledge`` is not installed, or with another model than is known here.
        """
        found = importlib.util.find_spec("wordllama")
        if found is None or found.origin is None:
            raise ConfigurationError("local-static needs the knowledge extra: pip install 'headway[knowledge]'")
        try:
            return cls(Path(found.origin).parent)
        except Exception as error:  # the tokenizer raises Exception itself
            raise ConfigurationError(
                f"local-static cannot read the embedded model ({error}): pip install --force-reinstall wordllama"
            ) from error

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        return int(self._table.shape[1])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Make a vector of unit length of each text; that of a text without words is zero."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        for begin in range(0, len(texts), _TOGETHER):
            self._embed(list(texts[begin : begin + _TOGETHER]), vectors[begin : begin + _TOGETHER])
        return vectors

    def _embed(self, texts: list[str], vectors: Vectors) -> None:
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        parts = [np.array(each.ids, np.int64) for each in encoded]
        used, places = np.unique(np.concatenate(parts), return_inverse=True)
        rows = self._table[used].astype(np.float32)  # each once: texts share most of their words
        begin = 0
        for vector, part in zip(vectors, parts, strict=True):
            if len(part):
                rows[places[begin : begin + len(part)]].sum(axis=0, out=vector)
                begin += len(part)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.divide(vectors, lengths, out=vectors, where=lengths > 0)


def _map_table(path: Path) -> NDArray[np.float16]:
    """Map the one tensor of a safetensors file: length of the head, the head as JSON, the values."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(_HEAD_BYTES), "little")
        head = msgspec.json.decode(file.read(size), type=dict[str, msgspec.Raw])
    tensor = msgspec.json.decode(head[_TENSOR], type=_Tensor)
    if tensor.dtype != "F16":
        raise ValueError(f"{path.name} holds {tensor.dtype}")
    return np.memmap(path, "<f2", "r", _HEAD_BYTES + size + tensor.data_offsets[0], tensor.shape)
