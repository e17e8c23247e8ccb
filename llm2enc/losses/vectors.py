"""Vectors as losses compare them.

Legend: N rows, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """The values in float32 at least: a bfloat16 cosine near 1 is off by up to 2**-9."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """(N, D) vectors of length 1, in float32 at least."""
    return F.normalize(widened(vectors), dim=-1)


def pair_cosines(first: Tensor, second: Tensor) -> Tensor:
    """(N,) the cosine of each row of `first` (N, D) with the same row of `second`."""
    return (unit(first) * unit(second)).sum(-1)
