"""Many tasks with one encoder: vectors from the cache, results on disk, and an interrupted run goes on where it was.

OUT/tasks/<Task>.json    the outcome of one task, with its items
OUT/results.json         every metric of every task, and the means
OUT/results.md           the same as a table
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm2enc.evaluation.bootstrap import Interval, draws, interval
from llm2enc.evaluation.cache import CachedEncoder
from llm2enc.evaluation.models import Opened
from llm2enc.evaluation.scoring import Instructions, score
from llm2enc.evaluation.tasks import Outcome, Task
from llm2enc.storage import replace_text

SCORING = 1  # raised when a change of scoring makes old results wrong


@dataclasses.dataclass(frozen=True)
class Result:
    """A task's outcome with its uncertainty and cost."""

    outcome: Outcome
    interval: Interval
    seconds: float
    reused: bool
    """Whether it was found in the output folder."""


def measure(
    encoder: Opened,
    tasks: Iterable[Task],
    out: Path,
    cache: Path | None,
    instructions: Instructions = "own",
    report: Callable[[Result], None] = lambda result: None,
    advance: Callable[[int], None] = lambda count: None,
    identity: str | None = None,
) -> list[Result]:
    """The results of all tasks, in their order.

    out      results found here for the same encoder, instructions and data are not computed again
    cache    folder of vectors; None keeps them in memory
    report   called with each result as it comes
    advance  called with the number of texts that are done, in all as many as the tasks' `texts` hold
    identity the encoder's fingerprint, where the caller has it
    """
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    identity = identity or encoder.fingerprint()
    done = total = 0

    def count(texts: int) -> None:
        nonlocal done
        done += texts
        advance(texts)

    cached = CachedEncoder(encoder, cache, count, identity)
    results = []
    try:
        for task in tasks:
            key = hashlib.sha256(f"{SCORING} {identity} {instructions} {digest(task)}".encode()).hexdigest()
            path = out / "tasks" / f"{task.name}.json"
            result = _stored(path, key)
            if result is None:
                started = time.perf_counter()
                outcome = score(cached, task, instructions)
                cached.forget()
                result = Result(outcome, interval(outcome.score, draws(outcome)), time.perf_counter() - started, False)
                replace_text(
                    path, json.dumps({"key": key, "seconds": result.seconds} | outcome_to_json(outcome), indent=1)
                )
            total += sum(len(texts) for _, texts in task.texts())
            count(total - done)  # a text that comes twice is encoded once, and those of a stored result not at all
            report(result)
            results.append(result)
    finally:
        cached.close()
    return results


def digest(task: Task) -> str:
    """SHA-256 of everything a task holds."""
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}
    return hashlib.sha256(json.dumps([task.type, plain], default=list).encode()).hexdigest()


def means(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The mean main score of every task type, and the means `over tasks` and `over types`."""
    kinds: dict[str, list[float]] = {}
    for outcome in outcomes:
        kinds.setdefault(outcome.type, []).append(outcome.score)
    by_type = {kind: float(np.mean(scores)) for kind, scores in kinds.items()}
    over = {
        "over tasks": float(np.mean([outcome.score for outcome in outcomes])),
        "over types": float(np.mean(list(by_type.values()))),
    }
    return by_type | over


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Plain data; `outcome_from_json` gives the outcome back, bit for bit."""
    return dataclasses.asdict(outcome) | {"items": outcome.items.tolist()}


def outcome_from_json(data: dict[str, Any]) -> Outcome:
    fields = {field.name: data[field.name] for field in dataclasses.fields(Outcome)}
    return Outcome(**fields | {"items": np.array(fields["items"], dtype=float)})


def write_summary(out: Path, results: Sequence[Result], facts: dict[str, Any]) -> None:
    """OUT/results.json and OUT/results.md."""
    outcomes = [result.outcome for result in results]
    rows = [
        {
            "task": result.outcome.task, "type": result.outcome.type, "language": result.outcome.language,
            "metric": result.outcome.metric, "score": result.outcome.score, "interval": bounds(result),
            "metrics": result.outcome.metrics, "seconds": round(result.seconds, 2),
        }
        for result in results
    ]  # fmt: skip
    replace_text(out / "results.json", json.dumps({**facts, "means": means(outcomes), "tasks": rows}, indent=1))
    lines = ["| task | type | metric | score | 95 % interval |", "| --- | --- | --- | ---: | ---: |"]
    for row, result in zip(rows, results, strict=True):
        lines.append(
            f"| {row['task']} | {row['type']} | {row['metric']} | {100 * row['score']:.1f} | {points(result)} |"
        )
    lines += [f"| mean {name} | | | {100 * value:.1f} | |" for name, value in means(outcomes).items()]
    replace_text(out / "results.md", "\n".join(lines) + "\n")


def bounds(result: Result) -> tuple[float, float] | None:
    """The 95 % interval; None where the score has no rows to resample, as mteb's have not."""
    return (result.interval.low, result.interval.high) if len(result.outcome.items) > 1 else None


def points(result: Result) -> str:
    """The interval in points of 100, or nothing."""
    found = bounds(result)
    return "" if found is None else " to ".join(f"{round(100 * bound, 1) + 0.0:.1f}" for bound in found)  # no -0.0


def _stored(path: Path, key: str) -> Result | None:
    """The result of a former run, if it was computed from the same encoder and data."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not ours, or broken: computed again and replaced
        return None
    if not isinstance(data, dict) or data.get("key") != key:
        return None
    outcome = outcome_from_json(data)
    return Result(outcome, interval(outcome.score, draws(outcome)), data["seconds"], True)
