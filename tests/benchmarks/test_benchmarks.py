"""The benchmark harness: its texts are what it says, its sums are right, and unequal results void a row."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import material
from benchmarks.__main__ import report_changes, table
from benchmarks.contests import Claim, Contest, Material, contests, vectors_and_logits
from benchmarks.measure import Row, ToolError, Worker, _same_gradients, row, run


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def few_texts(files: Material) -> str:
    return files.json("few", lambda: material.texts(12, seed=3))


def sample(cpu: float, peak: float = 0.0) -> dict[str, float]:
    return {"cpu": cpu, "wall": cpu, "peak": peak}


# ------------------------------------------------------------------------------------------------------------- material


def test_the_texts_have_the_published_distribution(files: Material) -> None:
    texts = material.texts(5000, seed=2)
    path = files.json("all", lambda: texts)
    facts = material.statistics(texts, files.token_counts(path, 512))
    assert 70 <= facts["median_tokens"] <= 80 and 225 <= facts["p90_tokens"] <= 260
    assert 1.22 <= facts["padding_by_characters"] <= 1.32  # 1.27 on software documentation
    assert facts["padding_by_tokens"] < 1.02


def test_texts_depend_on_the_seed_alone() -> None:
    assert material.texts(5, seed=1) == material.texts(5, seed=1) != material.texts(5, seed=2)


def test_padding_by_hand() -> None:
    """Batches of two: in order (1, 3) (1, 3) pad to 12 tokens of 8; sorted by tokens (3, 3) (1, 1) to none."""
    facts = material.statistics(["a", "aaa", "a", "aaa"], np.array([1, 3, 1, 3]), size=2)
    assert facts["padding_in_given_order"] == 1.5
    assert facts["padding_by_tokens"] == facts["padding_by_characters"] == 1.0


def test_operations_by_hand() -> None:
    """One layer of m64: q and o 64 x 64, k and v 64 x 32, three of 64 x 176; attention 4 x 64 per pair of tokens."""
    per_token = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176)
    assert material.flops("m64", np.array([3, 2])) == 2 * (per_token * 5 + 4 * 64 * (9 + 4))


# ----------------------------------------------------------------------------------------------------------------- rows


def test_rows_by_hand() -> None:
    samples = [[sample(1, 30), sample(2, 100)], [sample(2, 20), sample(6, 100)], [sample(1, 50), sample(1, 100)]]
    contest = Contest("peer", {}, {}, (), "none", facts={"bytes_apart": 10_000_000, "bytes": [10, 50]})
    speed = row(contest, Claim("speed", "speed", 1.5, 2.5), samples, True, "")
    assert (speed.ours, speed.peer, speed.ratio, speed.low, speed.high) == (1, 2, 2, 1, 3)
    assert speed.reaches(speed.gate) and not speed.reaches(speed.stretch)
    memory = row(contest, Claim("memory", "memory", 0.3, 0.2), samples, True, "")
    assert (memory.ratio, memory.low, memory.high) == (0.3, 0.2, 0.5) and memory.reaches(0.3)
    assert row(contest, Claim("cost", "cost", 2, 1), samples, True, "").ratio == 0.5
    large = [[sample(1, 30_000_000), sample(1, 5_000_000)]]
    assert row(contest, Claim("growth", "growth", 64, 16), large, True, "").ratio == 15
    assert row(contest, Claim("flat", "flat", 1, 1), [[sample(1, 70), sample(1, 100)]], True, "").ratio == 60 / 50


def test_wall_clock_has_a_ratio_of_its_own() -> None:
    samples = [[{"cpu": 1, "wall": 2, "peak": 0}, {"cpu": 3, "wall": 8, "peak": 0}]]
    contest = Contest("peer", {}, {}, (), "none")
    assert row(contest, Claim("speed", "speed", 1, 1), samples, True, "").wall == 4
    assert row(contest, Claim("cost", "cost", 1, 1), samples, True, "").wall == 0.25
    assert row(contest, Claim("memory", "memory", 1, 1), [[sample(1, 1), sample(1, 1)]], True, "").wall is None


def test_the_ceiling_is_the_best_rate_seen() -> None:
    """A ceiling run is one pass of 2048 rows through every linear layer; ours does the same work in twice the time."""
    work = 2048 * 2 * 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176)  # rows, layers, and two operations per weight
    contest = Contest("peer", {}, {}, (), "none", facts={"shape": "m64", "flops": work})
    samples = [[sample(2), sample(9), sample(1)], [sample(2), sample(9), sample(3)]]
    assert row(contest, Claim("share", "ceiling", 0.75, 0.87), samples, True, "").ratio == pytest.approx(0.5)


def test_vectors_and_logits_by_hand() -> None:
    """3 pairs of width 2: 6 vectors and 9 logits, three times over, 4 bytes each."""
    assert vectors_and_logits(3, 2) == 4 * 3 * (12 + 9)


def test_gradients_agree_by_the_norm_of_all_of_them() -> None:
    one = {"loss": np.array([2.0]), "gradient:a": np.array([3.0, 0.0]), "gradient:b": np.array([4.0])}
    near = {**one, "gradient:a": np.array([3.0, 5e-6])}  # 1e-6 of the norm 5
    assert _same_gradients(one, near, 1.1e-6)[0] and not _same_gradients(one, near, 0.9e-6)[0]
    assert not _same_gradients(one, {**one, "loss": np.array([2.001])}, 1e-6)[0]
    assert not _same_gradients(one, {name: one[name] for name in ("loss", "gradient:a")}, 1e-6)[0]


def test_a_void_row_reaches_nothing() -> None:
    samples = [[sample(1), sample(9)]]
    void = row(Contest("peer", {}, {}, (), "none"), Claim("speed", "speed", 1, 2), samples, False, "differs")
    assert not void.reaches(void.gate) and "void" in table([void]) and "✓" not in table([void])


def changed(ratio: float, better: str = "higher", equal: bool = True) -> dict:
    return {"rows": [{"name": "a row", "ratio": ratio, "better": better, "equal": equal}]}


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (changed(2.0), changed(1.81), 0),
        (changed(2.0), changed(1.79), 1),
        (changed(0.2, "lower"), changed(0.219, "lower"), 0),
        (changed(0.2, "lower"), changed(0.221, "lower"), 1),
        (changed(2.0), changed(3.0, equal=False), 1),
        (changed(2.0), {"rows": []}, 1),
    ],
)
def test_compare_fails_when_a_ratio_drops_by_more_than_a_tenth(old: dict, new: dict, code: int) -> None:
    assert report_changes(old, new) == code


# ---------------------------------------------------------------------------------------------------------------- tools


@pytest.mark.full
def test_a_contest_from_end_to_end(files: Material, few_texts: str) -> None:
    """Two processes open the same exported directory; equal vectors count, other texts void the row."""
    pytest.importorskip("sentence_transformers")
    job = {"task": "encode", "model": files.encoder("m64"), "texts": few_texts, "dtype": "float32"}
    claims = (Claim("speed", "speed", 0.0, 99.0), Claim("memory", "memory", 99.0, 0.0))
    speed, memory = run(Contest("sentence_transformers", job, job, claims, "vectors", 1e-5), {}, rounds=2)
    assert speed.equal and speed.ours > 0 and speed.peer > 0 and memory.unit == "MB"
    assert len(speed.samples["ours_cpu"]) == len(speed.samples["peer_peak"]) == 2
    assert json.loads(json.dumps(speed.to_json()))["gate_reached"]
    other = {**job, "max_tokens": 2}
    (void,) = run(Contest("sentence_transformers", job, other, claims[:1], "vectors", 1e-5), {}, rounds=1)
    assert not void.equal


def test_training_tools_agree(files: Material) -> None:
    """MNTP with logits at masked positions only, beside logits everywhere: the same loss and LoRA gradients."""
    job = {
        "task": "mntp", "model": files.lm("m64"), "adapter": files.adapter("m64"), "dtype": "float32",
        "blocks": files.arrays(
            "few-blocks", lambda: material.mntp_blocks(Path(files.lm("m64")), 2, 32, rate=0.2, seed=4)
        ),
        "micro_batch_tokens": 32, "logit_rows": 4,
    }  # fmt: skip
    (found,) = run(
        Contest("hugging_face", job, job, (Claim("MNTP", "speed", 0.0, 9.0),), "gradients", 1e-5), {}, rounds=1
    )
    assert found.equal, found.difference


def test_a_failing_tool_says_why(tmp_path: Path) -> None:
    worker = Worker("ours", sys.executable)
    try:
        with pytest.raises(ToolError, match="KeyError: 'no such task'"):
            worker.ask({"prepare": {"task": "no such task"}})
    finally:
        worker.close()


def test_every_gate_of_the_table_has_a_contest(tmp_path: Path) -> None:
    """Keys only: nothing is made until a contest is called."""
    full, quick = contests(Material(tmp_path / "nothing"), False), contests(Material(tmp_path / "nothing"), True)
    assert quick.keys() < full.keys() and not (tmp_path / "nothing").exists()
    for part in (
        "encode-256",
        "encode-512-bf16",
        "encode-shipped",
        "mntp-128k",
        "contrastive-64-lora",
        "simcse",
        "echo",
    ):
        assert part in quick


def test_a_row_is_better_one_way() -> None:
    speed = Row("a", "speed", "p", "s", 1, 1, 1, 1, 1, 1, 1, True, "")
    assert speed.better == "higher" and Row("a", "growth", "p", "MB", 1, 1, 1, 1, 1, 1, 1, True, "").better == "lower"
