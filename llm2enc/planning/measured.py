"""The speed of a run that has begun, from its metrics.jsonl."""

import json
from pathlib import Path
from statistics import median

from llm2enc.errors import InputError, explained
from llm2enc.recipe import Recipe, Stage, load_recipe

# What changes the work per token; a run that differs in one of these says nothing about the plan.
SAME = ("objective", "trainable", "lora", "precision", "gradient_checkpointing")


def tokens_per_second(folder: Path, index: int, stage: Stage, recipe: Recipe) -> float:
    """Of one process, in stage `index` of a finished or running run; the median of its lines but the first.

    raises  ValueError for another model or stage, or a stage that has not begun
    """
    saved = folder / "recipe.yaml"
    if not saved.is_file():
        raise InputError(f"--measured {folder}: no recipe.yaml there; give the folder of a run, such as runs/pocket")
    former = load_recipe(str(saved))
    other = former.stages[index] if index < len(former.stages) else None
    there, here = ({} if one is None else one.model_dump() for one in (other, stage))
    differing = [name for name in SAME if there.get(name) != here[name]]
    if former.model != recipe.model or differing:
        what = ", ".join(f"stages.{index}.{name}" for name in differing) or "model"
        raise InputError(f"--measured {folder} is a run of another recipe: {what} differs")
    path = folder / f"{index}-{stage.objective}" / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    with explained(f"--measured {folder}: {path}", "give another run", (ValueError, TypeError, KeyError)):
        speeds = [json.loads(line)["tokens_per_second"] for line in lines if line.endswith("}")]
    if not speeds:
        raise InputError(f"--measured {folder}: stage {index} has not logged a step yet ({path})")
    return median(speeds[1:] or speeds)  # the first one warms up
