"""Files that are read line by line and refused with the line: .jsonl and .tsv, also as .gz.

A .jsonl holds an object a line; blank lines are passed over. A .tsv has one header line, no quoting, and as many fields in
each line as in the header.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm2enc.data.files import lines_of
from llm2enc.errors import DataError

Check = Callable[[Any], str]
"""What a value must be, in words, or nothing if it is; a field that is left out comes as `...`."""


def existing(folder: Path, name: str) -> Path | None:
    """The file of this name, plain or as .gz; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line of a .tsv, in the order of `columns`.

    raises  DataError if a column is missing, a line has too many or too few fields, or there is none
    """
    lines = _lines(path)
    header = next(lines, "").split("\t")
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; its header is {', '.join(header)}")
    where = ""
    for number, line in enumerate(lines, start=2):
        where, row = f"{path}, line {number}", line.split("\t")
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} fields, the header has {len(header)}: {line!r:.80}")
        yield where, [row[header.index(name)] for name in columns]
    if not where:
        raise DataError(f"{path} has no rows")


def read_records(path: Path, fields: Mapping[str, Check]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each line of a .jsonl.

    fields  those that are looked at; others may hold anything
    raises  DataError for a line that is no object, a field of another type, or if there is no line
    """
    where = ""
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{where} must be an object such as {{{', '.join(f'{name!r}: ...' for name in fields)}}}")
        for field, check in fields.items():
            if expected := check(record.get(field, ...)):
                raise DataError(f"{where}: `{field}` must be {expected}, got {str(record)[:80]!r}")
        yield where, record
    if not where:
        raise DataError(f"{path} has no rows")


def read_number(text: str, where: str) -> int | float:
    """The number that a cell writes, an int if it is whole. DataError for what is none, or not finite."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {text!r} is not a number")
    return int(number) if number.is_integer() else number


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends; blank lines at the end are no part of the file."""
    blank = 0
    for line in lines_of(str(path)):
        text = line.removesuffix("\n").removesuffix("\r")
        if not text:
            blank += 1
            continue
        yield from [""] * blank
        yield text
        blank = 0
