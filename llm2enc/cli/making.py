"""`llm2enc convert`, `llm2enc inspect` and `llm2enc recipes`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from llm2enc.cli.shared import Data, Json, Model, Private, Push, Set, check_push, narrate, quiet, say, send


def convert(
    recipe: Annotated[
        str, typer.Argument(help="Shipped recipe (see `llm2enc recipes`), .yaml file, or a model with --training-free.")
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run; runs/NAME by default.")] = None,
    model: Model = None,
    data: Data = None,
    overrides: Set = None,
    training_free: Annotated[bool, typer.Option(help="Convert, prove and export only.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Delete the run in the folder first.")] = False,
    push: Push = None,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: convert, prove, train, export, verify."""
    loaded = _recipe(recipe, overrides or [], training_free, model, data)
    if push:
        check_push(push)
    folder = out or Path("runs") / loaded.name
    from llm2enc.storage import check_room

    check_room(folder)
    quiet()
    narrate()
    from llm2enc import distributed
    from llm2enc.conversion import convert as run
    from llm2enc.training import Interrupted

    try:
        result = run(loaded, folder, resume=resume, overwrite=overwrite)
    except Interrupted as stopped:
        given = [("--model", model), ("--data", data), *(("--set", change) for change in overrides or [])]
        changes = [part for option, value in given if value is not None for part in (option, value)]
        sending = [*(["--push", push] if push else []), *(["--private"] if private else [])]
        again = shlex.join(["llm2enc", "convert", recipe, "-o", str(folder), *changes, *sending, "--resume"])
        if distributed.is_main():
            say(f"Interrupted. {stopped}. Go on with:\n  {again}")
        raise typer.Exit(130) from None
    if not distributed.is_main():
        return
    if result.already:
        say(f"The run in {folder} was finished already: it was verified again, and nothing in it has changed.")
    if as_json:
        parity = [
            {"engine": p.engine, "cosine": p.cosine, "verdict": p.verdict, "note": p.note, "remedy": p.remedy}
            for p in result.parity
        ]
        answer = {"folder": str(result.folder), "history": result.history, "baselines": result.baselines}
        print(json.dumps({**answer, "parity": parity}))
    else:
        _print_result(result)
    if not all(parity.agrees for parity in result.parity):
        raise typer.Exit(1)
    if push:
        send(result.folder / "model", push, private)


def _recipe(name: str, overrides: list[str], training_free: bool, model: str | None, data: str | None):
    """The recipe asked for; without --training-free, before torch is imported."""
    from llm2enc.recipe import load_recipe, recipe_names

    if training_free and name not in recipe_names() and Path(name).suffix not in {".yaml", ".yml"}:
        from llm2enc.conversion import training_free as recipe_of

        if model is not None or data is not None:
            raise ValueError(f"{name} is taken for a model to convert as it is: --model and --data go with a recipe")
        return load_recipe(recipe_of(name).model_dump(mode="json"), overrides)
    return load_recipe(name, [*overrides, *(["stages=[]"] if training_free else [])], model=model, data=data)


def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, directory, config.json or `pocket`.")],
    as_json: Json = False,
) -> None:
    """Say whether a model can be made bidirectional. It goes layer by layer and loads no weights."""
    quiet()
    from llm2enc.model import inspect as look

    found = look(model)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        _print_inspection(found.to_json())
    if found.verdict == "refused":
        raise typer.Exit(3)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    model: Model = None,
    data: Data = None,
    overrides: Set = None,
) -> None:
    """List the shipped recipes, or show one."""
    from rich.console import Console
    from rich.table import Table

    from llm2enc.recipe import load_recipe, recipe_names

    if name is not None:
        print(load_recipe(name, overrides or [], model=model, data=data).to_yaml(), end="")
        return
    if overrides or model is not None or data is not None:
        raise ValueError(
            "--model, --data and --set change one recipe; say which: llm2enc recipes NAME --set PATH=VALUE"
        )
    table = Table("recipe", "model", "stages", "what it does")
    for recipe in map(load_recipe, recipe_names()):
        stages = " -> ".join(stage.objective for stage in recipe.stages)
        table.add_row(recipe.name, recipe.model.name, stages, recipe.description)
    Console().print(table)


def _print_result(result) -> None:
    from rich.console import Console
    from rich.table import Table

    from llm2enc.conversion import gains

    console = Console()
    metrics = list(result.history[-1]["scores"])
    table = Table(title="scores on held-out data")
    table.add_column("stage", no_wrap=True)
    for heading in (*metrics, "seconds"):
        table.add_column(heading.replace("/", "/\n"))  # data/metric: in one line, three are too wide for a terminal
    for row in result.history:
        table.add_row(row["stage"], *(f"{row['scores'][m]:.3f}" for m in metrics), f"{row['seconds']:.0f}")
    if result.baselines:
        table.add_row(
            "TF-IDF", *(f"{result.baselines[m]:.3f}" if m in result.baselines else "" for m in metrics), "", style="dim"
        )
    for row in gains(result.history):
        table.add_row(f"gain {row['stage']}", *(f"{row['gains'].get(m, 0):+.3f}" for m in metrics), "", style="dim")
    console.print(table)
    for parity in result.parity:
        verdict = "not compared" if parity.cosine is None else f"cosine {parity.cosine:.6f}"
        said = "; ".join(part for part in (parity.note, parity.remedy) if part)
        console.print(
            f"{parity.engine}: {verdict} {said}".rstrip(), markup=False
        )  # remedies name extras, `llm2enc[gguf]`
    console.print(f"encoder: {result.folder / 'model'}")


def _print_inspection(found: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(show_header=False)
    for key, value in found.items():
        if key != "layers":
            table.add_row(key, str(value))
    console.print(table)
    layers = Table("layer", "type", "attention")
    for layer in found["layers"]:
        layers.add_row(str(layer["index"]), str(layer["type"]), str(layer["attention"]))
    console.print(layers)
