"""One encoder on everything that is named: local tasks and tasks of mteb, measured or only planned."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2enc.artifact import METADATA_FILE, read_metadata
from llm2enc.encoding import LoadedModel, find_encoder, open_encoder
from llm2enc.evaluation import cost, suite
from llm2enc.evaluation.bootstrap import draws, interval
from llm2enc.evaluation.cache import CachedEncoder
from llm2enc.evaluation.docstrings import docstring_tasks
from llm2enc.evaluation.mteb_adapter import Failure, MtebEncoder, mteb_tasks, run_mteb
from llm2enc.evaluation.mteb_local import local_task
from llm2enc.evaluation.scoring import Instructions
from llm2enc.evaluation.sources import BENCHMARKS, gather
from llm2enc.evaluation.suite import Measurement
from llm2enc.evaluation.tasks import Task
from llm2enc.recipe import DocstringEval
from llm2enc.storage import check_room
from llm2enc.terminal import bar

if TYPE_CHECKING:
    from mteb import AbsTask

LOCAL_SECONDS = 2.0  # spent on measuring how fast the encoder is, before the time is estimated


def plan(model: str, sources: Sequence[str]) -> list[dict[str, Any]]:
    """The cost estimate of each evaluation tier, as plain rows. Nothing is evaluated."""
    find_encoder(model)
    tasks, names = gather(sources)
    own = [name for name in names if name not in BENCHMARKS.values()]
    if own:
        mteb_tasks(own)  # unknown names are refused before the model is loaded
    docstrings = docstring_tasks(DocstringEval(kind="docstrings"))  # pyright: ignore[reportArgumentType] - frozen, so it has a hash
    local = [task for task in tasks if task.name not in {known.name for known in docstrings}]
    encoder = open_encoder(model)
    limit, speed = _speed(encoder, [*docstrings, *local])
    tiers = [*cost.evaluation_tiers(docstrings, local, limit), *(cost.mteb_tier(name, name, limit) for name in own)]
    return cost.estimates(tiers, speed)


def run(
    model: str,
    sources: Sequence[str],
    out: Path,
    cache: Path | None,
    instructions: Instructions = "own",
    by_mteb: bool = False,
    report: Callable[[str], None] = print,
    show_progress: bool = True,
) -> tuple[list[Measurement], list[Failure]]:
    """Results of everything that `sources` name, and the tasks of mteb that could not be run.

    Names, files and formats are checked before the model is loaded. Run again, finished tasks are not repeated.

    by_mteb  local tasks are scored by mteb too, with its protocols and result files
    """
    find_encoder(model)  # a misspelt name shows before data is read
    tasks, names = gather(sources)
    named = mteb_tasks(names) if names else []
    if by_mteb:
        named, tasks = [*(local_task(task) for task in tasks), *named], []
    _check_disk(model, tasks, out, cache)
    encoder = open_encoder(model)
    identity = encoder.fingerprint()
    results: list[Measurement] = []
    failures: list[Failure] = []
    if tasks:
        limit, speed = _speed(encoder, tasks)
        tier = cost.local_tier(cost.LOCAL, "", tasks, limit)
        seconds = (tier.characters or 0) / speed
        report(f"{len(tasks)} tasks, {tier.texts:,} texts: about {cost.duration(seconds)} to encode what is not cached")
        with bar("texts", sum(len(texts) for task in tasks for _, texts in task.texts()), show_progress) as advance:
            results += suite.measure(encoder, tasks, out, cache, instructions, advance=advance, identity=identity)
    if named:
        mteb_results, failures = _mteb(encoder, identity, model, named, out, cache, instructions, report)
        results += mteb_results
    if results:
        facts = {"model": model, "fingerprint": identity, "instructions": instructions}
        suite.write_summary(out, results, facts)
    return results, failures


def _check_disk(model: str, tasks: Sequence[Task], out: Path, cache: Path | None) -> None:
    """OSError if results or vectors cannot be written; vectors are counted where the width is known without the model."""
    check_room(out)
    if cache is not None:
        folder = next(
            (place for place in (Path(model), Path(model) / "model") if (place / METADATA_FILE).is_file()), None
        )
        width = read_metadata(folder).dimensions if folder else 0
        texts = len({(side, text) for task in tasks for side, some in task.texts() for text in some})
        check_room(cache, texts * 4 * width)


def _speed(encoder: LoadedModel, tasks: Sequence[Task]) -> tuple[int, float]:
    """Characters of a text that the encoder reads, and characters per second."""
    texts = [text for task in tasks for _, some in task.texts() for text in some]
    limit = cost.characters_per_text(encoder, texts, encoder.max_tokens)
    return limit, cost.measure_speed(encoder, texts, limit, LOCAL_SECONDS)


def _mteb(
    encoder: LoadedModel,
    identity: str,
    model: str,
    tasks: "Sequence[AbsTask]",
    out: Path,
    cache: Path | None,
    instructions: Instructions,
    report: Callable[[str], None],
) -> tuple[list[Measurement], list[Failure]]:
    cached = CachedEncoder(encoder, cache, identity=identity)
    name = Path(model).resolve().name if Path(model).is_dir() else model
    wrapped = MtebEncoder(cached, name, identity[:16], instructions, encoder.prompts, min(encoder.max_tokens, 2**20))
    results: list[Measurement] = []
    failures: list[Failure] = []
    try:
        started = time.perf_counter()
        for number, found in enumerate(run_mteb(wrapped, tasks, out / "mteb"), start=1):
            seconds, started = time.perf_counter() - started, time.perf_counter()
            cached.forget()
            if isinstance(found, Failure):
                failures.append(found)
                report(f"{number}/{len(tasks)} {found.task}: not run, {found.reason}")
            else:
                results.append(Measurement(found, interval(found.score, draws(found)), seconds, False))
                report(f"{number}/{len(tasks)} {found.task}: {100 * found.score:.1f}")
    finally:
        cached.close()
    return results, failures
