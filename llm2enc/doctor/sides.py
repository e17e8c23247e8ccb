"""Are the columns swapped? Documents are longer than queries, and queries ask.

Two signals, each an alarm of its own; measured by tests/test_doctor.py and, on 26 public sets, in the project's notes:

    questions   at least 30 % more of the positives than of the queries are questions
    length      in 90 % of the rows the query is the longer one, and its median length at least 2.5 times the positive's

A set whose two sides are of one kind (paraphrases, captions) gives neither, whichever way round it is. Articles that look
for their title or summary are swapped by this rule and may be meant so: one signal is a warning, both are an error.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from llm2enc.doctor.report import Finding
from llm2enc.doctor.slabs import Slab

MORE_QUESTIONS = 0.3
LONGER_SHARE, LONGER_TIMES = 0.9, 2.5
MIN_ROWS = 20

_ASKS = re.compile(
    r"\W*(?:who|whom|whose|what|whats|what's|when|where|which|why|how|is|are|was|were|does|do|did|can|could|should|would|"
    r"will|wer|was|wann|wo|warum|wie|welche[rs]?|qui|que|quoi|quand|où|pourquoi|comment|quel(?:le)?s?|quién|qué|cuándo|"
    r"dónde|cómo|cuál|chi|cosa|quando|dove|perché|come|кто|что|когда|где|почему|как)\b",
    re.IGNORECASE,
)
_QUESTION_MARKS = "?？؟"


def is_question(text: str) -> bool:
    """Ends in a question mark, or is one sentence that begins with an interrogative or an auxiliary verb."""
    text = text.rstrip(" \t\n\"')»”")
    return text.endswith(tuple(_QUESTION_MARKS)) or (
        _ASKS.match(text) is not None and not text.endswith((".", "!", "。")) and len(text) < 200
    )


@dataclass
class Sides:
    """Lengths in characters and number of questions of both sides."""

    lengths: dict[str, list[np.ndarray]] = field(default_factory=dict)
    questions: dict[str, int] = field(default_factory=dict)

    def add(self, slab: Slab) -> None:
        for side, column in slab.columns.items():
            lengths = np.fromiter(map(len, column.texts), dtype=np.int32, count=len(column.texts))
            self.lengths.setdefault(side, []).append(lengths)
            if side != "negative":
                self.questions[side] = self.questions.get(side, 0) + sum(map(is_question, column.texts))

    def characters(self, side: str) -> np.ndarray:
        """(N,) int32 lengths of the side's texts."""
        return np.concatenate(self.lengths[side]) if self.lengths.get(side) else np.zeros(0, dtype=np.int32)

    def findings(self) -> list[Finding]:
        query, positive = (
            (self.characters(side) for side in ("query", "positive")) if "query" in self.lengths else ([], [])
        )
        if len(query) < MIN_ROWS:
            return []
        asked = {side: self.questions[side] / len(query) for side in ("query", "positive")}
        longer = query > positive
        medians = float(np.median(query)), float(np.median(positive))
        signals = []
        if asked["positive"] - asked["query"] >= MORE_QUESTIONS:
            signals.append(
                f"{asked['positive']:.0%} of the positives but {asked['query']:.0%} of the queries are questions"
            )
        if longer.mean() >= LONGER_SHARE and medians[0] >= LONGER_TIMES * medians[1]:
            signals.append(
                f"the query is longer in {longer.mean():.0%} of the rows, half of them have {medians[0]:.0f} characters "
                f"or more, and of the positives {medians[1]:.0f}"
            )
        if not signals:
            return []
        what = "query and positive look swapped: " + "; ".join(signals)
        remedy = "swap them: columns: {query: ..., positive: ...}; leave them if documents are to look for questions"
        rows = tuple(int(row) + 1 for row in np.flatnonzero(longer)[:2])
        severity = "error" if len(signals) == 2 else "warning"
        return [Finding("swapped-columns", severity, what, remedy, int(longer.sum()), len(query), rows)]
