"""`llm2enc recipes`."""

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from llm2enc.cli.options import Data, Model, Set
from llm2enc.errors import InputError
from llm2enc.terminal import Column, table

if TYPE_CHECKING:
    from llm2enc.recipe import Recipe


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
    shown = sorted(map(load_recipe, recipe_names()), key=lambda recipe: (recipe.family.casefold(), recipe.name))
    rows, styles = [], []
    for family, members in groupby(shown, key=lambda recipe: recipe.family):
        rows.append((family, None, None))
        rows += [(f"  {recipe.name}", _published(recipe), recipe.description) for recipe in members]
        styles += ["bold", *[""] * (len(rows) - len(styles) - 1)]
    columns = [Column("recipe", wrap=False), Column("published", wrap=False), "what it does"]
    Console().print(table(columns, rows, styles=styles))


def _published(recipe: "Recipe") -> str | None:
    """The first of the published scores; the recipe has the others, and their sources."""
    return next((f"{benchmark} {score:.2f}" for benchmark, score in recipe.published.items()), None)
