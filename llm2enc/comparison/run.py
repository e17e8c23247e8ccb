"""Comparison: variants of models side by side on one's own data, and which of them to use.

    found = compare(["pocket"], ["smoke"], "runs/compare")
    found.advice[0]
    save(found, "runs/compare")

runs/compare/
  compare.json     everything that was measured, item by item
  report.html      the same to look at; one file, opens anywhere
  work/            results by system and task: an interrupted comparison goes on from here
"""

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

from llm2enc.comparison import measures
from llm2enc.comparison.advice import advise
from llm2enc.comparison.results import Comparison, Difference, Layers, SystemResult
from llm2enc.comparison.systems import System, check, systems_of
from llm2enc.encoding import Encoder, LoadType
from llm2enc.errors import InputError
from llm2enc.evaluation import (
    CachedEncoder,
    Outcome,
    Task,
    Tfidf,
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

LAYER_TEXTS = 5000  # texts whose states of every layer are held in memory
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
    cache: Path | None = None,
    report: Callable[[SystemResult], None] = lambda system: None,
    advance: Callable[[str, int], None] = lambda name, count: None,
) -> Comparison:
    """Measure every variant of every model on the same texts. Called again, it goes on where it was interrupted.

    models           causal language models (`pocket`, directories, hub ids), folders of runs, directories of encoders
    sources          `smoke`, files of pairs, folders of tasks (evaluation/sources.py)
    variants         e.g. `causal-mean`, `echo-last`, `bidirectional-mean@6`; by default eight of them
    layers           also score the mean-pooled variants at every layer
    max_text_tokens  longest text in tokens: the same words for every variant
    cache            folder of vectors; None keeps them in memory
    report           called with each system as it comes, `advance` with the number of texts that are done
    raises           ValueError for models, variants or data that cannot be used, before any weight is loaded;
                     CannotConvert if nothing but bidirectional variants was asked of a model that stays causal
    """
    check(models, variants, max_text_tokens, dtype)  # first: to gather the docstrings takes half a minute
    tasks, names = gather(sources, documents)
    if names or not tasks:
        raise InputError(f"{', '.join(names)}: a comparison runs on local data; `llm2enc evaluate` runs tasks of mteb")
    out = Path(out)
    for place in (out, *([cache] if cache else [])):
        check_room(place)
    notes: list[str] = []
    systems: list[SystemResult] = []
    found_layers: list[Layers] = []
    few = measures.few_texts(tasks, LAYER_TEXTS)
    short = _short(models)
    for model in models:
        owner = f"{short[model]} " if len(models) > 1 else ""
        for system in systems_of(model, variants, max_text_tokens, dtype, notes):
            name = f"{owner}{system.name}"
            folder = out / "work" / _slug(name)
            measured = _measure(name, system, tasks, folder, cache, lambda count, name=name: advance(name, count))
            systems.append(measured)
            report(measured)
            if layers and isinstance(system.encoder, Encoder) and _has_layers(system.encoder):
                found_layers += _layers(name, system.encoder, few, notes)
    if found_layers and len(few) < len(tasks):
        notes.append(f"Layers are scored on {_list_tasks(few)} only, whose vectors of all layers fit into memory.")
    order = [system.name for system in systems]
    systems.sort(key=lambda system: -system.mean.value)
    gaps = {other.name: difference(systems[0].outcomes, other.outcomes) for other in systems[1:]}
    baseline = _baseline(tasks)
    rows = sum(len(outcome.items) for outcome in systems[0].outcomes)
    return Comparison(
        title=f"{', '.join(models)}: how to read {'it' if len(models) == 1 else 'them'} as an encoder",
        models=list(models),
        data=_data(tasks, rows),
        systems=systems,
        differences=[Difference(systems[0].name, name, gap) for name, gap in gaps.items()],
        advice=advise(systems, gaps, baseline, found_layers, order, rows),
        layers=found_layers,
        baseline=baseline,
        notes=list(dict.fromkeys(notes)),
        facts=_facts(models, sources, variants, max_text_tokens, documents),
    )


def save(found: Comparison, folder: str | Path) -> None:
    """Write compare.json and report.html."""
    from llm2enc.comparison.report import write_report
    from llm2enc.comparison.storage import to_json

    replace_text(Path(folder) / "compare.json", json.dumps(to_json(found)))
    write_report(found, Path(folder) / "report.html")


def _measure(
    name: str, system: System, tasks: Sequence[Task], folder: Path, cache: Path | None, advance: Callable[[int], None]
) -> SystemResult:
    encoder = system.encoder
    identity = encoder.fingerprint()
    results = suite.measure(encoder, tasks, folder, cache, advance=advance, identity=identity)
    cached = CachedEncoder(encoder, cache, identity=identity)
    try:
        similar = measures.similarities(cached, tasks)
    finally:
        cached.close()
    tokens, seconds = measures.cost(encoder, tasks)
    outcomes = [result.outcome for result in results]
    return SystemResult(
        name=name,
        description=system.description,
        outcomes=outcomes,
        intervals=[result.interval for result in results],
        mean=mean_interval(outcomes),
        tokens=tokens,
        seconds=seconds,
        similarities=similar,
        prefix=measures.prefix_test(encoder) if isinstance(encoder, Encoder) else None,
    )


def _has_layers(encoder: Encoder) -> bool:
    return encoder.pooling == "mean" and encoder.layer is None


def _layers(name: str, encoder: Encoder, tasks: Sequence[Task], notes: list[str]) -> list[Layers]:
    every = measures.EveryLayer(encoder)
    try:
        outcomes = [[score(every.layer(number), task) for task in tasks] for number in range(every.depth + 1)]
    except ValueError as error:  # layers that hand on more than one row of states
        notes.append(f"{name}: {error}")
        return []
    scores = [float(np.mean([outcome.score for outcome in found])) for found in outcomes]
    best = int(np.argmax(scores))
    gain = difference(outcomes[best], outcomes[-1]) if best != every.depth else None
    return [Layers(name, scores, gain)]


def _baseline(tasks: Sequence[Task]) -> SystemResult:
    outcomes: list[Outcome] = []
    parts = []
    for task in tasks:
        encoder = Tfidf(task)
        outcomes.append(score(encoder, task))
        parts.append(measures.similarities(encoder, [task]))
    similar = measures.Similarities(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COSINES))
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


def _facts(
    models: Sequence[str], sources: Sequence[str], variants: Sequence[str] | None, max_text_tokens: int, documents: int
) -> dict[str, str]:
    import torch

    command = ["llm2enc compare", *models, *(f"--data {source}" for source in sources)]
    command += [f"--variants {variant}" for variant in variants or ()]
    command += [] if max_text_tokens == MAX_TEXT_TOKENS else [f"--max-text-tokens {max_text_tokens}"]
    return {
        "command": " ".join(command),
        "docstrings": f"at most {documents} held-out ones of the installed packages"
        if "smoke" in sources
        else "not used",
        "texts": f"cut after {max_text_tokens} tokens, for every variant alike; encoders and stages cut as they always do",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("llm2enc", "torch", "transformers")),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"),
        "date": date.today().isoformat(),
    }
