"""Cost estimates of the evaluation tiers, from seconds to days, before anything runs.

    limit = characters_per_text(encoder, texts, max_tokens)   what truncation leaves of a text
    tiers = evaluation_tiers(docstrings, folders, limit)      smoke, local, nanobeir, mteb
    rows = estimates(tiers, measure_speed(encoder, texts, limit))

A time is characters / (characters per second): that of encoding, which is nearly all of it. Not in it: scoring
(classifiers, k-means, ranking), downloads, the instruction before each query, and that long texts take more time per
character than short ones, as attention does. Vectors that are cached already take none.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm2enc.encoding import LoadedModel
from llm2enc.errors import InputError
from llm2enc.evaluation.mteb_adapter import mteb_tasks
from llm2enc.evaluation.sources import BENCHMARKS, SMOKE
from llm2enc.evaluation.tasks import Side, Task, TextEncoder

LOCAL = "local"
_FIRST = 8  # texts in the first chunk that is timed; every other one has twice as many
_SAMPLE = 256  # texts whose tokens are counted
_DRAWN = 2048  # documents that mteb's clustering tasks keep at least when they draw a share


@dataclass(frozen=True)
class Tier:
    """What an evaluation tier holds."""

    name: str
    what: str
    tasks: int
    texts: int | None
    """Distinct texts that are encoded; None if they cannot be counted, and `note` says why."""
    characters: int | None
    """Characters of these, as far as the encoder reads them."""
    note: str = ""


def evaluation_tiers(docstrings: Iterable[Task], local: Iterable[Task], limit: int) -> list[Tier]:
    """All tiers; `local` only if there are local tasks. Nothing is downloaded.

    limit  characters of a text that the encoder reads, see `characters_per_text`
    """
    local = list(local)
    return [
        local_tier(SMOKE, "docstrings of the installed packages", list(docstrings), limit),
        *([local_tier(LOCAL, "the folders and files given", local, limit)] if local else []),
        *(mteb_tier(name, benchmark, limit) for name, benchmark in BENCHMARKS.items()),
    ]


def local_tier(name: str, what: str, tasks: Sequence[Task], limit: int) -> Tier:
    """Tasks in memory, counted exactly: each text once per side, also if several tasks hold it."""
    sides: dict[Side, set[str]] = {"query": set(), "document": set()}
    for task in tasks:
        for side, texts in task.texts():
            sides[side].update(texts)
    found = [text for side in sides.values() for text in side]
    return Tier(name, what, len(tasks), len(found), sum(min(len(text), limit) for text in found))


def mteb_tier(name: str, benchmark: str, limit: int) -> Tier:
    """A benchmark of mteb, counted from the statistics that come with it.

    A task without statistics counts as the mean of the others, and the note says so. Statistics hold the mean length of
    texts and not their spread: cutting at `limit` is applied to the mean, so that characters are an upper bound.
    """
    what = f"mteb benchmark {benchmark}"
    try:
        tasks = mteb_tasks([benchmark])
    except ValueError as error:
        return Tier(name, what, 0, None, None, str(error))
    sizes = [size for task in tasks if (size := mteb_size(task, limit)) is not None]
    missing = len(tasks) - len(sizes)
    if not sizes:
        return Tier(name, what, len(tasks), None, None, "mteb has no statistics of its tasks")
    texts, characters = (round(np.mean(numbers) * len(tasks)) for numbers in zip(*sizes, strict=True))
    note = f"{missing} of {len(tasks)} tasks have no statistics and count as the mean of the others" if missing else ""
    return Tier(name, what, len(tasks), texts, characters, note)


# ----------------------------------------------------------------------------------------------------- sizes of mteb's


def mteb_size(task: Any, limit: int) -> tuple[int, int] | None:
    """Distinct texts that a task of mteb has encoded, and their characters; None without statistics.

    task  an `AbsTask`; its kinds have attributes of their own
    """
    if task.is_aggregate:
        parts = [mteb_size(part, limit) for part in task.tasks]
    else:
        known = task.metadata.descriptive_stats or {}
        parts = [_size(task, known, split, subset, limit) for split in task.eval_splits for subset in task.hf_subsets]
    if not parts or None in parts:
        return None
    texts, characters = (sum(numbers) for numbers in zip(*parts, strict=True))
    return texts, characters


def _size(task: Any, known: dict[str, Any], split: str, subset: str, limit: int) -> tuple[int, int] | None:
    statistics = _statistics(task, known, split, subset)
    if statistics is None:
        return None
    columns = _columns(statistics)
    if task.metadata.type == "Summarization":
        del columns["text_statistics"]  # the documents; only their summaries are encoded
    counts = {name: column["unique_texts"] for name, column in columns.items()}
    share = getattr(task, "max_fraction_of_documents_to_embed", None)
    if share is not None:
        drawn = max(_DRAWN, int(share * statistics["num_samples"]))
        counts = {name: min(count, drawn) for name, count in counts.items()}
    sizes = [(count, _characters(count, columns[name], limit)) for name, count in counts.items()]
    if hasattr(task, "samples_per_label"):
        fitted = _statistics(task, known, task.train_split, subset)
        if fitted is None:
            return None
        (column,) = _columns(fitted).values()
        # mteb draws so many rows per label in each experiment, and encodes their union.
        drawn = task.samples_per_label * task.n_experiments * fitted["label_statistics"]["unique_labels"]
        count = min(column["unique_texts"], drawn)
        sizes.append((count, _characters(count, column, limit)))
    texts, characters = (sum(numbers) for numbers in zip(*sizes, strict=True))
    return texts, characters


def _statistics(task: Any, known: dict[str, Any], split: str, subset: str) -> dict[str, Any] | None:
    found = known.get(split)
    if found is None or not task.metadata.is_multilingual:
        return found
    return found.get("hf_subset_descriptive_stats", {}).get(subset)


def _columns(statistics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: column
        for name, column in statistics.items()
        if isinstance(column, dict) and "total_text_length" in column
    }  # fmt: skip


def _characters(count: int, column: dict[str, Any], limit: int) -> int:
    return round(count * min(column["average_text_length"], limit))


# ---------------------------------------------------------------------------------------------------------------- speed


def characters_per_text(encoder: LoadedModel, texts: Sequence[str], max_tokens: int) -> int:
    """Characters of a text that an encoder reads: `max_tokens` times the characters per token of some of `texts`.

    Tokens of the template count like those of the text, so it is slightly low.
    """
    # A cut keeps these short of truncation, unless tokens are less than a character each.
    some = [text[:max_tokens] for text in _shuffled(texts)[:_SAMPLE]]
    return max(1, round(max_tokens * sum(map(len, some)) / encoder.count_tokens(some)))


def measure_speed(
    encoder: TextEncoder,
    texts: Sequence[str],
    limit: int,
    seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Characters per second that an encoder encodes, of texts as long as `texts`.

    The distinct texts are encoded in chunks of 8, 16, 32, ... in random order, after one that is not timed; as many as
    `seconds` allow if a chunk takes twice as long as the last. The last chunk counts: small ones leave a GPU idle.

    limit   characters of a text that the encoder reads, see `characters_per_text`
    clock   seconds of a clock
    raises  ValueError if fewer than two texts differ, or they are empty
    """
    waiting = [text for text in _shuffled(texts) if text]
    if len(waiting) < 2:
        raise InputError(f"speed is measured on at least 2 different texts; got {len(waiting)}")
    size = min(_FIRST, len(waiting) // 2)
    encoder.encode(waiting[:size])
    waiting = waiting[size:]
    start = clock()
    while True:
        if len(waiting) < 3 * size:
            size = len(waiting)  # or a rest would be left that is smaller than the chunk before it
        chunk, waiting = waiting[:size], waiting[size:]
        before = clock()
        encoder.encode(chunk)
        took = clock() - before
        if not waiting or clock() - start + 2 * took > seconds:
            return sum(min(len(text), limit) for text in chunk) / max(took, 1e-9)
        size *= 2


def _shuffled(texts: Iterable[str]) -> list[str]:
    """The distinct texts in an order of chance, always the same: a collection may be sorted by length."""
    found = list(dict.fromkeys(texts))
    return [found[row] for row in np.random.default_rng(0).permutation(len(found))]


# ------------------------------------------------------------------------------------------------------------ estimates


def estimates(tiers: Iterable[Tier], speed: float) -> list[dict[str, Any]]:
    """A plain row per tier, fit for JSON: the fields of `Tier` and `seconds`, None where texts cannot be counted.

    speed  characters per second
    """
    return [
        asdict(tier) | {"seconds": None if tier.characters is None else round(tier.characters / speed, 1)}
        for tier in tiers
    ]


def duration(seconds: float | None) -> str:
    """Seconds in the unit one speaks of: `12 s`, `3 min`, `5 h`, `2 days`."""
    if seconds is None:
        return "?"
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
