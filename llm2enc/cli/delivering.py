"""`llm2enc export`, `llm2enc verify` and `llm2enc merge`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm2enc.cli.shared import Json, NoCache, Private, Push, cache, check_push, label, quiet, say, send


def export(
    model: Annotated[Path | None, typer.Argument(help="Directory of an encoder, or of a run.")] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="sentence-transformers (the default with -o), onnx, openvino, gguf, adapter or mteb. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to; by default into the encoder's directory.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", help="float32, bfloat16, float16 or q8_0, as far as the form knows it. Repeatable."),
    ] = None,
    push: Push = None,
    private: Private = False,
    forms: Annotated[bool, typer.Option("--list", help="List the forms, and which MODEL can have.")] = False,
) -> None:
    """Write an encoder in the forms that other programs open, and send it to the hub."""
    if forms:
        _list_forms(model)
        return
    if model is None or not (to or out or push):
        raise ValueError("say what to export and how: llm2enc export DIR --to onnx, or --push USER/NAME; see --list")
    if dtype and not (to or out):
        raise ValueError("--dtype is for what is written; say in which form (--to) or where (-o)")
    if push:
        check_push(push)
    quiet()
    from llm2enc.artifact import METADATA_FILE
    from llm2enc.export import DIRECTORY, Source
    from llm2enc.export import export as write

    folder = out or Source.of(model).folder
    if out and not to:
        to = [DIRECTORY]
    whole = DIRECTORY in (to or []) or (folder / METADATA_FILE).is_file()
    if push and not whole:
        raise ValueError(f"{folder} would hold no whole directory to push; add --to sentence-transformers")
    if to:
        written = write(model, to, out, dtype or [], push)
        for path in written.files:
            say(f"wrote {path}")
        for note in written.notes:
            say(f"note: {note}")
        if whole:
            say(f"compare with ours: llm2enc verify {folder}")
    if push:
        send(folder, push, private)


def verify(
    model: Annotated[str, typer.Argument(help="Directory or run of ours, or any sentence-transformers model.")],
    engines: Annotated[
        list[str] | None,
        typer.Option(
            "--engines",
            help="files, llm2enc, sentence-transformers, transformers, onnx, openvino, llama.cpp, contracts; all by "
            "default. Repeatable.",
        ),
    ] = None,
    card: Annotated[bool, typer.Option(help="Write the table of all engines into README.md and llm2enc.json.")] = True,
    as_json: Json = False,
) -> None:
    """Say whether every engine gives the same vectors; of someone else's model, whether it is what it claims to be."""
    quiet()
    from llm2enc.export import Source
    from llm2enc.verification import show, verify_foreign, write_card
    from llm2enc.verification import verify as check

    try:
        folder = Source.of(Path(model)).folder
    except ValueError:
        if engines:
            raise ValueError(f"{model} is not a directory of llm2enc; --engines is for those only") from None
        report = verify_foreign(model)
    else:
        report = check(folder, engines)
        if card and not engines:  # a table of some engines would take the place of the whole one
            write_card(folder, report)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        show(report)
    if not report.agrees:
        raise typer.Exit(1)


def merge(
    models: Annotated[list[Path], typer.Argument(help="Encoders of ours (directories or runs) with one base model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Directory of the merged encoder.")],
    method: Annotated[str, typer.Option(help="average (a model soup) or slerp.")] = "average",
    weights: Annotated[str | None, typer.Option(help="One per model, e.g. 2,1,1; equal by default.")] = None,
    base: Annotated[
        str | None, typer.Option(help="What to go back towards: an encoder, a causal LM, `pocket`.")
    ] = None,
    towards: Annotated[float, typer.Option(min=0, max=1, help="Share of the base in the result.")] = 0.0,
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", help="Score before and after on these, as `evaluate` does.")
    ] = None,
    push: Push = None,
    private: Private = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Merge encoders into one: weighted average or SLERP, and back towards the base."""
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
    record = run(folders, out, method=method, weights=shares, base=base, towards=towards)
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
        raise ValueError(f"--weights is {text!r}; expected numbers with commas between them, e.g. 2,1,1") from None


def _list_forms(model: Path | None) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from llm2enc.export import FORMS, Source, summaries, why_not

    reasons = {}
    if model is not None:
        quiet()
        reasons = why_not(Source.of(model))
    table = Table("form", "storage types", "what it is", *(["can it?"] if model else []))
    for name, summary in summaries().items():
        answer = [f"no: {escape(reasons[name])}" if reasons[name] else "yes"] if model else []
        table.add_row(name, ", ".join(FORMS[name].dtypes), summary, *answer)
    Console().print(table)


def _print_scores(rows: list, models: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "metric", *(label(str(model)) for model in models), "merged", "gain over the best")
    for row in rows:
        points = (f"{100 * score:.1f}" for score in (*row.parents, row.merged))
        table.add_row(row.task, row.metric, *points, f"{100 * row.gain:+.1f}")
    Console().print(table)
