"""Pooling: from one state per token to one vector per text, over packed rows.

Every pooler is a pure function

    hidden   (T, D)  last-layer states of B texts in one row, any float type
    pool     (T,)    bool, True where a token enters the vector; at least one per text
    lengths  (B,)    int64, on the CPU
    returns  (B, D)  float32

The sums run in float32: a bfloat16 count can't hold 257, and a bfloat16 sum of 500 states loses the last ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llm2enc.recipe import Pooling

Pooler = Callable[[Tensor, Tensor, Tensor], Tensor]


def mean(hidden: Tensor, pool: Tensor, lengths: Tensor) -> Tensor:
    """Average of the pooled states."""
    return _weighted_sum(hidden, pool.float(), lengths)


def weighted_mean(hidden: Tensor, pool: Tensor, lengths: Tensor) -> Tensor:
    """Position-weighted mean (SGPT, arXiv 2202.08904, eq. 1): the i-th pooled state of a text weighs i."""
    count = torch.cumsum(pool, 0)  # (T,) pooled tokens so far in the row
    before = _first_of_text(count - pool.long(), lengths)
    return _weighted_sum(hidden, (count - before).float() * pool, lengths)


def last(hidden: Tensor, pool: Tensor, lengths: Tensor) -> Tensor:
    """State of the last pooled token, the only one a causal model lets read the whole text."""
    return hidden[pooled_edges(pool, lengths)[1]].float()


def first(hidden: Tensor, pool: Tensor, lengths: Tensor) -> Tensor:
    """State of the first pooled token."""
    return hidden[pooled_edges(pool, lengths)[0]].float()


POOLERS: dict[Pooling, Pooler] = {"mean": mean, "weighted_mean": weighted_mean, "last": last, "first": first}


def needed_rows(pooling: Pooling, pool: Tensor, lengths: Tensor) -> Tensor:
    """Which of the last layer's states (T, D) enter the vectors: (T,) bool. The last layer computes no others."""
    if pooling in ("mean", "weighted_mean"):
        return pool
    edge = pooled_edges(pool, lengths)[pooling == "last"]
    return torch.zeros_like(pool).index_fill(0, edge, True)


def pooled_edges(pool: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers of the first and last pooled token of each text: two (B,)."""
    text = _text_of_token(lengths, pool.device)
    rows = torch.arange(len(pool), device=pool.device)
    empty = torch.full((len(lengths),), -1, device=pool.device, dtype=rows.dtype)
    ends = empty.scatter_reduce(0, text, rows.where(pool, -1), "amax", include_self=False)
    starts = empty.scatter_reduce(0, text, rows.where(pool, len(pool)), "amin", include_self=False)
    return starts, ends


def _weighted_sum(hidden: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
    text = _text_of_token(lengths, hidden.device)
    totals = torch.zeros(len(lengths), device=hidden.device).index_add(0, text, weights)  # (B,)
    shares = weights / totals[text]  # (T,)
    vectors = torch.zeros(len(lengths), hidden.size(-1), device=hidden.device)
    # Filled, because 0 x infinity is nan: the first state of a model in float16 may be beyond its range, and is not pooled.
    weighted = (hidden.float() * shares[:, None]).masked_fill_((weights == 0)[:, None], 0)
    return vectors.index_add(0, text, weighted)


def _text_of_token(lengths: Tensor, device: torch.device) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)


def _first_of_text(values: Tensor, lengths: Tensor) -> Tensor:
    """Each token's text's value at its first token: (T,)."""
    starts = (torch.cumsum(lengths, 0) - lengths).to(values.device)
    return values[starts][_text_of_token(lengths, values.device)]
