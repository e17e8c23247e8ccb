"""TF-IDF: what word overlap alone scores, the line that an encoder has to cross."""

import re
from collections.abc import Sequence

from scipy.sparse import csr_array

from llm2enc.evaluation.tasks import Task

# Mean letters of a run between spaces: 5 to 7 in languages that write words apart, 10 and more in those that do not.
_RUN = 9


class Tfidf:
    """An encoder of word counts, fitted on the texts of one task: sublinear counts times smoothed inverse frequency.

    In writing without spaces (Chinese, Japanese, Thai) letters and pairs of letters stand for words.
    """

    def __init__(self, task: Task):
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = list(dict.fromkeys(text for _, some in task.texts() for text in some))
        runs = re.findall(r"\w+", " ".join(texts))
        letters = bool(runs) and sum(map(len, runs)) / len(runs) > _RUN
        options = {"analyzer": "char", "ngram_range": (1, 2)} if letters else {}
        self._model = TfidfVectorizer(sublinear_tf=True, **options)
        self._model.fit(texts)

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> csr_array:
        """Unit rows (N, V); the row of a text without words is zero. Words are words, whatever the side."""
        return csr_array(self._model.transform(texts))
