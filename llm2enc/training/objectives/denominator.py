"""InfoNCE as a recipe describes it: with a temperature that may train, and of vectors that may be cut."""

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from llm2enc.encoding import Encoder
from llm2enc.losses import Guide, Layout, info_nce, matryoshka
from llm2enc.recipe import LearnedTemperature, LossSpec, MatryoshkaSpec

TEMPERATURE = "temperature"  # among what a loss trains besides the encoder

Term = Callable[[Tensor, Tensor], Tensor]
"""(queries (Q, D), documents (N, D)) of the global batch, in float32 and not normalised -> scalar."""


class Temperature(nn.Module):
    """A temperature that trains: exp(-t)."""

    def __init__(self, spec: LearnedTemperature):
        super().__init__()
        self.t = nn.Parameter(torch.tensor(-math.log(spec.start), dtype=torch.float32))
        self.bounds = None if spec.bounds is None else tuple(-math.log(bound) for bound in reversed(spec.bounds))

    def forward(self) -> Tensor:
        """() the temperature; at a bound, no gradient leads further out."""
        if self.bounds is None:
            return torch.exp(-self.t)
        low, high = self.bounds
        t = self.t.clamp(low, high).detach() + (self.t - self.t.detach())
        if t.requires_grad:  # descent goes against the gradient
            outward = (self.t >= high) * -1 + (self.t <= low) * 1
            t.register_hook(lambda gradient: torch.where(gradient.sign() == outward, 0.0, gradient))
        return torch.exp(-t)


def temperature_of(encoder: Encoder, loss: LossSpec) -> float | Tensor:
    """What the loss divides similarities by."""
    given = loss.temperature
    return cast("Temperature", encoder.auxiliary[TEMPERATURE])() if isinstance(given, LearnedTemperature) else given


def widths(spec: MatryoshkaSpec, seed: int, step: int) -> dict[int, float]:
    """The widths that a step takes, and their weights: the same on every process, and in a resumed run."""
    weights = dict(zip(spec.dims, spec.weights or [1.0] * len(spec.dims), strict=True))
    if spec.dims_per_step is None:
        return weights
    generator = np.random.default_rng((seed, step, 1))  # hard negatives are drawn from (seed, step)
    chosen = set(generator.choice(spec.dims, spec.dims_per_step, replace=False).tolist())
    return {width: weight for width, weight in weights.items() if width in chosen}


def contrastive_term(
    loss: LossSpec,
    layout: Layout,
    temperature: float | Tensor,
    in_batch: bool = True,
    guide: Guide | None = None,
    seed: int = 0,
    step: int = 0,
) -> Term:
    """InfoNCE by the recipe, of a batch with this layout."""
    own, hardness, nested = loss.masks.own_similarity, loss.hardness, loss.matryoshka

    def term(queries: Tensor, documents: Tensor) -> Tensor:
        return info_nce(
            queries,
            documents,
            layout,
            temperature,
            similarity=loss.similarity,
            in_batch=in_batch,
            hard_negatives=loss.hard_negatives,
            queries_as_negatives=loss.queries_as_negatives,
            documents_as_negatives=loss.documents_as_negatives,
            reverse_rows=loss.reverse_rows,
            count_positive_in_reverse=loss.count_positive_in_reverse,
            guide=guide,
            own_margin=None if own is None else own.margin,
            own_margin_on=() if own is None else own.on,
            hardness=0.0 if hardness is None else hardness.alpha,
            hardness_on="all" if hardness is None else hardness.on,
            hard_negative_bias=loss.hard_negative_bias,
            focal_gamma=loss.focal_gamma,
        )

    if nested is None:
        return term
    return lambda queries, documents: matryoshka(term, queries, documents, widths(nested, seed, step), nested.reduce)
