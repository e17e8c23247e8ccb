"""The command for a GPU machine: its rehearsal on a CPU, and that nothing which fails takes the rest with it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.builders import sentences
from tools.gpu import attention, packing, pretraining, shapes, speed, supervisor
from tools.gpu.rows import FAILED, NOT_HERE, OK, Report, Row, attempt
from tools.gpu.settings import CLOSING, GRACE, MINUTES, STARTUP, Part, Settings, part_end, parts

ROOT = Path(__file__).parents[2]
SHAPES = "qwen3-0.6b,mistral-7b"  # a tiny model of Llama-3.2-1B's family runs through the other parts
NOT_ON_A_CPU = {
    "packed attention by flash", "packed attention by varlen",
    *(f"{shape}, encode, beside flash_attention_2" for shape in SHAPES.split(",")),
    *(f"{shape}, contrastive step, beside flash_attention_2" for shape in SHAPES.split(",")),
}  # fmt: skip


def settings(folder: Path, **fields) -> Settings:
    given = {"out": str(folder), "work": str(folder), "carried": "", "end": time.time() + 60, "device": "cpu"}
    return Settings(**(given | fields))


def environment(carried: Path) -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "LLM2ENC_GPU_CARRIED": str(carried)}


# ------------------------------------------------------------------------------------------------------------ rehearsal


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a whole rehearsal leaves."""
    carried, out = tmp_path_factory.mktemp("carried"), tmp_path_factory.mktemp("out")
    (carried / "text").mkdir()
    for number, name in enumerate([*packing.SOURCES, "valid"]):
        file = packing.VALIDATION if name == "valid" else f"{name}.train.txt.gz"
        rows = [" ".join(sentences(5, seed=100 * number + row)) for row in range(200)]
        (carried / "text" / file).write_bytes(gzip.compress("\n".join(rows).encode()))
    words = ["--rehearse", "--minutes", "30", "--shapes", SHAPES, "--piece-mib", "6", "-o", str(out)]
    command = [str(ROOT / "tools/gpu/run"), *words]
    found = subprocess.run(command, env=environment(carried), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    return out


def test_every_part_is_rehearsed_and_every_row_is_ok(rehearsal: Path) -> None:
    report = json.loads((rehearsal / "report.json").read_text())
    rows = report["rows"]
    assert {row["name"]: row["message"] for row in rows if row["status"] not in (OK, NOT_HERE)} == {}
    assert {row["name"] for row in rows if row["status"] == NOT_HERE} == NOT_ON_A_CPU
    everything = [part.name for part in parts(settings(rehearsal, shapes=tuple(SHAPES.split(","))))]
    assert list(dict.fromkeys(row["part"] for row in rows)) == everything == report["planned"]
    assert report["ended"] and report["machine"]["torch"] == torch.__version__


def test_both_pages_tell_the_same(rehearsal: Path) -> None:
    page = (rehearsal / "report.md").read_text()
    rows = json.loads((rehearsal / "report.json").read_text())["rows"]
    lines = [line for line in page.splitlines() if line.startswith("| ") and line.count(" | ") >= 5]
    cells = [line.split(" | ") for line in lines]
    assert [cell[1] for cell in cells if cell[2] in (OK, NOT_HERE)] == [row["name"] for row in rows]
    assert page.endswith("Parts without a row: none.\n")


def test_what_a_rehearsal_measures_reaches_no_goal(rehearsal: Path) -> None:
    rows = json.loads((rehearsal / "report.json").read_text())["rows"]
    assert all(row["reached"] is None for row in rows) and sum(bool(row["goal"]) for row in rows) >= 7


def test_the_trained_weights_come_back_in_pieces(rehearsal: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    pieces = sorted(rehearsal.glob("model.tar.*"))
    assert len(pieces) == 3 and all(piece.stat().st_size <= 6 * 2**20 for piece in pieces)
    (tmp_path / "model.tar").write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(tmp_path / "model.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.hidden_size == 320


def test_after_a_kill_in_the_middle_both_pages_are_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.gpu", "--rehearse", "--only", "attention", "-o", str(tmp_path)]
    process = subprocess.Popen(command, env=environment(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL)
    page = tmp_path / "report.json"
    while not page.exists() or len(json.loads(page.read_text())["rows"]) < 3:
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    report = json.loads(page.read_text())
    assert report["ended"] is None and 3 <= len(report["rows"]) < 22
    text = (tmp_path / "report.md").read_text()
    assert "not yet, or it was killed" in text and text.splitlines()[-1].startswith("Parts without a row:")
    deadline = time.time() + 20
    while _worker_of(tmp_path) and time.time() < deadline:
        time.sleep(0.1)
    assert not _worker_of(tmp_path)


def _worker_of(out: Path) -> list[str]:
    """Processes that still work for a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        found += [words] if "tools.gpu.worker" in words and str(out) in words else []
    return found


# ----------------------------------------------------------------------------------------------------------- supervisor

WORKER = """
import json, os, sys, time
def tell(**event): os.write(int(sys.argv[1]), (json.dumps(event) + "\\n").encode())
for name in sys.argv[2:]:
    tell(begin=name)
    tell(row={"name": "first of " + name, "part": name})
    if name == "hangs": time.sleep(60)
    if name == "dies": os._exit(9)
    if name == "raises": raise SystemExit("a last word")
    tell(end=name)
"""


def supervised(monkeypatch, folder: Path, names: list[str], worker: str = WORKER, **fields) -> list[Row]:
    monkeypatch.setattr(supervisor, "GRACE", 0.2)
    start = [sys.executable, "-c", worker]
    monkeypatch.setattr(supervisor, "command", lambda writer, settings, names: [*start, str(writer), *names])
    report = Report(folder, "now", [], names)
    supervisor.supervise([Part(name, "section", 1.0, "") for name in names], settings(folder, **fields), report)
    return report.rows


def test_a_part_that_hangs_or_dies_costs_its_own_rows_only(monkeypatch, tmp_path: Path) -> None:
    rows = supervised(monkeypatch, tmp_path, ["good", "hangs", "dies", "raises", "better"])
    assert [(row.name, row.status) for row in rows] == [
        ("first of good", OK),
        *[("first of hangs", OK), ("hangs", FAILED), ("first of dies", OK), ("dies", FAILED)],
        *[("first of raises", OK), ("raises", FAILED), ("first of better", OK)],
    ]
    said = {row.name: row.message for row in rows}
    assert said["hangs"].startswith("killed: it took longer than it may")
    assert "code 9" in said["dies"] and "a last word" in said["raises"]


def test_without_a_worker_every_part_is_skipped(monkeypatch, tmp_path: Path) -> None:
    rows = supervised(monkeypatch, tmp_path, ["one", "two"], worker="raise SystemExit('no torch here')")
    assert [row.status for row in rows] == [FAILED] * supervisor.ATTEMPTS + ["skipped"] * 2
    assert "no torch here" in rows[0].message


def test_the_run_ends_before_its_end(monkeypatch, tmp_path: Path) -> None:
    started = time.time()
    rows = supervised(monkeypatch, tmp_path, ["hangs", "late"], end=started + CLOSING + 1.0)
    assert time.time() < started + CLOSING + 1 and rows[-1].status == "skipped" and rows[-1].name == "late"


def test_a_term_signal_ends_the_run_with_its_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.gpu", "--rehearse", "--only", "ceiling", "-o", str(tmp_path)]
    process = subprocess.Popen(command, env=environment(tmp_path), cwd=ROOT)
    while not (tmp_path / "run.log").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143 and json.loads((tmp_path / "report.json").read_text())["ended"] is None
    assert not _worker_of(tmp_path)


# -------------------------------------------------------------------------------------------------------------- budgets


def test_the_budgets_leave_the_training_two_minutes(tmp_path: Path) -> None:
    seconds = {}
    for part in parts(settings(tmp_path)):
        seconds[part.section] = seconds.get(part.section, 0.0) + part.seconds
    assert seconds["1 Correctness"] == 120 and seconds["2 Speed and memory"] == pytest.approx(240)
    # Three starts: two kernels are each chosen for a whole process.
    assert 60 * MINUTES - CLOSING - 360 - STARTUP - GRACE >= 100


def test_a_part_ends_with_its_budget_or_with_the_run(tmp_path: Path) -> None:
    part, now = Part("one", "section", 30.0, ""), 1000.0
    assert part_end(part, settings(tmp_path, end=2000.0), now) == 1030
    assert part_end(part, settings(tmp_path, end=2000.0, minutes=3.0), now) == 1010
    assert part_end(part, settings(tmp_path, end=1020.0), now) == 1020 - CLOSING
    assert part_end(Part("all", "section", float("inf"), ""), settings(tmp_path, end=1500.0), now) == 1500 - CLOSING


def test_settings_survive_the_way_to_the_worker(tmp_path: Path) -> None:
    given = settings(tmp_path, shapes=("mistral-7b",), minutes=4.5)
    assert Settings.from_json(given.to_json()) == given


def test_the_training_takes_most_of_what_is_left() -> None:
    assert pretraining.steps_that_fit(100.0, 0.5) == 170  # 0.85 x 100 / 0.5
    assert pretraining.steps_that_fit(-5.0, 0.5) == 1


# --------------------------------------------------------------------------------------------------------------- bounds


def test_the_bound_is_twice_the_error_of_eager_in_the_same_type() -> None:
    exact, plain = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert attention.judged(torch.tensor([3.0, 4.1]), plain, exact) == (pytest.approx(0.02), pytest.approx(0.2))
    assert attention.relative(torch.tensor([3.0, float("nan")]), exact) == float("inf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_window_off_by_one_is_far_above_the_bound(dtype: torch.dtype) -> None:
    context = _context()
    model, tokens = attention._model("mistral, GQA, window", dtype, context), attention._tokens(context)
    copies = [attention._model("mistral, GQA, window", dtype, context) for _ in range(2)]
    exact, plain = attention._eager(model.double(), tokens, False), attention._eager(copies[0], tokens, False)
    copies[1].config.sliding_window = 4
    for layer in copies[1].model.layers:
        layer.self_attn.sliding_window = 4
    wrong = attention._packed(copies[1], tokens, False)
    error, bound = attention.judged(wrong.states, plain.states, exact.states)
    assert error > 3 * bound


def _context():
    from tools.gpu.settings import Context

    return Context(settings(Path(), rehearse=True), time.time() + 60)


def test_flops_are_those_of_the_linear_layers_and_the_scores() -> None:
    from transformers import LlamaConfig, LlamaModel

    values = shapes.shape("llama-3.2-1b", rehearse=True)
    config = LlamaConfig(**{key: value for key, value in values.items() if key != "model_type"})
    linear = [m for m in LlamaModel(config).modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(module.weight.numel() for module in linear)
    # Two texts of 3 and 5 tokens; 2 layers of 4 heads of 16, each score and each sum over values 2 x 16.
    assert shapes.encode_flops(values, [3, 5]) == 2 * weights * 8 + 2 * 4 * (2 + 2) * 16 * (9 + 25)


def test_the_smallest_cosine_is_of_rows() -> None:
    one = np.array([[1.0, 0.0], [3.0, 4.0]])
    assert speed.smallest_cosine(one, np.array([[2.0, 0.0], [4.0, 3.0]])) == pytest.approx(24 / 25)


def test_texts_have_the_lengths_of_real_ones() -> None:
    lengths = [len(text.split()) for text in shapes.texts(4000, 512)]
    assert 65 <= np.median(lengths) <= 75 and max(lengths) == 512 and 190 <= np.quantile(lengths, 0.9) <= 250
    assert shapes.texts(5, 40) == shapes.texts(5, 40) != shapes.texts(5, 40, seed=1)


# --------------------------------------------------------------------------------------------------------------- report


def test_a_failure_is_a_row_with_its_place() -> None:
    row = attempt("a row", lambda: Row("a row", values={"x": 1 // 0}))
    assert row.status == FAILED and "ZeroDivisionError" in row.message and "test_gpu.py" in row.message


def test_a_page_is_replaced_as_a_whole(tmp_path: Path) -> None:
    report = Report(tmp_path, "now", ["-o", "x"], ["a"])
    report.add(Row("one | two", values={"ratio": 1.23456}, goal="1 x", reached=False, part="a", section="S"))
    assert "| one \\| two | 1 x | NO | ratio 1.235 |" in (tmp_path / "report.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md"}


# -------------------------------------------------------------------------------------------------------------- packing


def test_what_is_too_large_does_not_travel() -> None:
    mib = packing.MIB
    assert packing.text_room(64 * mib, 30 * mib, None) == 32 * mib
    assert packing.text_room(64 * mib, 30 * mib, 5.0) == 5 * mib
    with pytest.raises(packing.TooLarge, match=r"take 63\.0 of 64\.0 MiB"):
        packing.text_room(64 * mib, 63 * mib, None)
    packing.check(64 * mib, 64 * mib)
    with pytest.raises(packing.TooLarge, match=r"64\.5 MiB together"):
        packing.check(64 * mib + mib // 2, 64 * mib)


def test_text_is_cut_to_its_room_between_lines(tmp_path: Path) -> None:
    source, rows = tmp_path / "data", {}
    source.mkdir()
    for number, name in enumerate(packing.SOURCES):
        rows[name] = [f"{row} {text}" for row, text in enumerate(sentences(400 * (number + 1), seed=number))]
        (source / f"{name}.train.txt.gz").write_bytes(gzip.compress(("\n".join(rows[name]) + "\n").encode()))
    (source / packing.VALIDATION).write_bytes(gzip.compress(b"held out\n"))
    target, room = tmp_path / "text", packing.size(source) // 2
    target.mkdir()
    packing.write_text(source, target, room)
    assert 0.85 * room <= packing.size(target) <= room
    for name, lines in rows.items():
        kept = gzip.decompress((target / f"{name}.train.txt.gz").read_bytes()).decode().splitlines()
        assert kept == lines[: len(kept)] and kept
    assert (target / packing.VALIDATION).read_bytes() == (source / packing.VALIDATION).read_bytes()


def test_the_code_that_travels_is_what_git_knows() -> None:
    size = packing.size_of_code(ROOT)
    assert (ROOT / "llm2enc/pocket/model.safetensors").stat().st_size < size < packing.LIMIT * packing.MIB


def test_pieces_join_to_the_whole(tmp_path: Path) -> None:
    whole = tmp_path / "model.tar"
    whole.write_bytes(os.urandom(2500))
    pieces = pretraining.cut(whole, tmp_path, 1000)
    assert [piece.name for piece in pieces] == ["model.tar.00", "model.tar.01", "model.tar.02"]
    assert b"".join(piece.read_bytes() for piece in pieces) == whole.read_bytes()
