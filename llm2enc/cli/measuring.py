"""`llm2enc evaluate` and `llm2enc compare`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm2enc.cli.shared import Json, NoCache, cache, check_choice, label, quiet, say, status


def evaluate(
    model: Annotated[str, typer.Argument(help="Directory of an encoder, of a run, or a sentence-transformers hub id.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            help="`smoke` (docstrings, the default), a folder of tasks, a BEIR data set, a file of pairs, `nanobeir`, "
            "`mteb`, or any task or benchmark of mteb. May be repeated.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Results; runs/evaluate/NAME by default.")] = None,
    instructions: Annotated[
        str, typer.Option(help="own: the encoder's `query` prompt for queries; task: the task's instruction; none.")
    ] = "own",
    by_mteb: Annotated[
        bool, typer.Option("--by-mteb", help="Local tasks too are scored by mteb, into its own result files.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say how long each rung of the ladder would take.")] = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Measure an encoder on the eight MTEB task types, on local data or by mteb. Goes on where it was interrupted."""
    check_choice("--instructions", instructions, ("own", "task", "none"))
    quiet()
    from llm2enc.evaluation import command
    from llm2enc.evaluation import cost as ladder

    sources = tasks or ["smoke"]
    if plan:
        rows = command.plan(model, sources)
        print(json.dumps(rows)) if as_json else ladder.print_estimates(rows)
        return
    folder = out or Path("runs") / "evaluate" / label(model)
    results, failures = command.run(
        model, sources, folder, cache(no_cache), instructions, by_mteb, report=say, show_progress=sys.stderr.isatty()
    )
    if as_json:
        print((folder / "results.json").read_text(encoding="utf-8") if results else "{}")
    else:
        command.print_results(results, failures)
    if results:
        say(f"results: {folder}")
    if failures:
        raise typer.Exit(1)


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
    readings: Annotated[
        list[str] | None,
        typer.Option(
            "--readings", help="causal-mean, echo-last, bidirectional-mean@6, ...; eight by default. Repeatable."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Report; runs/compare/NAME by default.")] = None,
    layers: Annotated[bool, typer.Option(help="Also score every layer of the mean-pooled readings.")] = True,
    max_text_tokens: Annotated[int, typer.Option(min=2, help="Longest text in tokens, for every reading alike.")] = 256,
    dtype: Annotated[
        str, typer.Option(help="auto (float32 on a CPU, bfloat16 on a GPU), float32, bfloat16 or float16.")
    ] = "auto",
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Say how a model is best read as an encoder: causal, bidirectional or Echo, and how pooled. Writes a report."""
    check_choice("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    quiet()
    from llm2enc.comparison import compare as run
    from llm2enc.comparison import save

    folder = out or Path("runs") / "compare" / "-".join(map(label, models))
    with status(sys.stderr.isatty()) as advance:
        found = run(
            models, data or ["smoke"], folder, readings=readings, layers=layers, max_text_tokens=max_text_tokens,
            dtype=dtype, cache=cache(no_cache), advance=advance,
        )  # fmt: skip
    save(found, folder)
    if as_json:
        print((folder / "compare.json").read_text(encoding="utf-8"))
    else:
        _print_comparison(found)
        print(f"report: {folder / 'report.html'}")


def _print_comparison(found) -> None:
    from rich.console import Console

    from llm2enc.comparison import table

    console = Console()
    console.print(table(found))
    for sentence in [*found.advice, *(f"note: {note}" for note in found.notes)]:
        console.print(f"- {sentence}", markup=False, highlight=False)
