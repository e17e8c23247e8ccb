"""The merge stage: weights of earlier stages, of kept checkpoints and of other runs become one, by `llm2enc.merging`.

Every ingredient is written as an encoder's directory for as long as the stage runs, because that is what can be compared
and merged tensor by tensor; what comes out is stored as the weights of the finished stage (training/checkpoint.py).
"""

from pathlib import Path

from llm2enc import distributed
from llm2enc.artifact import MergeRecord
from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.export import Source
from llm2enc.merging import check_alike, merge, wrong_arguments
from llm2enc.recipe import Ingredient, MergeStage, Recipe
from llm2enc.storage import temp_directory
from llm2enc.training import checkpoint, load_kept, origin


def stage_folder(recipe: Recipe, index: int, out: Path) -> Path:
    """Where stage `index` of a run in `out` leaves what it did."""
    return out / f"{index}-{recipe.stages[index].objective}"


def check_merges(recipe: Recipe, out: Path, start: Encoder) -> None:
    """InputError for a merge stage that cannot run, as far as can be told before the first stage.

    start  the untrained encoder, which the encoders of other runs are compared with
    """
    for index, stage in recipe.merges.items():
        if checkpoint.is_finished(stage_folder(recipe, index, out)):
            continue
        faults = wrong_arguments(
            [Path(f"{number}") for number in range(len(stage.of))], out, stage.method, _weights(stage),
            recipe.model.source if stage.base_weight else None, stage.base_weight,
        )  # fmt: skip
        if faults:
            raise InputError(f"stage {index} (merge): {'; '.join(faults)}")
        others = [Source.of(Path(one.encoder)).folder for one in stage.of if one.encoder is not None]
        if others and distributed.is_main():
            with temp_directory(out.absolute() / "start") as folder:
                start.save(folder / "model")
                check_alike([folder / "model", *others])
    distributed.barrier()


def run_merge(recipe: Recipe, index: int, out: Path, encoder: Encoder) -> None:
    """Give the encoder, which has the weights of the stage before, the merged ones, and finish the stage's folder.

    The main process merges, the others wait and read the result. Raises InputError for encoders that do not fit.
    """
    stage, place = recipe.merges[index], stage_folder(recipe, index, out)
    parent, facts = encoder.weights_fingerprint(), {"objective": stage.objective, "begun": origin(encoder, stage)}
    if distributed.is_main():
        place.mkdir(exist_ok=True)
        with temp_directory(place / "ingredients") as folder:
            record = _merge(recipe, index, out, encoder, folder)
            merged = Encoder.load(folder / "merged")
        facts["merge"] = record.model_dump(mode="json")
        encoder.backbone.decoder.load_state_dict(merged.backbone.decoder.state_dict())
        if encoder.head is not None and merged.head is not None:
            encoder.head.load_state_dict(merged.head.state_dict())
            encoder.head.requires_grad_(True)
        encoder.backbone.decoder.requires_grad_(True)  # what `finish` stores
    checkpoint.finish(place, encoder, parent, facts)
    if not distributed.is_main():
        checkpoint.load_finished(place, encoder, stage, recipe.seed)


def _merge(recipe: Recipe, index: int, out: Path, encoder: Encoder, folder: Path) -> MergeRecord:
    """How the encoder in `folder`/merged was made of the stage's ingredients."""
    stage = recipe.merges[index]
    places = []
    for number, one in enumerate(stage.of):
        if one.encoder is not None:
            places.append(Source.of(Path(one.encoder)).folder)
            continue
        places.append(folder / str(number))
        is_here = one.stage == index - 1 and one.step is None
        (encoder if is_here else _rebuilt(recipe, one, out)).save(places[-1])
    base = None
    if stage.base_weight:
        base = folder / "base"
        Encoder.from_recipe(recipe).save(base)
    record = merge(
        places, folder / "merged", method=stage.method, weights=_weights(stage), base=base,
        base_weight=stage.base_weight,
    )  # fmt: skip
    names = [one.encoder or _name(recipe, one, out) for one in stage.of]
    named = [parent.model_copy(update={"name": name}) for parent, name in zip(record.parents, names, strict=True)]
    return record.model_copy(update={"parents": named})


def _rebuilt(recipe: Recipe, one: Ingredient, out: Path) -> Encoder:
    """The encoder after an earlier stage, or after one of the steps that it keeps."""
    assert one.stage is not None
    encoder = Encoder.from_recipe(recipe)
    for number, stage in enumerate(recipe.stages[: one.stage + 1]):
        place = stage_folder(recipe, number, out)
        if number == one.stage and one.step is not None:
            load_kept(place, one.step, encoder, recipe.training[number], recipe.seed)
        else:
            keep = number < one.stage and recipe.adapter_goes_on(number)
            checkpoint.load_finished(place, encoder, stage, recipe.seed, keep)
    return encoder


def _name(recipe: Recipe, one: Ingredient, out: Path) -> str:
    assert one.stage is not None
    step = "" if one.step is None else f", step {one.step}"
    return f"stage {stage_folder(recipe, one.stage, out).name}{step}"


def _weights(stage: MergeStage) -> list[float]:
    return [1.0] * len(stage.of) if stage.weights is None else [*stage.weights]
