"""Labels and instructions out of proportion: the share of the largest, and how many there are in effect."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from llm2enc.audit.checks.lengths import InputView
from llm2enc.audit.chunks import Chunk
from llm2enc.audit.report import Finding
from llm2enc.data import Pair, ScoredPair

MOST_INSTRUCTIONS = 10_000  # different ones that are counted; more is an instruction written into every row
LARGEST = 0.9
_LABELS_AT_MOST, _ROWS_PER_LABEL = 1000, 20


def effective(counts: np.ndarray) -> float:
    """exp of the entropy: how many equally large groups would be as mixed (Hill number of order 1)."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass
class Balance:
    """Rows by instruction."""

    instructions: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    """Row number of each instruction's first row."""

    def add(self, chunk: Chunk) -> None:
        for number, row in enumerate(chunk.rows, chunk.first):
            if isinstance(row, Pair | ScoredPair) and (
                row.instruction in self.first or len(self.first) < MOST_INSTRUCTIONS
            ):
                self.instructions[row.instruction] += 1
                self.first.setdefault(row.instruction, number)

    def findings(self, positive_keys: np.ndarray, view: InputView | None) -> list[Finding]:
        return [*self._instructions(), *self._dropped(view), *_labels(positive_keys)]

    def _instructions(self) -> list[Finding]:
        if len(self.instructions) < 2:
            return []
        total = self.instructions.total()
        largest, count = self.instructions.most_common(1)[0]
        found = []
        number = effective(np.array(list(self.instructions.values())))
        if count / total >= LARGEST:
            what = (
                f"{count / total:.1%} of the rows have one instruction ({largest[:60]!r}); {len(self.instructions):,} "
                f"instructions are {number:.1f} in effect"
            )
            remedy = "give the small tasks sources of their own with a weight above 1, so that they are seen more often"
            found.append(Finding("one-instruction", "note", what, remedy, count, total, (self.first[largest],)))
        without = self.instructions.get("", 0)
        if 0 < without < total:
            what = f"{without:,} of {total:,} rows have no instruction, the others do"
            remedy = "give them one (`instruction` of the source fills gaps), or none of the rows"
            found.append(Finding("missing-instruction", "warning", what, remedy, without, total, (self.first[""],)))
        return found

    def _dropped(self, view: InputView | None) -> list[Finding]:
        with_one = self.instructions.total() - self.instructions.get("", 0)
        if view is None or view.plain or not with_one:
            return []
        if any(part.slot == "instruction" for part in view.input_format.spec.query):
            return []
        what = f"{with_one:,} rows carry an instruction, but the query template has no slot for it: it is not read"
        remedy = "add {slot: instruction} to input.query"
        return [Finding("unread-instruction", "warning", what, remedy, with_one, self.instructions.total())]


def mixture(sizes: Sequence[float], weights: Sequence[float], alpha: float | None) -> np.ndarray:
    """Share of each source in a stage's batches: weight x size^alpha, alpha 1 if the stage sets none."""
    parts = np.array(weights) * np.array(sizes, dtype=float) ** (1.0 if alpha is None else alpha)
    return parts / parts.sum()


def one_source(shares: np.ndarray) -> list[Finding]:
    """For the largest of several sources, if it leaves little room for the others."""
    if len(shares) < 2 or shares.max() < LARGEST:
        return []
    what = f"it fills {shares.max():.1%} of the stage's batches; {len(shares)} sources are {effective(shares):.1f} in effect"
    remedy = "set mixture_alpha of the stage below 1, or weights, if the others are to count"
    return [Finding("one-source", "note", what, remedy)]


def _labels(positive_keys: np.ndarray) -> list[Finding]:
    """Few positives for many rows are class labels or their names."""
    rows = len(positive_keys)
    _, counts = np.unique(positive_keys, return_counts=True)
    if not 0 < len(counts) <= _LABELS_AT_MOST or rows < _ROWS_PER_LABEL * len(counts) or rows < 100:
        return []
    share = counts.max() / rows
    what = (
        f"the positives are {len(counts):,} different texts, as class labels are; the largest has {share:.0%} of the rows, "
        f"and they are {effective(counts):.1f} in effect"
    )
    remedy = "set in_batch_negatives: false or unique_ids: true, since other rows of the class are right too" + (
        "; thin out the largest class" if share > 0.5 else ""
    )
    severity = "warning" if share > 0.5 else "note"
    return [Finding("labels", severity, what, remedy, int(counts.max()), rows)]
