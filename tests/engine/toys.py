"""Texts whose vectors and scores are known without a model: small whole numbers, so that many are equal."""

import hashlib
from collections.abc import Sequence

import numpy as np

WIDTH = 4


def vector(text: str) -> np.ndarray:
    """(4,) of -1, 0 and 1, by the text's hash; never zero."""
    found = np.frombuffer(hashlib.sha256(text.encode()).digest()[:WIDTH], dtype=np.uint8) % 3 - 1.0
    return found if found.any() else np.ones(WIDTH)


def cosine(one: str, other: str) -> float:
    """In float64, of rows in fixed point as `evaluation.unit` promises."""
    first, second = (np.rint(v / np.sqrt(v @ v) * 2**25) / 2**25 for v in (vector(one), vector(other)))
    return float(first @ second)


class ToyEncoder:
    """A `LoadedModel`; with an instruction a query is another text."""

    max_tokens, prompts = 99, {}

    def __init__(self, name: str = "toy"):
        self.name = name
        self.encoded: list[str] = []

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        self.encoded += texts
        return np.stack([vector((instruction or "") + text) for text in texts]).astype(np.float32)

    def fingerprint(self) -> str:
        return self.name

    def cache_key(self, *, instruction: str | None = None, prompt_name: str | None = None) -> str:
        return f"{instruction} {prompt_name}"


class ToyRanker:
    """In the place of BM25: shared letters, none of which is no find; and of a cross-encoder."""

    def __init__(self, documents, searched: int = 0):
        self.documents, self.searched = documents, searched
        self.facts = {"toy": 1}

    def read(self, pairs):
        return [pair.query for pair in pairs]

    def search(self, queries, depth: int):
        every = range(self.searched)
        return [
            np.array(sorted(every, key=lambda d: (-letters(query, self._text(d)), d))[:depth], dtype=np.int64)
            for query in queries
        ]

    def scores(self, queries, documents):
        return [
            np.array([letters(query, self._text(d)) for d in own])
            for query, own in zip(queries, documents, strict=True)
        ]

    def _text(self, number: int) -> str:
        return self.documents.take(np.array([number]))[0]


def letters(query: str, text: str) -> float:
    return len(set(query) & set(text)) / len(set(query) | set(text))
