"""Are the columns swapped? Documents are longer than queries, and queries ask.

Two signals, each an alarm of its own:

    questions   of the positives at least 30 % more than of the queries are questions
    length      in 90 % of the rows the query is the longer one, and its median length at least 2.5 times the positive's

One signal is a warning, both are an error. The thresholds were set on 26 public training sets: as they are, none gives an
alarm; swapped, the 13 that pair a question, title or claim with a passage all do, and the 13 of one kind (paraphrases,
captions, entailment, intents) do not. On 8 retrieval sets and 18 of similarity and translation that had no part in this:
no alarm as they are, 8 of 8 when swapped. Articles that look for their title are swapped by this rule and may be meant so.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from llm2enc.audit.chunks import Chunk
from llm2enc.audit.report import Finding

MORE_QUESTIONS = 0.3
LONGER_SHARE, LONGER_TIMES = 0.9, 2.5
MIN_ROWS = 20

_ASKS = re.compile(
    r"\W*(?:who|whom|whose|what|whats|what's|when|where|which|why|how|is|are|was|were|does|do|did|can|could|should|would|"
    r"will|wer|was|wann|wo|warum|wie|welche[rs]?|qui|que|quoi|quand|où|pourquoi|comment|quel(?:le)?s?|quién|qué|cuándo|"
    r"dónde|cómo|cuál|chi|cosa|quando|dove|perché|come|кто|что|когда|где|почему|как)\b",
    re.IGNORECASE,
)
# A sign of Chinese, Japanese or Korean takes the room of two to three letters (STS Benchmark: 66 signs in English,
# 31 in Japanese, 22 in Chinese).
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_QUESTION_MARKS = "?？؟"


def is_question(text: str) -> bool:
    """Ends in a question mark, or is one sentence that begins with an interrogative or an auxiliary verb."""
    text = text.rstrip(" \t\n\"')»”")
    return text.endswith(tuple(_QUESTION_MARKS)) or (
        _ASKS.match(text) is not None and not text.endswith((".", "!", "。")) and len(text) < 200
    )


@dataclass
class SwappedColumns:
    """Lengths of all sides, and number of questions among queries and positives."""

    lengths: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Side -> characters of the texts of each chunk."""
    dense: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Side -> of these the signs that stand for more than a letter."""
    questions: dict[str, int] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> None:
        for side, column in chunk.columns.items():
            lengths = np.fromiter(map(len, column.texts), dtype=np.int32, count=len(column.texts))
            self.lengths.setdefault(side, []).append(lengths)
            if side in ("query", "positive"):
                dense = (0 if text.isascii() else len(_DENSE.findall(text)) for text in column.texts)
                self.dense.setdefault(side, []).append(np.fromiter(dense, dtype=np.int32, count=len(column.texts)))
                self.questions[side] = self.questions.get(side, 0) + sum(map(is_question, column.texts))

    def characters(self, side: str) -> np.ndarray:
        """(N,) int32 lengths of the side's texts."""
        return np.concatenate(self.lengths[side]) if self.lengths.get(side) else np.zeros(0, dtype=np.int32)

    def findings(self) -> list[Finding]:
        if "query" not in self.lengths:
            return []
        query, positive = (
            self.characters(side) + 2 * np.concatenate(self.dense[side]) for side in ("query", "positive")
        )
        if len(query) < MIN_ROWS:
            return []
        asking = {side: self.questions[side] / len(query) for side in ("query", "positive")}
        longer = query > positive
        medians = float(np.median(query)), float(np.median(positive))
        signals = []
        if asking["positive"] - asking["query"] >= MORE_QUESTIONS:
            signals.append(
                f"{asking['positive']:.0%} of the positives but {asking['query']:.0%} of the queries are questions"
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
