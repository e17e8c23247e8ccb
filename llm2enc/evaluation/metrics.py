"""Metrics of scores and judgements, by scipy, scikit-learn and pytrec_eval. No model, no files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from llm2enc.evaluation.tasks import Statistic

Vectors = np.ndarray | sparse.csr_array  # (N, D)
Qrels = Mapping[str, Mapping[str, float]]  # query id -> document id -> judgement

CUTOFFS = (1, 10, 100)
DEPTH = 1000  # documents of a ranking that are scored: what mteb and trec_eval look at
_BLOCK = 2**24  # scores of queries against documents that exist at a time: 128 MiB of float64
_STEPS = 2.0**25  # of fixed point between 0 and 1


def unit(vectors: Vectors) -> Vectors:
    """The rows (N, D) at length 1, float64 in fixed point: each component a multiple of 2^-25. A zero row stays zero.

    A product of two components is then a multiple of 2^-50, and a sum of products of two rows stays below 1, one of squared
    differences below 4, give or take rounding: both fit into the 53 bits of float64 wherever the sum is cut and whatever
    its order. So the cosines of such rows have no rounding that depends on the number of rows scored at a time, the
    processor or the threads, and equal rows have equal ones. The price is at most 2^-26 in a component and some 10^-8 in
    a cosine (at most 2^-25 sqrt(D)), less than a sum in float32 is off by.
    """
    from sklearn.preprocessing import normalize

    rows: Any = normalize(vectors.astype(np.float64), copy=False)
    values = rows.data if sparse.issparse(rows) else rows
    values *= _STEPS
    np.rint(values, out=values)
    values /= _STEPS
    return rows


def cosine(first: Vectors, second: Vectors) -> np.ndarray:
    """Cosine similarity (N,) of the rows of two arrays (N, D), exact for their `unit` rows; 0 for a zero row.

    By the length of their difference: two equal rows have exactly 1, where a sum of products gives 1 plus or minus what
    their lengths are off by, and orders such pairs by chance.
    """
    from sklearn.utils.extmath import row_norms

    first, second = unit(first), unit(second)
    norms = [np.round(row_norms(rows)) for rows in (first, second)]  # 1, or 0 of a zero row
    return (norms[0] + norms[1] - row_norms(first - second, squared=True)) / 2


def cosines(first: Vectors, second: Vectors) -> np.ndarray:
    """Cosine similarity (N, M) of every row of one array with every row of another, exact for their `unit` rows."""
    return _products(unit(first), unit(second))


def nearest(first: Vectors, second: Vectors) -> np.ndarray:
    """Row of the second array with the highest cosine to each row of the first (N,); of equal ones the first."""
    first, second = unit(first), unit(second)
    return np.concatenate([_products(block, second).argmax(axis=1) for block in _blocks(first, second)])


def _products(first: Vectors, second: Vectors) -> np.ndarray:
    product: Any = first @ second.T
    return product.toarray() if sparse.issparse(product) else product


def _blocks(rows: Any, others: Any) -> Iterator[Vectors]:
    """The rows in blocks whose scores against all others fit into memory."""
    size = max(1, _BLOCK // others.shape[0])
    return (rows[start : start + size] for start in range(0, rows.shape[0], size))


def statistic(kind: Statistic, per_example: np.ndarray) -> float:
    """The score of a task from those of its examples, see `TaskResult.per_example`."""
    if kind == "mean":
        return float(per_example.mean())
    found, gold = per_example.T
    if kind == "spearman":
        return spearman(found, gold)
    if kind == "average_precision":
        from sklearn.metrics import average_precision_score

        return float(average_precision_score(gold, found))
    from sklearn.metrics import v_measure_score

    return float(v_measure_score(gold, found))


def spearman(scores: np.ndarray, gold: np.ndarray) -> float:
    """Rank correlation of scores (N,) and gold values (N,); 0 if either are all equal, since they rank nothing."""
    from scipy.stats import spearmanr

    if np.ptp(scores) == 0 or np.ptp(gold) == 0:
        return 0.0
    correlation: Any = spearmanr(scores, gold)
    return float(correlation.statistic)


def purity(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of the texts (N,) that have the commonest label of their cluster: (1/N) sum_k max_j |C_k and L_j|."""
    from sklearn.metrics.cluster import contingency_matrix

    return float(contingency_matrix(labels, clusters).max(axis=0).sum() / len(labels))


Run = dict[str, dict[str, float]]  # query id -> document id -> score


def search(queries: Vectors, documents: Vectors, query_ids: Sequence[str], document_ids: Sequence[str]) -> Run:
    """The DEPTH documents with the highest cosine to each query; of equal ones those with the last ids, as trec_eval."""
    order = sorted(range(len(document_ids)), key=document_ids.__getitem__, reverse=True)
    ids, columns = [document_ids[column] for column in order], np.array(order)
    queries, documents = unit(queries), unit(documents)
    scores = (row for block in _blocks(queries, documents) for row in _products(block, documents))
    run: Run = {}
    for query, found in zip(query_ids, scores, strict=True):
        found = found.astype(np.float32)[columns]  # trec_eval compares in single precision
        run[query] = {ids[place]: float(found[place]) for place in _highest(found, DEPTH).tolist()}
    return run


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` highest scores, in no order; of equal ones the first."""
    if len(scores) <= count:
        return np.arange(len(scores))
    last = np.partition(scores, -count)[-count]
    above = np.flatnonzero(scores > last)
    return np.concatenate([above, np.flatnonzero(scores == last)[: count - len(above)]])


def ranking_metrics(run: Run, qrels: Qrels, ignore_identical_ids: bool = False) -> dict[str, np.ndarray]:
    """Metrics of rankings by name, each (Q,) in the order of `run`. Equal scores: by id, descending (trec_eval).

    ndcg@k       normalised discounted cumulative gain, whose gain is the judgement itself
    recall@k     share of the relevant documents that are among the first k
    accuracy@k   whether a relevant document is among the first k
    map, mrr     mean average precision, and one over the rank of the first relevant document

    ignore_identical_ids  take the document with a query's id out of its ranking, as BEIR and mteb do
    """
    import pytrec_eval

    if ignore_identical_ids:
        run = {query: {name: score for name, score in found.items() if name != query} for query, found in run.items()}

    cuts = ",".join(map(str, CUTOFFS))
    measures = {f"ndcg_cut.{cuts}", f"recall.{cuts}", f"success.{cuts}", "map", "recip_rank"}
    evaluator = pytrec_eval.RelevanceEvaluator({query: whole_gains(qrels[query]) for query in run}, measures)
    found = evaluator.evaluate(run)
    names = {"map": "map", "recip_rank": "mrr"}
    for ours, theirs in (("ndcg", "ndcg_cut"), ("recall", "recall"), ("accuracy", "success")):
        names |= {f"{theirs}_{cut}": f"{ours}@{cut}" for cut in CUTOFFS}
    return {ours: np.array([found[query][theirs] for query in run]) for theirs, ours in names.items()}


def whole_gains(gains: Mapping[str, float]) -> dict[str, int]:
    """The judgements of a query by document id, all times 1000 if one is a fraction.

    trec_eval takes whole numbers only. What is relevant stays so, and nDCG is a ratio of gains.
    """
    scale = 1 if all(float(gain).is_integer() for gain in gains.values()) else 1000
    return {document: round(scale * gain) for document, gain in gains.items()}
