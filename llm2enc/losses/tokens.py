"""Losses of next-token logits.

Legend: R rows, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ELEMENTS = 2**20  # of a vocabulary-wide softmax at a time: what is made on the way stays small, and in the cache


def cross_entropy_sum(logits: Tensor, targets: Tensor, scale: float, overwrite: bool) -> tuple[Tensor, Tensor]:
    """`scale` x the sum over rows of the cross-entropy of logits (R, V) against ids (R,), and its gradient in the logits.

    In nats, in float32; the gradient (R, V) has the logits' type. It is softmax minus one-hot, so one tensor of that size
    is enough: with `overwrite` it takes the place of the logits.
    """
    logits = logits.detach()
    gradient = logits if overwrite else logits.clone()
    total = torch.zeros((), device=logits.device)
    count = max(1, ELEMENTS // logits.size(1))
    for rows, ids in zip(gradient.split(count), targets.split(count), strict=True):
        log_probabilities = F.log_softmax(rows.float(), dim=-1)
        total -= log_probabilities.gather(1, ids[:, None]).sum()
        probabilities = log_probabilities.exp_()
        probabilities[torch.arange(len(ids), device=ids.device), ids] -= 1
        rows.copy_(probabilities.mul_(scale))
    return total * scale, gradient
