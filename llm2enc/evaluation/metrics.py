"""Metrics: pure functions of scores and judgements. No model, no files."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine similarity (N,) of the rows of two arrays (N, D)."""
    return np.einsum("nd,nd->n", unit(first), unit(second))


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows (N, D) at length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def spearman(scores: np.ndarray, wanted: np.ndarray) -> float:
    """Rank correlation of scores (N,) and wanted values (N,); 0 if the scores are all equal, since they rank nothing."""
    from scipy.stats import spearmanr

    if np.ptp(scores) == 0:
        return 0.0
    return float(spearmanr(scores, wanted).statistic)


def best(scores: np.ndarray, ids: Sequence[str], k: int) -> list[list[str]]:
    """The k best ids of each row of scores (Q, N), best first.

    Equal scores are ordered by id, descending, as trec_eval does and every published nDCG assumes.
    """
    descending = np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True))
    order = np.argsort(-scores[:, descending], axis=1, kind="stable")[:, :k]  # (Q, k)
    return [[ids[place] for place in descending[row]] for row in order]


def ndcg(ranked: Sequence[str], judged: Mapping[str, float], k: int = 10) -> float:
    """Normalised discounted cumulative gain of a ranking at depth k: the gain is the judgement itself (trec_eval).

    ranked  ids, best first
    judged  judgement by id, 0 = not relevant; an id that is missing is not relevant, and at least one must be
    """
    gains = [judged.get(document, 0.0) for document in ranked[:k]]
    ideal = sorted(judged.values(), reverse=True)[:k]
    return _discounted(gains) / _discounted(ideal)


def recall(ranked: Sequence[str], judged: Mapping[str, float], k: int = 10) -> float:
    """Share of the relevant documents that are among the first k."""
    relevant = {document for document, judgement in judged.items() if judgement > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))
