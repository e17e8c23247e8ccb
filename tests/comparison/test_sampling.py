"""Samples: the same rows for the same seed, nested, stratified; plans that keep to their time and say what it costs."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llm2enc.comparison import compare, planning, sampling
from llm2enc.comparison.planning import Clock, Load, widening
from llm2enc.comparison.sampling import MIN_QUERIES, MIN_ROWS, Sample, rows_of, sampled, shares, size_of, texts_of
from llm2enc.comparison.storage import to_json
from llm2enc.evaluation import (
    BitextTask,
    ClassificationTask,
    ClusteringTask,
    PairClassificationTask,
    RerankingTask,
    RetrievalTask,
    StsTask,
    SummarizationTask,
    Task,
    cost,
    draws,
    interval,
    score,
    suite,
)

COUNT = 1000
WORDS = [f"text number {number}" for number in range(COUNT)]
OTHERS = [f"other number {number}" for number in range(COUNT)]
LABELS = ["rare" if number == 3 else "some" if number % 5 == 0 else "most" for number in range(COUNT)]
QUERIES = {f"q{number}": WORDS[number] for number in range(400)}
DOCUMENTS = {f"d{number}": OTHERS[number] for number in range(COUNT)}
JUDGED = {f"q{n}": {f"d{n}": 1, f"d{(7 * n) % COUNT}": 0} for n in range(400)}
TASKS: dict[str, Task] = {
    "sts": StsTask(name="sts", first=WORDS, second=OTHERS, scores=np.arange(COUNT) % 97 / 10),
    "pairs": PairClassificationTask(name="p", first=WORDS, second=OTHERS, labels=np.arange(COUNT) % 10 == 0),
    "bitext": BitextTask(name="b", first=WORDS, second=OTHERS),
    "classification": ClassificationTask(
        name="c", train_texts=WORDS, train_labels=LABELS, test_texts=OTHERS[:600], test_labels=LABELS[:600]
    ),
    "clustering": ClusteringTask(name="k", members=WORDS, labels=LABELS),
    "reranking": RerankingTask(
        name="r", queries=WORDS, positives=[[text] for text in OTHERS], negatives=[[text, "no"] for text in WORDS]
    ),
    "retrieval": RetrievalTask(name="s", queries=QUERIES, documents=DOCUMENTS, qrels=JUDGED),
    "summarization": SummarizationTask(
        name="m", human=[[text] for text in WORDS], machine=[[a, b] for a, b in zip(WORDS, OTHERS, strict=True)],
        relevance=[[1.0, 2.0]] * COUNT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_the_same_each_time_smaller_and_inside_of_a_larger_one(name: str) -> None:
    task = TASKS[name]
    small, again, large = (sampled(task, share) for share in (0.1, 0.1, 0.4))
    assert suite.digest(small) == suite.digest(again) != suite.digest(sampled(task, 0.1, seed=1))
    assert texts_of(small) < texts_of(large) < texts_of(task)
    assert sampled(task, 1.0) is task
    wanted = {"classification": 0.1 * 600, "retrieval": np.sqrt(0.1) * 400}.get(name, 0.1 * COUNT)
    assert rows_of(small) == round(wanted)
    assert rows_of(sampled(task, 0.0)) == (MIN_QUERIES if name == "retrieval" else MIN_ROWS)


def test_every_row_keeps_what_belongs_to_it() -> None:
    for name, parts in (
        ("sts", ("first", "second")),
        ("reranking", ("queries", "positives")),
        ("bitext", ("first", "second")),
    ):
        kept = sampled(TASKS[name], 0.2)
        for one, other in zip(*(getattr(kept, part) for part in parts), strict=True):
            assert str(other if isinstance(other, str) else other[0]).split()[-1] == one.split()[-1]
    kept = sampled(TASKS["sts"], 0.2)
    assert [int(text.split()[-1]) % 97 / 10 for text in kept.first] == kept.scores.tolist()


def test_strata_keep_their_shares_and_no_class_is_lost() -> None:
    kept = sampled(TASKS["classification"], 0.1)
    counts = Counter(kept.train_labels)
    assert counts["rare"] == 1 and abs(counts["some"] - 20) <= 1 and abs(counts["most"] - 80) <= 1
    assert set(kept.test_labels) == set(LABELS)
    assert sampled(TASKS["pairs"], 0.1).labels.sum() == 10
    tenths = np.sort(sampled(TASKS["sts"], 0.1).scores)
    whole = np.sort(TASKS["sts"].scores)
    assert np.abs(tenths - whole[5::10]).max() <= 1.0, "every tenth of the scale has its share"
    assert Counter(sampled(TASKS["clustering"], 0.05).labels)["rare"] == 1


@pytest.mark.parametrize("count", [5, 17, 200])
def test_every_beginning_of_the_order_is_stratified(count: int) -> None:
    strata = [number % 7 == 0 for number in range(210)]
    order = sampling.spread(strata, np.random.default_rng(0))
    assert sorted(order) == list(range(210))
    assert abs(sum(strata[row] for row in order[:count]) - count / 7) <= 1


def test_retrieval_keeps_all_judged_documents_of_its_queries_and_distractors() -> None:
    kept = sampled(TASKS["retrieval"], 0.25)
    assert len(kept.queries) == 200 and set(kept.qrels) == set(kept.queries)
    for query in kept.queries:
        assert kept.qrels[query] == JUDGED[query] and set(JUDGED[query]) <= set(kept.documents)
    relevant = {document for query in kept.queries for document in JUDGED[query]}
    assert len(kept.documents) == max(250, len(relevant))
    few = sampled(TASKS["retrieval"], 0.5)
    assert len(few.documents) >= 500 and set(few.documents) > {d for q in few.queries for d in JUDGED[q]}


def test_shares_fill_a_budget_and_small_tasks_stay_whole() -> None:
    small = BitextTask(name="small", first=WORDS[:30], second=OTHERS[:30])
    tasks = [TASKS["sts"], small, TASKS["bitext"]]
    found = shares(tasks, 20_000, 1000)
    assert found[1] == 1.0 and 0 < found[0] < 1 and 0 < found[2] < 1
    sizes = [size_of(sampled(*one), 1000) for one in zip(tasks, found, strict=True)]
    assert 19_800 <= sum(sizes) <= 20_000 and abs(sizes[0] - sizes[2]) < 100
    assert shares(tasks, 1e9, 1000) == [1.0, 1.0, 1.0]
    assert shares([TASKS["sts"]], 0.0, 1000) == [0.0]
    assert size_of(small, 5) == 60 * 5


def test_a_plan_keeps_to_its_time_and_says_what_all_rows_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [TASKS["sts"], TASKS["retrieval"]]
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(planning.time, "perf_counter", lambda: next(clock))  # scoring takes half a second
    loads = [Load([1000.0, 500.0], 2, 6, 4)]  # 6 ms a character, and 3 s of scoring
    plan = planning.make(tasks, loads, 1000, 100, 0, 1.0)
    kept = [sampled(*one) for one in zip(tasks, plan.shares, strict=True)]
    size = sum(size_of(task, 1000) for task in kept)
    assert plan.seconds == pytest.approx((size + 100) * 0.006 + 3) and 50 < plan.seconds <= 60
    whole = sum(size_of(task, 1000) for task in tasks)
    assert plan.whole == pytest.approx((whole + 100) * 0.006 + 3 * whole / size)
    samples, said = planning.describe(plan, tasks, kept, 1.0)
    assert [one.rows for one in samples] == [rows_of(task) for task in kept] and samples[0].of == COUNT
    assert [one.changes_the_task for one in samples] == [False, True]
    assert f"of 1,400 rows and queries, sampled; all of them would take about {cost.duration(plan.whole)}" in said
    every = planning.make(tasks, loads, 1000, 100, 0, None)
    assert every.shares == [1.0, 1.0] and every.seconds == every.whole == pytest.approx((whole + 100) * 0.006 + 3)
    assert "all 1,400 rows and queries" in planning.describe(every, tasks, tasks, None)[1]
    twice = planning.make(tasks, loads, 1000, 100, 10**9, None)
    assert twice.seconds == pytest.approx((2 * whole + 100) * 0.006 + 3), "no more than the tasks have"
    tiny = planning.make(tasks, loads, 1000, 100, 0, 0.01)
    smallest = [sampled(task, 0.0) for task in tasks]
    assert tiny.shares == [0.0, 0.0] and "the smallest sample" in planning.describe(tiny, tasks, smallest, 0.01)[1]


def test_the_interval_widens_by_the_root_of_the_rows() -> None:
    quarter = Sample("a", 0.25, 100, 400, 1, 1, False)
    whole = Sample("b", 1.0, 100, 100, 1, 1, False)
    assert widening([0.1], [quarter]) == pytest.approx(2)
    assert widening([0.1], [whole]) == 1 and widening([0.0], [quarter]) == 1
    # sqrt(0.1^2 + 0.1^2) beside sqrt(0.05^2 + 0.1^2)
    assert widening([0.1, 0.1], [quarter, whole]) == pytest.approx(np.sqrt(0.02 / 0.0125))


def test_the_widening_that_is_told_is_that_of_intervals_of_all_rows() -> None:
    """A real bootstrap on the sample and on the whole task."""

    class Noisy:
        def encode(self, texts, *, instruction=None, prompt_name=None):
            angles = [(int(text.split()[-1]) % 97 / 97 + hash(text) % 89 / 89) * (text[0] == "o") for text in texts]
            return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    task = StsTask(name="s", first=WORDS, second=OTHERS, scores=-(np.arange(COUNT) % 97 / 97))
    half = []
    for one in (task, sampled(task, 0.2)):
        outcome = score(Noisy(), one)
        found = interval(outcome.score, draws(outcome))
        half.append((found.high - found.low) / 2)
    told = widening([half[1]], [Sample("s", 0.2, 200, 1000, 1, 1, False)])
    assert half[1] / told == pytest.approx(half[0], rel=0.25)


def test_the_clock_ends_with_its_passes_and_counts_nothing_twice() -> None:
    said: list[float] = []
    clock = Clock({"a": 10, "b": 30}, 20.0, 0.5, 40.0, said.append)
    clock("a", 6)
    clock("a", 6)
    clock("b", 30)
    assert said == [pytest.approx(23 / 40), pytest.approx(25 / 40), 1.0]


def test_a_comparison_on_a_sample_says_so_and_goes_on_with_the_same_rows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"q": one, "a": other} for one, other in zip(WORDS[:200], OTHERS[:200], strict=True)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    speed = iter([2000.0] * 2 + [1e9] * 10)  # characters per second: the second run believes to be on a faster machine
    monkeypatch.setattr("llm2enc.evaluation.cost.measure_speed", lambda *_: next(speed))
    monkeypatch.setattr(planning, "_scoring", lambda *_: 0.0)
    asked = {"variants": ["causal-mean", "echo-mean"], "layers": False, "max_text_tokens": 64, "cache": tmp_path / "v"}
    told: list[str] = []
    shown: list[float] = []
    given = {**asked, "tell": told.append, "advance": lambda name, share: shown.append(share)}
    found = compare([str(model)], [str(path)], tmp_path / "out", minutes=0.1, **given)
    (sample,) = found.sample
    assert MIN_QUERIES <= sample.rows < sample.of == 200 and sample.texts < sample.of_texts and sample.changes_the_task
    assert {len(one.outcomes[0].per_example) for one in [*found.systems, found.baseline]} == {sample.rows}
    assert told == [found.facts["time"].rpartition("; it took")[0]] and f"{sample.rows} of 200 rows" in told[0]
    assert shown == sorted(shown) and shown[-1] == pytest.approx(1.0)
    assert any("with each other only" in note for note in found.notes)
    half = (found.systems[0].mean.high - found.systems[0].mean.low) / 2
    (price,) = [note for note in found.notes if note.startswith("What the sample costs")]
    assert f"±{half:.3f}" in price and f"{np.sqrt(200 / sample.rows):.1f} times as wide" in price
    assert to_json(found)["sample"][0]["rows"] == sample.rows and "--minutes 0.1" in found.facts["command"]
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.json")}
    again = compare([str(model)], [str(path)], tmp_path / "out", minutes=0.1, **given)
    assert again.sample == found.sample and len(kept) == 3
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.json")} == kept
    every = compare([str(model)], [str(path)], tmp_path / "out", **asked)
    assert every.sample[0].rows == 200 and not any("ampled" in note for note in every.notes)
