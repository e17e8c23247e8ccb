"""`llm2enc data`."""

import json
import sys
from typing import Annotated

import typer

from llm2enc.cli.shared import Json, quiet, status
from llm2enc.errors import InputError


def data(
    path: Annotated[
        str | None,
        typer.Argument(help="File, glob, folder or hub id of training data; all data of --recipe by default."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose template, tokenizer, limits and evaluation count.")
    ] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", help="Folder of evaluation tasks to compare with. May be repeated.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Without a recipe: whose tokenizer counts. Weights are not loaded.")
    ] = "pocket",
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show as the model sees them.")] = 2,
    limit: Annotated[
        int, typer.Option(min=1, help="Rows of a source beyond which a random sample is read.")
    ] = 2_000_000,
    as_json: Json = False,
) -> None:
    """Look at training data as the model will see it, and say what is wrong with it. Exits with 1 if there is an error."""
    if path is None and recipe is None:
        raise InputError("nothing to look at: give a path of data, or --recipe")
    from llm2enc.recipe import load_recipe

    loaded = load_recipe(recipe) if recipe else None
    quiet()
    from llm2enc.audit import examine, print_report

    with status(sys.stderr.isatty(), "opening the data", "rows") as advance:
        report = examine(path, loaded, evaluation or (), model, rows, limit, advance)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        from rich.console import Console

        print_report(report, Console())
    if report.unreadable:
        raise typer.Exit(2)
    if report.has_errors:
        raise typer.Exit(1)
