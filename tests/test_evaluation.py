"""Metrics by hand and against scikit-learn and scipy; task folders written by the test; encoders of known vectors."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from llm2enc.data.docstrings import Docstring
from llm2enc.evaluation import baselines, docstrings, evaluate
from llm2enc.evaluation.docstrings import graded_pairs
from llm2enc.evaluation.metrics import best, cosine, ndcg, recall, spearman
from llm2enc.evaluation.tasks import read_tasks
from llm2enc.evaluation.tfidf import tfidf
from llm2enc.recipe import DocstringEval, FolderEval


class TableEncoder:
    """Vectors from a table, and a note of every call."""

    def __init__(self, vectors: dict[str, list[float]]):
        self.vectors = vectors
        self.calls: list[tuple[list[str], dict[str, str | None]]] = []

    def encode(self, texts, *, instruction=None, prompt_name=None):
        self.calls.append((list(texts), {"instruction": instruction, "prompt_name": prompt_name}))
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


def write_gz(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def write_task(folder: Path, kind: str, **more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.json").write_text(json.dumps({"name": folder.name, "type": kind, **more}))


def folder_eval(folder: Path, *tasks: str) -> FolderEval:
    return FolderEval(kind="folder", path=str(folder), tasks=tasks or None)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """One STS, one retrieval and one classification task."""
    write_task(tmp_path / "pairs", "sts")
    rows = ["one\ttwo\t5.0", "one\tthree\t2.5", 'a "quoted\ttwo\t0']
    write_gz(tmp_path / "pairs" / "test.tsv.gz", ["sentence1\tsentence2\tscore", *rows])
    write_task(tmp_path / "search", "retrieval", instruction="Find it.")
    corpus = [{"_id": "a", "title": "Title", "text": "body"}, {"_id": "b", "text": " bare "}, {"_id": "c", "text": "x"}]
    write_gz(tmp_path / "search" / "corpus.jsonl.gz", [json.dumps(row) for row in corpus])
    queries = [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}, {"_id": "q3", "text": "unanswered"}]
    write_gz(tmp_path / "search" / "queries.jsonl.gz", [json.dumps(row) for row in queries])
    qrels = ["q1\ta\t1", "q2\tb\t0", "q2\tc\t1", "q3\tb\t0"]
    write_gz(tmp_path / "search" / "qrels.tsv.gz", ["query-id\tcorpus-id\tscore", *qrels])
    write_task(tmp_path / "labels", "classification")
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- metrics


def test_ndcg_by_hand():
    # Gains at ranks 1, 2, 3 are divided by log2(2) = 1, log2(3) and log2(4) = 2.
    judged = {"a": 2.0, "b": 1.0, "c": 0.0}
    ideal = 2 + 1 / np.log2(3)
    assert ndcg(["a", "b"], judged) == pytest.approx(1.0)
    assert ndcg(["c", "b", "a"], judged) == pytest.approx((1 / np.log2(3) + 2 / 2) / ideal)
    assert ndcg(["x", "c"], judged) == 0
    # At depth 1 the best possible gain is 2, however many documents are relevant.
    assert ndcg(["b", "a"], judged, k=1) == pytest.approx(1 / 2)


def test_ndcg_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    ids = [f"d{row}" for row in range(30)]
    for _ in range(20):
        gains = generator.integers(0, 4, size=30).astype(float)
        scores = generator.permutation(30).astype(float)  # no ties: scikit-learn would average over them
        ranked = best(scores[None], ids, k=10)[0]
        wanted = sklearn.ndcg_score(gains[None], scores[None], k=10)
        assert ndcg(ranked, dict(zip(ids, gains, strict=True))) == pytest.approx(wanted, abs=1e-12)


def test_recall_is_the_share_of_the_relevant_documents():
    judged = {"a": 1.0, "b": 2.0, "c": 1.0, "d": 0.0}
    assert recall(["a", "d", "x", "b"], judged) == pytest.approx(2 / 3)
    assert recall(["d", "a"], judged, k=1) == 0


def test_equal_scores_are_ordered_by_descending_id_whatever_the_order_of_the_corpus():
    assert best(np.array([[0.5, 0.5, 0.9, 0.5]]), ["10", "9", "a", "b"], k=4) == [["a", "b", "9", "10"]]
    assert best(np.array([[0.5, 0.9, 0.5, 0.5]]), ["9", "a", "b", "10"], k=3) == [["a", "b", "9"]]


def test_spearman_by_hand():
    # Ranks 1, 2, 3 against 1, 3, 2: 1 - 6 * (0 + 1 + 1) / (3 * 8) = 0.5.
    assert spearman(np.array([0.1, 0.2, 0.9]), np.array([1.0, 5.0, 3.0])) == pytest.approx(0.5)
    # Tied grades share their mean rank: 1.5, 1.5, 3 against 1, 2, 3 is sqrt(3) / 2.
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 3.0])) == pytest.approx(np.sqrt(3) / 2)
    assert spearman(np.array([0.7, 0.7, 0.7]), np.array([1.0, 5.0, 3.0])) == 0


def test_cosine_does_not_see_lengths():
    assert cosine(np.array([[3.0, 4.0], [0.0, 9.0]]), np.array([[6.0, 8.0], [2.0, 0.0]])) == pytest.approx([1.0, 0.0])


def test_tfidf_equals_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = ["The cat saw the cat.", "A dog saw it", "nothing in common, nothing"]
    wanted = text.TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    ours = tfidf([*texts, "!"])  # a text without words is a zero row, and must not be nan
    assert ours.toarray()[3].tolist() == [0.0] * ours.shape[1]
    ours = tfidf(texts)
    np.testing.assert_allclose((ours @ ours.T).toarray(), (wanted @ wanted.T).toarray(), atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------- tasks


SENTENCES = {"one": [1.0, 0.0], "two": [2.0, 0.1], "three": [1.0, 1.0], 'a "quoted': [0.0, 3.0]}
SEARCH = {"first": [1.0, 0.0], "second": [0.0, 1.0], "Title body": [5.0, 1.0], "bare": [1.0, 9.0], "x": [1.0, 1.0]}


def test_scores_of_a_folder_by_hand(tasks: Path):
    scores = evaluate(TableEncoder(SENTENCES | SEARCH), (folder_eval(tasks),))
    # pairs: the cosines fall as the scores do. search: q1 finds `a` first; q2 finds `b` (judged 0), then `c`.
    assert scores == pytest.approx(
        {"pairs": 1.0, "search": (1 + 1 / np.log2(3)) / 2, "search/recall@10": 1.0}
    )  # q3 has no relevant document and is not asked


def test_every_distinct_text_is_encoded_once_in_its_role(tasks: Path):
    encoder = TableEncoder(SENTENCES | SEARCH)
    evaluate(encoder, (folder_eval(tasks),))
    document, query = ({"instruction": None, "prompt_name": name} for name in ("document", "query"))
    assert encoder.calls == [
        (["one", 'a "quoted', "two", "three"], document),
        (["first", "second"], query),
        (["Title body", "bare", "x"], document),
    ]


def test_a_task_s_instruction_is_given_on_request_and_to_queries_only(tasks: Path):
    encoder = TableEncoder(SENTENCES | SEARCH)
    evaluate(encoder, (folder_eval(tasks),), use_instructions=True)
    assert [call[1]["instruction"] for call in encoder.calls] == [None, "Find it.", None]
    assert [call[1]["prompt_name"] for call in encoder.calls] == ["document", None, "document"]


def test_named_tasks_come_alone_and_in_order(tasks: Path):
    assert [task.name for task in read_tasks(folder_eval(tasks, "search", "pairs"))] == ["search", "pairs"]


def test_a_folder_that_is_no_task_folder_is_refused(tasks: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="no STS or retrieval task in it"):
        read_tasks(folder_eval(tmp_path / "missing"))
    with pytest.raises(ValueError, match="'labels' is of type 'classification'; what can be measured: pairs, search"):
        read_tasks(folder_eval(tasks, "labels"))
    with pytest.raises(ValueError, match="'other' is not there"):
        read_tasks(folder_eval(tasks, "other"))


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("pairs/test.tsv.gz", ["sentence1\tsentence2", "a\tb"], "no column score; its header is"),
        ("pairs/test.tsv.gz", ["sentence1\tsentence2\tscore"], "no rows"),
        ("pairs/test.tsv.gz", ["sentence1\tsentence2\tscore", "a\tb"], "line 2: 2 fields, the header has 3"),
        ("pairs/test.tsv.gz", ["sentence1\tsentence2\tscore", "a\tb\thigh"], "the score 'high' is not a number"),
        ("search/corpus.jsonl.gz", ['{"_id": "a"}'], "line 1: expected an object with the strings `_id` and `text`"),
        ("search/corpus.jsonl.gz", ["{"], "line 1 is not valid JSON"),
        ("search/qrels.tsv.gz", ["query-id\tcorpus-id\tscore", "q1\ta\t0"], "no query .* has a relevant document"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(tasks: Path, file: str, lines: list[str], message: str):
    write_gz(tasks / file, lines)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_tasks(folder_eval(tasks)))
    assert str(tasks / file.split("/")[0]) in str(caught.value)


def test_a_file_that_is_not_there_or_not_compressed_is_named(tasks: Path):
    (tasks / "pairs" / "test.tsv.gz").write_text("plain")
    with pytest.raises(ValueError, match=r"test\.tsv\.gz can't be read: Not a gzipped file"):
        list(read_tasks(folder_eval(tasks, "pairs")))
    (tasks / "search" / "queries.jsonl.gz").unlink()
    with pytest.raises(ValueError, match=r"queries\.jsonl\.gz can't be read"):
        list(read_tasks(folder_eval(tasks, "search")))
    (tasks / "labels" / "task.json").write_text("{}")
    with pytest.raises(ValueError, match="says no `type`"):
        read_tasks(folder_eval(tasks))


def test_vectors_that_are_not_finite_are_no_score(tasks: Path):
    with pytest.raises(ValueError, match="nan or infinity"):
        evaluate(TableEncoder(SENTENCES | {"two": [np.nan, 0.0]}), (folder_eval(tasks, "pairs"),))


# ----------------------------------------------------------------------------------------------------------- docstrings


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
    docstrings.read_task.cache_clear()
    yield found
    docstrings.read_task.cache_clear()


def test_docstring_scores_by_hand(few_docstrings: list[Docstring]):
    where = {"apple": 0.0, "pear": 0.3, "plum": 0.9, "stone": 2.5}  # angles: the nearer, the more related
    angles = {
        text: angle
        for docstring, angle in zip(few_docstrings, where.values(), strict=True)
        for text in (docstring.summary, docstring.body)
    }
    encoder = TableEncoder({text: [np.cos(angle), np.sin(angle)] for text, angle in angles.items()})
    scores = evaluate(encoder, (DocstringEval(kind="docstrings"),))
    assert scores["docstrings/ndcg@10"] == scores["docstrings/accuracy@1"] == 1.0
    # Every angle between pairs of grade g is larger than every one of grade g + 1: the best order there is.
    task = docstrings.read_task(DocstringEval(kind="docstrings"))
    gaps = [abs(angles[task.summaries[a]] - angles[task.bodies[b]]) for a, b in task.pairs]
    assert all(gap < other for gap, g in zip(gaps, task.grades, strict=True)
               for other, h in zip(gaps, task.grades, strict=True) if g > h)  # fmt: skip
    assert scores["docstrings/similarity"] > 0.9
    assert [call[1]["prompt_name"] for call in encoder.calls] == ["query", "document"]

    # Turn apple's summary to stone: stone's body comes first, apple's own last of four, rank 4.
    encoder.vectors[few_docstrings[0].summary] = [np.cos(2.5), np.sin(2.5)]
    scores = evaluate(encoder, (DocstringEval(kind="docstrings"),))
    assert scores["docstrings/accuracy@1"] == 3 / 4
    assert scores["docstrings/ndcg@10"] == pytest.approx((3 + 1 / np.log2(5)) / 4)


def test_tfidf_baseline_finds_the_bodies_that_share_a_word(few_docstrings: list[Docstring]):
    scores = baselines((DocstringEval(kind="docstrings"),))
    assert scores["docstrings/accuracy@1"] == 1.0
    assert set(scores) == {"docstrings/ndcg@10", "docstrings/accuracy@1", "docstrings/similarity"}


def test_the_number_of_documents_is_obeyed_and_one_is_too_few(few_docstrings: list[Docstring]):
    assert len(docstrings.read_task(DocstringEval(kind="docstrings", documents=3)).bodies) == 3
    with pytest.raises(ValueError, match="fewer than 2 held-out docstrings"):
        docstrings.read_task(DocstringEval(kind="docstrings", documents=1))


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


def test_the_quality_table_by_hand(tasks: Path):
    from benchmarks.quality import groups, markdown

    for name, language in (("pairs", "de"), ("search", "en")):
        description = json.loads((tasks / name / "task.json").read_text())
        (tasks / name / "task.json").write_text(json.dumps(description | {"language": language}))
    write_task(tasks / "more", "sts", language="de")
    kinds = groups(tasks, ["more", "pairs", "search", "search/recall@10"])
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
