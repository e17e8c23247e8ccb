"""Losses over vectors of several layers: 2D Matryoshka (2DMSE) and Espresso (ESE), both of arXiv 2402.14776.

Both add the losses of `prior` layers to that of the last one, and pull each prior layer towards a teacher without gradient.
Legend: N texts, D width, C dimensions after compression.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor], Tensor]
"""Vectors (N, D) or (N, C) -> scalar."""


def two_d_matryoshka(
    loss: Loss, last: Tensor, prior: Sequence[Tensor], weights: Sequence[float], kl_temperature: float | None
) -> Tensor:
    """loss(last) + sum_l w_l loss(prior_l) / L + sum_l kl(prior_l, last), L prior layers (2DMSE; version 1 of the paper).

    As AdaptiveLayerLoss of sentence-transformers; with a Matryoshka `loss` as its Matryoshka2dLoss.

    last, prior     (N, D) each
    weights         one per prior layer
    kl_temperature  of the alignment; None: there is none
    """
    total = last.new_zeros(())
    for vectors, weight in zip(prior, weights, strict=True):
        total = total + loss(vectors) * weight / len(prior)
        if kl_temperature is not None:
            total = total + kl(vectors, last, kl_temperature)
    return loss(last) + total  # called last, so that what it notes of its vectors is of the last layer


def espresso(
    loss: Loss,
    last: Tensor,
    prior: Sequence[Tensor],
    weights: Sequence[float],
    compression: int,
    kl_temperature: float | None,
) -> Tensor:
    """loss(last) + slim(last) + sum_l w_l slim(prior_l) / L, L prior layers (ESE; version 2 of the paper, and AnglE).

    slim(x) is the loss of the first `compression` dimensions of x, plus their mean squared error and KL to `principal(x)`.
    Arguments as of `two_d_matryoshka`.
    """

    def slim(vectors: Tensor) -> Tensor:
        first, teacher = vectors[:, :compression], principal(vectors, compression)
        aligned = F.mse_loss(first, teacher)
        return loss(first) + (aligned if kl_temperature is None else aligned + kl(first, teacher, kl_temperature))

    total = slim(last)
    for vectors, weight in zip(prior, weights, strict=True):
        total = total + slim(vectors) * weight / len(prior)
    return loss(last) + total  # called last, as in `two_d_matryoshka`


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T x KL(teacher || student) between softmaxes over the dimensions at temperature T, mean over texts, in nats.

    student, teacher  (N, D); the teacher gets no gradient
    """
    theirs = F.log_softmax(teacher.detach() / temperature, dim=-1)
    ours = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature


@torch.no_grad()
def principal(vectors: Tensor, dimensions: int) -> Tensor:
    """(N, C) the vectors X times the leading left singular vectors of softmax(X^T X / sqrt(D)), each by its singular value.

    The "PCA" of ESE, as AnglE computes it. It begins with random numbers, here of one seed: every process of a run must
    get the same.
    """
    similarity = F.softmax(vectors.T @ vectors / vectors.size(1) ** 0.5, dim=-1)  # (D, D)
    with torch.random.fork_rng(devices=[vectors.device] if vectors.is_cuda else []):
        torch.manual_seed(0)
        left, values, _ = torch.svd_lowrank(similarity, q=dimensions)
    return vectors @ (left * values)
