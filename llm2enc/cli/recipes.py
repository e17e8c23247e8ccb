"""`llm2enc recipes`."""

from typing import Annotated

import typer

from llm2enc.cli.options import Data, Model, Set
from llm2enc.errors import InputError
from llm2enc.terminal import table


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    model: Model = None,
    data: Data = None,
    overrides: Set = None,
) -> None:
    """List the shipped recipes, or show one."""
    from rich.console import Console

    from llm2enc.recipe import load_recipe, recipe_names

    if name is not None:
        print(load_recipe(name, overrides or [], model=model, data=data).to_yaml(), end="")
        return
    if overrides or model is not None or data is not None:
        raise InputError(
            "--model, --data and --set change one recipe; say which: llm2enc recipes NAME --set PATH=VALUE"
        )
    rows = [
        (recipe.name, recipe.model.source, " -> ".join(stage.objective for stage in recipe.stages), recipe.description)
        for recipe in map(load_recipe, recipe_names())
    ]
    Console().print(table(("recipe", "model", "stages", "what it does"), rows))
