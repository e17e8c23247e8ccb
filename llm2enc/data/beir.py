"""BEIR folders (arXiv 2104.08663) as training pairs.

    corpus.jsonl     {"_id": ..., "title": ..., "text": ...}     a document is title + space + text
    queries.jsonl    {"_id": ..., "text": ...}                   the queries of all splits
    qrels/SPLIT.tsv  query-id  corpus-id  score                  or qrels.tsv; one header line

One pair a query: the documents judged above 0 are its right answers, those judged 0 its hard negatives. Any file may end
in .gz. Corpus and queries are memory-mapped and only the judgements are held, so the corpus may be larger than memory.
"""

import glob
import logging
from pathlib import Path

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.compute as pc

from llm2enc.data.cells import titled
from llm2enc.data.formats import Recognised
from llm2enc.data.rows import Pair, Rows
from llm2enc.data.tables import label, load, reading
from llm2enc.errors import DataError
from llm2enc.recipe import FilesData

_log = logging.getLogger(__name__)

_COLUMNS = ("query-id", "corpus-id", "score")


def is_beir(path: str | tuple[str, ...]) -> bool:
    """Whether the path is a folder with corpus, queries and judgements."""
    if not isinstance(path, str) or not Path(path).is_dir():
        return False
    folder = Path(path)
    tables = _existing(folder, "corpus.jsonl") and _existing(folder, "queries.jsonl")
    return bool(tables and ((folder / "qrels").is_dir() or _existing(folder, "qrels.tsv")))


def recognise_folder(folder: Path, split: str | None = None) -> Recognised:
    """Where the texts come from, and which judgements are used.

    split   file in qrels/; by default `train`, or qrels.tsv. Other judgements are for evaluation, and only on request
    raises  ValueError if there are no such judgements
    """
    judged = _qrels(folder, split)
    if judged is None:
        there = sorted(file.name.split(".")[0] for file in folder.glob("qrels/*.tsv*"))
        raise DataError(
            f"{folder} has no qrels/{split or 'train'}.tsv; it has judgements for {', '.join(there) or 'nothing'}. "
            f"To train on one of them, which can then measure nothing any more, write `split: {(there or ['...'])[0]}`"
        )
    roles = {"query": ("queries.jsonl text",), "positive": ("corpus.jsonl title", "text")}
    return Recognised("beir", roles, (f"judgements of {judged.relative_to(folder)}; 0 makes a hard negative",))


def read(spec: FilesData, scores: bool = False) -> tuple[Recognised, Rows[Pair]]:
    """The pairs of a folder, a query each; `limit` is of queries. ValueError for whatever is wrong.

    scores  give the pairs the judgements as the scores of their documents
    """
    folder = Path(str(spec.path))
    refused = [f"`{name}`" for name, given in (("columns", spec.columns), ("streaming", spec.streaming)) if given]
    if refused or spec.format not in {"auto", "beir"}:
        raise DataError(
            f"data source {label(spec)!r} is a BEIR folder, which takes no {', '.join(refused) or spec.format}; remove it "
            "(the corpus is memory-mapped as it is)"
        )
    with reading(spec):
        recognised = recognise_folder(folder, spec.split)
        return recognised, _pairs(spec, folder, _judgements(_qrels(folder, spec.split)), scores)


def _pairs(spec: FilesData, folder: Path, judged: pandas.DataFrame, scores: bool) -> Rows[Pair]:
    queries, corpus = _table(folder, "queries.jsonl"), _table(folder, "corpus.jsonl")
    judged["query"] = judged["query-id"].map(_positions(queries, judged["query-id"], folder / "queries.jsonl"))
    judged["document"] = judged["corpus-id"].map(_positions(corpus, judged["corpus-id"], folder / "corpus.jsonl"))
    # A query of no split in queries.jsonl is passed over, as in evaluation; a right answer that is nowhere is a fault.
    lost = judged[(judged["score"] > 0) & judged["query"].notna() & judged["document"].isna()]
    if len(lost):
        raise DataError(f"document {lost['corpus-id'].iloc[0]!r} is judged relevant, but the corpus does not hold it")
    usable = judged.dropna()
    usable = usable[(usable["query"] >= 0) & (usable["document"] >= 0)].astype({"query": int, "document": int})
    right, right_scores = _by_query(usable[usable["score"] > 0])
    wrong, wrong_scores = _by_query(usable[usable["score"] <= 0])
    asked = right.index.to_numpy()[: spec.limit]
    dropped = judged["query-id"].nunique() - len(right)
    _log.info("%s: %d queries, %d more have no relevant document or no text", label(spec), len(asked), dropped)
    if not len(asked):
        raise DataError("no query with text has a relevant document with text")

    def take(chosen: np.ndarray) -> list[Pair]:
        members = [(right[query], wrong.get(query, [])) for query in asked[chosen]]
        wanted = sorted({document for both in members for side in both for document in side})
        texts = dict(zip(wanted, _texts(corpus, wanted), strict=True))
        return [
            Pair(
                query=query,
                positive=texts[yes[0]],
                negatives=tuple(texts[document] for document in no),
                instruction=spec.instruction,
                document_instruction=spec.instruction if spec.symmetric else "",
                others=tuple(texts[document] for document in yes[1:]),
                positive_scores=tuple(right_scores[row]) if scores else (),
                negative_scores=tuple(wrong_scores.get(row, ())) if scores else (),
            )
            for row, query, (yes, no) in zip(
                asked[chosen], _texts(queries, asked[chosen].tolist()), members, strict=True
            )
        ]

    return Rows(label(spec), len(asked), take)


def _by_query(judged: pandas.DataFrame) -> tuple[pandas.Series, pandas.Series]:
    """Row of each query -> rows of its documents, and their scores in that order."""
    groups = judged.groupby("query", sort=False)
    return groups["document"].agg(list), groups["score"].agg(lambda scores: [float(score) for score in scores])


def _judgements(path: Path) -> pandas.DataFrame:
    table = pandas.read_csv(path, sep="\t", dtype=str, quoting=3, keep_default_na=False, encoding="utf-8-sig")
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; its header is {', '.join(table.columns)}")
    table["score"] = pandas.to_numeric(table["score"], errors="coerce")
    if table["score"].isna().any():
        raise DataError(f"{path}: a score is not a number (row {int(table['score'].isna().argmax()) + 1})")
    return table[list(_COLUMNS)].drop_duplicates(["query-id", "corpus-id"], keep="last")


def _table(folder: Path, name: str) -> datasets.Dataset:
    table = load([glob.escape(str(_existing(folder, name).resolve()))])
    missing = [column for column in ("_id", "text") if column not in table.column_names]
    if missing:
        raise DataError(f"{folder / name} has no {', '.join(missing)}; it has {', '.join(table.column_names)}")
    return table.select_columns([column for column in ("_id", "title", "text") if column in table.column_names])


def _positions(table: datasets.Dataset, ids: pandas.Series, path: Path) -> dict[str, int]:
    """Row of each id that is there; -1 if it has no text."""
    wanted = pa.array(ids.unique(), pa.string())
    found: dict[str, int] = {}
    start = 0
    for block in table.with_format("arrow").iter(10_000):
        names = block["_id"].cast(pa.string())
        at = np.flatnonzero(np.asarray(pc.is_in(names, value_set=wanted)))
        for row, name, text in zip(at, names.take(at).to_pylist(), _joined(block.take(at)), strict=True):
            if name in found:
                raise DataError(f"{path}: the id {name!r} occurs twice")
            found[name] = start + int(row) if text else -1
        start += len(block)
    return found


def _texts(table: datasets.Dataset, rows: list[int]) -> list[str]:
    return _joined(table.with_format("arrow")[rows])


def _joined(block: pa.Table) -> list[str]:
    titles = block["title"].to_pylist() if "title" in block.column_names else [""] * len(block)
    return [titled(title, text) for title, text in zip(titles, block["text"].to_pylist(), strict=True)]


def files(folder: Path, split: str | None) -> list[Path]:
    """What `read` reads: corpus, queries and the judgements of the split, as far as they are there."""
    found = (_existing(folder, "corpus.jsonl"), _existing(folder, "queries.jsonl"), _qrels(folder, split))
    return [path for path in found if path is not None]


def _qrels(folder: Path, split: str | None) -> Path | None:
    return _existing(folder, f"qrels/{split or 'train'}.tsv") or (None if split else _existing(folder, "qrels.tsv"))


def _existing(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
