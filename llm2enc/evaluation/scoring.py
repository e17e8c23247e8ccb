"""One function per task type: vectors in, `TaskResult` out.

Protocols are those of MTEB (arXiv 2210.07316) where a local folder leaves no choice, and are named here where it does:

classification   one logistic regression on all training rows (MTEB draws 8 rows per label, ten times)
clustering       k-means with four starts, k = number of labels (MTEB v1: micro-batch k-means)
reranking        mean average precision over each query's own candidates
summarization    a machine summary's score is its highest cosine to a human one; Spearman per document, averaged
bitext           F1 of the nearest neighbour among all second sentences, weighted over them as MTEB does
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from llm2enc.errors import InputError
from llm2enc.evaluation.metrics import (
    Run,
    Vectors,
    cosine,
    cosines,
    nearest,
    purity,
    ranking_metrics,
    search,
    spearman,
    statistic,
)
from llm2enc.evaluation.tasks import (
    BitextTask,
    ClassificationTask,
    ClusteringTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    Side,
    Statistic,
    StsTask,
    SummarizationTask,
    Task,
    TaskResult,
    TextEncoder,
)

Instructions = Literal["own", "task", "none"]
"""What a text is told besides itself. `own`: queries get the encoder's own `query` prompt. `task`: the instruction of the
task, on the queries of an asymmetric task and on both sides of a symmetric one (as E5, GritLM and LLM2Vec were measured).
`none`: every text is a document."""

SEED = 42


def score(encoder: TextEncoder, task: Task, instructions: Instructions = "own") -> TaskResult:
    """What an encoder scores on a task. ValueError if a vector is not finite."""
    return _SCORERS[task.type](_Vectors(encoder, task, instructions), task)


class _Vectors:
    """Vectors of a task's texts, each distinct one encoded once per call."""

    def __init__(self, encoder: TextEncoder, task: Task, instructions: Instructions):
        self.encoder, self.task = encoder, task
        self.instructions: Instructions = instructions

    def __call__(self, side: Side, texts: Sequence[str]) -> Vectors:
        vectors, rows = self.distinct(side, texts)
        return vectors[rows]

    def distinct(self, side: Side, texts: Sequence[str]) -> tuple[Vectors, np.ndarray]:
        """Vectors of the distinct texts (M, D), and which of them is each text's (N,)."""
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        vectors = self.encoder.encode(list(place), **prompt_kwargs(self.task, side, self.instructions))
        if not np.isfinite(vectors.data if not isinstance(vectors, np.ndarray) else vectors).all():
            raise InputError(
                f"{self.task.name}: the encoder gives vectors with nan or infinity; no score means anything for it"
            )
        return vectors, np.array([place[text] for text in texts])


def prompt_kwargs(task: Task, side: Side, instructions: Instructions) -> dict[str, str]:
    """The keywords of `encode` for one side of a task."""
    if instructions == "task" and task.instruction and (side == "query" or task.symmetric):
        return {"instruction": task.instruction}
    return {"prompt_name": side if instructions != "none" else "document"}


# ---------------------------------------------------------------------------------------------------------------- types


def _sts(vectors: _Vectors, task: StsTask) -> TaskResult:
    first, second = _two(vectors, task)
    found = cosine(first, second)
    pearson = 0.0 if np.ptp(found) == 0 or np.ptp(task.scores) == 0 else float(np.corrcoef(found, task.scores)[0, 1])
    return _result(task, "spearman", "spearman", np.stack([found, task.scores], axis=1), {"pearson": pearson})


def _pair_classification(vectors: _Vectors, task: PairClassificationTask) -> TaskResult:
    first, second = _two(vectors, task)
    per_example = np.stack([cosine(first, second), task.labels.astype(float)], axis=1)
    return _result(task, "average_precision", "average_precision", per_example, {})


def _bitext(vectors: _Vectors, task: BitextTask) -> TaskResult:
    from sklearn.metrics import f1_score

    found, truth = nearest(*_two(vectors, task)), np.arange(len(task.first))
    # A row is a class of its own.
    per_example: Any = f1_score(truth, found, average=None, labels=truth, zero_division=0)  # pyright: ignore[reportArgumentType]
    return _result(task, "f1", "mean", per_example, {"accuracy": float((found == truth).mean())})


def _classification(vectors: _Vectors, task: ClassificationTask) -> TaskResult:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    both = vectors("document", [*task.train_texts, *task.test_texts])
    count = len(task.train_texts)
    model = LogisticRegression(max_iter=1000, random_state=SEED).fit(both[:count], task.train_labels)
    predicted, labels = model.predict(both[count:]), np.array(task.test_labels)
    f1 = float(f1_score(labels, predicted, average="macro"))
    return _result(task, "accuracy", "mean", (predicted == labels).astype(float), {"f1": f1})


def _clustering(vectors: _Vectors, task: ClusteringTask) -> TaskResult:
    from sklearn.cluster import KMeans

    names, labels = np.unique(task.labels, return_inverse=True)
    clusters = KMeans(len(names), n_init=4, random_state=SEED).fit_predict(  # pyright: ignore[reportArgumentType]
        vectors("document", task.members)
    )
    per_example = np.stack([clusters, labels], axis=1).astype(float)
    return _result(task, "v_measure", "v_measure", per_example, {"purity": purity(clusters, labels)})


def _reranking(vectors: _Vectors, task: RerankingTask) -> TaskResult:
    queries = vectors("query", task.queries)
    candidates = [[*good, *bad] for good, bad in zip(task.positives, task.negatives, strict=True)]
    documents, rows = vectors.distinct("document", [text for texts in candidates for text in texts])
    run: Run = {}
    qrels: dict[str, dict[str, int]] = {}
    end = 0
    for row, texts in enumerate(candidates):
        start, end = end, end + len(texts)
        scores = cosines(queries[row : row + 1], documents[rows[start:end]])[0]
        # Positives get the first ids, and equal scores are ordered by id descending: a tie never helps.
        ids = [f"{number:06d}" for number in range(len(texts))]
        run[str(row)] = dict(zip(ids, map(float, scores), strict=True))
        qrels[str(row)] = {name: int(number < len(task.positives[row])) for number, name in enumerate(ids)}
    found = ranking_metrics(run, qrels)
    means = {name: float(found[name].mean()) for name in ("mrr", "ndcg@10")}
    return _result(task, "map", "mean", found["map"], means)


def _retrieval(vectors: _Vectors, task: RetrievalTask) -> TaskResult:
    queries = vectors("query", list(task.queries.values()))
    documents = vectors("document", list(task.documents.values()))
    run = search(queries, documents, list(task.queries), list(task.documents))
    found = ranking_metrics(run, task.qrels, task.ignore_identical_ids)
    means = {name: float(values.mean()) for name, values in found.items()}
    return _result(task, "ndcg@10", "mean", found["ndcg@10"], means)


def _summarization(vectors: _Vectors, task: SummarizationTask) -> TaskResult:
    groups = [*task.human, *task.machine]
    every = vectors("document", [text for texts in groups for text in texts])
    ends = np.cumsum([len(texts) for texts in groups])
    parts = [every[end - len(texts) : end] for texts, end in zip(groups, ends, strict=True)]
    human, machine = parts[: len(task.human)], parts[len(task.human) :]
    per_example = [
        spearman(cosines(ours, theirs).max(axis=1), np.array(gold))
        for ours, theirs, gold in zip(machine, human, task.relevance, strict=True)
        if np.ptp(gold) > 0  # where all summaries have one score there is nothing to rank
    ]
    return _result(task, "spearman", "mean", np.array(per_example), {})


_SCORERS = {
    "sts": _sts,
    "pair_classification": _pair_classification,
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "reranking": _reranking,
    "retrieval": _retrieval,
    "summarization": _summarization,
}


def _two(vectors: _Vectors, task: StsTask | PairClassificationTask | BitextTask) -> tuple[Vectors, Vectors]:
    both = vectors("document", [*task.first, *task.second])
    return both[: len(task.first)], both[len(task.first) :]


def _result(task: Task, metric: str, kind: Statistic, per_example: np.ndarray, more: dict[str, float]) -> TaskResult:
    value = statistic(kind, per_example)
    return TaskResult(task.name, task.type, task.language, metric, value, {metric: value, **more}, kind, per_example)
