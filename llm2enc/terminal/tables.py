"""Tables and lines. Every text is shown as it is: `[x]` is no markup, and control characters cannot steer a terminal."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_STYLES = {
    **dict.fromkeys(("agrees", "should agree", "fine", "nothing found"), "green"),
    **dict.fromkeys(("should differ", "mind", "warning"), "yellow"),
    **dict.fromkeys(("differs", "failed", "problem", "not run"), "red"),
    **dict.fromkeys(("error", "unreadable"), "bold red"),
    **dict.fromkeys(("unsupported", "missing", "note"), "dim"),
}


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str = ""
    align: Literal["left", "right"] = "left"
    wrap: bool = True
    """Whether a cell may take several lines; a word that is longer than the column is broken, never cut."""


def table(
    columns: Sequence[str | Column],
    rows: Iterable[Sequence["str | Text | None"]],
    title: str = "",
    header: bool = True,
    styles: Iterable[str] = (),
) -> "Table":
    """A rich table; None is a blank cell.

    styles  of the rows, as many as there are; rows beyond them have none
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text(readable(title)) if title else None, title_justify="left", show_header=header, box=box.SIMPLE_HEAD,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in (Column(one) if isinstance(one, str) else one for one in columns):
        shown.add_column(Text(readable(column.name)), justify=column.align, overflow="fold", no_wrap=not column.wrap)
    for cells, style in zip_longest(rows, styles, fillvalue=""):
        shown.add_row(*(cell if isinstance(cell, Text) else Text(readable(cell or "")) for cell in cells), style=style)
    return shown


def readable(text: str) -> str:
    r"""The text with control characters and surrogates as `\x..`; line breaks stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else f"\\x{ord(sign):02x}" for sign in text)


def status(word: str) -> "Text":
    """A verdict in its colour."""
    from rich.text import Text

    return Text(word, style=_STYLES.get(word, ""))


def line(console: "Console", *parts: "str | tuple[str, str] | Text") -> None:
    """Print a line of texts, of (text, style) and of rich texts; where it is too long the terminal breaks it."""
    from rich.text import Text

    shown = Text()
    for part in parts:
        text, style = part if isinstance(part, tuple) else (part, None)
        shown.append(readable(text) if isinstance(text, str) else text, style)
    console.print(shown, soft_wrap=True)


def note(console: "Console", name: str, what: str, remedy: str = "") -> None:
    """Print what there is to know about something, and what to do; nothing if there is neither."""
    if what or remedy:
        line(console, (f"{name}: ", "bold"), ". ".join(part.rstrip(".") for part in (what, remedy) if part), ".")
