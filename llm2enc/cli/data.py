"""`llm2enc data`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2enc.cli.messages import quiet
from llm2enc.cli.options import Json
from llm2enc.errors import InputError
from llm2enc.terminal import Column, counter, line, readable, status, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from llm2enc.audit import Finding, Report, SourceReport

_LONGEST = 50  # signs of an instruction that are shown


def data(
    path: Annotated[
        str | None,
        typer.Argument(help="File, glob, folder or hub id of training data; all data of --recipe by default."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose template, tokenizer, limits and evaluation count.")
    ] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", help="Folder of evaluation tasks to compare with. May be repeated.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Without a recipe: whose tokenizer counts. Weights are not loaded.")
    ] = "pocket",
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show as the model sees them.")] = 2,
    limit: Annotated[
        int, typer.Option(min=1, help="Rows of a source beyond which a random sample is read.")
    ] = 2_000_000,
    as_json: Json = False,
) -> None:
    """Look at training data as the model will see it, and say what is wrong with it. Exits with 1 if there is an error."""
    if path is None and recipe is None:
        raise InputError("nothing to look at: give a path of data, or --recipe")
    from llm2enc.recipe import load_recipe

    loaded = load_recipe(recipe) if recipe else None
    quiet()
    from llm2enc.audit import examine

    with counter("opening the data", "rows", sys.stderr.isatty()) as advance:
        report = examine(path, loaded, evaluation or (), model, rows, limit, advance)
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        _print_report(report)
    if report.unreadable:
        raise typer.Exit(2)
    if report.has_errors:
        raise typer.Exit(1)


def _print_report(report: "Report") -> None:
    """Every source with its counts, examples and findings; at the end what was not readable, and the sum."""
    from rich.console import Console

    console = Console()
    for source in report.sources:
        _print_source(source, console)
    for name, reason in report.unreadable.items():
        line(console, status("unreadable"), f" {name}: {reason}")
    if report.evaluation:
        texts = sum(report.evaluation.values())
        line(console, f"compared with {texts:,} texts of {len(report.evaluation)} evaluation tasks")
    kinds = ("error", "warning", "note")
    counts = [sum(finding.severity == kind for s in report.sources for finding in s.findings) for kind in kinds]
    line(console, "{} errors, {} warnings, {} notes".format(*counts))


def _print_source(source: "SourceReport", console: "Console") -> None:
    from rich.text import Text

    console.rule(Text(readable(f"{source.name} ({source.stage}, {source.rows:,} rows)")), align="left")
    if source.recognised.get("why"):
        line(console, f"recognised: {source.recognised['why']}")
    if source.recognised.get("block"):
        line(console, source.recognised["block"].rstrip())
    if source.sampled:
        line(console, f"read: {source.sampled}")
    if source.columns:
        console.print(_counts(source))
    if source.measured_with:
        line(console, (f"tokens: {source.measured_with}", "dim"))
    from llm2enc.audit import plural

    for side, of in source.scores.items():
        spread = f"{of['least']:.4g} to {of['most']:.4g}, median {of['median']:.4g}"
        line(console, f"scores of {of['scores']:,} {plural(side)}: {spread}")
    _print_instructions(source.instructions, console)
    _print_examples(source.shown, console)
    for finding in source.sorted():
        _print_finding(finding, console)
    if not source.findings:
        line(console, status("nothing found"))
    line(console, (f"{source.seconds:.1f} s\n", "dim"))


def _counts(source: "SourceReport") -> "Table":
    from llm2enc.audit import plural

    rows = []
    for side, counts in source.columns.items():
        lengths = source.lengths.get(side, {})
        tokens = "/".join(f"{value:.0f}" for value in lengths["tokens"].values()) if lengths else None
        common = [item for item in source.languages.get(side, {}).items() if item[1] >= 0.005][:3]  # no "0%"
        languages = ", ".join(f"{name} {share:.0%}" for name, share in common)
        cut, lost = (
            f"{lengths[key]:.1%}" if key in lengths else None for key in ("truncated_share", "tokens_lost_share")
        )
        numbers = (f"{counts['texts']:,}", f"{counts['distinct']:,}", f"{counts['characters']:.0f}")
        rows.append((plural(side), *numbers, tokens, cut, lost, languages))
    percentiles = Column("tokens:\n5/50/95 %\n/most", wrap=False)
    names = ("texts", "distinct", "chars", percentiles, "cut", "lost")
    return table([Column(wrap=False), *names, "languages"], rows)


def _print_instructions(instructions: dict[str, int], console: "Console") -> None:
    if not any(instructions):
        return
    total = sum(instructions.values())
    for text, count in list(instructions.items())[:5]:
        shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
        line(console, f"instruction ({count / total:.0%}): {shown or 'none'}")
    if len(instructions) > 5:
        line(console, f"and {len(instructions) - 5:,} more instructions")


def _print_examples(shown: list[dict[str, Any]], console: "Console") -> None:
    from llm2enc.audit import marked

    if shown:
        line(console, ("as the model sees it: tokens between bars, those that enter the vector in brackets", "dim"))
    for number, row in enumerate(shown, 1):
        for side, views in row.items():
            for view in views:
                cut = ", cut" if view["truncated"] else ""
                name = f"row {number} {side} ({view['tokens']} tokens{cut}): "
                line(console, (name, "bold"), marked(view))


def _print_finding(finding: "Finding", console: "Console") -> None:
    rows = f" (rows {', '.join(f'{row:,}' for row in finding.rows)})" if finding.rows else ""
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    line(console, status(finding.severity), f" {finding.check}: {finding.what}{rows}.", (remedy, "dim"))
