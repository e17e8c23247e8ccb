"""Contrastive losses of vectors.

Legend: Q queries, N documents, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
