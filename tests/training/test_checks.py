"""Faults in the numbers of a run: each is found in the step where it happens, and named."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from llm2enc.data import Pair, RowBatch
from llm2enc.errors import NotFinite, NothingLearnt
from llm2enc.recipe import ContrastiveStage, LoraSpec, LossSpec, MaskSpec, SimcseStage
from llm2enc.training import BatchPartition, train, trainer
from llm2enc.training.checks import Guard, check_finite
from llm2enc.training.gradcache import cached_backward
from llm2enc.training.objectives import contrastive, simcse
from tests.support.builders import make_encoder, pairs_file, sentences, texts_file

FIELDS = {"steps": 3, "batch_size": 4, "lr": 1e-2, "precision": "float32", "log_every": 1}


def stage(folder: Path, **fields) -> ContrastiveStage:
    lora = {"lora": LoraSpec(r=4, alpha=8, dropout=0.0)}
    return ContrastiveStage(objective="contrastive", **({"data": (pairs_file(folder),)} | FIELDS | lora | fields))


def weights(*values: float) -> dict[str, nn.Parameter]:
    return {f"w{number}": nn.Parameter(torch.tensor([value])) for number, value in enumerate(values)}


# ----------------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_texts_whose_vectors_are_no_numbers_are_named(value: float) -> None:
    encoder = make_encoder()
    tokens = encoder.input_format.pack(sentences(6))
    texts = []

    def encode(part) -> torch.Tensor:
        vectors = encoder(part)
        ours = (part.lengths == tokens.lengths[4]).nonzero()[:, 0]
        texts.append(len(ours))
        return vectors.index_fill(0, ours, value)

    expected = (tokens.lengths == tokens.lengths[4]).nonzero()[:, 0].tolist()
    with pytest.raises(
        NotFinite, match=rf"the vectors of {len(expected)} \({', '.join(map(str, expected))}\) of 6 texts"
    ):
        cached_backward(encode, tokens, BatchPartition(6, 2, 0, 0), lambda vectors: vectors.sum(), 50)


def test_parameters_with_such_a_gradient_are_named() -> None:
    trained = weights(1.0, 2.0, 3.0)
    for parameter in trained.values():
        parameter.grad = torch.ones(1)
    check_finite(torch.tensor(1.0), torch.tensor(1.0), trained)
    trained["w1"].grad.fill_(float("inf"))
    with pytest.raises(NotFinite, match=r"loss 1.0, gradient norm inf, in 1 \(w1\) of 3 trained tensors"):
        check_finite(torch.tensor(1.0), torch.tensor(float("inf")), trained)


# ------------------------------------------------------------------------------------------------------------ zero loss


def test_a_run_without_negatives_stops_at_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(NothingLearnt, match=r"step 0, batch of pairs: the loss is exactly 0.*no query has a negative"):
        train(make_encoder(), stage(tmp_path, batch_size=1, hard_negatives=0), tmp_path / "run", seed=0)


def test_a_later_zero_is_a_warning_said_once_for_each_source(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(weights(1.0))
    with caplog.at_level(logging.WARNING):
        for loss, source in ((1.0, "a"), (0.0, "a"), (0.0, "a"), (0.0, "b")):
            guard.check_batch({"loss": torch.tensor(loss)}, source)
    assert [record.getMessage()[:24] for record in caplog.records] == [
        "a: the loss is exactly 0",
        "b: the loss is exactly 0",
    ]


# -------------------------------------------------------------------------------------------------------- nothing moves


def test_an_adapter_that_the_optimizer_does_not_know_stops_the_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(NothingLearnt, match=r"moved none of the 28 trained tensors; the largest gradient is \d"):
        train(make_encoder(), stage(tmp_path), tmp_path / "run", seed=0)


def test_gradients_of_zero_stop_the_run_after_the_warmup(tmp_path: Path, monkeypatch) -> None:
    """At rate 0, the first step of a warmup, nothing can move and nothing is said."""
    real = trainer.OBJECTIVES["contrastive"]

    def backward(encoder, *args):
        metrics = real.backward(encoder, *args)
        for parameter in encoder.backbone.trained().values():
            parameter.grad.zero_()
        return metrics

    monkeypatch.setitem(trainer.OBJECTIVES, "contrastive", replace(real, backward=backward))
    with pytest.raises(NothingLearnt, match=r"step 1, .*gradients are all zero"):
        train(make_encoder(), stage(tmp_path, warmup_steps=2), tmp_path / "run", seed=0)


def test_a_fresh_adapter_raises_no_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its A has no gradient in the first step, because its B is zero."""
    with caplog.at_level(logging.WARNING, logger="llm2enc"):
        train(make_encoder(), stage(tmp_path), tmp_path / "run", seed=0)
    assert not caplog.records


def test_tensors_that_stay_as_they_were_are_named(caplog: pytest.LogCaptureFixture) -> None:
    trained = weights(1.0, 2.0, 3.0)
    guard = Guard(trained)
    with caplog.at_level(logging.WARNING):
        for moved in (["w0"], ["w0", "w1"], ["w2"]):
            with guard.update(1e-3), torch.no_grad():
                for name in moved:
                    trained[name].mul_(1 + 1e-6)
    (record,) = caplog.records
    assert "left 1 (w2) of 3 trained tensors as they were" in record.getMessage()


def test_the_smallest_change_that_a_weight_can_hold_counts_as_movement() -> None:
    trained = {"w": nn.Parameter(torch.linspace(1, 2, 1_000_000))}
    with Guard(trained).update(1e-3), torch.no_grad():
        trained["w"][7] = torch.nextafter(trained["w"][7], torch.tensor(9.0))


# ----------------------------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize(
    ("fields", "in_batch", "share"),
    [
        ({}, True, 3 / 4),  # rows 0 and 1 have one positive, and the positive of row 2 is the negative of row 3
        ({"hard_negatives": 0}, True, 2 / 4),
        ({"loss": LossSpec(masks=MaskSpec(duplicates=True))}, True, 0),
        ({}, False, 0),  # own negatives only
    ],
)
def test_positives_among_negatives_are_counted(fields: dict, in_batch: bool, share: float, tmp_path: Path) -> None:
    pairs = [
        Pair("q0", "same", (), "", ""),
        Pair("q1", "same", (), "", ""),
        Pair("q2", "p2", ("n2",), "", ""),
        Pair("q3", "p3", ("p2",), "", ""),
    ]
    rows = RowBatch(0, pairs, "here", in_batch)
    encoder = make_encoder()
    encoder.backbone.train_everything(head=False)
    chosen = stage(tmp_path, **fields)
    batch = contrastive.collate(rows, chosen, encoder.input_format, 0)
    assert contrastive.backward(encoder, batch, chosen)["duplicate_positives"].item() == share


def test_duplicates_are_named_with_their_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(f'{{"query": "{text}", "positive": "label"}}\n' for text in sentences(20)))
    chosen = stage(tmp_path, data=({"kind": "files", "path": str(path), "name": "labels"},))
    with caplog.at_level(logging.WARNING, logger="llm2enc"):
        train(make_encoder(), chosen, tmp_path / "run", seed=0)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "labels: the positives of 100 % of the rows of a batch are also among their neg"
    )


# ---------------------------------------------------------------------------------------------------------------- views


def test_equal_views_although_dropout_is_active_are_refused(tmp_path: Path) -> None:
    """Dropout that no vector depends on: of an adapter whose B never moves."""
    encoder = make_encoder()
    encoder.backbone.add_lora(LoraSpec(r=4, dropout=0.3), seed=0)
    encoder.train()
    chosen = SimcseStage(objective="simcse", data=(texts_file(tmp_path),), **FIELDS)
    for step in (0, 1):  # a fresh adapter, and one whose first update had a rate of zero
        batch = simcse.collate(RowBatch(step, sentences(4), "here", True), chosen, encoder.input_format, 0)
        simcse.backward(encoder, batch, chosen)
    batch = simcse.collate(RowBatch(2, sentences(4), "here", True), chosen, encoder.input_format, 0)
    with pytest.raises(ValueError, match="equal although dropout is active"):
        simcse.backward(encoder, batch, chosen)
