"""How the texts of a contrastive batch relate, and which of them stand in a query's denominator.

Legend: Q queries, N documents.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Block = Literal["qd", "qq", "pp", "pd", "pq"]
"""Similarities of which a denominator is made. In row i the query q_i or its positive p_i is compared with: qd all documents
(N), qq all queries (Q), pp all positives (Q), pd all documents (N), pq all queries (Q)."""


@dataclass(frozen=True)
class Layout:
    """Rows of a batch: a query, its positive, its hard negatives."""

    positives: Tensor
    """(Q,) int64, the document that answers each query; no document answers two."""
    owners: Tensor
    """(N,) int64, the query whose row brings each document."""
    excluded: Tensor | None = None
    """(Q, N) bool, documents that are no negatives of a query whatever their place; None: there are none."""
    excluded_queries: Tensor | None = None
    """(Q, Q) bool, the same of other queries."""

    def to(self, device: torch.device) -> "Layout":
        tensors = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return replace(self, **{name: value.to(device) for name, value in tensors.items() if value is not None})

    @cached_property
    def hard(self) -> Tensor:
        """(N,) bool, the documents that are hard negatives of their row."""
        return torch.ones_like(self.owners, dtype=torch.bool).index_fill(0, self.positives, False)

    @cached_property
    def own(self) -> Tensor:
        """(Q, N) bool, the documents of each query's own row."""
        return self.owners == torch.arange(len(self.positives), device=self.owners.device)[:, None]


def negatives(layout: Layout, in_batch: bool, hard_negatives: Literal["none", "own", "all"]) -> Tensor:
    """(Q, N) bool, the documents that stand beside the positive in each query's denominator.

    in_batch        take documents of other rows
    hard_negatives  of no row, of the query's own row, or of every row
    """
    own, hard = layout.own, layout.hard
    found = (own & hard) if hard_negatives != "none" else torch.zeros_like(own)
    if in_batch:
        found |= ~own if hard_negatives == "all" else ~own & ~hard
    return found if layout.excluded is None else found & ~layout.excluded


def denominator(
    layout: Layout,
    in_batch: bool = True,
    hard_negatives: Literal["none", "own", "all"] = "all",
    queries_as_negatives: bool = False,
    documents_as_negatives: Literal["none", "positives", "all"] = "none",
    reverse_rows: bool = False,
) -> dict[Block, Tensor]:
    """All that stands beside the positive in each query's denominator, by block: (Q, N) or (Q, Q) bool.

    in_batch                take texts of other rows; without it there is no block but qd
    hard_negatives          as for `negatives`
    queries_as_negatives    qq: q_i against other queries
    documents_as_negatives  pp: p_i against other positives; or pd: against every other document, own hard negatives too
    reverse_rows            pq: p_i against other queries
    """
    found: dict[Block, Tensor] = {"qd": negatives(layout, in_batch, hard_negatives)}
    if not in_batch:
        return found
    excluded, positives = layout.excluded, layout.positives
    known = None if excluded is None else excluded[:, positives]  # (Q, Q), whether p_j is right for q_i
    other = ~torch.eye(len(positives), dtype=torch.bool, device=positives.device)
    if queries_as_negatives:
        found["qq"] = _without(other, layout.excluded_queries)
    if documents_as_negatives == "positives":
        found["pp"] = _without(other, known)
    if documents_as_negatives == "all":
        found["pd"] = _without(~layout.own | layout.hard, excluded)
    if reverse_rows:
        found["pq"] = _without(other, None if known is None else known.T)
    return found


def _without(found: Tensor, excluded: Tensor | None) -> Tensor:
    return found if excluded is None else found & ~excluded
