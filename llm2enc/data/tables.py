"""Tables: files and hub data sets as `datasets` objects. Whatever cannot be read is a ValueError with its remedy."""

import glob
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import datasets
import fsspec
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from llm2enc.data.files import file_type, matches
from llm2enc.errors import DataError
from llm2enc.recipe import FilesData, HubData

_BLOCK = 1000  # rows of a stream that are read at once


@dataclass(frozen=True)
class Blocks:
    """A table that is read on the fly."""

    schema: pa.Schema
    read: Callable[[list[str]], Iterator[pa.Table]]
    """One pass over the named columns, a thousand rows at a time."""

    def head(self, rows: int) -> "Blocks":
        """The first rows of the table."""

        def read(columns: list[str]) -> Iterator[pa.Table]:
            left = rows
            blocks = self.read(columns)
            while left > 0 and (block := next(blocks, None)) is not None:
                yield block.slice(0, left)
                left -= len(block)

        return Blocks(self.schema, read)


Table = datasets.Dataset | Blocks


def label(spec: FilesData | HubData) -> str:
    """Name of a source in logs and messages."""
    return spec.name or (spec.path if isinstance(spec.path, str) else ", ".join(spec.path))


def open_table(spec: FilesData | HubData) -> Table:
    """The table of a source, memory-mapped or streaming, cut to the first `spec.limit` rows."""
    with reading(spec):
        table = _load_files(spec) if isinstance(spec, FilesData) else _load_hub(spec)
    if spec.limit is None:
        return table
    return table.head(spec.limit) if isinstance(table, Blocks) else table.select(range(min(spec.limit, len(table))))


def _load_hub(spec: HubData) -> Table:
    files = list(spec.data_files) if isinstance(spec.data_files, tuple) else spec.data_files
    where = {"path": spec.path, "name": spec.config, "revision": spec.revision, "data_files": files}
    if not spec.streaming:
        return datasets.load_dataset(**where, split=spec.split)
    builder = datasets.load_dataset_builder(**where)
    found = builder.config.data_files or {}
    if spec.split in found and all(str(file).endswith(".parquet") for file in found[spec.split]):
        return _parquet_blocks([str(file) for file in found[spec.split]])
    return _stream_blocks(builder.as_streaming_dataset(split=spec.split))


def _stream_blocks(table: datasets.IterableDataset) -> Blocks:
    def read(columns: list[str]) -> Iterator[pa.Table]:
        return iter(table.select_columns(columns).with_format("arrow").iter(_BLOCK))

    if table.features is not None:
        return Blocks(table.features.arrow_schema, read)
    first = next(iter(table.with_format("arrow").iter(1)), None)
    if first is None:
        raise DataError("it is empty")
    return Blocks(first.schema, read)


def _parquet_blocks(files: list[str]) -> Blocks:
    """Parquet files, local or of the hub.

    Not by `datasets`, which reads them with `Fragment.to_batches`: a program that ends while such a pass is open, as the
    endless batches of training do, hangs or aborts (apache/arrow issue 45214, datasets issue 7467).
    """

    def read(columns: list[str]) -> Iterator[pa.Table]:
        for file in files:
            with fsspec.open(file, "rb") as raw, pq.ParquetFile(raw) as table:
                for batch in table.iter_batches(_BLOCK, columns=columns):
                    yield pa.Table.from_batches([batch])

    with fsspec.open(files[0], "rb") as raw, pq.ParquetFile(raw) as table:
        return Blocks(table.schema_arrow.remove_metadata(), read)


def _load_files(spec: FilesData) -> Table:
    files = [file for path in ([spec.path] if isinstance(spec.path, str) else spec.path) for file in matches(path)]
    return load(files, spec.streaming)


def load(files: list[str], streaming: bool = False) -> Table:
    """The table of files of one type; absolute paths, escaped as for `glob`."""
    reader = file_type(files)
    if reader == "parquet" and streaming:
        return _parquet_blocks([glob.glob(file)[0] for file in files])
    options: dict[str, Any] = {}
    if reader in {"csv", "tsv"}:
        options, reader = _text_columns(files[0], reader), "csv"
    elif reader == "json":
        options = _filled_types(files)
    table = datasets.load_dataset(reader, data_files=files, split="train", streaming=streaming, **options)
    return _stream_blocks(table) if streaming else table


def _text_columns(file: str, reader: str) -> dict[str, Any]:
    """Options that read every column as the text it is: guessing would turn "007" into 7 and "NA" into nothing."""
    # Our .tsv files are unquoted: a quotation mark is part of the text.
    style = {"sep": "\t", "quoting": 3} if reader == "tsv" else {}
    header = pandas.read_csv(glob.glob(file)[0], nrows=0, **style)
    features = datasets.Features({name: datasets.Value("string") for name in header.columns})
    return {**style, "keep_default_na": False, "features": features}


def _filled_types(files: list[str]) -> dict[str, Any]:
    """Options that name the type of every column if some column starts empty.

    `datasets` takes the types from the first chunk: if no row of it has negatives, the first row that has one is an
    error. So an empty column gets the type that it has at the head of another file, that of the positives if it holds
    negatives, or text.
    """
    types: dict[str, pa.DataType] = {}
    vacant = False
    for file in files:
        for name, kind in _head_types(glob.glob(file)[0]).items():
            vacant = vacant or _is_vacant(kind)
            if name not in types or _is_vacant(types[name]):
                types[name] = kind
    if not types:
        raise DataError("it is empty: there is no row in it")
    for name, kind in types.items():
        alike = name.replace("negative", "positive").replace("neg", "pos")
        types[name] = _as_text(types.get(alike, kind) if _is_vacant(kind) and pa.types.is_list(kind) else kind)
    return {"features": datasets.Features.from_arrow_schema(pa.schema(types))} if vacant else {}


def _head_types(file: str) -> dict[str, pa.DataType]:
    """Column types of the first 1000 rows of a JSON-lines file, or of a file that is one JSON array of rows."""
    with pa.input_stream(file, compression="detect") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig") as text:
        first = text.readline()
        if first.lstrip().startswith("["):
            rows = json.loads(first + text.read())[:1000]
        else:
            rows = [json.loads(line) for line in chain([first], islice(text, 999)) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise DataError('every row must be a JSON object, such as {"text": ...}')
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _type(name, [row.get(name) for row in rows]) for name in names}


def _type(name: str, cells: list[Any]) -> pa.DataType:
    try:
        return pa.array(cells).type
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} mixes types ({error}); make all its cells of one type") from None
    except OverflowError:
        raise DataError(f"column {name!r} holds a number beyond 64 bits; write it as text") from None


def _is_vacant(kind: pa.DataType) -> bool:
    """Whether the type, or a part of it, is that of cells that are all empty."""
    return pa.types.is_null(kind) or any(_is_vacant(kind.field(part).type) for part in range(kind.num_fields))


def _as_text(kind: pa.DataType) -> pa.DataType:
    """The type with text wherever it is vacant."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_as_text(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_text(field.type)) for field in kind])
    return kind


@contextmanager
def reading(spec: FilesData | HubData) -> Iterator[None]:
    """Loads in silence; whatever goes wrong is a ValueError that names the source."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        # `datasets` hides the reason (a broken line, a ragged row) one level down.
        reason = error.__cause__ or error
        raise DataError(f"data source {label(spec)!r} cannot be read: {reason}") from error
    finally:
        if shown:  # the caller's choice for its own data sets
            datasets.enable_progress_bars()
