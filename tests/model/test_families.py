"""Every family: a packed row equals each text alone in the family's own attention, value and gradient.

The reference is a second copy of the model that knows nothing of ours: transformers' eager attention, one text at a time,
with `config.is_causal` as the only change. The default run takes a spread; `-m full` takes every family of the registry.
"""

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING

from llm2enc.errors import CannotConvert
from llm2enc.model import Backbone, load_backbone
from llm2enc.model.families import families
from llm2enc.recipe import LoraSpec, ModelSpec
from llm2enc.text import Tokens
from tests.support.tiny import tiny_model

# Windows, caps, sinks, experts, latent attention, grouped keys, parallel blocks, learned positions, scaled logits, masks.
SPREAD = (
    "llama mistral mixtral qwen2 qwen3 gemma2 gemma3_text phi3 olmo2 gpt_neox granite cohere gpt_oss opt gpt2 falcon "
    "deepseek_v3 qwen2_moe stablelm nemotron"
).split()
REFUSED_SPREAD = "bloom falcon_h1 gpt_neo jamba lfm2 llama4_text mamba minimax qwen3_next zaya".split()
HERE = {name: known for name, known in families().items() if name in CONFIG_MAPPING}  # of this transformers
USABLE = [name for name, known in HERE.items() if known["verdict"] != "refused"]
REFUSED = [name for name, known in HERE.items() if known["verdict"] == "refused"]
LENGTHS = (7, 5, 7, 1, 12)  # longer than every window of 3; two of a length, one of a single token


def _spread(names: list[str], default: list[str]) -> list:
    return [pytest.param(name, marks=() if name in default else pytest.mark.full) for name in names]


def _texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, 120, (length,), generator=generator).tolist() for length in LENGTHS]


def _packed(texts: list[list[int]]) -> Tokens:
    return Tokens.from_lists(texts, [[True] * len(text) for text in texts], [False] * len(texts))


def _reference(model_type: str, causal: bool, **overrides):
    """The untouched model in its own eager attention, causal or not by transformers' own switch."""
    model = tiny_model(model_type, **overrides)
    if model._can_set_attn_implementation():
        # ModernBERT's eager attention crashes on batches without padding.
        model.set_attn_implementation("sdpa" if model_type == "modernbert-decoder" else "eager")
    if not causal:
        model.config.is_causal = False
        for module in model.modules():
            if isinstance(getattr(module, "is_causal", None), bool):
                module.is_causal = False
    return model


def _states(model, text: list[int]) -> Tensor:
    return model.base_model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]


def _gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _projection(states: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return (states * torch.randn(states.shape, generator=generator)).sum()


def _assert_equal_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(
            ours[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("model_type", _spread(USABLE, SPREAD))
def test_a_pack_equals_each_text_alone(model_type: str, causal: bool) -> None:
    texts, reference = _texts(), _reference(model_type, causal)
    expected = torch.cat([_states(reference, text) for text in texts])
    backbone = Backbone(tiny_model(model_type), bidirectional=not causal)
    states = backbone.hidden(_packed(texts))
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    _assert_equal_gradients(
        _gradients(backbone.model, _projection(states)), _gradients(reference, _projection(expected))
    )


@pytest.mark.parametrize("model_type", _spread(USABLE, SPREAD))
def test_logits_of_states_are_the_models_own(model_type: str) -> None:
    text, backbone = _texts()[4], Backbone(tiny_model(model_type), bidirectional=True)
    with torch.no_grad():
        expected = _reference(model_type, causal=False)(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        logits = backbone.logits(backbone.hidden(_packed([text])))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("model_type", _spread(USABLE, SPREAD))
def test_states_that_are_asked_for_do_not_depend_on_the_others(model_type: str) -> None:
    tokens, backbone = _packed(_texts()), Backbone(tiny_model(model_type), bidirectional=True)
    queries = torch.zeros(len(tokens.ids), dtype=torch.bool)
    queries[[0, 3, 8, 12, 13, 19, 31]] = True
    with torch.no_grad():
        whole, some = backbone.hidden(tokens), backbone.hidden(tokens, queries=queries)
    torch.testing.assert_close(some[queries], whole[queries], rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("window", [None, 3])
def test_a_window_over_every_layer(window: int | None) -> None:
    texts, overrides = _texts(), {"sliding_window": window}
    reference = _reference("mistral", False, **overrides)
    states = Backbone(tiny_model("mistral", **overrides), True).hidden(_packed(texts))
    expected = torch.cat([_states(reference, text) for text in texts])
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    narrow = _states(_reference("mistral", False, sliding_window=2), texts[4])
    assert (narrow - expected[-12:]).abs().max() > 0.01  # the premise: the window is felt


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_oss", "falcon"])
def test_gradient_checkpointing_changes_nothing(model_type: str) -> None:
    tokens, gradients = _packed(_texts()), []
    for on in (False, True):
        backbone = Backbone(tiny_model(model_type), bidirectional=True).train()
        backbone.set_attention_dropout(0.0)
        backbone.set_gradient_checkpointing(on)
        gradients.append(_gradients(backbone.model, _projection(backbone.hidden(tokens))))
    _assert_equal_gradients(gradients[1], gradients[0])


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt_neox"])
def test_a_merged_adapter_equals_the_adapter(model_type: str) -> None:
    tokens, backbone = _packed(_texts()), Backbone(tiny_model(model_type), bidirectional=True)
    backbone.add_lora(LoraSpec(r=4, dropout=0.0), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        plain = backbone.hidden(tokens)
        for parameter in backbone.trained().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        adapted = backbone.hidden(tokens)
        backbone.merge_lora()
        merged = backbone.hidden(tokens)
    assert (adapted - plain).abs().max() > 0.01
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", _spread(REFUSED, REFUSED_SPREAD))
def test_a_refused_family_is_refused_before_its_weights_are_read(model_type: str, tmp_path) -> None:
    model = tiny_model(model_type)
    model.config.save_pretrained(tmp_path)  # there are no weights to read
    with pytest.raises(CannotConvert, match="Echo") as caught:
        load_backbone(ModelSpec(name=str(tmp_path), dtype="float32"))
    assert any(type(module).__name__ in str(caught.value) for module in model.modules())


@pytest.mark.parametrize("model_type", _spread(sorted(set(REFUSED) - {"cpmant"}), ["jamba", "llama4_text", "mamba"]))
def test_a_refused_family_still_reads_packs_causal(model_type: str) -> None:
    """Echo and last-token pooling on a recurrent model: each text alone is the only border such a layer has."""
    texts, model = _texts(), tiny_model(model_type)
    backbone = Backbone(model, bidirectional=False)
    with torch.no_grad():
        states = backbone.hidden(_packed(texts))
        expected = torch.cat(
            [backbone.decoder(input_ids=torch.tensor([t]), use_cache=False).last_hidden_state[0] for t in texts]
        )
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
