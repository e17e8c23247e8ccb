"""`model.layers: N`: the states of layer N of the whole model, through its final norm, or a refusal by name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config

from llm2enc.artifact import read_metadata
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import Backbone, decoder_layers, inspect, load_backbone, load_config
from llm2enc.model.families import families
from llm2enc.model.hooks import LayerStates
from llm2enc.model.layers import cut
from llm2enc.recipe import ModelSpec
from llm2enc.text import InputFormat
from tests.support.builders import INPUT, make_model, make_tokenizer
from tests.support.tiny import tiny_config, tiny_model

WINDOWS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": {},
    "gemma2": WINDOWS,
    "gemma3_text": WINDOWS,
    "qwen2_moe": {**WINDOWS, "mlp_only_layers": [0, 3]},
    "mixtral": {},
    "gpt_oss": WINDOWS,
    "gpt_neox": {},
    "smollm3": {"no_rope_layers": [1, 0, 1, 0], "layer_types": ["full_attention"] * 4},
    "opt": {},
}


def states(model: nn.Module, tokens, layer: int, bidirectional: bool) -> Tensor:
    """Hidden states (T, D) of one layer of the whole model, through its final norm."""
    backbone = Backbone(model, bidirectional)
    norms = [
        module
        for name, module in backbone.decoder.named_modules()
        if name in ("norm", "final_layernorm", "final_layer_norm", "decoder.final_layer_norm", "ln_f")
    ]
    with LayerStates(backbone.decoder) as seen, torch.no_grad():
        backbone.hidden(tokens)
    assert len(norms) == 1
    return norms[0](seen.found[layer])[0].detach()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_the_beginning_of_the_whole_model(tmp_path: Path, family: str, bidirectional: bool) -> None:
    tokenizer = make_tokenizer()
    model = tiny_model(family, num_hidden_layers=4, vocab_size=len(tokenizer), **FAMILIES[family])
    model.save_pretrained(tmp_path)
    tokens = InputFormat(INPUT, tokenizer).pack(["the river runs through the old town", "wool and wine"])
    attention = "bidirectional" if bidirectional else "causal"
    for layers in (1, 3, 4):
        spec = ModelSpec(name=str(tmp_path), dtype="float32", attention=attention, layers=layers)
        kept = load_backbone(spec)
        assert kept.depth == layers and len(decoder_layers(kept.decoder)) == layers
        with torch.no_grad():
            found = kept.hidden(tokens)
        # A fresh whole model each time: opening it changes it.
        whole = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
        torch.testing.assert_close(found, states(whole, tokens, layers, bidirectional), rtol=1e-5, atol=1e-5)


def test_every_list_of_one_entry_a_layer_is_cut() -> None:
    config = tiny_config("gemma3_text", num_hidden_layers=4, **WINDOWS)
    found = cut(config, 3)
    assert found.num_hidden_layers == 3 and found.layer_types == WINDOWS["layer_types"][:3]
    assert config.num_hidden_layers == 4 and len(config.layer_types) == 4
    assert cut(config, None) is config
    assert cut(GPT2Config(n_layer=4, n_embd=32, n_head=4, vocab_size=64), 2).n_layer == 2


@pytest.mark.parametrize(
    ("config", "layers", "said"),
    [
        (lambda: make_model().config, 3, "llama has 2 layers"),
        (
            lambda: tiny_config("gemma3n_text"),
            2,
            "the last 2 layers of gemma3n_text read keys and values of layers before",
        ),
        (lambda: tiny_config("zamba"), 2, "zamba cannot be used"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(config, layers: int, said: str) -> None:
    with pytest.raises(InputError, match=f"`model.layers: {layers}`.* {said}"):
        cut(config(), layers)


def test_an_encoder_of_them_is_saved_and_opened_like_any_other(tmp_path: Path) -> None:
    make_model(num_hidden_layers=4).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    spec = ModelSpec(name=str(tmp_path / "base"), dtype="float32", layers=3)
    encoder = Encoder.from_causal_lm(spec, INPUT)
    encoder.save(tmp_path / "out")
    again = Encoder.load(tmp_path / "out")
    assert again.backbone.config.num_hidden_layers == 3 and read_metadata(tmp_path / "out").proof.layers == 3
    assert again.weights_fingerprint() == encoder.weights_fingerprint()
    whole = Encoder.from_causal_lm(spec.model_copy(update={"layers": None}), INPUT)
    assert whole.weights_fingerprint() != encoder.weights_fingerprint()


def test_inspect_counts_them(tmp_path: Path) -> None:
    make_model(num_hidden_layers=4).save_pretrained(tmp_path)
    whole, kept = inspect(tmp_path), inspect(tmp_path, layers=3)
    layer = sum(p.numel() for p in make_model().model.layers[0].parameters())
    assert len(kept.layers) == 3 and whole.parameters - kept.parameters == layer
    assert load_config(ModelSpec(name=str(tmp_path), layers=3)).num_hidden_layers == 3


@pytest.mark.full
@pytest.mark.parametrize("family", [name for name, known in families().items() if known["verdict"] != "refused"])
def test_every_family_is_cut_exactly_or_refused(tmp_path: Path, family: str) -> None:
    tokenizer = make_tokenizer()
    model = tiny_model(family, vocab_size=len(tokenizer))
    depth = model.config.num_hidden_layers
    model.save_pretrained(tmp_path)
    try:
        kept = load_backbone(ModelSpec(name=str(tmp_path), dtype="float32", layers=max(1, depth - 1)))
    except InputError as refused:
        assert "model.layers" in str(refused)
        return
    tokens = InputFormat(INPUT, tokenizer).pack(["the river runs through the old town"])
    whole = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        found = kept.hidden(tokens)
    torch.testing.assert_close(found, states(whole, tokens, max(1, depth - 1), True), rtol=1e-4, atol=1e-4)
