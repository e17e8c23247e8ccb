"""BEIR's rules, by hand and by mteb's own evaluator: a query is no answer to itself, absent documents stay in the ideal."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from llm2enc.evaluation import RetrievalTask, read_pairs_file, read_task, score
from llm2enc.evaluation.metrics import ranking_metrics
from llm2enc.evaluation.mteb_local import local_task
from tests.support.tables import LOG3, TableEncoder, jsonl, write

HEADER = "query-id\tcorpus-id\tscore"
ANGLES = {"x": 0, "y": 20, "z": 60}  # each text is nearest to itself; then x: y z, y: x z, z: y x
ENCODER = TableEncoder({text: [np.cos(np.radians(a)), np.sin(np.radians(a))] for text, a in ANGLES.items()})
QRELS = ["x\ty\t1", "y\tx\t1", "z\tx\t1"]
RIGHT = (1 + 1 + 1 / LOG3) / 3
LOST = (1 / LOG3) / (1 + 1 / LOG3)  # z, one of whose two documents is not there


def arguments(folder: Path, qrels: list[str], rule: bool | None = None, **changed: list[dict]) -> Path:
    """A set that asks with its documents, as ArguAna does."""
    rows = [{"_id": name, "text": name} for name in ANGLES]
    for name in ("corpus", "queries"):
        write(folder / f"{name}.jsonl", jsonl(changed.get(name, rows)))
    write(folder / "qrels" / "test.tsv", [HEADER, *qrels])
    if rule is not None:
        write(folder / "task.json", [json.dumps({"type": "retrieval", "ignore_identical_ids": rule})])
    return folder


def by_mteb(folder: Path, rule: bool) -> float:
    """What mteb's evaluator gives for cosines and judgements that are read here."""
    evaluator = pytest.importorskip("mteb._evaluators.retrieval_evaluator").RetrievalEvaluator
    queries, documents = (
        {str(row["_id"]): row["text"] for row in map(json.loads, (folder / name).read_text().splitlines())}
        for name in ("queries.jsonl", "corpus.jsonl")
    )
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, gain = line.split("\t")
        if query in queries:
            qrels.setdefault(query, {})[document] = int(gain)
    run = {
        query: {
            name: float(np.dot(ENCODER.vectors[queries[query]], ENCODER.vectors[text]))
            for name, text in documents.items()
        }
        for query in qrels
    }
    return evaluator.evaluate(None, qrels, run, [10], ignore_identical_ids=rule).ndcg["NDCG@10"]


CASES = {
    "three arguments": (QRELS, True, 0.8770),
    "ranked for themselves": (QRELS, False, 0.5873),
    "a document that is not there": ([*QRELS, "z\tgone\t1"], True, 0.7956),
    "judged 0 and not there": ([*QRELS, "z\tgone\t0"], True, 0.8770),
    "a query judged only 0": ([*QRELS[:2], "z\tx\t0"], True, 2 / 3),
    "a query whose only document is not there": ([*QRELS[:2], "z\tgone\t1"], True, 2 / 3),
    "a query that is not there": ([*QRELS, "other\tx\t1"], True, 0.8770),
    "graded": ([*QRELS, "z\ty\t2"], True, (1 + 1 + 1) / 3),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_scores_what_mteb_gives_it(name: str, tmp_path: Path) -> None:
    qrels, rule, right = CASES[name]
    folder = arguments(tmp_path, qrels, rule)
    found = score(ENCODER, read_task(folder)).score
    assert found == pytest.approx(right, abs=5e-5)
    assert found == pytest.approx(by_mteb(folder, rule), abs=6e-6)  # mteb rounds to five digits


def test_the_values_are_those_of_the_definition(tmp_path: Path) -> None:
    values = [RIGHT, (1 / LOG3 * 2 + 1 / 2) / 3, (1 + 1 + LOST) / 3]
    assert values == pytest.approx([0.8770, 0.5873, 0.7956], abs=5e-5)
    task = read_task(arguments(tmp_path, [*QRELS, "z\tgone\t1"]))
    assert score(ENCODER, task).per_example.tolist() == pytest.approx([1, 1, LOST])


def test_a_task_by_mteb_keeps_the_rule_and_the_judgements(tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    from llm2enc.evaluation import MtebEncoder

    for name, (qrels, rule, right) in CASES.items():
        task = local_task(read_task(arguments(tmp_path / name, qrels, rule)))
        wrapped = MtebEncoder(ENCODER, "test", "1")
        (result,) = mteb.evaluate(wrapped, task, cache=None, show_progress_bar=False).task_results
        assert result.scores["test"][0]["main_score"] == pytest.approx(right, abs=6e-5), name


def test_texts_decide_where_no_rule_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm2enc")
    task = read_task(arguments(tmp_path / "arguments", QRELS))
    assert isinstance(task, RetrievalTask) and task.ignore_identical_ids
    assert score(ENCODER, task).score == pytest.approx(RIGHT)
    assert (
        "3 of 3 queries share their id with a document, 3 also its text: such a document is not ranked" in caplog.text
    )
    titled = [{"_id": name, "title": "On", "text": name} for name in ANGLES]
    assert read_task(arguments(tmp_path / "titled", QRELS, corpus=titled)).ignore_identical_ids
    # Two sets of numbers: document y is another thing than query y, and is its answer's rival.
    other = [{"_id": name, "text": text} for name, text in zip(ANGLES, "yzx", strict=True)]
    task = read_task(arguments(tmp_path / "numbers", ["x\tx\t1", "y\tz\t1", "z\ty\t1"], corpus=other))
    assert not task.ignore_identical_ids and score(ENCODER, task).per_example.tolist() == pytest.approx(
        [1 / LOG3, 1 / LOG3, 1]
    )
    assert (
        'such a document is ranked for its query. task.json can say otherwise: "ignore_identical_ids": true'
        in caplog.text
    )
    # Where a document is judged to answer the query of its id, it is to be found.
    assert not read_task(arguments(tmp_path / "itself", [f"{name}\t{name}\t1" for name in ANGLES])).ignore_identical_ids


def test_what_is_not_there_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_task(arguments(tmp_path, [*QRELS[:2], "x\tgone\t1", "y\tlost\t0", "z\tx\t0", "other\tx\t1"]))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{tmp_path}/qrels/test.tsv: 1 of 4 judged queries are not in queries.jsonl, and left out",
        f"{tmp_path}/qrels/test.tsv: 2 judgements (1 of relevance) are of documents that the corpus does not hold, such as "
        "'gone'; they stay in the ideal ranking, as in BEIR and mteb",
        f"{tmp_path}/qrels/test.tsv: 1 of 3 judged queries have no relevant document; they enter every mean with 0, as in "
        "BEIR and mteb",
    ]


def test_integer_ids_and_null_texts_are_read(tmp_path: Path) -> None:
    corpus = [
        {"_id": 1, "text": "y"},
        {"_id": "2", "title": None, "text": None, "url": 3},
        {"_id": 3, "text": "z", "url": "a"},
    ]
    queries = [{"_id": 7, "text": "x", "metadata": {}}, {"_id": 8, "text": None}]
    task = read_task(arguments(tmp_path, ["7\t1\t1", "8\t3\t1"], corpus=corpus, queries=queries))
    assert (task.queries, task.documents) == ({"7": "x", "8": ""}, {"1": "y", "2": "", "3": "z"})
    assert task.qrels == {"7": {"1": 1}, "8": {"3": 1}}
    double = [*corpus, {"_id": "1", "text": "again"}]
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 4: the id '1' stands on an earlier line too"):
        read_task(arguments(tmp_path, ["7\t1\t1"], corpus=double, queries=queries))


def test_fractions_are_gains_as_they_are() -> None:
    """ESCI's gains are 1, 0.1, 0.01 and 0: nDCG by its definition, and what is relevant lies above 0."""
    run = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    found = ranking_metrics(run, {"q": {"a": 0.1, "b": 1, "c": 0.01, "d": 0}})
    best = 1 + 0.1 / LOG3 + 0.01 / 2
    assert found["ndcg@10"].tolist() == pytest.approx([(0.1 + 1 / LOG3 + 0.01 / 2) / best])
    assert (found["accuracy@1"], found["recall@1"], found["map"]) == (1, pytest.approx(1 / 3), 1)
    whole = ranking_metrics(run, {"q": {"a": 10, "b": 100, "c": 1, "d": 0}})
    assert all(found[name] == pytest.approx(whole[name]) for name in whole)


def test_graded_half_is_relevant_in_a_folder(tmp_path: Path) -> None:
    task = read_task(arguments(tmp_path, [*QRELS[:2], "z\tx\t0.5", "z\ty\t1"]))
    best = 1 + 0.5 / LOG3
    assert score(ENCODER, task).per_example.tolist() == pytest.approx([1, 1, best / best])
    assert task.qrels["z"] == {"x": 0.5, "y": 1}


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (["x\ty\t1\t"], r"test\.tsv, line 2: 4 fields, the header has 3: 'x\\ty\\t1\\t'"),
        (["x\t0\ty\t1"], "line 2: 4 fields, the header has 3"),
        (["x\ty"], "line 2: 2 fields, the header has 3"),
        (["x\ty\t0.0005"], "query 'x' has 0.0005 for document 'y'; round judgements to three decimals"),
        (["x\ty\t0"], "no query of queries.jsonl has a relevant document"),
        (["other\ty\t1"], "no query of queries.jsonl has a relevant document"),
    ],
)
def test_judgements_that_are_wrong_are_named(qrels: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_task(arguments(tmp_path, qrels))


def test_a_rule_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = arguments(tmp_path, QRELS)
    write(folder / "task.json", ['{"type": "retrieval", "ignore_identical_ids": "yes"}'])
    with pytest.raises(ValueError, match="ignore_identical_ids is 'yes', expected true or false"):
        read_task(folder)


def test_a_text_on_both_sides_of_pairs_is_not_ranked_for_itself(tmp_path: Path) -> None:
    """The same three texts as pairs: a text is found at no rank of its own, and z finds y before x."""
    write(tmp_path / "pairs.tsv", ["query\tpositive", "x\ty", "y\tx", "z\tx", "z\tz"])
    task = read_pairs_file(tmp_path / "pairs.tsv")
    # z stands beside itself, so it is an answer: rank 1, then y, then x.
    assert score(ENCODER, task).per_example.tolist() == pytest.approx([1, 1, (1 + 1 / 2) / (1 + 1 / LOG3)])
    write(tmp_path / "fewer.tsv", ["query\tpositive", "x\ty", "y\tx", "z\tx"])
    assert score(ENCODER, read_pairs_file(tmp_path / "fewer.tsv")).score == pytest.approx(RIGHT)
