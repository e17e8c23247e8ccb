"""One adapter for a whole run: PEFT alone opens it, and its vectors are those of the chain of stages."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llm2enc.artifact import HistoryRow, read_metadata, write_metadata
from llm2enc.encoding import Encoder
from llm2enc.export import adapter
from llm2enc.model import Backbone, load_backbone
from llm2enc.recipe import Recipe, load_recipe
from llm2enc.training import checkpoint
from tests.model.test_backbone import some_tokens, stir
from tests.support.builders import assert_same
from tests.support.tiny import tiny_model

# Differing ranks, scalings and targets: every stage leaves something alone that another one trains.
CHAIN = (
    {"r": 2, "alpha": 3},
    {"r": 4, "alpha": 2, "targets": ["q_proj", "v_proj"]},
    {"r": 3, "alpha": 9, "targets": ["embed_tokens", "k_proj", "down_proj"]},
)
EVERYWHERE = ({"r": 2, "alpha": 3}, {"r": 4, "alpha": 2})
LINEAR = {"llama": CHAIN, "gpt_neox": EVERYWHERE, "opt": EVERYWHERE, "gpt2": EVERYWHERE, "gemma3": CHAIN}


def stage(lora: dict | None) -> dict:
    shape = lora if lora == "continue" else {"dropout": 0.0, **(lora or {})}
    kind = {"trainable": "full", "precision": "float32"} if lora is None else {"lora": shape}
    data = [{"kind": "docstrings", "view": "paragraphs"}]
    return {"objective": "clm", "data": data, "steps": 1, "batch_size": 1, "lr": 0.1, **kind}


def make_run(folder: Path, chain=CHAIN, family: str = "llama", **model) -> tuple[Path, Backbone]:
    """A finished run on a tiny base of that family, and the backbone after its last stage."""
    tiny_model(family, tie_word_embeddings=True).save_pretrained(folder / "base")
    template = [{"slot": "text", "pool": True}]
    recipe: Recipe = load_recipe(
        {
            "name": "tiny",
            "model": {"name": str(folder / "base"), "dtype": "float32", **model},
            "input": {"query": template, "document": template},
            "pooling": "mean",
            "stages": [stage(lora) for lora in chain],
        }
    )
    run = folder / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    backbone = load_backbone(recipe.model)
    for index, trained in enumerate(recipe.stages):
        parent = backbone.fingerprint(adapter=True)
        if trained.lora is None:
            backbone.train_everything(head=False)
        else:
            checkpoint.put_adapter(backbone, trained, seed=index)
        stir(backbone)
        (run / f"{index}-clm").mkdir()
        checkpoint.finish(
            run / f"{index}-clm", Encoder(backbone, None, "mean"), parent, {}, recipe.adapter_goes_on(index)
        )
    return run, backbone.eval()


def hidden(model: torch.nn.Module) -> Tensor:
    """Last-layer states of every text alone: what some other program computes."""
    tokens = some_tokens()
    model.eval()
    with torch.no_grad():
        rows = [
            model(input_ids=ids[None] % 128, output_hidden_states=True).hidden_states[-1][0]
            for ids in tokens.ids.split(tokens.lengths.tolist())
        ]
    return torch.cat(rows)


def own(backbone: Backbone) -> Tensor:
    tokens = some_tokens()
    tokens.ids.remainder_(128)
    with torch.no_grad():
        return backbone.hidden(tokens)


def open_by_peft(kind, base: Path, folder: Path) -> torch.nn.Module:
    """The base with the adapter as its README says; every tensor of the file must arrive."""
    from peft import PeftModel, get_peft_model_state_dict
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    config.get_text_config().is_causal = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys")
        opened = kind.from_pretrained(base, config=config, dtype="float32")
        inside = json.loads((folder / adapter.METADATA).read_text()).get("inside")
        model = PeftModel.from_pretrained(opened.get_submodule(inside) if inside else opened, folder)
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert_same(loaded, load_file(folder / "adapter_model.safetensors"))
    return model


# ----------------------------------------------------------------------------------------------------------- opened again


@pytest.mark.parametrize("family", LINEAR)
def test_peft_opens_both_forms_and_gives_the_vectors_of_the_run(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    run, backbone = make_run(tmp_path, LINEAR[family], family)
    files = adapter.write(run, tmp_path / "out")
    assert sorted(files) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) and len(files) == 8
    expected = own(backbone)
    for kind, form in ((AutoModel, adapter.DECODER), (AutoModelForCausalLM, adapter.CAUSAL_LM)):
        found = hidden(open_by_peft(kind, tmp_path / "base", tmp_path / "out" / form))
        assert torch.allclose(found, expected, atol=1e-4)
        assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.9999


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # of the second, AutoModel opens a model with vision
@pytest.mark.parametrize("form", [adapter.DECODER, adapter.CAUSAL_LM])
def test_the_readme_can_be_run(form: str, family: str, tmp_path: Path) -> None:
    run, backbone = make_run(tmp_path, family=family)
    adapter.write(run, tmp_path / "out")
    code = (tmp_path / "out" / form / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/the/base", str(tmp_path / "base"))
    found: dict = {}
    exec(code.replace("path/to/this/directory", str(tmp_path / "out" / form)), found)
    assert torch.allclose(hidden(found["model"]), own(backbone), atol=1e-4)


def test_without_the_adapter_or_the_switch_the_vectors_are_others(tmp_path: Path) -> None:
    """The comparison above can fail."""
    from peft import PeftModel
    from transformers import AutoModel

    run, backbone = make_run(tmp_path)
    adapter.write(run, tmp_path / "out")
    causal = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "out" / "adapter")
    bare = load_backbone(load_recipe(str(run / "recipe.yaml")).model).eval()
    for other in (hidden(causal), own(bare)):
        assert torch.cosine_similarity(other, own(backbone), dim=-1).min() < 0.99


def test_one_adapter_is_the_chain_that_peft_merges(tmp_path: Path) -> None:
    """PEFT alone on both sides, with rank-stabilised scaling in one stage."""
    from peft import PeftModel
    from transformers import AutoModel

    run, _ = make_run(tmp_path)
    path = run / "1-clm" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    chain = AutoModel.from_pretrained(tmp_path / "base")
    for index in range(3):
        chain = PeftModel.from_pretrained(chain, run / f"{index}-clm" / "adapter").merge_and_unload()
    adapter.write(run, tmp_path / "out")
    base = AutoModel.from_pretrained(tmp_path / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").merge_and_unload()
    assert_same(dict(merged.named_parameters()), dict(chain.named_parameters()), tolerance=1e-6)


def test_a_continued_adapter_counts_once(tmp_path: Path) -> None:
    run, backbone = make_run(tmp_path, (CHAIN[0], "continue", CHAIN[1], "continue"))
    adapter.write(run, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == CHAIN[0]["r"] + CHAIN[1]["r"]
    base = load_backbone(load_recipe(str(run / "recipe.yaml")).model).eval()
    adapter.load(base, tmp_path / "out" / "adapter")
    assert_same(dict(base.named_parameters()), dict(backbone.named_parameters()), tolerance=1e-6)


def test_factors_are_stacked_and_padded_with_zeros() -> None:
    one = {("q", "lora"): (torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0], [5.0]]))}
    two = {
        ("q", "lora"): (torch.tensor([[6.0, 7.0], [8.0, 9.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])),
        ("k", "lora"): (torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0]])),
    }
    found = adapter.stack([one, two])
    a, b = found["q", "lora"]
    assert a.tolist() == [[1, 2], [6, 7], [8, 9]] and b.tolist() == [[3, 1, 2], [4, 3, 4], [5, 5, 6]]
    a, b = found["k", "lora"]
    assert a.tolist() == [[0, 0], [1, 1], [0, 0]] and b.tolist() == [[0, 2, 0]]


def test_targets_are_short_where_that_is_unambiguous() -> None:
    names = {"layers.0.up", "layers.1.up", "layers.0.down", "head.down"}
    assert adapter._targets({"layers.0.up", "layers.1.up"}, names) == ["up"]
    assert adapter._targets({"layers.0.up", "layers.0.down"}, names) == ["layers.0.down", "layers.0.up"]


# -------------------------------------------------------------------------------------------------------------- our loader


def test_our_loader_makes_the_weights_of_the_run(tmp_path: Path) -> None:
    run, backbone = make_run(tmp_path)
    adapter.write(run, tmp_path / "out")
    base = load_backbone(load_recipe(str(run / "recipe.yaml")).model).eval()
    adapter.load(base, tmp_path / "out" / "adapter")
    assert not base.has_adapter and not base.trained()
    assert_same(dict(base.named_parameters()), dict(backbone.named_parameters()), tolerance=1e-6)


def test_a_wrong_parent_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    run, backbone = make_run(tmp_path)
    adapter.write(run, tmp_path / "out")
    parent = json.loads((run / "0-clm" / "finished.json").read_text())["parent"]
    before = backbone.fingerprint()
    with pytest.raises(ValueError, match=f"belongs on weights {parent}, but these are {before}"):
        adapter.load(backbone, tmp_path / "out" / "adapter")
    assert backbone.fingerprint() == before
    halved = load_backbone(load_recipe(str(run / "recipe.yaml"), ["model.dtype=bfloat16"]).model)
    with pytest.raises(ValueError, match="stored as bfloat16, those were loaded as float32"):
        adapter.load(halved, tmp_path / "out" / "adapter")


def test_another_direction_or_form_is_refused(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    adapter.write(run, tmp_path / "out")
    causal = load_backbone(load_recipe(str(run / "recipe.yaml"), ["model.attention=causal"]).model)
    with pytest.raises(ValueError, match="trained with bidirectional attention; this model is read as causal"):
        adapter.load(causal, tmp_path / "out" / "adapter")
    with pytest.raises(ValueError, match="give the directory `adapter` beside it"):
        adapter.load(causal, tmp_path / "out" / "adapter-causal-lm")
    with pytest.raises(ValueError, match=r"has no llm2enc_adapter\.json"):
        adapter.load(causal, run / "0-clm" / "adapter")


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("chain", [(None,), (CHAIN[0], None), ()], ids=["full", "lora and full", "none"])
def test_what_no_adapter_can_hold_is_refused(chain: tuple, tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, chain)
    reason = adapter.unsupported_reason(run)
    assert ("changed all weights" in reason) if chain else ("trained no stage" in reason)
    with pytest.raises(ValueError, match=re.escape(reason)):
        adapter.write(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
    ],
)
def test_an_adapter_that_is_more_than_a_product_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    assert adapter.unsupported_reason(run) == ""
    path = run / "1-clm" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in adapter.unsupported_reason(run) and "1-clm" in adapter.unsupported_reason(run)


def test_a_run_that_is_broken_or_not_finished_is_refused(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    tensors = run / "2-clm" / "adapter" / "adapter_model.safetensors"
    tensors.rename(run / "elsewhere")
    assert f"the adapter of {run / '2-clm'} is missing" in adapter.unsupported_reason(run)
    (run / "elsewhere").rename(tensors)
    path = run / "1-clm" / "finished.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"parent": "0" * 64}))
    assert "1-clm was trained on weights 000000000000" in adapter.unsupported_reason(run)
    path.unlink()
    assert "not finished (1-clm)" in adapter.unsupported_reason(run)
    assert "no run of llm2enc" in adapter.unsupported_reason(tmp_path / "base")


def test_nothing_of_others_is_replaced(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    with pytest.raises(ValueError, match="in use and was not written by this export"):
        adapter.write(run, run / "0-clm")  # a stage's own adapter has the same name
    other = tmp_path / "other"
    other.mkdir()
    metadata = read_metadata(Path(__file__).parents[1] / "fixtures" / "format-1").model_copy(
        update={"fingerprint": "1" * 64}
    )
    write_metadata(other, metadata)
    with pytest.raises(ValueError, match="holds an encoder with weights 111111111111, the run made"):
        adapter.write(run, other)
    assert [path.name for path in other.iterdir()] == ["llm2enc.json"]
    result = json.loads((run / "2-clm" / "finished.json").read_text())["result"]
    trained = HistoryRow(stage="after clm", scores={}, seconds=1.0, result=result)
    for change in ({"fingerprint": result}, {"history": [*metadata.history, trained]}):
        write_metadata(other, metadata.model_copy(update=change))
        assert adapter.write(run, other)  # the run's own encoder, as trained or in another storage type
    first = adapter.write(run, tmp_path / "out")
    assert adapter.write(run, tmp_path / "out") == first


def test_the_readme_says_how_to_open_it_and_a_hub_id_is_named(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    adapter.write(run, tmp_path / "out")
    text = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert (
        "config.get_text_config().is_causal = False" in text
        and "AutoModel.from_pretrained" in text
        and str(tmp_path) not in text
    )
    assert (
        json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == ""
    )
    recipe = load_recipe(str(run / "recipe.yaml"), ["model.name=someone/llama-1b", "model.attention=causal"])
    metadata = adapter._metadata(recipe, [run / "0-clm"], rank=2)
    assert metadata["base"] == "someone/llama-1b"
    both = adapter._readme(adapter.DECODER, metadata | {"attention": "bidirectional", "bidirectional_base": True})
    assert "is_causal" not in both and "stays bidirectional; nothing has to be switched" in both
    text = adapter._readme(adapter.CAUSAL_LM, metadata)
    assert "base_model: someone/llama-1b" in text and "is_causal" not in text and "AutoModelForCausalLM" in text


def test_an_adapter_of_the_first_layers_is_refused(tmp_path: Path) -> None:
    stage = {"objective": "simcse", "data": [{"kind": "docstrings"}], "steps": 1, "batch_size": 2, "lr": 1e-4}
    text = [{"slot": "text", "pool": True}]
    fields = {"name": "run", "pooling": "mean", "input": {"query": text, "document": text}, "stages": [stage]}
    recipe = load_recipe({**fields, "model": {"name": "pocket", "layers": 2}})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert "keeps the first 2 layers of its model" in adapter.unsupported_reason(tmp_path)
