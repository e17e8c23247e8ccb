"""Measurements within a stage: what the model scores while it trains, which weights were best, and when to stop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm2enc import distributed
from llm2enc.encoding import Encoder
from llm2enc.recipe import Stage
from llm2enc.training.logging import Log

Evaluate = Callable[[Encoder], dict[str, float]]
"""Encoder -> score by name; higher is better."""


@dataclass
class Measurements:
    """The measurements of one stage so far. All processes have the same, so that all of them stop at the same step."""

    stage: Stage
    evaluate: Evaluate | None
    rows: list[dict[str, Any]]
    """{"step": steps that were done, "scores": {name: score}}, as the checkpoint has them."""

    def after(self, step: int, encoder: Encoder, log: Log) -> bool:
        """Measure after `step` steps if the stage wants it; whether the weights are the best so far."""
        every = self.stage.evaluate_every
        if every is None or self.evaluate is None or (step % every and step < self.stage.steps):
            return False
        started = time.perf_counter()
        with log.evaluating():
            # Layers that are spread over the processes run on all of them, or on none.
            alone = not encoder.backbone.sharded
            scores = self.evaluate(encoder) if distributed.is_main() or not alone else {}
            distributed.barrier()  # as long as it takes; a broadcast alone would run into its timeout
            scores = distributed.broadcast(scores)
        self.rows.append({"step": step, "scores": scores})
        log.measured(step, scores, self.stage.keep_best, time.perf_counter() - started)
        return self.stage.keep_best is not None and self.rows[self._best()]["step"] == step

    @property
    def over(self) -> bool:
        """Whether `patience` is used up."""
        return self.stage.patience is not None and len(self.rows) - 1 - self._best() >= self.stage.patience

    def best_step(self, last: int) -> int:
        """The step whose weights the stage ends with: the best one's if one is asked for, else the `last`."""
        return self.rows[self._best()]["step"] if self.stage.keep_best and self.rows else last

    def facts(self, last: int) -> dict[str, Any]:
        """What finished.json says of them; nothing where nothing was measured."""
        found: dict[str, Any] = {"measurements": self.rows} if self.rows else {}
        if self.rows and self.stage.keep_best:
            best = self.rows[self._best()]
            score = best["scores"][self.stage.keep_best]
            found["best"] = {"score_name": self.stage.keep_best, "score": score, "step": best["step"], "last": last}
        return found

    def _best(self) -> int:
        """Number of the first row with the highest score; 0 while there is none."""
        scores = [row["scores"][self.stage.keep_best] for row in self.rows]
        return scores.index(max(scores)) if scores else 0
