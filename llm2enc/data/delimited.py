"""Files of cells and separators, .csv and .tsv: what their first lines decide, and their rows by the header's names.

The usual separator is the comma of a .csv and the tab of a .tsv; another is taken where the header has none of it. Cells of
a .csv may be quoted (RFC 4180). Those of a .tsv are as a rule not: a quotation mark is a part of the text, unless the whole
file follows the rules of quotation and needs them, as what pandas and spreadsheets write does.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from llm2enc.data.files import lines_of
from llm2enc.errors import DataError

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_END = "\uffffend"  # a row behind the last one, which an open quotation mark would swallow
_LONGEST_CELL = 1000  # lines of a quoted cell; a mark that is never closed would take the rest of the file
# One of these among the names, and the line is a header.
_KNOWN = set("text query positive anchor sentence sentence1 sentence2 question answer label score title id".split())


@dataclass(frozen=True)
class Layout:
    """How the lines of a file become cells."""

    separator: str
    quoted: bool
    names: tuple[str, ...]

    def __str__(self) -> str:
        quoted = ", quoted cells" if self.quoted and self.separator == "\t" else ""
        return f"separator {_SEPARATORS[self.separator]}{quoted}, header {', '.join(self.names)}"


def layout_of(file: str, kind: str) -> Layout:
    """The layout of a .csv or .tsv. DataError for an empty file, or a first line that cannot be a header."""
    header = next((line for line in lines_of(file) if line.strip("\r\n")), "").strip("\r\n")
    separator = separator_of(header, "\t" if kind == "tsv" else ",")
    quoted = separator != "\t" or is_quoted(lines_of(file), separator)
    names = tuple(next(_cells(lines_of(file), separator, quoted), (0, []))[1])
    if not names:
        raise DataError(f"{file} is empty")
    fault = header_fault(names)
    if fault:
        raise DataError(
            f"{file}: its first line cannot be the names of the columns, because {fault}: {header!r:.120}; write a line "
            f"with the names of its {len(names)} columns before it"
        )
    return Layout(separator, quoted, names)


def rows_of(file: str, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row below the header, with the number of the line where it ends.

    raises  DataError, with the line, for a row with more or fewer cells than the header
    """
    rows = _cells(lines_of(file), layout.separator, layout.quoted, file)
    next(rows)
    width = len(layout.names)
    for number, row in rows:
        if len(row) != width:
            raise DataError(
                f"{file}, line {number} has {len(row)} fields, and the header names {width} ({', '.join(layout.names)}): "
                f"{layout.separator.join(row)!r:.120}; put quotation marks around a text that holds the separator"
            )
        yield number, row


def separator_of(header: str, usual: str) -> str:
    """The usual separator, unless the header has none of it, and another."""
    counts = {separator: header.count(separator) for separator in _SEPARATORS}
    return usual if counts[usual] or not any(counts.values()) else max(counts, key=counts.__getitem__)


def is_quoted(lines: Iterable[str], separator: str) -> bool:
    """Whether every cell with a quotation mark follows RFC 4180, and the header or one of them must be quoted."""
    cell = re.compile(rf'(?:"((?:[^"]|"")*)"|[^"{separator}\n]*)(?:{separator}|\r?\n|\Z)')
    needed, record = False, ""
    for number, line in enumerate(lines):
        if not record and '"' not in line:
            continue
        needed |= number == 0 and line.startswith('"')
        record += line
        at = 0
        while at < len(record) and (found := cell.match(record, at)):
            needed |= found[1] is not None and bool(re.search(rf'["\r\n{separator}]', found[1]))
            at = found.end()
        if at >= len(record):
            record = ""
        elif record[at] != '"' or record.count('"') % 2 == 0 or record.count("\n") > _LONGEST_CELL:
            return False
    return needed and not record


def header_fault(names: Sequence[str]) -> str:
    """Why a line cannot be the names of columns; empty if it can."""
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        return f"{twice!r} occurs twice"
    if _KNOWN & {name.lower() for name in names}:
        return ""
    number = next((name for name in names if re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", name.strip(), re.I)), None)
    if number is not None:
        return f"{number!r} is a number"
    text = next(
        (name for name in names if len(name) > 60 or len(name.split()) > 6 or name.endswith(tuple(".?!"))), None
    )
    return "" if text is None else f"{text!r:.60} looks like a text"


def _cells(lines: Iterable[str], separator: str, quoted: bool, file: str = "") -> Iterator[tuple[int, list[str]]]:
    """Number of the last line and cells of each row. A blank line is an empty cell where there is one column, else none."""
    rows = _quoted(lines, separator, file) if quoted else _plain(lines, separator)
    width = 0
    for number, row in rows:
        if row or width == 1:
            width = width or len(row)
            yield number, row or [""]


def _plain(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n").removesuffix("\r")
        yield number, text.split(separator) if text else []


def _quoted(lines: Iterable[str], separator: str, file: str) -> Iterator[tuple[int, list[str]]]:
    former = csv.field_size_limit(sys.maxsize)  # of Python as a whole: texts may be longer than 128 kB
    reader = csv.reader(chain(lines, [_END]), delimiter=separator)
    try:
        for row in reader:
            if row == [_END]:
                return
            yield reader.line_num, row
        raise DataError(f"{file}: a quotation mark is opened and never closed")
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(former)
