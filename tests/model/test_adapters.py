"""Mixtures of experts: an adapter is on what it can be merged into, says what it leaves out, and merges exactly."""

import pytest
import torch
from torch import nn

from llm2enc.model import Backbone
from llm2enc.recipe import LoraSpec
from llm2enc.text import Tokens
from tests.support.builders import make_backbone
from tests.support.tiny import tiny_model

SHARES = {  # of the layers' weights that the adapter is on, counted below, and what it is not on
    "mixtral": "experts, gate",
    "qwen3_moe": "experts, gate",
    "olmoe": "experts, gate",
    "qwen2_moe": "experts, gate",
    "gpt_oss": "experts, router",
    # PEFT takes these names, of dense layers and shared experts too, for the stacked experts of the family.
    "deepseek_v2": "down_proj, experts, gate, gate_proj, up_proj",
}
FAMILIES = pytest.mark.parametrize("family", SHARES)


def tokens() -> Tokens:
    return Tokens.from_blocks(torch.randint(3, 128, (3, 7), generator=torch.Generator().manual_seed(1)))


def adapted(family: str, spec: LoraSpec) -> Backbone:
    """With an adapter whose B is not zero any more."""
    backbone = Backbone(tiny_model(family), bidirectional=True)
    backbone.add_lora(spec, seed=0)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in backbone.trained().items():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return backbone.eval()


@FAMILIES
def test_the_default_adapter_merges_into_base_plus_its_product(family: str) -> None:
    """Dropout included, which stacked experts cannot have; the forward pass stays that of the adapter beside the weights."""
    base = tiny_model(family).base_model.state_dict()
    backbone = adapted(family, LoraSpec(r=4, alpha=8))
    factors = {name: tensor.clone() for name, tensor in backbone.decoder.state_dict().items() if ".lora_" in name}
    with torch.no_grad():
        before = backbone.hidden(tokens())
    said = backbone.adapter_leaves_out
    backbone.merge_lora()
    with torch.no_grad():
        torch.testing.assert_close(backbone.hidden(tokens()), before, atol=2e-5, rtol=1e-4)
    layers = grown = 0
    for name, tensor in backbone.decoder.state_dict().items():
        path = name.removesuffix(".weight")
        delta = torch.zeros(())
        if f"{path}.lora_A.default.weight" in factors:
            delta = 2 * factors[f"{path}.lora_B.default.weight"] @ factors[f"{path}.lora_A.default.weight"]
        torch.testing.assert_close(tensor, base[name] + delta, atol=1e-6, rtol=1e-6)
        if name.startswith("layers."):
            layers += tensor.numel()
            bias = f"{path.removesuffix('.bias')}.lora_A.default.weight" in factors  # of an adapted layer
            grown += tensor.numel() if delta.dim() or (name.endswith(".bias") and bias) else 0
    assert said == f"on {100 * grown / layers:.0f} % of the layers' weights, not on {SHARES[family]}"


@FAMILIES
def test_every_adapted_layer_is_linear(family: str) -> None:
    backbone = adapted(family, LoraSpec(r=4))
    layers = backbone._lora_layers()
    assert layers and all(isinstance(layer.get_base_layer(), nn.Linear) for layer in layers)


def test_a_dense_model_leaves_nothing_out_unless_it_is_told_to() -> None:
    backbone = make_backbone()
    assert backbone.adapter_leaves_out == ""
    backbone.add_lora(LoraSpec(r=4), seed=0)
    assert backbone.adapter_leaves_out == ""
    some = make_backbone()
    some.add_lora(LoraSpec(r=4, targets=("q_proj", "v_proj")), seed=0)
    # Per layer: q 32 x 32 and v 16 x 32 of 1024 + 512 + 512 + 1024 + 3 x 1536 and two norms of 32.
    assert some.adapter_leaves_out == (
        f"on {100 * 1536 / 7744:.0f} % of the layers' weights, not on down_proj, gate_proj, k_proj, o_proj, up_proj"
    )


@pytest.mark.parametrize(
    ("family", "targets", "named"),
    [
        ("deepseek_v2", ("kv_b_proj", "gate_proj", "up_proj"), r"\['gate_proj', 'up_proj'\] name the experts"),
        ("mixtral", ("q_proj", "w1"), r"\['w1'\] match no module"),
        ("mixtral", ("q_proj", "gate"), r"\['gate'\] name the experts .* write \['q_proj'\]"),
    ],
)
def test_experts_by_name_are_refused_before_anything_is_put_in(family: str, targets: tuple, named: str) -> None:
    backbone = Backbone(tiny_model(family), bidirectional=True)
    before = list(backbone.decoder.state_dict())
    for way in (backbone.check_lora, lambda spec: backbone.add_lora(spec, seed=0)):
        with pytest.raises(ValueError, match=named):
            way(LoraSpec(targets=targets))
    assert list(backbone.decoder.state_dict()) == before and not backbone.has_adapter
