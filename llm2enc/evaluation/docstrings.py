"""Held-out docstrings as an evaluation: it needs no download, and none of its modules was trained on.

A docstring's summary is the query, the rest of its prose the document. Two scores come from the same vectors:

    retrieval   each summary among all bodies: nDCG@10 and accuracy@1
    similarity  Spearman's correlation of cosine and grade over (summary, body) pairs
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
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llm2enc.data.docstrings import docstrings, pair_view
from llm2enc.evaluation.metrics import best, cosine, ndcg, spearman, unit
from llm2enc.evaluation.tasks import TextEncoder, encode_distinct
from llm2enc.recipe import DocstringEval

PAIRS_PER_GRADE = 375  # 1,500 in all: the standard error of the correlation is below 0.03
SEED = 0


@dataclass(frozen=True)
class DocstringTask:
    """Summaries, their bodies, and the graded pairs among them."""

    summaries: list[str]
    bodies: list[str]
    """Body i belongs to summary i."""
    pairs: np.ndarray
    """(P, 2) summary number, body number."""
    grades: np.ndarray
    """(P,) 0 to 3."""


@lru_cache(maxsize=2)
def read_task(spec: DocstringEval) -> DocstringTask:
    """A fixed sample of `spec.documents` held-out docstrings; all of them if there are fewer."""
    found = docstrings(split="heldout")
    module: dict[tuple[str, str], str] = {}
    for docstring in found:
        for pair in pair_view([docstring]):
            module.setdefault(pair, docstring.module)
    pairs = pair_view(found)
    chosen = [pairs[row] for row in np.random.default_rng(SEED).permutation(len(pairs))[: spec.documents]]
    if len(chosen) < 2:
        raise ValueError("evaluation docstrings: fewer than 2 held-out docstrings; raise `documents`")
    graded, grades = graded_pairs([module[pair] for pair in chosen], PAIRS_PER_GRADE)
    return DocstringTask([summary for summary, _ in chosen], [body for _, body in chosen], graded, grades)


def score_docstrings(encoder: TextEncoder, task: DocstringTask) -> dict[str, float]:
    """nDCG@10, accuracy@1 and similarity."""
    summaries = unit(encode_distinct(encoder, task.summaries, prompt_name="query"))
    bodies = unit(encode_distinct(encoder, task.bodies, prompt_name="document"))
    similarities = cosine(summaries[task.pairs[:, 0]], bodies[task.pairs[:, 1]])
    return docstring_scores(summaries @ bodies.T, similarities, task)


def docstring_scores(scores: np.ndarray, similarities: np.ndarray, task: DocstringTask) -> dict[str, float]:
    """The three metrics of summaries against bodies (N, N) and of the graded pairs (P,)."""
    names = [f"{row:06d}" for row in range(len(task.bodies))]
    rankings = best(scores, names, k=10)
    return {
        "docstrings/ndcg@10": float(np.mean([ndcg(r, {name: 1.0}) for r, name in zip(rankings, names, strict=True)])),
        "docstrings/accuracy@1": float(np.mean([r[0] == name for r, name in zip(rankings, names, strict=True)])),
        "docstrings/similarity": spearman(similarities, task.grades),
    }


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
