"""Embeddings that mean a little: texts that share words have vectors that point the same way."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from headway.testing.question import RequestError, count_tokens

__all__ = ["embed_text", "write_embeddings"]

_DIMENSIONS = {"text-embedding-3-large": 3072}
_DEFAULT_DIMENSIONS = 1536
_WORD = re.compile(r"\w+")


def embed_text(text: str, dimensions: int) -> list[float]:
    """Make a unit vector of a text by hashing its words; the same text always has the same vector.

    Example:
        >>> embed_text("red apple", 8) == embed_text("Red, apple!", 8)
        True
    """
    vector = [0.0] * dimensions
    for word in _WORD.findall(text.lower()) or [text]:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for place, sign in zip(struct.unpack(">3I", digest[:12]), digest[12:], strict=False):
            vector[place % dimensions] += 1.0 if sign & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    if not length:
        vector[0] = length = 1.0
    return [value / length for value in vector]


def write_embeddings(body: Any, model: str) -> tuple[bytes, int]:
    """Write the answer to ``POST /v1/embeddings``.

    Returns:
        The JSON, and the prompt's tokens.

    Raises:
        RequestError: The request lacks something, or something is of the wrong type.
    """
    if not isinstance(body, dict):
        raise RequestError("We could not parse the JSON body of your request: it must be a JSON object.")
    texts = _texts(body.get("input"))
    dimensions = body.get("dimensions") or _DIMENSIONS.get(model, _DEFAULT_DIMENSIONS)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= 4096:
        raise RequestError("'dimensions' must be an integer between 1 and 4096.", param="dimensions")
    base64_wanted = body.get("encoding_format") == "base64"
    data: list[Mapping[str, Any]] = []
    for index, text in enumerate(texts):
        vector: Any = embed_text(text, dimensions)
        if base64_wanted:
            vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    tokens = sum(count_tokens(text) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage}), tokens


def _texts(given: Any) -> list[str]:
    """Read ``input``: a text, texts, tokens, or lists of tokens (which are taken as words)."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise RequestError("'$.input' is invalid. Please check the API reference.", param="input")
    if all(isinstance(item, int) for item in given):
        given = [given]
    texts = []
    for item in given:
        if isinstance(item, list) and item and all(isinstance(token, int) for token in item):
            texts.append(" ".join(map(str, item)))
        elif isinstance(item, str) and item:
            texts.append(item)
        else:
            raise RequestError("'$.input' is invalid. Please check the API reference.", param="input")
    return texts
