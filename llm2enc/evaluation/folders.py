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

import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from llm2enc.data import titled
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
from llm2enc.storage import read_unpacked

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
    first, second, scores = _pairs(folder, "score", _number)
    if len(set(scores)) < 2:
        raise DataError(f"{_file(folder, 'test.tsv')}: every score is {scores[0]:g}, so there is nothing to rank")
    return StsTask(**common, first=first, second=second, scores=np.array(scores))


def _pair_classification(folder: Path, common: dict[str, str]) -> PairClassificationTask:
    first, second, labels = _pairs(folder, "label", _binary)
    if len(set(labels)) < 2:
        raise DataError(f"{_file(folder, 'test.tsv')}: every label is {labels[0]:g}; both 0 and 1 must occur")
    return PairClassificationTask(**common, first=first, second=second, labels=np.array(labels) == 1)


def _bitext(folder: Path, common: dict[str, str]) -> BitextTask:
    rows = [row for _, row in _table(_file(folder, "test.tsv"), ("sentence1", "sentence2"))]
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
    fields: dict[str, Check] = {"query": _text, "positive": _texts, "negative": _texts}
    rows = [row for _, row in _records(path, fields) if row["positive"] and row["negative"]]
    if not rows:
        raise DataError(f"{path}: no query has both a positive and a negative candidate")
    return RerankingTask(
        **common,
        queries=[row["query"] for row in rows],
        positives=[row["positive"] for row in rows],
        negatives=[row["negative"] for row in rows],
    )


def _retrieval(folder: Path, common: dict[str, str]) -> RetrievalTask:
    queries = _by_id(_file(folder, "queries.jsonl"), {"_id": _text, "text": _text})
    documents = _by_id(_file(folder, "corpus.jsonl"), {"_id": _text, "text": _text, "title": _optional_text})
    qrels: dict[str, dict[str, int]] = {}
    path = _qrels(folder)
    for where, (query, document, score) in _table(path, ("query-id", "corpus-id", "score")):
        judgement = _judgement(score, where)
        if query in queries:  # BEIR keeps the queries of all splits in one file, and qrels of one
            if judgement > 0 and document not in documents:
                raise DataError(f"{where}: document {document!r} is judged relevant, but the corpus does not hold it")
            qrels.setdefault(query, {})[document] = judgement
    asked = {query: text for query, text in queries.items() if any(v > 0 for v in qrels.get(query, {}).values())}
    if not asked:
        raise DataError(f"{path}: no query of queries.jsonl has a relevant document")
    return RetrievalTask(**common, queries=asked, documents=documents, qrels={query: qrels[query] for query in asked})


def _summarization(folder: Path, common: dict[str, str]) -> SummarizationTask:
    path = _file(folder, "test.jsonl")
    fields: dict[str, Check] = {"human_summaries": _texts, "machine_summaries": _texts, "relevance": _numbers}
    rows = []
    for where, row in _records(path, fields):
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
        raise DataError(f"{path} is not valid JSON: {error}") from None
    kind = description.get("type") if isinstance(description, dict) else None
    if kind not in _READERS:
        raise DataError(f"{path}: type is {kind!r}; expected one of {', '.join(_READERS)}")
    for key in ("instruction", "language"):
        if not isinstance(description.get(key, ""), str):
            raise DataError(f"{path}: {key} is {description[key]!r}, expected text")
    return description


def _qrels(folder: Path) -> Path:
    splits = (_existing(folder, f"qrels/{split}.tsv") for split in _BEIR_SPLITS)
    return next((path for path in (_existing(folder, "qrels.tsv"), *splits) if path), folder / "qrels.tsv")


def _file(folder: Path, name: str) -> Path:
    return _existing(folder, name) or folder / name  # which then cannot be read, and is named


def _existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


# ---------------------------------------------------------------------------------------------------------------- rows

Check = Callable[[Any], str]  # what is wrong with a value, or nothing


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a string"


def _optional_text(value: Any) -> str:
    return "" if value is None or isinstance(value, str) else "a string, or left out"


def _texts(value: Any) -> str:
    return "" if isinstance(value, list) and all(isinstance(text, str) for text in value) else "a list of strings"


def _numbers(value: Any) -> str:
    kinds = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    return "" if kinds and np.isfinite(value).all() else "a list of numbers"


def _label(value: Any) -> str:
    return "" if isinstance(value, str | int) else "a string or an integer"


def _labelled(path: Path) -> tuple[list[str], list[str]]:
    rows = [row for _, row in _records(path, {"text": _text, "label": _label})]
    return [row["text"] for row in rows], [str(row["label"]) for row in rows]


def _by_id(path: Path, fields: dict[str, Check]) -> dict[str, str]:
    """Title and text by id."""
    texts: dict[str, str] = {}
    for where, row in _records(path, fields):
        if row["_id"] in texts:
            raise DataError(f"{where}: the id {row['_id']!r} stands on an earlier line too")
        texts[row["_id"]] = titled(row.get("title"), row["text"]) if "title" in fields else row["text"]
    return texts


def _pairs(folder: Path, value: str, number: Callable[[str, str], float]) -> tuple[list[str], list[str], list[float]]:
    rows = list(_table(_file(folder, "test.tsv"), ("sentence1", "sentence2", value)))
    values = [number(row[2], where) for where, row in rows]
    return [row[0] for _, row in rows], [row[1] for _, row in rows], values


def _table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each row of a .tsv, in the order of `columns`.

    raises  ValueError if a column is missing, a row is ragged, or there is none
    """
    first, *lines = _lines(path)
    header = first.split("\t")
    missing = [name for name in columns if name not in header]
    if missing or not lines:
        what = f"no column {', '.join(missing)}; its header is {header}" if missing else "no rows"
        raise DataError(f"{path} has {what}")
    for number, line in enumerate(lines, start=2):
        where, row = f"{path}, line {number}", line.split("\t")
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} fields, the header has {len(header)}")
        yield where, [row[header.index(name)] for name in columns]


def _records(path: Path, fields: dict[str, Check]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each line of a .jsonl, with the fields and their types. ValueError if there is none."""
    lines = [(number, line) for number, line in enumerate(_lines(path), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path} has no rows")
    for number, line in lines:
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{where} must be an object such as {{{', '.join(f'{name!r}: ...' for name in fields)}}}")
        for field, check in fields.items():
            wanted = check(record.get(field))
            if wanted:
                raise DataError(f"{where}: `{field}` must be {wanted}, got {str(record)[:80]!r}")
        yield where, record


def _lines(path: Path) -> list[str]:
    try:
        text = read_unpacked(path).decode("utf-8-sig")  # spreadsheets put a byte order mark before the header
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    # Not splitlines: U+2028 and its like are part of a text.
    return text.replace("\r\n", "\n").rstrip("\n").split("\n")


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(f"{where}: {text!r} is not a number")
    return number


def _binary(text: str, where: str) -> float:
    number = _number(text, where)
    if number not in (0, 1):
        raise DataError(f"{where}: the label is {text!r}, expected 0 or 1")
    return number


def _judgement(text: str, where: str) -> int:
    number = _number(text, where)
    if number != int(number):
        raise DataError(f"{where}: the judgement is {text!r}, expected a whole number")
    return int(number)
