"""Formats: every format is detected by its columns, read as its own trainer reads it, or refused with what to write."""

import bz2
import gzip
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from llm2enc.data import Pair, Rows, ScoredPair, read_texts, row_batches, sources
from llm2enc.data import batches as data_batches
from llm2enc.data.cells import filled, instructed_list, plain_list
from llm2enc.data.formats import detect_format
from llm2enc.data.sources import examine, read_rows
from llm2enc.evaluation import read_task
from llm2enc.recipe import FilesData, HubData
from llm2enc.training.objectives import contrastive
from tests.support.tables import CORPUS, QRELS, QUERIES, jsonl, private_cache, write

TEXT, TEXTS = pa.string(), pa.list_(pa.string())


_private_cache = private_cache  # for every test of this file

BEIR = {"corpus": jsonl(CORPUS), "queries": jsonl(QUERIES), "qrels": [*QRELS, "q0\tc\t1"]}


def _write(path: Path, rows: list[dict]) -> FilesData:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = jsonl(rows) if ".jsonl" in path.name else [json.dumps(rows, indent=1)]
        data = "".join(f"{line}\n" for line in lines).encode()
        packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(data))
    return FilesData(kind="files", path=str(path))


# One row of each format as its own documentation shows it, and the pair that it stands for.
EXAMPLES = {
    "columns": (
        {"query": "q", "positive": ["p", "other"], "negatives": ["n"], "instruction": "Find"},
        Pair("q", "p", ("n",), "Find", "", ("other",)),
    ),
    "sentence-transformers": (
        {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m", "negative_10": "k"},
        Pair("q", "p", ("n", "m", "k"), "", ""),
    ),
    "flagembedding": (
        {
            **{
                "query": "q",
                "pos": ["p", "other"],
                "neg": ["n", "m"],
                "pos_scores": [0.9, 0.8],
                "neg_scores": [0.1, 0.2],
            },
            **{"prompt": "Find", "type": "normal"},
        },
        Pair("q", "p", ("n", "m"), "Find", "", ("other",)),
    ),
    "gritlm": (
        {"query": ["Find", "q"], "pos": [["Title", "p"]], "neg": [["Title", "n"], ["Title", "m"]]},
        Pair("q", "p", ("n", "m"), "Find", "Title"),
    ),
    "tevatron": (
        {
            **{"query_id": "1", "query": "q", "positive_passages": [{"docid": "a", "title": "T", "text": "p"}]},
            "negative_passages": [{"docid": "b", "title": "", "text": "n"}, {"docid": "c", "title": "U", "text": "m"}],
        },
        Pair("q", "T p", ("n", "U m"), "", ""),
    ),
    "ms-swift": (
        {
            "messages": [{"role": "system", "content": "Find"}, {"role": "user", "content": "q"}],
            "positive_messages": [[{"role": "user", "content": "p"}]],
            "negative_messages": [[{"role": "user", "content": "n"}], [{"role": "user", "content": "m"}]],
        },
        Pair("q", "p", ("n", "m"), "Find", ""),
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".json.bz2", ".parquet"])
@pytest.mark.parametrize("format", EXAMPLES)
def test_every_format_is_detected_and_read(format: str, suffix: str, streaming: bool, tmp_path: Path) -> None:
    row, pair = EXAMPLES[format]
    spec = _write(tmp_path / f"rows{suffix}", [row, row])
    for chosen in ("auto", format) if suffix == ".jsonl" and format != "sentence-transformers" else ("auto",):
        detected, rows = examine(spec.model_copy(update={"streaming": streaming, "format": chosen}))
        assert detected.format == format
        assert list(rows) == [pair, pair]


def test_rows_are_one_whichever_way_they_are_read(tmp_path: Path) -> None:
    rows = [
        {"query": f"q{i}" if i % 7 else " ", "pos": [f"p{i}"] * (i % 3), "neg": [f"n{i}", ""][: i % 3]}
        for i in range(2500)
    ]
    expected = [
        (f"q{i}", f"p{i}", tuple(text for text in row["neg"] if text))
        for i, row in enumerate(rows)
        if i % 7 and row["pos"]
    ]
    for suffix in (".jsonl", ".parquet"):
        spec = _write(tmp_path / f"rows{suffix}", rows)
        for streaming in (False, True):
            found = list(read_rows(Pair, spec.model_copy(update={"streaming": streaming})))
            assert [(pair.query, pair.positive, pair.negatives) for pair in found] == expected


# ------------------------------------------------------------------------------------------------------------ detection


@pytest.mark.parametrize(
    ("schema", "format", "roles"),
    [
        ({"Positive": TEXT, "id": pa.int64(), "QUERY": TEXT}, "columns", ("QUERY", "Positive")),
        ({"query": TEXT, "positive": TEXT, "answer": TEXT, "context": TEXT}, "columns", ("query", "positive")),
        ({"question": TEXT, "answer": TEXT}, "sentence-transformers", ("question", "answer")),
        ({"sentence1": TEXT, "sentence2": TEXT}, "sentence-transformers", ("sentence1", "sentence2")),
        ({"query": TEXT, "pos": TEXTS, "neg": TEXTS}, "flagembedding", ("query", "pos")),
        ({"query": TEXTS, "pos": pa.list_(TEXTS), "neg": pa.list_(TEXTS)}, "gritlm", ("query", "pos")),
        ({"query": TEXT, "pos": pa.list_(TEXTS), "neg": pa.list_(pa.null())}, "gritlm", ("query", "pos")),
        ({"query": TEXT, "response": TEXT, "rejected_response": TEXTS}, "ms-swift", ("query", "response")),
    ],
)
def test_names_and_types_decide(schema: dict, format: str, roles: tuple) -> None:
    found = detect_format(schema)
    assert (found.format, found.roles["query"], found.roles["positive"]) == (format, roles[:1], roles[1:])


def test_the_recipe_goes_before_what_is_detected() -> None:
    schema = {"a": TEXT, "query": TEXT, "positive": TEXT, "bad": TEXT, "label": pa.int64()}
    found = detect_format(schema, columns={"query": "a", "positive": "query", "negatives": "bad"})
    assert found.roles == {"query": ("a",), "positive": ("query",), "negatives": ("bad",)}
    assert found.notes == ("not read: positive, label",)
    passages = pa.list_(pa.struct([("title", TEXT), ("text", TEXT)]))
    found = detect_format({"query": TEXT, "positive_passages": passages, "task": TEXT}, columns={"instruction": "task"})
    assert found.format == "tevatron" and found.roles["instruction"] == ("task",)


def test_sentence_transformers_by_name_of_the_format_goes_by_order() -> None:
    schema = {"a": TEXT, "dataset_name": TEXT, "b": TEXT, "c": TEXT, "d": TEXT}
    found = detect_format(schema, "sentence-transformers")
    assert found.roles == {"query": ("a",), "positive": ("b",), "negatives": ("c", "d")}
    assert detect_format({"answer": TEXT, "question": TEXT}, "sentence-transformers").roles["query"] == ("answer",)


@pytest.mark.parametrize(
    ("schema", "format", "message"),
    [
        (
            {"sentence1": TEXT, "sentence2": TEXT, "score": pa.float64()},
            "auto",
            "'score' says how well .* Keep the rows",
        ),
        (
            {"anchor": TEXT, "positive": TEXT, "label": pa.int64()},
            "auto",
            r"`columns: \{query: anchor, positive: positive",
        ),
        ({"a": TEXT, "b": TEXT, "Labels": TEXT}, "sentence-transformers", "'Labels' says how well"),
        ({"query": TEXT, "response": TEXT, "label": pa.float64()}, "auto", "'label' says how well"),
        ({"answer": TEXT, "question": TEXT}, "auto", r"goes by the order of the columns, answer, question; say which"),
        (
            {"title": TEXT, "body": TEXT},
            "auto",
            r"cannot tell .* title, body; write `columns: .* by order \(title, body\)",
        ),
        (
            {"text": TEXT},
            "auto",
            r"cannot tell .* the columns text; write `columns: \{query: \.\.\., positive: \.\.\.\}`$",
        ),
        (
            {"query": TEXT, "positive": TEXT, "pos": TEXTS},
            "auto",
            r"fit several formats; .*`format: columns` \(query, positive\) or `format: flagembedding` \(query, pos\)",
        ),
        ({"query": TEXT, "positive_document_ids": TEXTS}, "auto", "name their documents by id"),
        (
            {"query": TEXT, "answer": TEXT},
            "columns",
            "no column 'positive' for the positive; its columns are query, answer",
        ),
        ({"query": TEXT, "answer": TEXT}, "tevatron", "no column 'positive_passages' for the positive"),
        ({"query": pa.int64(), "pos": TEXTS}, "auto", r"'query' \(query\) holds int64, expected text$"),
        ({"query": TEXT, "positive_passages": TEXTS}, "auto", r"expected text \(query\) or \[\{title, text\}\]"),
        ({"query": TEXT, "response": TEXT, "images": TEXTS}, "ms-swift", "the rows have images, and only texts"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_to_write(schema: dict, format: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_format(schema, format)


def test_detection_is_told() -> None:
    found = detect_format({"id": TEXT, "query": TEXT, "pos": TEXTS, "neg": TEXTS, "prompt": TEXT, "type": TEXT})
    assert str(found) == (
        "format flagembedding (query = query, positive = pos, negatives = neg, instruction = prompt); not read: id, type; "
        "type is not read: a symmetric task needs `symmetric: true`, classes `in_batch_negatives: false`"
    )
    assert found.columns == ["query", "pos", "neg", "prompt"]


# --------------------------------------------------------------------------------------------------------------- scores

FLAG = {"query": "q", "pos": ["p", "o"], "neg": ["n", "m"], "pos_scores": [0.9, 0.7], "neg_scores": [0.2, -1]}
SCORED = Pair("q", "p", ("n", "m"), "", "", ("o",), (0.9, 0.7), (0.2, -1.0))
PASSAGES = {
    "query": "q",
    "positive_passages": [{"title": "", "text": "p"}, {"title": "", "text": "o"}],
    "negative_passages": [{"title": "", "text": "n"}, {"title": "", "text": "m"}],
}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (FLAG, {}),
        ({**PASSAGES, "scores": [0.9, 0.7, 0.2, -1.0]}, {}),
        (
            {**{f"x{name}": FLAG[name] for name in FLAG}},
            {
                **{"query": "xquery", "positive": "xpos", "negatives": "xneg"},
                **{"positive_scores": "xpos_scores", "negative_scores": "xneg_scores"},
            },
        ),
    ],
)
def test_documents_keep_their_scores(tmp_path: Path, row, columns, suffix, streaming) -> None:
    spec = _write(tmp_path / f"rows{suffix}", [row]).model_copy(update={"columns": columns, "streaming": streaming})
    assert list(read_rows(Pair, spec, scores=True)) == [SCORED]


def test_scores_stay_with_their_documents_when_others_are_left_out(tmp_path: Path) -> None:
    row = {**FLAG, "pos": ["p", " ", "p", "o"], "pos_scores": [4, 3, 2, 1], "neg": ["", "n"], "neg_scores": [8, 9]}
    (pair,) = read_rows(Pair, _write(tmp_path / "a.jsonl", [row]), scores=True)
    assert (pair.positive, pair.extra_positives, pair.negatives) == ("p", ("o",), ("n",))
    assert (pair.positive_scores, pair.negative_scores) == ((4, 1), (9,))


def test_a_row_without_scores_has_none_and_too_few_are_refused(tmp_path: Path) -> None:
    rows = [FLAG, {**FLAG, "pos_scores": None, "neg_scores": []}]
    (first, second) = read_rows(Pair, _write(tmp_path / "a.jsonl", rows), scores=True)
    assert first == SCORED and (second.positive_scores, second.negative_scores) == ((), ())
    spec = _write(tmp_path / "b.jsonl", [{**FLAG, "neg_scores": [1.0]}])
    with pytest.raises(
        ValueError, match=r"b.jsonl': column 'neg_scores' \(negative_scores\) holds 1 numbers for 2 doc"
    ):
        read_rows(Pair, spec, scores=True)[0]
    assert read_rows(Pair, spec)[0].negatives == ("n", "m")  # what is not read is not checked


@pytest.mark.parametrize("number", ["NaN", "Infinity", '"high"'])
def test_a_score_is_a_finite_number(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"sentence1": "a", "sentence2": "b", "score": {number}}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl': column 'score'( \(score\))?: .* is no (finite )?number"):
        read_rows(ScoredPair, FilesData(kind="files", path=str(path)))[0]


@pytest.mark.parametrize("scores", [False, True])
def test_beir_judgements_are_scores_if_they_are_read(tmp_path: Path, scores: bool) -> None:
    spec = _beir(tmp_path, qrels=["query-id\tcorpus-id\tscore", "q0\ta\t2", "q0\tb\t0", "q0\tc\t1"])
    (pair,) = read_rows(Pair, spec, scores=scores)
    graded = {pair.positive: 2.0, pair.extra_positives[0]: 1.0, pair.negatives[0]: 0.0}
    assert pair.positive_scores == (tuple(graded.values())[:2] if scores else ())
    assert pair.negative_scores == ((0.0,) if scores else ())
    with pytest.raises(ValueError, match="this stage reads scored pairs, two texts and a number a row"):
        read_rows(ScoredPair, spec)


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        (("sentence1", "sentence2", "score"), ".jsonl"),
        (("sentence1", "sentence2", "Label"), ".parquet"),
        (("query", "response", "label"), ".json"),
        (("query", "positive", "scores"), ".csv"),
        (("left", "right", "grade"), ".tsv"),
    ],
)
def test_two_texts_and_a_number_are_a_scored_pair(tmp_path: Path, names: tuple[str, str, str], suffix: str) -> None:
    rows = [dict(zip(names, row, strict=True)) for row in (("a", "b", 4.5), ("c", " ", 1.0), ("d", "e", 0.0))]
    if suffix in {".csv", ".tsv"}:
        path = tmp_path / f"sts{suffix}"
        lines = [names, *(map(str, row.values()) for row in rows)]
        path.write_text("".join((("\t" if suffix == ".tsv" else ",").join(line)) + "\n" for line in lines))
        spec = FilesData(kind="files", path=str(path))
    else:
        spec = _write(tmp_path / f"sts{suffix}", rows)
    own = {"columns": dict(zip(("query", "positive", "score"), names, strict=True))} if "left" in names else {}
    spec = spec.model_copy(update={**own, "instruction": "Alike?", "symmetric": suffix == ".jsonl"})
    second = "Alike?" if suffix == ".jsonl" else ""
    expected = [ScoredPair("a", "b", 4.5, "Alike?", second), ScoredPair("d", "e", 0.0, "Alike?", second)]
    assert list(read_rows(ScoredPair, spec)) == expected
    batch = next(row_batches(ScoredPair, [spec], 2, 0))
    assert sorted(batch.rows, key=lambda row: row.first) == expected


def test_a_row_without_a_score_is_no_scored_pair(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "score": score} for score in (None, 1)]
    found = read_rows(ScoredPair, _write(tmp_path / "a.jsonl", rows))
    assert (len(found), found.dropped, found[0].score) == (1, 1, 1.0)


def test_batches_of_pairs_carry_scores_only_if_asked_to(tmp_path: Path) -> None:
    spec = _write(tmp_path / "a.jsonl", [FLAG])
    assert next(row_batches(Pair, [spec], 1, 0, scores=True)).rows == [SCORED]
    plain = Pair("q", "p", ("n", "m"), "", "", ("o",))
    assert next(row_batches(Pair, [spec], 1, 0)).rows == [plain]
    assert "not read: pos_scores, neg_scores" in examine(spec)[0].notes


@pytest.mark.parametrize(
    ("schema", "columns", "row", "message"),
    [
        ({"sentence1": TEXT, "sentence2": TEXT}, {}, ScoredPair, r"no column 'score' .* `columns: \{score: \.\.\.\}`"),
        (
            {"query": TEXT, "positive": TEXT, "negative": TEXT, "score": pa.float64()},
            {},
            ScoredPair,
            "two texts and a number, and these rows have negative besides; leave them out",
        ),
        (
            {"query": TEXT, "positive": TEXT, "score": TEXTS},
            {},
            ScoredPair,
            r"'score' \(score\) holds .*, expected a number$",
        ),
        ({"query": TEXT, "pos": TEXTS, "pos_scores": TEXTS}, {}, Pair, "expected a number or a list of numbers"),
        ({"query": TEXT, "positive": TEXT, "negative": TEXT, "label": pa.float64()}, {}, Pair, "'label' says how well"),
    ],
)
def test_scores_that_do_not_fit_the_row_are_refused(schema, columns, row, message) -> None:
    with pytest.raises(ValueError, match=message):
        detect_format(schema, columns=columns, row=row, scores=True)


def test_a_stage_that_reads_no_scores_refuses_to_be_given_them(tmp_path: Path) -> None:
    spec = _write(tmp_path / "a.jsonl", [FLAG]).model_copy(update={"columns": {"positive_scores": "pos_scores"}})
    with pytest.raises(
        ValueError, match=r"`columns` names positive_scores, .* reads pairs without scores.*; remove it"
    ):
        read_rows(Pair, spec)


# ---------------------------------------------------------------------------------------------------------------- cells


def test_empty_cells_are_found_alike_in_bulk_and_one_by_one() -> None:
    rows = [["a"], [], None, ["", " "], [None, "b"], ["\t"], ["c", ""]]
    expected = [any(text and text.strip() for text in row or ()) for row in rows]
    column = pa.chunked_array([pa.array(rows[:3], TEXTS), pa.array([["x"], *rows[3:]], TEXTS)[1:]])
    for part, start in ((column, 0), (column.slice(2), 2)):
        assert filled(part, plain_list).tolist() == expected[start:]
        assert filled(part, lambda cell: plain_list(cell)).tolist() == expected[start:]
    nested = pa.chunked_array([pa.array([[["i", "a"]], [["i", " "]], [], None], pa.list_(TEXTS))])
    assert filled(nested, instructed_list).tolist() == [True, False, False, False]
    assert filled(pa.chunked_array([pa.nulls(2)]), plain_list).tolist() == [False, False]


def test_cells_that_types_cannot_tell_are_refused(tmp_path: Path) -> None:
    spec = _write(tmp_path / "a.jsonl", [{"query": ["Find", "q", "more"], "pos": [["", "p"]], "neg": []}])
    with pytest.raises(ValueError, match=r"a\.jsonl': column 'query': .* has 3 parts, expected \[instruction, text\]"):
        read_rows(Pair, spec)[0]
    spec = _write(tmp_path / "b.jsonl", [{"query": ["Find", "q"], "pos": [["One", "p"]], "neg": [["Two", "n"]]}])
    with pytest.raises(ValueError, match=r"different instructions: \['One', 'Two'\]"):
        read_rows(Pair, spec)[0]


def test_negatives_that_start_empty_have_the_type_of_the_positives(tmp_path: Path) -> None:
    for format in ("gritlm", "tevatron", "ms-swift"):
        row, pair = EXAMPLES[format]
        negatives = next(name for name in row if "neg" in name)
        rows = [*[{**row, negatives: []}] * 1200, row]
        found = read_rows(Pair, _write(tmp_path / f"{format}.jsonl", rows))
        assert found[0].negatives == () and found[1200] == pair


def test_folders_that_are_no_data_set_and_unknown_endings_are_refused(tmp_path: Path) -> None:
    _write(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}])
    with pytest.raises(
        ValueError, match=r"is a folder, and no BEIR data set .* give each file its own source: a\.jsonl"
    ):
        read_rows(Pair, FilesData(kind="files", path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"`split` is for BEIR folders"):
        read_rows(Pair, FilesData(kind="files", path=str(tmp_path / "a.jsonl"), split="train"))
    with pytest.raises(ValueError, match=r"`format: beir` needs a BEIR folder"):
        read_rows(Pair, FilesData(kind="files", path=str(tmp_path / "a.jsonl"), format="beir"))
    with pytest.raises(ValueError, match=r"`format` is for pairs; remove it"):
        read_texts(FilesData(kind="files", path=str(tmp_path / "a.jsonl"), format="columns"))


# ----------------------------------------------------------------------------------------------------------------- BEIR


def _beir(folder: Path, split: str = "qrels/train.tsv", compressed: bool = False, **changed: list[str]) -> FilesData:
    for name, lines in {**BEIR, **changed}.items():
        write(folder / (split if name == "qrels" else f"{name}.jsonl"), lines, compressed)
    return FilesData(kind="files", path=str(folder))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_beir_folder_gives_a_pair_for_each_query(compressed: bool, tmp_path: Path) -> None:
    detected, rows = examine(_beir(tmp_path, compressed=compressed))
    assert detected.notes == (f"judgements of qrels/train.tsv{'.gz' if compressed else ''}; 0 makes a hard negative",)
    assert list(rows) == [
        Pair("first", "Title body\u2028more", ("bare",), "", "", ("x",)),
        Pair("second", "x", (), "", ""),
    ]
    assert rows[1:] == [list(rows)[1]]


def test_the_right_answers_of_a_beir_folder_are_those_of_its_evaluation(tmp_path: Path) -> None:
    rows = read_rows(Pair, _beir(tmp_path, "qrels/test.tsv").model_copy(update={"split": "test"}))
    task = read_task(tmp_path)
    judged = {
        task.queries[query]: {task.documents[document] for document, score in judgements.items() if score > 0}
        for query, judgements in task.qrels.items()
        if max(judgements.values()) > 0
    }
    assert {row.query: {row.positive, *row.extra_positives} for row in rows} == judged


def test_beir_splits_and_faults(tmp_path: Path) -> None:
    spec = _beir(tmp_path / "a", "qrels/test.tsv")
    with pytest.raises(ValueError, match=r"has no qrels/train\.tsv; it has judgements for test\. .*`split: test`"):
        read_rows(Pair, spec)
    assert len(read_rows(Pair, spec.model_copy(update={"split": "test", "limit": 1}))) == 1
    assert len(read_rows(Pair, _beir(tmp_path / "b", "qrels.tsv"))) == 2
    with pytest.raises(ValueError, match="takes no `columns`, `streaming`"):
        read_rows(Pair, spec.model_copy(update={"streaming": True, "columns": {"query": "a"}}))
    with pytest.raises(ValueError, match="line 4: the id 'a' stands on an earlier line too"):
        read_rows(Pair, _beir(tmp_path / "d", corpus=BEIR["corpus"] * 2))
    with pytest.raises(ValueError, match="has no column score; its header is query-id, corpus-id"):
        read_rows(Pair, _beir(tmp_path / "e", qrels=["query-id\tcorpus-id", "q0\ta"]))


# ------------------------------------------------------------------------------------------------------------- mixtures


@pytest.mark.parametrize(
    ("alpha", "weights", "rows"),
    [
        (None, (1, 1), (64, 4)),  # size x weight
        (None, (0.5, 3), (32, 12)),
        (1, (1, 1), (64, 4)),
        (0.5, (1, 1), (64, 16)),  # 8 : 2, the square roots; each row of the small one four times
        (0, (1, 1), (64, 64)),
        (0.5, (1, 0.5), (64, 8)),  # 8 : 2 x 0.5
        (0.5, (1, 0.125), (128, 4)),  # 8 : 2 x 0.125; now the small one is seen most rarely, once
    ],
)
def test_mixtures_by_hand(alpha: float | None, weights: tuple, rows: tuple, tmp_path: Path) -> None:
    specs = [
        _write(tmp_path / f"{size}.jsonl", [{"query": f"{size} {i}", "positive": "p"} for i in range(size)]).model_copy(
            update={"name": str(size), "weight": weight}
        )
        for size, weight in zip((64, 4), weights, strict=True)
    ]
    batches = row_batches(Pair, specs, 2, 7, alpha=alpha)
    for _ in range(2):  # two epochs
        epoch = list(islice(batches, sum(rows) // 2))
        assert Counter(batch.source for batch in epoch) == {"64": rows[0] // 2, "4": rows[1] // 2}
        seen = Counter(row.query for batch in epoch for row in batch.rows)
        for size, number in zip((64, 4), rows, strict=True):
            often = [seen[f"{size} {i}"] for i in range(size)]
            assert sum(often) == number and set(often) <= {number // size, -(-number // size)}


def test_mixtures_by_size_need_sizes(tmp_path: Path) -> None:
    spec = _write(tmp_path / "a.jsonl", [{"query": "q", "positive": "p"}]).model_copy(update={"streaming": True})
    with pytest.raises(ValueError, match=r"`mixture_alpha` needs the sizes of all sources, and .*a\.jsonl streams"):
        row_batches(Pair, [spec], 1, 0, alpha=0.5)


# ----------------------------------------------------------------------------------------------------------- positives


def test_every_right_answer_is_drawn_and_none_is_a_negative_of_its_row() -> None:
    pair = Pair("q", "a", ("n", "b"), "", "", ("b", "c"))
    drawn = Counter(
        contrastive._with_negatives(pair, 1, np.random.default_rng((3, step))).positive for step in range(300)
    )
    assert set(drawn) == {"a", "b", "c"} and min(drawn.values()) > 70
    again = [contrastive._with_negatives(pair, 1, np.random.default_rng((3, step))) for step in (5, 5)]
    assert again[0] == again[1] and {again[0].positive, *again[0].extra_positives} == {"a", "b", "c"}
    rows = [pair, Pair("r", "c", ("a",), "", ""), Pair("s", "d", (), "", "", ("n",))]
    # Documents of the batch:   a      n      b    |  c      a    |  d
    expected = [
        [True, False, True, True, True, False],  # a, b and c are right, wherever they stand
        [False, False, False, False, False, False],
        [False, True, False, False, False, True],
    ]
    documents = [text for row in rows for text in (row.positive, *row.negatives)]
    assert contrastive._marked(contrastive._known(rows, False), documents).tolist() == expected
    assert contrastive._marked(contrastive._known(rows[1:2], False), documents) is None


# ------------------------------------------------------------------------------------------------------------ streaming


def _numbered(tmp_path: Path, number: int, **fields: object) -> FilesData:
    rows = [{"query": f"q{i}" if i % 5 else "", "positive": f"p{i}", "negatives": ["n"]} for i in range(number)]
    return _write(tmp_path / f"{number}.jsonl", rows).model_copy(
        update={"streaming": True, "name": str(number), **fields}
    )


@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_a_stream_goes_on_where_it_stopped(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_batches, "_SHUFFLE_BUFFER", size)
    specs = [_numbered(tmp_path, 1300), _numbered(tmp_path, 130, weight=0.3)]  # 1040 and 104 rows with a query
    whole = list(islice(row_batches(Pair, specs, 32, 5), 100))  # more than two passes of the first, seven of the second
    passed = [row.query for batch in whole if batch.source == "1300" for row in batch.rows][: 1040 // 32 * 32]
    assert len(set(passed)) == len(passed)
    for start in (1, 41, 64, 99):
        found = list(islice(row_batches(Pair, specs, 32, 5, start), 100 - start))
        assert [(b.step, b.source, b.rows) for b in found] == [(b.step, b.source, b.rows) for b in whole[start:]], start


def test_what_a_resumed_stream_passes_over_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[str] = []
    original = sources.to_pair
    monkeypatch.setattr(sources, "to_pair", lambda found, record, *rest: (
        converted.append(record["query"]) or original(found, record, *rest)
    ))  # fmt: skip
    monkeypatch.setattr(data_batches, "_SHUFFLE_BUFFER", 100)
    next(row_batches(Pair, [_numbered(tmp_path, 20_000)], 8, 0, start=1500))  # row 12 000 of 16 000
    assert len(converted) < 2000


def test_the_order_of_a_stream_does_not_depend_on_how_it_is_cut() -> None:
    def order(cuts: list[int], skip: int) -> list[int]:
        pieces = np.split(np.arange(30_000), cuts)
        blocks = (Rows("a", len(p), lambda chosen, p=p: p[chosen].tolist()) for p in pieces)
        return list(data_batches._shuffled(blocks, np.random.default_rng(1), skip))

    whole = order([], 0)
    assert sorted(whole) == list(range(30_000)) and whole[:100] != list(range(100))
    for cuts in ([9_999, 10_001, 10_001], list(range(0, 30_000, 777))):
        for skip in (0, 8_000, 20_001, 30_000):
            assert order(cuts, skip) == whole[skip:], (cuts[:3], skip)


def test_streamed_parquet_leaves_the_scanner_alone_that_hangs_at_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("apache/arrow issue 45214")

    monkeypatch.setattr(Parquet, "_generate_tables", refused)
    folder = tmp_path / "repository"
    folder.mkdir()
    for part in range(2):
        _write(folder / f"train-{part}.parquet", [{"query": f"q{i}", "positive": f"p{part}"} for i in range(1500)])
    local = FilesData(kind="files", path=str(folder / "*.parquet"), streaming=True)
    hub = HubData(kind="hub", path=str(folder), streaming=True)
    for spec in (local, hub, local.model_copy(update={"limit": 1700}), hub.model_copy(update={"limit": 1700})):
        expected = [Pair(f"q{i}", f"p{part}", (), "", "") for part in range(2) for i in range(1500)][: spec.limit]
        assert list(read_rows(Pair, spec)) == expected
        assert len(next(row_batches(Pair, [spec], 64, 0)).rows) == 64


def test_streamed_files_leave_no_copy_behind(tmp_path: Path) -> None:
    spec = _numbered(tmp_path, 400)
    next(row_batches(Pair, [spec], 8, 0))
    assert not list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
    next(row_batches(Pair, [spec.model_copy(update={"streaming": False})], 8, 0))
    assert list(Path(datasets.config.HF_DATASETS_CACHE).rglob("*.arrow"))
