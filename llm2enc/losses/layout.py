"""How the texts of a contrastive batch relate, and which of them stand in a query's denominator.

Legend: Q queries, N documents.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Rows of a batch: a query, its positive, its hard negatives."""

    positives: Tensor
    """(Q,) int64, the document that answers each query; no document answers two."""
    owners: Tensor
    """(N,) int64, the query whose row brings each document."""
    excluded: Tensor | None = None
    """(Q, N) bool, documents that are no negatives of a query whatever their place; None: there are none."""

    def to(self, device: torch.device) -> "Layout":
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


def negatives(layout: Layout, in_batch: bool, hard_negatives: Literal["none", "own", "all"]) -> Tensor:
    """(Q, N) bool, the documents that stand beside the positive in each query's denominator.

    in_batch        take documents of other rows
    hard_negatives  of no row, of the query's own row, or of every row
    """
    hard = torch.ones_like(layout.owners, dtype=torch.bool)
    hard[layout.positives] = False
    own = layout.owners == torch.arange(len(layout.positives), device=hard.device)[:, None]  # (Q, N)
    found = (own & hard) if hard_negatives != "none" else torch.zeros_like(own)
    if in_batch:
        found |= ~own if hard_negatives == "all" else ~own & ~hard
    return found if layout.excluded is None else found & ~layout.excluded
