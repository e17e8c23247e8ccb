"""Data: every format is read, every fault is told, and batch k is the same wherever iteration starts."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2enc.data import Pair, block_batches, read_texts, row_batches
from llm2enc.data.sources import read_rows
from llm2enc.recipe import DocstringsData, FilesData, HubData
from tests.support.tables import private_cache

_private_cache = private_cache  # for every test of this file


def _write(path: Path, rows: list[dict] | list[str]) -> Path:
    """The rows in the format that the file name tells."""
    if ".parquet" in path.name:
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if ".txt" in path.name:
        text = "".join(f"{row}\n" for row in rows)
    elif ".jsonl" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        separator = "\t" if ".tsv" in path.name else ","
        text = (
            "\n".join(separator.join(cells) for cells in [list(rows[0]), *(list(row.values()) for row in rows)]) + "\n"
        )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _files(path: Path | str, **fields: object) -> FilesData:
    return FilesData(kind="files", path=str(path), **fields)


def _texts(path: Path, name: str, size: int, **fields: object) -> FilesData:
    return _files(_write(path / f"{name}.txt", [f"{name} {i}" for i in range(size)]), name=name, **fields)


def _hub(path: Path, name: str, size: int, **fields: object) -> HubData:
    """A streaming source: a local directory of parquet files stands in for a repository of the hub."""
    (path / name).mkdir()
    _write(path / name / "train.parquet", [{"text": f"{name} {i}"} for i in range(size)])
    return HubData(kind="hub", path=str(path / name), name=name, streaming=True, **fields)


# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"])
def test_pairs_of_every_table_format(tmp_path: Path, suffix: str) -> None:
    rows = [{"query": "007", "positive": "NA"}, {"query": "  ", "positive": "x"}, {"query": 'say "a"', "positive": "b"}]
    if suffix.startswith(".csv"):
        rows[2] = {"query": "a", "positive": '"b, c"'}
    found = list(read_rows(Pair, _files(_write(tmp_path / f"rows{suffix}", rows), instruction="Find it")))
    last = ("a", "b, c") if suffix.startswith(".csv") else ('say "a"', "b")
    assert found == [Pair("007", "NA", (), "Find it", ""), Pair(*last, (), "Find it", "")]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_text_lines(tmp_path: Path, suffix: str) -> None:
    texts = read_texts(_files(_write(tmp_path / f"lines{suffix}", ["one two", "", " ", "three\u2028four"])))
    assert list(texts) == ["one two", "three\u2028four"] and len(texts) == 2
    assert texts[-1] == "three\u2028four" and texts[0:1] == ["one two"]


def test_globs_lists_odd_names_and_limit(tmp_path: Path) -> None:
    for name in ("a[1].txt", "b.txt"):
        _write(tmp_path / name, [name])
    assert list(read_texts(_files(tmp_path / "*.txt"))) == ["a[1].txt", "b.txt"]
    both = FilesData(kind="files", path=(str(tmp_path / "b.txt"), str(tmp_path / "a[1].txt")))
    assert list(read_texts(both)) == ["b.txt", "a[1].txt"]
    assert list(read_texts(both.model_copy(update={"limit": 1}))) == ["b.txt"]


def test_columns_negatives_and_instructions(tmp_path: Path) -> None:
    rows = [
        {"q": "a", "positive": "b", "negative": "c", "instruction": "Own"},
        {"q": "d", "positive": "e", "negative": " ", "instruction": ""},
        {"q": "d", "positive": None, "negative": "f", "instruction": None},
    ]
    spec = _files(_write(tmp_path / "a.jsonl", rows), columns={"query": "q"}, instruction="Shared", symmetric=True)
    assert list(read_rows(Pair, spec)) == [Pair("a", "b", ("c",), "Own", "Own"), Pair("d", "e", (), "Shared", "Shared")]
    rows = [
        {"anchor": "a", "positive": "b", "negatives": ["c", "", "d"]},
        {"anchor": "e", "positive": "f", "negatives": []},
    ]
    found = list(read_rows(Pair, _files(_write(tmp_path / "b.jsonl", rows))))
    assert [(pair.query, pair.negatives) for pair in found] == [("a", ("c", "d")), ("e", ())]


def test_negatives_may_start_empty_or_be_missing(tmp_path: Path) -> None:
    row = {"query": "a", "positive": "b"}
    _write(tmp_path / "a.jsonl", [{**row, "negatives": []}] * 3)
    _write(tmp_path / "b.jsonl.gz", [{**row, "negatives": ["c"]}])
    _write(tmp_path / "c.jsonl", [row])
    found = read_rows(Pair, _files(tmp_path / "*.jsonl*"))
    assert [pair.negatives for pair in found] == [(), (), (), ("c",), ()]
    assert read_rows(Pair, _files(tmp_path / "a.jsonl"))[0].negatives == ()


def test_only_string_column_is_the_text(tmp_path: Path) -> None:
    rows = [{"id": 1, "sentence": "a b"}, {"id": 2, "sentence": "c d"}]
    assert list(read_texts(_files(_write(tmp_path / "a.jsonl", rows)))) == ["a b", "c d"]


def test_dropped_rows_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "llm2enc.data"):
        read_texts(_files(_write(tmp_path / "a.txt", ["one", "", "two"]), name="lines"))
    assert "lines: 2 rows, 1 more dropped because text is empty" in caplog.text


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("name", "rows", "fields", "message"),
    [
        (
            "a.jsonl",
            [{"query": "a", "reply": "b"}],
            {},
            r"cannot tell the query and the positive among the columns query, reply; write `columns: \{query",
        ),
        ("a.jsonl", [{"query": "a", "positive": "b"}], {"columns": {"query": "ask"}}, r"no column 'ask' for the query"),
        ("a.jsonl", [{"query": 1, "positive": "b"}], {}, r"column 'query' \(query\) holds int64, expected text"),
        (
            "a.jsonl",
            [{"query": "a", "positive": "b", "negatives": [1]}],
            {},
            r"holds list<.*int64>, expected text or a list",
        ),
        (
            "a.jsonl",
            [{"query": "a", "positive": "b"}],
            {"columns": {"text": "query"}},
            r"`columns` names text, but this stage",
        ),
        ("a.jsonl", [{"query": " ", "positive": "b"}], {}, r"is empty: 1 rows, none with text in query and positive"),
        ("a.xlsx.txt.zip", ["a"], {}, r"unknown file type; known are \.jsonl, "),
    ],
)
def test_faulty_pairs_are_refused(tmp_path: Path, name: str, rows: list, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_batches(Pair, [_files(_write(tmp_path / name, rows), **fields)], 1, 0)


def test_faulty_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.txt: no such file; a relative path is taken from"):
        read_texts(_files(tmp_path / "nothing.txt"))
    with pytest.raises(ValueError, match="no file matches this glob"):
        read_texts(_files(tmp_path / "*.txt"))
    _write(tmp_path / "a.txt", ["a"]), _write(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="one source mixes json, text files"):
        read_texts(_files(tmp_path / "a.*"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"broken\.jsonl' cannot be read: .*broken.jsonl, line 2 is not valid JSON"):
        read_texts(_files(tmp_path / "broken.jsonl"))
    with pytest.raises(ValueError, match="cannot be read"):
        read_texts(HubData(kind="hub", path=str(tmp_path / "no_directory")))


def test_mixed_cell_types_are_refused(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b"}, {"query": 1, "positive": "b"}]
    with pytest.raises(
        ValueError,
        match=r"a\.jsonl': column 'query' \(query\) holds string, then int64: 1 .*line 2",
    ):
        list(read_rows(Pair, _files(_write(tmp_path / "a.jsonl", rows))))


def test_text_without_a_clear_column_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", [{"title": "a", "body": "b"}])
    with pytest.raises(
        ValueError, match=r"no column 'text' for the text; its columns are title, body.*`columns: \{text: "
    ):
        read_texts(_files(path))


def test_docstring_views_fit_their_stage() -> None:
    texts, pairs = (DocstringsData(kind="docstrings", view=view, packages=("json",)) for view in ("sentences", "pairs"))
    assert all(5 <= len(text.split()) <= 60 for text in read_texts(texts))
    assert all(isinstance(pair, Pair) for pair in read_rows(Pair, pairs))
    with pytest.raises(ValueError, match="set `view: pairs`"):
        read_rows(Pair, texts)
    with pytest.raises(ValueError, match="set `view: paragraphs`"):
        read_texts(pairs)


def test_source_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'a' has 3 rows, fewer than the batch size of 4; set batch_size to 3 or less"
    ):
        row_batches(str, [_texts(tmp_path, "a", 3)], 4, 0)
    with pytest.raises(ValueError, match=r"'b' has 2 rows \(size 8, weight 0.25\), fewer than"):
        row_batches(str, [_texts(tmp_path, "b", 8, weight=0.25)], 4, 0)


# -------------------------------------------------------------------------------------------------------------- batches


def test_an_epoch_takes_every_row_once_and_one_source_a_batch(tmp_path: Path) -> None:
    specs = [_texts(tmp_path, "a", 12, unique_ids=True), _texts(tmp_path, "b", 9, in_batch_negatives=False)]
    epochs = [list(islice(row_batches(str, specs, 4, 7), 5 * e, 5 * e + 5)) for e in (0, 1)]
    for epoch in epochs:
        # 12 = 3 groups of 4; 9 = 2 groups, the incomplete third is dropped.
        assert Counter(batch.source for batch in epoch) == {"a": 3, "b": 2}
        assert all(row.split()[0] == batch.source for batch in epoch for row in batch.rows)
        assert all(batch.in_batch_negatives == batch.unique_ids == (batch.source == "a") for batch in epoch)
        rows = [row for batch in epoch for row in batch.rows]
        assert len(rows) == len(set(rows)) == 20
        assert {row for row in rows if row[0] == "a"} == {f"a {i}" for i in range(12)}
    assert [batch.step for epoch in epochs for batch in epoch] == list(range(10))
    assert [batch.rows for batch in epochs[0]] != [batch.rows for batch in epochs[1]]


def test_weights_are_shares_and_no_batch_holds_a_row_twice(tmp_path: Path) -> None:
    specs = [_texts(tmp_path, "a", 10, weight=0.5), _texts(tmp_path, "b", 10, weight=2.6)]
    epoch = list(islice(row_batches(str, specs, 4, 3), 1 + 6))  # round(5) // 4 and round(26) // 4 groups
    assert Counter(batch.source for batch in epoch) == {"a": 1, "b": 6}
    assert all(len(set(batch.rows)) == 4 for batch in epoch)
    often = Counter(row for batch in epoch for row in batch.rows if batch.source == "b")
    assert len(often) == 10 and set(often.values()) <= {2, 3}


def _kinds(path: Path) -> Iterator[tuple[str, object]]:
    fixed = [_texts(path, "a", 23), _texts(path, "b", 11, weight=1.7)]
    streams = [_hub(path, "c", 23, weight=2), _hub(path, "d", 11), _texts(path, "e", 9)]

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    for name, specs in (("fixed", fixed), ("streams", streams)):
        yield name, lambda seed, start, specs=specs: row_batches(str, specs, 4, seed, start)
        yield f"{name} blocks", lambda seed, start, specs=specs: block_batches(specs, tokenize, 5, 3, seed, start)


def _plain(batches: Iterator, number: int) -> list[tuple]:
    return [(b.step, b.source, [np.asarray(row).tolist() for row in b.rows]) for b in islice(batches, number)]


def test_resumed_batches_continue_and_seeds_differ(tmp_path: Path) -> None:
    for name, batches in _kinds(tmp_path):
        whole = _plain(batches(-5, 0), 40)
        assert [step for step, _, _ in whole] == list(range(40)), name
        for start in (0, 1, 9, 10, 31):
            assert _plain(batches(-5, start), 40 - start) == whole[start:], (name, start)
        assert _plain(batches(6, 0), 40) != whole, name


def test_resume_does_not_read_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = row_batches(str, [_texts(tmp_path, "a", 40)], 4, 0, start=10_000_003)
    taken: list[object] = []
    original = datasets.Dataset.__getitem__
    monkeypatch.setattr(datasets.Dataset, "__getitem__", lambda self, key: taken.append(key) or original(self, key))
    assert next(batches).step == 10_000_003
    assert len(taken) == 1


def test_pairs_come_as_batches(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(6)]
    batch = next(row_batches(Pair, [_files(_write(tmp_path / "a.jsonl", rows), name="a")], 6, 0))
    assert sorted(pair.query for pair in batch.rows) == [f"q{i}" for i in range(6)]
    assert all(pair.positive[1:] == pair.query[1:] for pair in batch.rows)


# ------------------------------------------------------------------------------------------------------------ streaming


def test_streams_share_by_weight_and_pass_over_every_row(tmp_path: Path) -> None:
    specs = [_hub(tmp_path, "a", 12, weight=3), _hub(tmp_path, "b", 4)]
    batches = list(islice(row_batches(str, specs, 4, 0), 8))
    assert Counter(batch.source for batch in batches) == {"a": 6, "b": 2}
    first_pass = [row for batch in batches if batch.source == "a" for row in batch.rows][:12]
    assert sorted(first_pass) == sorted(f"a {i}" for i in range(12)) and first_pass != [f"a {i}" for i in range(12)]


def test_streamed_rows_equal_downloaded_rows(tmp_path: Path) -> None:
    spec = _hub(tmp_path, "a", 12, limit=5)
    assert (
        list(read_texts(spec))
        == list(read_texts(spec.model_copy(update={"streaming": False})))
        == [f"a {i}" for i in range(5)]
    )


def test_streamed_pairs_and_their_faults(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b", "negatives": ["c"]}, {"query": "", "positive": "d", "negatives": []}]
    (tmp_path / "hub").mkdir()
    _write(tmp_path / "hub" / "train.parquet", rows)
    spec = HubData(kind="hub", path=str(tmp_path / "hub"), streaming=True)
    assert list(read_rows(Pair, spec)) == [Pair("a", "b", ("c",), "", "")]
    with pytest.raises(ValueError, match="no column 'text'"):
        row_batches(str, [spec], 1, 0)
    with pytest.raises(ValueError, match="has 1 rows, fewer than the batch size of 2"):
        next(row_batches(Pair, [spec], 2, 0))


# --------------------------------------------------------------------------------------------------------------- blocks


def test_blocks_are_the_joined_ids_cut_by_hand(tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(2345)]  # three chunks
    chunks: list[int] = []

    def tokenize(texts: list[str]) -> list[list[int]]:
        chunks.append(len(texts))
        return [[*text.encode(), 0] for text in texts]

    joined = "\0".join([*lines, ""]).encode()
    expected = {joined[i : i + 64] for i in range(0, len(joined) - 63, 64)}
    batches = block_batches([_files(_write(tmp_path / "a.txt", lines), name="a")], tokenize, 64, 5, 0)
    epoch = list(islice(batches, len(expected) // 5))
    assert chunks == [1000, 1000, 345]
    rows = [row for batch in epoch for row in batch.rows]
    assert {row.dtype for row in rows} == {np.dtype(np.int32)}
    found = {bytes(row.astype(np.uint8)) for row in rows}
    assert len(found) == len(rows) == len(expected) // 5 * 5 and found <= expected
    assert {batch.source for batch in epoch} == {"a"}


def test_blocks_of_several_sources_are_mixed(tmp_path: Path) -> None:
    specs = [_texts(tmp_path, "a", 40), _texts(tmp_path, "b", 40, weight=0.5)]
    batches = list(islice(block_batches(specs, lambda texts: [[ord(t[0])] * 5 for t in texts], 5, 10, 0), 6))
    assert {batch.source for batch in batches} == {"mixed"}
    assert Counter(int(row[0]) for batch in batches for row in batch.rows) == {ord("a"): 40, ord("b"): 20}
    with pytest.raises(ValueError, match="fewer than 300 tokens, which is one block; lower block_tokens"):
        block_batches([specs[0]], lambda texts: [[1] for _ in texts], 300, 1, 0)
