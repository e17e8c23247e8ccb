"""A report as a table for the terminal."""

from typing import TYPE_CHECKING

from llm2enc.verification.report import Report
from llm2enc.verification.third_party import ForeignReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_STYLES = {"agrees": "green", "should agree": "green", "fine": "green", "differs": "red", "failed": "red"}
_STYLES |= {"problem": "red", "should differ": "yellow", "mind": "yellow", "unsupported": "dim", "missing": "dim"}


def show(report: Report | ForeignReport, console: "Console | None" = None) -> None:
    """Print the rows, and below them in full what to know and to do."""
    from rich.console import Console

    console = console or Console()
    if isinstance(report, ForeignReport):
        _show_foreign(report, console)
    else:
        _show_ours(report, console)


def _show_ours(report: Report, console: "Console") -> None:
    from rich.table import Column, Table

    names = [Column(name, overflow="fold") for name in ("engine", "file")]  # cut names would not say which file it was
    table = Table(*names, "cosine", "difference", "s", "verdict", title=report.folder)
    for row in report.rows:
        numbers = ("{:.6f}", row.cosine), ("{:.1e}", row.difference), ("{:.0f}", row.seconds or None)
        cells = ["" if value is None else form.format(value) for form, value in numbers]
        table.add_row(f"{row.engine} {row.version}".rstrip(), row.form, *cells, _verdict(row.verdict))
    console.print(table)
    said: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        name = " ".join(word for word in (row.engine, row.version, row.form) if word)
        said.setdefault((row.note, row.remedy), []).append(name)
    for (note, remedy), names in said.items():
        _say(console, ", ".join(names), note, remedy)


def _show_foreign(report: ForeignReport, console: "Console") -> None:
    from rich.table import Table

    table = Table("question", "verdict", title=report.folder)
    for row in report.rows:
        table.add_row(row.question, _verdict(row.verdict))
    console.print(table)
    for row in report.rows:
        _say(console, row.question, row.evidence, row.remedy)


def _verdict(word: str) -> "Text":
    from rich.text import Text

    return Text(word, style=_STYLES.get(word, ""))


def _say(console: "Console", name: str, note: str, remedy: str) -> None:
    from rich.text import Text

    if note or remedy:
        said = ". ".join(part.rstrip(".") for part in (note, remedy) if part)
        console.print(Text.assemble((f"{name}: ", "bold"), f"{said}."))
