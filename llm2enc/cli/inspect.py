"""`llm2enc inspect`."""

import json
from typing import Annotated

import typer

from llm2enc.cli.messages import quiet
from llm2enc.cli.options import Json
from llm2enc.terminal import table


def inspect(
    model: Annotated[
        str, typer.Argument(help="Hub id, directory, GGUF file, package with a model, config.json or `pocket`.")
    ],
    layers: Annotated[int | None, typer.Option(min=1, help="Keep the first N layers, as `model.layers` does.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether a model can be made bidirectional. It goes layer by layer and loads no weights."""
    quiet()
    from llm2enc.model import inspect as look

    found = look(model, layers=layers)
    if as_json:
        print(json.dumps(found.to_json()))
    else:
        _print_inspection(found.to_json())
    if found.verdict == "refused":
        raise typer.Exit(3)


def _print_inspection(found: dict) -> None:
    from rich.console import Console

    console = Console()
    rows = [(key, str(value)) for key, value in found.items() if key != "layers"]
    console.print(table(("", ""), rows, header=False))
    layers = [(str(layer["index"]), str(layer["type"]), str(layer["attention"])) for layer in found["layers"]]
    console.print(table(("layer", "type", "attention"), layers))
