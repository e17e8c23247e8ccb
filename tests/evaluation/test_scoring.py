"""Every task type scored by hand; metrics against scikit-learn and scipy; what each side of a task is told."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse
from sklearn.metrics import average_precision_score, ndcg_score

from llm2enc.evaluation import (
    BitextTask,
    ClassificationTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    Task,
    metrics,
    score,
)
from llm2enc.evaluation.scoring import Instructions
from llm2enc.evaluation.tasks import ClusteringTask, SummarizationTask
from tests.support.tables import LOG3, PLANE, TableEncoder, scored

# -------------------------------------------------------------------------------------------------------- task by task


def test_sts_by_hand():
    task = StsTask(name="t", first=["east"] * 3, second=["east", "steep", "north"], scores=np.array([5.0, 0.0, 2.5]))
    found = scored(task)
    assert (found.metric, found.statistic) == ("spearman", "spearman")
    # Cosines 1, 0.6, 0. Ranks 3, 2, 1 against 3, 1, 2: 1 - 6 * (0 + 1 + 1) / (3 * 8).
    assert found.score == found.metrics["spearman"] == pytest.approx(0.5)
    # Deviations (7, 1, -8)/15 and (2.5, -2.5, 0): their product is 1, their squares 114/225 and 12.5.
    assert found.metrics["pearson"] == pytest.approx(1 / np.sqrt(114 / 225 * 12.5))
    np.testing.assert_allclose(found.per_example, [[1, 5], [0.6, 0], [0, 2.5]], atol=1e-6)


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
    assert found.per_example[:, 1].tolist() == [1, 0, 1]


def test_bitext_by_hand():
    vectors = {"eins": [1, 0.1], "zwei": [1, 0.2], "drei": [0, 1], "one": [1, 0], "two": [-1, 0], "three": [0, 3]}
    task = BitextTask(name="t", first=["eins", "zwei", "drei"], second=["one", "two", "three"])
    found = scored(task, vectors)
    # `one` is found for eins and zwei, `three` for drei: F1 of the rows 2 * 1/2 / (3/2), 0, 1.
    assert found.per_example.tolist() == pytest.approx([2 / 3, 0, 1])
    assert found.metrics == pytest.approx({"f1": 5 / 9, "accuracy": 2 / 3})


def test_classification_by_hand():
    place = {"a": -1.0, "b": -1.5, "c": 1.0, "d": 1.5, "e": -2.0, "f": 3.0, "g": -0.5}
    task = ClassificationTask(
        name="t", train_texts=list("abcd"), train_labels=["low", "low", "high", "high"],
        test_texts=list("efg"), test_labels=["low", "high", "high"],
    )  # fmt: skip
    found = scored(task, {text: [x, 0] for text, x in place.items()})
    assert found.per_example.tolist() == [1, 1, 0]
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
    assert found.per_example.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])
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
        qrels={"q1": {"d1": 2, "d2": 1, "d3": 0}, "q2": {"d5": 1, "d3": 1}},
    )
    found = scored(task)
    # q1 ranks d3 (judged 0), then d2 before d1, for equal scores go by id, descending.
    first = (1 / LOG3 + 2 / 2) / (2 + 1 / LOG3)
    # q2 ranks d5, d4, then d2 and d1 with -0.6, and d3 last: rank 5.
    second = (1 + 1 / np.log2(6)) / (1 + 1 / LOG3)
    assert found.metric == "ndcg@10" and found.per_example.tolist() == pytest.approx([first, second])
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
    assert found.per_example.tolist() == pytest.approx([0.5])  # nothing to rank in the second document
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


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_a_cosine_is_the_sum_in_fractions_in_whatever_order(kind):
    """Whole numbers, so that the length of a row is the root of an exact sum on every processor."""
    first, second = np.random.default_rng(0).integers(-99, 99, size=(2, 8, 384)).astype(np.float32)
    found = metrics.cosines(kind(first), kind(second))
    ones, others = metrics.unit(first), metrics.unit(second)
    assert [
        [float(sum(Fraction(a) * Fraction(b) for a, b in zip(one, other, strict=True))) for other in others]
        for one in ones
    ] == found.tolist()
    assert [
        float(1 - sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(one, other, strict=True)) / 2)
        for one, other in zip(ones, others, strict=True)
    ] == metrics.cosine(kind(first), kind(second)).tolist()
    for order in (slice(None, None, -1), np.argsort(first[0])):
        assert np.array_equal(metrics.cosines(kind(first[:, order]), kind(second[:, order])), found)
    lengths = [np.sqrt((rows.astype(float) ** 2).sum(axis=1)) for rows in (first, second)]
    cosines = first.astype(float) @ second.T.astype(float) / np.outer(*lengths)
    np.testing.assert_allclose(found, cosines, rtol=0, atol=2**-25 * np.sqrt(384))
    np.testing.assert_allclose(metrics.unit(first), first / lengths[0][:, None], rtol=0, atol=2**-26 + 1e-15)


def _tied_search():
    """20 queries and 60 documents on 6 directions only, so that most scores are tied; judgements."""
    generator = np.random.default_rng(1)
    directions = np.array([[1, 0], [3, 4], [0, 1], [-3, 4], [4, -3], [-1, 0]], dtype=np.float32)
    queries, documents = directions[generator.integers(6, size=20)], directions[generator.integers(6, size=60)]
    query_ids, document_ids = [f"q{i}" for i in range(20)], [str(name) for name in generator.permutation(60)]
    judged = {query: {str(i): int(g) for i, g in zip(generator.permutation(60)[:9], [1, 2, 1] * 3, strict=True)}
              for query in query_ids}  # fmt: skip
    return queries, documents, query_ids, document_ids, judged


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_ties_at_the_border_of_the_depth_count_as_with_all_documents(kind, monkeypatch: pytest.MonkeyPatch):
    queries, documents, query_ids, document_ids, judged = _tied_search()
    arguments = (kind(queries), kind(documents), query_ids, document_ids)
    whole = metrics.ranking_metrics(metrics.search(*arguments), judged)
    monkeypatch.setattr(metrics, "DEPTH", 10)
    run = metrics.search(*arguments)
    assert {len(found) for found in run.values()} == {10}
    cut = metrics.ranking_metrics(run, judged)
    for name in ("ndcg@1", "ndcg@10", "recall@1", "recall@10", "accuracy@10"):
        assert np.array_equal(cut[name], whole[name]), name
    assert 0 < whole["ndcg@10"].mean() < 1 and cut["recall@100"].mean() < whole["recall@100"].mean()


@pytest.mark.parametrize("block", [1, 150, 61 * 7])
@pytest.mark.parametrize("width", [2, 384])
def test_blocks_of_queries_change_nothing(width: int, block: int, monkeypatch: pytest.MonkeyPatch):
    """Ties in 2 dimensions, and in 384 sums so long that a product with one row may round otherwise than one with many."""
    queries, documents, query_ids, document_ids, _ = _tied_search()
    turn = np.random.default_rng(2).normal(size=(2, width)).astype(np.float32) if width > 2 else np.eye(2)
    queries, documents = queries @ turn, documents @ turn
    whole, nearest = metrics.search(queries, documents, query_ids, document_ids), metrics.nearest(queries, documents)
    monkeypatch.setattr(metrics, "_BLOCK", block)
    run = metrics.search(queries, documents, query_ids, document_ids)
    assert list(run) == query_ids and run == whole  # to the bit: what is tied stays tied
    assert np.array_equal(metrics.nearest(queries, documents), nearest)


def _uneven(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The products of all rows, summed from the front for every second column and from the back for the others."""
    products = first[:, None] * second
    sums = [some.cumsum(axis=2)[..., -1] for some in (products, products[..., ::-1])]  # cumsum adds one by one
    return np.where(np.arange(len(second)) % 2, *sums)


def test_equal_texts_tie_however_a_product_rounds(monkeypatch: pytest.MonkeyPatch):
    """The columns of a matrix product may be summed in different orders; which do so depends on the processor."""
    generator = np.random.default_rng(0)
    texts, asks = [f"text {row}" for row in range(17)], [f"ask {row}" for row in range(20)]
    copies = [texts[row] for row in generator.integers(17, size=203)]
    vectors = {text: generator.normal(size=64) for text in [*texts, *asks]}
    rows = [np.array([vectors[text] for text in side], dtype=np.float32) for side in (asks, copies)]
    same = np.array([text == copies[0] for text in copies])
    for kind in (np.float32, np.float64):
        assert (np.ptp(_uneven(*(side.astype(kind) for side in rows))[:, same], axis=1) > 0).any()  # the premise
    plain = metrics.cosines(*rows)
    monkeypatch.setattr(metrics, "_products", _uneven)
    assert np.array_equal(metrics.cosines(*rows), plain)

    documents = {f"{row:04d}": text for row, text in enumerate(copies)}
    last = {text: name for name, text in documents.items()}  # by trec_eval's rule the first of its equals
    best = [copies[place] for place in plain.argmax(axis=1)]
    task = RetrievalTask(
        name="t",
        queries={ask: ask for ask in asks},
        documents=documents,
        qrels={ask: {last[text]: 1} for ask, text in zip(asks, best, strict=True)},
    )
    assert scored(task, vectors).score == 1.0
    reranking = RerankingTask(
        name="t", queries=["ask 0"], positives=[[copies[0]]], negatives=[[copies[0]] * 202]
    )  # the last of its equals
    assert scored(reranking, vectors).score == pytest.approx(1 / 203)
    bitext = BitextTask(name="t", first=asks * 10, second=copies[:200])
    found = scored(bitext, vectors)
    right = [best[row % 20] == copies[row] and copies.index(copies[row]) == row for row in range(200)]
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
    qrels={"q": {"d": 1}},
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
