"""NV-Embed's block and SimCSE's layer: their numbers, their training, their files, and what other programs make of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor

from llm2enc import Encoder, load_recipe
from llm2enc.artifact import read_metadata
from llm2enc.errors import Interrupted
from llm2enc.export import adapter, gguf, mteb, onnx, openvino
from llm2enc.merging import merge
from llm2enc.model import fresh_head, head_outline, vectors_of
from llm2enc.recipe import HeadSpec, InputSpec, LatentAttentionSpec, MlpSpec, Part
from llm2enc.training import checkpoint, train
from llm2enc.verification import verify
from llm2enc.verification.files import check as check_files
from llm2enc.verification.rules import check as check_rules
from llm2enc.verification.rules import verdicts
from tests.support.builders import INPUT, assert_same, gradients, make_encoder, sentences
from tests.training.test_trainer import interrupt, make_stage, stop_after, weights

WIDTH = 32  # of the builders' model
TEXTS = sentences(5, seed=3)
LATENT = LatentAttentionSpec(kind="latent_attention", latents=6, heads=2)
MLP, THROWN = (MlpSpec(kind="mlp", training_only=thrown) for thrown in (False, True))
BOS, TEXT = Part(special="bos", pool=True), Part(slot="text", pool=True)
NATIVE = InputSpec(query=(BOS, TEXT), document=(BOS, TEXT), max_tokens=64)  # pooled as other programs pool
EACH = pytest.mark.parametrize("spec", [LATENT, MLP, THROWN], ids=["latent", "mlp", "thrown away"])


def headed(spec: HeadSpec, input: InputSpec = INPUT, seed: int = 3, **config) -> Encoder:
    encoder = make_encoder(input, **config)
    encoder.head = fresh_head(WIDTH, spec, seed)
    return encoder


# -------------------------------------------------------------------------------------------------------------- numbers


class Perceiver(torch.nn.Module):
    """The block as the paper's authors build it from the parts of Perceiver: pre-norms, cross-attention, GEGLU."""

    def __init__(self, head):
        super().__init__()
        self.head = head.double()

    def forward(self, states: Tensor) -> Tensor:
        w, heads = dict(self.head.named_parameters()), LATENT.heads

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])

        keys, values = (norm(w["latents"], "norm_latents") @ w["to_keys_and_values.weight"].T).chunk(2, dim=-1)
        queries = norm(states, "norm_states") @ w["to_queries.weight"].T
        parts = []
        for number in range(heads):
            own = slice(number * WIDTH, (number + 1) * WIDTH)
            scores = queries[:, own] @ keys[:, own].T * WIDTH**-0.5
            parts.append(scores.softmax(dim=-1) @ values[:, own])
        x = torch.cat(parts, dim=-1) @ w["to_out.weight"].T + states
        wide, gates = (norm(x, "norm_attended") @ w["widen.weight"].T + w["widen.bias"]).chunk(2, dim=-1)
        return (wide * F.gelu(gates)) @ w["narrow.weight"].T + w["narrow.bias"] + x


def test_the_block_is_its_formula_in_value_and_gradient() -> None:
    head = fresh_head(WIDTH, LATENT, seed=1).double()
    given = torch.randn(9, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = {}
    for name, block in (("ours", head.states), ("theirs", Perceiver(head))):
        value = block(given)
        (value * torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view_as(value)).sum().backward()
        found[name] = {**gradients(head), "value": value.detach(), "states": given.grad.clone()}
        given.grad = None
    assert_same(found["ours"], found["theirs"], 1e-10)
    assert len(found["ours"]) == 14 + 2 and all(part.any() for part in found["ours"].values())


def test_with_both_last_layers_zero_the_block_is_the_identity() -> None:
    encoder, plain = headed(LATENT), make_encoder()
    with torch.no_grad():
        for layer in (encoder.head.to_out, encoder.head.narrow):
            for parameter in layer.parameters():
                parameter.zero_()
    np.testing.assert_array_equal(encoder.encode(TEXTS), plain.encode(TEXTS))


def test_the_published_sizes_have_the_published_number_of_weights() -> None:
    """7.85 B of the model card, less the 7.11 B of Mistral without its language-model head."""
    spec = LatentAttentionSpec(kind="latent_attention", latents=512, heads=8)
    assert sum(parameter.numel() for parameter in head_outline(4096, spec).parameters()) == 740_356_096


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last", "first"])
def test_packed_is_padded_is_one_text_at_a_time_and_what_is_not_pooled_does_not_enter(pooling: str) -> None:
    """The instruction's states do not enter, nor do other texts; the first one, out of float16's range, spoils nothing."""
    head = fresh_head(WIDTH, LATENT, seed=1)
    encoder = make_encoder(pooling=pooling)
    tokens = encoder.input_format.pack(TEXTS, "Find it", "query")
    hidden = torch.randn(len(tokens.ids), WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    packed = vectors_of(hidden, tokens, pooling, head)
    packed.square().sum().backward()
    gradient, spoilt = gradients(head), hidden.detach().masked_fill(~tokens.pool[:, None], torch.inf)
    assert (hidden.grad.abs().sum(1) > 0).equal(encoder_needs(pooling, tokens)) and not tokens.pool.all()
    assert torch.equal(vectors_of(spoilt.requires_grad_(), tokens, pooling, head), packed)
    vectors_of(spoilt, tokens, pooling, head).square().sum().backward()
    assert_same(gradients(head), gradient)
    for number, states in enumerate(hidden.detach().split(tokens.lengths.tolist())):
        alone = tokens.select(torch.tensor([number]))
        torch.testing.assert_close(vectors_of(states, alone, pooling, head)[0], packed[number])
        padded = torch.cat([states, torch.randn(3, WIDTH)])
        torch.testing.assert_close(head.states(padded[None])[0, : len(states)], head.states(states))


def encoder_needs(pooling: str, tokens) -> Tensor:
    from llm2enc.model import POOLERS

    return POOLERS[pooling].needed(tokens.pool, tokens.lengths)


def test_a_dense_layer_with_tanh_is_that_of_sentence_transformers() -> None:
    from sentence_transformers.sentence_transformer.modules import Dense

    encoder, plain = headed(MLP), make_encoder()
    theirs = Dense(WIDTH, WIDTH, init_weight=encoder.head.linear.weight, init_bias=encoder.head.linear.bias)
    tokens = encoder.input_format.pack(TEXTS)
    torch.testing.assert_close(encoder(tokens), theirs({"sentence_embedding": plain(tokens)})["sentence_embedding"])


@EACH
def test_a_fresh_head_is_the_same_for_a_seed_and_leaves_the_random_numbers_alone(spec: HeadSpec) -> None:
    before = torch.get_rng_state()
    one, same, other = (fresh_head(WIDTH, spec, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(one, same)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in one.values())


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("objective", ["contrastive", "mntp"])
@EACH
def test_a_head_trains_where_vectors_are_compared(spec: HeadSpec, objective: str, tmp_path: Path) -> None:
    encoder = headed(spec)
    before = weights(encoder)
    train(encoder, make_stage(objective, tmp_path, steps=2), tmp_path / "run", seed=0)
    for name, weight in encoder.head.named_parameters():
        assert torch.equal(weight, before[f"head.{name}"]) == (objective == "mntp"), name


@EACH
def test_any_split_and_16_bit_products_give_the_gradient_of_the_whole(spec: HeadSpec, tmp_path: Path) -> None:
    from llm2enc.training import OBJECTIVES
    from llm2enc.training.prepare import prepare

    found = []
    for tokens in (20, 10**6):
        stage = make_stage("contrastive", tmp_path, trainable="full", attention_dropout=0.0, micro_batch_tokens=tokens)
        encoder, objective = headed(spec), OBJECTIVES["contrastive"]
        prepare(encoder, stage, seed=0)
        rows = next(objective.batches(stage, encoder.input_format, 0, 0))
        objective.backward(encoder, objective.collate(rows, stage, encoder.input_format, 0), stage)
        found.append(gradients(encoder))
    assert_same(*found, 1e-4)
    tokens = encoder.input_format.pack(TEXTS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = encoder(tokens)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, encoder(tokens).detach(), rtol=0.1, atol=0.1)


@EACH
def test_a_stage_resumes_bit_for_bit_and_loads_when_finished(spec: HeadSpec, tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path)
    whole, resumed, loaded = headed(spec), headed(spec), headed(spec)
    train(whole, stage, tmp_path / "whole", seed=0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3, interrupt)
        train(resumed, stage, tmp_path / "run", seed=0)
    resumed = headed(spec)
    train(resumed, stage, tmp_path / "run", seed=0)
    assert_same(weights(resumed), weights(whole))
    checkpoint.load_finished(tmp_path / "run", loaded, stage, seed=0)
    assert_same(weights(loaded), weights(whole))


def test_what_only_trains_is_thrown_away(tmp_path: Path) -> None:
    encoder, plain = headed(THROWN, NATIVE), make_encoder(NATIVE)
    tokens = encoder.input_format.pack(TEXTS)
    assert torch.equal(encoder.train()(tokens), headed(MLP, NATIVE)(tokens))
    np.testing.assert_array_equal(encoder.encode(TEXTS), plain.encode(TEXTS))
    assert encoder.fingerprint() == plain.fingerprint()
    encoder.save(tmp_path / "model")
    assert read_metadata(tmp_path / "model").head is None
    assert Encoder.load(tmp_path / "model").fingerprint() == plain.fingerprint()


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("spec", [LATENT, pytest.param(MLP, marks=pytest.mark.full)], ids=["latent", "mlp"])
def test_a_saved_head_gives_the_same_vectors_in_every_program_that_has_it(spec: HeadSpec, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    encoder = headed(spec, NATIVE)
    encoder.save(folder)
    again, facts = Encoder.load(folder), read_metadata(folder)
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.fingerprint() == encoder.fingerprint() and facts.head == spec
    onnx.write(again, folder, facts)
    openvino.write(again, folder, facts)
    report = verify(folder, encoder=encoder)
    found = {row.engine: row.verdict for row in report.rows}
    engines = ("files", "llm2enc", "sentence-transformers", "transformers", "onnx", "openvino")
    assert {name: found[name] for name in engines} == dict.fromkeys(engines, "agrees"), report
    assert max(row.difference for row in report.rows if row.difference is not None) < 1e-5
    assert spec.words in gguf.unsupported_reason(again, facts)


def test_sentence_transformers_runs_the_directory_s_code_only_if_it_is_told_to(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    encoder = headed(LATENT, NATIVE)
    encoder.save(folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(folder), device="cpu")
    theirs = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(theirs.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)
    card = (folder / "README.md").read_text()
    assert 'SentenceTransformer("path/to/this/directory", trust_remote_code=True)' in card
    assert "vLLM, text-embeddings-inference and llama.cpp cannot compute it" in card
    (source,) = mteb.write(encoder, folder, read_metadata(folder))
    assert "model_prompts=model_prompts, trust_remote_code=True, **options)" in source.read_text()


def test_changed_code_is_named_and_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    encoder = headed(LATENT, NATIVE)
    encoder.save(folder)
    (folder / "latent_attention.py").write_text("raise RuntimeError('it was run')")
    assert "latent_attention.py is not the file" in check_files(folder, read_metadata(folder)).note
    (row,) = verify(folder, ["sentence-transformers"]).rows
    assert row.verdict == "failed" and "trust_remote_code" in row.note
    assert Encoder.load(folder).fingerprint() == encoder.fingerprint()


def test_engines_that_cannot_compute_it_differ(tmp_path: Path) -> None:
    headed(LATENT, NATIVE).save(tmp_path / "model")
    found = verdicts(check_rules(tmp_path / "model"))
    assert (found["vllm"], found["tei"], found["infinity"]) == ("differs", "differs", "unsupported")


def test_blocks_are_merged(tmp_path: Path) -> None:
    for seed in (1, 2):
        headed(LATENT, NATIVE, seed).save(tmp_path / str(seed))
    merge([tmp_path / "1", tmp_path / "2"], tmp_path / "soup")
    one, other = (fresh_head(WIDTH, LATENT, seed).state_dict() for seed in (1, 2))
    wanted = {name: (one[name].double() + other[name].double()).div(2).float() for name in one}
    assert_same(Encoder.load(tmp_path / "soup").head.state_dict(), wanted)


def test_an_adapter_leaves_out_no_head_but_one_that_only_trained(tmp_path: Path) -> None:
    template = [{"slot": "text", "pool": True}]
    stage = {"objective": "simcse", "data": [{"kind": "files", "path": "x"}], "steps": 1, "batch_size": 2, "lr": 1e-3}
    base = {"name": "a", "model": {"name": "pocket"}, "input": {"query": template, "document": template}}
    for spec, said in ((LATENT, "latent_attention head"), (MLP, "mlp head"), (THROWN, "is not finished")):
        recipe = load_recipe(base | {"pooling": "mean", "stages": [stage], "head": json.loads(spec.model_dump_json())})
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
        assert said in adapter.unsupported_reason(tmp_path)
