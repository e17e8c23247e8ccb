"""`llm2enc verify`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2enc.cli.messages import quiet, say
from llm2enc.cli.options import Json
from llm2enc.errors import InputError
from llm2enc.terminal import Column, note, status, table

if TYPE_CHECKING:
    from llm2enc.verification import ForeignReport, Report


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
    from llm2enc.verification import ForeignReport, verify_foreign, write_card
    from llm2enc.verification import verify as check

    try:
        folder = Source.of(Path(model)).folder
    except InputError:
        if engines:
            raise InputError(f"{model} is not a directory of llm2enc; --engines is for those only") from None
        report = verify_foreign(model)
    else:
        report = check(folder, engines)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        (_print_foreign if isinstance(report, ForeignReport) else _print_ours)(report)
    if card and not engines and not isinstance(report, ForeignReport):  # a table of some would replace the whole one
        try:
            write_card(Path(report.folder), report)
        except OSError as error:  # a directory that others own can be verified all the same
            say(f"the table is not in the card of {report.folder}: {error.strerror or error}; --no-card asks for none")
    if not report.agrees:
        raise typer.Exit(1)


def _print_ours(report: "Report") -> None:
    """The rows, and below them in full what to know and to do."""
    from rich.console import Console

    console = Console()
    rows, said = [], {}
    for row in report.rows:
        numbers = ("{:.6f}", row.cosine), ("{:.1e}", row.difference), ("{:.0f}", row.seconds or None)
        cells = [None if value is None else form.format(value) for form, value in numbers]
        rows.append((f"{row.engine} {row.version}".rstrip(), row.form, *cells, status(row.verdict)))
        name = " ".join(word for word in (row.engine, row.version, row.form) if word)
        said.setdefault((row.note, row.remedy), []).append(name)
    names = [Column(name, fold=True) for name in ("engine", "file")]  # cut names would not say which file it was
    console.print(table([*names, "cosine", "difference", "s", "verdict"], rows, report.folder))
    for (what, remedy), names in said.items():
        note(console, ", ".join(names), what, remedy)


def _print_foreign(report: "ForeignReport") -> None:
    from rich.console import Console

    console = Console()
    console.print(
        table(("question", "verdict"), [(row.question, status(row.verdict)) for row in report.rows], report.folder)
    )
    for row in report.rows:
        note(console, row.question, row.evidence, row.remedy)
