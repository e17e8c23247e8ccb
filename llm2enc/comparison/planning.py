"""How long a comparison takes, said beforehand, and the rows that fit a time.

The time is that of encoding, by the speed of each forward pass on some of the texts, and that of scoring, measured once on
random vectors. Not in it: opening the models, and what is on disk already.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llm2enc.comparison.results import SystemResult
from llm2enc.comparison.sampling import SEED, Sample, measured_sample, sampled, shares, size_of
from llm2enc.evaluation import Task, cost, score
from llm2enc.storage import replace_text


@dataclass(frozen=True)
class Load:
    """What a model has to do."""

    speeds: list[float]
    """Characters per second of each forward pass."""
    states: int
    """How often: once, or for each stage of a run."""
    scored: int
    """Systems and layers that are scored, over all states."""
    dimensions: int
    """Width of their vectors."""


@dataclass(frozen=True)
class Plan:
    """The rows to compare on, and the time it takes."""

    shares: list[float]
    """Of each task (`sampling.sampled`)."""
    speeds: list[list[float]]
    """Characters per second, of each model's forward passes."""
    limit: int
    """Characters of a text that are read."""
    seconds: float
    """Estimate for the sample."""
    whole: float
    """Estimate for all rows."""


def make(
    tasks: Sequence[Task], loads: Sequence[Load], limit: int, extra: int, again: int, minutes: float | None
) -> Plan:
    """The plan that takes at most so many minutes, if the smallest sample of each task does.

    limit    characters of a text that are read
    extra    characters that are encoded besides the tasks'
    again    characters of the tasks at most that are encoded a second time
    minutes  None: all rows
    """
    per_character = sum(load.states / speed for load in loads for speed in load.speeds)
    size = sum(size_of(task, limit) for task in tasks)
    characters = math.inf if minutes is None else 60 * minutes / per_character - extra
    while True:
        kept = shares(tasks, max(characters, 0.0), limit)
        sample = [sampled(*one) for one in zip(tasks, kept, strict=True)]
        encoded = sum(size_of(task, limit) for task in sample)
        scoring = sum(load.scored * _scoring(sample, load.dimensions) for load in loads)
        seconds = (encoded + min(again, encoded) + extra) * per_character + scoring
        if minutes is None or seconds <= 60 * minutes or not any(kept):
            break
        characters = min(characters, size) * 0.95 * 60 * minutes / seconds  # scoring takes time too
    whole = (size + min(again, size) + extra) * per_character + scoring * size / encoded
    return Plan(kept, [load.speeds for load in loads], limit, seconds, whole)


def _scoring(tasks: Sequence[Task], dimensions: int) -> float:
    """Seconds to score all tasks once."""
    for task in tasks:  # the first time also imports and warms up
        score(_Random(dimensions), sampled(task, 0.0))
    started = time.perf_counter()
    for task in tasks:
        score(_Random(dimensions), task)
    return time.perf_counter() - started


class _Random:
    """An encoder of random vectors, to see what scoring takes."""

    def __init__(self, dimensions: int):
        self.dimensions = dimensions

    def encode(
        self, texts: Sequence[str], *, instruction: str | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((len(texts), self.dimensions), dtype=np.float32)


def stored(path: Path, key: str, make_it: Callable[[], Plan]) -> Plan:
    """The plan of an interrupted comparison of the same things, so that it goes on with the same rows; else a new one."""
    if path.is_file():
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("key", None) == key:
            return Plan(**data)
    plan = make_it()
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"key": key} | asdict(plan)))
    return plan


class Clock:
    """Says what share of the planned time is done, of one forward pass among others.

    It never goes beyond the texts of a task: those that are on disk already, or come twice, take no time.
    """

    def __init__(
        self, texts: Mapping[str, int], before: float, rate: float, total: float, say: Callable[[float], None]
    ):
        """Nothing done yet.

        texts   of each task, by its name
        before  done before this pass, in the unit of `total`
        rate    what one text takes in that unit
        """
        self.left: dict[str, float] = dict(texts)
        self.done, self.rate, self.total, self.say = before, rate, total, say

    def __call__(self, task: str, texts: float) -> None:
        texts = min(texts, self.left[task])
        self.left[task] -= texts
        self.done += texts * self.rate
        self.say(self.done / self.total)


def describe(
    plan: Plan, tasks: Sequence[Task], kept: Sequence[Task], minutes: float | None
) -> tuple[list[Sample], str]:
    """The sample of each task, and what to tell before anything is encoded."""
    samples = [measured_sample(*one) for one in zip(tasks, kept, plan.shares, strict=True)]
    rows, of = sum(sample.rows for sample in samples), sum(sample.of for sample in samples)
    takes = f"this takes about {cost.duration(plan.seconds)}"
    if rows == of and sum(s.texts for s in samples) == sum(s.of_texts for s in samples):
        return samples, f"{takes}: all {rows:,} rows and queries"
    over = ", the smallest sample" if minutes is not None and plan.seconds > 60 * minutes else ""
    return samples, (
        f"{takes}{over}: {rows:,} of {of:,} rows and queries, sampled; all of them would take about "
        f"{cost.duration(plan.whole)} (--minutes 0)"
    )


def notes(samples: Sequence[Sample], best: SystemResult) -> list[str]:
    """What the samples mean for the numbers."""
    cut = [sample for sample in samples if sample.rows < sample.of or sample.texts < sample.of_texts]
    if not cut:
        return []
    rows = "; ".join(
        f"{one.task} {one.rows:,} of {one.of:,} rows and {one.texts:,} of {one.of_texts:,} texts" for one in cut
    )
    half = (best.mean.high - best.mean.low) / 2
    wider = widening([(near.high - near.low) / 2 for near in best.intervals], samples)
    found = [
        f"Sampled to fit the time, with seed {SEED}, the same rows for every system: {rows}.",
        f"What the sample costs: the mean score of {best.name} is known to ±{half:.3f}; all rows would give about "
        f"±{half / wider:.3f} (the interval is {wider:.1f} times as wide).",
    ]
    changed = [one.task for one in cut if one.changes_the_task]
    if changed:
        found.append(
            f"Compare the scores of {', '.join(changed)} with each other only: with fewer distractors or fewer texts of a "
            "class, a sample is another task than the whole. All judged documents of the kept retrieval queries are in it."
        )
    return found


def widening(halves: Sequence[float], samples: Sequence[Sample]) -> float:
    """How many times wider the interval of the mean score is than it would be on all rows.

    The half width h of a task's interval goes with one over the root of its rows n, so on all N rows it is about
    h sqrt(n / N); those of several tasks add in squares.

    halves  (T,) half widths of the tasks' intervals on the sample
    """
    ratio = np.array([sample.rows / sample.of for sample in samples])
    squares = np.square(halves)
    return float(np.sqrt(squares.sum() / (squares * ratio).sum())) if squares.any() else 1.0
