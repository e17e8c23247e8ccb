"""`llm2enc evaluate`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2enc.cli.messages import narrate, quiet, say
from llm2enc.cli.options import Json, NoCache, cache, check_choice, label
from llm2enc.terminal import Column, line, note, table

if TYPE_CHECKING:
    from llm2enc.evaluation import Failure, Measurement

# What tutorials name besides the main metric.
_MORE = {"retrieval": ("recall@10", "accuracy@10"), "clustering": ("purity",), "bitext": ("accuracy",)}


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
    plan: Annotated[bool, typer.Option("--plan", help="Only print the cost estimate of each evaluation tier.")] = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Measure an encoder on the eight MTEB task types, on local data or by mteb. Goes on where it was interrupted."""
    check_choice("--instructions", instructions, ("own", "task", "none"))
    quiet()
    narrate()
    from llm2enc.evaluation import benchmark

    sources = tasks or ["smoke"]
    if plan:
        rows = benchmark.plan(model, sources)
        print(json.dumps(rows)) if as_json else _print_plan(rows)
        return
    folder = out or Path("runs") / "evaluate" / label(model)
    results, failures = benchmark.run(
        model, sources, folder, cache(no_cache),
        instructions,  # pyright: ignore[reportArgumentType] - checked above
        by_mteb, report=say, show_progress=sys.stderr.isatty(),
    )  # fmt: skip
    if as_json:
        print((folder / "results.json").read_text(encoding="utf-8") if results else "{}")
    else:
        _print_results(results, failures)
    if results:
        say(f"results: {folder}")
    if failures:
        raise typer.Exit(1)


def _print_results(results: "Sequence[Measurement]", failures: "Sequence[Failure]") -> None:
    """A line per task, grouped by type, then the means."""
    from rich.console import Console

    from llm2enc.evaluation import suite

    rows = []
    for measurement in sorted(results, key=lambda measurement: measurement.result.type):
        result = measurement.result
        seconds = "stored" if measurement.reused else f"{measurement.seconds:.1f}"
        more = [name for name in _MORE.get(result.type, ()) if name in result.metrics]
        also = ", ".join(f"{name} {100 * result.metrics[name]:.1f}" for name in more)
        score = f"{100 * result.score:.1f}"
        rows.append((result.task, result.type, result.metric, score, suite.points(measurement), seconds, also))
    means = suite.means([measurement.result for measurement in results]) if results else {}
    rows += [(f"mean {name}", None, None, f"{100 * value:.1f}", None, None, None) for name, value in means.items()]
    numbers = [Column(name, "right") for name in ("score", "95 % interval", "seconds")]
    styles = [*[""] * len(results), *["bold"] * len(means)]
    console = Console()
    console.print(table(["task", "type", "metric", *numbers, "also"], rows, styles=styles))
    for failure in failures:
        line(console, (f"not run: {failure.task}: {failure.reason}", "red"))


def _print_plan(rows: Sequence[dict[str, Any]]) -> None:
    """The rows of `benchmark.plan`."""
    from rich.console import Console

    from llm2enc.evaluation import cost

    numbers = [Column(name, "right") for name in ("tasks", "texts", "characters", "time to encode")]
    cells = [
        (row["name"], row["what"], str(row["tasks"]), *(_count(row[name]) for name in ("texts", "characters")),
         cost.duration(row["seconds"]))
        for row in rows
    ]  # fmt: skip
    console = Console()
    console.print(table(["tier", "what", *numbers], cells, "evaluation tiers, estimated"))
    for row in rows:
        note(console, row["name"], row["note"])


def _count(number: int | None) -> str:
    if number is None:
        return "?"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return str(number)
