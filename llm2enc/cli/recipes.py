"""`llm2enc recipes`."""

from typing import Annotated

import typer

from llm2enc.cli.options import Set
from llm2enc.errors import InputError
from llm2enc.terminal import Column, table


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    overrides: Set = None,
) -> None:
    """List the shipped recipes, or show one."""
    from rich.console import Console

    from llm2enc.recipe import load_recipe, recipe_names

    if name is not None:
        print(load_recipe(name, overrides or []).to_yaml(), end="")
        return
    if overrides:
        raise InputError("--set changes one recipe; say which: llm2enc recipes NAME --set PATH=VALUE")
    rows = [
        (recipe.name, recipe.model.name, " -> ".join(stage.objective for stage in recipe.stages), recipe.description)
        for recipe in map(load_recipe, recipe_names())
    ]
    Console().print(table(("recipe", Column("model", fold=True), "stages", "what it does"), rows))
