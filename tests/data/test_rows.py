"""Rows as files hold them: content decides, fields are counted, guesses are said or refused, and no line is lost."""

import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from llm2enc.data import Pair, ScoredPair, examine, read_text_files, read_texts
from llm2enc.data.content import grades, no_text, written_lists
from llm2enc.data.delimited import header_fault, is_quoted, separator_of
from llm2enc.data.sources import read_rows
from llm2enc.errors import DataError
from llm2enc.evaluation import read_pairs_file
from llm2enc.recipe import FilesData
from tests.support.tables import private_cache

_private_cache = private_cache  # for every test of this file

PAIR = {"query": "a question", "positive": "an answer"}


def put(path: Path, content: str | bytes | list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def spec(path: Path, **fields) -> FilesData:
    return FilesData(kind="files", path=str(path), **fields)


def pairs(path: Path, **fields) -> list[Pair]:
    return list(read_rows(Pair, spec(path, **fields)))


# -------------------------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_size_and_content_decide_not_the_time_stamp(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    for word in ("former", "latter"):  # of one length
        rows = [{"text": word}]
        table = pandas.DataFrame(rows)
        content = {
            ".txt": word, ".csv": f"text\n{word}\n", ".tsv": f"text\n{word}\n", ".jsonl": rows, ".json": json.dumps(rows),
            ".parquet": table.to_parquet(),
        }[suffix]  # fmt: skip
        put(path, content)
        os.utime(path, ns=(10**18, 10**18))
        assert list(read_texts(spec(path))) == list(read_texts(spec(path, streaming=True))) == [word]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        [{**PAIR, "id": 1}, {**PAIR, "id": "x"}],
        [{**PAIR, "id": 2**64}],
        [{**PAIR, "meta": {"a": 1}}, {**PAIR, "meta": ["x"]}],
        [PAIR, {**PAIR, "other": "\ud83d"}],
        [PAIR] * 1200 + [{**PAIR, "late": [{"a": 1}]}],
        [{**PAIR, "when": "2020-01-01"}, {**PAIR, "when": None}],
    ],
)
def test_fields_that_nobody_reads_decide_nothing(rows: list[dict], streaming: bool, tmp_path: Path) -> None:
    found = pairs(put(tmp_path / "a.jsonl", rows), streaming=streaming)
    assert found == [Pair("a question", "an answer", (), "", "")] * len(rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("first", [{"negatives": None}, {"negatives": []}, {}])
def test_lists_that_come_late_are_read(first: dict, streaming: bool, tmp_path: Path) -> None:
    rows = [{**PAIR, **first}] * 1500 + [{**PAIR, "negatives": ["n"]}]
    found = pairs(put(tmp_path / "a.jsonl", rows), streaming=streaming)
    assert [pair.negatives for pair in found] == [()] * 1500 + [("n",)]


def test_ids_of_passages_may_be_of_several_types(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive_passages": [{"docid": docid, "title": "T", "text": "p"} for docid in ids]}
        for ids in ([1], ["x", 2], [None])
    ]
    assert [pair.positive for pair in pairs(put(tmp_path / "a.jsonl", rows))] == ["T p"] * 3


def test_texts_that_look_like_dates_are_texts(tmp_path: Path) -> None:
    dates = ["2020-01-01", "2021-05-05T01:02:03"]
    assert list(read_texts(spec(put(tmp_path / "a.jsonl", [{"text": date} for date in dates])))) == dates


def test_a_column_in_use_that_mixes_types_is_refused_with_its_line(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [PAIR, {**PAIR, "query": ["x"]}])
    with pytest.raises(DataError, match=r"'query' \(query\) holds string, then list<.*\['x'\] \(.*a\.jsonl, line 2\)"):
        pairs(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_faults_name_file_and_line(streaming: bool, tmp_path: Path) -> None:
    put(tmp_path / "b.jsonl", "".join(json.dumps(PAIR) + "\n" for _ in range(1500)) + "{broken\n")
    with pytest.raises(DataError, match=r"b\.jsonl, line 1501 is not valid JSON"):
        pairs(tmp_path / "*.jsonl", streaming=streaming)


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "a", "text": "b"}\n')
    for read in (lambda: read_text_files(str(path)), lambda: read_texts(spec(path))):
        with pytest.raises(DataError, match="line 1 is not valid JSON: the key 'text' occurs twice"):
            read()


# --------------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "id,text,label\n1,hello world,0,\n",
            r"line 2 has 4 fields, and the header names 3 .*'1,hello world,0,'",
        ),
        ("a.csv", "id,text\n1,fine\n2,Hello, world\n", r"line 3 has 3 fields, and the header names 2 \(id, text\)"),
        ("a.csv", "id,text\n1\n", "line 2 has 1 fields"),
        ("a.tsv", "text\tother\na b\tc d\t5.0\n", r"line 2 has 3 fields, and the header names 2"),
        ("a.csv", "text,text\na,b\n", "'text' occurs twice"),
        (
            "a.csv",
            "The first sentence.\nThe second.\n",
            r"its first line cannot be .* 'The first sentence\.' looks like a text",
        ),
        (
            "a.csv",
            "A man plays,A man is playing,4.5\na,b,1\n",
            r"'4\.5' is a number: .*; write a line with the names of its 3",
        ),
        ("a.csv", "id;text\n1;a;b\n", r"line 2 has 3 fields, and the header names 2 \(id, text\)"),
    ],
)
def test_every_reader_counts_fields_and_looks_at_the_header(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    path = put(tmp_path / name, content)
    for read in (
        lambda: read_text_files(str(path)),
        lambda: list(read_texts(spec(path, columns={"text": "text"}))),
        lambda: list(read_texts(spec(path, columns={"text": "text"}, streaming=True))),
        lambda: read_pairs_file(path),
    ):
        with pytest.raises(DataError, match=message):
            read()


def test_a_semicolon_separates_where_the_header_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path / "a.csv", "id;text\n1;one, two\n2;three\n")
    rows = read_text_files(str(path))
    assert list(rows) == ["one, two", "three"]
    assert rows.decided == "csv, separator semicolon, header id, text; text = text"
    with caplog.at_level("INFO", "llm2enc.data"):
        assert list(read_texts(spec(path))) == ["one, two", "three"]
    assert "a.csv: csv, separator semicolon, header id, text; text = text" in caplog.text
    assert [separator_of(*given) for given in (("a,b;c", ","), ("text", ","), ("a|b", ","), ("a,b", "\t"))] == [*",,|,"]


def test_what_was_decided_on_pairs_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path / "a.tsv", "query\tpositive\tid\na b\tc d\t7\n")
    with caplog.at_level("INFO", "llm2enc.data"):
        pairs(path)
    roles = "format columns (query = query, positive = positive)"
    line = f"{roles}; tsv, separator tab, header query, positive, id; not read: id"
    assert line in caplog.text


def test_headers_that_are_names_are_taken() -> None:
    for names in (["query", "positive"], ["", "Frage", "Antwort"], ["text", "2021"], ["Unnamed: 0", "a body of text"]):
        assert header_fault(names) == ""


# --------------------------------------------------------------------------------------------------------------- guesses


def test_ids_and_numbers_are_no_texts() -> None:
    assert no_text(["1", "2.5", "", None, "-3e2"]) == "numbers"
    assert no_text(["doc-1", "doc-2"]) == no_text(["4b9a33e0-7c1d", "5b9a33e0-7c1e"]) == "ids"
    assert no_text(["river", "sea"]) == no_text(["doc-1", "doc-1"]) == no_text(["covid 19", "b12"]) == no_text([]) == ""


def test_a_guess_that_the_cells_contradict_is_refused_and_a_name_is_not(tmp_path: Path) -> None:
    shop = put(tmp_path / "shop.csv", "id,title,body\n1,Red shoes,All about shoes\n2,Blue hats,All about hats\n")
    with pytest.raises(DataError, match=r"column 'id' was taken for texts, and holds numbers \('1'\)"):
        pairs(shop, format="sentence-transformers")
    with pytest.raises(DataError, match=r"shop\.csv: column 'id' was taken for texts, and holds numbers .* `query`"):
        read_pairs_file(shop)
    assert pairs(shop, columns={"query": "title", "positive": "body"})[0].query == "Red shoes"
    years = put(tmp_path / "years.csv", "year\n1999\n2000\n")
    for read in (lambda: read_text_files(str(years)), lambda: read_texts(spec(years))):
        with pytest.raises(DataError, match="'year' was taken for texts, and holds numbers"):
            read()
    assert list(read_text_files(str(years), "year")) == ["1999", "2000"]
    assert list(read_texts(spec(years, columns={"text": "year"}))) == ["1999", "2000"]


def test_query_and_positive_are_two_columns_with_two_texts(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "query,positive\na b,a b\nc d,c d\n")
    with pytest.raises(DataError, match=r"are one column, 'query', .* `objective: simcse`"):
        pairs(path, columns={"query": "query", "positive": "query"})
    with pytest.raises(DataError, match="columns 'query' and 'positive' hold the same texts"):
        pairs(path)


LABELS = {
    "similarity_score": [0.9, 0.1, 0.45],
    "gold_label": ["entailment", "contradiction", "neutral"],
    "relatednessScore": [4.5, 1.0, 3.2],
    "is_paraphrase": [1, 0, 1],
    "is_correct": [True, False, True],
    "cosine_sim": [0.9, -0.1, 0.3],
    "relevance": [2, 0, 1],
    "esci_label": ["E", "I", "S"],
    "value": [3, 1, 3],
    "kind": ["match", "other", "match", "other"],
    "z": ["0.5", "4.5", "2.0"],
}


@pytest.mark.parametrize("name", LABELS)
def test_a_column_that_grades_the_rows_is_a_question(name: str, tmp_path: Path) -> None:
    rows = [
        {"sentence1": f"a text {n}", "sentence2": f"another {n}", name: value} for n, value in enumerate(LABELS[name])
    ]
    path = put(tmp_path / "a.jsonl", rows)
    known = "query: sentence1, positive: sentence2"
    with pytest.raises(
        DataError, match=rf"'{name}' is not read, .*`columns: {{{known}}}`.*`columns: {{{known}, score: {name}}}`"
    ):
        pairs(path)
    with pytest.raises(DataError, match=f"column '{name}' looks like (grades|classes) .* call it `score`"):
        read_pairs_file(path)
    own = {"query": "sentence1", "positive": "sentence2"}
    assert len(pairs(path, columns=own)) == len(rows)
    if isinstance(LABELS[name][0], float):
        scored = examine(spec(path, columns={**own, "score": name}), ScoredPair)[1]
        assert [row.score for row in scored] == LABELS[name]


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("id", [0, 1, 0]),
        ("doc_id", [1, 1, 2]),
        ("source", ["wiki", "wiki", "web", "web"]),
        ("title", ["Rivers", "Towns", "Salt"]),
        ("views", [1031, 22, 409]),
        ("same", [1, 1, 1]),
        ("label", []),
        ("scores", [[1.0, 0.5]]),
        ("note", [None, ""]),
    ],
)
def test_columns_that_grade_nothing_are_no_question(name: str, cells: list) -> None:
    assert grades(name, cells) == ""


# ----------------------------------------------------------------------------------------------------------- text files


def test_a_byte_order_mark_and_a_lone_carriage_return(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "\ufeffone\r\ntwo\rstill two\n\u2028three\n")
    assert list(read_text_files(str(path))) == list(read_texts(spec(path))) == ["one", "two\rstill two", "\u2028three"]
    for name, content in {
        "a.csv": "\ufefftext\na\n",
        "a.tsv": "\ufefftext\na\n",
        "a.jsonl": '\ufeff{"text": "a"}',
    }.items():
        path = put(tmp_path / name, content)
        assert list(read_text_files(str(path))) == list(read_texts(spec(path))) == ["a"]


def test_what_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "one\n".encode("utf-16"))
    for read in (lambda: read_text_files(str(path)), lambda: read_texts(spec(path))):
        with pytest.raises(DataError, match=r"a\.txt, line 1 or later is not UTF-8 .*; save it as UTF-8"):
            read()


@pytest.mark.parametrize("quoting", [0, 1])  # where needed, and everywhere
def test_a_tsv_of_pandas_gives_its_texts(quoting: int, tmp_path: Path) -> None:
    texts = ['say "hi" now', "two\nlines", "a\ttab", "plain", '"', ""]
    table = pandas.DataFrame({"text": texts, "n": [*"abcdef"]}).to_csv(sep="\t", index=False, quoting=quoting)
    path = put(tmp_path / "a.tsv", table)
    rows = read_text_files(str(path))
    assert list(rows) == texts and "quoted cells" in rows.decided
    assert list(read_texts(spec(path, columns={"text": "text"}))) == texts[:-1]


def test_a_tsv_without_quotation_keeps_its_marks(tmp_path: Path) -> None:
    content = 'text\tn\n"a" b"\t1\nc "d\t2\n"e"\t3\n"open\t4\n'
    path = put(tmp_path / "a.tsv", content)
    assert list(read_text_files(str(path))) == list(read_texts(spec(path, columns={"text": "text"}))) == [
        '"a" b"', 'c "d', '"e"', '"open',
    ]  # fmt: skip
    lines = {'a\n"b"\n': False, 'a\n"b""c"\n': True, '"a"\nb\n': True, 'a\n"b\nc"\n': True, 'a\n"b\nc\n': False}
    assert {text: is_quoted(text.splitlines(keepends=True), "\t") for text in lines} == lines


def test_a_list_in_a_csv_is_no_text(tmp_path: Path) -> None:
    rows = {"query": ["q a", "q b"], "positive": ["p a", "p b"], "negatives": [["n", "m"], ["k"]]}
    path = put(tmp_path / "a.csv", pandas.DataFrame(rows).to_csv(index=False))
    with pytest.raises(DataError, match=r"column 'negatives' holds lists that are written as text .* JSON lines"):
        pairs(path)
    path = put(tmp_path / "b.csv", "text\n\"['a', 'b']\"\n")
    for read in (lambda: read_text_files(str(path)), lambda: read_texts(spec(path))):
        with pytest.raises(DataError, match="column 'text' holds lists"):
            read()
    assert not written_lists(["[sic] a", "b"]) and not written_lists(["[1] and [2]"]) and not written_lists([None, ""])


# ---------------------------------------------------------------------------------------------------- one line, one text


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "two.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_a_line_without_text_is_an_empty_text(name: str, tmp_path: Path) -> None:
    rows = [{"text": text, "n": str(n)} for n, text in enumerate(("a", None, "b", "", "c"))]
    content = {
        "a.txt": "a\n\nb\n\nc\n",
        "a.csv": "text\na\n\nb\n\nc\n",
        "two.csv": "text,n\na,0\n,1\nb,2\n,3\nc,4\n",
        "a.tsv": "text\tn\na\t0\n\t1\nb\t2\n\t3\nc\t4\n",
        "a.jsonl": rows,
        "a.parquet": pandas.DataFrame(rows).to_parquet(),
    }[name]
    path = str(put(tmp_path / name, content))
    every, some = read_text_files(path), read_text_files(path, skip_empty=True)
    assert list(every) == ["a", "", "b", "", "c"] and every.kept is None
    assert every.empty == some.empty == (2, 2) and every.total == some.total == 5
    assert list(some) == ["a", "b", "c"] and np.array_equal(some.kept, [0, 2, 4])
    assert list(read_texts(spec(Path(path), columns={"text": "text"}))) == ["a", "b", "c"]  # nothing to train on


# ------------------------------------------------------------------------------------------------------- links and pipes


def test_a_link_has_the_type_of_its_own_name(tmp_path: Path) -> None:
    put(tmp_path / "blobs" / "88aa", [{"text": "a"}])
    put(tmp_path / "blobs" / "table.csv", "text\nb\n")
    (tmp_path / "snapshots" / "r").mkdir(parents=True)
    (tmp_path / "snapshots" / "r" / "train.jsonl").symlink_to("../../blobs/88aa")
    (tmp_path / "link").symlink_to("blobs/table.csv")
    for path, text in ((tmp_path / "snapshots" / "r" / "train.jsonl", "a"), (tmp_path / "link", "b")):
        assert list(read_text_files(str(path))) == list(read_texts(spec(path))) == [text]


def test_two_colons_in_a_path(tmp_path: Path) -> None:
    path = put(tmp_path / "a::b" / "c.jsonl", [{"text": "a"}])
    assert list(read_text_files(str(path))) == list(read_texts(spec(path))) == ["a"]


@pytest.mark.parametrize(
    ("content", "column", "expected"),
    [
        ("a\n\n{b\n", None, ["a", "", "{b"]),
        ('{"text": "a"}\n{"text": null}\n', None, ["a", ""]),
        ("id,say\n1,a\n", "say", ["a"]),
        ("id\tsay\n1\ta\n", "say", ["a"]),
    ],
)
def test_a_pipe_is_read_as_its_content_says(content, column, expected, tmp_path: Path, monkeypatch) -> None:
    source = put(tmp_path / "input", content)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source.open("rb")))
    assert list(read_text_files("-", column)) == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=[content.encode()])
    writer.start()
    assert list(read_text_files(str(pipe), column)) == expected
    writer.join()
    with pytest.raises(DataError, match="is a pipe, which is read once, and training reads its data again"):
        read_texts(spec(pipe))


def test_a_pipe_without_the_column_that_was_named_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=put(tmp_path / "input", "a;b\n").open("rb")))
    with pytest.raises(DataError, match=r"does not name the column 'say': 'a;b'; leave --column out"):
        read_text_files("-", "say")
