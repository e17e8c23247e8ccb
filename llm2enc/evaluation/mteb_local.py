"""A task of ours as one of mteb's, with its data in memory: `local_task(task)`. Needs `pip install 'llm2enc[mteb]'`.

mteb's own evaluators then score it, without network: the proof that our scores are mteb's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm2enc.evaluation.metrics import whole_gains
from llm2enc.evaluation.mteb_adapter import mteb_library
from llm2enc.evaluation.suite import digest
from llm2enc.evaluation.tasks import (
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

if TYPE_CHECKING:
    from mteb import AbsTask


def local_task(task: Task) -> "AbsTask":
    """A task of ours as one of mteb's, with its data in memory: mteb's own evaluators score it, without network.

    Clustering is MTEB v1's; a classifier is fitted once, on all training rows; ties among the candidates of a reranking
    query are broken against the positives, as in mteb's data.
    """
    mteb_library()
    from mteb import TaskMetadata

    kind, base, main_score, data, more = _LOCAL[task.type](task)
    languages = ["eng-Latn" if code == "en" else f"{code}-Zyyy" for code in task.language.split("-")]  # no script known

    def load_data(self: "AbsTask", **_: Any) -> None:
        self.dataset, self.data_loaded = data, True

    metadata = TaskMetadata(
        name=task.name,
        description=f"{task.name}, from memory",
        dataset={"path": task.name, "revision": digest(task)[:12]},
        type=kind,
        category="t2t",
        eval_langs=languages,
        main_score=main_score,
        prompt=task.instruction,
    )
    # mteb wants metadata on the class, hence a class per task.
    return type(f"Local{base.__name__}", (base,), {"metadata": metadata, "load_data": load_data, **more})()


_Local = tuple[str, type, str, Any, dict[str, Any]]  # type in mteb, base class, main score, data, class attributes


def _splits(**splits: Mapping[str, Sequence]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({name: Dataset.from_dict(dict(columns)) for name, columns in splits.items()})


def _sts(task: StsTask) -> _Local:
    from mteb.abstasks import AbsTaskSTS

    scale = {"min_score": float(task.scores.min()), "max_score": float(task.scores.max())}
    columns = {"sentence1": task.first, "sentence2": task.second, "score": task.scores.tolist()}
    return "STS", AbsTaskSTS, "cosine_spearman", _splits(test=columns), scale


def _pair_classification(task: PairClassificationTask) -> _Local:
    from mteb.abstasks import AbsTaskPairClassification

    columns = {"sentence1": task.first, "sentence2": task.second, "labels": task.labels.astype(int).tolist()}
    return "PairClassification", AbsTaskPairClassification, "cosine_ap", _splits(test=columns), {}


def _bitext(task: BitextTask) -> _Local:
    from mteb.abstasks import AbsTaskBitextMining

    columns = {"sentence1": task.first, "sentence2": task.second}
    return "BitextMining", AbsTaskBitextMining, "f1", _splits(test=columns), {}


def _classification(task: ClassificationTask) -> _Local:
    from mteb.abstasks import AbsTaskClassification
    from sklearn.linear_model import LogisticRegression

    number = {label: place for place, label in enumerate(sorted({*task.train_labels, *task.test_labels}))}
    data = _splits(
        train={"text": task.train_texts, "label": [number[label] for label in task.train_labels]},
        test={"text": task.test_texts, "label": [number[label] for label in task.test_labels]},
    )
    once = {
        "samples_per_label": len(task.train_texts),
        "n_experiments": 1,
        "evaluator_model": LogisticRegression(max_iter=1000),  # mteb's 100 stop short of the optimum on many rows
    }
    return "Classification", AbsTaskClassification, "accuracy", data, once


def _clustering(task: ClusteringTask) -> _Local:
    from mteb.abstasks import AbsTaskClusteringLegacy

    columns = {"sentences": [list(task.members)], "labels": [list(task.labels)]}  # one set to be clustered
    return "Clustering", AbsTaskClusteringLegacy, "v_measure", _splits(test=columns), {}


def _reranking(task: RerankingTask) -> _Local:
    queries, documents = dict(enumerate(task.queries)), {}
    qrels: dict[str, dict[str, int]] = {}
    for row in queries:
        # Equal scores are ordered by id, descending: `negative` before `apositive`.
        sides = (("apositive", task.positives[row], 1), ("negative", task.negatives[row], 0))
        for word, texts, judgement in sides:
            ids = [f"{word}-{row}-{place:06d}" for place in range(len(texts))]
            documents |= zip(ids, texts, strict=True)
            qrels.setdefault(str(row), {}).update(dict.fromkeys(ids, judgement))
    data = _rankable({str(row): text for row, text in queries.items()}, documents, qrels)
    data["top_ranked"] = {query: list(candidates) for query, candidates in qrels.items()}
    return "Reranking", _retrieval_class(), "map_at_1000", {"default": {"test": data}}, {}


def _retrieval(task: RetrievalTask) -> _Local:
    data = _rankable(task.queries, task.documents, task.qrels)
    rule = {"ignore_identical_ids": task.ignore_identical_ids}
    return "Retrieval", _retrieval_class(), "ndcg_at_10", {"default": {"test": data}}, rule


def _retrieval_class() -> type:
    from mteb.abstasks import AbsTaskRetrieval

    return AbsTaskRetrieval


def _rankable(
    queries: Mapping[str, str], documents: Mapping[str, str], qrels: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    from datasets import Dataset

    return {
        "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
        "corpus": Dataset.from_dict({"id": list(documents), "text": list(documents.values())}),
        "relevant_docs": {query: whole_gains(qrels[query]) for query in queries},
        "top_ranked": None,
    }


def _summarization(task: SummarizationTask) -> _Local:
    from mteb.abstasks import AbsTaskSummarization

    scores = [score for of_document in task.relevance for score in of_document]
    columns = {
        "text": [""] * len(task.human),  # mteb asks for the documents and does not read them
        "human_summaries": task.human,
        "machine_summaries": task.machine,
        "relevance": task.relevance,
    }
    scale = {"min_score": min(scores), "max_score": max(scores)}
    return "Summarization", AbsTaskSummarization, "cosine_spearman", _splits(test=columns), scale


_LOCAL = {
    "sts": _sts,
    "pair_classification": _pair_classification,
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "reranking": _reranking,
    "retrieval": _retrieval,
    "summarization": _summarization,
}
