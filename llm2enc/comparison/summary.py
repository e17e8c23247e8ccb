"""What the table, the figures and the report all read off a comparison: kinds, task types, rows of one task."""

import math
import unicodedata
from dataclasses import dataclass

from llm2enc.comparison.results import Comparison, SystemResult
from llm2enc.evaluation import TaskResult

KINDS = ("causal", "bidirectional", "echo", "prompt")
OTHER = "other"
"""An encoder that was trained, or is named otherwise."""
NONE = "–"
"""Stands where there is no number."""


@dataclass(frozen=True)
class Score:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def kind(name: str) -> str:
    """What a system does, by its name: `bidirectional` of `bidirectional-mean` and of `MODEL bidirectional-mean`."""
    last = name.rsplit(maxsplit=1)[-1:]
    found = last[0].split("-")[0] if last else OTHER
    return found if found in KINDS else OTHER


def plain(text: str) -> str:
    """One line without characters that steer a terminal or that XML does not allow; spaces take their place."""
    seen = (
        " " if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in "\ufffe\uffff" else one for one in text
    )
    return " ".join("".join(seen).split())


def words(type: str) -> str:
    """A task type or metric as a reader calls it: `pair classification`."""
    return type.replace("_", " ")


def everyone(comparison: Comparison) -> list[SystemResult]:
    """The systems, best first, and the baseline last."""
    return comparison.systems + ([comparison.baseline] if comparison.baseline else [])


def tasks(comparison: Comparison) -> list[TaskResult]:
    """One outcome of every task, grouped by type in the order in which types and tasks come first."""
    found = {o.task: o for system in comparison.systems for o in system.outcomes}
    types = list(dict.fromkeys(outcome.type for outcome in found.values()))
    return sorted(found.values(), key=lambda outcome: types.index(outcome.type))


def by_task(system: SystemResult) -> dict[str, Score]:
    """Each task's score and interval."""
    pairs = zip(system.outcomes, system.intervals, strict=True)
    return {outcome.task: Score(outcome.score, near.low, near.high) for outcome, near in pairs}


def by_type(system: SystemResult) -> dict[str, Score]:
    """Each task type's mean score.

    Tasks are resampled independently of each other, so the half widths h_i of n intervals add in squares: the mean's is
    sqrt(sum h_i^2) / n, about the mean of their centres. Of one task it is that task's interval.
    """
    scores = by_task(system)
    groups: dict[str, list[Score]] = {}
    for outcome in system.outcomes:
        groups.setdefault(outcome.type, []).append(scores[outcome.task])
    return {type: _mean(group) for type, group in groups.items()}


def _mean(scores: list[Score]) -> Score:
    if len(scores) == 1:
        return scores[0]
    centre = math.fsum(s.low + s.high for s in scores) / 2 / len(scores)
    half = math.sqrt(math.fsum((s.high - s.low) ** 2 for s in scores)) / 2 / len(scores)
    return Score(math.fsum(s.value for s in scores) / len(scores), centre - half, centre + half)


def number(value: float, digits: int = 3) -> str:
    """A number of a table; a dash where there is none."""
    return f"{value:.{digits}f}".replace("-", "−") if value == value else NONE


def anisotropy(system: SystemResult) -> float:
    """That of the system; nan if no random pair was looked at."""
    return system.similarities.anisotropy if len(system.similarities.random) else float("nan")


def spread(system: SystemResult) -> float:
    """That of the system; nan if no random pair was looked at."""
    return system.similarities.spread if len(system.similarities.random) else float("nan")


def tokens(system: SystemResult) -> str:
    """Tokens per text; a dash for TF-IDF, which runs no model."""
    return number(system.tokens, 1) if system.tokens > 0 else NONE


def seconds(system: SystemResult) -> str:
    """Seconds for 1,000 texts; a dash for TF-IDF, whose time is not measured."""
    return number(system.seconds, 1) if system.seconds > 0 else NONE


def count(number: int, noun: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
