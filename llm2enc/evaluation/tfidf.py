"""TF-IDF: what word overlap alone scores, the line that an encoder has to cross."""

from collections.abc import Sequence

from scipy.sparse import csr_array

from llm2enc.evaluation.tasks import Task


class Tfidf:
    """An encoder of word counts, fitted on the texts of one task: sublinear counts times smoothed inverse frequency."""

    def __init__(self, task: Task):
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._model = TfidfVectorizer(sublinear_tf=True)
        self._model.fit(dict.fromkeys(text for _, texts in task.texts() for text in texts))

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> csr_array:
        """Unit rows (N, V); the row of a text without words is zero. Words are words, whatever the side."""
        return csr_array(self._model.transform(texts))
