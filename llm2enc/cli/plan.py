"""`llm2enc plan`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2enc.cli.messages import quiet
from llm2enc.cli.options import Data, Json, Model, Set
from llm2enc.errors import InputError
from llm2enc.terminal import line, table

if TYPE_CHECKING:
    from llm2enc.planning import Plan


def plan(
    recipe: Annotated[str, typer.Argument(help="Shipped recipe (see `llm2enc recipes`) or .yaml file.")],
    gpus: Annotated[
        str | None,
        typer.Option(help="8xh100-80gb, 2x4090-24gb, 2x8xh100-80gb (machines), cpu; by default what is here."),
    ] = None,
    model: Model = None,
    data: Data = None,
    overrides: Set = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1.0, help="Share of the devices' peak; 0.4 if nothing is said.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="A run of this recipe on one such device, whose speed counts instead of --mfu.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a recipe takes: memory by part, time, disk, and whether it fits. Loads no weights."""
    from llm2enc.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [], model=model, data=data)
    if mfu is not None and measured is not None:
        raise InputError("give one of --mfu and --measured: both say how fast the devices are")
    quiet()
    from llm2enc.planning import SHARE, here, parse
    from llm2enc.planning import plan as make

    found = make(loaded, here() if gpus is None else parse(gpus), SHARE if mfu is None else mfu, measured)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        _print_plan(found, measured is not None)
    if not found.fits:
        raise typer.Exit(1)


def _print_plan(plan: "Plan", measured: bool) -> None:
    from rich.console import Console

    from llm2enc.planning import report

    console = Console()
    line(console, report.headline(plan))
    if plan.stages:
        columns = ("", *(stage.name for stage in plan.stages))
        console.print(table(columns, report.rows(plan.stages, measured), "each process"))
    for text in report.lines(plan):
        line(console, text)
