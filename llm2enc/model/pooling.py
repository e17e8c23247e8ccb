"""Pooling: from one state per token to one vector per text. `POOLERS` says all that the project knows of each way.

Over packed rows, every way is a pure function

    hidden   (T, D)  last-layer states of B texts in one row, any float type
    pool     (T,)    bool, True where a token enters the vector; at least one per text
    lengths  (B,)    int64, on the CPU
    returns  (B, D)  float32

The sums run in float32: a bfloat16 count cannot hold 257, and a bfloat16 sum of 500 states loses the last ones. Over padded
rows, as other programs read them, it is a function of the attention mask:

    mask     (..., S)  int64, 1 for tokens that are pooled
    count    (..., S)  int64, tokens so far, the own one included
    returns  (..., S)  int64, how much each token counts in the vector, before division by the sum
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llm2enc.recipe import Pooling


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


@dataclass(frozen=True)
class Pooler:
    """One way of pooling, and its names in other programs; None where a program has none."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    """hidden, pool, lengths -> vectors (B, D)."""
    weights: Callable[[Tensor, Tensor], Tensor]
    """mask, count -> weights; what a graph computes."""
    needs: Literal["all", "first", "last"]
    """Which of the pooled states enter the vector."""
    mode: str
    """`pooling_mode` of sentence-transformers, in 1_Pooling/config.json."""
    flag: str
    """The key that is true there in the schema before its release 6."""
    gguf: int | None
    """llama.cpp's number (enum llama_pooling_type)."""
    tei: str | None
    """--pooling of text-embeddings-inference."""
    vllm: str | None
    """pooling_type of vLLM."""

    def needed(self, pool: Tensor, lengths: Tensor) -> Tensor:
        """(T,) bool: the tokens of a packed row whose states enter the vectors."""
        if self.needs == "all":
            return pool
        edges = pooled_edges(pool, lengths)[self.needs == "last"]
        return torch.zeros_like(pool).index_fill(0, edges, True)

    def same_in_others(self, pool: Tensor, skipped: int = 0) -> bool:
        """Whether a program that pools all tokens of a text but the first `skipped` gives the vector of `pool` (L,).

        Such a program counts from the first token of all, also where it leaves that out (sentence-transformers).
        """
        places = torch.arange(1, len(pool) + 1)
        theirs = self.weights((places > skipped).long(), places)
        return torch.equal(self.weights(pool.long(), pool.cumsum(0)), theirs)


POOLERS: dict[Pooling, Pooler] = {
    "mean": Pooler(
        mean, lambda mask, count: mask, "all", mode="mean", flag="mean_tokens", gguf=1, tei="mean", vllm="MEAN"
    ),
    "weighted_mean": Pooler(
        weighted_mean, lambda mask, count: mask * count, "all",
        mode="weightedmean", flag="weightedmean_tokens", gguf=None, tei=None, vllm=None,
    ),
    "last": Pooler(
        last, lambda mask, count: mask * (count == count[..., -1:]), "last",
        mode="lasttoken", flag="lasttoken", gguf=3, tei="last-token", vllm="LAST",
    ),
    "first": Pooler(
        first, lambda mask, count: mask * (mask.cumsum(-1) == 1), "first",
        mode="cls", flag="cls_token", gguf=2, tei="cls", vllm="CLS",
    ),
}  # fmt: skip


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
