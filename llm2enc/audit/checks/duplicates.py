"""How the texts of a source relate: repeated ones, and positives that stand among negatives.

Only numbers are kept: 8 bytes for the key of every text, and 4 for the row of a negative or further right answer. Texts
count as equal if they are when normalised (chunks.py).
"""

from dataclasses import dataclass, field

import numpy as np

from llm2enc.audit.chunks import Chunk
from llm2enc.audit.report import Finding, graded, percent

_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


@dataclass(frozen=True)
class Batching:
    """What of the stage decides which texts meet."""

    batch_size: int
    in_batch_negatives: bool = True
    mask_duplicates: bool = False
    unique_ids: bool = False


@dataclass
class Relations:
    """Keys of all rows, and what follows from them."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Side -> keys of each chunk; `negative row` and `other row` -> the row numbers of these."""

    def add(self, chunk: Chunk) -> None:
        for side, column in chunk.columns.items():
            self.parts.setdefault(side, []).append(column.keys)
            if side in ("negative", "other"):
                self.parts.setdefault(f"{side} row", []).append(column.rows.astype(np.int32))

    def keys(self, side: str) -> np.ndarray:
        """(N,) uint64 of the side's texts in order."""
        return np.concatenate(self.parts.get(side) or [np.zeros(0, dtype=np.uint64)])

    def distinct(self) -> dict[str, int]:
        return {side: len(np.unique(self.keys(side))) for side in self.parts if not side.endswith(" row")}

    def owners(self, side: str) -> np.ndarray:
        """(N,) int64 the row of each negative or further right answer, from 0."""
        return np.concatenate(self.parts[f"{side} row"]).astype(np.int64) - 1

    def findings(self, batching: Batching) -> list[Finding]:
        if "text" in self.parts:
            return _repeated_texts("texts", self.keys("text"))
        if "first" in self.parts:
            return _repeated_texts("pairs", joined(self.keys("first"), self.keys("second")))
        query, positive = self.keys("query"), self.keys("positive")
        other, other_row = self.keys("other"), self.owners("other")
        every_query = np.concatenate([query, query[other_row]])  # of all right answers, the further ones behind
        right = np.concatenate([positive, other])
        rows = np.concatenate([np.arange(len(query)), other_row])
        return [
            *_too_few(len(query), batching.batch_size),
            *_repeated_rows(query, positive),
            *_repeated_side("query", query, positive, batching),
            *_repeated_side("positive", positive, query, batching),
            *_query_is_positive(every_query, right, rows),
            *_among_negatives(query, joined(every_query, right), rows, self.keys("negative"), self.owners("negative")),
        ]


def joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N,) uint64 keys of pairs of keys."""
    mixed = one * _ODD[0] + other * _ODD[1]
    return mixed ^ (mixed >> np.uint64(29))


def _too_few(rows: int, batch_size: int) -> list[Finding]:
    if rows >= batch_size:
        return []
    what = f"{rows:,} rows are fewer than the batch size of {batch_size:,}: training refuses the source"
    return [Finding("too-few-rows", "error", what, f"set batch_size to {rows} or less, or add rows", rows, batch_size)]


def _repeated_texts(what: str, keys: np.ndarray) -> list[Finding]:
    again, rows = _repetitions(keys)
    if not again:
        return []
    what = f"{again:,} of {len(keys):,} {what} repeat an earlier one, but for case and white space"
    severity = graded(again / len(keys), warning=0.05)
    return [Finding("repeated-texts", severity, what, "keep one of each", again, len(keys), rows)]


def _repeated_rows(query: np.ndarray, positive: np.ndarray) -> list[Finding]:
    again, rows = _repetitions(joined(query, positive))
    if not again:
        return []
    what = f"{again:,} of {len(query):,} rows repeat the query and the positive of an earlier one"
    severity = graded(again / len(query), warning=0.01)
    remedy = "keep one of each, unless they differ in their negatives and loss.masks.duplicates is on"
    return [Finding("repeated-rows", severity, what, remedy, again, len(query), rows)]


def _repeated_side(side: str, keys: np.ndarray, other: np.ndarray, batching: Batching) -> list[Finding]:
    """Queries of several positives, or positives of several queries: false negatives where they meet in a batch."""
    _, first = np.unique(joined(keys, other), return_index=True)  # a repeated row is reported as such
    _, group, counts = np.unique(keys[first], return_inverse=True, return_counts=True)
    shared = counts[group] > 1
    if not shared.any():
        return []
    example = np.sort(first[group == int(np.argmax(counts))])[:2] + 1
    colliding = collision_rate(counts, batching.batch_size)
    partner = "positives" if side == "query" else "queries"
    what = (
        f"{int(shared.sum()):,} of {len(first):,} different rows share their {side} with another (up to "
        f"{int(counts.max()):,} {partner} of one). In a batch of {min(batching.batch_size, len(first)):,}, "
        f"{percent(colliding)} of the rows are expected to meet such a row"
    )
    if not batching.in_batch_negatives:
        severity, remedy = "note", "in_batch_negatives is off, so they do not meet"
    elif batching.unique_ids:
        severity, remedy = "note", "unique_ids is on, so the texts of every row are its own"
    elif batching.mask_duplicates:
        severity, remedy = "note", "loss.masks.duplicates is on, so they are no negatives of each other"
    else:
        severity = graded(colliding, warning=0.01)
        remedy = "a right answer then counts as wrong: set loss.masks.duplicates: true in the stage" + (
            ", or unique_ids: true or in_batch_negatives: false if the texts are class labels"
            if colliding > 0.3
            else ""
        )
    rows = tuple(int(row) for row in example)
    return [Finding(f"shared-{side}", severity, what, remedy, int(shared.sum()), len(first), rows)]


def collision_rate(counts: np.ndarray, batch_size: int) -> float:
    """Expected share of the rows of a batch, drawn without replacement, that share their text with another row of it.

    counts  (D,) rows that carry each distinct text
    """
    from scipy.stats import hypergeom

    sizes, texts = np.unique(counts, return_counts=True)
    rows, total = sizes * texts, int(np.sum(counts))
    alone = hypergeom.pmf(0, total - 1, sizes - 1, min(batch_size, total) - 1)
    return float(rows @ (1 - alone)) / total


def _query_is_positive(query: np.ndarray, right: np.ndarray, rows: np.ndarray) -> list[Finding]:
    same = np.unique(rows[query == right])
    total = int(rows.max()) + 1
    if not len(same):
        return []
    what = f"in {len(same):,} of {total:,} rows the positive is the query itself"
    severity = graded(len(same) / total, warning=0.005, error=0.5)
    remedy = "leave these rows out: there is nothing to learn from them"
    return [Finding("positive-is-query", severity, what, remedy, len(same), total, _two(same + 1))]


def _among_negatives(
    query: np.ndarray, answers: np.ndarray, rows: np.ndarray, negative: np.ndarray, owner: np.ndarray
) -> list[Finding]:
    """Texts that are right answers, or the question, and stand among the negatives.

    answers, rows  (A,) keys of (query, right answer), and the row of each
    owner          (M,) the row of each negative
    """
    if not len(negative):
        return []
    pairs = joined(query[owner], negative)
    own = np.isin(joined(pairs, owner.astype(np.uint64)), joined(answers, rows.astype(np.uint64)))
    right = np.isin(pairs, answers) & ~own
    itself = negative == query[owner]
    cases = (
        ("positive-among-negatives", own, "the row's own positive", 0.01),
        ("answer-among-negatives", right, "the positive of another row with the same query", 0.05),
        ("query-among-negatives", itself, "the query itself", 0.05),
    )
    found = []
    for name, hit, what, error in cases:
        if hit.any():
            count = int(hit.sum())
            severity = graded(count / len(negative), warning=0, error=error)
            said = f"{count:,} of {len(negative):,} negatives are {what}"
            remedy = "take these negatives out: they teach the opposite of the rows"
            found.append(Finding(name, severity, said, remedy, count, len(negative), _two(np.unique(owner[hit]) + 1)))
    return found


def _repetitions(keys: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """How many keys repeat an earlier one, and the row numbers of the first such two."""
    _, first, group, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    again = len(keys) - len(first)
    if not again:
        return 0, ()
    key = int(np.flatnonzero(counts > 1)[np.argmin(first[counts > 1])])
    return again, _two(np.flatnonzero(group == key) + 1)


def _two(rows: np.ndarray) -> tuple[int, ...]:
    return tuple(int(row) for row in rows[:2])
