"""Terms of a loss beside InfoNCE, from the vectors of the global batch and what a recipe says of each.

Legend: N pairs, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from llm2enc import losses
from llm2enc.encoding import Encoder
from llm2enc.model import orthogonal
from llm2enc.recipe import PairScores

SOFTMAX = "softmax"  # the name of SBERT's classification layer among what a loss trains


def linear(inputs: int, outputs: int, seed: int, device: torch.device) -> nn.Linear:
    """A float32 layer that has not been trained, the same for a seed on every machine: orthogonal, without bias yet."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=device, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.copy_(orthogonal(outputs, inputs, seed))
        layer.bias.zero_()
    return layer


def returned(encoder: Encoder, vectors: Tensor) -> Tensor:
    """(N, D) the pooled vectors as `encode` returns them: of unit length if the encoder normalises."""
    return normalize(vectors, dim=-1) if encoder.normalize else vectors


def pair_score(encoder: Encoder, spec: PairScores, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """A loss of labelled pairs, scaled by its weight.

    first, second  (N, D) the two texts of each pair
    labels         (N,) float, on the scale of the data
    """
    if spec.kind == "cosent":
        value = losses.cosent(first, second, labels, spec.scale)
    elif spec.kind == "angle":
        value = losses.angle(first, second, labels, spec.scale)
    elif spec.kind == "in_batch":
        value = losses.in_batch_pairs(first, second, labels == 1, spec.scale)
    elif spec.kind == "cosine_mse":
        low, high = spec.labels
        value = losses.cosine_mse(first, second, (labels - low) / (high - low))
    elif spec.kind == "softmax":
        layer = encoder.auxiliary[SOFTMAX]
        sides = returned(encoder, first), returned(encoder, second)
        value = losses.softmax_classes(*sides, labels.long(), layer.weight, layer.bias)
    else:
        value = losses.margin_contrastive(first, second, labels, spec.margin)
    return spec.weight * value
