"""Losses of next-token logits.

Legend: R rows, V vocabulary.
"""

from itertools import repeat
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ELEMENTS = 2**20  # of a vocabulary-wide softmax at a time: what is made on the way stays small, and in the cache


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, scale: float, overwrite: bool, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`scale` x the sum over rows of the cross-entropy of logits (R, V) against ids (R,), and its gradient in the logits.

    In nats, in float32; the gradient (R, V) has the logits' type. It is softmax minus one-hot, so one tensor of that size
    is enough: with `overwrite` it takes the place of the logits.

    weights  (R,) what each row counts; 1 by default
    """
    logits = logits.detach()
    gradient = logits if overwrite else logits.clone()
    total = torch.zeros((), device=logits.device)
    count = max(1, ELEMENTS // logits.size(1))
    weighted = repeat(None) if weights is None else weights[:, None].split(count)
    for rows, ids, weight in zip(gradient.split(count), targets.split(count), weighted, strict=False):
        log_probabilities = F.log_softmax(rows.float(), dim=-1)
        found = log_probabilities.gather(1, ids[:, None])
        total -= (found if weight is None else found * weight).sum()
        probabilities = log_probabilities.exp_()
        probabilities[torch.arange(len(ids), device=ids.device), ids] -= 1
        if weight is not None:
            probabilities *= weight
        rows.copy_(probabilities.mul_(scale))
    return total * scale, gradient


def target_weights(counts: Tensor, aggregation: Literal["mixed", "token"], group: int | None = None) -> Tensor:
    """(B,) float64: what each predicted token of a sequence counts in the loss of a batch (GRIT, arXiv 2402.09906, 3.2).

    counts  (B,) predicted tokens of each sequence
    mixed   the mean over tokens within `group` consecutive sequences (None: all), then over those groups that predict any
    token   the sum over all tokens by the number of sequences: a long response counts more
    """
    if aggregation == "token":
        return torch.full((len(counts),), 1 / len(counts), dtype=torch.float64, device=counts.device)
    owner = torch.arange(len(counts), device=counts.device) // (group or len(counts))
    totals = torch.zeros(int(owner[-1]) + 1, dtype=torch.float64, device=counts.device)
    totals.index_add_(0, owner, counts.double())
    return 1 / (totals.clamp(min=1)[owner] * (totals > 0).sum())
