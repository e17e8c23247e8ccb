"""Losses: pure functions from tensors to one scalar. No model, no tokenizer, no logging.

Legend: Q queries, N documents, D width, R rows, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ELEMENTS = 2**20  # of a vocabulary-wide softmax at a time: what is made on the way stays small, and in the cache


def info_nce(
    queries: Tensor,
    documents: Tensor,
    positives: Tensor,
    temperature: float,
    allowed: Tensor | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4) on cosine similarity, mean over queries, in nats.

    queries    (Q, D)  of any length; normalised here
    documents  (N, D)  positives and negatives together
    positives  (Q,)    int64, the row of `documents` that answers each query
    allowed    (Q, N)  bool, False for documents that are no negatives of a query; the positive always counts
    """
    # float32: a bfloat16 cosine near 1 is off by up to 2**-9, which is 0.1 nats at temperature 0.02.
    queries, documents = F.normalize(queries.float(), dim=-1), F.normalize(documents.float(), dim=-1)
    logits = queries @ documents.T / temperature  # (Q, N)
    if allowed is not None:
        own = F.one_hot(positives, len(documents)).bool()
        logits = logits.masked_fill(~(allowed | own), -torch.inf)
    return F.cross_entropy(logits, positives)


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
