"""Exact search: the documents with the highest cosine to each query, as a comparison with every one of them finds them.

Vectors are read from memory-mapped files a block at a time. Cosines are those of `evaluation.unit` rows, which have no
rounding that depends on the block, the processor or the order of a sum: a GPU, and blocks of any size, give the same bits.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llm2enc.evaluation import unit

_SCORES, _NUMBERS = 2**24, 2**23  # scores, and numbers of document vectors, that exist at a time: 192 MiB of float64


def search(
    queries: np.ndarray, shards: Sequence[Path], depth: int, limit: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (Q, K) float64 and numbers (Q, K) int64 of the K = min(depth, N) nearest of N documents, the best first.

    Equal cosines go by the number of the document. Memory: the queries, their K best, and a block of documents with its
    scores, about 0.5 GiB; it does not depend on N.

    queries  (Q, D)
    shards   .npy files of vectors (n, D), one behind the other
    limit    only the first so many documents
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = torch.from_numpy(np.asarray(unit(queries))).to(device)
    best = _Best(len(queries), depth)
    size = max(1, min(_SCORES // len(queries), _NUMBERS // queries.shape[1]))
    for first, vectors in _blocks(shards, size, limit):
        best.add(asked @ torch.from_numpy(np.asarray(unit(vectors))).to(device).T, first)
    return best.sorted()


def pair_cosines(queries: np.ndarray, shard: Path, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cosine, as `search` gives it, of each query (Q, D) with each of its own documents: Q arrays of row numbers."""
    asked, stored = np.asarray(unit(queries)), np.load(shard, mmap_mode="r")
    return [np.asarray(unit(stored[own])) @ query for query, own in zip(asked, rows, strict=True)]


def _blocks(shards: Sequence[Path], size: int, limit: int | None) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first vector, and vectors. A file is mapped anew for each block, which gives back the pages read."""
    begin = 0
    for shard in shards:
        length = len(np.load(shard, mmap_mode="r"))
        end = length if limit is None else min(length, limit - begin)
        for start in range(0, end, size):
            yield begin + start, np.load(shard, mmap_mode="r")[start : min(start + size, end)]
        begin += length


class _Best:
    """The best documents of each query so far: flat entries of query, score and document."""

    def __init__(self, queries: int, depth: int):
        self._count, self._depth = queries, depth
        self._queries, self._documents = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._scores = np.zeros(0)
        self._least = np.full(
            queries, -np.inf
        )  # a score must be higher to enter: of equal ones the first has its place

    def add(self, scores: Tensor, first: int) -> None:
        """Take the scores (Q, B) of the documents from number `first` on, which come after all others."""
        enough = torch.from_numpy(np.nextafter(self._least, np.inf)).to(scores.device)
        if scores.shape[1] > self._depth:
            enough = enough.maximum(scores.topk(self._depth).values[:, -1]) if np.isinf(self._least).any() else enough
        found = torch.nonzero(scores >= enough[:, None])
        queries, columns = found.T.cpu().numpy()
        entering = scores[found[:, 0], found[:, 1]].cpu().numpy()
        self._keep(
            np.concatenate([self._queries, queries]),
            np.concatenate([self._scores, entering]),
            np.concatenate([self._documents, first + columns]),
        )

    def _keep(self, queries: np.ndarray, scores: np.ndarray, documents: np.ndarray) -> None:
        order = np.lexsort((documents, -scores, queries))
        queries, scores, documents = queries[order], scores[order], documents[order]
        counts = np.bincount(queries, minlength=self._count)
        starts = np.cumsum(counts) - counts
        kept = np.arange(len(queries)) - starts[queries] < self._depth
        self._queries, self._scores, self._documents = queries[kept], scores[kept], documents[kept]
        full = counts >= self._depth
        self._least[full] = scores[(starts + self._depth - 1)[full]]

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        return self._scores.reshape(self._count, -1), self._documents.reshape(self._count, -1)
