"""The proof passes what is right and names the layer that is not, whatever the registry says."""

import pytest
import torch

from llm2enc.errors import CannotConvert
from llm2enc.model import Backbone, prove
from llm2enc.model.attention import NAME
from llm2enc.model.proof import causal_modules
from tests.support.tiny import tiny_model

CAUGHT = {
    "bloom": "ALiBi",
    "falcon_h1": r"layers.0.mamba \(FalconH1Mixer\)",
    "gpt_neo": r"h.0.attn \(GPTNeoAttention\) stays causal",
    "jamba": r"\(JambaMambaMixer\)",
    "lfm2": r"layers.0.conv \(Lfm2ShortConv\)",
    "llama4_text": "chunked_attention",
    "nemotron": r"\(NemotronAttention\) lets the texts",
    "qwen3_next": r"layers.0.linear_attn \(Qwen3NextGatedDeltaNet\)",
    "stablelm": r"\(StableLmAttention\) lets the texts",
    "zaya": "ZayaCCAProjection",
}


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("backbone", "families"):
        monkeypatch.setattr(f"llm2enc.model.{place}.families", dict)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3n_text", "mixtral", "falcon", "longcat_flash"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_sound_model_passes(model_type: str, bidirectional: bool) -> None:
    proof = prove(Backbone(tiny_model(model_type), bidirectional))
    assert proof.layers >= 2 and proof.leak < 1e-5 and proof.difference < 1e-4
    assert proof.route == ("mask" if model_type == "falcon" else "packed")


@pytest.mark.parametrize("seed", [1, 4, 7])
def test_heads_that_read_one_token_each_are_not_taken_for_causal(seed: int) -> None:
    """With these seeds no head of some layer lets the first token read the last; others of the text do."""
    backbone = Backbone(tiny_model("llama"), bidirectional=True)
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in backbone.decoder.layers:
            layer.self_attn.q_proj.weight.normal_(std=3)
            layer.self_attn.k_proj.weight.normal_(std=3)
    assert prove(backbone).difference < 1e-3


@pytest.mark.parametrize("model_type", CAUGHT)
def test_a_model_that_can_not_be_opened_is_caught_without_the_registry(model_type: str, no_registry: None) -> None:
    with pytest.raises(CannotConvert, match=CAUGHT[model_type]):
        prove(Backbone(tiny_model(model_type), bidirectional=True))


def test_one_layer_kept_causal_is_named() -> None:
    backbone = Backbone(tiny_model("llama", num_hidden_layers=3), bidirectional=True)
    layer = backbone.decoder.layers[1].self_attn

    def causal_again(module, args, kwargs):
        from dataclasses import replace

        return args, {**kwargs, "packing": replace(kwargs["packing"], causal=True)}

    layer.register_forward_pre_hook(causal_again, with_kwargs=True)
    with pytest.raises(CannotConvert, match=r"layers.1.self_attn \(LlamaAttention\) stays causal.*Echo"):
        prove(backbone)


def test_one_layer_that_looks_ahead_in_a_causal_model_is_named() -> None:
    backbone = Backbone(tiny_model("llama"), bidirectional=False)

    def open_it(module, args, kwargs):
        from dataclasses import replace

        return args, {**kwargs, "packing": replace(kwargs["packing"], causal=False)}

    backbone.decoder.layers[1].self_attn.register_forward_pre_hook(open_it, with_kwargs=True)
    with pytest.raises(CannotConvert, match=r"layers.1.self_attn \(LlamaAttention\) looks ahead"):
        prove(backbone)


def test_a_leak_between_texts_is_named() -> None:
    backbone = Backbone(tiny_model("llama"), bidirectional=True)

    def one_text(module, args, kwargs):
        from dataclasses import replace

        return args, {**kwargs, "packing": replace(kwargs["packing"], lengths=kwargs["packing"].lengths.sum()[None])}

    backbone.decoder.layers[0].self_attn.register_forward_pre_hook(one_text, with_kwargs=True)
    with pytest.raises(CannotConvert, match=r"layers.0.self_attn \(LlamaAttention\) lets the texts of a pack"):
        prove(backbone)


def test_a_packed_result_that_differs_from_the_models_own_is_caught() -> None:
    backbone = Backbone(tiny_model("llama"), bidirectional=True)

    def other_scale(module, args, kwargs):
        module.scaling = 0.1 if "packing" in kwargs else 8**-0.5

    backbone.decoder.layers[0].self_attn.register_forward_pre_hook(other_scale, with_kwargs=True)
    with pytest.raises(CannotConvert, match=r"differ by .* between a pack and the same text alone"):
        prove(backbone)


def test_the_proof_leaves_the_model_as_it_was() -> None:
    backbone = Backbone(tiny_model("mistral"), bidirectional=True).train()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.modules()]
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    prove(backbone)
    assert backbone.training and backbone.config._attn_implementation == NAME
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_16_bit_rounding_does_not_fail_a_sound_model() -> None:
    proof = prove(Backbone(tiny_model("mixtral").bfloat16(), bidirectional=True))
    assert 1e-4 < proof.difference < 0.5


def test_gpt2s_linear_layers_are_no_convolutions() -> None:
    assert causal_modules(tiny_model("gpt2")) == []


def test_alibi_by_configuration() -> None:
    model = tiny_model("falcon", alibi=True)
    with pytest.raises(CannotConvert, match="ALiBi"):
        prove(Backbone(model, bidirectional=True))


def test_conditions_are_told() -> None:
    assert "48" in prove(Backbone(tiny_model("deepseek_v32", index_topk=48), True)).notes[0]
