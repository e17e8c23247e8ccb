"""Texts of .txt, .json, .jsonl, .csv and .tsv files by the standard library alone, which is what `llm2enc encode` needs.

The rules are those of tables.py, which reads the same files for training: a line is a text, of a table the column `text`
or the only one with texts, and rows without text are left out. Only columns that are not asked for go unchecked here.
"""

import bz2
import csv
import glob
import gzip
import io
import json
import logging
import sys
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm2enc.data.files import file_type, matches
from llm2enc.data.rows import Rows
from llm2enc.errors import DataError, require
from llm2enc.recipe import FilesData
from llm2enc.storage import add_path_to_oserror

_log = logging.getLogger(__name__)

_HEAD = 1000  # rows that say which columns there are
_END = "\uffffend"  # a row behind the last one, which an open quotation mark would swallow

Record = dict[str, Any]


def read_text_files(path: str, column: str = "text") -> Rows[str]:
    """The nonempty texts of the files that a path or glob names.

    They are copied to an unnamed temporary file, so that they take 8 bytes of memory each.

    column  of the texts in a table; without one named `text`, the only column that holds texts
    raises  DataError for files that cannot be read, or hold no text; OSError if the copy cannot be written; InputError
            for .parquet without the packages that read it
    """
    files = matches(path)
    kind = file_type(files)
    if kind == "parquet":
        require("datasets", "pyarrow", extra="")
        from llm2enc.data.sources import read_texts

        rows = read_texts(FilesData(kind="files", path=path, columns={} if column == "text" else {"text": column}))
        assert isinstance(rows, Rows)  # a stream is for hub data and `streaming`
        return rows
    copy, ends, dropped = tempfile.TemporaryFile(), array("q", [0]), 0  # noqa: SIM115 - as long as the rows live
    with add_path_to_oserror(Path(tempfile.gettempdir())):
        for text in _texts(path, files, kind, column):
            if text:
                ends.append(ends[-1] + copy.write(text))
            else:
                dropped += 1
        copy.flush()
    size = len(ends) - 1
    _log.info("%s: %d rows, %d more dropped because %s is empty", path, size, dropped, column)
    if not size:
        raise DataError(f"data source {path!r} is empty: {dropped} rows, none with text in {column}")

    def take(positions: np.ndarray) -> list[str]:
        found = []
        for position in positions.tolist():
            copy.seek(ends[position])
            found.append(copy.read(ends[position + 1] - ends[position]).decode("utf-8"))
        return found

    return Rows(path, size, take, dropped)


def _texts(path: str, files: list[str], kind: str, column: str) -> Iterator[bytes]:
    """Texts, empty ones too. Whatever goes wrong is a DataError that names the source."""
    former = csv.field_size_limit(sys.maxsize)  # of Python as a whole: texts may be longer than 128 kB
    try:
        for file in files:
            with _open(glob.glob(file)[0], kind) as lines:
                for cell in _column(_RECORDS[kind](lines), column):
                    yield cell.encode("utf-8") if cell and cell.strip() else b""
    except (OSError, ValueError, EOFError, csv.Error, zlib.error) as error:
        raise DataError(f"data source {path!r} cannot be read: {error}") from error
    finally:
        csv.field_size_limit(former)


def _open(file: str, kind: str) -> IO[str]:
    # A mark of the byte order is a part of the first line of plain text, as `datasets` has it.
    options = {
        "encoding": "utf-8" if kind == "text" else "utf-8-sig",
        "newline": "" if kind in ("csv", "tsv") else None,
    }
    if file.lower().endswith(".zst"):
        import zstandard  # pyright: ignore[reportMissingImports] - `file_type` has asked for it

        return zstandard.open(file, "rt", **options)
    opened = {".gz": gzip.open, ".bz2": bz2.open}.get(Path(file).suffix.lower(), io.open)
    return opened(file, "rt", **options)


def _column(records: Iterator[Record], column: str) -> Iterator[str | None]:
    """The cells of the column of texts. DataError for one that is neither text nor empty."""
    head = list(islice(records, _HEAD))
    cells = {name: [record.get(name) for record in head] for record in head for name in record}
    texts = [name for name, own in cells.items() if all(cell is None or isinstance(cell, str) for cell in own)]
    if head and column not in cells:
        if column != "text" or len(texts) != 1:
            raise DataError(
                f"there is no column {column!r}; its columns are {', '.join(cells)}. Name one with --column"
            )
        (column,) = texts
    for number, record in enumerate(chain(head, records), 1):
        cell = record.get(column)
        if cell is not None and not isinstance(cell, str):
            raise DataError(f"row {number}: column {column!r} holds {cell!r:.80}, expected text")
        yield cell


def _lines(lines: Iterable[str]) -> Iterator[Record]:
    return ({"text": line.removesuffix("\n")} for line in lines)


def _json(lines: IO[str]) -> Iterator[Record]:
    """Rows of JSON lines, or of one JSON array."""
    first = lines.readline()
    if first.lstrip().startswith("["):
        rows = enumerate(json.loads(first + lines.read()), 1)
    else:
        rows = ((number, json.loads(line)) for number, line in enumerate(chain([first], lines), 1) if line.strip())
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(f'row {number} must be a JSON object, such as {{"text": ...}}')
        yield row


def _csv(lines: Iterable[str]) -> Iterator[Record]:
    return _records(_whole(csv.reader(chain(lines, [_END]))))


def _whole(rows: Iterable[list[str]]) -> Iterator[list[str]]:
    for row in rows:
        if row == [_END]:
            return
        yield row
    raise DataError("a quotation mark is opened and never closed")


def _tsv(lines: Iterable[str]) -> Iterator[Record]:
    """Rows of a file without quotation: a quotation mark is a part of the text."""
    return _records(line.rstrip("\r\n").split("\t") for line in lines if line.strip("\r\n"))


def _records(rows: Iterator[list[str]]) -> Iterator[Record]:
    """Rows as records with the names of the first one. DataError for a row with more cells than names."""
    rows = (row for row in rows if row)
    header = next(rows, [])
    names = [f"{name}.{header[:at].count(name)}" if name in header[:at] else name for at, name in enumerate(header)]
    for number, row in enumerate(rows, 1):
        if len(row) > len(names):
            raise DataError(f"row {number} has {len(row)} cells, and the header names {len(names)}: {', '.join(names)}")
        yield dict(zip(names, row, strict=False))


_RECORDS = {"text": _lines, "json": _json, "csv": _csv, "tsv": _tsv}
