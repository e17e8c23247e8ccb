"""Fuzzed data: rows written in every format are read as they were meant, broken files are refused by name, and batch k
is the same wherever iteration starts."""

import csv
import gzip
import io
import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example
from hypothesis import strategies as st

from llm2enc.data import Pair, Rows, Stream, batches, read_texts
from llm2enc.data.sources import read_rows
from llm2enc.recipe import FilesData
from tests.support.fuzzing import TEXTS, fuzz

BLANK = st.sampled_from(["", " ", "\n", "\u2003", "\x1c", "\x85"])
WORDY = TEXTS | st.sampled_from(
    ["007", "NA", "null", "1e5", '"a", b', "'", "\\", "#", "nan", "true", "a\u2028b", "\ufeffa"]
)
CELLS = st.one_of(WORDY, WORDY, WORDY, BLANK)
MEANT = st.fixed_dictionaries(
    {
        "query": CELLS,
        "positives": st.lists(CELLS, max_size=3),
        "negatives": st.lists(CELLS, max_size=3),
        "instruction": st.sampled_from(["", " ", "Find it", "中"]),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


NUMBERS = iter(range(10**9))


def wanted(rows: list[dict], instruction: str) -> list[Pair]:
    """The pairs that the rows mean; rows without a query or a right document are no pairs."""
    found = []
    for row in rows:
        right, wrong = ([text for text in row[side] if text.strip()] for side in ("positives", "negatives"))
        asked = row["instruction"] if row["instruction"].strip() else instruction
        if row["query"].strip() and right:
            first, *others = dict.fromkeys(right)
            found.append(Pair(row["query"], first, tuple(wrong), asked, "", tuple(others)))
    return found


# -------------------------------------------------------------------------------------------------------------- formats


def _columns(row: dict) -> dict:
    return {
        "query": row["query"],
        "positive": row["positives"],
        "negatives": row["negatives"],
        "instruction": row["instruction"],
    }


def _numbered(row: dict) -> dict:
    row["positives"] = row["positives"][:1]
    numbered = {f"negative_{n + 1}": text for n, text in enumerate([*row["negatives"], "", "", ""][:3])}
    return {
        "anchor": row["query"],
        "positive": "".join(row["positives"]),
        **numbered,
        "instruction": row["instruction"],
    }


def _flag(row: dict) -> dict:
    return {"query": row["query"], "pos": row["positives"], "neg": row["negatives"], "prompt": row["instruction"]}


def _grit(row: dict) -> dict:
    sides = {"pos": row["positives"], "neg": row["negatives"]}
    return {
        "query": [row["instruction"], row["query"]],
        **{key: [["", text] for text in side] for key, side in sides.items()},
    }


def _tevatron(row: dict) -> dict:
    """Titles and texts are joined, and white space goes at both ends."""
    row["instruction"] = ""
    for side in ("positives", "negatives"):
        row[side] = [text.strip() for text in row[side]]
    passages = [
        [{"docid": "d", "title": "", "text": text} for text in row[side]] for side in ("positives", "negatives")
    ]
    return {"query_id": "1", "query": row["query"], "positive_passages": passages[0], "negative_passages": passages[1]}


def _swift(row: dict) -> dict:
    def said(text: str) -> list[dict]:
        return [{"role": "user", "content": text}]

    system = [{"role": "system", "content": row["instruction"]}] if row["instruction"] else []
    return {
        "messages": system + said(row["query"]),
        "positive_messages": [said(text) for text in row["positives"]],
        "negative_messages": [said(text) for text in row["negatives"]],
    }


FORMATS = {
    "columns": _columns, "sentence-transformers": _numbered, "flagembedding": _flag, "gritlm": _grit,
    "tevatron": _tevatron, "ms-swift": _swift,
}  # fmt: skip


def _bytes(records: list[dict], suffix: str, ascii_: bool) -> bytes:
    if suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records), buffer)
        return buffer.getvalue()
    if suffix == ".json":
        text = json.dumps(records, ensure_ascii=ascii_)
    elif suffix.startswith(".jsonl"):
        text = "".join(json.dumps(record, ensure_ascii=ascii_) + "\n" for record in records)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(records[0]), delimiter=",", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        text = buffer.getvalue()
    return gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode()


def read_or_refused(path: Path, **fields) -> list[Pair] | str:
    try:
        return list(read_rows(Pair, FilesData(kind="files", path=str(path), **fields)))
    except ValueError as error:
        assert path.name in str(error)
        return str(error)


ROW = {"query": "q", "positives": ["p"], "negatives": [], "instruction": ""}


@pytest.mark.parametrize("format", FORMATS)
@example(rows=[ROW, {**ROW, "query": "\x1c"}], suffix=".jsonl", ascii_=True, streaming=False)
@example(rows=[ROW, {**ROW, "positives": ["\x1c"]}], suffix=".parquet", ascii_=True, streaming=True)
@fuzz(
    12,
    rows=st.lists(MEANT, min_size=1, max_size=4),
    suffix=st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".parquet"]),
    ascii_=st.booleans(),
    streaming=st.booleans(),
)
def test_rows_of_every_format_are_read_as_they_were_meant(folder, format, rows, suffix, ascii_, streaming) -> None:
    rows = [dict(row) for row in rows]
    path = folder / f"{next(NUMBERS)}{suffix}"
    path.write_bytes(_bytes([FORMATS[format](row) for row in rows], suffix, ascii_))
    found = read_or_refused(path, instruction="Ask", streaming=streaming)
    meant = wanted(rows, "Ask")
    assert found == meant if meant else isinstance(found, str)


@fuzz(
    25,
    rows=st.lists(MEANT, min_size=1, max_size=4),
    suffix=st.sampled_from([".csv", ".csv.gz", ".tsv"]),
    streaming=st.booleans(),
)
def test_flat_files_are_read_as_they_were_meant(folder, rows, suffix, streaming) -> None:
    rows = [{**row, "positives": row["positives"][:1], "negatives": row["negatives"][:1]} for row in rows]
    flat = [
        {
            "query": r["query"],
            "positive": "".join(r["positives"]),
            "negative": "".join(r["negatives"]),
            "instruction": r["instruction"],
        }
        for r in rows
    ]
    path = folder / f"{next(NUMBERS)}{suffix}"
    if suffix == ".tsv":  # no quotation marks there: a cell holds no tab and no line break
        for row, cells in zip(rows, flat, strict=True):
            cells.update(
                {key: " ".join(text.split("\t")).replace("\n", " ").replace("\r", " ") for key, text in cells.items()}
            )
            row.update(query=cells["query"], positives=[cells["positive"]], negatives=[cells["negative"]])
        lines = ["\t".join(flat[0]), *("\t".join(cells.values()) for cells in flat)]
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    else:
        path.write_bytes(_bytes(flat, suffix, False))
    found = read_or_refused(path, instruction="Ask", streaming=streaming)
    meant = wanted(rows, "Ask")
    assert found == meant if meant else isinstance(found, str)


@fuzz(
    25,
    lines=st.lists(CELLS.map(lambda t: t.replace("\n", " ").replace("\r", " ")), min_size=1),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_of_text_are_texts(folder, lines, end) -> None:
    path = folder / f"{next(NUMBERS)}.txt"
    path.write_bytes(end.join(lines).encode())
    marked = [lines[0].removeprefix("\ufeff"), *lines[1:]]  # a byte order mark at the start is no part of the text
    meant = [line for line in marked if line.strip()]
    spec = FilesData(kind="files", path=str(path))
    if meant:
        assert list(read_texts(spec)) == meant
    else:
        with pytest.raises(ValueError, match=path.name):
            read_texts(spec)


# --------------------------------------------------------------------------------------------------------------- faults


@st.composite
def broken_lines(draw: st.DrawFn) -> bytes:
    cells = st.one_of(CELLS, CELLS, CELLS, st.sampled_from([None, 3, True, [], ["a"], {"a": 1}, [["a", "b"]], 1e400]))
    records = draw(
        st.lists(
            st.fixed_dictionaries({}, optional={"query": cells, "positive": cells, "id": st.integers()}), max_size=4
        )
    )
    lines = [json.dumps(record, ensure_ascii=draw(st.booleans())).encode() for record in records]
    raw = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"])).join(lines)
    for _ in range(draw(st.integers(0, 1))):
        at = draw(st.integers(0, len(raw)))
        new = [
            b"\xff",
            b"\xef\xbb\xbf",
            b'"',
            b"{",
            b"}",
            b"[",
            b",",
            b"\n",
            b"\0",
            b"null",
            b'"query": "twice", ',
            b"\\ud800",
            b"",
        ]
        raw = raw[:at] + draw(st.sampled_from(new)) + raw[at + draw(st.integers(0, 2)) :]
    return raw


def by_hand(raw: bytes) -> list[Pair] | None:
    """The pairs of JSON lines; None for what is none."""
    try:
        records = [json.loads(line) for line in raw.decode("utf-8-sig").split("\n") if line.strip()]
    except ValueError:
        return None
    rows = []
    for record in records:
        query, positive = (
            (record.get(k) or "" for k in ("query", "positive")) if isinstance(record, dict) else (None, None)
        )
        right = positive if isinstance(positive, list) else [positive]
        if not all(isinstance(text, str) for text in (query, *right)):
            return None
        rows.append({"query": query, "positives": right, "negatives": [], "instruction": ""})
    return wanted(rows, "")


@example(raw=b"", compress=False, cut=None, streaming=False)  # StopIteration
@example(raw=b"", compress=True, cut=None, streaming=True)
@example(raw=b'{"query": "q", "positive": "p", "id": 9223372036854775808}', compress=False, cut=None, streaming=False)
@example(raw=b"\n \n", compress=False, cut=None, streaming=False)
@fuzz(40, raw=broken_lines(), compress=st.booleans(), cut=st.none() | st.integers(1, 12), streaming=st.booleans())
def test_broken_lines_are_refused_or_read_as_json_says(folder, raw, compress, cut, streaming) -> None:
    path = folder / f"{next(NUMBERS)}.jsonl{'.gz' if compress else ''}"
    path.write_bytes(gzip.compress(raw)[:-cut] if compress and cut else gzip.compress(raw) if compress else raw)
    found = read_or_refused(path, streaming=streaming)
    if isinstance(found, list):
        assert found == by_hand(raw) and not (compress and cut and cut > 8)


# -------------------------------------------------------------------------------------------------------------- batches

SIZES = st.lists(st.tuples(st.integers(3, 30), st.sampled_from([1.0, 1.0, 2.5, 0.5])), min_size=1, max_size=3)


def _sources(sizes: list[tuple[int, float]], streams: tuple[int, ...] = ()) -> list:
    """Specs, and a mock under which they give rows (source, number) without a file."""
    known = {f"s{n}": n for n in range(len(sizes))}

    def rows(spec: FilesData) -> Rows | Stream:
        number = known[spec.path]
        whole = Rows(spec.path, sizes[number][0], lambda chosen: [(number, int(place)) for place in chosen])
        return Stream(spec.path, lambda: iter([whole])) if number in streams else whole

    specs = [FilesData(kind="files", path=name, weight=sizes[n][1]) for name, n in known.items()]
    return [specs, mock.patch.object(batches, "read_rows", lambda row, spec, scores: rows(spec))]


@fuzz(
    80,
    sizes=SIZES,
    batch_size=st.integers(1, 3),
    seed=st.integers(-5, 2**40),
    start=st.integers(0, 60),
    streams=st.sets(st.integers(0, 2), max_size=2).map(tuple),
)
def test_batch_k_is_the_same_wherever_iteration_starts(sizes, batch_size, seed, start, streams) -> None:
    specs, reading = _sources(sizes, streams)
    with reading:
        try:
            whole = list(islice(batches.row_batches(str, specs, batch_size, seed), start + 12))
        except ValueError as error:
            assert "fewer than the batch size" in str(error)
            return
        assert list(islice(batches.row_batches(str, specs, batch_size, seed, start), 12)) == whole[start:]
    for step, batch in enumerate(whole):
        assert batch.step == step and len(set(batch.rows)) == len(batch.rows) == batch_size
        assert {f"s{source}" for source, _ in batch.rows} == {batch.source}


@fuzz(80, sizes=SIZES, batch_size=st.integers(1, 3), seed=st.integers(0, 99))
def test_an_epoch_has_every_source_by_its_weight_and_no_row_too_often(sizes, batch_size, seed) -> None:
    specs, reading = _sources(sizes)
    if any(min(size, round(size * weight)) < batch_size for size, weight in sizes):
        return
    groups = [round(size * weight) // batch_size for size, weight in sizes]
    with reading:
        stream = batches.row_batches(str, specs, batch_size, seed)
        for _ in range(3):
            epoch = list(islice(stream, sum(groups)))
            assert [sum(batch.source == f"s{n}" for batch in epoch) for n in range(len(sizes))] == groups
            often = Counter(row for batch in epoch for row in batch.rows)
            assert all(count <= math.ceil(sizes[source][1]) for (source, _), count in often.items())
