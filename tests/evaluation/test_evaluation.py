"""What recipes call: scores of folders and docstrings, the TF-IDF baseline, the quality benchmark."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from llm2enc.data.docstrings.corpus import Docstring
from llm2enc.evaluation import (
    BitextTask,
    RetrievalTask,
    Task,
    Tfidf,
    baselines,
    docstring_tasks,
    docstrings,
    evaluate,
    gather,
    metrics,
    read_task,
    score,
)
from llm2enc.evaluation.docstrings import graded_pairs
from llm2enc.recipe import DocstringEval
from llm2enc.recipe.evaluation import FolderEval
from tests.support.tables import FILES, LOG3, TableEncoder, write_task


def folder_eval(folder: Path, *tasks: str) -> FolderEval:
    return FolderEval(kind="folder", path=str(folder), tasks=tasks or None)


def test_a_folder_gives_the_main_metric_of_every_task(tmp_path: Path):
    write_task(tmp_path / "Find", "retrieval", instruction="Find it.")
    write_task(tmp_path / "Rank", "reranking")
    vectors = {
        "first": [1, 0],
        "second": [0, 1],
        "Title body\u2028more": [5, 1],
        "bare": [1, 9],
        "x": [1, 1],
        "all 0": [1, 0],
    }
    encoder = TableEncoder(vectors | {"q": [1, 0], "p": [1, 1], "n": [1, 0.1], "m": [0, 1]})
    # `first` finds its document first; `second` finds `bare` before `x`; the third has none. The reranked one is second.
    wanted = {"Find": pytest.approx((1 + 1 / LOG3 + 0) / 3), "Rank": 0.5}
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
    monkeypatch.setattr(docstrings, "read_docstrings", lambda split: found if split == "heldout" else [])
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
        qrels={"q": {"b": 1}, "r": {"c": 1}},
    )
    fitted = TfidfVectorizer(sublinear_tf=True).fit([texts[0], texts[1], texts[2], "cat and dog", "!"])
    found = Tfidf(task).encode([*texts, "!"], instruction="ignored")
    np.testing.assert_allclose(found.toarray(), fitted.transform([*texts, "!"]).toarray(), atol=1e-12)
    assert not found[[3]].toarray().any()  # a text without words is a zero row, not nan
    assert score(Tfidf(task), task).metrics["accuracy@1"] == 1.0


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
