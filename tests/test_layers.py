"""Weights stored in 16 bits, computed in float32 where the processor has no 16-bit products."""

import copy

import pytest
import torch
from conftest import make_model
from test_backbone import some_tokens
from tiny import tiny_model

from llm2enc import backbone as backbone_module
from llm2enc.backbone import Backbone
from llm2enc.layers import Float32Arithmetic, emulated


@pytest.fixture
def emulating(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without 16-bit products, whatever this one has."""
    monkeypatch.setattr(backbone_module, "emulated", lambda dtype, device: dtype in (torch.bfloat16, torch.float16))


# A packed row; the same with position embeddings; a block-diagonal mask; ALiBi texts alone.
@pytest.mark.parametrize(
    ("family", "bidirectional"),
    [("llama", True), ("gpt2", True), ("gptj", True), ("bloom", False)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_are_those_of_the_widened_model(family: str, bidirectional: bool, dtype: torch.dtype, emulating) -> None:
    """Rounding the weights is all that 16 bits change: the same weights in a float32 model give the same states."""
    model = tiny_model(family).to(dtype)
    stored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = some_tokens((5, 9, 5, 1))
    tokens = type(tokens)(tokens.ids % 100 + 2, tokens.lengths, tokens.pool, tokens.truncated)
    wide = Backbone(copy.deepcopy(model).float(), bidirectional).eval()
    narrow = Backbone(model, bidirectional).eval()
    with torch.no_grad():
        expected, found = wide.hidden(tokens), narrow.hidden(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]), name


def test_a_graph_is_made_of_the_stored_weights(emulating) -> None:
    """With gradients nothing is widened: a graph would keep weights that are no longer there."""
    narrow = Backbone(make_model(torch.bfloat16), bidirectional=True)
    states = narrow.hidden(some_tokens())
    assert states.dtype == torch.bfloat16 and states.requires_grad


def test_weights_are_back_after_an_error() -> None:
    trunk = make_model(torch.bfloat16).model
    arithmetic = Float32Arithmetic(trunk)
    trunk.layers[1].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with torch.no_grad(), pytest.raises(RuntimeError, match="stop"), arithmetic.active(True):
        trunk(input_ids=torch.tensor([[3, 4, 5]]))
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.bfloat16}
    assert not arithmetic.on


def test_only_a_cpu_emulates() -> None:
    assert not emulated(torch.float32, torch.device("cpu"))
    assert not emulated(torch.bfloat16, torch.device("cuda"))
    assert emulated(torch.bfloat16, torch.device("cpu")) is not torch.ops.mkldnn._is_mkldnn_bf16_supported()
