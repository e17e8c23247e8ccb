"""Files of pairs in every format, whole and broken; the sources that a command takes."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pandas
import pytest

from llm2enc.evaluation import RetrievalTask, StsTask, gather, read_pairs_file
from tests.support.tables import scored, write, write_task

ROWS = [("what is, this?", 'a "thing", here'), ("why", "because\tof it"), ("007", "NA")]
UNTABBED = [(one, other.replace("\t", " ")) for one, other in ROWS]


def write_pairs(path: Path, names: Sequence[str], rows: Sequence[Sequence]) -> Path:
    table = [dict(zip(names, row, strict=True)) for row in rows]
    if ".jsonl" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in table)
    elif ".tsv" in path.name:
        text = "".join("\t".join(map(str, row)) + "\n" for row in (names, *rows))
    elif ".csv" in path.name:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
        text = path.read_text()
    else:
        pandas.DataFrame(table).to_parquet(path)
        return path
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_pairs_of_every_format(suffix: str, tmp_path: Path):
    rows = UNTABBED if "tsv" in suffix else ROWS
    task = read_pairs_file(write_pairs(tmp_path / f"my.own{suffix}", ("ask", "say"), rows))
    assert isinstance(task, RetrievalTask) and task.name == "my.own"
    found = [(task.queries[q], task.documents[d]) for q, judged in task.qrels.items() for d in judged]
    assert found == rows
    assert all(judgement == 1 for judged in task.qrels.values() for judgement in judged.values())


def test_columns_are_known_by_name_in_any_order(tmp_path: Path):
    rows = [("1", "a body", "a question"), ("2", "other", "another")]
    path = write_pairs(tmp_path / "pairs.csv", ("id", "Document", "QUERY"), rows)
    task = read_pairs_file(path)
    assert list(task.queries.values()) == ["a question", "another"]
    assert list(task.documents.values()) == ["a body", "other"]


def test_repeated_queries_have_several_answers_and_answers_several_queries(tmp_path: Path):
    rows = [("q", "one"), ("q", "two"), ("r", "two"), ("q", "one"), ("", "no query"), ("no answer", "  ")]
    task = read_pairs_file(write_pairs(tmp_path / "pairs.tsv", ("query", "positive"), rows))
    texts = {
        task.queries[query]: {task.documents[document] for document in judged} for query, judged in task.qrels.items()
    }
    assert texts == {"q": {"one", "two"}, "r": {"two"}}
    assert list(task.documents.values()) == ["one", "two"]
    # A perfect encoder finds both answers of q before anything else.
    vectors = {"q": [1, 1], "r": [0, 1], "one": [1, 0.9], "two": [0.5, 1]}
    assert scored(task, vectors).metrics["recall@10"] == scored(task, vectors).score == 1.0


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_score_makes_pairs_a_similarity_task(suffix: str, tmp_path: Path):
    rows = [("east", "0.5", "east"), ("east", "0", "steep"), ("east", "0.25", "north")]
    if suffix == ".jsonl":
        rows = [(one, float(value), other) for one, value, other in rows]
    task = read_pairs_file(write_pairs(tmp_path / f"sim{suffix}", ("a", "Similarity", "b"), rows))
    assert isinstance(task, StsTask) and task.scores.tolist() == [0.5, 0.0, 0.25]
    assert scored(task).score == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        (("text",), [("a",), ("b",)], "pairs need two columns of text, found text"),
        (("text", "score"), [("a", "1"), ("b", "2")], "pairs need two columns of text, found text, score"),
        (("a", "b"), [("x", "y")], "hold 1 usable pairs of 1 rows; at least two different ones"),
        (("a", "b"), [("x", "y"), ("x", "y"), ("", "z")], "hold 2 usable pairs of 3 rows"),
        (("a", "b", "score"), [("x", "y", "1"), ("u", "v", "good")], "column 'score' holds 'good', expected a number"),
        (("a", "b", "label"), [("x", "y", "1"), ("u", "v", "")], "column 'label' holds '', expected a number"),
        (("a", "b", "score"), [("x", "y", "1"), ("u", "v", "1.0")], "column 'score' holds 1 in every row"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(names, rows, message: str, tmp_path: Path):
    path = write_pairs(tmp_path / "pairs.csv", names, rows)
    with pytest.raises(ValueError, match=message) as caught:
        read_pairs_file(path)
    assert str(path) in str(caught.value)


def test_sources_are_folders_files_and_names_of_mteb(tmp_path: Path):
    write_task(tmp_path / "tasks" / "Pairs", "sts")
    pairs = write_pairs(tmp_path / "mine.jsonl", ("ask", "say"), ROWS)
    tasks, names = gather([str(tmp_path / "tasks"), "nanobeir", str(pairs), "STS12", "mteb"])
    assert [task.name for task in tasks] == ["Pairs", "mine"]
    assert names == ["NanoBEIR", "STS12", "MTEB(eng, v2)"]
    for missing in ("./nowhere", "some/where", "pairs.csv", "~/x"):
        with pytest.raises(ValueError, match=f"{missing}: no such file or folder"):
            gather([missing])
    with pytest.raises(ValueError, match="two tasks are called 'Pairs'"):
        gather([str(tmp_path / "tasks"), str(tmp_path / "tasks" / "Pairs")])
    write(tmp_path / "notes.md", ["x"])
    with pytest.raises(ValueError, match=r"notes\.md: pairs are read from \.jsonl, "):
        gather([str(tmp_path / "notes.md")])
