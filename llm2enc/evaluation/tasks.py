"""Task folders: STS and retrieval sets on disk, and what an encoder scores on them.

    FOLDER/<Task>/task.json            {"name": ..., "type": "sts" or "retrieval", "instruction": ...}
        sts        test.tsv.gz         sentence1  sentence2  score
        retrieval  corpus.jsonl.gz     {"_id": ..., "title": ..., "text": ...}
                   queries.jsonl.gz    {"_id": ..., "text": ...}
                   qrels.tsv.gz        query-id  corpus-id  score, 0 = judged not relevant

A .tsv.gz has one header line and no quoting.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm2enc.evaluation.metrics import best, cosine, ndcg, recall, spearman, unit
from llm2enc.recipe import FolderEval


class TextEncoder(Protocol):
    """What evaluation needs of an encoder."""

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Vectors (B, D) of the texts, in their order."""
        ...


@dataclass(frozen=True)
class StsTask:
    """Sentence pairs with a human score of their similarity."""

    name: str
    first: list[str]
    second: list[str]
    scores: np.ndarray
    """(N,) float64, higher is more alike."""


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and which answer which."""

    name: str
    instruction: str
    queries: dict[str, str]
    """Text by id, of the queries that have a relevant document."""
    documents: dict[str, str]
    """Title and text by id."""
    judged: dict[str, dict[str, float]]
    """Query id to document id to judgement."""


def read_tasks(spec: FolderEval) -> Iterator[StsTask | RetrievalTask]:
    """The named tasks of a folder, or all its STS and retrieval tasks, one at a time. ValueError if there is none."""
    folder = Path(spec.path)
    found = {path.parent.name: _description(path) for path in sorted(folder.glob("*/task.json"))}
    known = [name for name, description in found.items() if description["type"] in _READERS]
    if not known:
        raise ValueError(
            f"evaluation folder {folder}: no STS or retrieval task in it; it needs folders with a task.json each, whose "
            "type is sts or retrieval"
        )
    names = spec.tasks or tuple(known)
    for name in names:
        if name not in known:
            kind = f"is of type {found[name]['type']!r}" if name in found else "is not there"
            raise ValueError(
                f"evaluation folder {folder}: task {name!r} {kind}; what can be measured: {', '.join(known)}"
            )
    return (_READERS[found[name]["type"]](folder / name, found[name]) for name in names)


def score_sts(encoder: TextEncoder, task: StsTask) -> dict[str, float]:
    """Spearman's correlation of cosine and human score. Both sentences are documents: neither asks for the other."""
    vectors = encode_distinct(encoder, [*task.first, *task.second], prompt_name="document")
    count = len(task.scores)
    return {task.name: spearman(cosine(vectors[:count], vectors[count:]), task.scores)}


def score_retrieval(encoder: TextEncoder, task: RetrievalTask, use_instructions: bool = False) -> dict[str, float]:
    """nDCG@10, under the task's own name, and recall@10.

    use_instructions  give the encoder the task's instruction; by default queries get the encoder's own `query` prompt
    """
    asked = {"instruction": task.instruction} if use_instructions else {"prompt_name": "query"}
    queries = unit(encode_distinct(encoder, list(task.queries.values()), **asked))
    documents = unit(encode_distinct(encoder, list(task.documents.values()), prompt_name="document"))
    rankings = best(queries @ documents.T, list(task.documents), k=10)
    judged = [task.judged[query] for query in task.queries]
    return {
        task.name: _mean(map(ndcg, rankings, judged)),
        f"{task.name}/recall@10": _mean(map(recall, rankings, judged)),
    }


def encode_distinct(encoder: TextEncoder, texts: Sequence[str], **role: str) -> np.ndarray:
    """Vectors (B, D) of texts, each distinct one encoded once. ValueError if one is not finite."""
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode(list(place), **role)
    if not np.isfinite(vectors).all():
        raise ValueError("the encoder gives vectors with nan or infinity; no score means anything for it")
    return vectors[[place[text] for text in texts]]


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


# -------------------------------------------------------------------------------------------------------------- reading


def _description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(description, dict) or not isinstance(description.get("type"), str):
        raise ValueError(f"{path} says no `type`; expected sts, retrieval, or a type that is left out")
    return description


def _sts(folder: Path, description: dict[str, Any]) -> StsTask:
    rows = list(_table(folder / "test.tsv.gz", ("sentence1", "sentence2", "score")))
    first, second, scores = zip(*rows, strict=True)
    return StsTask(folder.name, list(first), list(second), np.array([_number(score, folder) for score in scores]))


def _retrieval(folder: Path, description: dict[str, Any]) -> RetrievalTask:
    queries = {row["_id"]: row["text"] for row in _records(folder / "queries.jsonl.gz")}
    documents = {
        row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in _records(folder / "corpus.jsonl.gz")
    }
    judged: dict[str, dict[str, float]] = {}
    for query, document, score in _table(folder / "qrels.tsv.gz", ("query-id", "corpus-id", "score")):
        judged.setdefault(query, {})[document] = _number(score, folder)
    # A query that nothing answers scores 0 with any encoder: it would only dilute the mean.
    answered = {name: text for name, text in queries.items() if max(judged.get(name, {}).values(), default=0) > 0}
    if not answered:
        raise ValueError(f"{folder}: no query of queries.jsonl.gz has a relevant document in qrels.tsv.gz")
    return RetrievalTask(folder.name, description.get("instruction", ""), answered, documents, judged)


_READERS = {"sts": _sts, "retrieval": _retrieval}


def _table(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a .tsv.gz, in the order of `columns`. ValueError if a column is missing or a row is ragged."""
    header, *rows = [line.split("\t") for line in _lines(path)] or [[]]
    missing = [name for name in columns if name not in header]
    if missing or not rows:
        what = f"no column {', '.join(missing)}; its header is {header}" if missing else "no rows"
        raise ValueError(f"{path} has {what}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, the header has {len(header)}")
        yield [row[header.index(name)] for name in columns]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl.gz, each with `_id` and `text`."""
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from None
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("_id", "text")):
            raise ValueError(f"{path}, line {number}: expected an object with the strings `_id` and `text`")
        yield record


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: U+2028 and its like are part of a text.
        return gzip.decompress(path.read_bytes()).decode("utf-8").rstrip("\n").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None


def _number(score: str, folder: Path) -> float:
    try:
        return float(score)
    except ValueError:
        raise ValueError(f"{folder}: the score {score!r} is not a number") from None
