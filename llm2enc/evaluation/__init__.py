"""Evaluation: tasks, metrics, confidence intervals, and suites that cache vectors and resume."""

from llm2enc.evaluation import benchmark, cost, suite
from llm2enc.evaluation.bootstrap import Interval, difference, draws, interval, mean_interval
from llm2enc.evaluation.cache import CachedEncoder
from llm2enc.evaluation.docstrings import docstring_tasks
from llm2enc.evaluation.folders import find_tasks, read_task
from llm2enc.evaluation.metrics import Vectors, cosine, cosines, unit
from llm2enc.evaluation.mteb_adapter import Failure, MtebEncoder, mteb_tasks
from llm2enc.evaluation.run import baselines, evaluate, score_names
from llm2enc.evaluation.scoring import Instructions, score
from llm2enc.evaluation.sources import gather, read_pairs_file
from llm2enc.evaluation.suite import Measurement
from llm2enc.evaluation.tasks import (
    BitextTask,
    ClassificationTask,
    ClusteringTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    Side,
    StsTask,
    SummarizationTask,
    Task,
    TaskResult,
    TextEncoder,
)
from llm2enc.evaluation.tfidf import Tfidf

__all__ = [
    "BitextTask",
    "CachedEncoder",
    "ClassificationTask",
    "ClusteringTask",
    "Failure",
    "Instructions",
    "Interval",
    "Measurement",
    "MtebEncoder",
    "PairClassificationTask",
    "RerankingTask",
    "RetrievalTask",
    "Side",
    "StsTask",
    "SummarizationTask",
    "Task",
    "TaskResult",
    "TextEncoder",
    "Tfidf",
    "Vectors",
    "baselines",
    "benchmark",
    "cosine",
    "cosines",
    "cost",
    "difference",
    "docstring_tasks",
    "draws",
    "evaluate",
    "find_tasks",
    "gather",
    "interval",
    "mean_interval",
    "mteb_tasks",
    "read_pairs_file",
    "read_task",
    "score",
    "score_names",
    "suite",
    "unit",
]
