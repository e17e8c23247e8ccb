"""Every task type scored by hand; metrics against scikit-learn and scipy; files of tasks and pairs, whole and broken."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import average_precision_score, ndcg_score

from llm2enc.data.docstrings import Docstring
from llm2enc.evaluation import baselines, docstrings, evaluate, metrics, score
from llm2enc.evaluation.docstrings import docstring_tasks, graded_pairs
from llm2enc.evaluation.folders import find_tasks, read_task
from llm2enc.evaluation.scoring import Instructions
from llm2enc.evaluation.sources import gather, read_pairs_file
from llm2enc.evaluation.tasks import (
    BitextTask,
    ClassificationTask,
    ClusteringTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    SummarizationTask,
    Task,
)
from llm2enc.evaluation.tfidf import Tfidf
from llm2enc.recipe import DocstringEval, FolderEval


class TableEncoder:
    """Vectors from a table, and a note of every call."""

    def __init__(self, vectors: dict[str, Sequence[float]]):
        self.vectors = vectors
        self.calls: list[tuple[list[str], dict[str, str | None]]] = []

    def encode(self, texts, *, instruction=None, prompt_name=None):
        self.calls.append((list(texts), {"instruction": instruction, "prompt_name": prompt_name}))
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


# Cosines with `east`: 1, 0.6, 0, -0.6, -1.
PLANE = {"east": [1, 0], "steep": [3, 4], "north": [0, 2], "back": [-3, 4], "west": [-5, 0], "also steep": [6, 8]}
LOG3 = np.log2(3)  # what a gain at rank 2 is divided by; at rank 3 it is log2(4) = 2


def scored(task: Task, vectors: dict[str, Sequence[float]] = PLANE):
    return score(TableEncoder(vectors), task)


# -------------------------------------------------------------------------------------------------------- task by task


def test_sts_by_hand():
    task = StsTask(name="t", first=["east"] * 3, second=["east", "steep", "north"], scores=np.array([5.0, 0.0, 2.5]))
    found = scored(task)
    assert (found.metric, found.statistic) == ("spearman", "spearman")
    # Cosines 1, 0.6, 0. Ranks 3, 2, 1 against 3, 1, 2: 1 - 6 * (0 + 1 + 1) / (3 * 8).
    assert found.score == found.metrics["spearman"] == pytest.approx(0.5)
    # Deviations (7, 1, -8)/15 and (2.5, -2.5, 0): their product is 1, their squares 114/225 and 12.5.
    assert found.metrics["pearson"] == pytest.approx(1 / np.sqrt(114 / 225 * 12.5))
    np.testing.assert_allclose(found.items, [[1, 5], [0.6, 0], [0, 2.5]], atol=1e-6)


def test_an_encoder_that_tells_nothing_apart_correlates_with_nothing():
    task = StsTask(name="t", first=["a", "b"], second=["c", "d"], scores=np.array([1.0, 2.0]))
    assert scored(task, {text: [1, 1] for text in "abcd"}).metrics == {"spearman": 0.0, "pearson": 0.0}
    constant = StsTask(name="t", first=["east"] * 2, second=["east", "north"], scores=np.array([1.0, 1.0]))
    assert scored(constant).metrics == {"spearman": 0.0, "pearson": 0.0}


def test_pair_classification_by_hand():
    labels = np.array([True, False, True])
    task = PairClassificationTask(name="t", first=["east"] * 3, second=["east", "steep", "north"], labels=labels)
    found = scored(task)
    # By falling cosine: same, other, same. Precision where recall grows: 1/1 and 2/3.
    assert found.metrics == {"average_precision": pytest.approx((1 + 2 / 3) / 2)}
    assert found.items[:, 1].tolist() == [1, 0, 1]


def test_bitext_by_hand():
    vectors = {"eins": [1, 0.1], "zwei": [1, 0.2], "drei": [0, 1], "one": [1, 0], "two": [-1, 0], "three": [0, 3]}
    task = BitextTask(name="t", first=["eins", "zwei", "drei"], second=["one", "two", "three"])
    found = scored(task, vectors)
    # `one` is found for eins and zwei, `three` for drei: F1 of the rows 2 * 1/2 / (3/2), 0, 1.
    assert found.items.tolist() == pytest.approx([2 / 3, 0, 1])
    assert found.metrics == pytest.approx({"f1": 5 / 9, "accuracy": 2 / 3})


def test_classification_by_hand():
    place = {"a": -1.0, "b": -1.5, "c": 1.0, "d": 1.5, "e": -2.0, "f": 3.0, "g": -0.5}
    task = ClassificationTask(
        name="t", train_texts=list("abcd"), train_labels=["low", "low", "high", "high"],
        test_texts=list("efg"), test_labels=["low", "high", "high"],
    )  # fmt: skip
    found = scored(task, {text: [x, 0] for text, x in place.items()})
    assert found.items.tolist() == [1, 1, 0]
    # low: precision 1/2, recall 1. high: precision 1, recall 1/2. The F1 of both is 2/3.
    assert found.metrics == pytest.approx({"accuracy": 2 / 3, "f1": 2 / 3})


def test_clustering_of_separate_classes_is_perfect():
    generator = np.random.default_rng(0)
    labels = [name for name in "abcd" for _ in range(5)]
    centres = {"a": [9, 0], "b": [-9, 0], "c": [0, 9], "d": [0, -9]}
    vectors = {f"{name}{row}": centres[name] + generator.normal(0, 0.1, 2) for row, name in enumerate(labels)}
    found = scored(ClusteringTask(name="t", members=list(vectors), labels=labels), vectors)
    assert found.metrics == {"v_measure": pytest.approx(1.0), "purity": 1.0}


def test_purity_and_v_measure_by_hand():
    labels = np.repeat(np.arange(4), 3)
    assert metrics.purity(labels, labels) == 1.0
    assert metrics.purity(np.zeros(12), labels) == 0.25
    # Cluster 0 holds a a b: 2 of them; cluster 1 holds b c: 1.
    assert metrics.purity(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2])) == 3 / 5
    # Two clusters of two whole classes each: homogeneity 1 - ln 2 / ln 4 = 1/2, completeness 1.
    assert metrics.statistic("v_measure", np.stack([labels // 2, labels], axis=1)) == pytest.approx(2 / 3)


def test_reranking_by_hand():
    task = RerankingTask(
        name="t", queries=["east", "east"], positives=[["east", "north"], ["steep"]], negatives=[["steep"], ["east"]]
    )
    found = scored(task)
    # Query 1: relevant, not, relevant. Query 2: not, relevant.
    assert found.items.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])
    ndcg = ((1 + 1 / 2) / (1 + 1 / LOG3) + 1 / LOG3) / 2
    assert found.metrics == pytest.approx({"map": 2 / 3, "mrr": 3 / 4, "ndcg@10": ndcg})


@pytest.mark.parametrize("others", [1, 12])
def test_a_tie_of_candidates_never_helps(others: int):
    task = RerankingTask(name="t", queries=["east"], positives=[["steep"]], negatives=[["also steep"] * others])
    assert scored(task).score == pytest.approx(1 / (others + 1))


def test_retrieval_by_hand():
    """q1: graded judgements, an unjudged document, a tie. q2: one of two relevant documents comes first."""
    task = RetrievalTask(
        name="t",
        queries={"q1": "east", "q2": "west"},
        documents={"d1": "steep", "d2": "also steep", "d3": "east", "d4": "north", "d5": "west"},
        judged={"q1": {"d1": 2, "d2": 1, "d3": 0}, "q2": {"d5": 1, "d3": 1}},
    )
    found = scored(task)
    # q1 ranks d3 (judged 0), then d2 before d1, for equal scores go by id, descending.
    first = (1 / LOG3 + 2 / 2) / (2 + 1 / LOG3)
    # q2 ranks d5, d4, then d2 and d1 with -0.6, and d3 last: rank 5.
    second = (1 + 1 / np.log2(6)) / (1 + 1 / LOG3)
    assert found.metric == "ndcg@10" and found.items.tolist() == pytest.approx([first, second])
    expected = {
        "ndcg@1": (0 + 1) / 2,
        "recall@1": (0 + 1 / 2) / 2,  # the share of the relevant documents
        "accuracy@1": (0 + 1) / 2,  # whether there is one of them
        "recall@10": 1.0,
        "accuracy@10": 1.0,
        "map": ((1 / 2 + 2 / 3) / 2 + (1 + 2 / 5) / 2) / 2,
        "mrr": (1 / 2 + 1) / 2,
    }
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected)


def test_summarization_by_hand():
    task = SummarizationTask(
        name="t",
        human=[["east", "north"], ["east"]],
        machine=[["east", "steep", "west"], ["east", "north"]],
        relevance=[[3, 1, 2], [4, 4]],
    )
    found = scored(task)
    # The highest cosines are 1, 0.8 and 0 (their means would be ordered otherwise); ranks 3, 2, 1 against 3, 1, 2.
    assert found.items.tolist() == pytest.approx([0.5])  # nothing to rank in the second document
    assert found.metrics == {"spearman": pytest.approx(0.5)}


def test_vectors_that_are_not_finite_are_no_score():
    task = BitextTask(name="broken", first=["east"], second=["x"])
    with pytest.raises(ValueError, match="broken: the encoder gives vectors with nan or infinity"):
        scored(task, PLANE | {"x": [np.nan, 0.0]})


# -------------------------------------------------------------------------------------------------------------- metrics


def test_ranking_metrics_equal_scikit_learn_and_sets():
    generator = np.random.default_rng(0)
    names = [f"d{row}" for row in range(30)]
    run, judged, expected = {}, {}, []
    for query in range(20):
        gains = generator.integers(0, 4, size=30) * (generator.random(30) < 0.4)
        gains[generator.integers(30)] = 1
        scores = generator.permutation(30).astype(float)  # no ties: scikit-learn would average over them
        run[str(query)] = dict(zip(names, scores, strict=True))
        judged[str(query)] = {name: int(gain) for name, gain in zip(names, gains, strict=True)}
        ranked, relevant = np.argsort(-scores), set(np.flatnonzero(gains))
        expected.append(
            {f"ndcg@{k}": ndcg_score(gains[None], scores[None], k=k) for k in (1, 10, 100)}
            | {f"recall@{k}": len(relevant & set(ranked[:k])) / len(relevant) for k in (1, 10, 100)}
            | {f"accuracy@{k}": float(bool(relevant & set(ranked[:k]))) for k in (1, 10, 100)}
            | {"map": average_precision_score(gains > 0, scores), "mrr": 1 / (1 + np.argmax(gains[ranked] > 0))}
        )
    found = metrics.ranking_metrics(run, judged)
    assert found.keys() == expected[0].keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, [row[name] for row in expected], atol=1e-7)


def test_spearman_by_hand():
    # Tied grades share their mean rank: 1.5, 1.5, 3 against 1, 2, 3 is sqrt(3) / 2.
    assert metrics.spearman(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 3.0])) == pytest.approx(np.sqrt(3) / 2)
    assert metrics.spearman(np.array([0.7, 0.7, 0.7]), np.array([1.0, 5.0, 3.0])) == 0


def test_cosine_does_not_see_lengths_and_zero_rows_are_zero():
    first, second = np.array([[3.0, 4.0], [0.0, 9.0], [0.0, 0.0]]), np.array([[6.0, 8.0], [2.0, 0.0], [1.0, 0.0]])
    for kind in (np.array, sparse.csr_array):
        assert metrics.cosine(kind(first), kind(second)) == pytest.approx([1.0, 0.0, 0.0])
        np.testing.assert_allclose(
            metrics.cosines(kind(first), kind(second)), [[1, 0.6, 0.6], [0.8, 0, 0], [0, 0, 0]], atol=1e-12
        )
        assert metrics.nearest(kind(first), kind(second)).tolist() == [0, 0, 0]


def _tied_search():
    """20 queries and 60 documents on 6 directions only, so that most scores are tied; judgements."""
    generator = np.random.default_rng(1)
    directions = np.array([[1, 0], [3, 4], [0, 1], [-3, 4], [4, -3], [-1, 0]], dtype=np.float32)
    queries, documents = directions[generator.integers(6, size=20)], directions[generator.integers(6, size=60)]
    query_ids, places = (
        [f"q{i}" for i in range(20)],
        {str(name): row for row, name in enumerate(generator.permutation(60))},
    )
    judged = {query: {str(i): int(g) for i, g in zip(generator.permutation(60)[:9], [1, 2, 1] * 3, strict=True)}
              for query in query_ids}  # fmt: skip
    return queries, documents, query_ids, places, judged


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_ties_at_the_border_of_the_depth_count_as_with_all_documents(kind, monkeypatch: pytest.MonkeyPatch):
    queries, documents, query_ids, places, judged = _tied_search()
    arguments = (kind(queries), kind(documents), query_ids, places)
    whole = metrics.ranking_metrics(metrics.search(*arguments), judged)
    monkeypatch.setattr(metrics, "DEPTH", 10)
    run = metrics.search(*arguments)
    assert {len(found) for found in run.values()} == {10}
    cut = metrics.ranking_metrics(run, judged)
    for name in ("ndcg@1", "ndcg@10", "recall@1", "recall@10", "accuracy@10"):
        assert np.array_equal(cut[name], whole[name]), name
    assert 0 < whole["ndcg@10"].mean() < 1 and cut["recall@100"].mean() < whole["recall@100"].mean()


@pytest.mark.parametrize("block", [1, 150, 61 * 7])
def test_blocks_of_queries_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch):
    queries, documents, query_ids, places, judged = _tied_search()
    whole = metrics.ranking_metrics(metrics.search(queries, documents, query_ids, places), judged)
    nearest = metrics.nearest(queries, documents)
    monkeypatch.setattr(metrics, "_BLOCK", block)
    run = metrics.search(queries, documents, query_ids, places)
    assert list(run) == query_ids
    for name, values in metrics.ranking_metrics(run, judged).items():
        assert np.array_equal(values, whole[name]), name
    assert np.array_equal(metrics.nearest(queries, documents), nearest)


def test_equal_texts_tie_however_a_product_rounds():
    """A matrix product gives equal columns scores that differ in the last bit (384 dimensions, 1003 columns)."""
    generator = np.random.default_rng(0)
    texts = [f"text {row}" for row in range(37)]
    copies = [texts[row] for row in generator.integers(37, size=1003)]
    vectors = {text: generator.normal(size=384) for text in [*texts, *(f"ask {row}" for row in range(50))]}
    plain = metrics.cosines(*(np.array([vectors[text] for text in side], dtype=np.float32) for side in (
        [f"ask {row}" for row in range(50)], copies)))  # fmt: skip
    same = np.array([text == copies[0] for text in copies])
    assert (np.ptp(plain[:, same], axis=1) > 0).any()  # what this test is about

    documents = {f"{row:04d}": text for row, text in enumerate(copies)}
    last = {text: name for name, text in documents.items()}  # by trec_eval's rule the first of its equals
    best = {}
    for row in range(50):
        best[f"q{row}"] = last[copies[int(plain[row].argmax())]]
    task = RetrievalTask(
        name="t",
        queries={f"q{row}": f"ask {row}" for row in range(50)},
        documents=documents,
        judged={query: {name: 1} for query, name in best.items()},
    )
    assert scored(task, vectors).score == 1.0
    reranking = RerankingTask(
        name="t", queries=["ask 0"], positives=[[copies[0]]], negatives=[[copies[0]] * 1002]
    )  # the last of its equals
    assert scored(reranking, vectors).score == pytest.approx(1 / 1003)
    bitext = BitextTask(name="t", first=[f"ask {row}" for row in range(50)] * 20, second=copies[:1000])
    found = scored(bitext, vectors)
    firsts = {text: row for row, text in reversed(list(enumerate(copies[:1000])))}
    right = [copies[int(plain[row % 50].argmax())] == copies[row] and firsts[copies[row]] == row for row in range(1000)]
    assert found.metrics["accuracy"] == pytest.approx(np.mean(right)) and any(right)


# --------------------------------------------------------------------------------------------------------- instructions

SYMMETRIC = StsTask(
    name="s", instruction="Compare.", first=["east"] * 2, second=["steep", "north"], scores=np.array([1.0, 0.0])
)
ASYMMETRIC = RetrievalTask(
    name="r",
    instruction="Find it.",
    queries={"q": "east"},
    documents={"d": "steep", "e": "north"},
    judged={"q": {"d": 1}},
)


@pytest.mark.parametrize(
    ("task", "instructions", "expected"),
    [
        (SYMMETRIC, "own", [("prompt_name", "document")]),
        (SYMMETRIC, "task", [("instruction", "Compare.")]),
        (SYMMETRIC, "none", [("prompt_name", "document")]),
        (ASYMMETRIC, "own", [("prompt_name", "query"), ("prompt_name", "document")]),
        (ASYMMETRIC, "task", [("instruction", "Find it."), ("prompt_name", "document")]),
        (ASYMMETRIC, "none", [("prompt_name", "document"), ("prompt_name", "document")]),
    ],
)
def test_what_each_side_is_told(task: Task, instructions: Instructions, expected: list[tuple[str, str]]):
    encoder = TableEncoder(PLANE)
    score(encoder, task, instructions)
    nothing = {"instruction": None, "prompt_name": None}
    assert [asked for _, asked in encoder.calls] == [nothing | {name: value} for name, value in expected]


def test_a_task_without_instruction_is_told_what_the_encoder_tells_itself():
    encoder = TableEncoder(PLANE)
    task = RerankingTask(name="t", queries=["east"], positives=[["steep"]], negatives=[["north"]])
    score(encoder, task, "task")
    assert [asked["prompt_name"] for _, asked in encoder.calls] == ["query", "document"]


def test_every_distinct_text_of_a_side_is_encoded_once():
    encoder = TableEncoder(PLANE)
    task = RerankingTask(
        name="t", queries=["east", "east"], positives=[["steep"], ["north"]], negatives=[["north"], ["steep", "steep"]]
    )
    score(encoder, task)
    assert [texts for texts, _ in encoder.calls] == [["east"], ["steep", "north"]]


# -------------------------------------------------------------------------------------------------------------- folders

PAIRS = ["sentence1\tsentence2\tscore", "one\ttwo\t5.0", 'a "quoted\tsplit\u2028line\t-1e-1']
LABELLED = [json.dumps({"text": text, "label": label}) for text, label in (("x", "a"), ("y", 1), ("z", "a"))]
CORPUS = [
    {"_id": "a", "title": "Title", "text": "body\u2028more"},
    {"_id": "b", "text": " bare "},
    {"_id": "c", "title": None, "text": "x"},
]
QUERIES = [{"_id": f"q{row}", "text": text} for row, text in enumerate(("first", "second", "never judged", "all 0"))]
QRELS = ["query-id\tcorpus-id\tscore", "q0\ta\t2", "q0\tb\t0", "q1\tc\t1", "q3\ta\t0", "other split\tzzz\t1"]
SUMMARIES = [{"human_summaries": ["h"], "machine_summaries": ["m", "n"], "relevance": [1, 2.5]}]
RERANKED = [
    {"query": "q", "positive": ["p"], "negative": ["n", "m"]},
    {"query": "nothing to tell apart", "positive": ["p"], "negative": []},
]


def _jsonl(rows: list[dict]) -> list[str]:
    return [json.dumps(row, ensure_ascii=False) for row in rows]


FILES: dict[str, dict[str, list[str]]] = {
    "sts": {"test.tsv": PAIRS},
    "pair_classification": {"test.tsv": ["label\tsentence1\tsentence2", "1\ta\tb", "0\tc\td"]},
    "bitext": {"test.tsv": ["sentence1\tsentence2", "eins\tone", "zwei\ttwo"]},
    "classification": {"train.jsonl": LABELLED, "test.jsonl": LABELLED[:1]},
    "clustering": {"test.jsonl": LABELLED},
    "reranking": {"test.jsonl": _jsonl(RERANKED)},
    "retrieval": {"corpus.jsonl": _jsonl(CORPUS), "queries.jsonl": _jsonl(QUERIES), "qrels.tsv": QRELS},
    "summarization": {"test.jsonl": _jsonl(SUMMARIES)},
}
RETRIEVED = {
    "queries": {"q0": "first", "q1": "second"},  # the others have no relevant document
    "documents": {"a": "Title body\u2028more", "b": "bare", "c": "x"},
    "judged": {"q0": {"a": 2, "b": 0}, "q1": {"c": 1}},
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


def write(path: Path, lines: list[str], compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(line + "\n" for line in lines).encode()
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def write_task(folder: Path, kind: str, compressed: bool = False, **more: str) -> Path:
    write(folder / "task.json", [json.dumps({"name": folder.name, "type": kind, **more})])
    for name, lines in FILES[kind].items():
        write(folder / name, lines, compressed)
    return folder


def folder_eval(folder: Path, *tasks: str) -> FolderEval:
    return FolderEval(kind="folder", path=str(folder), tasks=tasks or None)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", FILES)
def test_every_type_is_read_plain_and_compressed(kind: str, compressed: bool, tmp_path: Path):
    task = read_task(write_task(tmp_path / "It", kind, compressed, language="de", instruction="Do it."))
    assert (task.name, task.type, task.language, task.instruction) == ("It", kind, "de", "Do it.")
    for field, wanted in READ[kind].items():
        found = getattr(task, field)
        assert (found.tolist() if isinstance(found, np.ndarray) else found) == wanted
    assert task.symmetric == (kind not in ("retrieval", "reranking"))


@given(st.lists(st.tuples(*2 * [st.text(st.characters(exclude_characters="\t\r\n"))]), min_size=1, max_size=5))
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
    write(folder / "test.jsonl", _jsonl([{"text": text, "label": row} for row, text in enumerate(sum(pairs, ()))]))
    assert read_task(folder).members == list(sum(pairs, ()))


def test_files_of_other_systems_are_read(tmp_path: Path):
    """A byte order mark and two-character line ends, as spreadsheets write."""
    write(tmp_path / "task.json", ['{"type": "sts"}'])
    (tmp_path / "test.tsv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(PAIRS).encode() + b"\r\n")
    assert read_task(tmp_path).scores.tolist() == [5.0, -0.1]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_beir_folder_needs_no_description(tmp_path: Path, compressed: bool):
    beir = tmp_path / "nq"
    for name, lines in (("corpus.jsonl", _jsonl(CORPUS)), ("queries.jsonl", _jsonl(QUERIES))):
        write(beir / name, lines, compressed)
    write(beir / "qrels" / "train.tsv", [QRELS[0], "q0\tb\t1"], compressed)
    for splits, wanted in (("train", {"q0": {"b": 1}}), ("dev", {"q1": {"b": 1}}), ("test", RETRIEVED["judged"])):
        if splits == "dev":
            write(beir / "qrels" / "dev.tsv", [QRELS[0], "q1\tb\t1"], compressed)
        if splits == "test":
            write(beir / "qrels" / "test.tsv", QRELS, compressed)
        task = read_task(beir)
        assert task.judged == wanted and (task.name, task.type, task.instruction) == ("nq", "retrieval", "")
    assert task.documents == RETRIEVED["documents"]
    assert list(find_tasks(tmp_path)) == list(find_tasks(beir)) == ["nq"]


def _drop(rows: list[dict], field: str) -> list[str]:
    return _jsonl([*rows[:-1], {name: value for name, value in rows[-1].items() if name != field}])


@pytest.mark.parametrize(
    ("kind", "file", "lines", "message"),
    [
        ("sts", "test.tsv", ["sentence1\tsentence2", "a\tb"], r"has no column score; its header is \['sentence1'"),
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
        ("reranking", "test.jsonl", _jsonl(RERANKED[1:]), ": no query has both a positive and a negative candidate"),
        ("retrieval", "corpus.jsonl", _drop(CORPUS, "text"), "line 3: `text` must be a string"),
        ("retrieval", "corpus.jsonl", _jsonl([*CORPUS, {"_id": "d", "title": ["x"], "text": "x"}]),
         "line 4: `title` must be a string, or left out"),
        ("retrieval", "corpus.jsonl", _jsonl([*CORPUS, CORPUS[1]]), "line 4: the id 'b' stands on an earlier line too"),
        ("retrieval", "corpus.jsonl", _jsonl(CORPUS[1:]), "line 2: document 'a' is judged relevant, but the corpus"),
        ("retrieval", "queries.jsonl", _drop(QUERIES, "_id"), "line 4: `_id` must be a string"),
        ("retrieval", "qrels.tsv", [QRELS[0], "q0\ta\t0"], ": no query of queries.jsonl has a relevant document"),
        ("retrieval", "qrels.tsv", [*QRELS, "q0\tc\t0.5"], "line 7: the judgement is '0.5', expected a whole number"),
        ("retrieval", "qrels.tsv", [*QRELS, "q0\tc\tyes"], "line 7: 'yes' is not a number"),
        ("summarization", "test.jsonl", _jsonl([*SUMMARIES, SUMMARIES[0] | {"relevance": [1]}]),
         "line 2: 1 human summaries, 2 machine summaries and 1 scores"),
        ("summarization", "test.jsonl", _jsonl([SUMMARIES[0] | {"human_summaries": []}]), "line 1: 0 human summaries"),
        ("summarization", "test.jsonl", _jsonl([SUMMARIES[0] | {"machine_summaries": [], "relevance": []}]),
         "line 1: 1 human summaries, 0 machine summaries and 0 scores"),
        ("summarization", "test.jsonl", _jsonl([SUMMARIES[0] | {"relevance": [1, True]}]),
         "line 1: `relevance` must be a list of numbers"),
        ("summarization", "test.jsonl", ['{"human_summaries": ["h"], "machine_summaries": ["m"], "relevance": [NaN]}'],
         "line 1: `relevance` must be a list of numbers"),
        ("summarization", "test.jsonl", _jsonl([SUMMARIES[0] | {"relevance": [2, 2]}]), "so there is nothing to rank"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_with_its_line(kind: str, file: str, lines: list[str], message: str, tmp_path: Path):
    folder = write_task(tmp_path / "It", kind)
    write(folder / file, lines)
    with pytest.raises(ValueError, match=message) as caught:
        read_task(folder)
    named = folder / (file if "judged relevant" not in message else "qrels.tsv")
    assert str(caught.value).startswith(str(named))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    folder = write_task(tmp_path / "It", "bitext", compressed=True)
    packed = folder / "test.tsv.gz"
    whole = packed.read_bytes()
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for data in (b"plain", whole[:-9], damaged, gzip.compress("sentence1\xff".encode("latin1"))):
        packed.write_bytes(data)
        with pytest.raises(ValueError, match=r"test\.tsv\.gz can't be read: "):
            read_task(folder)
    packed.unlink()
    with pytest.raises(ValueError, match=r"test\.tsv can't be read: .*No such file"):
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


# ----------------------------------------------------------------------------------------------------------- own pairs

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
    found = [(task.queries[q], task.documents[d]) for q, judged in task.judged.items() for d in judged]
    assert found == rows
    assert all(judgement == 1 for judged in task.judged.values() for judgement in judged.values())


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
        task.queries[query]: {task.documents[document] for document in judged} for query, judged in task.judged.items()
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


# --------------------------------------------------------------------------------------------------- what recipes call


def test_tfidf_takes_letters_for_words_where_no_spaces_are_written():
    # Two sentences that share most of their letters and, taken as words, nothing.
    first, second = (
        ["我们昨天去了城里的一家新书店", "飞机晚点了三个小时才起飞"],
        ["我们昨天又去了城里的那家书店", "这本小说非常有意思"],
    )
    task = BitextTask(name="b", first=first, second=second)
    encoder = Tfidf(task)
    found = metrics.cosines(encoder.encode(first), encoder.encode(second))
    assert found[0, 0] > 0.4 > 0.1 > found[1].max()


def test_a_folder_gives_the_main_metric_of_every_task(tmp_path: Path):
    write_task(tmp_path / "Find", "retrieval", instruction="Find it.")
    write_task(tmp_path / "Rank", "reranking")
    vectors = {"first": [1, 0], "second": [0, 1], "Title body\u2028more": [5, 1], "bare": [1, 9], "x": [1, 1]}
    encoder = TableEncoder(vectors | {"q": [1, 0], "p": [1, 1], "n": [1, 0.1], "m": [0, 1]})
    # `first` finds its document first; `second` finds `bare` before `x`. The reranked positive is second.
    wanted = {"Find": pytest.approx((1 + 1 / LOG3) / 2), "Rank": 0.5}
    assert evaluate(encoder, (folder_eval(tmp_path),)) == wanted
    assert evaluate(encoder, (folder_eval(tmp_path, "Rank"),)) == {"Rank": 0.5}
    encoder.calls.clear()
    evaluate(encoder, (folder_eval(tmp_path, "Find"),), "task")
    assert [asked["instruction"] for _, asked in encoder.calls] == ["Find it.", None]


def test_grades_are_what_the_modules_say_and_pairs_are_balanced():
    modules = [f"{package}.{module}" for package in "abc" for module in "xyz" for _ in range(4)]  # 36 docstrings
    pairs, grades = graded_pairs(modules, per_grade=20)
    assert np.bincount(grades).tolist() == [20, 20, 20, 20]
    for (first, second), grade in zip(pairs, grades, strict=True):
        same_package = modules[first][0] == modules[second][0]
        same_module = modules[first] == modules[second]
        assert grade == (3 if first == second else 2 if same_module else 1 if same_package else 0)
    for grade in range(4):
        assert len(set(pairs[grades == grade, 0])) == 20


def test_a_grade_that_no_pair_has_is_left_out_and_the_sample_is_fixed():
    pairs, grades = graded_pairs(["a.x", "b.x", "b.y"], per_grade=5)
    assert np.bincount(grades, minlength=4).tolist() == [3, 2, 0, 3]
    again, _ = graded_pairs(["a.x", "b.x", "b.y"], per_grade=5)
    assert pairs.tolist() == again.tolist()


@pytest.fixture
def few_docstrings(monkeypatch: pytest.MonkeyPatch):
    """Four held-out docstrings of two packages instead of the installed ones."""
    words = {"a.x": ["apple", "pear"], "a.y": ["plum"], "b.z": ["stone"]}
    found = [
        Docstring(module, word, f"About {word} only.", f"The {word} is what these eight words speak of.", ())
        for module, names in words.items()
        for word in names
    ]
    monkeypatch.setattr(docstrings, "docstrings", lambda split: found if split == "heldout" else [])
    docstring_tasks.cache_clear()
    yield found
    docstring_tasks.cache_clear()


def test_docstring_scores_by_hand(few_docstrings: list[Docstring]):
    where = {"apple": 0.0, "pear": 0.3, "plum": 0.9, "stone": 2.5}  # angles: the nearer, the more related
    angles = {
        text: angle
        for docstring, angle in zip(few_docstrings, where.values(), strict=True)
        for text in (docstring.summary, docstring.body)
    }
    encoder = TableEncoder({text: [np.cos(angle), np.sin(angle)] for text, angle in angles.items()})
    scores = evaluate(encoder, (DocstringEval(kind="docstrings"),))
    assert scores.keys() == {"docstrings/ndcg@10", "docstrings/accuracy@1", "docstrings/similarity"}
    assert scores["docstrings/ndcg@10"] == scores["docstrings/accuracy@1"] == 1.0
    # Every angle between pairs of grade g is larger than every one of grade g + 1: the best order there is.
    _, task = docstring_tasks(DocstringEval(kind="docstrings"))
    gaps = [abs(angles[a] - angles[b]) for a, b in zip(task.first, task.second, strict=True)]
    assert all(gap < other for gap, g in zip(gaps, task.scores, strict=True)
               for other, h in zip(gaps, task.scores, strict=True) if g > h)  # fmt: skip
    assert scores["docstrings/similarity"] > 0.9
    assert [asked["prompt_name"] for _, asked in encoder.calls] == ["query", "document", "document"]

    # Turn apple's summary to stone: stone's body comes first, apple's own last of four, rank 4.
    encoder.vectors[few_docstrings[0].summary] = [np.cos(2.5), np.sin(2.5)]
    scores = evaluate(encoder, (DocstringEval(kind="docstrings"),))
    assert scores["docstrings/accuracy@1"] == 3 / 4
    assert scores["docstrings/ndcg@10"] == pytest.approx((3 + 1 / np.log2(5)) / 4)


def test_the_number_of_documents_is_obeyed_and_one_is_too_few(few_docstrings: list[Docstring]):
    retrieval, _ = docstring_tasks(DocstringEval(kind="docstrings", documents=3))
    assert len(retrieval.documents) == len(retrieval.queries) == 3
    with pytest.raises(ValueError, match="fewer than 2 held-out docstrings"):
        docstring_tasks(DocstringEval(kind="docstrings", documents=1))
    tasks, names = gather(["smoke"], documents=3)
    assert [task.name for task in tasks] == ["docstrings", "docstrings-similarity"] and names == []


# --------------------------------------------------------------------------------------------------------------- TF-IDF


def test_tfidf_equals_scikit_learn():
    texts = ["The cat saw the cat.", "A dog saw it", "nothing in common, nothing"]
    task = RetrievalTask(
        name="t",
        queries={"q": texts[0], "r": texts[1]},
        documents={"a": texts[2], "b": "cat and dog", "c": texts[1], "d": "!"},
        judged={"q": {"b": 1}, "r": {"c": 1}},
    )
    fitted = TfidfVectorizer(sublinear_tf=True).fit([texts[0], texts[1], texts[2], "cat and dog", "!"])
    found = Tfidf(task).encode([*texts, "!"], instruction="ignored")
    np.testing.assert_allclose(found.toarray(), fitted.transform([*texts, "!"]).toarray(), atol=1e-12)
    assert not found[[3]].toarray().any()  # a text without words is a zero row, not nan
    assert score(Tfidf(task), task).metrics["accuracy@1"] == 1.0


def test_tfidf_is_scored_on_every_type(tmp_path: Path):
    for kind in FILES:
        task = read_task(write_task(tmp_path / kind, kind))
        assert np.isfinite(score(_Words(task), task).score)


class _Words(Tfidf):
    """TF-IDF of words of one letter too, which the test's texts are made of."""

    def __init__(self, task: Task):
        super().__init__(task) if task.type == "retrieval" else None
        texts = {text for _, texts in task.texts() for text in texts}
        self._model = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit(texts)


def test_tfidf_baseline_finds_the_bodies_that_share_a_word(few_docstrings: list[Docstring]):
    scores = baselines((DocstringEval(kind="docstrings"),))
    assert scores["docstrings/accuracy@1"] == 1.0
    assert set(scores) == {"docstrings/ndcg@10", "docstrings/accuracy@1", "docstrings/similarity"}


# ------------------------------------------------------------------------------------------------------------ benchmark


def test_the_quality_recipe_names_the_data_folder_and_reads_no_instruction(tmp_path: Path):
    from benchmarks.quality import read_recipe

    recipe = read_recipe(tmp_path / 'a "b', ["stages.contrastive.trainable=full", "stages.contrastive.lora=null"])
    assert recipe.evaluation[0].path == str(tmp_path / 'a "b' / "eval")
    assert "${data}" not in recipe.model_dump_json()
    assert recipe.input.query == recipe.input.document
    assert not any(part.slot == "instruction" for part in recipe.input.query)
    by_label = {data.name for data in recipe.stages[2].data if not data.in_batch_negatives}
    assert by_label == {"banking77_intent", "clinc150_intent", "emotion_label"}


def test_the_quality_table_by_hand(tmp_path: Path):
    from benchmarks.quality import groups, markdown

    for name, kind, language in (("pairs", "sts", "de"), ("search", "retrieval", "en"), ("more", "sts", "de")):
        write_task(tmp_path / name, kind, language=language)
    kinds = groups(tmp_path, ["more", "pairs", "search", "docstrings/ndcg@10"])
    assert kinds == {"STS, other languages": ["more", "pairs"], "retrieval": ["search"]}
    rows = [
        {"stage": "after mntp", "seconds": 61.2, "scores": {"pairs": 0.5, "more": 0.25, "search": 1.0}},
        {"stage": "TF-IDF", "scores": {"pairs": 0.1, "more": 0.3, "search": 0.0, "unmeasured": 0.9}},
    ]
    assert markdown(rows, kinds).splitlines() == [
        "|  | seconds | mean STS, other languages | mean retrieval | more | pairs | search |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| after mntp | 61 | 37.5 | 100.0 | 25.0 | 50.0 | 100.0 |",
        "| TF-IDF |  | 20.0 | 0.0 | 30.0 | 10.0 | 0.0 |",
    ]
