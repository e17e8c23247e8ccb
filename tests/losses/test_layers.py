"""Losses of several layers: against sentence-transformers, against the formula of ESE written out, and their identities."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from llm2enc.losses import espresso, two_d_matryoshka
from llm2enc.losses.layers import kl, principal

DIMENSIONS, PAIRS, DEPTH = 8, 5, 4  # layers 0 (the embeddings) to 4
POSITIVES = torch.arange(PAIRS)


def base(vectors: Tensor) -> Tensor:
    """InfoNCE in float64."""
    queries, documents = F.normalize(vectors[:PAIRS], dim=-1), F.normalize(vectors[PAIRS:], dim=-1)
    return F.cross_entropy(queries @ documents.T / 0.05, POSITIVES)


def layers(seed: int = 0) -> list[Tensor]:
    """Vectors (2 x PAIRS, DIMENSIONS) of each layer: queries, then documents."""
    generator = torch.Generator().manual_seed(seed)
    shape = DEPTH + 1, 2 * PAIRS, DIMENSIONS
    return [*torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_().unbind()]


def gradient(value: Tensor, given: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, given, allow_unused=True)
    return [torch.zeros_like(one) if part is None else part for one, part in zip(given, found, strict=True)]


class _Layers(Transformer):
    """A transformer of texts of one token, whose layers hand on given states."""

    def __init__(self, states: Tensor):
        torch.nn.Module.__init__(self)
        self.states = states  # (layers, 2, PAIRS, DIMENSIONS)
        self.model = torch.nn.Module()
        self.model.config = type("Config", (), {"output_hidden_states": False})()

    auto_model = property(lambda self: self.model)

    def forward(self, features: dict, **kwargs) -> dict:
        states = self.states[:, int(features["side"])][:, :, None]
        features.update(token_embeddings=states[-1], all_layer_embeddings=tuple(states))
        return features


@pytest.mark.parametrize("temperature", [0.3, 1.0, None])
@pytest.mark.parametrize(("chosen", "weighting"), [([3], "uniform"), ([1], "log"), ([1, 2, 3], "log")])
@pytest.mark.parametrize("dims", [None, [8, 4]])
def test_2dmse_is_that_of_sentence_transformers(
    dims: list[int] | None, chosen: list[int], weighting: str, temperature: float | None, monkeypatch
) -> None:
    given = layers()
    weights = [1.0 if weighting == "uniform" else 1 / (1 + math.log(layer)) for layer in chosen]

    def ours(vectors: Tensor) -> Tensor:
        cut = [vectors[:, :width] for width in dims or [DIMENSIONS]]
        return torch.stack([base(part) for part in cut]).sum()

    value = two_d_matryoshka(ours, given[-1], [given[layer] for layer in chosen], weights, temperature)
    found = gradient(value, given)

    states = torch.stack(given).view(DEPTH + 1, 2, PAIRS, DIMENSIONS)
    model = SentenceTransformer(modules=[_Layers(states), Pooling(DIMENSIONS)], device="cpu")
    inner = theirs.MultipleNegativesRankingLoss(model, scale=20)
    monkeypatch.setattr(random, "sample", lambda layers, count: chosen)
    options = {
        "n_layers_per_step": len(chosen),
        "kl_temperature": temperature or 0,
        # Theirs counts layers from the embeddings, ours from the first layer that a model can be cut to.
        "layer_weighting": "uniform" if weighting == "uniform" else lambda layer: 1 / (1 + math.log(layer)),
    }
    if dims:
        loss = theirs.Matryoshka2dLoss(model, inner, dims, n_dims_per_step=-1, **options)
    else:
        loss = theirs.AdaptiveLayerLoss(model, inner, **options)
    mask = torch.ones(PAIRS, 1, dtype=torch.long)
    expected = loss([{"side": torch.tensor(side), "attention_mask": mask} for side in (0, 1)], None)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)  # their weights and labels are float32
    for one, other in zip(found, gradient(expected, given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 0.5, None])
def test_ese_is_its_formula_written_out(temperature: float | None) -> None:
    """AnglE's loop: every student layer's first dimensions alone, the loss and its alignment by 1 + ln(1 + i)."""
    given, size = layers(), 3

    def compressed(full: Tensor) -> Tensor:
        matrix = full.detach()
        attention = torch.softmax(matrix.T @ matrix / math.sqrt(DIMENSIONS), dim=-1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, _ = torch.svd_lowrank(attention, q=size)
        return matrix @ (left @ torch.diag(values))

    def distilled(student: Tensor, teacher: Tensor) -> Tensor:
        value = ((student - teacher) ** 2).mean()
        if temperature is None:
            return value
        p, q = (torch.softmax(x / temperature, dim=-1) for x in (teacher, student))
        return value + temperature * (p * (p.log() - q.log())).sum(1).mean()

    expected = base(given[-1]) + base(given[-1][:, :size]) + distilled(given[-1][:, :size], compressed(given[-1]))
    students = given[1:-1]
    for i, student in enumerate(students):
        own = base(student[:, :size]) + distilled(student[:, :size], compressed(student))
        expected = expected + own / (1 + math.log(1 + i)) / len(students)
    weights = [1.0, 1 / (1 + math.log(2)), 1 / (1 + math.log(3))]
    value = espresso(base, given[-1], students, weights, size, temperature)
    torch.testing.assert_close(value, expected)
    found = gradient(value, given)
    for one, other in zip(found, gradient(expected, given), strict=True):
        torch.testing.assert_close(one, other)
    assert all(part[:, size:].eq(0).all() for part in found[1:-1]), "a student layer learns its first dimensions only"


def test_principal_directions_are_those_of_an_exact_decomposition() -> None:
    (vectors, *_) = layers()
    vectors = vectors.detach()
    left, values, _ = torch.linalg.svd(F.softmax(vectors.T @ vectors / math.sqrt(DIMENSIONS), dim=-1))
    exact = vectors @ (left * values)
    found = principal(vectors, DIMENSIONS)
    signs = torch.sign((found * exact).sum(0))  # of a singular vector nothing says which
    torch.testing.assert_close(found * signs, exact)


def test_principal_draws_from_no_one_s_random_numbers_and_is_the_same_everywhere() -> None:
    (vectors, *_) = layers()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = principal(vectors, 3)
    assert torch.equal(torch.get_rng_state(), before) and not found.requires_grad
    torch.rand(5)
    assert torch.equal(principal(vectors, 3), found)


def test_layers_that_say_what_the_last_one_says_add_their_loss_alone() -> None:
    """The KL term is zero; the last layer, which is the teacher, gets the gradient of its own loss alone."""
    (vectors, *_) = layers()
    value = two_d_matryoshka(base, vectors, [vectors.detach()] * 2, [1.0, 0.5], 0.3)
    torch.testing.assert_close(value, base(vectors) * (1 + 1.5 / 2))
    assert kl(vectors, vectors, 0.3).item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient(value, [vectors])[0], gradient(base(vectors), [vectors])[0])


def test_the_last_call_of_the_loss_is_of_the_last_layer() -> None:
    """What an objective logs of its vectors must be of those that will be used."""
    given, seen = layers(), []

    def noting(vectors: Tensor) -> Tensor:
        seen.append(vectors)
        return base(vectors)

    two_d_matryoshka(noting, given[-1], given[1:3], [1.0, 1.0], 0.3)
    assert seen[-1] is given[-1] and len(seen) == 3
    espresso(noting, given[-1], given[1:3], [1.0, 1.0], 3, 1.0)
    assert seen[-1] is given[-1] and len(seen) == 3 + 4
