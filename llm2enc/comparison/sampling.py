"""Fewer rows of a task, so that a comparison fits a time: the same rows for every system, drawn by seed.

`sampled(task, share)` keeps about that share of the rows, at least MIN_ROWS, of retrieval MIN_QUERIES. A larger share keeps
all that a smaller one does. By type:

    sts                             pairs, stratified by tenths of the score's ranking
    pair classification             pairs, stratified by label
    classification                  training and test texts, each stratified by label; no class is lost
    clustering                      texts, stratified by label; no class is lost
    bitext                          pairs; fewer sentences are also fewer wrong translations to choose from
    reranking                       queries with all their documents
    summarization                   documents with all their summaries
    retrieval                       the root of the share of the queries, all their judged documents, and others at random
                                    up to the share of the corpus

With fewer distractors (retrieval, bitext) or fewer texts of a class a task is easier or harder than the whole one: its
scores compare systems with each other, and are no scores of the whole task (`changes_the_task`).
"""

import math
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llm2enc.evaluation import (
    BitextTask,
    ClassificationTask,
    ClusteringTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    SummarizationTask,
    Task,
)

SEED = 0
MIN_ROWS = 50
MIN_QUERIES = 10  # of retrieval, where each brings all its judged documents
_STEPS = 1000  # a share is a multiple of one over this


@dataclass(frozen=True)
class Sample:
    """What was kept of a task."""

    task: str
    share: float
    """Asked of `sampled`; 1 for the whole task."""
    rows: int
    """Rows or queries that are scored."""
    of: int
    """Rows or queries of the whole task."""
    texts: int
    """Distinct texts that are encoded."""
    of_texts: int
    changes_the_task: bool
    """Whether scores of the sample are not comparable with those of the whole task."""


def sampled(task: Task, share: float, seed: int = SEED) -> Task:
    """The task with about this share of its rows; the task itself for a share of 1."""
    if share >= 1:
        return task
    generator = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
    if isinstance(task, RetrievalTask):
        return _retrieval(task, share, generator)
    if isinstance(task, ClassificationTask):
        train, test = (_kept(labels, share, generator) for labels in (task.train_labels, task.test_labels))
        return replace(
            task,
            train_texts=_at(task.train_texts, train), train_labels=_at(task.train_labels, train),
            test_texts=_at(task.test_texts, test), test_labels=_at(task.test_labels, test),
        )  # fmt: skip
    rows = _kept(_strata(task), share, generator)
    return replace(task, **{name: _at(getattr(task, name), rows) for name in _COLUMNS[type(task)]})


def measured_sample(whole: Task, kept: Task, share: float) -> Sample:
    """The counts of a task and what was kept of it."""
    changes = isinstance(whole, RetrievalTask | BitextTask | ClassificationTask | ClusteringTask)
    smaller = rows_of(kept) < rows_of(whole) or texts_of(kept) != texts_of(whole)
    counts = rows_of(kept), rows_of(whole), len(texts_of(kept)), len(texts_of(whole))
    return Sample(whole.name, share, *counts, changes and smaller)


def shares(tasks: Sequence[Task], characters: float, limit: int) -> list[float]:
    """The share of each task to keep, so that all their texts together have at most so many characters.

    Every task counts alike in a mean, so each gets the same number of characters; what small ones leave over goes to the
    others. The smallest sample of each is kept in any case.

    limit  characters of a text that are read
    """
    sizes = [size_of(task, limit) for task in tasks]
    cap = math.inf
    for place, size in enumerate(sorted(sizes)):
        even = characters / (len(sizes) - place)
        if size > even:
            cap = even
            break
        characters -= size
    return [1.0 if size <= cap else _share(task, cap, limit) for task, size in zip(tasks, sizes, strict=True)]


def _share(task: Task, characters: float, limit: int) -> float:
    """The largest share whose texts have at most so many characters."""
    low, high = 0, _STEPS
    while high - low > 1:
        middle = (low + high) // 2
        fits = size_of(sampled(task, middle / _STEPS), limit) <= characters
        low, high = (middle, high) if fits else (low, middle)
    return low / _STEPS


def size_of(task: Task, limit: int) -> int:
    """Characters of the distinct texts, each cut at `limit`."""
    return sum(min(len(text), limit) for _, text in texts_of(task))


def texts_of(task: Task) -> set[tuple[str, str]]:
    """The distinct texts, with their sides."""
    return {(side, text) for side, texts in task.texts() for text in texts}


def rows_of(task: Task) -> int:
    """Rows or queries that are scored."""
    if isinstance(task, RetrievalTask | RerankingTask):
        return len(task.queries)
    if isinstance(task, ClassificationTask):
        return len(task.test_texts)
    return len(getattr(task, _COLUMNS[type(task)][0]))


_COLUMNS: dict[type, tuple[str, ...]] = {
    StsTask: ("first", "second", "scores"),
    PairClassificationTask: ("first", "second", "labels"),
    BitextTask: ("first", "second"),
    ClusteringTask: ("members", "labels"),
    RerankingTask: ("queries", "positives", "negatives"),
    SummarizationTask: ("human", "machine", "relevance"),
}


def _strata(task: Task) -> Sequence[Hashable]:
    """What each row is stratified by."""
    if isinstance(task, StsTask):
        ranks = np.argsort(np.argsort(task.scores, kind="stable"))
        return (10 * ranks // len(ranks)).tolist()
    if isinstance(task, PairClassificationTask | ClusteringTask):
        return list(task.labels)
    return [0] * rows_of(task)


def _kept(strata: Sequence[Hashable], share: float, generator: np.random.Generator) -> np.ndarray:
    """Rows in the order of the task, about a share of each stratum and at least one."""
    classes = len(set(strata))
    count = min(len(strata), max(round(share * len(strata)), MIN_ROWS, 2 * classes))
    return np.sort(spread(strata, generator)[:count])


def spread(strata: Sequence[Hashable], generator: np.random.Generator) -> np.ndarray:
    """All rows in an order whose every beginning has of each stratum its share, give or take one, at random within it."""
    sizes: dict[Hashable, int] = {}
    shuffled = generator.permutation(len(strata))
    rank = np.empty(len(strata))
    for row in shuffled.tolist():
        rank[row] = sizes.setdefault(strata[row], 0)
        sizes[strata[row]] += 1
    rank /= np.array([sizes[stratum] for stratum in strata])
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def _retrieval(task: RetrievalTask, share: float, generator: np.random.Generator) -> RetrievalTask:
    queries = list(task.queries)
    count = min(len(queries), max(round(math.sqrt(share) * len(queries)), MIN_QUERIES))
    chosen = {queries[row] for row in generator.permutation(len(queries))[:count]}
    kept = {document for query in chosen for document in task.qrels[query]}
    others = list(task.documents)
    for row in generator.permutation(len(others)):
        if len(kept) >= share * len(others):
            break
        kept.add(others[row])
    return replace(
        task,
        queries={name: text for name, text in task.queries.items() if name in chosen},
        documents={name: text for name, text in task.documents.items() if name in kept},
        qrels={name: judged for name, judged in task.qrels.items() if name in chosen},
    )


def _at(column: Any, rows: np.ndarray) -> Any:
    return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows.tolist()]
