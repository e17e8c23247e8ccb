"""What a person sees at a terminal: tables of one look, progress bars, and no text of a stranger taken for markup."""

from llm2enc.terminal.progress import bar, counter
from llm2enc.terminal.tables import Column, line, note, readable, status, table

__all__ = [
    "Column",
    "bar",
    "counter",
    "line",
    "note",
    "readable",
    "status",
    "table",
]
