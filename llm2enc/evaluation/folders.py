"""Tasks on disk.

    FOLDER/<Task>/task.json                     {"name": ..., "type": one of the eight, "language": ..., "instruction": ...}
        sts                  test.tsv           sentence1  sentence2  score
        pair_classification  test.tsv           sentence1  sentence2  label, 1 = same meaning
        bitext               test.tsv           sentence1  sentence2
        classification       train.jsonl, test.jsonl   {"text": ..., "label": ...}
        clustering           test.jsonl         {"text": ..., "label": ...}
        reranking            test.jsonl         {"query": ..., "positive": [...], "negative": [...]}
        retrieval            corpus.jsonl       {"_id": ..., "title": ..., "text": ...}
                             queries.jsonl      {"_id": ..., "text": ...}
                             qrels.tsv          query-id  corpus-id  score, 0 = judged not relevant
        summarization        test.jsonl         {"human_summaries": [...], "machine_summaries": [...], "relevance": [...]}

Any file may end in .gz. A .tsv has one header line and no quoting. A folder without task.json that holds corpus.jsonl,
queries.jsonl and qrels/test.tsv is a BEIR data set (arXiv 2104.08663), scored as retrieval.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

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

_BEIR_SPLITS = ("test", "dev", "train")  # the first that is there


def find_tasks(folder: Path, names: Sequence[str] | None = None) -> dict[str, Path]:
    """Folder of each task by name: of the named ones, or of all in `folder`, or `folder` itself if it is a task.

    raises  ValueError if there is none, if a name is not there, or if a task.json is wrong
    """
    if _is_task(folder):
        found = {folder.resolve().name: folder}
    else:
        found = {path.name: path for path in sorted(folder.glob("*/")) if _is_task(path)}
    if not found:
        raise ValueError(
            f"{folder} holds no task: expected folders with a task.json (type {', '.join(get_args(TaskType))}), or a BEIR "
            "data set with corpus.jsonl, queries.jsonl and qrels/test.tsv"
        )
    missing = [name for name in names or () if name not in found]
    if missing:
        raise ValueError(f"{folder} has no task {', '.join(missing)}; it has {', '.join(found)}")
    chosen = {name: found[name] for name in names or found}
    for path in chosen.values():
        _description(path)
    return chosen


def read_task(folder: Path) -> Task:
    """The task of a folder. ValueError with file and line for whatever is wrong."""
    description = _description(folder)
    common = {
        "name": folder.resolve().name,
        "instruction": description.get("instruction", ""),
        "language": description.get("language", "en"),
    }
    return _READERS[description["type"]](folder, common)


# ---------------------------------------------------------------------------------------------------------------- types


def _sts(folder: Path, common: dict[str, str]) -> StsTask:
    first, second, scores = _pairs(folder, "score")
    return StsTask(**common, first=first, second=second, scores=np.array(scores))


def _pair_classification(folder: Path, common: dict[str, str]) -> PairClassificationTask:
    first, second, labels = _pairs(folder, "label")
    if set(labels) != {0.0, 1.0}:
        raise ValueError(f"{folder}: labels must be 0 and 1, and both occur; found {sorted(set(labels))[:5]}")
    return PairClassificationTask(**common, first=first, second=second, labels=np.array(labels) == 1)


def _bitext(folder: Path, common: dict[str, str]) -> BitextTask:
    rows = list(_table(_file(folder, "test.tsv"), ("sentence1", "sentence2")))
    return BitextTask(**common, first=[row[0] for row in rows], second=[row[1] for row in rows])


def _classification(folder: Path, common: dict[str, str]) -> ClassificationTask:
    train_texts, train_labels = _labelled(_file(folder, "train.jsonl"))
    test_texts, test_labels = _labelled(_file(folder, "test.jsonl"))
    if len(set(train_labels)) < 2:
        raise ValueError(f"{folder}: the training rows have one label only, {train_labels[0]!r}; nothing can be learnt")
    return ClassificationTask(
        **common, train_texts=train_texts, train_labels=train_labels, test_texts=test_texts, test_labels=test_labels
    )


def _clustering(folder: Path, common: dict[str, str]) -> ClusteringTask:
    members, labels = _labelled(_file(folder, "test.jsonl"))
    if len(set(labels)) < 2:
        raise ValueError(f"{folder}: the rows have one label only, {labels[0]!r}; nothing can be told apart")
    return ClusteringTask(**common, members=members, labels=labels)


def _reranking(folder: Path, common: dict[str, str]) -> RerankingTask:
    fields: dict[str, Check] = {"query": _text, "positive": _texts, "negative": _texts}
    rows = [row for row in _records(_file(folder, "test.jsonl"), fields) if row["positive"] and row["negative"]]
    if not rows:
        raise ValueError(f"{folder}: no query has both a positive and a negative candidate")
    return RerankingTask(
        **common,
        queries=[row["query"] for row in rows],
        positives=[row["positive"] for row in rows],
        negatives=[row["negative"] for row in rows],
    )


def _retrieval(folder: Path, common: dict[str, str]) -> RetrievalTask:
    fields: dict[str, Check] = {"_id": _text, "text": _text}
    queries = {row["_id"]: row["text"] for row in _records(_file(folder, "queries.jsonl"), fields)}
    documents = {
        row["_id"]: f"{row.get('title') or ''} {row['text']}".strip()
        for row in _records(_file(folder, "corpus.jsonl"), fields)
    }
    judged: dict[str, dict[str, int]] = {}
    for query, document, score in _table(_qrels(folder), ("query-id", "corpus-id", "score")):
        if query in queries:  # BEIR keeps the queries of all splits in one file, and qrels of one
            judged.setdefault(query, {})[document] = round(_number(score, folder))
    asked = {query: text for query, text in queries.items() if any(v > 0 for v in judged.get(query, {}).values())}
    if not asked:
        raise ValueError(f"{folder}: no query of queries.jsonl has a relevant document in qrels")
    known = {query: judged[query] for query in asked}
    lost = next((d for found in known.values() for d, value in found.items() if value > 0 and d not in documents), None)
    if lost is not None:
        raise ValueError(f"{folder}: qrels judge document {lost!r} relevant, but corpus.jsonl does not hold it")
    return RetrievalTask(**common, queries=asked, documents=documents, judged=known)


def _summarization(folder: Path, common: dict[str, str]) -> SummarizationTask:
    fields: dict[str, Check] = {"human_summaries": _texts, "machine_summaries": _texts, "relevance": _numbers}
    rows = list(_records(_file(folder, "test.jsonl"), fields))
    for number, row in enumerate(rows, start=1):
        if len(row["machine_summaries"]) != len(row["relevance"]) or not row["human_summaries"]:
            raise ValueError(
                f"{folder}, document {number}: {len(row['machine_summaries'])} machine summaries, "
                f"{len(row['relevance'])} scores, {len(row['human_summaries'])} human summaries; every machine summary "
                "needs one score, and there must be a human one"
            )
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


def _is_task(folder: Path) -> bool:
    return (folder / "task.json").is_file() or _is_beir(folder)


def _is_beir(folder: Path) -> bool:
    return _existing(folder, "corpus.jsonl") is not None and (folder / "qrels").is_dir()


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "task.json"
    if not path.is_file():
        return {"type": "retrieval"}
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    kind = description.get("type") if isinstance(description, dict) else None
    if kind not in _READERS:
        raise ValueError(f"{path}: type is {kind!r}; expected one of {', '.join(_READERS)}")
    for key in ("instruction", "language"):
        if not isinstance(description.get(key, ""), str):
            raise ValueError(f"{path}: {key} is {description[key]!r}, expected text")
    return description


def _qrels(folder: Path) -> Path:
    plain = _existing(folder, "qrels.tsv")
    splits = [path for split in _BEIR_SPLITS if (path := _existing(folder, f"qrels/{split}.tsv"))]
    return plain or (splits[0] if splits else folder / "qrels.tsv.gz")


def _file(folder: Path, name: str) -> Path:
    return _existing(folder, name) or folder / f"{name}.gz"  # which then can't be read, and is named


def _existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


# ---------------------------------------------------------------------------------------------------------------- rows

Check = Callable[[Any], str]  # what is wrong with a value, or nothing


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a string"


def _texts(value: Any) -> str:
    return "" if isinstance(value, list) and all(isinstance(text, str) for text in value) else "a list of strings"


def _numbers(value: Any) -> str:
    good = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    return "" if good else "a list of numbers"


def _label(value: Any) -> str:
    return "" if isinstance(value, str | int) else "a string or an integer"


def _labelled(path: Path) -> tuple[list[str], list[str]]:
    rows = list(_records(path, {"text": _text, "label": _label}))
    return [row["text"] for row in rows], [str(row["label"]) for row in rows]


def _pairs(folder: Path, value: str) -> tuple[list[str], list[str], list[float]]:
    rows = list(_table(_file(folder, "test.tsv"), ("sentence1", "sentence2", value)))
    return [row[0] for row in rows], [row[1] for row in rows], [_number(row[2], folder) for row in rows]


def _table(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a .tsv, in the order of `columns`. ValueError if a column is missing or a row is ragged."""
    header, *rows = [line.split("\t") for line in _lines(path)] or [[]]
    missing = [name for name in columns if name not in header]
    if missing or not rows:
        what = f"no column {', '.join(missing)}; its header is {header}" if missing else "no rows"
        raise ValueError(f"{path} has {what}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, the header has {len(header)}")
        yield [row[header.index(name)] for name in columns]


def _records(path: Path, fields: dict[str, Check]) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl, each with the fields and their types. ValueError if there is none."""
    lines = [line for line in _lines(path) if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no rows")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from None
        for field, check in fields.items():
            wanted = check(record.get(field)) if isinstance(record, dict) else "an object"
            if wanted:
                raise ValueError(f"{path}, line {number}: `{field}` must be {wanted}, got {str(record)[:80]!r}")
        yield record


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        # Not splitlines: U+2028 and its like are part of a text.
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").rstrip("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None


def _number(score: str, folder: Path) -> float:
    try:
        number = float(score)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{folder}: {score!r} is not a number")
    return number
