"""Adapters, merging, pruning: the backbone gives the same states by every route."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm2enc.errors import InputError
from llm2enc.model import Backbone
from llm2enc.recipe import LoraSpec
from llm2enc.text import Tokens
from tests.support.builders import assert_same, gradients, make_backbone, make_model
from tests.support.tiny import tiny_model

LORA = LoraSpec(r=4, alpha=8, dropout=0.0)


def some_tokens(lengths: tuple[int, ...] = (5, 9, 5, 1)) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 320, (n,), generator=generator).tolist() for n in lengths]
    return Tokens.from_lists(ids, [[True] * n for n in lengths], [False] * len(lengths))


def stir(backbone: Backbone, size: float = 0.1) -> None:
    """Give the fresh adapter, which starts as zero, an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def states(backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return backbone.eval().hidden(some_tokens())


# ------------------------------------------------------------------------------------------------------------- adapters


def test_merged_is_what_the_adapter_was() -> None:
    backbone = make_backbone()
    base, print_before = states(backbone), backbone.fingerprint()
    names = {name for name, _ in backbone.named_parameters()}
    backbone.add_lora(LORA, seed=0)
    assert torch.equal(states(backbone), base)  # B starts at zero
    stir(backbone)
    adapted = states(backbone)
    assert backbone.fingerprint() == print_before and backbone.has_adapter
    backbone.merge_lora()
    merged = states(backbone)
    assert torch.allclose(merged, adapted, atol=1e-5) and (merged - base).abs().max() > 0.1
    assert backbone.fingerprint() != print_before and not backbone.has_adapter
    assert {name for name, _ in backbone.named_parameters()} == names


def test_merging_into_bfloat16_rounds_once() -> None:
    backbone = make_backbone(torch.bfloat16)
    backbone.add_lora(LoraSpec(r=4, alpha=8, dropout=0.0, targets=("q_proj", "down_proj")), seed=0)
    assert {parameter.dtype for parameter in backbone.trained().values()} == {torch.float32}
    stir(backbone)
    expected = {}
    for name, module in backbone.decoder.named_modules():
        if hasattr(module, "lora_A"):
            delta = module.lora_B["default"].weight @ module.lora_A["default"].weight * (8 / 4)
            expected[name] = (module.base_layer.weight.float() + delta).to(torch.bfloat16)
    backbone.merge_lora()
    found = {name: backbone.decoder.get_submodule(name).weight for name in expected}
    assert len(found) == 4
    assert_same(found, expected)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_our_lora_sum_is_pefts(base: torch.dtype, autocast: bool) -> None:
    """The sum inside the product against PEFT's product, scaling and sum: output and every gradient."""
    backbone = make_backbone(base)
    backbone.add_lora(LORA, seed=0)
    stir(backbone)
    layer = backbone.decoder.layers[0].mlp.up_proj
    inputs = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2)).to(base)
    outgoing = torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(3))

    def run(forward) -> dict[str, Tensor]:
        leaf = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = forward(leaf)
        output.backward(outgoing.to(output.dtype))
        return {"output": output.detach().float(), "inputs": leaf.grad.float(), **gradients(layer)}

    ours, pefts = run(layer), run(lambda x: type(layer).forward(layer, x))
    rounds = base == torch.bfloat16 or autocast
    assert_same(ours, pefts, tolerance=2e-2 if rounds else 1e-6)
    assert ours.keys() > {"output", "inputs"}


def test_lora_dropout_draws_as_peft_does() -> None:
    backbone = make_backbone()
    backbone.add_lora(LoraSpec(r=4, alpha=8, dropout=0.5), seed=0)
    stir(backbone)
    layer = backbone.train().decoder.layers[0].mlp.up_proj
    inputs = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    ours = layer(inputs)
    torch.manual_seed(5)
    theirs = type(layer).forward(layer, inputs)
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, layer(inputs))


def test_a_soft_cap_is_no_plain_head() -> None:
    """Its backward pass reads what came out of it, so the logits must not be overwritten there."""
    assert make_backbone().plain_head
    assert not Backbone(tiny_model("gemma2"), bidirectional=True).plain_head


def test_an_adapter_survives_the_disk(tmp_path: Path) -> None:
    backbone = make_backbone()
    backbone.add_lora(LORA, seed=0)
    stir(backbone)
    backbone.save_adapter(tmp_path)
    other = make_backbone()
    other.add_lora(LORA, seed=5)
    other.load_adapter(tmp_path)
    assert_same(other.trained(), backbone.trained())
    assert torch.equal(states(other), states(backbone))


def test_peft_alone_opens_the_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    backbone = make_backbone()
    backbone.add_lora(LORA, seed=0)
    stir(backbone)
    backbone.save_adapter(tmp_path)
    decoder = make_model().model
    decoder.config.is_causal = False
    decoder.set_attn_implementation("eager")
    for layer in decoder.layers:
        layer.self_attn.is_causal = False
    plain = PeftModel.from_pretrained(decoder, tmp_path).eval()
    tokens = some_tokens()
    with torch.no_grad():
        alone = [plain(input_ids=ids[None]).last_hidden_state[0] for ids in tokens.ids.split(tokens.lengths.tolist())]
    assert torch.allclose(torch.cat(alone), states(backbone), atol=1e-5)


@pytest.mark.parametrize("other", [LoraSpec(r=8, alpha=8), LoraSpec(r=4, targets=("q_proj",))])
def test_an_adapter_of_another_shape_is_refused(other: LoraSpec, tmp_path: Path) -> None:
    backbone = make_backbone()
    backbone.add_lora(LORA, seed=0)
    backbone.save_adapter(tmp_path)
    reader = make_backbone()
    reader.add_lora(other, seed=0)
    with pytest.raises(ValueError, match=r"not those of this model's adapter.*another LoRA shape"):
        reader.load_adapter(tmp_path)
    smaller = make_backbone()
    smaller.add_lora(LoraSpec(r=4, targets=("q_proj",)), seed=0)
    smaller.save_adapter(tmp_path / "smaller")
    with pytest.raises(ValueError, match="missing"):
        backbone.load_adapter(tmp_path / "smaller")


def test_targets() -> None:
    every, named = make_backbone(), make_backbone()
    every.add_lora(LORA, seed=0)
    assert {name.split(".")[-4] for name in every.trained()} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert not any("lm_head" in name or "embed" in name for name in every.trained())
    named.add_lora(LoraSpec(targets=("q_proj", "v_proj")), seed=0)
    assert {name.split(".")[-4] for name in named.trained()} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("targets", [("no_such",), ("q_proj", "no_such")])
def test_a_target_that_matches_nothing(targets: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no_such"):
        make_backbone().add_lora(LoraSpec(targets=targets), seed=0)


def test_a_second_adapter_after_the_first_is_merged() -> None:
    backbone = make_backbone()
    for seed in (0, 1):
        backbone.add_lora(LORA, seed)
        stir(backbone)
        adapted = states(backbone)
        backbone.merge_lora()
        assert torch.allclose(states(backbone), adapted, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_full_training(tied: bool) -> None:
    backbone = make_backbone(tie_word_embeddings=tied)
    backbone.train_everything(head=False)
    assert {name for name, _ in backbone.named_parameters()} - backbone.trained().keys() == (
        set() if tied else {"model.lm_head.weight"}
    )
    backbone.train_everything(head=True)
    assert {name for name, _ in backbone.named_parameters()} == backbone.trained().keys()


def test_sixteen_bit_weights_are_not_fully_trained() -> None:
    with pytest.raises(ValueError, match="float32"):
        make_backbone(torch.bfloat16).train_everything(head=False)


# -------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_skipping_unread_states_changes_nothing(lora: bool, causal: bool, checkpointing: bool) -> None:
    backbone = make_backbone().train()
    if lora:
        backbone.add_lora(LORA, seed=0)
        stir(backbone)
    else:
        backbone.train_everything(head=False)
    backbone.set_gradient_checkpointing(checkpointing)
    tokens = some_tokens((5, 9, 5, 3))
    wanted = torch.zeros(22, dtype=torch.bool)
    wanted[[1, 4, 6, 12, 15, 16, 21]] = True  # unequal numbers in texts of equal length too
    weights = torch.randn(7, 32, generator=torch.Generator().manual_seed(2))
    found = []
    for queries in (None, wanted):
        picked = backbone.hidden(tokens, causal, queries)[wanted]
        (picked * weights).sum().backward()
        found.append((picked.detach(), gradients(backbone)))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert_same(found[1][1], found[0][1], 1e-5)


# -------------------------------------------------------------------------------------------------------------- dropout


def test_attention_dropout_reaches_every_layer_and_only_training() -> None:
    backbone = make_backbone()
    exact = states(backbone)
    backbone.set_attention_dropout(0.5)
    rates = [module.attention_dropout for module in backbone.modules() if "Attention" in type(module).__name__]
    assert rates == [0.5, 0.5]
    assert torch.equal(states(backbone), exact)
    # One layer alone must already make noise; dropout on single-token texts could only scale them.
    for layer in backbone.decoder.layers:
        backbone.set_attention_dropout(0.0)
        layer.self_attn.attention_dropout = 0.5
        backbone.train()
        torch.manual_seed(0)
        assert not torch.equal(backbone.hidden(some_tokens()), backbone.hidden(some_tokens()))


def test_a_family_without_attention_dropout_says_so() -> None:
    backbone = make_backbone()
    for layer in backbone.decoder.layers:
        del layer.self_attn.attention_dropout
    backbone.set_attention_dropout(0.0)
    with pytest.raises(ValueError, match="no attention dropout"):
        backbone.set_attention_dropout(0.3)


# --------------------------------------------------------------------------------------------------- kinds of adapters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [{"dora": True}, {"rslora": True}, {"dora": True, "rslora": True}], ids=str)
@pytest.mark.parametrize("targets", ["all-linear", ("embed_tokens", "q_proj")], ids=str)
def test_every_kind_of_adapter_is_merged_as_it_reads(dtype: torch.dtype, kind: dict[str, bool], targets) -> None:
    backbone, tokens = make_backbone(dtype), some_tokens()
    backbone.eval()
    with torch.no_grad():
        plain = backbone.hidden(tokens)
        backbone.add_lora(LoraSpec(r=4, alpha=8, dropout=0.0, targets=targets, **kind), seed=1)
        fresh = backbone.hidden(tokens)
        generator = torch.Generator().manual_seed(2)
        for parameter in backbone.trained().values():
            assert parameter.dtype == torch.float32
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        adapted = backbone.hidden(tokens)
        backbone.merge_lora()
        merged = backbone.hidden(tokens)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(fresh, plain, atol=tolerance, rtol=0)
    torch.testing.assert_close(merged, adapted, atol=tolerance, rtol=tolerance)
    assert (adapted - plain).abs().max() > 0.1 and next(backbone.decoder.parameters()).dtype == dtype


def test_dora_trains_a_length_for_every_row() -> None:
    counts = {}
    for kind in ("plain", "dora"):
        backbone = make_backbone()
        backbone.add_lora(LoraSpec(r=4, targets=("q_proj",), dora=kind == "dora"), seed=1)
        counts[kind] = sum(parameter.numel() for parameter in backbone.trained().values())
    assert counts["dora"] - counts["plain"] == sum(
        layer.self_attn.q_proj.weight.size(0) for layer in make_backbone().model.model.layers
    )


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_weight_by_hand(dora: bool) -> None:
    """W' = m (W + s B A) / |W + s B A|, row by row (DoRA, eq. 5); s = alpha / sqrt(r) (rsLoRA, eq. 7)."""
    backbone = make_backbone()
    backbone.add_lora(LoraSpec(r=4, alpha=8, targets=("q_proj",), dora=dora, rslora=True), seed=1)
    layer = backbone.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(3))
        weight = layer.base_layer.weight + 8 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        if dora:
            lengths = layer.lora_magnitude_vector["default"].weight
            assert torch.allclose(lengths, layer.base_layer.weight.norm(dim=1))
            weight = lengths[:, None] * weight / weight.norm(dim=1, keepdim=True)
        backbone.merge_lora()
    assert torch.allclose(backbone.model.model.layers[0].self_attn.q_proj.weight, weight, atol=1e-6)


def test_lengths_survive_the_disk_and_train_on(tmp_path: Path) -> None:
    spec = LoraSpec(r=4, targets=("q_proj",), dora=True)
    one, other = make_backbone(), make_backbone()
    for backbone in (one, other):
        backbone.add_lora(spec, seed=1)
    stir(one)
    one.save_adapter(tmp_path)
    other.load_adapter(tmp_path)
    assert_same(dict(one.named_parameters()), dict(other.named_parameters()))
    other.continue_lora()
    assert other.trained().keys() == one.trained().keys() and any("magnitude" in name for name in one.trained())
    with pytest.raises(InputError, match=r"not those of this model's adapter: 2 unexpected \(.*lora_magnitude_vector"):
        plain = make_backbone()
        plain.add_lora(spec.model_copy(update={"dora": False}), seed=1)
        plain.load_adapter(tmp_path)
