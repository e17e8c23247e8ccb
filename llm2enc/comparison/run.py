"""Comparison: variants of models side by side on one's own data, and which of them to use.

    found = compare(["pocket"], ["smoke"], "runs/compare")
    found.advice[0]
    save(found, "runs/compare")

runs/compare/
  compare.json     everything that was measured, item by item
  report.html      the same to look at; one file, opens anywhere
  work/            the plan, and results by system and task: an interrupted comparison goes on from here
"""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np

from llm2enc.comparison import measures, planning
from llm2enc.comparison.advice import advise
from llm2enc.comparison.measuring import Where, has_layers, measure
from llm2enc.comparison.passes import same_pass
from llm2enc.comparison.planning import Clock, Load, Plan
from llm2enc.comparison.results import Comparison, Difference, Layers, Similarities, SystemResult
from llm2enc.comparison.sampling import SEED, sampled, size_of, texts_of
from llm2enc.comparison.systems import System, check, count_states, states_of
from llm2enc.encoding import Encoder, LoadType
from llm2enc.errors import InputError
from llm2enc.evaluation import (
    Task,
    TaskResult,
    TextEncoder,
    Tfidf,
    cost,
    difference,
    draws,
    gather,
    interval,
    mean_interval,
    score,
    suite,
)
from llm2enc.storage import check_room, replace_text

__all__ = ["Comparison", "SystemResult", "compare", "save"]

LAYER_TEXTS = 5000  # texts whose states of every layer are scored
MAX_TEXT_TOKENS = 256


def compare(
    models: Sequence[str],
    sources: Sequence[str] = ("smoke",),
    out: str | Path = "runs/compare",
    *,
    variants: Sequence[str] | None = None,
    layers: bool = True,
    documents: int = 1000,
    max_text_tokens: int = MAX_TEXT_TOKENS,
    dtype: LoadType = "auto",
    minutes: float | None = None,
    cache: Path | None = None,
    report: Callable[[SystemResult], None] = lambda system: None,
    tell: Callable[[str], None] = lambda sentence: None,
    advance: Callable[[str, float], None] = lambda name, share: None,
) -> Comparison:
    """Measure every variant of every model on the same texts. Called again, it goes on where it was interrupted.

    models           causal language models (`pocket`, directories, hub ids), folders of runs, directories of encoders
    sources          `smoke`, files of pairs, folders of tasks (evaluation/sources.py)
    variants         e.g. `causal-mean`, `echo-last`, `bidirectional-mean@6`; by default eight of them
    layers           also score the mean-pooled variants at every layer
    max_text_tokens  longest text in tokens: the same words for every variant
    minutes          about how long it may take: rows are sampled to fit (`comparison.sampling`); None: all rows
    cache            folder of vectors; None keeps them in memory
    report           called with each system as it comes
    tell             hears beforehand how long it will take, and on how many rows
    advance          hears the share of the planned time that is done, with the name of what is being measured
    raises           ValueError for models, variants or data that cannot be used, before any weight is loaded;
                     CannotConvert if nothing but bidirectional variants was asked of a model that stays causal
    """
    check(models, variants, max_text_tokens, dtype)  # first: to gather the docstrings takes half a minute
    tasks = _local_tasks(sources, documents)
    out = Path(out)
    for place in (out, *([cache] if cache else [])):
        check_room(place)
    asked = _Asked(tuple(models), variants, layers, max_text_tokens, dtype, minutes, cache is not None)
    notes: list[str] = []
    opened: _Opened = {}
    plan = planning.stored(out / "work" / "plan.json", asked.key(tasks), lambda: _plan(asked, tasks, opened, notes))
    whole, tasks = tasks, [sampled(*one) for one in zip(tasks, plan.shares, strict=True)]
    samples, sentence = planning.describe(plan, whole, tasks, minutes)
    tell(sentence)
    started = time.perf_counter()
    systems, found_layers = _measure(asked, tasks, plan, out / "work", cache, opened, notes, report, advance)
    took = time.perf_counter() - started
    order = [system.name for system in systems]
    systems.sort(key=lambda system: -system.mean.value)
    gaps = {other.name: difference(systems[0].outcomes, other.outcomes) for other in systems[1:]}
    baseline = _baseline(tasks)
    rows = sum(len(outcome.per_example) for outcome in systems[0].outcomes)
    return Comparison(
        title=f"{', '.join(models)}: how to read {'it' if len(models) == 1 else 'them'} as an encoder",
        models=list(models),
        data=_data(tasks, rows),
        systems=systems,
        differences=[Difference(systems[0].name, name, gap) for name, gap in gaps.items()],
        advice=advise(systems, gaps, baseline, found_layers, order, rows),
        layers=found_layers,
        baseline=baseline,
        sample=samples,
        notes=list(dict.fromkeys([*notes, *planning.notes(samples, systems[0])])),
        facts=_facts(asked, sources, documents) | {"time": f"{sentence}; it took {cost.duration(took)}"},
    )


def _local_tasks(sources: Sequence[str], documents: int) -> list[Task]:
    """What the sources stand for. InputError for tasks of mteb."""
    tasks, names = gather(sources, documents)
    if names or not tasks:
        raise InputError(f"{', '.join(names)}: a comparison runs on local data; `llm2enc evaluate` runs tasks of mteb")
    return tasks


_Opened = dict[str, Iterator[list[System]]]  # `states_of` by model


@dataclass(frozen=True)
class _Asked:
    """What is to be compared, and how."""

    models: tuple[str, ...]
    variants: Sequence[str] | None
    layers: bool
    max_text_tokens: int
    dtype: LoadType
    minutes: float | None
    cached: bool
    """Whether vectors are kept on disk."""

    def key(self, tasks: Sequence[Task]) -> str:
        """Equal for two comparisons of the same things."""
        parts = [vars(self), SEED, [suite.digest(task) for task in tasks]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def states(self, model: str, notes: list[str]) -> Iterator[list[System]]:
        return states_of(model, self.variants, self.max_text_tokens, self.dtype, notes)


def _plan(asked: _Asked, tasks: Sequence[Task], opened: _Opened, notes: list[str]) -> Plan:
    """The rows that fit the time, by the speed of every model. A single model stays in `opened`."""
    texts = [text for task in tasks for _, some in task.texts() for text in some]
    loads, limit = [], 0
    for model in asked.models:
        states = asked.states(model, notes)
        systems = next(states)
        if len(asked.models) == 1:
            opened[model] = chain([systems], states)
        limit = limit or cost.characters_per_text(systems[0].encoder, texts, asked.max_text_tokens)
        passes = same_pass(systems)
        speeds = [cost.measure_speed(group[0].encoder, texts, limit) for group in passes]
        encoders = [system.encoder for system in systems if isinstance(system.encoder, Encoder)]
        deep = sum(one.backbone.depth for one in encoders if asked.layers and has_layers(one))
        width = encoders[0].dimensions if encoders else 1
        times = count_states(model)
        loads.append(Load(speeds, times, times * (len(systems) + deep), width))
    size = sum(min(len(text), limit) for text in texts) / len(texts)
    again = 0 if asked.cached else round(3 * measures.SAMPLE * size)  # for the similarities
    return planning.make(tasks, loads, limit, measures.PREFIX_CHARACTERS, again, asked.minutes)


def _measure(
    asked: _Asked,
    tasks: Sequence[Task],
    plan: Plan,
    work: Path,
    cache: Path | None,
    opened: _Opened,
    notes: list[str],
    report: Callable[[SystemResult], None],
    advance: Callable[[str, float], None],
) -> tuple[list[SystemResult], list[Layers]]:
    """Every system of every model, in their order, and the layers."""
    measured: list[SystemResult] = []
    layers: list[Layers] = []
    few = measures.few_texts(tasks, LAYER_TEXTS) if asked.layers else []
    short = _short(asked.models)
    sizes = {task.name: len(texts_of(task)) for task in tasks}
    mean_size = sum(size_of(task, plan.limit) for task in tasks) / sum(sizes.values())
    total = sum(sizes.values()) * sum(
        count_states(model) / speed for model, speeds in zip(asked.models, plan.speeds, strict=True) for speed in speeds
    )
    done = 0.0
    for model, speeds in zip(asked.models, plan.speeds, strict=True):
        owner = f"{short[model]} " if len(asked.models) > 1 else ""
        for systems in opened.pop(model, None) or asked.states(model, notes):
            for group, speed in zip(same_pass(systems), speeds, strict=True):
                names = [f"{owner}{system.name}" for system in group]
                clock = Clock(sizes, done, 1 / speed, total, lambda share, name=names[0]: advance(name, share))
                where = Where(tasks, few, [work / _slug(name) for name in names], cache)
                found, of_layers = measure(names, group, where, 1000 * mean_size / speed, notes, clock)
                done += sum(sizes.values()) / speed
                measured += found
                layers += of_layers
                for one in found:
                    report(one)
    if layers and len(few) < len(tasks):
        notes.append(f"Layers are scored on {_list_tasks(few)} only: more texts than {LAYER_TEXTS:,} take too long.")
    return measured, layers


def save(found: Comparison, folder: str | Path) -> None:
    """Write compare.json and report.html."""
    from llm2enc.comparison.report import write_report
    from llm2enc.comparison.storage import to_json

    replace_text(Path(folder) / "compare.json", json.dumps(to_json(found)))
    write_report(found, Path(folder) / "report.html")


def _baseline(tasks: Sequence[Task]) -> SystemResult:
    outcomes: list[TaskResult] = []
    parts = []
    for task in tasks:
        encoder = cast(TextEncoder, Tfidf(task))  # its rows are sparse, which scoring takes too
        outcomes.append(score(encoder, task))
        parts.append(measures.similarities(encoder, [task]))
    similar = Similarities(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COSINES))
    return SystemResult(
        name="TF-IDF",
        description="word counts, rare words weighing more; no model",
        outcomes=outcomes,
        intervals=[interval(outcome.score, draws(outcome)) for outcome in outcomes],
        mean=mean_interval(outcomes),
        tokens=0.0,
        seconds=0.0,
        similarities=similar,
    )


_COSINES = ("random", "related")


def _short(models: Sequence[str]) -> dict[str, str]:
    """The last part of each model's name, if all of them differ; else the whole names."""
    last = [Path(model).name for model in models]
    return dict(zip(models, models if len(set(last)) < len(last) else last, strict=True))


def _slug(name: str) -> str:
    """A folder name of its own for every system."""
    safe = "".join(letter if letter.isalnum() or letter in "-@" else "-" for letter in name)
    return f"{safe[-60:].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _data(tasks: Sequence[Task], rows: int) -> str:
    texts = len({text for task in tasks for _, some in task.texts() for text in some})
    return f"{texts:,} texts, {rows:,} rows and queries in {_list_tasks(tasks)}."


def _list_tasks(tasks: Sequence[Task]) -> str:
    names = [task.name for task in tasks]
    return f"{len(names)} tasks" if len(names) > 8 else ", ".join(names)


def _facts(asked: _Asked, sources: Sequence[str], documents: int) -> dict[str, str]:
    import torch

    command = ["llm2enc compare", *asked.models, *(f"--data {source}" for source in sources)]
    command += [f"--variants {variant}" for variant in asked.variants or ()]
    command += [] if asked.max_text_tokens == MAX_TEXT_TOKENS else [f"--max-text-tokens {asked.max_text_tokens}"]
    command += [] if asked.minutes is None else [f"--minutes {asked.minutes:g}"]
    return {
        "command": " ".join(command),
        "docstrings": f"at most {documents} held-out ones of the installed packages"
        if "smoke" in sources
        else "not used",
        "texts": f"cut after {asked.max_text_tokens} tokens, for every variant alike; encoders and stages as they always do",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("llm2enc", "torch", "transformers")),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
        "date": date.today().isoformat(),
    }
