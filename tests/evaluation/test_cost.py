"""What a tier costs: by hand, from mteb's statistics, and with an encoder whose clock is known."""

import json

import numpy as np
import pytest

from llm2enc.cli import evaluate as evaluate_command
from llm2enc.evaluation import RetrievalTask, StsTask
from llm2enc.evaluation.cost import (
    Tier,
    characters_per_text,
    duration,
    estimates,
    evaluation_tiers,
    local_tier,
    measure_speed,
    mteb_size,
    mteb_tier,
)
from tests.support.builders import make_encoder, sentences


class Timed:
    """An encoder on a clock of its own: `start` seconds per call, one more per `rate` characters."""

    def __init__(self, rate: float, start: float = 0.0, limit: int = 10**9):
        self.rate, self.start, self.limit, self.now = rate, start, limit, 0.0
        self.chunks: list[list[str]] = []

    def clock(self) -> float:
        return self.now

    def encode(self, texts, **_):
        self.chunks.append(list(texts))
        first = 5.0 if len(self.chunks) == 1 else 0.0  # what loads and compiles on the first call
        self.now += first + self.start + sum(min(len(text), self.limit) for text in texts) / self.rate
        return np.zeros((len(texts), 2))


def pairs(first: list[str], second: list[str]) -> StsTask:
    return StsTask(name="pairs", first=first, second=second, scores=np.arange(len(first), dtype=float))


# ---------------------------------------------------------------------------------------------------------------- sizes


def test_local_texts_are_counted_once_per_side_and_cut() -> None:
    search = RetrievalTask(
        name="search", queries={"q": "abc"}, documents={"1": "abc", "2": "x" * 50}, qrels={"q": {"1": 1}}
    )
    # Documents: abc, de, fghi, and 10 of the 50; query: abc.
    tier = local_tier("local", "these", [search, pairs(["abc", "de"], ["de", "fghi"])], limit=10)
    assert tier == Tier("local", "these", tasks=2, texts=5, characters=3 + 2 + 4 + 10 + 3)
    assert local_tier("local", "these", [search], limit=100).characters == 3 + 50 + 3


def size(name: str, limit: int = 10**9, **filters) -> tuple[int, int] | None:
    mteb = pytest.importorskip("mteb")
    return mteb_size(mteb.get_task(name, **filters), limit)


def test_sizes_of_mteb_tasks_by_hand() -> None:
    pytest.importorskip("mteb")
    # 92 and 97 distinct sentences of 154.67 and 158.46 characters on average.
    assert size("BIOSSES") == (92 + 97, round(92 * 154.67) + round(97 * 158.46))
    assert size("BIOSSES", limit=100) == (189, 18900)
    # 3,610 documents and 50 queries.
    assert size("NanoArguAnaRetrieval", limit=1000) == (3660, 3_610_000 + 50_000)
    # 1,100 human and 1,548 machine summaries; the 100 documents are not encoded.
    assert size("SummEvalSummarization.v2", limit=10) == (2648, 26480)
    # 3,080 test texts, and of 77 labels 8 training texts in each of ten draws.
    assert size("Banking77Classification", limit=1) == (3080 + 77 * 8 * 10, 9240)
    # 4 % of 53,787 papers.
    assert size("BiorxivClusteringP2P.v2", limit=1) == (2151, 2151)
    # English alone: 4,384 test texts; 880 training texts of 11 labels.
    assert size("MTOPDomainClassification", limit=1, hf_subsets=["en"], eval_splits=["test"]) == (5264, 5264)


def test_an_aggregate_is_the_sum_of_its_tasks() -> None:
    mteb = pytest.importorskip("mteb")
    parts = [mteb_size(part, 100) for part in mteb.get_task("CQADupstackRetrieval").tasks]
    assert size("CQADupstackRetrieval", limit=100) == tuple(map(sum, zip(*parts, strict=True)))


def test_both_benchmarks_can_be_counted_whole_and_a_lower_limit_leaves_less() -> None:
    pytest.importorskip("mteb")
    nano, full = mteb_tier("nanobeir", "NanoBEIR", 2000), mteb_tier("mteb", "MTEB(eng, v2)", 2000)
    assert (nano.tasks, full.tasks) == (13, 41) and not nano.note and not full.note
    assert nano.texts == 56772 and 10 * nano.characters < full.characters
    assert mteb_tier("mteb", "MTEB(eng, v2)", 500).characters < full.characters


def test_a_task_without_statistics_counts_as_the_mean_of_the_others(monkeypatch) -> None:
    pytest.importorskip("mteb")
    from llm2enc.evaluation import cost as module

    sizes = iter([(10, 1000), None, (30, 2000)])
    monkeypatch.setattr(module, "mteb_tasks", lambda names: ["a", "b", "c"])
    monkeypatch.setattr(module, "mteb_size", lambda task, limit: next(sizes))
    tier = mteb_tier("mteb", "some", 100)
    assert (tier.tasks, tier.texts, tier.characters) == (3, 60, 4500)
    assert tier.note.startswith("1 of 3 tasks have no statistics")


def test_without_mteb_the_other_rungs_are_counted(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    tiers = evaluation_tiers([pairs(["a"], ["b"])], [], 10)
    assert [(tier.name, tier.texts) for tier in tiers] == [("smoke", 2), ("nanobeir", None), ("mteb", None)]
    assert all("llm2enc[mteb]" in tier.note for tier in tiers[1:])
    assert [row["seconds"] for row in estimates(tiers, 2.0)] == [1.0, None, None]


# ---------------------------------------------------------------------------------------------------------------- speed


def test_the_speed_of_a_steady_encoder_is_found_within_the_time_and_without_the_first_call() -> None:
    encoder = Timed(rate=1000)
    texts = [f"{'x' * (row % 90)}{row:05d}" for row in range(5000)]
    assert measure_speed(encoder, texts, 10**9, clock=encoder.clock) == pytest.approx(1000)
    assert encoder.now <= 5.0 + 1.0 + 2.0  # the first call, its texts, and the two seconds


def test_chunks_double_and_no_text_comes_twice() -> None:
    encoder = Timed(rate=1e6)
    measure_speed(encoder, [f"{row:04d}" for row in range(100)] * 3, 100, clock=encoder.clock)
    assert [len(chunk) for chunk in encoder.chunks] == [8, 8, 16, 68]
    assert len({text for chunk in encoder.chunks for text in chunk}) == 100


def test_the_largest_chunk_counts_where_calls_cost_time_of_their_own() -> None:
    encoder = Timed(rate=1e5, start=0.01)
    speed = measure_speed(encoder, [f"{row:0100d}" for row in range(5000)], 100, clock=encoder.clock)
    assert 0.9e5 < speed < 1e5


def test_only_what_is_read_counts() -> None:
    encoder = Timed(rate=1000, limit=10)
    texts = [f"{row:0100d}" for row in range(500)]
    assert measure_speed(encoder, texts, 10, clock=encoder.clock) == pytest.approx(1000)


def test_speed_needs_two_texts() -> None:
    with pytest.raises(ValueError, match="at least 2 different texts; got 1"):
        measure_speed(Timed(1), ["a", "a", ""], 10)
    encoder = Timed(rate=10)
    assert measure_speed(encoder, ["ab", "cd"], 10, clock=encoder.clock) == pytest.approx(10)


def test_a_real_encoder_has_a_speed_and_cuts_texts_where_it_says() -> None:
    encoder, texts = make_encoder(), [text * 20 for text in sentences(40)]
    limit = characters_per_text(encoder, texts, max_tokens=64)
    whole, cut = encoder.encode(texts), encoder.encode([text[: 2 * limit] for text in texts])
    np.testing.assert_allclose(whole, cut, atol=1e-5)  # nothing after it is read
    shorter = encoder.encode([text[: limit // 2] for text in texts])
    assert (np.abs(whole - shorter).max(axis=1) > 1e-3).all()
    assert measure_speed(encoder, texts, limit, seconds=0.1) > 0


# ------------------------------------------------------------------------------------------------------------ estimates


def test_estimates_are_characters_over_speed_and_plain(capsys) -> None:
    tiers = [
        Tier("smoke", "docstrings", 2, 1000, 250_000),
        Tier("mteb", "MTEB [eng]", 41, 1_200_000, 900_000_000, "1 of 41"),
    ]
    rows = estimates(tiers, speed=5000)
    assert [row["seconds"] for row in rows] == [50.0, 180_000.0]
    assert json.loads(json.dumps(rows)) == rows and rows[1]["note"] == "1 of 41"
    evaluate_command._print_plan(rows)
    shown = capsys.readouterr().out
    for text in ("smoke", "250.0 k", "50 s", "MTEB [eng]", "1.2 M", "2 days", "mteb: 1 of 41"):
        assert text in shown


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "?"),
        (0.2, "under 1 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (172_799, "48 h"),
        (2e5, "2 days"),
    ],
)
def test_durations_are_said_in_their_unit(seconds, said) -> None:
    assert duration(seconds) == said
