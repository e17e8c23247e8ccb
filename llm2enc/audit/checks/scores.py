"""Scores that rows carry: how many, their spread, and what no loss can learn from."""

from dataclasses import dataclass, field

import numpy as np

from llm2enc.audit.checks.quality import plural
from llm2enc.audit.chunks import Chunk
from llm2enc.audit.report import Finding, graded
from llm2enc.data import Pair, ScoredPair


@dataclass
class Scores:
    """Scores by side: positive (further right answers included), negative, or pair."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """Side -> float64 scores of each chunk."""
    texts: dict[str, int] = field(default_factory=dict)
    """Side -> texts that could have a score."""

    def add(self, chunk: Chunk) -> None:
        pairs = [row for row in chunk.rows if isinstance(row, Pair)]
        self._extend(
            "positive",
            [s for row in pairs for s in row.positive_scores],
            sum(1 + len(p.extra_positives) for p in pairs),
        )
        self._extend(
            "negative", [s for row in pairs for s in row.negative_scores], sum(len(p.negatives) for p in pairs)
        )
        scored = [row.score for row in chunk.rows if isinstance(row, ScoredPair)]
        self._extend("pair", scored, len(scored))

    def _extend(self, side: str, scores: list[float], texts: int) -> None:
        if scores:
            self.parts.setdefault(side, []).append(np.array(scores))
        self.texts[side] = self.texts.get(side, 0) + texts

    def summary(self) -> dict[str, dict[str, float]]:
        """By side with scores: `scores`, how many, and the `least`, the `median` and the `most`."""
        sides = {side: np.concatenate(parts) for side, parts in self.parts.items()}
        return {
            side: {
                "scores": len(scores),
                "least": float(scores.min()),
                "median": float(np.median(scores)),
                "most": float(scores.max()),
            }
            for side, scores in sides.items()
        }

    def findings(self) -> list[Finding]:
        found = []
        summary = self.summary()
        for side, of in summary.items():
            total, missing = self.texts[side], self.texts[side] - int(of["scores"])
            if missing:
                what = f"{missing:,} of {total:,} {plural(side)} have no score, the others do"
                remedy = "give each row a score for every document, or none"
                found.append(Finding("missing-scores", graded(missing / total, 0.0), what, remedy, missing, total))
        if "pair" in summary and summary["pair"]["least"] == summary["pair"]["most"]:
            what = f"every pair has the score {summary['pair']['least']:g}: there is nothing to rank"
            found.append(Finding("equal-scores", "error", what, "give alike and unlike pairs different scores"))
        return found
