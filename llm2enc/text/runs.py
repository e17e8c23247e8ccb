"""Tokens of strings that are made of parts: which part a token belongs to, whether it is pooled, where to cut."""

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm2enc.text.tokens import flattened

if TYPE_CHECKING:
    from tokenizers import Encoding

TEMPLATE, TEXT, TITLE = range(3)  # kinds of parts: the first is never cut


class Span(NamedTuple):
    """The characters of one part in a string."""

    start: int
    end: int
    pool: bool
    kind: int


class String(NamedTuple):
    """A run of text for the tokenizer, and the character spans of its parts."""

    text: str
    spans: tuple[Span, ...]


class Fixed(NamedTuple):
    """A token that comes from the template by id."""

    id: int
    pool: bool


class Runs(NamedTuple):
    """The tokens of many pieces, cut where a piece ends and where template and text meet: R runs."""

    piece: np.ndarray  # (R,)
    start: np.ndarray  # (R,) among all tokens
    within: np.ndarray  # (R,) the start among those of the piece
    size: np.ndarray  # (R,)
    kind: np.ndarray  # (R,) TEMPLATE, TEXT or TITLE


def runs_of(pieces: list[String | Fixed], found: "list[Encoding | None]", sizes: np.ndarray) -> tuple[Runs, np.ndarray]:
    """The runs of `sizes` (P,) tokens a piece, and which tokens are pooled (T,)."""
    only = [piece.spans[0] if isinstance(piece, String) else piece for piece in pieces]
    pool = np.repeat(np.array([part.pool for part in only], dtype=bool), sizes)
    kind = np.repeat(np.array([part.kind if isinstance(part, Span) else TEMPLATE for part in only], np.int64), sizes)
    owner = np.zeros(len(pool), dtype=np.int64)
    mixed = np.array([isinstance(piece, String) and len(piece.spans) > 1 for piece in pieces], dtype=bool)
    if mixed.any():
        among = np.repeat(mixed, sizes)
        numbers = np.flatnonzero(mixed).tolist()
        offsets = flattened(chain.from_iterable(found[number].offsets for number in numbers), np.int64).reshape(-1, 2)
        spans = [pieces[number].spans for number in numbers]
        owner[among], pool[among], kind[among] = _owners(spans, sizes[mixed], *offsets.T)
    piece = np.repeat(np.arange(len(pieces)), sizes)
    changes = np.flatnonzero((np.diff(piece) != 0) | (np.diff(owner) != 0)) + 1
    start = np.concatenate([np.zeros(min(1, len(piece)), dtype=np.int64), changes])
    size = np.diff(start, append=len(piece))
    within = start - (np.cumsum(sizes) - sizes)[piece[start]]
    return Runs(piece[start], start, within, size, kind[start]), pool


def _owners(
    spans: list[tuple[Span, ...]], sizes: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part each token belongs to, whether it is pooled, and the kind of the part: 3 x (T,).

    A token belongs to the part of its first character; one that straddles a border belongs to the text (or title), and is
    pooled if any of its characters is.

    sizes         (S,) tokens of each string
    starts, ends  (T,) characters of each token within its string
    """
    depth = max(map(len, spans))
    beyond = Span(
        int(starts.max(initial=0)) + 1, -1, False, TEMPLATE
    )  # fills up strings of fewer parts: no token is in it
    table = np.array([[*row, *[beyond] * (depth - len(row))] for row in spans], dtype=np.int64)  # (S, depth, 4)
    ends = np.maximum(ends, starts + 1)  # a token without characters (SentencePiece's dummy space) sits at its start
    first, text = np.full((2, len(starts)), -1)
    pool = np.zeros(len(starts), dtype=bool)
    for number in range(depth):
        begin, end, pooled, kind = (np.repeat(column, sizes) for column in table[:, number].T)
        inside = (starts < end) & (ends > begin)
        first += begin <= starts
        pool |= inside & (pooled == 1)
        text[inside & (kind != TEMPLATE)] = number
    owner = np.where(text >= 0, text, first)
    return owner, pool, table[np.repeat(np.arange(len(spans)), sizes), owner, 3]


def whole_characters(offsets: list[tuple[int, int]], room: int) -> int:
    """How many of the tokens to keep, at most `room`, so that no character is cut in two (bytes of an emoji)."""
    if len(offsets) <= room:
        return len(offsets)
    keep = room
    while keep > 1 and offsets[keep][0] < offsets[keep - 1][1]:
        keep -= 1
    return keep if offsets[keep][0] >= offsets[keep - 1][1] else room
