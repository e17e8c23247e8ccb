"""The cache and the suite: nothing is encoded or scored twice, and nothing that was done is lost."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from llm2enc.encoding import Encoder
from llm2enc.evaluation import (
    BitextTask,
    CachedEncoder,
    PairClassificationTask,
    RetrievalTask,
    StsTask,
    Task,
    TaskResult,
    draws,
    interval,
    score,
)
from llm2enc.evaluation import cache as module
from llm2enc.evaluation.suite import (
    Measurement,
    digest,
    means,
    measure,
    result_from_json,
    result_to_json,
    write_summary,
)
from llm2enc.recipe import Part
from llm2enc.storage import default_cache
from llm2enc.text import Passage
from tests.support import jobs
from tests.support.builders import INPUT, make_encoder, sentences

TEXTS = sentences(12)


class Counting:
    """An encoder of ours that notes what is asked of it."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self.texts: list[str] = []

    def encode(self, texts, **asked):
        self.texts += texts
        return self.encoder.encode(texts, **asked)

    def fingerprint(self):
        return self.encoder.fingerprint()

    def cache_key(self, **asked):
        return self.encoder.cache_key(**asked)

    def count_tokens(self, texts, **asked):
        return self.encoder.count_tokens(texts, **asked)


@pytest.fixture
def counting(encoder: Encoder) -> Counting:
    return Counting(encoder)


# ---------------------------------------------------------------------------------------------------------------- cache


def test_a_second_time_nothing_is_encoded_and_every_bit_is_the_same(counting: Counting, tmp_path: Path):
    plain = counting.encoder.encode(TEXTS)
    first = CachedEncoder(counting, tmp_path)
    assert np.array_equal(first.encode(TEXTS), plain)
    assert counting.texts == TEXTS
    assert np.array_equal(first.encode(TEXTS[::-1]), plain[::-1])
    first.close()
    again = CachedEncoder(counting, tmp_path)  # from the file
    found = again.encode([*TEXTS, TEXTS[3]])
    assert np.array_equal(found, plain[[*range(12), 3]]) and found.dtype == np.float32
    assert counting.texts == TEXTS
    assert np.abs(again.encode([*TEXTS, "a new one"])[12] - counting.encoder.encode("a new one")).max() < 1e-6
    assert counting.texts == [*TEXTS, "a new one"]
    again.close()


def test_without_a_folder_vectors_stay_in_memory(counting: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cached = CachedEncoder(counting, None)
    assert np.array_equal(cached.encode(TEXTS), cached.encode(TEXTS))
    assert counting.texts == TEXTS and not list(tmp_path.iterdir())


def test_what_is_read_alike_is_encoded_once(counting: Counting, tmp_path: Path):
    cached = CachedEncoder(counting, tmp_path)
    plain = cached.encode(TEXTS)
    for asked in ({"prompt_name": "document"}, {"prompt_name": "query"}, {"instruction": ""}):
        assert np.array_equal(cached.encode(TEXTS, **asked), plain)  # no prompt `query`: read as a document
    assert counting.texts == TEXTS
    for asked in ({"instruction": "Find it"}, {"prompt_name": "search"}):
        counting.texts.clear()
        found = cached.encode(TEXTS, **asked)
        assert np.array_equal(found, counting.encoder.encode(TEXTS, **asked)) and np.abs(found - plain).max() > 1e-2
        assert counting.texts == TEXTS
    counting.texts.clear()
    cached.encode(TEXTS, instruction="Find the answer")  # what `search` says
    assert counting.texts == []


def test_texts_of_the_same_characters_that_are_read_otherwise_have_vectors_of_their_own(tmp_path: Path):
    document = (Part(slot="title"), Part(literal=" | "), Part(slot="text", pool=True))
    encoder = make_encoder(INPUT.model_copy(update={"document": document}))
    texts = [Passage("old", "town mill"), Passage("old town", "mill"), "old town mill"]
    found = CachedEncoder(encoder, tmp_path).encode(texts)
    assert np.array_equal(found, encoder.encode(texts))
    assert min(np.abs(found[i] - found[j]).max() for i in range(3) for j in range(i)) > 1e-3


def test_another_encoder_has_another_file(tmp_path: Path):
    encoder = make_encoder()
    CachedEncoder(encoder, tmp_path).encode(TEXTS)
    with torch.no_grad():
        next(encoder.backbone.decoder.parameters())[3, 0] += 1e-3
    CachedEncoder(encoder, tmp_path)
    CachedEncoder(make_encoder(INPUT.model_copy(update={"max_tokens": 63})), tmp_path)
    CachedEncoder(make_encoder(pooling="last"), tmp_path)
    assert len(list(tmp_path.glob("*.sqlite"))) == 4
    counting = Counting(make_encoder())
    CachedEncoder(counting, tmp_path).encode(TEXTS)
    assert counting.texts == [] and len(list(tmp_path.iterdir())) == 4


def test_an_interruption_costs_the_block_it_came_in(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BLOCK", 5)

    class Interrupted(Counting):
        def encode(self, texts, **asked):
            if self.texts:
                raise KeyboardInterrupt
            return super().encode(texts, **asked)

    done: list[int] = []
    cached = CachedEncoder(Interrupted(encoder), tmp_path, done.append)
    with pytest.raises(KeyboardInterrupt):
        cached.encode(TEXTS)
    cached.close()
    counting = Counting(encoder)
    again = CachedEncoder(counting, tmp_path, done.append)
    assert np.abs(again.encode(TEXTS) - encoder.encode(TEXTS)).max() < 1e-6
    assert counting.texts == TEXTS[5:] and [count for count in done if count] == [5, 5, 5, 2]


class Letters:
    """Vectors by arithmetic: no model is needed."""

    def __init__(self):
        self.texts: list[str] = []

    def encode(self, texts, **asked):
        self.texts += texts
        return np.array([[len(text), sum(map(ord, text))] for text in texts], dtype=np.float32)

    def fingerprint(self):
        return "letters"

    def cache_key(self, **asked):
        return ""


def _encode_all(folder: Path) -> None:
    module.BLOCK = 3
    cached = CachedEncoder(Letters(), folder)
    for start in range(0, 100, 4):
        cached.encode([f"text {row}" for row in range(start, start + 8)])
    cached.close()


def test_two_processes_share_a_file(tmp_path: Path):
    running = [jobs.start(_encode_all, tmp_path) for _ in range(2)]
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    letters = Letters()
    first, second = CachedEncoder(letters, tmp_path), CachedEncoder(letters, tmp_path)
    texts = [f"text {row}" for row in range(104)]
    assert np.array_equal(first.encode(texts), Letters().encode(texts)) and letters.texts == []
    first.encode(["one connection writes"])
    second.encode(["one connection writes", "the other reads and writes"])
    first.encode(["the other reads and writes"])
    assert letters.texts == ["one connection writes", "the other reads and writes"]
    [file] = tmp_path.glob("*.sqlite")
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT COUNT(*) FROM vectors").fetchone() == (106,)


def test_more_texts_than_a_query_holds_and_characters_of_any_kind(counting: Counting):
    cached = CachedEncoder(counting, None)
    texts = [f"{row} \u2028\0 ü" for row in range(1100)]
    vectors = cached.encode(texts)
    counting.texts.clear()
    assert np.array_equal(cached.encode(texts[::-1]), vectors[::-1]) and counting.texts == []


def test_where_vectors_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM2ENC_CACHE", "/some/where")
    assert default_cache() == Path("/some/where")
    monkeypatch.delenv("LLM2ENC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == Path("/x/llm2enc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "llm2enc"


# ---------------------------------------------------------------------------------------------------------------- suite

PAIRS = StsTask(name="pairs", first=TEXTS[:5], second=TEXTS[5:10], scores=np.array([1.0, 0.5, 0.1, 0.9, 0.2]))
SAME = PairClassificationTask(
    name="same", first=TEXTS[:3], second=[TEXTS[0], TEXTS[4], TEXTS[5]], labels=np.array([True, False, False])
)
FIND = RetrievalTask(
    name="find", language="de", instruction="Find it", queries={"q": TEXTS[0], "r": TEXTS[1]},
    documents={"a": TEXTS[2], "b": TEXTS[1], "c": TEXTS[3]}, qrels={"q": {"a": 1, "b": 0}, "r": {"b": 2}},
)  # fmt: skip
TASKS: list[Task] = [PAIRS, SAME, FIND]


def test_results_are_those_of_scoring_and_are_found_again(counting: Counting, tmp_path: Path):
    reported: list[Measurement] = []
    done: list[int] = []
    first = measure(counting, TASKS, tmp_path, None, report=reported.append, advance=done.append)
    assert [measurement.result.task for measurement in reported] == ["pairs", "same", "find"]
    for measurement, task in zip(first, TASKS, strict=True):
        expected = score(counting.encoder, task)
        assert measurement.result.score == pytest.approx(expected.score) and not measurement.reused
        assert measurement.interval == interval(measurement.result.score, draws(measurement.result))
    texts = sum(len(texts) for task in TASKS for _, texts in task.texts())
    assert sum(done) == texts == 21
    counting.texts.clear()
    done.clear()
    again = measure(counting, TASKS, tmp_path, None, advance=done.append)
    assert counting.texts == [] and sum(done) == texts and all(measurement.reused for measurement in again)
    for old, new in zip(first, again, strict=True):
        assert_equal(new.result, old.result)
        assert (new.interval, new.seconds) == (old.interval, old.seconds)


def assert_equal(found: TaskResult, expected: TaskResult) -> None:
    """Bit for bit."""
    assert (
        found.per_example.dtype == expected.per_example.dtype
        and found.per_example.tobytes() == expected.per_example.tobytes()
    )
    assert vars(found) | {"per_example": None} == vars(expected) | {"per_example": None}


def test_an_outcome_survives_its_file_bit_for_bit():
    generator = np.random.default_rng(0)
    for items in (generator.random(50), generator.normal(size=(20, 2)), np.array([1 / 3, 5e-324, 0.1 + 0.2])):
        result = TaskResult("t", "sts", "de", "m", 1 / 3, {"m": 1 / 3, "n": -0.1}, "spearman", items)
        assert_equal(result_from_json(json.loads(json.dumps(result_to_json(result)))), result)


@pytest.mark.parametrize("change", ["data", "instructions", "weights", "file"])
def test_what_changed_is_computed_again(change: str, counting: Counting, tmp_path: Path):
    measure(counting, TASKS, tmp_path, None)
    tasks, instructions = list(TASKS), "own"
    if change == "data":
        tasks[2] = RetrievalTask(
            **{name: getattr(FIND, name) for name in ("name", "language", "instruction", "queries", "documents")},
            qrels={"q": {"a": 1, "b": 0}, "r": {"b": 1}},
        )
    elif change == "instructions":
        instructions = "task"
    elif change == "weights":
        with torch.no_grad():
            next(counting.encoder.backbone.decoder.parameters())[3, 0] += 1e-3
    else:
        (tmp_path / "tasks" / "find.json").write_text("[]")
        (tmp_path / "tasks" / "same.json").write_text("{")
    again = measure(counting, tasks, tmp_path, None, instructions)
    expected = {"data": [True, True, False], "file": [True, False, False]}.get(change, [False] * 3)
    assert [measurement.reused for measurement in again] == expected
    assert [r.reused for r in measure(counting, tasks, tmp_path, None, instructions)] == [True] * 3


def test_a_digest_is_of_everything_a_task_holds():
    assert digest(PAIRS) == digest(StsTask(**{n: getattr(PAIRS, n) for n in ("name", "first", "second", "scores")}))
    plain = {"name": "t", "first": ["a", "b"], "second": ["c", "d"]}
    tasks = [
        BitextTask(**plain),
        BitextTask(**plain | {"name": "u"}),
        BitextTask(**plain | {"first": ["a", "bc"], "second": ["", "d"]}),
        BitextTask(**plain, instruction="i"),
        BitextTask(**plain, language="fr"),
        StsTask(**plain, scores=np.array([0.0, 1.0])),
        StsTask(**plain, scores=np.array([0.0, 1.0 + 2**-52])),
        PairClassificationTask(**plain, labels=np.array([False, True])),
    ]
    assert len({digest(task) for task in tasks}) == len(tasks)


def test_an_interrupted_run_keeps_the_tasks_that_are_done(counting: Counting, tmp_path: Path):
    def stop(measurement: Measurement) -> None:
        if measurement.result.task == "same":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(counting, TASKS, tmp_path, None, report=stop)
    assert [measurement.reused for measurement in measure(counting, TASKS, tmp_path, None)] == [True, True, False]
    assert not list(tmp_path.glob("**/*.partial*"))


def test_tasks_share_vectors_and_the_cache_outlives_the_results(counting: Counting, tmp_path: Path):
    measure(counting, TASKS, tmp_path / "one", tmp_path / "cache")
    assert len(counting.texts) == len(set(counting.texts)) == 10  # queries are read as documents are
    counting.texts.clear()
    again = measure(counting, TASKS, tmp_path / "other", tmp_path / "cache")
    assert counting.texts == [] and not any(measurement.reused for measurement in again)


def _result(task: str, kind: str, value: float) -> Measurement:
    result = TaskResult(
        task, kind, "en", "main", value, {"main": value, "more": 0.25}, "mean", np.array([value, value])
    )
    return Measurement(result, interval(value, np.linspace(value - 0.1, value + 0.1, 1001)), 1.234, False)


def test_means_by_hand():
    results = [_result("a", "sts", 0.5), _result("b", "sts", 0.7), _result("c", "retrieval", 0.2)]
    found = means([measurement.result for measurement in results])
    assert found == pytest.approx({"sts": 0.6, "retrieval": 0.2, "over tasks": 1.4 / 3, "over types": 0.4})


def test_what_a_summary_says(tmp_path: Path):
    results = [_result("a", "sts", 0.5), _result("b", "retrieval", 0.25)]
    write_summary(tmp_path, results, {"model": "mine"})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["model"] == "mine"
    assert written["means"] == {"sts": 0.5, "retrieval": 0.25, "over tasks": 0.375, "over types": 0.375}
    assert written["tasks"][1] == {
        "task": "b", "type": "retrieval", "language": "en", "metric": "main", "score": 0.25,
        "interval": pytest.approx([0.155, 0.345]), "metrics": {"main": 0.25, "more": 0.25},
        "seconds": 1.23,
    }  # fmt: skip
    assert (tmp_path / "results.md").read_text().splitlines() == [
        "| task | type | metric | score | 95 % interval |",
        "| --- | --- | --- | ---: | ---: |",
        "| a | sts | main | 50.0 | 40.5 to 59.5 |",
        "| b | retrieval | main | 25.0 | 15.5 to 34.5 |",
        "| mean sts | | | 50.0 | |",
        "| mean retrieval | | | 25.0 | |",
        "| mean over tasks | | | 37.5 | |",
        "| mean over types | | | 37.5 | |",
    ]


def test_a_score_without_rows_has_no_interval(tmp_path: Path):
    result = TaskResult("m", "sts", "eng", "main", 0.5, {"main": 0.5}, "mean", np.array([0.5]))  # as mteb gives them
    write_summary(tmp_path, [Measurement(result, interval(0.5, np.full(10, 0.5)), 1.0, False)], {})
    assert json.loads((tmp_path / "results.json").read_text())["tasks"][0]["interval"] is None
    assert "| m | sts | main | 50.0 |  |" in (tmp_path / "results.md").read_text()
