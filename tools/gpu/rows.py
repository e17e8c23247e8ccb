"""What a part finds out: rows, and a report of them that is whole at any moment."""

import json
import os
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, NOT_HERE, SKIPPED = "ok", "failed", "not here", "skipped"


class NotHere(Exception):
    """This machine lacks what the row is about; the message says what."""


@dataclass
class Row:
    """One finding. `reached` is None where there is no goal, or where it means nothing (a rehearsal)."""

    name: str
    status: str = OK
    values: dict[str, Any] = field(default_factory=dict)
    goal: str = ""
    reached: bool | None = None
    message: str = ""
    part: str = ""
    section: str = ""
    seconds: float = 0.0


def attempt(name: str, function: Callable[[], Row]) -> Row:
    """The row that `function` returns, or one that says why there is none."""
    try:
        return function()
    except NotHere as reason:
        return Row(name, NOT_HERE, message=str(reason))
    except Exception as error:  # whatever it is, the next row is to be tried
        return failed(name, error)


def failed(name: str, error: BaseException) -> Row:
    """A row about an error: its message, and the innermost lines of its traceback."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    text = " ".join(str(error).split())[:600]
    return Row(name, FAILED, message=f"{type(error).__name__}: {text} ({where})")


class Report:
    """Both pages of a run, written again, whole, with every change."""

    def __init__(self, folder: Path, begun: str, command: list[str], planned: list[str]):
        self.folder = folder
        self.facts: dict[str, Any] = {"begun": begun, "ended": None, "command": command, "planned": planned}
        self.machine: dict[str, Any] = {}
        self.rows: list[Row] = []
        self.write()

    def add(self, row: Row) -> None:
        """One more row, on disk when this returns."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        content = {**self.facts, "machine": self.machine, "rows": [asdict(row) for row in self.rows]}
        _replace(self.folder / "report.json", json.dumps(content, indent=1, default=str) + "\n")
        _replace(self.folder / "report.md", markdown(self.facts, self.machine, self.rows))


def markdown(facts: dict[str, Any], machine: dict[str, Any], rows: list[Row]) -> str:
    """The page for people: goals first, then the rows of each section."""
    ended = facts["ended"] or "not yet, or it was killed"
    lines = [
        "# llm2enc on a GPU machine", "",
        f"Begun {facts['begun']}, ended {ended}. {count(rows)}", "",
        *[f"- {key}: {value}" for key, value in machine.items()], "",
    ]  # fmt: skip
    goals = [row for row in rows if row.goal]
    if goals:
        lines += ["## Goals", "", "| row | goal | reached | values |", "| --- | --- | --- | --- |"]
        lines += [_line(row.name, row.goal, _answer(row), _values(row.values)) for row in goals] + [""]
    for section in dict.fromkeys(row.section for row in rows):
        lines += [f"## {section}", "", "| part | row | status | values | message | s |"]
        lines += ["| --- | --- | --- | --- | --- | ---: |"]
        own = [row for row in rows if row.section == section]
        lines += [
            _line(row.part, row.name, row.status, _values(row.values), row.message, f"{row.seconds:.1f}") for row in own
        ]
        lines += [""]
    missing = [name for name in facts["planned"] if name not in {row.part for row in rows}]
    return "\n".join([*lines, f"Parts without a row: {', '.join(missing) or 'none'}.", ""])


def count(rows: list[Row]) -> str:
    """How many rows have which status."""
    found = {status: sum(row.status == status for row in rows) for status in (OK, FAILED, NOT_HERE, SKIPPED)}
    return f"{len(rows)} rows: " + ", ".join(f"{number} {status}" for status, number in found.items()) + "."


def _answer(row: Row) -> str:
    return {True: "yes", False: "NO", None: "not judged"}[row.reached]


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {f'{value:.4g}' if isinstance(value, float) else value}" for key, value in values.items())


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _replace(path: Path, text: str) -> None:
    """Write beside the file, then rename: a reader, or a kill, finds the former content or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
