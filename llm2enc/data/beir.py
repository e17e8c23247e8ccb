"""BEIR folders (arXiv 2104.08663): one reader for training and evaluation.

    corpus.jsonl     {"_id": ..., "title": ..., "text": ...}     a document is title + space + text
    queries.jsonl    {"_id": ..., "text": ...}                   the queries of all splits
    qrels/SPLIT.tsv  query-id  corpus-id  score                  or qrels.tsv; one header line

An id is a text or an integer, a title or text may be null, a judgement is any number: above 0 a document is relevant. Any
file may end in .gz. A pair of training is a query: its relevant documents are the positives, the others that were judged
are hard negatives. Only texts with a judgement are held, so the corpus may be larger than memory.
"""

import logging
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm2enc.data.cells import titled
from llm2enc.data.formats import DetectedFormat
from llm2enc.data.lines import existing, read_number, read_records, read_table
from llm2enc.data.rows import Pair, Rows
from llm2enc.data.tables import label, reading
from llm2enc.errors import DataError
from llm2enc.recipe import FilesData

_log = logging.getLogger(__name__)

Qrels = dict[str, dict[str, float]]
"""Query id to document id to judgement, whole numbers as int."""


# --------------------------------------------------------------------------------------------------------------- files


def is_beir(path: str | Path | tuple[str, ...]) -> bool:
    """Whether the path is a folder with corpus, queries and judgements."""
    if isinstance(path, tuple) or not Path(path).is_dir():
        return False
    folder = Path(path)
    tables = existing(folder, "corpus.jsonl") and existing(folder, "queries.jsonl")
    return bool(tables and ((folder / "qrels").is_dir() or existing(folder, "qrels.tsv")))


def read_texts(path: Path, ids: Container[str] | None = None) -> dict[str, str]:
    """Title and text by id, of the given ids or of all. DataError with the line for an id that comes twice."""
    texts: dict[str, str] = {}
    for where, record in read_records(path, {"_id": _id, "text": _text, "title": _title}):
        name = str(record["_id"])
        if ids is not None and name not in ids:
            continue
        if name in texts:
            raise DataError(f"{where}: the id {name!r} stands on an earlier line too")
        texts[name] = titled(record.get("title"), record["text"])
    return texts


def read_qrels(path: Path) -> Qrels:
    """The judgements of a file. DataError with the line for what is none, or has a field too many or too few."""
    qrels: Qrels = {}
    for where, (query, document, score) in read_table(path, ("query-id", "corpus-id", "score")):
        qrels.setdefault(query, {})[document] = read_number(score, where)
    return qrels


def known_qrels(
    path: Path, qrels: Qrels, queries: Mapping[str, str], documents: Mapping[str, str], absent: str
) -> Qrels:
    """The judgements of queries that are there, after a warning with the number of those that name what is not.

    absent  what becomes of the judgements of absent documents, for the warning
    """
    lost = sum(query not in queries for query in qrels)
    if lost:
        _log.warning("%s: %d of %d judged queries are not in queries.jsonl, and left out", path, lost, len(qrels))
    known = {query: judged for query, judged in qrels.items() if query in queries}
    missing = [(name, gain) for judged in known.values() for name, gain in judged.items() if name not in documents]
    if missing:
        _log.warning(
            "%s: %d judgements (%d of relevance) are of documents that the corpus does not hold, such as %r; %s",
            path, len(missing), sum(gain > 0 for _, gain in missing), missing[0][0], absent,
        )  # fmt: skip
    return known


def _id(value: Any) -> str:
    return "" if isinstance(value, str | int) and not isinstance(value, bool) else "a string or an integer"


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, str) else "a string or null"


def _title(value: Any) -> str:
    return "" if value in (None, ...) or isinstance(value, str) else "a string, null or left out"


# --------------------------------------------------------------------------------------------------------------- pairs


def read(spec: FilesData, scores: bool = False) -> tuple[DetectedFormat, Rows[Pair]]:
    """The pairs of a folder, a query each; `limit` is of queries. DataError for whatever is wrong.

    scores  give the pairs the judgements as the scores of their documents
    """
    folder = Path(str(spec.path))
    refused = [f"`{name}`" for name, given in (("columns", spec.columns), ("streaming", spec.streaming)) if given]
    if refused or spec.format not in {"auto", "beir"}:
        raise DataError(
            f"data source {label(spec)!r} is a BEIR folder, which takes no {', '.join(refused) or spec.format}; remove it "
            "(only the texts with a judgement are held in memory)"
        )
    with reading(spec):
        path = _training_qrels(folder, spec.split)
        roles = {"query": ("queries.jsonl text",), "positive": ("corpus.jsonl title", "text")}
        notes = (f"judgements of {path.relative_to(folder)}; 0 makes a hard negative",)
        return DetectedFormat("beir", roles, notes), _pairs(spec, folder, path, scores)


def _qrels(folder: Path, split: str | None) -> Path | None:
    return existing(folder, f"qrels/{split or 'train'}.tsv") or (None if split else existing(folder, "qrels.tsv"))


def _training_qrels(folder: Path, split: str | None) -> Path:
    """`split` of qrels/; by default `train`, or qrels.tsv: other judgements are for evaluation, and only on request."""
    found = _qrels(folder, split)
    if found is None:
        there = sorted(file.name.split(".")[0] for file in folder.glob("qrels/*.tsv*"))
        raise DataError(
            f"{folder} has no qrels/{split or 'train'}.tsv; it has judgements for {', '.join(there) or 'nothing'}. "
            f"To train on one of them, which can then measure nothing any more, write `split: {(there or ['...'])[0]}`"
        )
    return found


def _pairs(spec: FilesData, folder: Path, path: Path, scores: bool) -> Rows[Pair]:
    qrels = read_qrels(path)
    queries = read_texts(existing(folder, "queries.jsonl") or folder / "queries.jsonl", qrels)
    judged = {name for documents in qrels.values() for name in documents}
    documents = read_texts(existing(folder, "corpus.jsonl") or folder / "corpus.jsonl", judged)
    qrels = known_qrels(path, qrels, queries, documents, "left out")
    rows = []
    for query, gains in qrels.items():
        usable = {name: gain for name, gain in gains.items() if documents.get(name)}
        positives = [name for name, gain in usable.items() if gain > 0]
        if queries[query] and positives:
            rows.append((query, positives, [name for name, gain in usable.items() if gain <= 0]))
    kept, dropped = rows[: spec.limit], len(qrels) - len(rows)
    _log.info("%s: %d queries, %d more have no relevant document or no text", label(spec), len(kept), dropped)
    if not kept:
        raise DataError("no query with text has a relevant document with text")

    def take(chosen: np.ndarray) -> list[Pair]:
        return [pair(*kept[row]) for row in chosen.tolist()]

    def pair(query: str, positives: list[str], negatives: list[str]) -> Pair:
        first, *more = (documents[name] for name in positives)
        return Pair(
            query=queries[query],
            positive=first,
            negatives=tuple(documents[name] for name in negatives),
            instruction=spec.instruction,
            document_instruction=spec.instruction if spec.symmetric else "",
            extra_positives=tuple(more),
            positive_scores=tuple(float(qrels[query][name]) for name in positives) if scores else (),
            negative_scores=tuple(float(qrels[query][name]) for name in negatives) if scores else (),
        )

    return Rows(label(spec), len(kept), take)


def files(folder: Path, split: str | None) -> list[Path]:
    """What `read` reads: corpus, queries and the judgements of the split, as far as they are there."""
    found = (existing(folder, "corpus.jsonl"), existing(folder, "queries.jsonl"), _qrels(folder, split))
    return [path for path in found if path is not None]
