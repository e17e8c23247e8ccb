"""Many tasks with one encoder: vectors from the cache, results on disk, and an interrupted run goes on where it was.

OUT/tasks/<Task>.json    the result of one task, with the scores of its examples
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

from llm2enc.encoding import LoadedModel
from llm2enc.evaluation.bootstrap import Interval, draws, interval
from llm2enc.evaluation.cache import CachedEncoder
from llm2enc.evaluation.scoring import Instructions, score
from llm2enc.evaluation.tasks import Task, TaskResult
from llm2enc.storage import replace_text

SCORING = 1  # raised when a change of scoring makes old results wrong


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A task's result with its uncertainty and cost."""

    result: TaskResult
    interval: Interval
    seconds: float
    reused: bool
    """Whether it was found in the output folder."""


def measure(
    encoder: LoadedModel,
    tasks: Iterable[Task],
    out: Path,
    cache: Path | None,
    instructions: Instructions = "own",
    report: Callable[[Measurement], None] = lambda measurement: None,
    advance: Callable[[int], None] = lambda count: None,
    identity: str | None = None,
) -> list[Measurement]:
    """The results of all tasks, in their order.

    out      results found here for the same encoder, instructions and data are not computed again
    cache    folder of vectors; None keeps them in memory
    report   called with each measurement as it comes
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
            measurement = _stored(path, key)
            if measurement is None:
                started = time.perf_counter()
                result = score(cached, task, instructions)
                cached.forget()
                measurement = Measurement(
                    result, interval(result.score, draws(result)), time.perf_counter() - started, False
                )
                replace_text(
                    path, json.dumps({"key": key, "seconds": measurement.seconds} | result_to_json(result), indent=1)
                )
            total += sum(len(texts) for _, texts in task.texts())
            count(total - done)  # a text that comes twice is encoded once, and those of a stored result not at all
            report(measurement)
            results.append(measurement)
    finally:
        cached.close()
    return results


def digest(task: Task) -> str:
    """SHA-256 of everything a task holds."""
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in fields.items()}
    return hashlib.sha256(json.dumps([task.type, plain], default=list).encode()).hexdigest()


def means(results: Sequence[TaskResult]) -> dict[str, float]:
    """The mean main score of every task type, and the means `over tasks` and `over types`."""
    kinds: dict[str, list[float]] = {}
    for result in results:
        kinds.setdefault(result.type, []).append(result.score)
    by_type = {kind: float(np.mean(scores)) for kind, scores in kinds.items()}
    over = {
        "over tasks": float(np.mean([result.score for result in results])),
        "over types": float(np.mean(list(by_type.values()))),
    }
    return by_type | over


def result_to_json(result: TaskResult) -> dict[str, Any]:
    """Plain data; `result_from_json` gives the result back, bit for bit. The scores of the examples are called `items`."""
    fields = dataclasses.asdict(result)
    return fields | {"items": fields.pop("per_example").tolist()}


def result_from_json(data: dict[str, Any]) -> TaskResult:
    names = [field.name for field in dataclasses.fields(TaskResult) if field.name != "per_example"]
    return TaskResult(**{name: data[name] for name in names}, per_example=np.array(data["items"], dtype=float))


def write_summary(out: Path, measurements: Sequence[Measurement], facts: dict[str, Any]) -> None:
    """OUT/results.json and OUT/results.md."""
    results = [measurement.result for measurement in measurements]
    rows = [
        {
            "task": measurement.result.task, "type": measurement.result.type, "language": measurement.result.language,
            "metric": measurement.result.metric, "score": measurement.result.score, "interval": bounds(measurement),
            "metrics": measurement.result.metrics, "seconds": round(measurement.seconds, 2),
        }
        for measurement in measurements
    ]  # fmt: skip
    replace_text(out / "results.json", json.dumps({**facts, "means": means(results), "tasks": rows}, indent=1))
    lines = ["| task | type | metric | score | 95 % interval |", "| --- | --- | --- | ---: | ---: |"]
    for row, measurement in zip(rows, measurements, strict=True):
        lines.append(
            f"| {row['task']} | {row['type']} | {row['metric']} | {100 * row['score']:.1f} | {points(measurement)} |"
        )
    lines += [f"| mean {name} | | | {100 * value:.1f} | |" for name, value in means(results).items()]
    replace_text(out / "results.md", "\n".join(lines) + "\n")


def bounds(measurement: Measurement) -> tuple[float, float] | None:
    """The 95 % interval; None where the score has no rows to resample, as mteb's have not."""
    return (measurement.interval.low, measurement.interval.high) if len(measurement.result.per_example) > 1 else None


def points(measurement: Measurement) -> str:
    """The interval in points of 100, or nothing."""
    found = bounds(measurement)
    return "" if found is None else " to ".join(f"{round(100 * bound, 1) + 0.0:.1f}" for bound in found)  # no -0.0


def _stored(path: Path, key: str) -> Measurement | None:
    """The result of a former run, if it was computed from the same encoder and data."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not ours, or broken: computed again and replaced
        return None
    if not isinstance(data, dict) or data.get("key") != key:
        return None
    result = result_from_json(data)
    return Measurement(result, interval(result.score, draws(result)), data["seconds"], True)
