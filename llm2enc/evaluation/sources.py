"""What to measure on, as a user names it: folders, one's own pairs, the packaged docstrings, names of mteb."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm2enc.data import check_texts, grades, head, open_table, schema_of
from llm2enc.errors import DataError
from llm2enc.evaluation.docstrings import docstring_tasks
from llm2enc.evaluation.folders import find_tasks, read_task
from llm2enc.evaluation.tasks import RetrievalTask, StsTask, Task
from llm2enc.recipe import DocstringEval, FilesData

_log = logging.getLogger(__name__)

SMOKE = "smoke"
BENCHMARKS = {"nanobeir": "NanoBEIR", "mteb": "MTEB(eng, v2)"}  # evaluation tier: its name in mteb
_PAIR_FILES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_COLUMNS = (("query", "anchor", "question", "sentence1"), ("positive", "document", "answer", "sentence2"))
_SCORES = ("score", "similarity", "label")


def gather(sources: Sequence[str], documents: int = 1000) -> tuple[list[Task], list[str]]:
    """The local tasks and the names for mteb that `sources` stand for; every file is read and checked.

    sources    `smoke` (the packaged docstrings), a folder of tasks, a task, a BEIR data set, a file of pairs, `nanobeir`,
               `mteb`, or any name of mteb
    documents  how many docstrings
    raises     ValueError for a path that does not exist or two tasks of one name
    """
    tasks: list[Task] = []
    names: list[str] = []
    for source in sources:
        path = Path(source)
        if source == SMOKE:
            tasks += docstring_tasks(DocstringEval(kind="docstrings", documents=documents))  # pyright: ignore[reportArgumentType] - frozen, so it has a hash
        elif path.is_dir():
            tasks += [read_task(folder) for folder in find_tasks(path).values()]
        elif path.is_file():
            tasks.append(read_pairs_file(path))
        elif source.startswith((".", "~")) or "/" in source or source.lower().endswith(_PAIR_FILES):
            raise DataError(f"{source}: no such file or folder")
        else:
            names.append(BENCHMARKS.get(source, source))
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise DataError(f"two tasks are called {task.name!r}; rename one of their folders")
        seen.add(task.name)
    return tasks, names


def read_pairs_file(path: Path) -> RetrievalTask | StsTask:
    """Pairs of texts that belong together, as a task.

    Two columns: does the first text of a row find the second among all of them (retrieval)? With a third, numeric one named
    score, similarity or label: does the cosine follow it (STS)? Columns are taken by name (query and positive, sentence1
    and sentence2, ...), otherwise in their order.

    raises  ValueError if there are not two columns of text or fewer than two rows
    """
    suffix = next((suffix for suffix in _PAIR_FILES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{path}: pairs are read from {', '.join(_PAIR_FILES)} files")
    table: Any = open_table(FilesData(kind="files", path=str(path)))  # `Blocks`, as of every local file
    names = list(schema_of(table))
    score = next((name for name in names if name.lower() in _SCORES), None)
    texts = [name for name in names if name != score]
    found = [next((name for name in texts if name.lower() in known), None) for known in _COLUMNS]
    first, second = found if None not in found else (texts[:2] if len(texts) >= 2 else (None, None))
    if first is None or second is None:
        raise DataError(f"{path}: pairs need two columns of text, found {', '.join(names)}")
    _check_content(path, head(table, names), first, second, score, guessed=None in found)
    columns = [first, second, *([score] if score else [])]
    kind = "retrieval" if score is None else f"STS by {score}"
    _log.info("%s: %s; texts = %s and %s; scored as %s", path, table.described, first, second, kind)
    cells = [row for block in table.read(columns) for row in block.to_pylist()]
    rows = [
        (row[first], row[second], row[score] if score else None)
        for row in cells
        if _is_text(row[first]) and _is_text(row[second])
    ]
    if len({(one, other) for one, other, _ in rows}) < 2:
        raise DataError(
            f"{path}: columns {first!r} and {second!r} hold {len(rows)} usable pairs of {len(cells)} rows; at least two "
            "different ones are needed, and both cells must be text"
        )
    if len(rows) < len(cells):
        _log.warning("%s: %d of %d rows lack a text and are left out", path, len(cells) - len(rows), len(cells))
    name = path.name[: -len(suffix)]
    if score is None:
        return _retrieval(name, [(one, other) for one, other, _ in rows])
    scores = [_number(row[2], path, score) for row in rows]
    if len(set(scores)) < 2:
        raise DataError(
            f"{path}: column {score!r} holds {scores[0]:g} in every row, so there is nothing to rank; without the column "
            "the pairs are scored as retrieval"
        )
    return StsTask(name=name, first=[row[0] for row in rows], second=[row[1] for row in rows], scores=np.array(scores))


def _check_content(
    path: Path, sample: dict[str, list], first: str, second: str, score: str | None, guessed: bool
) -> None:
    """DataError if the columns hold no texts, or another one seems to grade the pairs."""
    try:
        for column in (first, second):
            check_texts(column, sample[column], guessed)
    except DataError as error:
        names = "call those of the texts `query` and `positive`, or `sentence1` and `sentence2`"
        raise DataError(f"{path}: {error}; {names}") from None
    graded = {name: grades(name, cells) for name, cells in sample.items() if name not in (first, second)}
    column = next((name for name, found in graded.items() if found and score is None), None)
    if column is not None:
        raise DataError(
            f"{path}: column {column!r} looks like {graded[column]}. If it says how alike the texts of a row are, call it "
            "`score`, and the pairs are scored as STS; if every row is a match, leave it out"
        )


def _retrieval(name: str, pairs: list[tuple[str, str]]) -> RetrievalTask:
    """Each distinct first text asks for every second text it stands beside.

    A text that asks and is a document too has one id, and is not ranked for itself, unless it stands beside itself.
    """
    queries = {text: f"q{row}" for row, text in enumerate(dict.fromkeys(one for one, _ in pairs))}
    documents = {text: f"d{row}" for row, text in enumerate(dict.fromkeys(other for _, other in pairs))}
    both = (queries.keys() & documents.keys()) - {one for one, other in pairs if one == other}
    documents |= {text: queries[text] for text in both}
    if both:
        _log.info(
            "%s: %d of %d queries are documents too, and not ranked for themselves", name, len(both), len(queries)
        )
    qrels: dict[str, dict[str, int]] = {}
    for one, other in pairs:
        qrels.setdefault(queries[one], {})[documents[other]] = 1
    return RetrievalTask(
        name=name,
        queries={row: text for text, row in queries.items()},
        documents={row: text for text, row in documents.items()},
        qrels=qrels,
        ignore_identical_ids=bool(both),
    )


def _is_text(cell: object) -> bool:
    return isinstance(cell, str) and bool(cell.strip())


def _number(cell: object, path: Path, column: str) -> float:
    try:
        number = float(str(cell))
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(
            f"{path}: column {column!r} holds {cell!r}, expected a number; rename the column if it is no score"
        )
    return number
