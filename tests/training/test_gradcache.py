"""The gradient cache gives the gradient of the unsplit batch, however it splits."""

import math

import pytest
import torch
from torch import Tensor

from llm2enc.encoding import Encoder
from llm2enc.losses import Layout, info_nce
from llm2enc.recipe import LoraSpec
from llm2enc.text import Tokens
from llm2enc.training import BatchPartition
from llm2enc.training.gradcache import cached_backward
from tests.support.builders import assert_same, gradients, make_encoder, sentences

# Query, positive and 2, 0, 1 hard negatives.
QUERIES, DOCUMENTS, POSITIVES = [0, 4, 6], [1, 2, 3, 5, 7, 8], [0, 3, 4]
LAYOUT = Layout(torch.tensor(POSITIVES), torch.tensor([0, 0, 0, 1, 2, 2]))
TEXTS = sentences(9)


def loss(vectors: Tensor) -> Tensor:
    return info_nce(vectors[QUERIES], vectors[DOCUMENTS], LAYOUT, temperature=0.02)


def training_encoder(trainable: str, dropout: float, checkpointing: bool = False) -> tuple[Encoder, Tokens]:
    encoder = make_encoder()
    backbone = encoder.backbone
    if trainable == "full":
        backbone.train_everything(head=False)
    else:
        backbone.add_lora(LoraSpec(r=4, alpha=8, dropout=dropout), seed=0)
        with torch.no_grad():  # a fresh B is zero, and so would be the gradient of A
            for name, parameter in backbone.trained().items():
                parameter.add_(torch.ones_like(parameter) * 0.02 * math.cos(len(name)))
    backbone.set_attention_dropout(dropout)
    backbone.set_gradient_checkpointing(checkpointing)
    return encoder.train(), encoder.input_format.pack(TEXTS)


def direct(encoder: Encoder, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    value = loss(encoder(tokens))
    value.backward()
    return value.detach(), gradients(encoder)


def cached(encoder: Encoder, tokens: Tokens, mini: int, graph: int, seed: int = 0, shards: int = 1):
    """Loss and gradients."""
    torch.rand(3)  # whatever was drawn before plays no role
    value = cached_backward(encoder, tokens, BatchPartition(len(tokens), shards, seed, 5), loss, mini, graph)
    return value, gradients(encoder)


def test_both_passes_compute_alike_over_16_bit_weights() -> None:
    """Without a graph 16-bit weights may be computed with in float32; the pass that is done again must not be."""
    values = []
    for graph in (0, 10**6):
        encoder, tokens = training_encoder("lora", dropout=0.0)
        for name, parameter in encoder.backbone.named_parameters():
            parameter.data = parameter.data if ".lora_" in name else parameter.data.to(torch.bfloat16)
        values.append(cached(encoder, tokens, 20, graph))
    assert torch.equal(values[0][0], values[1][0])
    assert_same(values[0][1], values[1][1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_every_split_gives_the_direct_gradient(trainable: str, checkpointing: bool) -> None:
    encoder, tokens = training_encoder(trainable, dropout=0.0, checkpointing=checkpointing)
    expected, expected_gradients = direct(encoder, tokens)
    every = len(tokens.ids)
    assert sum(part.abs().sum() > 0 for part in expected_gradients.values()) == len(expected_gradients)
    for mini in (1, 20, every // 2, every):  # one text at a time ... everything at once
        for graph in (0, every // 3, every):
            for shards in (1, 4):
                value, found = cached(encoder, tokens, mini, graph, shards=shards)
                assert torch.allclose(value, expected, rtol=1e-5), (mini, graph, shards)
                assert_same(found, expected_gradients, 2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_the_second_pass_draws_the_dropout_of_the_first(trainable: str, checkpointing: bool) -> None:
    encoder, tokens = training_encoder(trainable, dropout=0.3, checkpointing=checkpointing)
    every = len(tokens.ids)
    for mini in (1, 20, every):
        for shards in (1, 4):
            value, expected = cached(encoder, tokens, mini, graph=every, shards=shards)  # all kept: plain autograd
            for graph in (0, every // 3):
                again, found = cached(encoder, tokens, mini, graph, shards=shards)
                assert torch.equal(again, value)
                assert_same(found, expected)
    other, found = cached(encoder, tokens, every, graph=every, seed=1)
    assert not torch.equal(other, value) and not torch.equal(next(iter(found.values())), next(iter(expected.values())))


def test_dropout_of_the_whole_batch_is_plain_autograd() -> None:
    encoder, tokens = training_encoder("lora", dropout=0.3)
    order = torch.argsort(tokens.lengths, descending=True, stable=True)  # the one micro-batch is sorted by length
    sorted_tokens = tokens.select(order)
    (whole,) = BatchPartition(len(tokens), 1, 0, 5).micro_batches(tokens.lengths, len(tokens.ids))
    whole.seed_dropout()
    value = loss(encoder(sorted_tokens)[torch.argsort(order)])
    value.backward()
    expected = gradients(encoder)
    found, found_gradients = cached(encoder, tokens, len(tokens.ids), 0)
    assert torch.equal(found, value.detach())
    assert_same(found_gradients, expected, 1e-6)


def test_only_as_many_graphs_as_asked_for_are_kept() -> None:
    """Passes through the model: each micro-batch once if its graph is kept, else twice."""
    encoder, tokens = training_encoder("full", dropout=0.0)
    calls: list[bool] = []

    def encode(part: Tokens) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return encoder(part)

    sizes = sorted(tokens.lengths.tolist(), reverse=True)
    kept = sum(sizes[:2])
    cached_backward(encode, tokens, BatchPartition(len(tokens), 1, 0, 0), loss, 1, activation_tokens=kept)
    assert calls == [True] * 2 + [False] * 7 + [True] * 7


def test_gradients_are_added_to_what_is_there() -> None:
    encoder, tokens = training_encoder("full", dropout=0.0)
    cached_backward(encoder, tokens, BatchPartition(len(tokens), 2, 0, 0), loss, 20)
    once = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    cached_backward(encoder, tokens, BatchPartition(len(tokens), 2, 0, 0), loss, 20)
    assert_same(gradients(encoder), {name: 2 * gradient for name, gradient in once.items()}, 1e-6)


def test_double_precision_stays_double() -> None:
    """A function in float64 shows the algebra without rounding."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(320, 8, dtype=torch.float64)
    tokens = make_encoder().input_format.pack(TEXTS)

    def encode(part: Tokens) -> Tensor:
        return torch.stack([table(ids).pow(3).sum(0) for ids in part.ids.split(part.lengths.tolist())])

    def cosine_loss(vectors: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        return torch.nn.functional.cross_entropy(unit[QUERIES] @ unit[DOCUMENTS].T / 0.02, torch.tensor(POSITIVES))

    expected = cosine_loss(encode(tokens))
    expected.backward()
    exact = gradients(table)
    for mini, graph in ((1, 0), (20, 30), (1000, 0)):
        value = cached_backward(encode, tokens, BatchPartition(len(tokens), 3, 0, 0), cosine_loss, mini, graph)
        assert value.dtype == torch.float64 and torch.allclose(value, expected, rtol=1e-13)
        assert_same(gradients(table), exact, 1e-12)
