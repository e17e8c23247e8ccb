"""How sure a score is: resampling of the rows or queries it was computed from (Efron 1979; Koehn 2004 for pairs).

Every draw takes as many examples as there are, with replacement. Two encoders on one task get the same draws, so that the
difference of their scores is resampled in pairs. The mean over tasks is the mean of the tasks' draws: it says how far the
mean would move with other rows of the same tasks, not with other tasks.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm2enc.errors import InputError
from llm2enc.evaluation.tasks import TaskResult
from llm2enc.evaluation.weighted import weighted_statistic

DRAWS = 1000
LEVEL = 0.95
_BLOCK = 100  # draws at a time: a matrix of these by all rows is held


@dataclass(frozen=True)
class Interval:
    """A score or a difference, and the range that holds the middle 95 % of its draws."""

    value: float
    low: float
    high: float
    above_zero: float
    """Share of the draws above zero; of a difference: how often the first is better."""

    @property
    def certain(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def draws(result: TaskResult, count: int = DRAWS) -> np.ndarray:
    """(count,) scores of resampled examples, moved so that their mean is the score itself.

    Drawn rows repeat, which lifts a V-measure (0.06 to 0.09 on 20 classes at chance): resampling tells the spread, not the
    place. The draws depend on the task's name and size alone, so they are the same for two encoders.
    """
    size = len(result.per_example)
    generator = np.random.default_rng(zlib.crc32(f"{result.task} {size}".encode()))
    found = []
    for start in range(0, count, _BLOCK):
        drawn = [generator.integers(size, size=size) for _ in range(min(_BLOCK, count - start))]
        weights = np.stack([np.bincount(rows, minlength=size) for rows in drawn]).astype(float)
        found.append(weighted_statistic(result.statistic, result.per_example, weights))
    resampled = np.concatenate(found)
    return resampled - resampled.mean() + result.score


def interval(value: float, resampled: np.ndarray) -> Interval:
    """The interval of a value whose draws are `resampled` (C,)."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high), float((resampled > 0).mean()))


def mean_interval(results: Sequence[TaskResult], count: int = DRAWS) -> Interval:
    """The mean score over tasks."""
    return interval(float(np.mean([o.score for o in results])), np.mean([draws(o, count) for o in results], axis=0))


def difference(first: Sequence[TaskResult], second: Sequence[TaskResult], count: int = DRAWS) -> Interval:
    """How much the mean score of one encoder lies above another's on the same tasks, by paired bootstrap."""
    if [_rows(result) for result in first] != [_rows(result) for result in second]:
        raise InputError("a paired comparison needs both encoders on the same rows of the same tasks")
    moved = np.mean([draws(a, count) - draws(b, count) for a, b in zip(first, second, strict=True)], axis=0)
    return interval(float(np.mean([a.score - b.score for a, b in zip(first, second, strict=True)])), moved)


def _rows(result: TaskResult) -> tuple[str, int, bytes]:
    """What results on the same rows have in common: the task, their number, the gold values where there are any."""
    gold = result.per_example[:, 1] if result.per_example.ndim == 2 else result.per_example[:0]
    return result.task, len(result.per_example), gold.tobytes()
