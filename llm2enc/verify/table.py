"""A report as a table for the terminal."""

from typing import TYPE_CHECKING

from llm2enc.verify.report import Report

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"agrees": "green", "should agree": "green", "fine": "green", "differs": "red", "failed": "red"}
_STYLES |= {"problem": "red", "should differ": "yellow", "mind": "yellow", "unsupported": "dim", "missing": "dim"}


def show(report: Report, console: "Console | None" = None) -> None:
    """Print the rows, and below them in full what to know and to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table("engine", "file", "cosine", "difference", "s", "verdict", title=report.folder)
    for row in report.rows:
        numbers = ["" if value is None else form.format(value) for form, value in _numbers(row)]
        name = f"{row.engine} {row.version}".rstrip()
        table.add_row(name, row.form, *numbers, Text(row.verdict, style=_STYLES.get(row.verdict, "")))
    console.print(table)
    for row in report.rows:
        if row.note or row.remedy:
            name = " ".join(word for word in (row.engine, row.version, row.form) if word)
            said = ". ".join(part.rstrip(".") for part in (row.note, row.remedy) if part)
            console.print(Text.assemble((f"{name}: ", "bold"), f"{said}."))


def _numbers(row) -> list[tuple[str, float | None]]:
    return [("{:.6f}", row.cosine), ("{:.1e}", row.difference), ("{:.0f}", row.seconds or None)]
