"""Texts for `llm2enc encode`, by the standard library alone: a text for every line of a .txt and every row of a table."""

import logging
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from llm2enc.data.content import check_texts
from llm2enc.data.files import file_type, is_pipe, matches, spool_folder, spooled
from llm2enc.data.plain_files import Record, plain_files
from llm2enc.data.rows import Rows
from llm2enc.data.spool import Spool
from llm2enc.errors import DataError, require
from llm2enc.storage import add_path_to_oserror

_log = logging.getLogger(__name__)

_HEAD = 1000  # rows that say which columns there are


@dataclass(frozen=True)
class TextRows(Rows[str]):
    """The texts of files, each row of them unless empty ones were to be skipped."""

    kept: np.ndarray | None = None
    """(N,) int64 number of the row, from 0, that each text stands in; None if every row has its text."""
    empty: tuple[int, int] = (0, 0)
    """How many rows have no text, and the number of the first of them, from 1."""
    total: int = 0
    """Rows of the files."""
    decided: str = ""
    """Type, separator and header of the files, and the column of the texts."""


def read_text_files(path: str, column: str | None = None, skip_empty: bool = False) -> TextRows:
    """The texts of the files that a path or glob names, or of a pipe (`-` is the standard input).

    They are copied to an unnamed temporary file, so that they take 8 bytes of memory each.

    column      of the texts in a table; without one that named `text`, or the only column that holds texts
    skip_empty  leave out rows without text; they are empty texts else
    raises  DataError for files that cannot be read, or hold no text; OSError if the copy cannot be written; InputError
            for .parquet without the packages that read it
    """
    with spool_folder() as folder, add_path_to_oserror(Path(tempfile.gettempdir())):
        files = [spooled(path, folder, column)] if is_pipe(path) else matches(path)
        try:
            cells, decided = _parquet(files, column) if file_type(files) == "parquet" else _plain(files, column)
            return _copied(path, cells, decided, skip_empty)
        except ValueError as error:
            raise DataError(f"data source {path!r} cannot be read: {error}") from error


def _copied(path: str, cells: Iterator[str | None], decided: str, skip_empty: bool) -> TextRows:
    copy, kept = Spool(), array("q")
    empty, first, count = 0, 0, 0
    for count, cell in enumerate(cells, 1):
        if not cell or not cell.strip():
            empty, first = empty + 1, first or count
            if skip_empty:
                continue
        copy.add(cell or "")
        kept.append(count - 1)
    if empty == count:
        raise DataError(f"it is empty: {count} rows, none with text")
    _log.info("%s: %s; %d rows, %d of them empty", path, decided, count, empty)

    rows = np.array(kept, dtype=np.int64) if skip_empty and empty else None
    return TextRows(path, len(kept), copy.take, count - len(kept), rows, (empty, first), count, decided)


def _parquet(files: list[str], column: str | None) -> tuple[Iterator[str | None], str]:
    require("datasets", "pyarrow", extra="")
    from llm2enc.data.cells import is_text
    from llm2enc.data.tables import open_files

    table = open_files(files)
    chosen = _chosen(column, [field.name for field in table.schema if is_text(field.type)], table.schema.names)
    blocks = table.read([chosen])
    first = [block[chosen].to_pylist() for block in islice(blocks, 1)]
    check_texts(chosen, first[0] if first else [], guessed=chosen not in (column, "text"))
    cells = chain(*first, (cell for block in blocks for cell in block[chosen].to_pylist()))
    return cells, f"parquet; text = {chosen}"


def _plain(files: list[str], column: str | None) -> tuple[Iterator[str | None], str]:
    source = plain_files(files)
    records = source.records()
    head = list(islice(records, _HEAD))
    sample: dict[str, list[Any]] = {name: [] for name in (source.layout.names if source.layout else ())}
    for _, record in head:
        for name, cell in record.items():
            sample.setdefault(name, []).append(cell)
    texts = [name for name, own in sample.items() if all(cell is None or isinstance(cell, str) for cell in own)]
    chosen = _chosen(column, texts, list(sample)) if sample else "text"
    if source.layout:
        check_texts(chosen, sample[chosen], guessed=chosen not in (column, "text"))
    return _cells(chain(head, records), chosen), f"{source}; text = {chosen}" if source.type != "text" else "text"


def _chosen(column: str | None, texts: list[str], names: list[str]) -> str:
    """The column that was named, else `text`, else the only one with texts."""
    if column is None and "text" not in names and len(texts) == 1:
        return texts[0]
    chosen = column or "text"
    if chosen not in names:
        raise DataError(f"there is no column {chosen!r}; its columns are {', '.join(names)}. Name one with --column")
    return chosen


def _cells(records: Iterator[tuple[str, Record]], column: str) -> Iterator[str | None]:
    for where, record in records:
        cell = record.get(column)
        if cell is not None and not isinstance(cell, str):
            raise DataError(f"{where}: column {column!r} holds {cell!r:.80}, expected text")
        yield cell
