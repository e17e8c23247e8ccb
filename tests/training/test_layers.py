"""Vectors of several layers in one pass: those of the cut models, any split, the layers of a step, training and cutting."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llm2enc import Encoder, load_recipe
from llm2enc.errors import Interrupted, RecipeError
from llm2enc.model import Backbone, fresh_head
from llm2enc.model.layers import cut
from llm2enc.recipe import InputSpec, LayersSpec, LossSpec, MlpSpec, ModelSpec, Part, SimcseLossSpec
from llm2enc.text import InputFormat, Tokens
from llm2enc.training import OBJECTIVES, train
from llm2enc.training.objectives.layers import prior_layers
from llm2enc.training.prepare import check_stages, prepare
from tests.support.builders import assert_same, gradients, make_encoder, make_tokenizer, sentences
from tests.support.tiny import tiny_model
from tests.training.test_trainer import interrupt, make_stage, stop_after, weights

TWO_D, ESE = LayersSpec(), LayersSpec(which="all", weights="log", kl_temperature=1.0, compression=8)
BOS, TEXT = Part(special="bos", pool=True), Part(slot="text", pool=True)
NATIVE = InputSpec(query=(BOS, TEXT), document=(BOS, TEXT), max_tokens=64)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text", "qwen3", "phi", "gptj"])
def test_the_vectors_of_a_layer_are_those_of_the_model_cut_to_it(family: str, pooling: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():  # a norm of ones would not show
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    shorter = type(model)(cut(model.config, 1)).eval()
    shorter.load_state_dict(model.state_dict(), strict=False)
    tokens = Tokens.from_blocks(torch.randint(3, 100, (3, 7), generator=torch.Generator().manual_seed(0)))
    whole, first = (Encoder(Backbone(one, True), None, pooling).eval() for one in (model, shorter))
    with torch.no_grad():
        last, found = whole.layer_vectors(tokens, [whole.backbone.depth, 1]).unbind(1)
        torch.testing.assert_close(found, first(tokens))
        torch.testing.assert_close(last, whole(tokens))


def test_a_layer_goes_through_the_head_too() -> None:
    encoder = make_encoder()
    encoder.head = fresh_head(32, MlpSpec(kind="mlp", training_only=False), 0)
    tokens = encoder.input_format.pack(sentences(3))
    (found,) = encoder.layer_vectors(tokens, [1]).unbind(1)
    head, encoder.head = encoder.head, None
    torch.testing.assert_close(found, head(encoder.layer_vectors(tokens, [1])[:, 0]))


def test_the_layers_of_a_step_follow_from_seed_and_step() -> None:
    drawn = [prior_layers(TWO_D, 4, 7, step) for step in range(60)]
    assert {layer for (layer,) in drawn} == {1, 2, 3}
    assert drawn == [prior_layers(TWO_D, 4, 7, step) for step in range(60)]
    assert drawn != [prior_layers(TWO_D, 4, 8, step) for step in range(60)]
    assert prior_layers(ESE, 4, 0, 0) == [1, 2, 3]
    assert prior_layers(LayersSpec(which=2), 4, 0, 0) == [2, 3]
    assert [ESE.weight(layer) for layer in (1, 2, 3)] == pytest.approx(
        [1, 0.590616, 0.476505], abs=1e-6
    )  # 1 / (1 + ln k)
    for spec, depth in ((LayersSpec(which=4), 4), (TWO_D, 1), (ESE, 1)):
        with pytest.raises(ValueError, match=f"this model has {depth} in all"):
            prior_layers(spec, depth, 0, 0)


def deep() -> Encoder:
    return make_encoder(NATIVE, num_hidden_layers=3)


@pytest.mark.parametrize("trainable", ["full", "lora"])
@pytest.mark.parametrize("layers", [TWO_D, ESE, LayersSpec(which=2, kl_temperature=None)])
def test_any_split_gives_the_gradient_of_the_whole(layers: LayersSpec, trainable: str, tmp_path: Path) -> None:
    found = []
    for tokens, checkpointing in ((10**6, False), (20, False), (20, True)):
        fields = {"attention_dropout": 0.0, "loss": LossSpec(layers=layers), "gradient_checkpointing": checkpointing}
        stage = make_stage("contrastive", tmp_path, trainable=trainable, micro_batch_tokens=tokens, **fields)
        if trainable == "lora":
            stage = stage.model_copy(update={"lora": stage.lora.model_copy(update={"dropout": 0.0})})
        encoder, objective = deep(), OBJECTIVES["contrastive"]
        prepare(encoder, stage, seed=0)
        rows = next(objective.batches(stage, encoder.input_format, 0, 0))
        metrics = objective.backward(encoder, objective.collate(rows, stage, encoder.input_format, 0), stage)
        found.append({**gradients(encoder), "loss": metrics["loss"]})
    for other in found[1:]:
        assert_same({n: g for n, g in other.items() if g.any()}, {n: g for n, g in found[0].items() if g.any()}, 1e-4)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (LayersSpec(which=3), "needs 3 layers before the last one, and this model has 3 in all"),
        (ESE.model_copy(update={"compression": 33}), "compression` is 33, and the vectors have 32 dimensions"),
    ],
)
def test_what_a_model_does_not_have_is_refused_before_any_stage_runs(
    layers: LayersSpec, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        check_stages(deep(), [make_stage("contrastive", tmp_path, loss=LossSpec(layers=layers))])


@pytest.mark.parametrize("objective", ["contrastive", "simcse"])
@pytest.mark.parametrize("layers", [TWO_D, ESE])
def test_a_stage_learns_and_resumes_bit_for_bit(layers: LayersSpec, objective: str, tmp_path: Path) -> None:
    kind = LossSpec if objective == "contrastive" else SimcseLossSpec
    stage = make_stage(objective, tmp_path, loss=kind(layers=layers, temperature=0.2))
    whole, resumed = deep(), deep()
    before = weights(whole)
    train(whole, stage, tmp_path / "whole", seed=0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3, interrupt)
        train(resumed, stage, tmp_path / "run", seed=0)
    resumed = deep()
    train(resumed, stage, tmp_path / "run", seed=0)
    assert_same(weights(resumed), weights(whole))
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(whole).items() if "layers.0" in name)


def test_an_exported_encoder_is_cut_by_model_layers(tmp_path: Path) -> None:
    encoder = deep()
    encoder.save(tmp_path / "model")
    shallow = Encoder.from_causal_lm(ModelSpec(name=str(tmp_path / "model"), layers=2, dtype="float32"), NATIVE)
    texts = sentences(4)
    tokens = InputFormat(NATIVE, make_tokenizer()).pack(texts)
    wanted = torch.nn.functional.normalize(encoder.layer_vectors(tokens, [2])[:, 0], dim=-1)
    np.testing.assert_allclose(shallow.encode(texts), wanted.detach(), atol=1e-6)
    shallow.save(tmp_path / "shallow")
    np.testing.assert_array_equal(Encoder.load(tmp_path / "shallow").encode(texts), shallow.encode(texts))


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"which": "some"}, "loss.layers.which"),
        ({"which": 0}, "loss.layers.which"),
        ({"kl_temperature": 0}, "loss.layers.kl_temperature"),
        ({"compression": 0}, "loss.layers.compression"),
    ],
)
def test_layers_that_cannot_be(layers: dict, said: str) -> None:
    template = [{"slot": "text", "pool": True}]
    stage = {"objective": "simcse", "data": [{"kind": "files", "path": "x"}], "steps": 1, "batch_size": 2, "lr": 1e-3}
    base = {"name": "a", "model": {"name": "pocket"}, "input": {"query": template, "document": template}}
    with pytest.raises(RecipeError, match=said):
        load_recipe(base | {"pooling": "mean", "stages": [stage | {"loss": {"layers": layers}}]})
    load_recipe(base | {"pooling": "mean", "stages": [stage | {"loss": {"layers": {"which": 2}}}]})
