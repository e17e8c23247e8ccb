"""A BEIR folder as training pairs: the reader of evaluation, with its counts and its faults."""

import logging
from pathlib import Path

import pytest

from llm2enc import audit
from llm2enc.data import Pair, beir
from llm2enc.data.sources import read_rows
from llm2enc.evaluation import read_task
from llm2enc.recipe import FilesData
from llm2enc.text import Passage
from tests.support.tables import jsonl, private_cache, write

_private_cache = private_cache  # for every test of this file

HEADER = "query-id\tcorpus-id\tscore"
CORPUS = [
    {"_id": 1, "text": "one"},
    {"_id": "2", "title": None, "text": None, "url": 3},
    {"_id": 3, "text": "three", "url": "a"},
]
QUERIES = [
    {"_id": 7, "text": "seven", "metadata": {}},
    {"_id": "8", "text": "eight", "metadata": {"of": [1]}},
    {"_id": 9, "text": None},
]


def folder(place: Path, qrels: list[str], corpus: list[dict] = CORPUS, split: str = "train") -> FilesData:
    write(place / "corpus.jsonl", jsonl(corpus))
    write(place / "queries.jsonl", jsonl(QUERIES))
    write(place / "qrels" / f"{split}.tsv", [HEADER, *qrels])
    return FilesData(kind="files", path=str(place))


def test_ids_nulls_and_fields_that_nobody_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm2enc")
    spec = folder(tmp_path, ["7\t1\t1", "7\t3\t0", "8\t2\t1", "8\t3\t0.5", "9\t1\t1"])
    rows = read_rows(Pair, spec, scores=True)
    assert list(rows) == [
        Pair("seven", "one", ("three",), "", "", (), (1.0,), (0.0,)),
        Pair("eight", "three", (), "", "", (), (0.5,), ()),  # document 2 has no text
    ]
    assert "2 queries, 1 more have no relevant document or no text" in caplog.text


def test_a_document_knows_its_title(tmp_path: Path) -> None:
    corpus = [{"_id": "1", "title": "One ", "text": "a unit"}, {"_id": "3", "title": " ", "text": "three"}]
    (pair,) = read_rows(Pair, folder(tmp_path, ["7\t1\t1", "7\t3\t0"], corpus))
    assert (pair.positive, pair.negatives) == ("One  a unit", ("three",))  # to whom does not ask, as ever
    assert isinstance(pair.positive, Passage) and pair.positive.parts == ("One ", "a unit")
    assert type(pair.negatives[0]) is str


def test_absent_documents_are_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = folder(tmp_path, ["7\t1\t1", "7\tgone\t1", "8\tlost\t0", "8\tgone\t1", "other\t1\t1"])
    assert list(read_rows(Pair, spec)) == [Pair("seven", "one", (), "", "")]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}/qrels/train.tsv: 1 of 3 judged queries are not in queries.jsonl, and left out",
        f"{tmp_path}/qrels/train.tsv: 3 judgements (2 of relevance) are of documents that the corpus does not hold, such as "
        "'gone'; left out",
    ]


@pytest.mark.parametrize(
    ("qrels", "corpus", "message"),
    [
        (["7\t1\t1\t"], CORPUS, r"train\.tsv, line 2: 4 fields, the header has 3"),
        (["7\t0\t1\t1"], CORPUS, "line 2: 4 fields, the header has 3"),
        (["7\t1\tyes"], CORPUS, "line 2: 'yes' is not a number"),
        (["7\t1\t1"], [{"_id": 1.5, "text": "one"}], r"corpus\.jsonl, line 1: `_id` must be a string or an integer"),
        (["7\t1\t1"], [{"_id": 1, "contents": "one"}], "line 1: `text` must be a string or null"),
        (["7\t1\t1"], [*CORPUS, {"_id": "1", "text": "again"}], "line 4: the id '1' stands on an earlier line too"),
        (["7\t2\t1"], CORPUS, "no query with text has a relevant document with text"),
    ],
)
def test_a_fault_is_the_same_in_training_evaluation_and_audit(
    qrels: list[str], corpus: list[dict], message: str, tmp_path: Path
) -> None:
    spec = folder(tmp_path, qrels, corpus)
    with pytest.raises(ValueError, match=message):
        read_rows(Pair, spec)
    with pytest.raises(ValueError, match=message):  # `llm2enc data`
        audit.examine(str(tmp_path))
    if "with text" not in message:  # an empty document may be ranked, and not learnt from
        with pytest.raises(ValueError, match=message):
            read_task(tmp_path)


def test_both_readers_hold_the_same_texts_and_judgements(tmp_path: Path) -> None:
    spec = folder(tmp_path, ["7\t1\t1", "7\t3\t2", "8\t3\t0.5"], split="test")
    task = read_task(tmp_path)
    assert task.qrels == beir.read_qrels(tmp_path / "qrels" / "test.tsv")
    rows = read_rows(Pair, spec.model_copy(update={"split": "test"}))
    assert {row.query: [row.positive, *row.extra_positives] for row in rows} == {
        task.queries[query]: [task.documents[name] for name in judged] for query, judged in task.qrels.items()
    }
