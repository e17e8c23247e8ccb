"""`llm2enc convert`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from llm2enc.cli.messages import narrate, quiet, say
from llm2enc.cli.options import Data, Json, Model, Private, Push, Set, check_push, send
from llm2enc.errors import InputError, Interrupted
from llm2enc.terminal import Column, line, table


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
            raise InputError(f"{name} is taken for a model to convert as it is: --model and --data go with a recipe")
        return load_recipe(recipe_of(name).model_dump(mode="json"), overrides)
    return load_recipe(name, [*overrides, *(["stages=[]"] if training_free else [])], model=model, data=data)


def _print_result(result) -> None:
    from rich.console import Console

    from llm2enc.conversion import gains

    console = Console()
    metrics = list(result.history[-1]["scores"])
    rows = [
        (row["stage"], *(f"{row['scores'][m]:.3f}" for m in metrics), f"{row['seconds']:.0f}") for row in result.history
    ]
    compared = []
    if result.baselines:
        baselines = (f"{result.baselines[m]:.3f}" if m in result.baselines else None for m in metrics)
        compared.append(("TF-IDF", *baselines, None))
    for row in gains(result.history):
        compared.append((f"gain {row['stage']}", *(f"{row['gains'].get(m, 0):+.3f}" for m in metrics), None))
    # data/metric: in one line, three are too wide for a terminal
    headings = [heading.replace("/", "/\n") for heading in (*metrics, "seconds")]
    styles = [*[""] * len(rows), *["dim"] * len(compared)]
    columns = [Column("stage", wrap=False), *headings]
    console.print(table(columns, [*rows, *compared], "scores on held-out data", styles=styles))
    for row in result.history:
        if best := row.get("best"):
            score = f"{best['score_name']} {best['score']:.3f}"
            line(console, f"{row['stage']}: the weights of step {best['step']} of {best['last']}, the best by {score}")
    for parity in result.parity:
        verdict = "not compared" if parity.cosine is None else f"cosine {parity.cosine:.6f}"
        said = "; ".join(part for part in (parity.note, parity.remedy) if part)
        line(console, f"{parity.engine}: {verdict} {said}".rstrip())
    line(console, f"encoder: {result.folder / 'model'}")
