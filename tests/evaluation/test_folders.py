"""Task folders of every type are read, plain and compressed, ours and BEIR's; a fault is named with its file and line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2enc.evaluation import find_tasks, read_task
from tests.support.tables import (
    CORPUS,
    FILES,
    LABELLED,
    PAIRS,
    QRELS,
    QUERIES,
    RERANKED,
    SUMMARIES,
    jsonl,
    write,
    write_task,
)

RETRIEVED = {
    "queries": {"q0": "first", "q1": "second", "q3": "all 0"},  # q2 has no judgement
    "documents": {"a": "Title body\u2028more", "b": "bare", "c": "x"},
    "qrels": {"q0": {"a": 2, "b": 0}, "q1": {"c": 1}, "q3": {"a": 0}},
}
READ: dict[str, dict] = {
    "sts": {"first": ["one", 'a "quoted'], "second": ["two", "split\u2028line"], "scores": [5.0, -0.1]},
    "pair_classification": {"first": ["a", "c"], "second": ["b", "d"], "labels": [True, False]},
    "bitext": {"first": ["eins", "zwei"], "second": ["one", "two"]},
    "classification": {"train_texts": list("xyz"), "train_labels": ["a", "1", "a"], "test_texts": ["x"],
                       "test_labels": ["a"]},
    "clustering": {"members": list("xyz"), "labels": ["a", "1", "a"]},
    "reranking": {"queries": ["q"], "positives": [["p"]], "negatives": [["n", "m"]]},
    "retrieval": RETRIEVED,
    "summarization": {"human": [["h"]], "machine": [["m", "n"]], "relevance": [[1, 2.5]]},
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_every_type_is_read_plain_and_compressed(kind: str, compressed: bool, tmp_path: Path):
    task = read_task(write_task(tmp_path / "It", kind, compressed, language="de", instruction="Do it."))
    assert (task.name, task.type, task.language, task.instruction) == ("It", kind, "de", "Do it.")
    for field, wanted in READ[kind].items():
        found = getattr(task, field)
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == wanted
    assert task.symmetric == (kind not in ("retrieval", "reranking"))


@given(
    st.lists(
        st.tuples(*2 * [st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"))]), min_size=1, max_size=5
    )
)
@settings(max_examples=40, deadline=None)
def test_any_text_survives_its_file(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]):
    folder = tmp_path_factory.mktemp("any")
    write(folder / "task.json", ['{"type": "bitext"}'])
    write(
        folder / "test.tsv", ["sentence1\tsentence2", *("\t".join(pair) for pair in [("a", "b"), *pairs, ("c", "d")])]
    )
    task = read_task(folder)
    assert list(zip(task.first, task.second, strict=True)) == [("a", "b"), *pairs, ("c", "d")]
    write(folder / "task.json", ['{"type": "clustering"}'])
    write(folder / "test.jsonl", jsonl([{"text": text, "label": row} for row, text in enumerate(sum(pairs, ()))]))
    assert read_task(folder).members == list(sum(pairs, ()))


def test_files_of_other_systems_are_read(tmp_path: Path):
    """A byte order mark and two-character line ends, as spreadsheets write."""
    write(tmp_path / "task.json", ['{"type": "sts"}'])
    (tmp_path / "test.tsv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(PAIRS).encode() + b"\r\n")
    assert read_task(tmp_path).scores.tolist() == [5.0, -0.1]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_beir_folder_needs_no_description(tmp_path: Path, compressed: bool):
    beir = tmp_path / "nq"
    for name, lines in (("corpus.jsonl", jsonl(CORPUS)), ("queries.jsonl", jsonl(QUERIES))):
        write(beir / name, lines, compressed)
    write(beir / "qrels" / "train.tsv", [QRELS[0], "q0\tb\t1"], compressed)
    for splits, wanted in (("train", {"q0": {"b": 1}}), ("dev", {"q1": {"b": 1}}), ("test", RETRIEVED["qrels"])):
        if splits == "dev":
            write(beir / "qrels" / "dev.tsv", [QRELS[0], "q1\tb\t1"], compressed)
        if splits == "test":
            write(beir / "qrels" / "test.tsv", QRELS, compressed)
        task = read_task(beir)
        assert task.qrels == wanted and (task.name, task.type, task.instruction) == ("nq", "retrieval", "")
    assert task.documents == RETRIEVED["documents"]
    assert list(find_tasks(tmp_path)) == list(find_tasks(beir)) == ["nq"]


def _drop(rows: list[dict], field: str) -> list[str]:
    return jsonl([*rows[:-1], {name: value for name, value in rows[-1].items() if name != field}])


@pytest.mark.parametrize(
    ("kind", "file", "lines", "message"),
    [
        ("sts", "test.tsv", ["sentence1\tsentence2", "a\tb"], r"has no column score; its header is sentence1, sentence2"),
        ("sts", "test.tsv", PAIRS[:1], "has no rows"),
        ("sts", "test.tsv", [""], "has no column sentence1, sentence2, score"),
        ("sts", "test.tsv", [*PAIRS, "a\tb"], "line 4: 2 fields, the header has 3"),
        ("sts", "test.tsv", [*PAIRS, "a\tb\thigh"], "line 4: 'high' is not a number"),
        ("sts", "test.tsv", [*PAIRS, "a\tb\tnan"], "line 4: 'nan' is not a number"),
        ("sts", "test.tsv", [*PAIRS[:2], PAIRS[1]], ": every score is 5, so there is nothing to rank"),
        ("pair_classification", "test.tsv", ["sentence1\tsentence2\tlabel", "a\tb\t1", "a\tb\t2"],
         "line 3: the label is '2', expected 0 or 1"),
        ("pair_classification", "test.tsv", ["sentence1\tsentence2\tlabel", "a\tb\t1", "a\tc\t1"],
         ": every label is 1; both 0 and 1 must occur"),
        ("bitext", "test.tsv", ["sentence1\tother", "a\tb"], "has no column sentence2"),
        ("classification", "train.jsonl", LABELLED[:1], ": every label is 'a'; nothing can be learnt from one"),
        ("classification", "test.jsonl", [], "has no rows"),
        ("classification", "test.jsonl", [*LABELLED, "", '{"text": "x", "label": 0.5}'],
         "line 5: `label` must be a string or an integer, got"),
        ("clustering", "test.jsonl", [LABELLED[0], LABELLED[2]], ": every label is 'a'; there is nothing to tell apart"),
        ("clustering", "test.jsonl", [*LABELLED, "", "{"], "line 5 is not valid JSON"),
        ("clustering", "test.jsonl", [*LABELLED, "[]"], "line 4 must be an object such as {'text': ..., 'label': ...}"),
        ("clustering", "test.jsonl", ['{"text": 3, "label": "a"}'], "line 1: `text` must be a string, got"),
        ("reranking", "test.jsonl", ['{"query": "q", "positive": "p", "negative": []}'],
         "line 1: `positive` must be a list of strings"),
        ("reranking", "test.jsonl", jsonl(RERANKED[1:]), ": no query has both a positive and a negative candidate"),
        ("retrieval", "corpus.jsonl", _drop(CORPUS, "text"), "line 3: `text` must be a string"),
        ("retrieval", "corpus.jsonl", jsonl([*CORPUS, {"_id": "d", "title": ["x"], "text": "x"}]),
         "line 4: `title` must be a string, null or left out"),
        ("retrieval", "corpus.jsonl", jsonl([*CORPUS, CORPUS[1]]), "line 4: the id 'b' stands on an earlier line too"),
        ("retrieval", "queries.jsonl", _drop(QUERIES, "_id"), "line 4: `_id` must be a string"),
        ("retrieval", "qrels.tsv", [QRELS[0], "q0\ta\t0"], ": no query of queries.jsonl has a relevant document"),
        ("retrieval", "qrels.tsv", [*QRELS, "q0\tc\tyes"], "line 7: 'yes' is not a number"),
        ("summarization", "test.jsonl", jsonl([*SUMMARIES, SUMMARIES[0] | {"relevance": [1]}]),
         "line 2: 1 human summaries, 2 machine summaries and 1 scores"),
        ("summarization", "test.jsonl", jsonl([SUMMARIES[0] | {"human_summaries": []}]), "line 1: 0 human summaries"),
        ("summarization", "test.jsonl", jsonl([SUMMARIES[0] | {"machine_summaries": [], "relevance": []}]),
         "line 1: 1 human summaries, 0 machine summaries and 0 scores"),
        ("summarization", "test.jsonl", jsonl([SUMMARIES[0] | {"relevance": [1, True]}]),
         "line 1: `relevance` must be a list of numbers"),
        ("summarization", "test.jsonl", ['{"human_summaries": ["h"], "machine_summaries": ["m"], "relevance": [NaN]}'],
         "line 1: `relevance` must be a list of numbers"),
        ("summarization", "test.jsonl", jsonl([SUMMARIES[0] | {"relevance": [2, 2]}]), "so there is nothing to rank"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_line(kind: str, file: str, lines: list[str], message: str, tmp_path: Path):
    folder = write_task(tmp_path / "It", kind)
    write(folder / file, lines)
    with pytest.raises(ValueError, match=message) as caught:
        read_task(folder)
    assert str(caught.value).startswith(str(folder / file))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    folder = write_task(tmp_path / "It", "bitext", compressed=True)
    packed = folder / "test.tsv.gz"
    whole = packed.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for data in (b"plain", whole[:-9], damaged, gzip.compress("sentence1\xff".encode("latin1"))):
        packed.write_bytes(data)
        with pytest.raises(ValueError, match=r"test\.tsv\.gz(, line 1 or later is not UTF-8| cannot be read: )"):
            read_task(folder)
    packed.unlink()
    with pytest.raises(ValueError, match=r"test\.tsv cannot be read: .*No such file"):
        read_task(folder)


def test_a_folder_that_holds_no_task_or_another_one_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no task: expected folders with a task\.json"):
        find_tasks(tmp_path / "missing")
    write_task(tmp_path / "Pairs", "sts")
    write(tmp_path / "notes" / "readme.txt", ["no task"])
    assert list(find_tasks(tmp_path)) == ["Pairs"]
    with pytest.raises(ValueError, match="has no task Other; it has Pairs"):
        find_tasks(tmp_path, ["Pairs", "Other"])
    for text, message in (
        ('{"type": "chess"}', r"task\.json: type is 'chess'; expected one of sts"),
        ("{}", "type is None"),
        ("[]", "type is None"),
        ("{", r"task\.json is not valid JSON"),
        ('{"type": "sts", "instruction": 3}', "instruction is 3, expected text"),
    ):
        write(tmp_path / "Wrong" / "task.json", [text])
        with pytest.raises(ValueError, match=message):
            find_tasks(tmp_path)
        assert list(find_tasks(tmp_path, ["Pairs"])) == ["Pairs"]  # what was not asked for is not in the way


def test_named_tasks_come_in_order_and_a_link_has_its_own_name(tmp_path: Path):
    for name in ("b", "a"):
        write_task(tmp_path / "store" / name, "sts")
    (tmp_path / "link").symlink_to(tmp_path / "store" / "a")
    assert list(find_tasks(tmp_path / "store")) == ["a", "b"]
    assert list(find_tasks(tmp_path / "store", ("b", "a"))) == ["b", "a"]
    assert read_task(find_tasks(tmp_path)["link"]).name == "link"
