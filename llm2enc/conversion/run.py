"""The whole story: a causal language model becomes a text encoder.

recipe -> load, convert, prove -> stage after stage -> export -> verify

runs/pocket/
  recipe.yaml      the resolved recipe
  history.json     scores before training and after every stage
  0-mntp/ ...      one folder per stage (checkpoint.py)
  model/           the encoder, in the format other programs open
  generator/       the same weights as a causal language model, if a stage trained on dialogues
"""

import json
import logging
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm2enc import distributed
from llm2enc.artifact import METADATA_FILE, HistoryRow, read_metadata, write_generator
from llm2enc.conversion import run_directory
from llm2enc.conversion.merge_stage import check_merges, run_merge, stage_folder
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError, explained
from llm2enc.evaluation import baselines, evaluate, score_names
from llm2enc.model import choices, chosen, copy_notices, limits, load_config, load_tokenizer, text_config
from llm2enc.recipe import InputSpec, ModelSpec, Pooling, Recipe, load_recipe
from llm2enc.storage import add_path_to_oserror, recover, remove_stale, replace_text
from llm2enc.text import for_tokenizer, plain_marks, surrounding
from llm2enc.training import check_stages, checkpoint, origin, settled, train
from llm2enc.verification import AT_THE_END_OF_A_CONVERSION, Parity, verify

_log = logging.getLogger(__name__)

Row = dict[
    str, Any
]  # {"stage": str, "scores": {metric: value}, "seconds": float}, of stages also parent and result, else weights


@dataclass(frozen=True)
class Result:
    """What a conversion leaves."""

    folder: Path
    encoder: Encoder
    history: list[Row]
    parity: list[Parity]
    baselines: dict[str, float]
    """TF-IDF's scores on the same docstrings: what an encoder should beat."""
    already: bool = False
    """Whether the run was finished before: everything but the verification was there."""


def convert(recipe: Recipe, out: str | Path, resume: bool = False, overwrite: bool = False) -> Result:
    """Turn the recipe's causal LM into a text encoder in `out`.

    resume     go on with an interrupted run of the same recipe; finished stages are loaded, not repeated
    overwrite  delete what is in `out` first
    raises     ValueError for a folder in use or data that cannot be used, CannotConvert for a model that stays causal,
               Interrupted after a checkpoint on Ctrl-C or SIGTERM in a stage, KeyboardInterrupt elsewhere, OSError for a
               disk that is full or closed; however it ends, `resume` goes on to the same result, bit for bit
    """
    distributed.start()
    out = Path(out)
    with (
        distributed.abort_with_peers("Finished stages and the last checkpoint are kept: go on with --resume"),
        add_path_to_oserror(out),
    ):
        _check_score_names(recipe)
        recipe = _for_tokenizer(_on_this_machine(recipe, out, resume))
        with run_directory.opened(recipe, out, resume, overwrite):
            # A model that cannot be converted is refused before anything is written.
            encoder = Encoder.from_recipe(recipe)
            check_stages(encoder, recipe.training.values())
            check_merges(recipe, out, encoder)
            run_directory.begin(recipe, out, overwrite)
            try:
                return _run(recipe, out, encoder)
            finally:
                if distributed.is_main():
                    _tidy(recipe, out)


def _on_this_machine(recipe: Recipe, out: Path, resume: bool) -> Recipe:
    """The recipe with what it leaves to the machine: the one source of its model, and the precision of its stages. A
    resumed run keeps what it began with."""
    settings = None
    if distributed.is_main():
        path = out / run_directory.RECIPE
        begun = load_recipe(str(path)) if resume and path.is_file() else None
        model = begun.model if begun and begun.model in choices(recipe.model) else chosen(recipe.model)  # pyright: ignore[reportArgumentType]
        former = [stage.precision for stage in begun.stages] if begun else []
        stages = settled(recipe.stages, torch.device("cuda" if torch.cuda.is_available() else "cpu"), former)
        settings = {"model": model, "stages": stages}
    return recipe.model_copy(update=distributed.broadcast(settings))


def _for_tokenizer(recipe: Recipe) -> Recipe:
    """The recipe with the templates that its model's tokenizer reads; what that reads otherwise than it looks is said."""
    tokenizer = load_tokenizer(recipe.model)
    for mark, places in plain_marks(recipe.input, tokenizer).items():
        _log.info("%s in %s is no token of %s: it is read as plain text", mark, ", ".join(places), recipe.model.source)
    return recipe.model_copy(update={"input": for_tokenizer(recipe.input, tokenizer)})


def _check_score_names(recipe: Recipe) -> None:
    """InputError for a stage that keeps the best weights by a score that the recipe's evaluation does not give."""
    asked = {f"stages.{n}.keep_best": stage.keep_best for n, stage in recipe.training.items() if stage.keep_best}
    known = score_names(recipe.evaluation) if asked else []
    unknown = [f"{path} is {name!r}" for path, name in asked.items() if name not in known]
    if unknown:
        raise InputError(f"{', '.join(unknown)}; the recipe's evaluation gives these scores: {', '.join(known)}")


def _run(recipe: Recipe, out: Path, encoder: Encoder) -> Result:
    """Everything that is not in `out` yet."""
    if distributed.is_main():
        recover(out / "model")
        recover(out / "generator")
    history = _History(out, recipe, encoder)
    for name, causal, pooling in _starting_points(recipe):
        history.measure(name, encoder.variant(causal=causal, pooling=pooling), time.perf_counter())
    for index, stage in enumerate(recipe.stages):
        place = stage_folder(recipe, index, out)
        started = time.perf_counter()
        keep = recipe.adapter_goes_on(index)
        if checkpoint.is_finished(place):
            checkpoint.load_finished(place, encoder, stage, recipe.seed, keep, origin(encoder, stage))
        elif index in recipe.merges:
            run_merge(recipe, index, out, encoder)
        else:
            measure = partial(evaluate, specs=recipe.evaluation)
            train(encoder, recipe.training[index], place, recipe.seed, recipe.tracking, keep, measure)
        history.measure(f"after {stage.objective}", encoder, started, key=place.name)
    encoder.head = encoder.kept_head  # what only trains is thrown away here
    parity: list[Parity] = []
    scores: dict[str, float] = {}
    already = False
    if distributed.is_main():
        scores = baselines(recipe.evaluation)
        already = _is_exported(out / "model", encoder, history.rows)
        if not already:  # otherwise its other formats would be lost
            encoder.save(out / "model", recipe=recipe, history=history.rows)
        copy_notices(recipe.model, out / "model")
        form = recipe.dialogue_format
        if form is not None:
            if not (already and (out / "generator").is_dir()):
                write_generator(encoder.backbone, encoder.input_format.tokenizer, out / "generator", form)
            copy_notices(recipe.model, out / "generator")
        parity = verify(out / "model", AT_THE_END_OF_A_CONVERSION, encoder).rows
    distributed.barrier()
    return Result(out, encoder, history.rows, parity, scores, already)


def _is_exported(place: Path, encoder: Encoder, history: list[Row]) -> bool:
    """Whether this encoder stands in `place`, whole, with this history."""
    if not (place / METADATA_FILE).is_file():
        return False
    metadata = read_metadata(place)
    same = metadata.history == [HistoryRow(**row) for row in history]
    return same and metadata.fingerprint == encoder.weights_fingerprint()


def _tidy(recipe: Recipe, out: Path) -> None:
    """Remove what a killed process, or one that found the disk full, left half-written."""
    remove_stale(out / "model")
    remove_stale(out / "generator")
    remove_stale(out / "history.json")
    for index in range(len(recipe.stages)):
        checkpoint.tidy(stage_folder(recipe, index, out))


def training_free(model: str) -> Recipe:
    """The recipe that only converts, proves and exports `model` (hub id or directory), with mean pooling.

    Special tokens are those the model's own tokenizer puts around a text; inputs are as long as usual, or as the model's
    positions allow.
    """
    tokenizer = load_tokenizer(ModelSpec.named(model))
    limit = limits.longest_input(text_config(load_config(ModelSpec.named(model))))
    begins, ends = surrounding(tokenizer)
    before = [{"special": "bos", "pool": True}] if begins else []
    after = [{"special": "eos", "pool": True}] if ends else []
    template = [*before, {"slot": "text", "pool": True}, *after]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name)[:100].strip("-._") or "model"
    usual = InputSpec.model_fields["max_tokens"].default
    input = {"query": template, "document": template, "max_tokens": min(usual, limit.tokens) if limit else usual}
    return load_recipe({"name": name, "model": {"name": model}, "input": input, "pooling": "mean"})


def gains(history: list[Row]) -> list[Row]:
    """For each stage, what it added to every score of the row before it."""
    trained = [place for place, row in enumerate(history) if row["stage"].startswith("after ")]
    return [
        {
            "stage": history[place]["stage"],
            "gains": {
                metric: score - history[place - 1]["scores"][metric]
                for metric, score in history[place]["scores"].items()
                if metric in history[place - 1]["scores"]
            },
        }
        for place in trained
        if place
    ]


def _starting_points(recipe: Recipe) -> list[tuple[str, bool, Pooling]]:
    """What the untrained model scores, causal and as converted: the last row is where training starts."""
    own = recipe.model.attention == "causal"
    points: list[tuple[str, bool, Pooling]] = [("causal-last", True, "last"), ("causal-mean", True, "mean")]
    start = (f"{recipe.model.attention}-{recipe.pooling}", own, recipe.pooling)
    return [*(point for point in points if point[1:] != start[1:]), start]


class _History:
    """Scores by stage, kept on disk so that a resumed run measures nothing twice."""

    def __init__(self, out: Path, recipe: Recipe, start: Encoder):
        """
        start   the untrained encoder
        raises  InputError if other weights were measured when the run was begun
        """
        self.path = out / "history.json"
        self.specs = recipe.evaluation
        self.weights = start.weights_fingerprint()
        with explained(str(self.path), "delete it, to measure again"):
            self.rows: list[Row] = json.loads(self.path.read_text()) if self.path.is_file() else []
        if any(row.get("weights", self.weights) != self.weights for row in self.rows):
            raise InputError(
                f"{out} was begun with other weights of {recipe.model.name}: to go on would mix two runs. Put back "
                "the model that was there, start again with --overwrite, or give another folder with -o"
            )

    def measure(self, name: str, encoder: Encoder, started: float, key: str = "") -> None:
        """Add a row unless it is there already. `key` tells two stages of one objective apart."""
        identity = f"{key or 'start'}/{name}"
        if distributed.is_main() and identity not in [row["key"] for row in self.rows]:
            seconds = time.perf_counter() - started
            scores = evaluate(encoder, self.specs)
            row = {"key": identity, "stage": name, "scores": scores, "seconds": round(seconds, 1)}
            if not key:
                row["weights"] = self.weights
            else:  # the chain of parents: which weights the stage's adapter belongs to, and what it made of them
                finished = json.loads((self.path.parent / key / "finished.json").read_text())
                kept = ("parent", "result", "adapter", "measurements", "best", "merge")
                row |= {name: finished[name] for name in kept if name in finished}
            self.rows.append(row)
            replace_text(self.path, json.dumps(self.rows, indent=1))
        distributed.barrier()
