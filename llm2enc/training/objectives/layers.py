"""A loss over vectors of several layers: which layers a step reads, and its passage through the gradient cache.

The encoder gives the vectors of all of them in one forward pass, side by side, the last layer first: (B, K x D).
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.losses import espresso, two_d_matryoshka
from llm2enc.recipe import LayersSpec
from llm2enc.text import Tokens
from llm2enc.training.microbatch import BatchPartition

Encode = Callable[[Tokens], Tensor]
Loss = Callable[[Tensor], Tensor]


def prior_layers(spec: LayersSpec, depth: int, seed: int, step: int) -> list[int]:
    """The prior layers of a step, of 1 to depth - 1. InputError if the model has too few."""
    wanted = spec.which if isinstance(spec.which, int) else 1
    if wanted > depth - 1:
        raise InputError(
            f"`loss.layers.which: {spec.which}` needs {wanted} layers before the last one, and this model has {depth} in all"
        )
    if spec.which == "random":
        return [int(np.random.default_rng((seed, step, depth)).integers(1, depth))]
    return list(range(1 if spec.which == "all" else depth - wanted, depth))


def check_layers(encoder: Encoder, spec: LayersSpec) -> None:
    """InputError for layers that the model does not have, or more dimensions than its vectors have."""
    prior_layers(spec, encoder.backbone.depth, seed=0, step=0)
    if (spec.compression or 0) > encoder.dimensions:
        raise InputError(
            f"`loss.layers.compression` is {spec.compression}, and the vectors have {encoder.dimensions} dimensions"
        )


def over_layers(
    encoder: Encoder, spec: LayersSpec | None, partition: BatchPartition, loss: Loss
) -> tuple[Encode, Loss]:
    """What a step encodes with, and the loss of its vectors (B, K x D); without a spec, the encoder and `loss`.

    loss  of the vectors (B, D) of one layer, or (B, compression) of their first dimensions
    """
    if spec is None:
        return encoder, loss
    prior = prior_layers(spec, encoder.backbone.depth, partition.seed, partition.step)
    weights = [spec.weight(layer) for layer in prior]

    def encode(tokens: Tokens) -> Tensor:
        return encoder.layer_vectors(tokens, [encoder.backbone.depth, *prior]).flatten(1)

    def total(vectors: Tensor) -> Tensor:
        last, *others = vectors.chunk(1 + len(prior), dim=1)
        if spec.compression is None:
            return two_d_matryoshka(loss, last, others, weights, spec.kl_temperature)
        return espresso(loss, last, others, weights, spec.compression, spec.kl_temperature)

    return encode, total
