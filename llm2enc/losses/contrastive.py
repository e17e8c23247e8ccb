"""Contrastive losses of vectors.

Legend: Q queries, N documents, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llm2enc.losses.layout import Layout, negatives


def info_nce(
    queries: Tensor,
    documents: Tensor,
    layout: Layout,
    temperature: float | Tensor,
    *,
    similarity: Literal["cosine", "dot"] = "cosine",
    in_batch: bool = True,
    hard_negatives: Literal["none", "own", "all"] = "all",
) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4), mean over queries, in nats.

    queries    (Q, D)  of any length
    documents  (N, D)  positives and negatives together
    layout     which documents belong to which query; its positive always stays in a query's denominator
    in_batch, hard_negatives   which documents are negatives, see `negatives`
    """
    logits = _similarities(queries, documents, similarity) / temperature  # (Q, N)
    own = F.one_hot(layout.positives, len(documents)).bool()
    logits = logits.masked_fill(~(own | negatives(layout, in_batch, hard_negatives)), -torch.inf)
    return F.cross_entropy(logits, layout.positives)


def _similarities(left: Tensor, right: Tensor, similarity: Literal["cosine", "dot"]) -> Tensor:
    """(L, R) similarities of (L, D) and (R, D), in float32 at least.

    A bfloat16 cosine near 1 is off by up to 2**-9, which is 0.1 nats at temperature 0.02.
    """
    left, right = (vectors.to(torch.promote_types(vectors.dtype, torch.float32)) for vectors in (left, right))
    if similarity == "cosine":
        left, right = F.normalize(left, dim=-1), F.normalize(right, dim=-1)
    return left @ right.T
