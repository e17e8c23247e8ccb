"""The records of .txt, .json, .jsonl, .csv and .tsv files, by the standard library alone: one reader for all commands.

A record is a row by column. Of a .txt each line is one, in the column `text`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from llm2enc.data.delimited import Layout, layout_of, rows_of
from llm2enc.data.files import file_type, lines_of
from llm2enc.errors import DataError

Record = dict[str, Any]


@dataclass(frozen=True)
class PlainFiles:
    """Files of one type, and of one layout where they have cells and separators."""

    files: tuple[str, ...]
    type: str
    """text, json, csv or tsv."""
    layout: Layout | None

    def records(self) -> Iterator[tuple[str, Record]]:
        """Each record, with its place, `FILE, line N`, for messages."""
        for file in self.files:
            yield from self._of_file(file)

    def _of_file(self, file: str) -> Iterator[tuple[str, Record]]:
        if self.layout is not None:
            names = self.layout.names
            for number, row in rows_of(file, self.layout):
                yield f"{file}, line {number}", dict(zip(names, row, strict=True))
        elif self.type == "json":
            yield from _objects(file)
        else:
            for number, line in enumerate(lines_of(file), 1):
                yield f"{file}, line {number}", {"text": line.removesuffix("\n").removesuffix("\r")}

    def __str__(self) -> str:
        return f"{self.type}, {self.layout}" if self.layout else self.type


def plain_files(files: Sequence[str]) -> PlainFiles:
    """The files, whose type is not parquet. DataError if they differ in type or header."""
    type = file_type(files)
    layouts = [layout_of(file, type) for file in files] if type in ("csv", "tsv") else [None]
    for file, layout in zip(files, layouts, strict=False):
        if layout != layouts[0]:
            raise DataError(f"{file} ({layout}) and {files[0]} ({layouts[0]}) differ; give each its own source")
    return PlainFiles(tuple(files), type, layouts[0])


def _objects(file: str) -> Iterator[tuple[str, Record]]:
    """The objects of JSON lines, or of one array."""
    lines = lines_of(file)
    first = next(lines, "")
    if first.lstrip().startswith("["):
        found = _parsed("".join(chain([first], lines)), file)
        rows = ((f"{file}, row {number}", row) for number, row in enumerate(found, 1))
    else:
        places = ((f"{file}, line {number}", line) for number, line in enumerate(chain([first], lines), 1))
        rows = ((where, _parsed(line, where)) for where, line in places if line.strip())
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f'{where}: a row must be a JSON object, such as {{"text": ...}}, got {row!r:.80}')
        yield where, row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> Record:
    """The object; of a key that occurs twice, JSON does not say which value counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise DataError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found
