"""Heads: weights between pooling and normalisation. They train beside the backbone, in float32, and are saved with it.

A head is a module that tells its `spec`, as recipe and llm2enc.json have it, and its `dimensions`, the width of what it
returns. Called with pooled vectors (B, D) it returns (B, dimensions).
"""

import hashlib

import torch
from torch import Tensor, nn

from llm2enc.model.backbone import Backbone, digest
from llm2enc.recipe import HeadSpec


class Projection(nn.Module):
    """A linear layer from width `inputs` to `spec.dimensions`; its weights are to be loaded, or drawn by `fresh`."""

    def __init__(self, inputs: int, spec: HeadSpec):
        super().__init__()
        self.spec = spec
        self.dimensions = spec.dimensions
        self.linear = nn.utils.skip_init(nn.Linear, inputs, spec.dimensions, bias=spec.bias, dtype=torch.float32)

    @staticmethod
    def fresh(inputs: int, spec: HeadSpec, seed: int) -> "Projection":
        """One that has not been trained: an orthogonal matrix, and no bias yet."""
        head = Projection(inputs, spec)
        with torch.no_grad():
            head.linear.weight.copy_(orthogonal(spec.dimensions, inputs, seed))
            if spec.bias:
                head.linear.bias.zero_()
        return head

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, inputs) -> (B, dimensions)."""
        return self.linear(vectors)


def orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) float32 whose shorter side is orthonormal, the same for a seed on every machine."""
    generator = torch.Generator().manual_seed(seed)
    matrix = nn.init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64), generator=generator)
    # Rounded, so that the last bits of a decomposition, in which processors differ, do not show: all processes of a run,
    # and a run that goes on elsewhere, begin with the same weights.
    return (torch.round(matrix * 2**16) / 2**16).float()


def weights_fingerprint(backbone: Backbone, head: nn.Module | None) -> str:
    """SHA-256 of an encoder's weights, adapter and head included; the backbone's fingerprint where there are none."""
    own = backbone.fingerprint(adapter=True)
    return own if head is None else hashlib.sha256((own + digest(head.state_dict())).encode()).hexdigest()
