"""`llm2enc export`."""

from pathlib import Path
from typing import Annotated

import typer

from llm2enc.cli.messages import quiet, say
from llm2enc.cli.options import Private, Push, check_push, send
from llm2enc.errors import InputError
from llm2enc.terminal import note, table


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
        typer.Option("--dtype", help="float32, bfloat16, float16 or q8_0, as far as the format knows it. Repeatable."),
    ] = None,
    push: Push = None,
    private: Private = False,
    formats: Annotated[bool, typer.Option("--list", help="List the formats, and which MODEL can have.")] = False,
) -> None:
    """Write an encoder in the formats that other programs open, and send it to the hub."""
    if formats:
        _list_formats(model)
        return
    if model is None or not (to or out or push):
        raise InputError("say what to export and how: llm2enc export DIR --to onnx, or --push USER/NAME; see --list")
    if dtype and not (to or out):
        raise InputError("--dtype is for what is written; say in which format (--to) or where (-o)")
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
        raise InputError(f"{folder} would hold no whole directory to push; add --to sentence-transformers")
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


def _list_formats(model: Path | None) -> None:
    from rich.console import Console

    from llm2enc.export import FORMATS, Source, summaries, why_not

    reasons: dict[str, str] = {}
    if model is not None:
        quiet()
        reasons = why_not(Source.of(model))
    rows = []
    for name, summary in summaries().items():
        answer = ["no" if reasons[name] else "yes"] if reasons else []
        rows.append((name, ", ".join(FORMATS[name].dtypes), summary, *answer))
    console = Console()
    console.print(table(("format", "storage types", "what it is", *(["can it?"] if reasons else [])), rows))
    for name, reason in reasons.items():
        note(console, name, reason)
