"""Held-out docstrings as an evaluation: it needs no download, and none of its modules was trained on.

A docstring's summary is the query, the rest of its prose the document. That makes two tasks:

    docstrings             each summary among all bodies: nDCG@10 and accuracy@1
    docstrings-similarity  Spearman's correlation of cosine and grade over (summary, body) pairs
                    3  of one docstring
                    2  of two docstrings of one module
                    1  of two modules of one package
                    0  of two packages

The grades come from where a docstring stands, not from a reader: they say that code which lives together is about related
things, which is true on average only, so a perfect encoder stays well below 1. Every pair is a summary and a body, so that
no grade can be told by the lengths of its texts. The docstrings are those of the installed packages: compare scores within
one environment, not between two.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from llm2enc.data import pair_view, read_docstrings
from llm2enc.errors import DataError
from llm2enc.evaluation.tasks import RetrievalTask, StsTask, TaskResult
from llm2enc.recipe import DocstringEval

PAIRS_PER_GRADE = 375  # 1,500 in all: the standard error of the correlation is below 0.03
SEED = 0


RETRIEVAL, SIMILARITY = "docstrings", "docstrings-similarity"
DOCSTRING_SCORES = ("docstrings/ndcg@10", "docstrings/accuracy@1", "docstrings/similarity")


@lru_cache(maxsize=2)
def docstring_tasks(spec: DocstringEval) -> tuple[RetrievalTask, StsTask]:
    """Retrieval and similarity on a fixed sample of `spec.documents` held-out docstrings; on all if there are fewer."""
    found = read_docstrings(split="heldout")
    module: dict[tuple[str, str], str] = {}
    for docstring in found:
        for pair in pair_view([docstring]):
            module.setdefault(pair, docstring.module)
    pairs = pair_view(found)
    chosen = [pairs[row] for row in np.random.default_rng(SEED).permutation(len(pairs))[: spec.documents]]
    if len(chosen) < 2:
        raise DataError("evaluation docstrings: fewer than 2 held-out docstrings; raise `documents`")
    ids = [f"{row:06d}" for row in range(len(chosen))]
    retrieval = RetrievalTask(
        name=RETRIEVAL,
        queries={row: summary for row, (summary, _) in zip(ids, chosen, strict=True)},
        documents={row: body for row, (_, body) in zip(ids, chosen, strict=True)},
        qrels={row: {row: 1} for row in ids},
    )
    graded, grades = graded_pairs([module[pair] for pair in chosen], PAIRS_PER_GRADE)
    similarity = StsTask(
        name=SIMILARITY,
        first=[chosen[row][0] for row in graded[:, 0]],
        second=[chosen[row][1] for row in graded[:, 1]],
        scores=grades.astype(float),
    )
    return retrieval, similarity


def docstring_scores(retrieval: TaskResult, similarity: TaskResult) -> dict[str, float]:
    """The three numbers that a run reports after every stage."""
    scores = (retrieval.metrics["ndcg@10"], retrieval.metrics["accuracy@1"], similarity.score)
    return dict(zip(DOCSTRING_SCORES, scores, strict=True))


def graded_pairs(modules: Sequence[str], per_grade: int) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) pairs of docstring numbers and (P,) grades: at most `per_grade` of each grade, a first number once each.

    modules  module name of each docstring
    """
    generator = np.random.default_rng(SEED)
    module = np.array(modules)
    package = np.array([name.split(".")[0] for name in modules])
    found: dict[int, list[tuple[int, int]]] = {grade: [] for grade in range(4)}
    for row in generator.permutation(len(modules)):
        # (N,) Each True lifts the grade by one, and each condition implies the one before it.
        grades = (package == package[row]).astype(int) + (module == module[row]) + (np.arange(len(modules)) == row)
        for grade, pairs in found.items():
            partners = np.flatnonzero(grades == grade)
            if len(partners) and len(pairs) < per_grade:
                pairs.append((int(row), int(generator.choice(partners))))
    pairs = [pair for grade in found for pair in found[grade]]
    return np.array(pairs), np.repeat(list(found), [len(found[grade]) for grade in found])
