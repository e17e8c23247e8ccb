"""Parts of a model that train alone: which weights move, by which gradient, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llm2enc import Encoder
from llm2enc.errors import Interrupted
from llm2enc.recipe import InputSpec, LastLayers, Part
from llm2enc.training import OBJECTIVES, checkpoint, train
from llm2enc.training.prepare import check_stage, prepare
from tests.support.builders import assert_same, gradients, make_encoder
from tests.training.test_trainer import interrupt, make_stage, stop_after, weights

PARTS = ("bias", "embeddings", LastLayers(layers=1))
EACH = pytest.mark.parametrize("part", PARTS, ids=["bias", "embeddings", "layers"])
BOS, TEXT = Part(special="bos", pool=True), Part(slot="text", pool=True)
NATIVE = InputSpec(query=(BOS, TEXT), document=(BOS, TEXT), max_tokens=64)


def biased() -> Encoder:
    """Two layers of a family with biases, which are not zero."""
    encoder = make_encoder(NATIVE, attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.linspace(-0.2, 0.2, len(parameter)))
    return encoder


def belongs(name: str, part: str | LastLayers) -> bool:
    """By its name, as transformers has it."""
    if part == "bias":
        return name.endswith(".bias")
    return ("embed_tokens" if part == "embeddings" else "model.layers.1.") in name


@EACH
def test_exactly_the_part_moves_and_the_saved_directory_has_it(part: str | LastLayers, tmp_path: Path) -> None:
    encoder = biased()
    before = weights(encoder)
    train(encoder, make_stage("contrastive", tmp_path, trainable=part, lora=None, steps=2), tmp_path / "run", seed=0)
    after = weights(encoder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = {name for name in before if belongs(name, part)}
    # The same number added to all keys of a text adds the same to all scores of a query, which softmax does not see.
    assert moved | {name for name in wanted if name.endswith("k_proj.bias")} == wanted
    encoder.save(tmp_path / "model")
    np.testing.assert_array_equal(Encoder.load(tmp_path / "model").encode("a river"), encoder.encode("a river"))


@EACH
def test_the_gradient_is_that_of_full_training_restricted_to_the_part(part: str | LastLayers, tmp_path: Path) -> None:
    found = {}
    for trainable in ("full", part):
        stage = make_stage("contrastive", tmp_path, trainable=trainable, lora=None, micro_batch_tokens=40)
        encoder, objective = biased(), OBJECTIVES["contrastive"]
        prepare(encoder, stage, seed=0)
        rows = next(objective.batches(stage, encoder.input_format, 0, 0))
        objective.backward(encoder, objective.collate(rows, stage, encoder.input_format, 0), stage)
        found[str(trainable)] = gradients(encoder)
    whole, own = found["full"], found[str(part)]
    assert own.keys() == {name for name in whole if belongs(name, part)}
    scale = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=float(1e-6 * scale))


@EACH
def test_a_part_resumes_bit_for_bit_and_loads_when_finished(part: str | LastLayers, tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path, trainable=part, lora=None)
    whole, resumed, loaded = biased(), biased(), biased()
    train(whole, stage, tmp_path / "whole", seed=0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3, interrupt)
        train(resumed, stage, tmp_path / "run", seed=0)
    resumed = biased()
    train(resumed, stage, tmp_path / "run", seed=0)
    assert_same(weights(resumed), weights(whole))
    checkpoint.load_finished(tmp_path / "run", loaded, stage, seed=0)
    assert_same(weights(loaded), weights(whole))
    assert not loaded.trained()
    other = stage.model_copy(update={"trainable": LastLayers(layers=2)})
    with pytest.raises(ValueError, match="not those of this model"):
        checkpoint.load_finished(tmp_path / "run", biased(), other, seed=0)


@pytest.mark.parametrize(
    ("part", "dtype", "said"),
    [
        ("bias", torch.float32, "this model has no biases: no product and no norm of llama adds one"),
        (LastLayers(layers=3), torch.float32, r"`trainable: {layers: 3}`: this model has 2 layers"),
        ("embeddings", torch.bfloat16, "`trainable: embeddings` needs `model.dtype: float32`"),
    ],
)
def test_a_part_that_is_not_there_is_refused(
    part: str | LastLayers, dtype: torch.dtype, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        check_stage(make_encoder().backbone.to(dtype), make_stage("contrastive", tmp_path, trainable=part, lora=None))
