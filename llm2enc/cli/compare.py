"""`llm2enc compare`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llm2enc.cli.messages import narrate, quiet, say
from llm2enc.cli.options import Json, NoCache, cache, check_choice, label
from llm2enc.errors import require
from llm2enc.terminal import bar, line


def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="Causal models (`pocket`, directories, hub ids), runs, encoders (also `st:HUB_ID`)."),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="A file of pairs, a folder of tasks, or `smoke` (docstrings, the default). Repeatable."
        ),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variants", help="causal-mean, echo-last, bidirectional-mean@6, ...; eight by default. Repeatable."
        ),
    ] = None,
    readings: Annotated[list[str] | None, typer.Option("--readings", hidden=True)] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Report; runs/compare/NAME by default.")] = None,
    layers: Annotated[bool, typer.Option(help="Also score every layer of the mean-pooled variants.")] = True,
    max_text_tokens: Annotated[int, typer.Option(min=2, help="Longest text in tokens, for every variant alike.")] = 256,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Sample rows to about this time; 0: all rows. 10 on a CPU, 0 on a GPU by default."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto (float32 on a CPU, bfloat16 on a GPU), float32, bfloat16 or float16.")
    ] = "auto",
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Say how a model is best read as an encoder: causal, bidirectional or Echo, and how pooled. Writes a report."""
    check_choice("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    require("matplotlib", "jinja2", extra="report")
    quiet()
    narrate()
    if readings:
        say("warning: --readings is called --variants now; the old name goes with release 0.2")
        variants = [*(variants or ()), *readings]
    from llm2enc.comparison import compare as run
    from llm2enc.comparison import save

    folder = out or Path("runs") / "compare" / "-".join(map(label, models))
    with bar("opening the model", 100, sys.stderr.isatty()) as move:
        found = run(
            models, data or ["smoke"], folder, variants=variants, layers=layers, max_text_tokens=max_text_tokens,
            dtype=dtype,  # pyright: ignore[reportArgumentType] - checked above
            minutes=_limit() if minutes is None else minutes or None, cache=cache(no_cache), tell=say,
            advance=lambda name, share: move(to=100 * share, what=name, facts="%"),
        )  # fmt: skip
    save(found, folder)
    if as_json:
        print((folder / "compare.json").read_text(encoding="utf-8"))
    else:
        _print_comparison(found)
        print(f"report: {folder / 'report.html'}")


def _limit() -> float | None:
    """Minutes that a comparison may take where the user does not say."""
    import torch

    return None if torch.cuda.is_available() else 10


def _print_comparison(found) -> None:
    from rich.console import Console

    from llm2enc.comparison import table

    console = Console()
    console.print(table(found))
    for sentence in [*found.advice, *(f"note: {note}" for note in found.notes)]:
        line(console, f"- {sentence}")
