"""The whole story: a causal language model becomes a text encoder.

recipe -> load, convert, prove -> stage after stage -> export -> verify

runs/pocket/
  recipe.yaml      the resolved recipe
  history.json     scores before training and after every stage
  0-mntp/ ...      one folder per stage (checkpoint.py)
  model/           the encoder, in the form other programs open
"""

import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2enc import checkpoint, distributed, positions
from llm2enc.backbone import load_config, load_tokenizer, text_config
from llm2enc.encoder import Encoder
from llm2enc.evaluation import baselines, evaluate
from llm2enc.export.sentence_transformers import write
from llm2enc.recipe import InputSpec, ModelSpec, Pooling, Recipe, load_recipe
from llm2enc.tokens import surrounding
from llm2enc.trainer import train
from llm2enc.verify import AT_THE_END_OF_A_CONVERSION, Parity, verify

Row = dict[str, Any]  # {"stage": str, "scores": {metric: value}, "seconds": float}, of stages also parent and result


@dataclass(frozen=True)
class Result:
    """What a conversion leaves."""

    folder: Path
    encoder: Encoder
    history: list[Row]
    parity: list[Parity]
    baselines: dict[str, float]
    """TF-IDF's scores on the same docstrings: what an encoder should beat."""


def convert(recipe: Recipe, out: str | Path, resume: bool = False, overwrite: bool = False) -> Result:
    """Turn the recipe's causal LM into a text encoder in `out`.

    resume     go on with an interrupted run of the same recipe; finished stages are loaded, not repeated
    overwrite  delete what is in `out` first
    raises     ValueError for a folder in use or data that can't be used, CannotConvert for a model that stays one-sided,
               Interrupted after a checkpoint on Ctrl-C
    """
    distributed.start()
    out = Path(out)
    _check_folder(recipe, out, resume, overwrite)
    distributed.barrier()  # every process has looked before one writes
    encoder = Encoder.from_recipe(recipe)  # a model that can't be converted is refused before anything is written
    _open_folder(recipe, out, overwrite)
    history = _History(out, recipe)
    for name, causal, pooling in _starting_points(recipe):
        history.measure(name, encoder.variant(causal=causal, pooling=pooling), time.perf_counter())
    for index, stage in enumerate(recipe.stages):
        folder = out / f"{index}-{stage.objective}"
        started = time.perf_counter()
        if checkpoint.is_finished(folder):
            checkpoint.load_finished(folder, encoder.backbone, stage, recipe.seed)
        else:
            train(encoder, stage, folder, recipe.seed, recipe.tracking)
        history.measure(f"after {stage.objective}", encoder, started, key=folder.name)
    parity: list[Parity] = []
    scores: dict[str, float] = {}
    if distributed.is_main():
        scores = baselines(recipe.evaluation)
        write(encoder, out / "model", recipe=recipe, history=history.rows)
        parity = verify(out / "model", AT_THE_END_OF_A_CONVERSION, encoder).rows
    distributed.barrier()
    return Result(out, encoder, history.rows, parity, scores)


def training_free(model: str) -> Recipe:
    """The recipe that only converts, proves and exports `model` (hub id or directory), with mean pooling.

    Special tokens are those the model's own tokenizer puts around a text; inputs are as long as usual, or as the model's
    positions allow.
    """
    tokenizer = load_tokenizer(ModelSpec(name=model))
    limit = positions.limit(text_config(load_config(ModelSpec(name=model))))
    begins, ends = surrounding(tokenizer)
    before = [{"special": "bos", "pool": True}] if begins else []
    after = [{"special": "eos", "pool": True}] if ends else []
    template = [*before, {"slot": "text", "pool": True}, *after]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name).strip("-._") or "model"
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


def _check_folder(recipe: Recipe, out: Path, resume: bool, overwrite: bool) -> None:
    """ValueError if `out` can't be used as asked; nothing is changed."""
    if resume and overwrite:
        raise ValueError("give one of resume and overwrite: one keeps what is there, the other deletes it")
    if not out.exists() or not any(out.iterdir()):
        return
    saved = out / "recipe.yaml"
    if not saved.is_file():
        raise ValueError(f"{out} is not empty and holds no run of llm2enc; choose another folder with -o")
    if not resume and not overwrite:
        raise ValueError(f"{out} holds a run already; add --resume to go on with it, or --overwrite")
    if resume and load_recipe(str(saved)) != recipe:
        raise ValueError(f"{out} was started with another recipe (see {saved}); give that one, or another -o")


def _open_folder(recipe: Recipe, out: Path, overwrite: bool) -> None:
    """Make the checked folder ready."""
    if distributed.is_main():
        if overwrite and out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    distributed.barrier()


class _History:
    """Scores by stage, kept on disk so that a resumed run measures nothing twice."""

    def __init__(self, out: Path, recipe: Recipe):
        self.path = out / "history.json"
        self.specs = recipe.evaluation
        self.rows: list[Row] = json.loads(self.path.read_text()) if self.path.is_file() else []

    def measure(self, name: str, encoder: Encoder, started: float, key: str = "") -> None:
        """Add a row unless it is there already. `key` tells two stages of one objective apart."""
        identity = f"{key or 'start'}/{name}"
        if distributed.is_main() and identity not in [row["key"] for row in self.rows]:
            seconds = time.perf_counter() - started
            scores = evaluate(encoder, self.specs)
            row = {"key": identity, "stage": name, "scores": scores, "seconds": round(seconds, 1)}
            if key:  # the chain of parents: which weights the stage's adapter belongs to, and what it made of them
                finished = json.loads((self.path.parent / key / "finished.json").read_text())
                row |= {"parent": finished["parent"], "result": finished["result"]}
            self.rows.append(row)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.rows, indent=1))
            partial.replace(self.path)
        distributed.barrier()
