"""The one pass over a source: rows in chunks of a thousand, each text with a key by which equal ones are found.

What is kept of a row is numbers only: 32 bytes, and 16 for each of its negatives and further right answers (pairs.py,
sides.py); sorting takes about three times as much for a moment. Beyond LIMIT rows a random sample is read; texts are kept
of SAMPLE rows, drawn by reservoir (Vitter 1985, algorithm R).
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np

from llm2enc.data import Pair, Rows, ScoredPair, Stream

LIMIT = 2_000_000  # rows: 64 MB of numbers, 290 MB with seven negatives each
SAMPLE = 2000  # rows whose texts are tokenized and whose language is detected: shares are right within 2 points
CHUNK_ROWS = 1000

Row = Pair | ScoredPair | str


def normalised(text: str) -> str:
    """The text without differences of case, white space and Unicode form (NFKC)."""
    if text.isascii():
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def keys_of(texts: Sequence[str]) -> np.ndarray:
    """(N,) uint64, equal for texts that are equal when normalised.

    Of N different texts two share a key with probability N^2 / 2^65: one in 4,000 for a hundred million.
    """
    digests = (
        hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype="<u8")


@dataclass(frozen=True)
class Column:
    """The texts of one side in a chunk."""

    texts: list[str]
    rows: np.ndarray
    """(N,) int64 number of the row that each text belongs to, from 1."""

    @cached_property
    def keys(self) -> np.ndarray:
        return keys_of(self.texts)


@dataclass(frozen=True)
class Chunk:
    """Some rows, by side: query, positive, other (further right answers) and negative; first and second; or text."""

    first: int
    """Number of the first row, from 1."""
    rows: list[Row]
    columns: dict[str, Column]
    not_text: list[int]
    """Numbers of rows with a cell that is no text."""


def chunk_of(rows: Sequence[Row], first: int = 1) -> Chunk:
    """Rows by side. A cell that is no text counts as empty and is remembered."""
    not_text: list[int] = []

    def column(cells: Sequence[tuple[int, object]]) -> Column:
        not_text.extend(number for number, cell in cells if not isinstance(cell, str))
        return Column(
            [cell if isinstance(cell, str) else "" for _, cell in cells],
            np.array([number for number, _ in cells], dtype=np.int64),
        )

    numbered = list(enumerate(rows, first))
    pairs = [(number, row) for number, row in numbered if isinstance(row, Pair)]
    scored = [(number, row) for number, row in numbered if isinstance(row, ScoredPair)]
    if scored:
        columns = {
            "first": column([(number, pair.first) for number, pair in scored]),
            "second": column([(number, pair.second) for number, pair in scored]),
        }
    elif not pairs:
        columns = {"text": column(numbered)}
    else:
        columns = {
            "query": column([(number, pair.query) for number, pair in pairs]),
            "positive": column([(number, pair.positive) for number, pair in pairs]),
            "other": column([(number, text) for number, pair in pairs for text in pair.extra_positives]),
            "negative": column([(number, text) for number, pair in pairs for text in pair.negatives]),
        }
    return Chunk(first, list(rows), columns, sorted(set(not_text)))


def choose(rows: "Rows[Row] | Stream[Row] | Sequence[Row]", limit: int, seed: int = 0) -> tuple[Iterator[Row], str]:
    """The rows to read in the source's order, and how they were chosen if they are not all.

    limit  beyond it a random sample of a source of known size, the head of a stream
    """
    if isinstance(rows, Stream):
        return islice(iter(rows), limit), f"the first {limit:,} rows of a stream, if it has more"
    if len(rows) <= limit:
        return _in_order(rows, np.arange(len(rows))), ""
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), size=limit, replace=False))
    return _in_order(rows, chosen), (
        f"a random sample of {limit:,} of {len(rows):,} rows, numbered by their place in the sample; "
        f"of two equal rows both are in it with probability {(limit / len(rows)) ** 2:.2g}"
    )


def _in_order(rows: "Rows[Row] | Sequence[Row]", positions: np.ndarray) -> Iterator[Row]:
    for begin in range(0, len(positions), CHUNK_ROWS):
        piece = positions[begin : begin + CHUNK_ROWS]
        yield from rows.take(piece) if isinstance(rows, Rows) else [rows[position] for position in piece.tolist()]


def chunks(rows: Iterator[Row], advance: Callable[[int], None] = lambda count: None) -> Iterator[Chunk]:
    """The rows in chunks; `advance` hears how many rows were read."""
    first = 1
    while piece := list(islice(rows, CHUNK_ROWS)):
        yield chunk_of(piece, first)
        first += len(piece)
        advance(len(piece))


@dataclass
class Reservoir:
    """A uniform sample of at most `size` rows of a source of unknown length, the same for the same rows."""

    size: int = SAMPLE
    rows: dict[int, tuple[int, Row]] = field(default_factory=dict)
    """Place in the sample -> row number and row."""

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def add(self, chunk: Chunk) -> None:
        numbers = np.arange(chunk.first, chunk.first + len(chunk.rows))
        # Row n takes a place among the first n; it stays if that place is in the sample.
        places = np.where(numbers <= self.size, numbers - 1, self._generator.integers(0, numbers))
        for index in np.flatnonzero(places < self.size):
            self.rows[int(places[index])] = (int(numbers[index]), chunk.rows[index])

    def chunk(self) -> tuple[list[int], Chunk]:
        """The sample in the source's order: the rows' numbers, and a chunk whose rows count from 0."""
        chosen = sorted(self.rows.values(), key=lambda item: item[0])
        return [number for number, _ in chosen], chunk_of([row for _, row in chosen], first=0)
