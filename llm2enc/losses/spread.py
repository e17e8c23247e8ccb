"""Regularisers that spread vectors over the sphere.

Legend: N vectors, D width.
"""

import torch
from torch import Tensor

from llm2enc.losses.vectors import unit


def spread_out(vectors: Tensor, centre: float, mean_weight: float = 0.0) -> Tensor:
    """max(0, mean squared cosine of different vectors - centre), plus `mean_weight` x their squared mean cosine.

    vectors  (N, D) of any length, N at least 2
    centre   0: EmbeddingGemma (arXiv 2509.20354). 1 / D, what random directions have: Zhang et al. (arXiv 1708.06320,
             eq. 6) and sentence-transformers, with mean_weight 1

    Orthogonal vectors give 0, equal ones 1 - centre + mean_weight.
    """
    vectors = unit(vectors)
    different = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    cosines = (vectors @ vectors.T)[different]
    return torch.relu(cosines.square().mean() - centre) + mean_weight * cosines.mean().square()
