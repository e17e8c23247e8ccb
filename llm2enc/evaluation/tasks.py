"""The eight task types of MTEB as plain data, and what every encoder must offer to be measured on them.

A task knows its texts and on which side each stands: a `query` asks, a `document` answers or is compared with its like.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from llm2enc.storage import check_name

TaskType = Literal[
    "sts",
    "classification",
    "clustering",
    "pair_classification",
    "reranking",
    "retrieval",
    "summarization",
    "bitext",
]
Side = Literal["query", "document"]


class TextEncoder(Protocol):
    """What evaluation needs of an encoder."""

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Vectors (B, D) of the texts, in their order."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Task(ABC):
    name: str
    instruction: str = ""
    """What a query of this task asks for, from its task.json."""
    language: str = "en"
    type: ClassVar[TaskType]
    symmetric: ClassVar[bool] = True
    """Whether both sides are of one kind, so that an instruction belongs to both or to neither."""

    def __post_init__(self) -> None:
        """ValueError for a name that cannot name the file of its result."""
        check_name(self.name, f"a task of type {self.type}")

    @abstractmethod
    def texts(self) -> Iterator[tuple[Side, Sequence[str]]]:
        """Every text that scoring encodes, by side; a text may come twice."""


@dataclass(frozen=True, kw_only=True)
class _Pairs(_Task):
    first: Sequence[str]
    second: Sequence[str]

    def texts(self) -> Iterator[tuple[Side, Sequence[str]]]:
        yield "document", self.first
        yield "document", self.second


@dataclass(frozen=True, kw_only=True)
class StsTask(_Pairs):
    """Sentence pairs with a human score of their similarity."""

    type = "sts"
    scores: np.ndarray
    """(N,) float64, higher is more alike."""


@dataclass(frozen=True, kw_only=True)
class PairClassificationTask(_Pairs):
    """Sentence pairs that mean the same or do not."""

    type = "pair_classification"
    labels: np.ndarray
    """(N,) bool, True: same meaning."""


@dataclass(frozen=True, kw_only=True)
class BitextTask(_Pairs):
    """Sentences and their translations, row by row."""

    type = "bitext"


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(_Task):
    """Labelled texts to fit a classifier on, and others to test it on."""

    type = "classification"
    train_texts: Sequence[str]
    train_labels: Sequence[str]
    test_texts: Sequence[str]
    test_labels: Sequence[str]

    def texts(self) -> Iterator[tuple[Side, Sequence[str]]]:
        yield "document", self.train_texts
        yield "document", self.test_texts


@dataclass(frozen=True, kw_only=True)
class ClusteringTask(_Task):
    """Texts of known classes, to be found again without the labels."""

    type = "clustering"
    members: Sequence[str]
    labels: Sequence[str]

    def texts(self) -> Iterator[tuple[Side, Sequence[str]]]:
        yield "document", self.members


@dataclass(frozen=True, kw_only=True)
class RerankingTask(_Task):
    """Queries with candidates of their own, some of which answer them."""

    type = "reranking"
    symmetric = False
    queries: Sequence[str]
    positives: Sequence[Sequence[str]]
    negatives: Sequence[Sequence[str]]

    def texts(self) -> Iterator[tuple[Side, Sequence[str]]]:
        yield "query", self.queries
        for candidates in (*self.positives, *self.negatives):
            yield "document", candidates


@dataclass(frozen=True, kw_only=True)
class RetrievalTask(_Task):
    """Queries, documents, and which answer which."""

    type = "retrieval"
    symmetric = False
    queries: dict[str, str]
    """Text by id, of the queries with a judgement. One without a relevant document enters every mean with 0."""
    documents: dict[str, str]
    """Title and text by id."""
    qrels: Mapping[str, Mapping[str, float]]
    """Query id to document id to judgement, in thousandths at the finest; relevant above 0. A document that is not there
    stays in the ideal ranking."""
    ignore_identical_ids: bool = False
    """Whether queries are documents themselves (ArguAna, Quora), so that none is ranked for the query of its id."""

    def texts(self) -> Iterator[tuple[Side, Sequence[str]]]:
        yield "query", list(self.queries.values())
        yield "document", list(self.documents.values())


@dataclass(frozen=True, kw_only=True)
class SummarizationTask(_Task):
    """Documents, each with summaries by people, summaries by machines, and a human score of each of the latter."""

    type = "summarization"
    human: Sequence[Sequence[str]]
    machine: Sequence[Sequence[str]]
    relevance: Sequence[Sequence[float]]

    def texts(self) -> Iterator[tuple[Side, Sequence[str]]]:
        for summaries in (*self.human, *self.machine):
            yield "document", summaries


Task = (
    StsTask
    | PairClassificationTask
    | BitextTask
    | ClassificationTask
    | ClusteringTask
    | RerankingTask
    | RetrievalTask
    | SummarizationTask
)

Statistic = Literal["mean", "spearman", "average_precision", "v_measure"]


@dataclass(frozen=True)
class TaskResult:
    """What an encoder scores on a task, with the score of each example, so that it can be resampled."""

    task: str
    type: TaskType
    language: str
    metric: str
    """Name of the main metric."""
    score: float
    """Its value, 0 to 1 (-1 to 1 for a correlation)."""
    metrics: dict[str, float]
    """Every metric by name, the main one among them."""
    statistic: Statistic
    """How `per_example` becomes `score`."""
    per_example: np.ndarray
    """(N,) scores of the queries or texts for a mean; (N, 2) predicted and gold values of the rows for the others."""
