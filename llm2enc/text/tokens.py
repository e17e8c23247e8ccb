"""Tokens of a batch, which is a packed row, never a padded rectangle:

    texts    "a b"        "c d e"
    ids      <s> a b      <s> c d e       (T,)  T = 7
    lengths  3            4               (B,)  B = 2
    pool     0   1 1      0   1 1 1       (T,)  which tokens enter the vector

`InputFormat` (template.py) makes them of texts: the one path that training, encoding and export share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """B texts in one row of T tokens."""

    ids: Tensor  # (T,) int64; int32 in what `stored` gives
    lengths: Tensor  # (B,) int64, on the CPU: kernels are chosen by length
    pool: Tensor  # (T,) bool, at least one True per text
    truncated: Tensor  # (B,) bool, on the CPU: the text was cut to fit

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """(T,) int64, 0 at the start of every text."""
        return _positions(self.lengths, self.ids.device)

    @staticmethod
    def from_lists(ids: Sequence[Sequence[int]], pool: Sequence[Sequence[bool]], truncated: Sequence[bool]) -> "Tokens":
        """Packed tokens of B id lists and their pool flags."""
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
        flat = torch.from_numpy(flattened(ids, np.int64)), torch.from_numpy(flattened(pool, np.bool_))
        return Tokens(flat[0], lengths, flat[1], torch.tensor(list(truncated), dtype=torch.bool))

    @staticmethod
    def from_blocks(blocks: Tensor) -> "Tokens":
        """Packed tokens of (B, L) ids in which every token is pooled: the sequences of clm and mntp."""
        return Tokens(
            ids=blocks.reshape(-1).to(torch.int64),
            lengths=torch.full((len(blocks),), blocks.size(1), dtype=torch.int64),
            pool=torch.ones(blocks.numel(), dtype=torch.bool),
            truncated=torch.zeros(len(blocks), dtype=torch.bool),
        )

    def select(self, rows: Tensor) -> "Tokens":
        """The texts `rows` (R,), in that order."""
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        lengths = self.lengths[rows]
        index = _positions(lengths) + torch.repeat_interleave(starts[rows], lengths)  # (T',)
        index = index.to(self.ids.device)
        return Tokens(self.ids[index], lengths, self.pool[index], self.truncated[rows])

    def stored(self) -> "Tokens":
        """The same tokens in 5 bytes each, to keep many of them; `to` makes them fit for the model again."""
        return replace(self, ids=self.ids.to(torch.int32))

    def to(self, device: torch.device | str) -> "Tokens":
        """The same tokens with int64 ids and pool on `device`; lengths stay on the CPU."""
        device = torch.device(device)
        if device.type == "cpu":
            return replace(self, ids=self.ids.to(torch.int64))
        ids, pool = (flat.pin_memory().to(device, non_blocking=True) for flat in (self.ids, self.pool))
        return replace(self, ids=ids.to(torch.int64), pool=pool)


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """One packed row of all texts, in order."""
    return Tokens(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Tokens)))


def micro_batches(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Row numbers of batches of neighbours in length, each of at most `max_tokens` tokens or one text.

    Longest first, so that memory that is going to run out does so at once. Equal lengths stay together: attention runs
    once per length.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    start, total = 0, 0
    for end, length in enumerate(lengths[order].tolist()):
        if total + length > max_tokens and end > start:
            yield order[start:end]
            start, total = end, 0
        total += length
    if start < len(order):
        yield order[start:]


def _positions(lengths: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """0, 1, ... within each text: (T,)."""
    total, starts = int(lengths.sum()), torch.cumsum(lengths, 0) - lengths
    starts, lengths = starts.to(device), lengths.to(device)
    return torch.arange(total, device=device) - torch.repeat_interleave(starts, lengths, output_size=total)


def flattened(rows: Iterable[Sequence], dtype: type) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=dtype)
