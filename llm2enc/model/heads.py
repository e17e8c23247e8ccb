"""Heads: weights before the pooling, or between pooling and normalisation. They train beside the backbone, in float32,
and are saved with it.

    states (T, D)  ->  head.states  ->  pooling  ->  head  ->  vectors (B, dimensions)
"""

import hashlib
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from llm2enc.model.backbone import Backbone, digest
from llm2enc.model.latent_attention import LatentAttention
from llm2enc.model.pooling import POOLERS
from llm2enc.recipe import HeadSpec, LatentAttentionSpec, MlpSpec, Pooling, ProjectionSpec
from llm2enc.text import Tokens


class Head(nn.Module, ABC):
    """A head of a model of some width. What a kind does not change, it leaves as it is here."""

    spec: HeadSpec
    """As recipe and llm2enc.json have it."""
    dimensions: int
    """Width of the vectors it returns."""
    reads_states: ClassVar[bool] = False

    @abstractmethod
    def draw(self, seed: int) -> None:
        """Give it the weights of a head that has not been trained, the same for a seed on every machine."""

    def states(self, hidden: Tensor) -> Tensor:
        """States (..., D) as they are pooled; each depends on itself alone."""
        return hidden

    def forward(self, vectors: Tensor) -> Tensor:
        """Pooled vectors (B, D) -> (B, dimensions)."""
        return vectors


class Projection(Head):
    """A linear layer to another width; fresh, it is orthogonal and has no bias yet."""

    def __init__(self, inputs: int, spec: ProjectionSpec):
        super().__init__()
        self.spec, self.dimensions = spec, spec.dimensions
        self.linear = nn.Linear(inputs, spec.dimensions, bias=spec.bias)

    def draw(self, seed: int) -> None:
        self.linear.weight.copy_(orthogonal(*self.linear.weight.shape, seed))
        if self.linear.bias is not None:
            self.linear.bias.zero_()

    def forward(self, vectors: Tensor) -> Tensor:
        return self.linear(vectors)


class Mlp(Head):
    """A dense layer and tanh; fresh, it has BERT's weights (normal, 0.02), as in SimCSE."""

    def __init__(self, inputs: int, spec: MlpSpec):
        super().__init__()
        self.spec, self.dimensions = spec, inputs
        self.linear = nn.Linear(inputs, inputs)

    def draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.linear.weight.copy_(_rounded(0.02 * torch.randn(self.linear.weight.shape, generator=generator)))
        self.linear.bias.zero_()

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.tanh(self.linear(vectors))


class LatentAttentionHead(Head, LatentAttention):
    """NV-Embed's block, the very module that other programs run; fresh, it has the weights that torch gives its layers."""

    reads_states = True

    def __init__(self, inputs: int, spec: LatentAttentionSpec):
        LatentAttention.__init__(self, inputs, spec.latents, spec.heads)
        self.spec, self.dimensions = spec, inputs

    def draw(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.latents.copy_(_rounded(torch.randn(self.latents.shape, generator=generator)))
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                for parameter in layer.parameters():
                    uniform = 2 * torch.rand(parameter.shape, generator=generator) - 1
                    parameter.copy_(_rounded(uniform * layer.in_features**-0.5))
            else:
                layer.reset_parameters()

    def states(self, hidden: Tensor) -> Tensor:
        return self.attend(hidden)


KINDS = {"projection": Projection, "mlp": Mlp, "latent_attention": LatentAttentionHead}


def head_outline(inputs: int, spec: HeadSpec) -> Head:
    """The head of a model of width `inputs` on the meta device: shapes without weights, in float32."""
    with torch.device("meta"):
        return KINDS[spec.kind](inputs, spec)


def fresh_head(inputs: int, spec: HeadSpec, seed: int) -> Head:
    """A head that has not been trained."""
    head = head_outline(inputs, spec).to_empty(device="cpu")
    with torch.no_grad():
        head.draw(seed)
    return head


def vectors_of(hidden: Tensor, tokens: Tokens, pooling: Pooling, head: Head | None) -> Tensor:
    """Vectors (B, dimensions) float32 of the packed states (T, D) of B texts."""
    pooler = POOLERS[pooling]
    if head is not None and head.reads_states:
        # Of the pooled states alone: the others would cost as much, and one of them may be beyond float16's range.
        rows = pooler.needed(tokens.pool, tokens.lengths).nonzero()[:, 0].to(hidden.device)
        states = head.states(hidden[rows].float())
        hidden = states.new_zeros(len(hidden), states.size(-1)).index_copy(0, rows, states)
    vectors = pooler.function(hidden, tokens.pool, tokens.lengths)
    if head is None:
        return vectors
    with torch.autocast(hidden.device.type, enabled=False):  # one product a text: float32 costs nothing here
        return head(vectors)


def orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) float32 whose shorter side is orthonormal, the same for a seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    matrix = nn.init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64), generator=generator)
    return _rounded(matrix, 2**16).float()


def _rounded(drawn: Tensor, steps: int = 2**20) -> Tensor:
    """Rounded, so that the last bits, in which processors differ, do not show: all processes of a run, and a run that goes
    on elsewhere, begin with the same weights."""
    return torch.round(drawn * steps) / steps


def weights_fingerprint(backbone: Backbone, head: nn.Module | None) -> str:
    """SHA-256 of an encoder's weights, adapter and head included; the backbone's fingerprint where there are none."""
    own = backbone.fingerprint(adapter=True)
    return own if head is None else hashlib.sha256((own + digest(head.state_dict())).encode()).hexdigest()
