"""Evaluation: what an encoder scores, as a flat dict from metric name to number.

    evaluate(encoder, recipe.evaluation)   {"docstrings/ndcg@10": 0.41, "STSBenchmark-dev": 0.70, ...}
    baselines(recipe.evaluation)           the same of TF-IDF, for the docstrings

A folder's task gives its main metric under its own name: Spearman's correlation for STS, nDCG@10 for retrieval.
"""

from collections.abc import Iterable

from llm2enc.evaluation.docstrings import read_task, score_docstrings
from llm2enc.evaluation.tasks import StsTask, TextEncoder, read_tasks, score_retrieval, score_sts
from llm2enc.recipe import DocstringEval, EvalSpec

__all__ = ["TextEncoder", "baselines", "evaluate"]


def evaluate(encoder: TextEncoder, specs: Iterable[EvalSpec], use_instructions: bool = False) -> dict[str, float]:
    """Every metric of every evaluation, by name.

    use_instructions  give retrieval queries the instruction of their task.json; by default they get the encoder's own
                      `query` prompt
    """
    scores: dict[str, float] = {}
    for spec in specs:
        if isinstance(spec, DocstringEval):
            scores |= score_docstrings(encoder, read_task(spec))
            continue
        for task in read_tasks(spec):
            if isinstance(task, StsTask):
                scores |= score_sts(encoder, task)
            else:
                scores |= score_retrieval(encoder, task, use_instructions)
    return scores


def baselines(specs: Iterable[EvalSpec]) -> dict[str, float]:
    """What TF-IDF scores on the docstring evaluations."""
    from llm2enc.evaluation.tfidf import score_tfidf

    scores: dict[str, float] = {}
    for spec in specs:
        if isinstance(spec, DocstringEval):
            scores |= score_tfidf(read_task(spec))
    return scores
