"""InfoNCE of vectors, with any denominator.

Legend: Q queries, N documents, D width.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llm2enc.losses.layout import Block, Layout, denominator
from llm2enc.losses.vectors import unit, widened

Similarity = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Guide:
    """Vectors of a frozen model, by which texts that may be right answers too are left out (GISTEmbed, arXiv 2402.16829)."""

    queries: Tensor
    """(Q, G) of any length."""
    documents: Tensor
    """(N, G)"""
    margin: float = 0.0
    """How far below the positive's cosine a negative must be, of the guide's own cosines."""
    relative: bool = False
    """The margin is a share of the positive's cosine."""


def info_nce(
    queries: Tensor,
    documents: Tensor,
    layout: Layout,
    temperature: float | Tensor,
    *,
    similarity: Similarity = "cosine",
    in_batch: bool = True,
    hard_negatives: Literal["none", "own", "all"] = "all",
    queries_as_negatives: bool = False,
    documents_as_negatives: Literal["none", "positives", "all"] = "none",
    reverse_rows: Literal["none", "joint", "mean", "sum"] = "none",
    count_positive_in_reverse: bool = False,
    guide: Guide | None = None,
    own_margin: float | None = None,
    own_margin_on: Collection[Literal["qd", "qq", "dd", "dd_by_qd"]] = (),
    hardness: float = 0.0,
    hardness_on: Literal["own_hard", "in_batch", "all"] = "all",
    hard_negative_bias: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748, eq. 4), mean over queries, in nats.

    queries, documents   (Q, D), (N, D) of any length
    layout               which documents belong to which query; its positive always stays in a query's denominator
    in_batch, hard_negatives, queries_as_negatives, documents_as_negatives   what else stands there, see `denominator`
    reverse_rows         the positive against other queries: in the query's own denominator (joint), or in one of its own,
                         whose loss is averaged with the query's (mean) or added to it (sum)
    count_positive_in_reverse   of joint: the positive stands in the denominator twice (GTE), so that no loss is below ln 2
    guide                leaves out what it finds nearer than the positive, less a margin
    own_margin           leaves out what is nearer than the positive plus this margin, by the similarities at hand, without a
                         gradient (Qwen3-Embedding, arXiv 2506.05176, section 3.1). `own_margin_on`: of documents by q_i d_j
                         (qd), of queries by q_i q_j (qq), of p_i d_j by itself (dd) or by q_i d_j (dd_by_qd)
    hardness             negatives count exp(hardness x similarity) times, without a gradient: the query's own hard negatives
                         (EmbeddingGemma, arXiv 2509.20354), documents of other rows (arXiv 2503.04812), or both
    hard_negative_bias   is added to the logits of a query's own hard negatives (SimCSE, arXiv 2104.08821, code)
    focal_gamma          each row's loss is weighted (1 - share of the positive)^gamma (KaLM-Embedding-V2, arXiv 2506.20923)
    """
    kept: dict[Block, Tensor] = denominator(
        layout, in_batch, hard_negatives, queries_as_negatives, documents_as_negatives, reverse_rows != "none"
    )
    found = _similarities(queries, documents, layout, similarity, kept)
    if guide is not None:
        theirs = _similarities(guide.queries, guide.documents, layout, "cosine", kept)
        limit = _of_positives(theirs["qd"], layout)
        limit = limit - (limit.abs() * guide.margin if guide.relative else guide.margin)
        kept = {name: mask & (theirs[name] <= limit) for name, mask in kept.items()}
    if own_margin is not None:
        kept = _nearer_left_out(found, kept, layout, own_margin, own_margin_on)
    logits: dict[Block, Tensor] = {name: block / temperature for name, block in found.items()}
    if hardness:
        chosen = {"own_hard": layout.own & layout.hard, "in_batch": ~layout.own, "all": ~layout.own | layout.hard}
        logits["qd"] = logits["qd"] + hardness * found["qd"].detach() * chosen[hardness_on]
    if hard_negative_bias:
        logits["qd"] = logits["qd"] + hard_negative_bias * (layout.own & layout.hard).to(logits["qd"].dtype)
    kept["qd"] = kept["qd"] | (layout.own & ~layout.hard)
    if "pq" in kept and (reverse_rows != "joint" or count_positive_in_reverse):
        kept["pq"] = kept["pq"] | torch.eye(len(queries), dtype=torch.bool, device=queries.device)
    masked: dict[Block, Tensor] = {name: block.masked_fill_(~kept[name], -torch.inf) for name, block in logits.items()}
    reverse = masked.pop("pq", None) if reverse_rows != "joint" else None
    own = torch.cat(list(masked.values()), 1) if len(masked) > 1 else masked["qd"]
    loss = _cross_entropy(own, layout.positives, focal_gamma)
    if reverse is None:
        return loss
    loss = loss + _cross_entropy(reverse, torch.arange(len(reverse), device=reverse.device), focal_gamma)
    return loss / 2 if reverse_rows == "mean" else loss


def matryoshka(
    loss: Callable[[Tensor, Tensor], Tensor],
    queries: Tensor,
    documents: Tensor,
    weights: Mapping[int, float],
    reduce: Literal["sum", "mean"],
) -> Tensor:
    """The weighted sum, or mean, of a loss of the first d coordinates (Matryoshka, arXiv 2205.13147, eq. 1).

    loss     (queries (Q, d), documents (N, d)) -> scalar, which normalises after the cut
    weights  of each d; a mean is over the number of them
    """
    total = torch.stack([w * loss(queries[:, :d], documents[:, :d]) for d, w in weights.items()]).sum()
    return total / len(weights) if reduce == "mean" else total


def _similarities(
    queries: Tensor, documents: Tensor, layout: Layout, similarity: Similarity, blocks: Iterable[Block]
) -> dict[Block, Tensor]:
    """(Q, Q) or (Q, N) by block, in float32 at least: a bfloat16 cosine near 1 is off by up to 2**-9, which is 0.1 nats at
    temperature 0.02."""
    q, d = (unit(side) if similarity == "cosine" else widened(side) for side in (queries, documents))
    p = d[layout.positives]
    sides = {"q": q, "p": p, "d": d}
    return {name: sides[name[0]] @ sides[name[1]].T for name in blocks}


def _of_positives(block: Tensor, layout: Layout) -> Tensor:
    """(Q, 1) the similarity of each query with its positive."""
    return block.detach().gather(1, layout.positives[:, None])


def _nearer_left_out(
    found: Mapping[Block, Tensor],
    kept: Mapping[Block, Tensor],
    layout: Layout,
    margin: float,
    on: Collection[Literal["qd", "qq", "dd", "dd_by_qd"]],
) -> dict[Block, Tensor]:
    limit = _of_positives(found["qd"], layout) + margin
    near = {name: block.detach() > limit for name, block in found.items()}
    by_query = {"pd": near["qd"], "pp": near["qd"][:, layout.positives]}
    left: dict[Block, Tensor] = {}
    for name, mask in kept.items():
        if {"qd": "qd", "qq": "qq", "pp": "dd", "pd": "dd"}.get(name) in on:
            mask = mask & ~near[name]
        if name in by_query and "dd_by_qd" in on:
            mask = mask & ~by_query[name]
        left[name] = mask
    return left


def _cross_entropy(logits: Tensor, targets: Tensor, focal_gamma: float) -> Tensor:
    if not focal_gamma:
        return F.cross_entropy(logits, targets)
    losses = F.cross_entropy(logits, targets, reduction="none")
    # A root has no slope at 0: a row that is perfect to the last bit has no gradient.
    missed = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
    return (missed**focal_gamma * losses).mean()
