"""The loop: its schedule, its memory of where it was, its signals, its log."""

import json
import os
import re
import signal
import struct
import time
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm2enc.encoding import Encoder
from llm2enc.errors import Interrupted, NotFinite
from llm2enc.recipe import (
    ClmStage,
    ContrastiveStage,
    LoraSpec,
    LossSpec,
    MntpStage,
    PairScoresLossSpec,
    PairScoresStage,
    SimcseLossSpec,
    SimcseStage,
    Stage,
    Tracking,
)
from llm2enc.recipe.pair_scores import CosentSpec, SoftmaxSpec
from llm2enc.text import InputFormat
from llm2enc.training import OBJECTIVES, checkpoint, origin, train, trainer
from llm2enc.training.logging import stage_summary
from llm2enc.training.prepare import make_optimizer
from llm2enc.training.trainer import learning_rate
from tests.support.builders import INPUT, assert_same, make_encoder, make_tokenizer, pairs_file, scores_file, texts_file

SCORES = PairScoresLossSpec(pair_scores=(CosentSpec(kind="cosent", scale=5.0), SoftmaxSpec(kind="softmax")))
STAGES = {
    "clm": (ClmStage, texts_file, {"block_tokens": 16, "lr": 1e-2}),
    "mntp": (MntpStage, texts_file, {"block_tokens": 16, "mask_rate": 0.3, "mask_policy": "bert", "lr": 1e-2}),
    "simcse": (SimcseStage, texts_file, {"attention_dropout": 0.2, "loss": SimcseLossSpec(temperature=0.2)}),
    "contrastive": (ContrastiveStage, pairs_file, {"loss": LossSpec(temperature=0.2), "attention_dropout": 0.1}),
    "pair_scores": (PairScoresStage, scores_file, {"loss": SCORES, "lr": 1e-2}),
}


def make_stage(objective: str, folder: Path, **fields) -> Stage:
    kind, data, own = STAGES[objective]
    folder.mkdir(exist_ok=True)
    common = {
        "steps": 6,
        "batch_size": 8,
        "lr": 3e-3,
        "precision": "float32",
        "log_every": 1,
        "micro_batch_tokens": 100,
    }
    if fields.get("trainable") != "full":
        common["lora"] = LoraSpec(r=4, alpha=8, dropout=0.1)
    return kind(objective=objective, data=(data(folder),), **(common | own | fields))


def weights(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}


def log(folder: Path) -> list[dict]:
    """What was logged, without what depends on the clock and the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "peak_gib")} for line in lines]


# ------------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("fields", "trace"),
    [
        # LLM2Vec, supervised: 3 epochs of 1.5 M pairs at 512 are 8789 steps; 300 of warmup, stopped after 1000.
        (
            {"lr": 2e-4, "warmup_steps": 300, "schedule_steps": 8789},
            {0: 0.0, 1: 2e-4 / 300, 300: 2e-4, 500: 2e-4 * 8289 / 8489, 1000: 2e-4 * 7789 / 8489},
        ),
        # SimCSE: 3 epochs of 1 M at 128, no warmup.
        (
            {"lr": 3e-5, "schedule_steps": 23438},
            {0: 3e-5, 1: 3e-5 * 23437 / 23438, 500: 3e-5 * 22938 / 23438, 1000: 3e-5 * 22438 / 23438},
        ),
        # MNTP: about 21 600 steps for three epochs.
        ({"lr": 5e-5, "schedule_steps": 21600}, {0: 5e-5, 1000: 5e-5 * 20600 / 21600}),
        ({"lr": 1.0, "warmup_steps": 100}, {50: 0.5, 100: 1.0, 550: 0.5, 1000: 0.0}),
        ({"lr": 1.0, "schedule": "cosine"}, {0: 1.0, 250: 0.5 + 0.5**1.5, 500: 0.5, 1000: 0.0}),
        ({"lr": 1.0, "schedule": "constant", "warmup_steps": 4}, {1: 0.25, 4: 1.0, 1000: 1.0}),
    ],
)
def test_learning_rate_by_hand(fields: dict, trace: dict[int, float], tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path, **({"steps": 1000} | fields))
    assert {step: learning_rate(step, stage) for step in trace} == pytest.approx(trace, rel=1e-12, abs=1e-16)


def test_the_last_rate_of_the_published_runs(tmp_path: Path) -> None:
    """The fact sheet's rounded shares: the schedule does not decay to zero at step 1000."""
    for steps, warmup, share in ((21600, 0, 0.954), (23438, 0, 0.957), (8789, 300, 0.918)):
        fields = {"steps": 1000, "schedule_steps": steps, "warmup_steps": warmup, "lr": 1.0}
        assert learning_rate(1000, make_stage("clm", tmp_path, **fields)) == pytest.approx(share, abs=6e-4)


# ----------------------------------------------------------------------------------------------------------- optimizer


@pytest.mark.parametrize("on", ["matrices", "all"])
def test_norms_and_biases_do_not_decay_unless_the_stage_says_so(on: str, tmp_path: Path) -> None:
    """Without a gradient AdamW's step is p (1 - lr x decay) where there is decay, and nothing elsewhere."""
    encoder = make_encoder(attention_bias=True)
    stage = make_stage("clm", tmp_path, trainable="full", lr=0.1, weight_decay=0.5, weight_decay_on=on)
    encoder.backbone.train_everything(head=True)
    before = weights(encoder)
    optimizer = make_optimizer(stage, encoder.trained())
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = weights(encoder)
    still = {name for name in before if torch.equal(before[name], after[name]) and before[name].any()}
    assert_same(
        {n: after[n] for n in before if n not in still}, {n: before[n] * 0.95 for n in before if n not in still}, 1e-6
    )
    assert still == ({name for name in before if "norm" in name} if on == "matrices" else set())


def test_all_of_an_adapter_decays_alike(tmp_path: Path) -> None:
    encoder, stage = make_encoder(), make_stage("clm", tmp_path, weight_decay=0.5)
    encoder.backbone.add_lora(stage.lora, seed=0)
    (group,) = make_optimizer(stage, encoder.trained()).param_groups
    assert len(group["params"]) == 28 and group["weight_decay"] == 0.5


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("objective", STAGES)
def test_every_objective_learns(objective: str, trainable: str, tmp_path: Path, monkeypatch) -> None:
    encoder = make_encoder()
    stage = make_stage(objective, tmp_path, trainable=trainable, steps=15)
    before = weights(encoder)
    adapters: list[dict[str, torch.Tensor]] = []
    finish = checkpoint.finish

    def note_and_finish(folder, encoder, *rest):
        adapters.append({n: p.detach().clone() for n, p in encoder.trained().items() if "lora_B" in n})
        finish(folder, encoder, *rest)

    monkeypatch.setattr(checkpoint, "finish", note_and_finish)
    train(encoder, stage, tmp_path / "run", seed=0)
    losses = [line["loss"] for line in log(tmp_path / "run")]
    assert len(losses) == 15 and sum(losses[-4:]) < 0.95 * sum(losses[:4])
    assert all(bool((b != 0).any(dim=1).all()) for b in adapters[0].values())  # every adapter moved, in every row
    assert len(adapters[0]) == (14 if trainable == "lora" else 0)
    after = weights(encoder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    linear = {name for name in before if "_proj" in name}
    if trainable == "lora":
        assert moved == linear
    else:
        head = {"backbone.model.lm_head.weight"}
        assert before.keys() - moved == (set() if objective == "clm" else head)
    assert not encoder.training and not encoder.backbone.trained() and not encoder.backbone.has_adapter
    assert checkpoint.is_finished(tmp_path / "run") and not (tmp_path / "run" / "checkpoint").exists()


def test_stages_of_both_precisions_follow_each_other(tmp_path: Path) -> None:
    encoder = make_encoder()
    for number, precision in enumerate(("float32", "bfloat16")):
        stage = make_stage("contrastive", tmp_path, precision=precision, steps=1)
        train(encoder, stage, tmp_path / str(number), seed=0)
    assert len(log(tmp_path / "1")) == 1


def test_a_headless_model_predicts_no_tokens(tmp_path: Path) -> None:
    encoder = make_encoder()
    encoder.backbone.model = encoder.backbone.decoder
    with pytest.raises(ValueError, match="no language-model head"):
        train(encoder, make_stage("mntp", tmp_path), tmp_path / "run", seed=0)


# --------------------------------------------------------------------------------------------------------------- resume


class Killed(BaseException):
    """Stands for a power cut: nothing is written after it."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, action) -> None:
    """Do `action` in the middle of step number `steps` (from 1) of a run that starts at the first."""
    step, numbers = trainer.check_finite, count(1)

    def check(*args) -> None:
        if next(numbers) == steps:
            action()
        step(*args)

    monkeypatch.setattr(trainer, "check_finite", check)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def power_cut() -> None:
    raise Killed


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("objective", STAGES)
def test_resumed_is_uninterrupted(objective: str, trainable: str, tmp_path: Path) -> None:
    stage = make_stage(objective, tmp_path, trainable=trainable, attention_dropout=0.2, warmup_steps=2)
    whole, parts = make_encoder(), make_encoder()
    train(whole, stage, tmp_path / "whole", seed=3)
    former = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="after step 3 of 6"):
        stop_after(patch, 3, interrupt)
        train(parts, stage, tmp_path / "parts", seed=3)
    assert signal.getsignal(signal.SIGINT) is former
    assert not checkpoint.is_finished(tmp_path / "parts") and len(log(tmp_path / "parts")) == 3
    torch.rand(5)  # another process would not have the same random state either
    parts = make_encoder()
    train(parts, stage, tmp_path / "parts", seed=3)
    assert_same(weights(parts), weights(whole))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def interrupted(folder: Path, stage: Stage, encoder: Encoder) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3, interrupt)
        train(encoder, stage, folder, seed=3)


def other_weights(folder: Path) -> Encoder:
    encoder = make_encoder()
    encoder.backbone.model.get_input_embeddings().weight.data[5] += 1
    return encoder


def other_template(folder: Path) -> Encoder:
    return make_encoder(INPUT.model_copy(update={"max_tokens": 63}))


def other_tokenizer(folder: Path) -> Encoder:
    encoder = make_encoder()
    encoder.input_format = InputFormat(INPUT, make_tokenizer(300))
    return encoder


def other_data(folder: Path) -> Encoder:
    """As many bytes, and the time stamp of the former."""
    path = folder / "texts.txt"
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    return make_encoder()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "weights"),
        (other_template, "input template"),
        (other_tokenizer, "tokenizer"),
        (other_data, "data source 0 (texts)"),
    ],
)
def test_a_stage_goes_on_with_what_it_was_begun_with_or_not_at_all(change, named: str, tmp_path: Path) -> None:
    stage = make_stage("clm", tmp_path)
    interrupted(tmp_path / "run", stage, make_encoder())
    changed = change(tmp_path)
    before = weights(changed)
    with pytest.raises(ValueError, match=rf"begun with other contents of: {re.escape(named)}\. .*--overwrite"):
        train(changed, stage, tmp_path / "run", seed=3)
    after = {name: tensor for name, tensor in weights(changed).items() if "lora" not in name}
    assert_same({name.replace(".base_layer", ""): tensor for name, tensor in after.items()}, before)


def test_a_time_stamp_is_no_change(tmp_path: Path) -> None:
    stage = make_stage("clm", tmp_path)
    interrupted(tmp_path / "run", stage, make_encoder())
    os.utime(tmp_path / "texts.txt", (1, 1))
    train(make_encoder(), stage, tmp_path / "run", seed=3)
    assert checkpoint.is_finished(tmp_path / "run")


@pytest.mark.parametrize("change", [other_template, other_tokenizer, other_data])
def test_a_finished_stage_knows_what_it_was_trained_on(change, tmp_path: Path) -> None:
    stage = make_stage("clm", tmp_path)
    train(make_encoder(), stage, tmp_path / "run", seed=3)
    again = make_encoder()
    checkpoint.load_finished(tmp_path / "run", again, stage, 3, now=origin(again, stage))
    changed = change(tmp_path)
    with pytest.raises(ValueError, match="begun with other contents of"):
        checkpoint.load_finished(tmp_path / "run", changed, stage, 3, now=origin(changed, stage))
    checkpoint.load_finished(tmp_path / "run", make_encoder(), stage, 3)  # to look at it, as `compare` does


def test_data_of_a_finished_stage_may_be_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = make_stage("clm", tmp_path)
    train(make_encoder(), stage, tmp_path / "run", seed=3)
    (tmp_path / "texts.txt").unlink()
    again = make_encoder()
    checkpoint.load_finished(tmp_path / "run", again, stage, 3, now=origin(again, stage))
    assert "data source 0 (texts) cannot be compared" in caplog.text and "no such file" in caplog.text


# ---------------------------------------------------------------------------------------------------- lora: continue

# Every step reads all rows, and with these betas AdamW remembers nothing: a stage is the sum of its steps.
FORGETFUL = {
    **{"batch_size": 16, "lr": 0.3, "schedule": "constant", "adam_betas": (0.0, 0.0), "adam_eps": 1.0},
    **{
        "attention_dropout": 0.0,
        "max_grad_norm": None,
        "hard_negatives": 0,
        "lora": LoraSpec(r=4, alpha=8, dropout=0.0),
    },
}


def train_two(encoder: Encoder, folder: Path, first: Stage, second: Stage) -> dict[str, torch.Tensor]:
    """The weights after two stages in `folder`."""
    train(encoder, first, folder / "0", seed=3, keep_adapter=second.lora == "continue")
    assert encoder.backbone.has_adapter == (second.lora == "continue") and not encoder.backbone.trained()
    train(encoder, second, folder / "1", seed=3)
    return weights(encoder)


def test_a_stage_that_goes_on_with_the_adapter_is_the_second_half_of_a_longer_one(tmp_path: Path) -> None:
    whole = make_encoder()
    train(whole, make_stage("contrastive", tmp_path, **FORGETFUL, steps=6), tmp_path / "whole", seed=3)
    half = make_stage("contrastive", tmp_path, **FORGETFUL, steps=3)
    found = train_two(make_encoder(), tmp_path / "parts", half, half.model_copy(update={"lora": "continue"}))
    assert_same(found, weights(whole), tolerance=1e-6)
    fresh = train_two(make_encoder(), tmp_path / "fresh", half, half)
    assert max((fresh[name] - found[name]).abs().max() for name in found) > 1e-3


def test_weights_are_the_base_and_the_continued_adapter_once(tmp_path: Path) -> None:
    encoder = make_encoder()
    base, parent = weights(encoder), encoder.backbone.fingerprint()
    stage = make_stage("contrastive", tmp_path, lr=0.1)
    found = train_two(encoder, tmp_path, stage, stage.model_copy(update={"lora": "continue"}))
    factors = load_file(tmp_path / "1" / "adapter" / "adapter_model.safetensors")
    for name in (name for name in base if "_proj" in name):
        key = f"base_model.model.{name.removeprefix('backbone.model.model.').removesuffix('.weight')}"
        delta = factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"] * (8 / 4)
        assert delta.abs().max() > 1e-3 and torch.allclose(found[name], base[name] + delta, atol=1e-6)
    before, after = (json.loads((tmp_path / place / "finished.json").read_text()) for place in "01")
    assert (before["parent"], after["parent"]) == (parent, before["result"])
    assert after["result"] == encoder.backbone.fingerprint()


def test_a_continued_stage_resumes_to_the_bit(tmp_path: Path) -> None:
    first = make_stage("contrastive", tmp_path, warmup_steps=2)
    second = make_stage("simcse", tmp_path, attention_dropout=0.2).model_copy(update={"lora": "continue"})
    whole = train_two(make_encoder(), tmp_path / "whole", first, second)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted, match="after step 3 of 6"):
        stop_after(patch, 9, interrupt)
        train_two(make_encoder(), tmp_path / "parts", first, second)
    parts = make_encoder()
    checkpoint.load_finished(tmp_path / "parts" / "0", parts, first, 3, keep_adapter=True)
    train(parts, second, tmp_path / "parts" / "1", seed=3)
    assert_same(weights(parts), whole)
    assert log(tmp_path / "parts" / "1") == log(tmp_path / "whole" / "1")
    loaded = make_encoder()
    checkpoint.load_finished(tmp_path / "parts" / "0", loaded, first, 3, keep_adapter=True)
    checkpoint.load_finished(tmp_path / "parts" / "1", loaded, second, 3)
    assert_same(weights(loaded), whole)


def test_without_an_adapter_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path).model_copy(update={"lora": "continue"})
    with pytest.raises(ValueError, match="nothing to go on with: the model carries no adapter"):
        train(make_encoder(), stage, tmp_path / "run", seed=0)


def test_a_power_cut_repeats_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path, save_every=2)
    whole = make_encoder()
    train(whole, stage, tmp_path / "whole", seed=0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        stop_after(patch, 6, power_cut)
        train(make_encoder(), stage, tmp_path / "parts", seed=0)
    assert len(log(tmp_path / "parts")) == 5
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a line that was cut, too
    parts = make_encoder()
    train(parts, stage, tmp_path / "parts", seed=0)
    assert_same(weights(parts), weights(whole))
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_an_interrupt_in_the_last_step_still_finishes_later(tmp_path: Path) -> None:
    stage = make_stage("clm", tmp_path, steps=2)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 2, interrupt)
        train(make_encoder(), stage, tmp_path / "run", seed=0)
    train(make_encoder(), stage, tmp_path / "run", seed=0)
    assert checkpoint.is_finished(tmp_path / "run") and len(log(tmp_path / "run")) == 2


def test_sigterm_counts_as_an_interrupt(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(make_encoder(), make_stage("clm", tmp_path), tmp_path / "run", seed=0)
    assert (tmp_path / "run" / "checkpoint" / "step.json").is_file()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path, save_every=2)
    encoder = make_encoder()
    poisoned: list[dict[str, torch.Tensor]] = []

    def poison() -> None:
        for parameter in encoder.backbone.trained().values():
            parameter.grad.fill_(float("nan"))
        poisoned.append(weights(encoder))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(NotFinite, match="step 3, batch of pairs: loss"):
        real = OBJECTIVES["contrastive"].backward
        calls: list[int] = []

        def backward(*args):
            metrics = real(*args)
            calls.append(1)
            if len(calls) == 4:
                poison()
                return metrics | {"loss": torch.tensor(float("nan"))}
            return metrics

        patch.setitem(trainer.OBJECTIVES, "contrastive", replace(OBJECTIVES["contrastive"], backward=backward))
        train(encoder, stage, tmp_path / "run", seed=0)
    assert_same(weights(encoder), poisoned[0])  # the step was not taken
    assert json.loads((tmp_path / "run" / "checkpoint" / "step.json").read_text())["step"] == 2
    resumed, whole = make_encoder(), make_encoder()
    train(resumed, stage, tmp_path / "run", seed=0)
    train(whole, stage, tmp_path / "whole", seed=0)
    assert_same(weights(resumed), weights(whole))


def test_faults_in_the_data_reach_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than the batch size"):
        train(make_encoder(), make_stage("contrastive", tmp_path, batch_size=500), tmp_path / "run", seed=0)


# ------------------------------------------------------------------------------------------------------------- tracking


def test_metrics_lines(tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path, steps=7, log_every=3, warmup_steps=2)
    train(make_encoder(), stage, tmp_path / "run", seed=0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7]  # every third, and the last
    for line in lines:
        assert line.keys() == {
            *("step", "source", "loss", "positive_cosine", "duplicate_positives", "grad_norm", "lr"),
            *("tokens_per_second", "peak_gib"),
        }
        assert line["source"] == "pairs" and line["lr"] == learning_rate(line["step"] - 1, stage)
        assert line["tokens_per_second"] > 0 and 0.01 < line["peak_gib"] < 100


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = make_stage("contrastive", tmp_path, steps=2)
    train(make_encoder(), stage, tmp_path / "run", seed=0, tracking=Tracking(tensorboard=True))
    accumulator = EventAccumulator(str(tmp_path / "run" / "run"))
    accumulator.Reload()
    found = [(event.step, event.value) for event in accumulator.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log(tmp_path / "run")]


def wandb_history(path: Path) -> list[dict]:
    """The rows in the file of an offline run: 7 bytes of header, then a LevelDB log.

    That is blocks of 32 KiB with pieces of records: checksum (4), length (2), kind (1; whole, first, middle, last), data.
    """
    from wandb.proto import wandb_internal_pb2

    data, place, record, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        if place + 7 + length > len(data):
            break  # still being written
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            parsed, record = wandb_internal_pb2.Record.FromString(record), b""
            if parsed.HasField("history"):
                items = parsed.history.item
                rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
    return rows


@pytest.mark.parametrize("interrupted", [False, True])
def test_wandb_keeps_an_offline_run(interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_CONSOLE", "off")):
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))
    stage = make_stage("contrastive", tmp_path, steps=2)
    if interrupted:
        stop_after(monkeypatch, 2, interrupt)
        with pytest.raises(Interrupted):
            train(make_encoder(), stage, tmp_path / "run", seed=0, tracking=Tracking(wandb=True))
    else:
        train(make_encoder(), stage, tmp_path / "run", seed=0, tracking=Tracking(wandb=True))
    assert wandb.run is None  # closed, however the stage ended
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    while len(rows := wandb_history(file)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # wandb's service writes its last block after `finish` has returned: 40 ms after, in one log
    found = [(row["_step"], row["loss"], row["lr"]) for row in rows]
    assert found == [(line["step"], line["loss"], line["lr"]) for line in log(tmp_path / "run")]
    assert len(found) == 2


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for number, on in enumerate((False, True)):
        encoder = make_encoder()
        stage = make_stage("contrastive", tmp_path, gradient_checkpointing=on, activation_tokens=150)
        train(encoder, stage, tmp_path / str(number), seed=0)
        runs.append(weights(encoder))
        assert not any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules())
    assert_same(runs[0], runs[1], 1e-5)


def test_the_seed_counts(tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path, steps=2)
    logs = []
    for seed in (0, 1):
        train(make_encoder(), stage, tmp_path / str(seed), seed)
        logs.append([line["loss"] for line in log(tmp_path / str(seed))])
    assert all(one != other for one, other in zip(*logs, strict=True))
    assert all(one != other for one, other in pairwise(logs[0]))


# -------------------------------------------------------------------------------------------------------------- summary


def test_the_table_before_step_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers, counted by hand: LoRA's own matrices, 8 pairs with up to two negatives each, the size of the batch."""
    encoder = make_encoder()
    stage = make_stage("contrastive", tmp_path / "data", hard_negatives=2, precision="bfloat16", steps=50)
    encoder.backbone.add_lora(stage.lora, seed=0)
    objective = OBJECTIVES["contrastive"]
    batch = objective.collate(
        next(objective.batches(stage, encoder.input_format, 0, 0)), stage, encoder.input_format, 0
    )

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    rows = stage_summary(encoder, stage, batch, start=3)

    lora = sum(4 * (m.in_features + m.out_features) for m in encoder.modules() if hasattr(m, "lora_A"))
    assert rows["trained parameters"].startswith(f"{lora:,} of ")
    assert rows["steps"] == "3 -> 50 (schedule 50)"
    assert rows["negatives per query"] == str(len(batch.documents) - 1)
    assert rows["batch"] == f"8 ({len(batch.tokens)} texts, {len(batch.tokens.ids):,} tokens on this process)"
    assert "emulates" in rows["precision"]
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert stage_summary(encoder, stage, batch, start=3)["precision"] == "bfloat16"

    passes: list[int] = []
    encoder.register_forward_pre_hook(lambda *given: passes.append(1))
    objective.backward(encoder.train(), batch, stage)
    # Each runs without a graph first, then with one.
    assert rows["model passes per batch"] == f"{len(passes) // 2} on this process"
