"""Rows: what a data source gives, as a sequence that is read from disk on demand, or as a stream."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

import numpy as np

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Pair:
    """A query, its positives and its hard negatives: a row of contrastive training."""

    query: str
    positive: str
    negatives: tuple[str, ...]
    instruction: str
    """Instruction of the query; may be empty."""
    document_instruction: str
    """The same instruction if both sides are of one kind (`symmetric`), else empty."""
    extra_positives: tuple[str, ...] = ()
    """Further positives; each step draws one of them or `positive`, and none is ever a negative of this row."""
    positive_scores: tuple[float, ...] = ()
    """Teacher scores or graded labels of `positive` and `extra_positives`; empty if there are none or they are not read."""
    negative_scores: tuple[float, ...] = ()
    """Those of `negatives`."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts and how alike they are (STS): a row of CoSENT, AnglE or regression."""

    first: str
    second: str
    score: float
    """On the scale of the source."""
    instruction: str
    """Instruction of `first`; may be empty."""
    second_instruction: str
    """The same instruction if both texts are of one kind (`symmetric`), else empty."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a user says and what is answered, in turn: a row of generative training."""

    turns: tuple[tuple[str, str], ...]
    """(user's text, response), at least one."""


PairKind = type[Pair] | type[ScoredPair]
RowKind = type[str] | type[Dialogue] | PairKind
"""What a source is read as; `str` is a text."""


@dataclass(frozen=True)
class Rows(Sequence[Row], Generic[Row]):
    """A source of known size."""

    name: str
    size: int
    take: Callable[[np.ndarray], list[Row]]
    """Rows at the given positions (N,), in that order."""
    dropped: int = 0
    """Rows of the source that are not among them, because a required cell is empty."""

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        positions = range(self.size)[index]  # raises IndexError, and knows negative numbers and slices
        taken = self.take(np.atleast_1d(np.array(positions, dtype=np.int64)))
        return taken if isinstance(index, slice) else taken[0]


@dataclass(frozen=True)
class Stream(Generic[Row]):
    """A source that is read on the fly; its size is not known."""

    name: str
    blocks: Callable[[], Iterator[Rows[Row]]]
    """One pass in the order of the source, a few hundred rows at a time: a block's rows are converted when they are
    taken, so that a pass can count and skip at the speed of the file."""

    def __iter__(self) -> Iterator[Row]:
        for block in self.blocks():
            yield from block[:]
