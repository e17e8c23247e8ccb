"""The systems of one forward pass on every task: scores, scores of other layers, similarities, prefix test, cost."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress
from pathlib import Path

import numpy as np

from llm2enc.comparison import measures
from llm2enc.comparison.passes import SharedPass
from llm2enc.comparison.results import Layers, Similarities, SystemResult
from llm2enc.comparison.systems import System
from llm2enc.encoding import Encoder, LoadedModel
from llm2enc.evaluation import (
    CachedEncoder,
    Measurement,
    Task,
    TaskResult,
    difference,
    mean_interval,
    score,
    suite,
)
from llm2enc.model import evaluating


@dataclass(frozen=True)
class Where:
    """What a measurement reads and writes."""

    tasks: Sequence[Task]
    few: Sequence[Task]
    """Tasks on which every layer is scored; none to score no layers."""
    folders: Sequence[Path]
    """Of the results of each system."""
    cache: Path | None


def measure(
    names: Sequence[str],
    systems: Sequence[System],
    where: Where,
    seconds: float,
    notes: list[str],
    advance: Callable[[str, float], None],
) -> tuple[list[SystemResult], list[Layers]]:
    """The results of systems that one forward pass serves (`same_pass`), and those of the layers of the mean-pooled ones.

    seconds  that the pass takes for 1,000 texts
    notes    gets what has to be left out, and why
    advance  hears how many more texts of a task, by its name, are done
    """
    identities = [system.encoder.fingerprint() for system in systems]
    encoders = _ours(systems)
    deep = [has_layers(system.encoder) and bool(where.few) for system in systems]
    if any(deep) and (why := _no_layers(encoders[0])):
        notes += [f"{name}: {why}" for name in compress(names, deep)]
        deep = [False] * len(systems)
    results: list[list[Measurement]] = [[] for _ in systems]
    layers: list[list[list[TaskResult]]] = [[] for _ in range(sum(deep))]  # by system, task and layer
    for task in where.tasks:
        wide = deep if any(task is one for one in where.few) else [False] * len(systems)
        count = partial(advance, task.name)
        members, others = _members(systems, wide, count)
        alone = count if members[0] is systems[0].encoder else lambda texts: None
        for found, member, folder, identity in zip(results, members, where.folders, identities, strict=True):
            found += suite.measure(member, [task], folder, where.cache, advance=alone, identity=identity)
        own = [found[-1].result for found in compress(results, wide)]
        for found, rest, last in zip(layers, others, own, strict=False):
            found.append([*(score(one, task) for one in rest), last])
    similar = _similarities(systems, where, identities)
    prefixes = measures.prefix_tests(encoders) or [None]
    measured = [
        SystemResult(
            name=name,
            description=system.description,
            outcomes=[result.result for result in found],
            intervals=[result.interval for result in found],
            mean=mean_interval([result.result for result in found]),
            tokens=measures.tokens_per_text(system.encoder, where.tasks),
            seconds=seconds,
            similarities=alike,
            prefix=prefix,
        )
        for name, system, found, alike, prefix in zip(names, systems, results, similar, prefixes, strict=True)
    ]
    return measured, [_layers(name, found) for name, found in zip(compress(names, deep), layers, strict=True)]


def _members(
    systems: Sequence[System], wide: Sequence[bool], advance: Callable[[float], None]
) -> tuple[list[LoadedModel], list[list[LoadedModel]]]:
    """Encoders that share their forward passes: the systems' own, and by wide system those of its layers but the last."""
    if len(systems) == 1 and not wide[0]:  # alone, the last layer may skip states that are not pooled
        return [systems[0].encoder], []
    encoders = _ours(systems)
    deep = [[one.variant(layer=n) for n in range(one.backbone.depth)] for one in compress(encoders, wide)]
    shared = iter(SharedPass([*encoders, *chain.from_iterable(deep)], advance).members())
    return [next(shared) for _ in encoders], [[next(shared) for _ in every] for every in deep]


def _similarities(systems: Sequence[System], where: Where, identities: Sequence[str]) -> list[Similarities]:
    members, _ = _members(systems, [False] * len(systems), lambda texts: None)
    found = []
    for member, identity in zip(members, identities, strict=True):
        with closing(CachedEncoder(member, where.cache, identity=identity)) as cached:
            found.append(measures.similarities(cached, where.tasks))
    return found


def _ours(systems: Sequence[System]) -> list[Encoder]:
    """The encoders; none of a system that another library runs, which shares its passes with nothing."""
    return [system.encoder for system in systems if isinstance(system.encoder, Encoder)]


def has_layers(encoder: LoadedModel) -> bool:
    """Whether other layers of an encoder can be scored beside its own vectors."""
    return isinstance(encoder, Encoder) and encoder.pooling == "mean" and encoder.layer is None


def _no_layers(encoder: Encoder) -> str:
    """Why the layers of a model cannot be read; empty if they can."""
    try:
        with evaluating(encoder):
            encoder.backbone.layers(encoder.pack(["one", "another"]).to(encoder.device), encoder.causal)
    except ValueError as error:  # layers that hand on more than one row of states
        return str(error)
    return ""


def _layers(name: str, outcomes: Sequence[Sequence[TaskResult]]) -> Layers:
    """The scores by layer, of outcomes by task and layer."""
    by_layer = list(zip(*outcomes, strict=True))
    scores = [float(np.mean([outcome.score for outcome in found])) for found in by_layer]
    best = int(np.argmax(scores))
    return Layers(name, scores, None if best == len(scores) - 1 else difference(by_layer[best], by_layer[-1]))
