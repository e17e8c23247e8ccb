"""TF-IDF: what word overlap alone scores, the line that an encoder has to cross."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from llm2enc.evaluation.docstrings import DocstringTask, docstring_scores

_WORD = re.compile(r"\w\w+")  # words of two characters or more


def tfidf(texts: Sequence[str]) -> csr_array:
    """Unit rows (N, V) of sublinear counts times smoothed inverse document frequency, fitted on the texts themselves."""
    counts = [Counter(_WORD.findall(text.casefold())) for text in texts]
    column = {word: place for place, word in enumerate(dict.fromkeys(word for count in counts for word in count))}
    rows = np.repeat(np.arange(len(texts)), [len(count) for count in counts])
    columns = np.array([column[word] for count in counts for word in count], dtype=np.int64)
    weights = 1 + np.log([number for count in counts for number in count.values()])
    rarity = np.log((1 + len(texts)) / (1 + np.bincount(columns, minlength=len(column)))) + 1  # (V,)
    weights = weights * rarity[columns]
    lengths = np.sqrt(np.bincount(rows, weights**2, minlength=len(texts)))  # (N,)
    return csr_array((weights / lengths[rows], (rows, columns)), shape=(len(texts), len(column)))


def score_tfidf(task: DocstringTask) -> dict[str, float]:
    """The docstring metrics of TF-IDF fitted on summaries and bodies together."""
    vectors = tfidf([*task.summaries, *task.bodies])
    count = len(task.summaries)
    scores = (vectors[:count] @ vectors[count:].T).toarray()  # (N, N)
    return docstring_scores(scores, scores[task.pairs[:, 0], task.pairs[:, 1]], task)
