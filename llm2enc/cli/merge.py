"""`llm2enc merge`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from llm2enc.cli.messages import quiet, say
from llm2enc.cli.options import Json, NoCache, Private, Push, cache, check_push, label, send
from llm2enc.errors import InputError
from llm2enc.terminal import table


def merge(
    models: Annotated[list[Path], typer.Argument(help="Encoders of ours (directories or runs) with one base model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the merged encoder.")],
    method: Annotated[str, typer.Option(help="average (a model soup) or slerp.")] = "average",
    weights: Annotated[str | None, typer.Option(help="One per model, e.g. 2,1,1; equal by default.")] = None,
    base: Annotated[
        str | None, typer.Option(help="What to mix the result with: an encoder, a causal LM, `pocket`.")
    ] = None,
    base_weight: Annotated[float, typer.Option(min=0, max=1, help="Share of the base in the result.")] = 0.0,
    towards: Annotated[float | None, typer.Option(min=0, max=1, hidden=True)] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", help="Score before and after on these, as `evaluate` does.")
    ] = None,
    push: Push = None,
    private: Private = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Merge encoders into one: weighted average or SLERP, optionally mixed with their base."""
    if towards is not None:
        if base_weight:
            raise InputError("--towards is the former name of --base-weight; give one of them")
        say("--towards is called --base-weight now; the old name goes with release 0.2")
        base_weight = towards
    shares = _numbers(weights) if weights else None
    if push:
        check_push(push)
    quiet()
    from llm2enc.export import Source
    from llm2enc.merging import check_sources, scores
    from llm2enc.merging import merge as run

    folders = [Source.of(model).folder for model in models]
    if tasks:
        check_sources(tasks)
    record = run(folders, out, method=cast(Any, method), weights=shares, base=base, base_weight=base_weight)
    say(f"encoder: {out}")
    rows = []
    if tasks:
        results = Path("runs") / "evaluate" / f"merge-{label(str(out))}"
        rows = scores(folders, out, tasks, results, cache(no_cache), report=say, show_progress=sys.stderr.isatty())
        say(f"results: {results}")
    if as_json:
        scored = [{"task": r.task, "metric": r.metric, "parents": r.parents, "merged": r.merged} for r in rows]
        print(json.dumps({**record.model_dump(), "scores": scored}))
    elif rows:
        _print_scores(rows, models)
    if push:
        send(out, push, private)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights is {text!r}; expected numbers with commas between them, e.g. 2,1,1") from None


def _print_scores(rows: list, models: list[Path]) -> None:
    from rich.console import Console

    columns = ("task", "metric", *(label(str(model)) for model in models), "merged", "gain over the best")
    cells = [
        (
            row.task,
            row.metric,
            *(f"{100 * score:.1f}" for score in (*row.parents, row.merged)),
            f"{100 * row.gain:+.1f}",
        )
        for row in rows
    ]
    Console().print(table(columns, cells))
