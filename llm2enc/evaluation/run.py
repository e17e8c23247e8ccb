"""Evaluation: what an encoder scores.

evaluate(encoder, recipe.evaluation)   a flat dict: {"docstrings/ndcg@10": 0.41, "STSBenchmark-dev": 0.70, ...}
baselines(recipe.evaluation)           the same of TF-IDF, for the docstrings
score_names(recipe.evaluation)         what these are called
score(encoder, task)                   one task, with everything needed to resample it
suite.measure(encoder, tasks, ...)     many tasks: cached vectors, results on disk, resumed where interrupted
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from llm2enc.evaluation.docstrings import DOCSTRING_SCORES, docstring_scores, docstring_tasks
from llm2enc.evaluation.folders import find_tasks, read_task
from llm2enc.evaluation.scoring import Instructions, score
from llm2enc.evaluation.tasks import Task, TaskResult, TextEncoder
from llm2enc.recipe import DocstringEval, EvalSpec

__all__ = ["Instructions", "TaskResult", "TextEncoder", "baselines", "evaluate", "score", "score_names"]


def evaluate(encoder: TextEncoder, specs: Iterable[EvalSpec], instructions: Instructions = "own") -> dict[str, float]:
    """The scores of a recipe's evaluations: three of the docstrings, the main metric of every other task by its name."""
    scores: dict[str, float] = {}
    for spec in specs:
        if isinstance(spec, DocstringEval):
            scores |= _docstrings(spec, lambda task: score(encoder, task, instructions))
            continue
        for folder in find_tasks(Path(spec.path), spec.tasks).values():
            result = score(encoder, read_task(folder), instructions)
            scores[result.task] = result.score
    return scores


def score_names(specs: Iterable[EvalSpec]) -> list[str]:
    """The names of the scores that `evaluate` gives. ValueError for a folder without the tasks that are asked for."""
    found: list[str] = []
    for spec in specs:
        if isinstance(spec, DocstringEval):
            found += DOCSTRING_SCORES
        else:
            found += find_tasks(Path(spec.path), spec.tasks)
    return found


def baselines(specs: Iterable[EvalSpec]) -> dict[str, float]:
    """What TF-IDF scores on the docstring evaluations."""
    from llm2enc.evaluation.tfidf import Tfidf

    scores: dict[str, float] = {}
    for spec in specs:
        if isinstance(spec, DocstringEval):
            scores |= _docstrings(spec, lambda task: score(Tfidf(task), task))  # pyright: ignore[reportArgumentType] - sparse rows will do
    return scores


def _docstrings(spec: DocstringEval, score_of: Callable[[Task], TaskResult]) -> dict[str, float]:
    retrieval, similarity = docstring_tasks(spec)  # pyright: ignore[reportArgumentType] - frozen, so it has a hash
    return docstring_scores(score_of(retrieval), score_of(similarity))
