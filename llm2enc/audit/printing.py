"""The report for a terminal."""

from typing import TYPE_CHECKING, Any

from llm2enc.audit.checks.quality import plural
from llm2enc.audit.report import Finding, Report, SourceReport
from llm2enc.audit.show import marked

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_LONGEST = 50  # signs of an instruction that are shown


def print_report(report: Report, console: "Console") -> None:
    """Every source with its counts, examples and findings; at the end what was not readable, and the sum."""
    for source in report.sources:
        _print_source(source, console)
    for name, reason in report.unreadable.items():
        console.print(f"[bold red]unreadable[/] {_safe(name)}: {_safe(reason)}")
    if report.evaluation:
        texts = sum(report.evaluation.values())
        console.print(f"compared with {texts:,} texts of {len(report.evaluation)} evaluation tasks")
    counts = [sum(f.severity == kind for s in report.sources for f in s.findings) for kind in _STYLES]
    console.print("{} errors, {} warnings, {} notes".format(*counts))


def _print_source(source: SourceReport, console: "Console") -> None:
    console.rule(f"{_safe(source.name)} ({source.stage}, {source.rows:,} rows)", align="left")
    if source.recognised.get("why"):
        console.print(f"recognised: {_safe(source.recognised['why'])}", highlight=False)
    if source.recognised.get("block"):
        console.print(_safe(source.recognised["block"].rstrip()), highlight=False, soft_wrap=True)
    if source.sampled:
        console.print(f"read: {_safe(source.sampled)}", highlight=False)
    if source.columns:
        console.print(_counts(source))
    if source.measured_with:
        console.print(f"[dim]tokens: {_safe(source.measured_with)}[/]", highlight=False)
    for side, of in source.scores.items():
        spread = f"{of['least']:.4g} to {of['most']:.4g}, median {of['median']:.4g}"
        console.print(f"scores of {of['scores']:,} {plural(side)}: {spread}", highlight=False)
    _print_instructions(source.instructions, console)
    _print_examples(source.shown, console)
    for finding in source.sorted():
        _print_finding(finding, console)
    if not source.findings:
        console.print("[green]nothing found[/]")
    console.print(f"[dim]{source.seconds:.1f} s[/]\n", highlight=False)


def _counts(source: SourceReport) -> Any:
    from rich.table import Column, Table

    percentiles = Column("tokens:\n5/50/95 %\n/most", no_wrap=True)
    table = Table(
        Column(no_wrap=True),
        "texts",
        "distinct",
        "chars",
        percentiles,
        "cut",
        "lost",
        Column("languages", overflow="fold"),
    )
    for side, counts in source.columns.items():
        lengths = source.lengths.get(side, {})
        tokens = "/".join(f"{value:.0f}" for value in lengths["tokens"].values()) if lengths else ""
        common = [item for item in source.languages.get(side, {}).items() if item[1] >= 0.005][:3]  # no "0%"
        languages = ", ".join(f"{name} {share:.0%}" for name, share in common)
        cut, lost = (
            f"{lengths[key]:.1%}" if key in lengths else "" for key in ("truncated_share", "tokens_lost_share")
        )
        numbers = (f"{counts['texts']:,}", f"{counts['distinct']:,}", f"{counts['characters']:.0f}")
        table.add_row(plural(side), *numbers, tokens, cut, lost, languages)
    return table


def _print_instructions(instructions: dict[str, int], console: "Console") -> None:
    if not any(instructions):
        return
    total = sum(instructions.values())
    for text, count in list(instructions.items())[:5]:
        shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
        console.print(f"instruction ({count / total:.0%}): {_safe(shown) or 'none'}", highlight=False)
    if len(instructions) > 5:
        console.print(f"and {len(instructions) - 5:,} more instructions")


def _print_examples(shown: list[dict[str, Any]], console: "Console") -> None:
    if shown:
        console.print("as the model sees it: tokens between bars, those that enter the vector in brackets", style="dim")
    for number, row in enumerate(shown, 1):
        for side, views in row.items():
            for view in views:
                cut = ", cut" if view["truncated"] else ""
                line = f"row {number} {side} ({view['tokens']} tokens{cut}): "
                console.print(f"[bold]{line}[/]{_safe(marked(view))}", highlight=False, soft_wrap=True)


def _print_finding(finding: Finding, console: "Console") -> None:
    rows = f" (rows {', '.join(f'{row:,}' for row in finding.rows)})" if finding.rows else ""
    remedy = f" [dim]-> {_safe(finding.remedy)}[/]" if finding.remedy else ""
    style = _STYLES[finding.severity]
    said = f"[{style}]{finding.severity}[/] {finding.check}: {_safe(finding.what)}{rows}.{remedy}"
    console.print(said, highlight=False, soft_wrap=True)


def _safe(text: str) -> str:
    """The text without control characters, surrogates and meaning to rich: it must not damage the report."""
    from rich.markup import escape

    readable = "".join(sign if sign.isprintable() or sign == "\n" else f"\\x{ord(sign):02x}" for sign in text)
    return escape(readable)
