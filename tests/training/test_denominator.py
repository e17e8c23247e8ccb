"""The loss block in a stage: every field reaches the loss, no split or interruption changes a bit, texts are told apart."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from llm2enc.data import Pair, RowBatch
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError, Interrupted
from llm2enc.losses import Guide
from llm2enc.recipe import ContrastiveStage, LearnedTemperature, LoraSpec, MatryoshkaSpec, SimcseLossSpec, load_recipe
from llm2enc.training import OBJECTIVES, train
from llm2enc.training.objectives import contrastive, simcse
from llm2enc.training.objectives.contrastive import ContrastiveBatch
from llm2enc.training.objectives.denominator import Temperature, widths
from llm2enc.training.teachers import Lesson, Teachers
from tests.losses.test_denominator import reference
from tests.losses.toy import random
from tests.support.builders import assert_same, gradients, make_encoder, pairs_file, sentences
from tests.training.test_trainer import interrupt, log, stop_after, weights

PAIRS = [
    Pair("the old bridge", "a bridge of stone", ("wool", "wine"), "Find it", ""),
    Pair("market day", "the market", (), "Find it", ""),
    Pair("the mill", "a mill by the water", ("tall trees",), "Find it", ""),
    Pair("the old bridge", "the bridge over the river", (), "Find it", ""),
]
TEACHER = {"model": "a-teacher"}
EVERYTHING = {
    "temperature": {"start": 0.3, "bounds": [0.05, 1.0]},
    "queries_as_negatives": True,
    "documents_as_negatives": "all",
    "reverse_rows": "joint",
    "count_positive_in_reverse": True,
    "masks": {
        "duplicates": True,
        "guide": {"teacher": TEACHER, "margin": 0.1, "kind": "relative"},
        "own_similarity": {"margin": 0.05, "on": ["qd", "qq", "dd"]},
    },
    "hardness": {"on": "all", "alpha": 2.0},
    "hard_negative_bias": 0.3,
    "focal_gamma": 2.0,
    "matryoshka": {"dims": [32, 16, 8], "weights": [1.0, 0.3, 0.2], "reduce": "mean", "dims_per_step": 2},
}


def stage_of(loss: dict, **fields) -> ContrastiveStage:
    given = {
        "objective": "contrastive",
        "data": [{"kind": "files", "path": "unused.jsonl"}],
        "steps": 1,
        "batch_size": 4,
    }
    given |= {"lr": 1e-3, "precision": "float32", "hard_negatives": 2, "loss": loss}
    return ContrastiveStage.model_validate_json(json.dumps(given | fields))


def batch_of(encoder: Encoder, stage: ContrastiveStage, in_batch: bool = True) -> ContrastiveBatch:
    """The batch of step 5, with a guide's vectors; the encoder has what the loss trains."""
    encoder.auxiliary = nn.ModuleDict(contrastive.auxiliary(encoder, stage, Teachers(()), 0))
    batch = contrastive.collate(RowBatch(5, PAIRS, "here", in_batch), stage, encoder.input_format, 3)
    vectors = random(len(batch.texts), 6, seed=4).detach().float()
    lesson = Lesson(torch.zeros(len(batch.documents)), vectors)
    return replace(batch, lessons=dict.fromkeys(contrastive.teachers(stage), lesson))


def test_every_field_of_the_block_reaches_the_loss() -> None:
    encoder, stage = make_encoder().train(), stage_of(EVERYTHING)
    encoder.backbone.train_everything(head=False)
    batch = batch_of(encoder, stage)
    metrics = contrastive.backward(encoder, batch, stage)
    vectors, guide = encoder(batch.tokens).double(), next(iter(batch.lessons.values())).vectors
    assert guide is not None and batch.layout.excluded_queries is not None
    options = {name: EVERYTHING[name] for name in ("queries_as_negatives", "documents_as_negatives", "reverse_rows")}
    options |= {name: EVERYTHING[name] for name in ("count_positive_in_reverse", "hard_negative_bias", "focal_gamma")}
    options |= {"own_margin": 0.05, "own_margin_on": ("qd", "qq", "dd"), "hardness": 2.0, "hardness_on": "all"}
    options |= {"guide": Guide(guide[batch.queries], guide[batch.documents], 0.1, relative=True)}
    chosen = widths(MatryoshkaSpec(dims=(32, 16, 8), weights=(1.0, 0.3, 0.2), dims_per_step=2), 3, 5)
    assert len(chosen) == 2
    q, d = vectors[batch.queries], vectors[batch.documents]
    parts = [w / 2 * reference(q[:, :width], d[:, :width], batch.layout, 0.3, **options) for width, w in chosen.items()]
    assert metrics["loss"].item() == pytest.approx(sum(part.item() for part in parts), rel=2e-5)
    assert metrics["temperature"].item() == pytest.approx(0.3)


def test_a_source_or_stage_without_in_batch_negatives_has_own_negatives_alone() -> None:
    found = []
    pairs = [replace(pair, negatives=(*pair.negatives, f"other {i}")) for i, pair in enumerate(PAIRS)]
    for in_batch, loss in (
        (False, {"reverse_rows": "mean", "queries_as_negatives": True}),
        (True, {"in_batch": False}),
    ):
        encoder, stage = make_encoder(), stage_of({"temperature": 0.3} | loss)
        batch = contrastive.collate(RowBatch(0, pairs, "here", in_batch), stage, encoder.input_format, 0)
        encoder.backbone.train_everything(head=False)
        found.append(contrastive.backward(encoder, batch, stage)["loss"])
        vectors = encoder(batch.tokens)
        expected = reference(vectors[batch.queries], vectors[batch.documents], batch.layout, 0.3, in_batch=False)
        assert found[-1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(*found)
    with pytest.raises(InputError, match=r"here has loss\.in_batch: false, and a batch without a single hard negative"):
        pairs = [replace(pair, negatives=()) for pair in PAIRS]
        contrastive.collate(RowBatch(0, pairs, "here", True), stage, encoder.input_format, 0)


def test_queries_that_ask_the_same_are_no_negatives_of_each_other() -> None:
    """Rows 0 and 3 have one query; the query of row 3 would also be its own positive's neighbour in reverse."""
    encoder = make_encoder()
    loss = {"queries_as_negatives": True, "masks": {"duplicates": True}}
    batch = batch_of(encoder, stage_of(loss))
    assert batch.layout.excluded_queries is not None
    others = batch.layout.excluded_queries & ~torch.eye(4, dtype=torch.bool)
    assert others.nonzero().tolist() == [[0, 3], [3, 0]]
    # 7 documents less one's own and, of rows 0 and 3, the other's positive; 3 queries less, of those rows, one.
    assert batch.describe() == {"negatives per query": "8"}
    assert batch_of(encoder, stage_of({})).describe() == {"negatives per query": "6"}
    views = simcse.collate(
        RowBatch(0, ["one", "two", "one"], "here", True),
        load_recipe("pocket", ["stages.simcse.loss={queries_as_negatives: true}"]).stages[1],
        encoder.input_format,
        0,
    )
    assert torch.equal(views.layout.excluded_queries, views.layout.excluded)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_every_split_gives_the_gradient_of_the_whole_batch(trainable: str) -> None:
    found = []
    for size in (10**6, 1):
        encoder = make_encoder()
        if trainable == "full":
            encoder.backbone.train_everything(head=False)
        else:
            encoder.backbone.add_lora(LoraSpec(r=4, alpha=8, dropout=0.0), seed=0)
            with torch.no_grad():  # a fresh B is zero, and so would be the gradient of A
                for number, parameter in enumerate(encoder.backbone.trained().values()):
                    parameter.add_(0.02 * math.cos(number))
        stage = stage_of(EVERYTHING, micro_batch_tokens=size, rng_shards=1 if size > 1 else 3)
        metrics = contrastive.backward(encoder.train(), batch_of(encoder, stage), stage)
        found.append((metrics["loss"], gradients(encoder)))
    torch.testing.assert_close(found[1][0], found[0][0])
    assert found[0][1]["auxiliary.temperature.t"] != 0
    assert_same(found[1][1], found[0][1], 2e-5)


def test_similarities_of_a_bfloat16_stage_are_computed_in_float32() -> None:
    found = []
    for low in (False, True):
        encoder, stage = make_encoder(), stage_of({"temperature": 0.02})
        encoder.backbone.train_everything(head=False)
        vectors = encoder(batch_of(encoder, stage).tokens).detach()
        encoder.forward = lambda tokens, vectors=vectors: vectors[: len(tokens)].clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            found.append(contrastive.backward(encoder, batch_of(encoder, stage), stage)["loss"])
    assert torch.equal(*found)


# --------------------------------------------------------------------------------------------------------- temperature


@pytest.mark.parametrize(
    ("at", "gradient", "passes"),
    [(0.5, 1.0, True), (0.5, -1.0, True), (2.0, 1.0, True), (2.0, -1.0, False), (0.01, 1.0, False), (0.01, -1.0, True)],
)
def test_a_temperature_stays_within_its_bounds_and_can_come_back(at: float, gradient: float, passes: bool) -> None:
    """Of [0.1, 1]: the gradient in the temperature; descent goes against it."""
    found = Temperature(LearnedTemperature(start=0.5, bounds=(0.1, 1.0)))
    with torch.no_grad():
        found.t.fill_(-math.log(at))
    value = found()
    assert value.item() == pytest.approx(min(max(at, 0.1), 1.0))
    (value * gradient).backward()
    expected = -gradient * value.item() if passes else 0.0
    assert found.t.grad is not None and found.t.grad.item() == pytest.approx(expected)


def test_a_temperature_that_trains_resumes_to_the_bit_and_is_gone_with_its_stage(tmp_path: Path) -> None:
    data = pairs_file(tmp_path).model_dump(mode="json")
    loss = {
        "temperature": {"start": 0.2},
        "masks": {"own_similarity": {"on": ["qd"]}},
        "matryoshka": {"dims": [32, 8, 4], "dims_per_step": 1},
    }
    own = {"steps": 6, "batch_size": 8, "lr": 3e-2, "log_every": 1, "attention_dropout": 0.2, "data": [data]}
    stage = stage_of(loss, **own, lora={"r": 4})
    whole, parts = make_encoder(), make_encoder()
    train(whole, stage, tmp_path / "whole", seed=3)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3, interrupt)
        train(parts, stage, tmp_path / "parts", seed=3)
    resumed = make_encoder()
    train(resumed, stage, tmp_path / "parts", seed=3)
    assert_same(weights(resumed), weights(whole))
    lines = log(tmp_path / "whole")
    assert lines == log(tmp_path / "parts") and lines[0]["temperature"] == pytest.approx(0.2)
    assert len({line["temperature"] for line in lines}) == 6 and not resumed.auxiliary


# ---------------------------------------------------------------------------------------------------------- matryoshka


def test_the_widths_of_a_step_follow_from_seed_and_step() -> None:
    spec = MatryoshkaSpec(dims=(32, 16, 8, 4), weights=(1.0, 0.5, 0.25, 0.125), dims_per_step=2)
    drawn = [widths(spec, 3, step) for step in range(40)]
    assert drawn == [widths(spec, 3, step) for step in range(40)] != [widths(spec, 4, step) for step in range(40)]
    assert len({tuple(chosen) for chosen in drawn}) == 6  # every pair of widths
    assert all(weight == width / 32 for chosen in drawn for width, weight in chosen.items())
    assert widths(MatryoshkaSpec(dims=(8, 4)), 3, 0) == {8: 1.0, 4: 1.0}


def test_a_width_that_the_vectors_do_not_have_is_refused() -> None:
    stage = stage_of({"matryoshka": {"dims": [33]}})
    with pytest.raises(InputError, match=r"loss\.matryoshka asks for 33 coordinates, and vectors have 32"):
        OBJECTIVES["contrastive"].auxiliary(make_encoder(), stage, Teachers(()), 0)


def test_simcse_has_the_same_block() -> None:
    encoder = make_encoder()
    encoder.backbone.train_everything(head=False)
    encoder.backbone.set_attention_dropout(1e-9)  # draws numbers and drops nothing: both views are known
    loss = SimcseLossSpec(reverse_rows="mean", queries_as_negatives=True, temperature=LearnedTemperature(start=0.3))
    stage = load_recipe("pocket").stages[1].model_copy(update={"loss": loss, "max_tokens": None})
    encoder.auxiliary = nn.ModuleDict(OBJECTIVES["simcse"].auxiliary(encoder, stage, Teachers(()), 0))
    batch = simcse.collate(RowBatch(0, sentences(4), "here", True), stage, encoder.input_format, 0)
    metrics = simcse.backward(encoder.train(), batch, stage)
    vectors = encoder(batch.tokens)
    options = {"reverse_rows": "mean", "queries_as_negatives": True}
    expected = reference(vectors[0::2], vectors[1::2], batch.layout, 0.3, **options)
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradients(encoder)["auxiliary.temperature.t"] != 0
