"""A projection behind the pooling: its numbers, its training, its files, and what other programs make of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from llm2enc import Encoder, load_recipe
from llm2enc.artifact import read_metadata
from llm2enc.errors import CannotExport, Interrupted, RecipeError
from llm2enc.export import adapter, gguf, onnx, openvino
from llm2enc.merging import merge
from llm2enc.model import fresh_head
from llm2enc.model.heads import orthogonal
from llm2enc.recipe import InputSpec, Part, ProjectionSpec
from llm2enc.training import checkpoint, train
from llm2enc.verification import verify
from llm2enc.verification.files import check as check_files
from llm2enc.verification.rules import check as check_rules
from llm2enc.verification.rules import verdicts
from tests.support.builders import INPUT, assert_same, gradients, make_backbone, make_encoder, sentences
from tests.training.test_trainer import interrupt, make_stage, stop_after, weights

WIDTH = 32  # of conftest's model
TEXTS = sentences(5, seed=3)
BOS, TEXT = Part(special="bos", pool=True), Part(slot="text", pool=True)
NATIVE = InputSpec(query=(BOS, TEXT), document=(BOS, TEXT), max_tokens=64)  # pooled as other programs pool


def headed(dimensions: int = 12, bias: bool = True, input: InputSpec = INPUT, seed: int = 3) -> Encoder:
    """An encoder with a projection whose bias, if there is one, is not zero."""
    encoder = make_encoder(input)
    spec = ProjectionSpec(kind="projection", dimensions=dimensions, bias=bias)
    encoder.head = fresh_head(WIDTH, spec, seed)
    if bias:
        with torch.no_grad():
            encoder.head.linear.bias.copy_(torch.linspace(-0.1, 0.1, dimensions))
    return encoder


def saved(folder: Path, **options) -> Path:
    headed(input=NATIVE, **options).save(folder)
    return folder


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "llm2enc.json").read_text())


# -------------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(("rows", "columns"), [(8, 32), (32, 32), (48, 32)])
def test_a_fresh_matrix_is_orthonormal_along_its_shorter_side(rows: int, columns: int) -> None:
    matrix = orthogonal(rows, columns, seed=1)
    product = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    torch.testing.assert_close(product, torch.eye(min(rows, columns)), atol=5e-5, rtol=0)
    assert torch.equal(matrix, orthogonal(rows, columns, seed=1))
    assert not torch.equal(matrix, orthogonal(rows, columns, seed=2))
    assert torch.equal(matrix * 2**16, torch.round(matrix * 2**16)), "the last bits of a decomposition show"


def test_vectors_and_gradients_are_those_of_a_product_by_hand() -> None:
    encoder, plain = headed(), make_encoder()
    weight, bias = encoder.head.linear.weight.detach(), encoder.head.linear.bias.detach()
    assert encoder.dimensions == 12
    tokens = encoder.input_format.pack(TEXTS)
    pooled = plain(tokens)
    vectors = encoder(tokens)
    torch.testing.assert_close(vectors, pooled @ weight.T + bias)
    upstream = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    vectors.backward(upstream)
    ours = gradients(encoder)
    torch.testing.assert_close(ours.pop("head.linear.weight"), upstream.T @ pooled.detach())
    torch.testing.assert_close(ours.pop("head.linear.bias"), upstream.sum(0))
    pooled.backward(upstream @ weight)
    assert_same(ours, gradients(plain), 1e-5)


def test_a_head_computes_in_float32_whatever_the_stages_precision() -> None:
    encoder = headed()
    tokens = encoder.input_format.pack(TEXTS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = encoder(tokens)
        encoder.head, head = None, encoder.head
        pooled = encoder(tokens)
    assert found.dtype == torch.float32
    assert torch.equal(found, head(pooled))


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize(
    ("objective", "moves"), [("clm", False), ("mntp", False), ("simcse", True), ("contrastive", True)]
)
def test_a_head_trains_where_vectors_are_compared(objective: str, moves: bool, trainable: str, tmp_path: Path) -> None:
    encoder = headed()
    before = weights(encoder)
    train(encoder, make_stage(objective, tmp_path, trainable=trainable, steps=2), tmp_path / "run", seed=0)
    for name, weight in encoder.head.named_parameters():
        # InfoNCE compares directions of vectors, so a bias moves too.
        assert torch.equal(weight, before[f"head.{name}"]) != moves
    assert (tmp_path / "run" / checkpoint.HEAD).exists() == moves
    assert not encoder.trained()


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_a_stage_with_a_head_resumes_bit_for_bit_and_loads_when_finished(trainable: str, tmp_path: Path) -> None:
    stage = make_stage("contrastive", tmp_path, trainable=trainable)
    whole, resumed, loaded = headed(), headed(), headed()
    train(whole, stage, tmp_path / "whole", seed=0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 3, interrupt)
        train(resumed, stage, tmp_path / "run", seed=0)
    resumed = headed()
    train(resumed, stage, tmp_path / "run", seed=0)
    assert_same(weights(resumed), weights(whole))
    checkpoint.load_finished(tmp_path / "run", loaded, stage, seed=0)
    assert_same(weights(loaded), weights(whole))
    with pytest.raises(ValueError, match="was trained on weights"):
        checkpoint.load_finished(tmp_path / "run", headed(seed=4), stage, seed=0)


def test_a_checkpoint_of_another_head_is_refused(tmp_path: Path) -> None:
    encoder = headed()
    checkpoint.save(tmp_path, 1, encoder, torch.optim.AdamW(encoder.parameters()))
    other = headed(dimensions=8)
    with pytest.raises(ValueError, match="trains other weights"):
        checkpoint.resume(tmp_path, other, torch.optim.AdamW(other.parameters()))


# --------------------------------------------------------------------------------------------------------------- recipe

STAGE = {"objective": "contrastive", "data": [{"kind": "files", "path": "x"}], "steps": 1, "batch_size": 2, "lr": 1e-3}


def recipe_of(stages: list[dict], **fields) -> dict:
    template = [{"slot": "text", "pool": True}]
    base = {
        "name": "a",
        "model": {"name": "pocket"},
        "input": {"query": template, "document": template},
        "pooling": "mean",
    }
    return base | {"stages": stages} | fields


def test_a_recipe_says_the_head() -> None:
    recipe = load_recipe(recipe_of([STAGE], head={"kind": "projection", "dimensions": 24}, seed=5))
    encoder = Encoder.from_recipe(recipe)
    assert encoder.dimensions == 24 and encoder.encode("a").shape == (24,)
    assert torch.equal(encoder.head.linear.weight, orthogonal(24, encoder.backbone.width, seed=5))
    assert load_recipe(recipe_of([STAGE])).head is None


@pytest.mark.parametrize(
    ("stages", "head", "said"),
    [
        ([], {"kind": "projection", "dimensions": 8}, "no stage trains it"),
        ([STAGE], {"kind": "latent", "dimensions": 8}, "projection"),
        ([STAGE], {"kind": "projection", "dimensions": 0}, "greater than 0"),
        ([STAGE], {"kind": "projection"}, "dimensions"),
    ],
)
def test_heads_that_cannot_be(stages: list[dict], head: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(recipe_of(stages, head=head))


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("bias", "normalize"), [(True, True), (False, True), (True, False)])
def test_a_saved_head_gives_the_same_vectors_in_sentence_transformers(
    bias: bool, normalize: bool, tmp_path: Path
) -> None:
    encoder = headed(bias=bias, input=NATIVE)
    encoder.normalize = normalize
    encoder.save(tmp_path / "model")
    vectors, again = encoder.encode(TEXTS), Encoder.load(tmp_path / "model")
    np.testing.assert_array_equal(again.encode(TEXTS), vectors)
    assert again.fingerprint() == encoder.fingerprint()
    assert again.head.spec == encoder.head.spec
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.get_embedding_dimension() == 12
    np.testing.assert_allclose(theirs.encode(TEXTS), vectors, atol=1e-6 * np.abs(vectors).max())
    facts, places = facts_of(tmp_path / "model"), json.loads((tmp_path / "model" / "modules.json").read_text())
    assert facts["dimensions"] == 12 and facts["head"] == {"kind": "projection", "dimensions": 12, "bias": bias}
    np.testing.assert_allclose(facts["golden"]["vectors"], encoder.encode(facts["golden"]["texts"]), atol=1e-6)
    assert [row["path"] for row in places] == ["", "1_Pooling", "2_Dense", "3_Normalize"][: 3 + normalize]


def test_a_head_stays_float32_beside_16_bit_weights(tmp_path: Path) -> None:
    encoder = headed(input=NATIVE)
    encoder.save(tmp_path / "model", dtype="bfloat16")
    again = Encoder.load(tmp_path / "model")
    assert next(again.backbone.parameters()).dtype == torch.bfloat16
    assert_same(again.head.state_dict(), encoder.head.state_dict())


def test_a_directory_without_a_head_says_nothing_of_one(tmp_path: Path) -> None:
    make_encoder(NATIVE).save(tmp_path / "model")
    assert "head" not in facts_of(tmp_path / "model")
    assert Encoder.load(tmp_path / "model").head is None


def test_two_encoders_that_differ_in_the_head_alone_have_two_fingerprints(tmp_path: Path) -> None:
    one, other = headed(), headed(seed=4)
    assert one.backbone.fingerprint() == other.backbone.fingerprint()
    assert len({it.fingerprint() for it in (one, other, make_encoder())}) == 3
    assert len({it.weights_fingerprint() for it in (one, other, make_encoder())}) == 3
    assert make_encoder().weights_fingerprint() == make_backbone().fingerprint()


def test_damage_to_the_weights_of_a_head_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "model") / "2_Dense" / "model.safetensors"
    state = load_file(path)
    save_file({**state, "linear.weight": state["linear.weight"] + 1}, path)
    (row,) = verify(tmp_path / "model", ["llm2enc"]).rows[:1]
    assert "fingerprint" in row.note
    with pytest.raises(ValueError, match=r"2_Dense/model\.safetensors is not the file that was written"):
        Encoder.load(tmp_path / "model")
    save_file({"linear.weight": state["linear.weight"][:5]}, path)
    with pytest.raises(ValueError, match=r"not those of the head that llm2enc\.json describes"):
        Encoder.load(tmp_path / "model", full_proof=True)
    path.unlink()
    with pytest.raises(ValueError, match="copy the whole directory"):
        Encoder.load(tmp_path / "model", full_proof=True)


@pytest.mark.parametrize(
    ("key", "value"), [("out_features", 5), ("activation_function", "torch.nn.Tanh"), ("bias", False)]
)
def test_a_changed_dense_module_is_named(key: str, value: object, tmp_path: Path) -> None:
    path = saved(tmp_path / "model") / "2_Dense" / "config.json"
    facts = read_metadata(tmp_path / "model")
    assert check_files(tmp_path / "model", facts).verdict != "differs"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert f"2_Dense/config.json: {key} is {value!r}" in check_files(tmp_path / "model", facts).note


# ------------------------------------------------------------------------------------------------------- other programs


def test_plain_transformers_and_the_graphs_give_the_vectors(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    encoder, facts = Encoder.load(folder), read_metadata(folder)
    onnx.write(encoder, folder, facts)
    openvino.write(encoder, folder, facts, dtypes=("float32", "float16"))
    engines = ["transformers", "onnx", "openvino"]
    rows = [row for row in verify(folder, engines).rows if row.engine in engines]
    assert {row.verdict for row in rows} == {"agrees"} and len(rows) == 4
    assert max(row.difference for row in rows if row.dtype == "float32") < 1e-5


def test_what_holds_no_head_refuses_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    said = gguf.unsupported_reason(Encoder.load(folder), read_metadata(folder))
    assert "linear projection to 12 dimensions" in said and "onnx" in said
    with pytest.raises(CannotExport, match="projection to 12"):
        gguf.write(Encoder.load(folder), folder, read_metadata(folder))
    recipe = load_recipe(recipe_of([STAGE], head={"kind": "projection", "dimensions": 24}))
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert "projection head" in adapter.unsupported_reason(tmp_path)


def test_engines_whose_handling_was_not_read_are_unknown(tmp_path: Path) -> None:
    with_head, without = saved(tmp_path / "one"), tmp_path / "two"
    make_encoder(NATIVE).save(without)
    assert {verdicts(check_rules(without))[name] for name in ("vllm", "tei")} == {"agrees"}
    assert {verdicts(check_rules(with_head))[name] for name in ("vllm", "tei")} == {"unknown"}


# -------------------------------------------------------------------------------------------------------------- merging


def test_merged_encoders_have_the_mean_of_their_heads(tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    merge(folders, tmp_path / "soup", weights=[3, 1])
    one, other, soup = (load_file(place / "2_Dense" / "model.safetensors") for place in (*folders, tmp_path / "soup"))
    wanted = {name: (0.75 * one[name].double() + 0.25 * other[name].double()).float() for name in one}
    assert_same(soup, wanted)
    assert Encoder.load(tmp_path / "soup").dimensions == 12


def test_heads_that_cannot_be_merged_are_refused(tmp_path: Path) -> None:
    one, other, plain = saved(tmp_path / "one"), saved(tmp_path / "other", dimensions=8), tmp_path / "plain"
    make_encoder(NATIVE).save(plain)
    for place in (other, plain):
        with pytest.raises(ValueError, match="the head is"):
            merge([one, place], tmp_path / "soup")
    with pytest.raises(ValueError, match="merge without a base"):
        merge([one], tmp_path / "soup", base=shutil.copytree(plain, tmp_path / "base"), base_weight=0.5)
