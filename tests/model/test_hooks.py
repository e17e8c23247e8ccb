"""Weights stored in 16 bits, computed in float32 where the processor has no 16-bit products; the states of every layer."""

import copy

import pytest
import torch

from llm2enc.encoding import Encoder
from llm2enc.model import POOLERS, Backbone, emulated
from llm2enc.model import backbone as backbone_module
from llm2enc.model.hooks import Float32Arithmetic, LayerStates
from llm2enc.recipe import InputSpec, Part
from llm2enc.text import InputFormat
from tests.model.test_backbone import some_tokens
from tests.model.test_families import USABLE, _packed, _reference, _spread, _texts
from tests.support.builders import make_encoder, make_model, make_tokenizer, sentences
from tests.support.tiny import tiny_model


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
    decoder = make_model(torch.bfloat16).model
    arithmetic = Float32Arithmetic(decoder)
    decoder.layers[1].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with torch.no_grad(), pytest.raises(RuntimeError, match="stop"), arithmetic.active(True):
        decoder(input_ids=torch.tensor([[3, 4, 5]]))
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    assert not arithmetic.on


def test_only_a_cpu_emulates() -> None:
    assert not emulated(torch.float32, torch.device("cpu"))
    assert not emulated(torch.bfloat16, torch.device("cuda"))
    assert emulated(torch.bfloat16, torch.device("cpu")) is not torch.ops.mkldnn._is_mkldnn_bf16_supported()


# --------------------------------------------------------------------------------------------------- states of layers

# A common shape, windows and scaled embeddings, learned positions, parallel blocks, and a mask instead of packed lengths.
SHAPES = "llama gemma2 gpt2 gpt_neox falcon".split()
# Several streams of states side by side, and stacks that are gone through more than once.
UNREADABLE = "gemma3n_text hy_v4 hrm_text".split()


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("family", _spread([name for name in USABLE if name not in UNREADABLE], SHAPES))
def test_the_states_of_every_layer_are_transformers_own_of_each_text_alone(family: str, causal: bool) -> None:
    texts, reference = _texts(), _reference(family, causal)
    backbone = Backbone(tiny_model(family), bidirectional=True).eval()
    with torch.no_grad():
        alone = [reference.base_model(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True)
                 for text in texts]  # fmt: skip
        found = backbone.layers(_packed(texts), causal)
        last = backbone.hidden(_packed(texts), causal)
    assert len(found) == backbone.depth + 1 == len(alone[0].hidden_states)
    for number, states in enumerate(found):
        expected = torch.cat([output.hidden_states[number][0] for output in alone])
        torch.testing.assert_close(
            states, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()), msg=lambda m, n=number: f"{n}: {m}"
        )
    assert torch.equal(found[-1], last)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_layer_0_is_the_pooled_embeddings_and_the_last_one_the_plain_encoder(pooling: str) -> None:
    encoder, texts = make_encoder(pooling=pooling), sentences(5)
    table = encoder.backbone.decoder.embed_tokens.weight.detach()
    bare = encoder.variant(layer=0).encode(texts)
    for text, vector in zip(texts, bare, strict=True):
        rows = table[encoder.input_format.tokenizer(text)["input_ids"]]
        expected = rows.mean(0) if pooling == "mean" else rows[-1]
        torch.testing.assert_close(torch.tensor(vector), expected / expected.norm(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encoder.variant(layer=2).encode(texts), encoder.encode(texts), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("family", SHAPES)
def test_a_variant_reads_the_layer_in_its_direction(family: str, causal: bool) -> None:
    """From the text to the vector: transformers' states of the middle layer, averaged by hand."""
    template = (Part(slot="text", pool=True),)
    tokenizer = make_tokenizer()
    spec = InputSpec(query=template, document=template, max_tokens=24)
    encoder = Encoder(
        Backbone(tiny_model(family, vocab_size=320), bidirectional=not causal), InputFormat(spec, tokenizer), "mean"
    ).eval()
    reference, texts = _reference(family, causal, vocab_size=320), sentences(4)
    found = encoder.variant(layer=1).encode(texts)
    other = encoder.variant(layer=1, causal=not causal).encode(texts)
    for row, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"][:24]
        with torch.no_grad():
            output = reference.base_model(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        expected = output.hidden_states[1][0].mean(0)
        torch.testing.assert_close(torch.tensor(found[row]), expected / expected.norm(), atol=1e-5, rtol=1e-4)
    assert abs(found - other).max() > 1e-4


@pytest.mark.parametrize("family", [*UNREADABLE, "mamba", "jamba", "lfm2", "bloom"])
def test_what_hands_on_more_than_a_row_of_states_is_refused(family: str) -> None:
    backbone = Backbone(tiny_model(family), bidirectional=False).eval()
    with torch.no_grad(), pytest.raises(ValueError, match=f"the layers of {family} cannot be read one by one"):
        backbone.layers(_packed(_texts()))


def test_no_hook_stays_behind() -> None:
    decoder = make_model().model
    hooks = [(layer._forward_hooks, layer._forward_pre_hooks) for layer in decoder.layers]
    before = [[len(kind) for kind in pair] for pair in hooks]
    with pytest.raises(RuntimeError, match="stop"), LayerStates(decoder) as states:
        decoder(input_ids=torch.tensor([[3, 4]]))
        assert [found.shape for found in states.found] == [(1, 2, 32)] * 3
        raise RuntimeError("stop")
    assert [[len(kind) for kind in pair] for pair in hooks] == before


@pytest.mark.parametrize("pooling", list(POOLERS))
def test_the_layers_of_16_bit_weights_are_those_of_the_widened_model(pooling: str, emulating) -> None:
    model, plain = make_model(torch.bfloat16), make_encoder(pooling=pooling)
    narrow, wide = (
        Encoder(Backbone(weights, bidirectional=True), plain.input_format, pooling).eval()
        for weights in (model, copy.deepcopy(model).float())
    )
    for layer in range(3):
        found, expected = (encoder.variant(layer=layer).encode(sentences(5)) for encoder in (narrow, wide))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
