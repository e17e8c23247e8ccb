"""Tasks on disk.

    FOLDER/<Task>/task.json                     {"name": ..., "type": one of the eight, "language": ..., "instruction": ...}
        sts                  test.tsv           sentence1  sentence2  score
        pair_classification  test.tsv           sentence1  sentence2  label, 1 = same meaning
        bitext               test.tsv           sentence1  sentence2
        classification       train.jsonl, test.jsonl   {"text": ..., "label": ...}
        clustering           test.jsonl         {"text": ..., "label": ...}
        reranking            test.jsonl         {"query": ..., "positive": [...], "negative": [...]}
        retrieval            corpus.jsonl, queries.jsonl, qrels.tsv as in a BEIR data set: see data/beir.py
        summarization        test.jsonl         {"human_summaries": [...], "machine_summaries": [...], "relevance": [...]}

Any file may end in .gz. A .tsv has one header line and no quoting. A folder without task.json that holds corpus.jsonl,
queries.jsonl and qrels/test.tsv or qrels.tsv is a BEIR data set (arXiv 2104.08663), scored as retrieval.

Some retrieval sets ask with documents (ArguAna, Quora): a query is then no answer to itself, and the document with its id
is not ranked for it. `"ignore_identical_ids": true` or `false` in task.json says so; without it the texts decide.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from llm2enc.data import beir, lines
from llm2enc.errors import DataError
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
    TaskType,
)

_log = logging.getLogger(__name__)

_BEIR_SPLITS = ("test", "dev", "train")  # the first that is there


def find_tasks(folder: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """Folder of each task by name: of the named ones, or of all in `folder`, or `folder` itself if it is a task.

    raises  ValueError if there is none, if a name is not there, or if a task.json is wrong
    """
    if _is_task(folder):
        found = {_name(folder): folder}
    else:
        found = {path.name: path for path in sorted(folder.glob("*/")) if _is_task(path)}
    if not found:
        raise DataError(
            f"{folder} holds no task: expected folders with a task.json (type {', '.join(get_args(TaskType))}), or a BEIR "
            "data set with corpus.jsonl, queries.jsonl and qrels/test.tsv"
        )
    missing = [name for name in names or () if name not in found]
    if missing:
        raise DataError(f"{folder} has no task {', '.join(missing)}; it has {', '.join(found)}")
    chosen = {name: found[name] for name in names or found}
    for path in chosen.values():
        _description(path)
    return chosen


def read_task(folder: Path) -> Task:
    """The task of a folder. ValueError with file and line for whatever is wrong."""
    description = _description(folder)
    common = {
        "name": _name(folder),
        "instruction": description.get("instruction", ""),
        "language": description.get("language", "en"),
    }
    return _READERS[description["type"]](folder, common)


# ---------------------------------------------------------------------------------------------------------------- types


def _sts(folder: Path, common: dict[str, str]) -> StsTask:
    first, second, scores = _pairs(folder, "score", lines.read_number)
    if len(set(scores)) < 2:
        raise DataError(f"{_file(folder, 'test.tsv')}: every score is {scores[0]:g}, so there is nothing to rank")
    return StsTask(**common, first=first, second=second, scores=np.array(scores, dtype=float))


def _pair_classification(folder: Path, common: dict[str, str]) -> PairClassificationTask:
    first, second, labels = _pairs(folder, "label", _binary)
    if len(set(labels)) < 2:
        raise DataError(f"{_file(folder, 'test.tsv')}: every label is {labels[0]:g}; both 0 and 1 must occur")
    return PairClassificationTask(**common, first=first, second=second, labels=np.array(labels) == 1)


def _bitext(folder: Path, common: dict[str, str]) -> BitextTask:
    rows = [row for _, row in lines.read_table(_file(folder, "test.tsv"), ("sentence1", "sentence2"))]
    return BitextTask(**common, first=[row[0] for row in rows], second=[row[1] for row in rows])


def _classification(folder: Path, common: dict[str, str]) -> ClassificationTask:
    train_texts, train_labels = _labelled(_file(folder, "train.jsonl"))
    test_texts, test_labels = _labelled(_file(folder, "test.jsonl"))
    if len(set(train_labels)) < 2:
        raise DataError(
            f"{_file(folder, 'train.jsonl')}: every label is {train_labels[0]!r}; nothing can be learnt from one"
        )
    return ClassificationTask(
        **common, train_texts=train_texts, train_labels=train_labels, test_texts=test_texts, test_labels=test_labels
    )


def _clustering(folder: Path, common: dict[str, str]) -> ClusteringTask:
    members, labels = _labelled(_file(folder, "test.jsonl"))
    if len(set(labels)) < 2:
        raise DataError(f"{_file(folder, 'test.jsonl')}: every label is {labels[0]!r}; there is nothing to tell apart")
    return ClusteringTask(**common, members=members, labels=labels)


def _reranking(folder: Path, common: dict[str, str]) -> RerankingTask:
    path = _file(folder, "test.jsonl")
    fields: dict[str, lines.Check] = {"query": _text, "positive": _texts, "negative": _texts}
    every = [row for _, row in lines.read_records(path, fields)]
    rows = [row for row in every if row["positive"] and row["negative"]]
    if not rows:
        raise DataError(f"{path}: no query has both a positive and a negative candidate")
    if len(rows) < len(every):
        _log.warning(
            "%s: %d of %d queries have no positive or no negative candidate, and are left out of every mean",
            path, len(every) - len(rows), len(every),
        )  # fmt: skip
    return RerankingTask(
        **common,
        queries=[row["query"] for row in rows],
        positives=[row["positive"] for row in rows],
        negatives=[row["negative"] for row in rows],
    )


def _retrieval(folder: Path, common: dict[str, str]) -> RetrievalTask:
    path = _qrels(folder)
    texts = beir.read_texts(_file(folder, "queries.jsonl"))
    documents = beir.read_texts(_file(folder, "corpus.jsonl"))
    kept = "they stay in the ideal ranking, as in BEIR and mteb"
    qrels = beir.known_qrels(path, beir.read_qrels(path), texts, documents, kept)
    queries = {query: text for query, text in texts.items() if query in qrels}  # BEIR keeps all splits in one file
    unanswered = sum(max(qrels[query].values()) <= 0 for query in queries)
    if unanswered == len(queries):
        raise DataError(f"{path}: no query of queries.jsonl has a relevant document")
    if unanswered:
        _log.warning(
            "%s: %d of %d judged queries have no relevant document; they enter every mean with 0, as in BEIR and mteb",
            path, unanswered, len(queries),
        )  # fmt: skip
    _check_gains(path, qrels)
    ignore = _description(folder).get("ignore_identical_ids")
    if ignore is None:
        ignore = _asks_with_documents(path, queries, documents, qrels)
    return RetrievalTask(
        **common,
        queries=queries,
        documents=documents,
        qrels={query: qrels[query] for query in queries},
        ignore_identical_ids=ignore,
    )


def _check_gains(path: Path, qrels: beir.Qrels) -> None:
    """DataError for a judgement with more than three decimals: trec_eval counts in whole steps, and ours are thousandths."""
    for query, judged in qrels.items():
        for document, gain in judged.items():
            if abs(1000 * gain - round(1000 * gain)) > 1e-6:
                raise DataError(
                    f"{path}: query {query!r} has {gain} for document {document!r}; round judgements to three decimals"
                )


def _asks_with_documents(path: Path, queries: dict[str, str], documents: dict[str, str], qrels: beir.Qrels) -> bool:
    """Whether most documents that share a query's id are that query: equal text, and not judged to answer it."""
    shared = [query for query in queries if query in documents]
    same = sum(
        bool(queries[query]) and documents[query].endswith(queries[query]) and qrels[query].get(query, 0) <= 0
        for query in shared  # a document's text follows its title
    )
    ignore = 2 * same > len(shared)
    if shared:
        _log.info(
            "%s: %d of %d queries share their id with a document, %d also its text: such a document is %s for its query. "
            'task.json can say otherwise: "ignore_identical_ids": %s',
            path, len(shared), len(queries), same, "not ranked" if ignore else "ranked", str(not ignore).lower(),
        )  # fmt: skip
    return ignore


def _summarization(folder: Path, common: dict[str, str]) -> SummarizationTask:
    path = _file(folder, "test.jsonl")
    fields: dict[str, lines.Check] = {"human_summaries": _texts, "machine_summaries": _texts, "relevance": _numbers}
    rows = []
    for where, row in lines.read_records(path, fields):
        human, machine, scores = (len(row[field]) for field in fields)
        if not human or not machine or machine != scores:
            raise DataError(
                f"{where}: {human} human summaries, {machine} machine summaries and {scores} scores; there must be one "
                "of each at least, and a score for every machine summary"
            )
        rows.append(row)
    if all(len(set(row["relevance"])) == 1 for row in rows):
        raise DataError(f"{path}: in every document all summaries have one score, so there is nothing to rank")
    return SummarizationTask(
        **common,
        human=[row["human_summaries"] for row in rows],
        machine=[row["machine_summaries"] for row in rows],
        relevance=[row["relevance"] for row in rows],
    )


_READERS: dict[str, Callable[[Path, dict[str, str]], Task]] = {
    "sts": _sts,
    "pair_classification": _pair_classification,
    "bitext": _bitext,
    "classification": _classification,
    "clustering": _clustering,
    "reranking": _reranking,
    "retrieval": _retrieval,
    "summarization": _summarization,
}


# -------------------------------------------------------------------------------------------------------------- folders


def _name(folder: Path) -> str:
    return os.path.basename(os.path.abspath(folder))  # of a link its own name, not its target's


def _is_task(folder: Path) -> bool:
    return (folder / "task.json").is_file() or beir.is_beir(folder)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "task.json"
    if not path.is_file():
        return {"type": "retrieval"}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise DataError(f"{path} is not valid JSON: {error}") from None
    kind = description.get("type") if isinstance(description, dict) else None
    if kind not in _READERS:
        raise DataError(f"{path}: type is {kind!r}; expected one of {', '.join(_READERS)}")
    for key in ("instruction", "language"):
        if not isinstance(description.get(key, ""), str):
            raise DataError(f"{path}: {key} is {description[key]!r}, expected text")
    if not isinstance(description.get("ignore_identical_ids", False), bool):
        raise DataError(
            f"{path}: ignore_identical_ids is {description['ignore_identical_ids']!r}, expected true or false"
        )
    return description


def _qrels(folder: Path) -> Path:
    splits = (lines.existing(folder, f"qrels/{split}.tsv") for split in _BEIR_SPLITS)
    return next((path for path in (lines.existing(folder, "qrels.tsv"), *splits) if path), folder / "qrels.tsv")


def _file(folder: Path, name: str) -> Path:
    return lines.existing(folder, name) or folder / name  # which then cannot be read, and is named


# ---------------------------------------------------------------------------------------------------------------- rows


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a string"


def _texts(value: Any) -> str:
    return "" if isinstance(value, list) and all(isinstance(text, str) for text in value) else "a list of strings"


def _numbers(value: Any) -> str:
    kinds = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    return "" if kinds and np.isfinite(value).all() else "a list of numbers"


def _label(value: Any) -> str:
    return "" if isinstance(value, str | int) else "a string or an integer"


def _labelled(path: Path) -> tuple[list[str], list[str]]:
    rows = [row for _, row in lines.read_records(path, {"text": _text, "label": _label})]
    return [row["text"] for row in rows], [str(row["label"]) for row in rows]


def _pairs(folder: Path, value: str, number: Callable[[str, str], float]) -> tuple[list[str], list[str], list[float]]:
    rows = list(lines.read_table(_file(folder, "test.tsv"), ("sentence1", "sentence2", value)))
    values = [number(row[2], where) for where, row in rows]
    return [row[0] for _, row in rows], [row[1] for _, row in rows], values


def _binary(text: str, where: str) -> float:
    number = lines.read_number(text, where)
    if number not in (0, 1):
        raise DataError(f"{where}: the label is {text!r}, expected 0 or 1")
    return number
