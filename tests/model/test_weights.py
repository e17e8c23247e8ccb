"""Weights come from the files, every one of them, or the error names those that do not."""

import json
import logging
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, Gemma3ForConditionalGeneration

from llm2enc.errors import InputError
from llm2enc.model import Backbone, inspect, load_backbone, load_model, load_tokenizer
from llm2enc.model.weights import check_tensors, tensor_shapes, unwrapped
from llm2enc.recipe import LoraSpec, ModelSpec
from tests.model.test_backbone import states
from tests.support.builders import make_model, make_tokenizer
from tests.support.tiny import tiny_model

State = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A causal model as its makers give it: an untied head, one file."""
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def change(folder: Path, edit: Callable[[State], State]) -> None:
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: Path, attention: str = "bidirectional") -> Backbone:
    return load_backbone(ModelSpec(name=str(folder), attention=attention, dtype="float32"))


# ------------------------------------------------------------------------------------------------------------- prefixes


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("module.model.norm.weight", "model.norm.weight"),
        ("module._orig_mod.module.norm.weight", "norm.weight"),
        ("base_model.model.model.norm.weight", "model.norm.weight"),
        ("model.layers.0._orig_mod._checkpoint_wrapped_module.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.module.weight", "model.module.weight"),
        ("model.my_orig_mod.weight", "model.my_orig_mod.weight"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_names_without_wrappers(given: str, clean: str) -> None:
    assert unwrapped(given) == clean


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_a_wrapped_checkpoint_gives_the_states_of_the_clean_one(
    prefix: str, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = load(base)
    change(base, lambda state: {prefix + name: tensor for name, tensor in state.items()})
    wrapped = load(base)
    assert torch.equal(states(wrapped), states(clean)) and wrapped.fingerprint() == clean.fingerprint()
    assert f"21 of 21 tensor names carry a wrapper, such as {prefix}lm_head.weight" in caplog.text
    wrapped.model.save_pretrained(tmp_path / "again")  # the wrapper does not come back
    assert load_file(tmp_path / "again" / WEIGHTS).keys() == clean.model.state_dict().keys()


def test_wrapped_shards_are_read_too(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    assert len(set(names.values())) > 2
    for shard in set(names.values()):
        save_file({f"module.{name}": tensor for name, tensor in load_file(tmp_path / shard).items()}, tmp_path / shard)
    index.write_text(json.dumps({"weight_map": {f"module.{name}": shard for name, shard in names.items()}}))
    assert torch.equal(states(load(tmp_path)), states(Backbone(model, True)))


def test_two_names_that_become_one_are_refused(base: Path) -> None:
    change(base, lambda state: state | {"module.model.norm.weight": state["model.norm.weight"] + 1})
    with pytest.raises(InputError, match=r"are both model\.norm\.weight without their wrappers"):
        load(base)


# --------------------------------------------------------------------------------------------------------------- names


LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: {n: t for n, t in s.items() if n != LAST}, rf"1 missing \({LAST}\)"),
        (lambda s: {n.replace("layers", "blocks"): t for n, t in s.items()}, r"18 missing \(.*\.\.\.\); 18 unexpected"),
        (lambda s: s | {"model.layers.1.mlp.extra": torch.ones(2)}, r"1 unexpected \(model\.layers\.1\.mlp\.extra\)"),
        (lambda s: s | {"model.layers.2.mlp.up_proj.weight": torch.ones(2)}, r"1 unexpected \(model\.layers\.2"),
        (lambda s: s | {LAST: torch.ones(32, 47)}, rf"1 of another shape \({LAST} \(32, 47\), not \(32, 48\)\)"),
        (lambda s: s | {"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2)}, "merge its adapter"),
    ],
    ids=["missing", "renamed", "extra", "layer", "shape", "lora"],
)
def test_a_tensor_out_of_place_is_named(edit: Callable[[State], State], words: str, base: Path) -> None:
    change(base, edit)
    with pytest.raises(InputError, match=words):
        load(base)
    with pytest.raises(
        InputError, match=words.replace(f"({LAST}", f"({LAST[6:]}").replace(rf"\({LAST}", rf"\({LAST[6:]}")
    ):
        load_model(AutoModel, str(base), AutoConfig.from_pretrained(base))


def test_experts_that_do_not_stack_are_refused(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    assert load(tmp_path).has_head
    lost = next(name for name in whole if ".experts.1." in name)
    change(tmp_path, lambda state: {name: tensor for name, tensor in state.items() if name != lost})
    with pytest.raises(InputError, match="weights"):
        load(tmp_path)


def test_tied_and_recomputed_tensors_are_known_by_the_family(tmp_path: Path) -> None:
    tied = make_model(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / WEIGHTS) and load(tmp_path / "tied").has_head
    pythia = tiny_model("gpt_neox")
    pythia.save_pretrained(tmp_path / "pythia")
    old = {"gpt_neox.layers.0.attention.masked_bias": torch.ones(1), "gpt_neox.layers.0.attention.bias": torch.ones(4)}
    change(tmp_path / "pythia", lambda state: state | old)  # as its makers published it
    assert torch.equal(load(tmp_path / "pythia").decoder.embed_in.weight, pythia.gpt_neox.embed_in.weight)


def test_a_head_that_is_not_needed_is_left_out_and_said(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = load_model(AutoModel, str(base), AutoConfig.from_pretrained(base))
    assert "left out, as an encoder has no use for them: lm_head.weight" in caplog.text
    assert torch.equal(model.norm.weight, make_model().model.norm.weight)


def test_layers_that_are_not_asked_for_are_left_out_and_said(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = AutoConfig.from_pretrained(base, num_hidden_layers=1)
    with caplog.at_level(logging.INFO):
        model = load_model(AutoModelForCausalLM, str(base), config)
    assert (
        len(model.model.layers) == 1 and "left out, as an encoder has no use for them: model.layers.1." in caplog.text
    )
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))  # by mistake: not asked for
    with pytest.raises(InputError, match=r"9 unexpected \(model\.layers\.1\."):
        load(base)


def test_a_decoder_without_a_head_is_used_alone_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_model().model.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO):
        found = load(tmp_path)
    assert not found.has_head and "the decoder is used alone, for lack of lm_head.weight" in caplog.text
    assert torch.equal(states(found), states(Backbone(make_model(), True)))


def test_a_vision_tower_may_be_missing_and_a_layer_of_the_text_model_not(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["gemma3"](
        text_config=tiny_model("gemma3_text").config.to_dict(),
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    expected = load(tmp_path)
    assert expected.has_head
    change(tmp_path, lambda state: {name: tensor for name, tensor in state.items() if "vision" not in name})
    assert load(tmp_path).fingerprint() == expected.fingerprint()
    change(tmp_path, lambda state: {name: tensor for name, tensor in state.items() if "layers.0.mlp.up" not in name})
    with pytest.raises(InputError, match=r"1 missing \(.*layers\.0\.mlp\.up_proj\.weight\)"):
        load(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_cut_file_is_named_with_both_sizes(base: Path) -> None:
    path = base / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(InputError, match=rf"{WEIGHTS} has {len(whole) - 1000} bytes.*describes {len(whole)}"):
        load(base)
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match=rf"{WEIGHTS} has 100 bytes and is cut"):
        load(base)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 538090408\n")
    with pytest.raises(InputError, match="git lfs pull"):
        load(base)


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=rf"lacks {lost.name} of its weights"):
        load(tmp_path)


def test_shapes_are_those_of_the_file(base: Path) -> None:
    assert tensor_shapes(base / WEIGHTS) == {n: tuple(t.shape) for n, t in load_file(base / WEIGHTS).items()}


def test_a_file_of_other_tensors_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "x.safetensors")
    check_tensors(tmp_path / "x.safetensors", {"a": (2,), "b": (3,)}, "me", "go")
    with pytest.raises(
        InputError, match=r"1 missing \(c\); 1 unexpected \(a\); 1 of another shape \(b \(3,\), not \(4,\)"
    ):
        check_tensors(tmp_path / "x.safetensors", {"c": (2,), "b": (4,)}, "me", "go")


# ------------------------------------------------------------------------------------------------------------- adapters


def run_line(message: str, **places: Path) -> None:
    """What a user would do: paste the command of the message."""
    code = shlex.split(message.partition("python -c ")[2])[0]
    for name, place in places.items():
        code = code.replace(f"'{name}'", repr(str(place)))
    exec(code, {})


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    backbone = Backbone(make_model(), bidirectional=False)
    backbone.add_lora(LoraSpec(r=2, alpha=4, dropout=0.0), seed=0)
    backbone.save_adapter(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base)}))
    return tmp_path / "adapter"


def test_an_adapter_beside_the_weights_is_refused(base: Path, adapter: Path) -> None:
    for file in adapter.iterdir():
        file.rename(base / file.name)
    for loading in (lambda: load(base), lambda: load_model(AutoModel, str(base), make_model().config)):
        with pytest.raises(
            InputError, match=r"holds an adapter \(adapter_config\.json\) beside its weights.*python -c"
        ):
            loading()


def test_an_adapter_alone_is_refused_with_its_base_and_the_command(base: Path, adapter: Path) -> None:
    for loading in (load, inspect, lambda folder: load_tokenizer(ModelSpec(name=str(folder)))):
        with pytest.raises(InputError, match=rf"holds an adapter, not a model: it was trained on {base}.*python -c"):
            loading(adapter)


@pytest.mark.parametrize("causal", [False, True])
def test_the_command_makes_the_merged_model(causal: bool, base: Path, adapter: Path, tmp_path: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    weights = {name: tensor + 0.1 for name, tensor in load_file(path).items()}
    save_file(weights, path)
    expected = load(base)
    expected.add_lora(LoraSpec(r=2, alpha=4, dropout=0.0), seed=0)
    expected.load_adapter(adapter)
    expected.merge_lora()
    if causal:  # the names that an adapter of the model with its head has
        save_file({name.replace("model.layers", "model.model.layers"): t for name, t in weights.items()}, path)
    with pytest.raises(InputError) as refused:
        load(adapter)
    run_line(str(refused.value), merged=tmp_path / "merged")
    assert load(tmp_path / "merged").has_head == causal
    assert torch.allclose(states(load(tmp_path / "merged")), states(expected), atol=1e-5)
    assert (states(expected) - states(load(base))).abs().max() > 0.1
