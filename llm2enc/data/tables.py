"""Tables: files and hub data sets, read in blocks or from an Arrow copy. Whatever cannot be read is a ValueError with its
remedy."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from llm2enc.data.files import file_type, matches
from llm2enc.data.plain_files import PlainFiles, plain_files
from llm2enc.data.types import schema_from
from llm2enc.errors import DataError
from llm2enc.recipe import FilesData, HubData
from llm2enc.storage import add_path_to_oserror, remove_stale, replace_bytes, sha256_of, temp_path

_BLOCK = 1000  # rows that are read at once
_FORMAT = 1  # of the Arrow copies: another number where the same files give other rows


@dataclass(frozen=True)
class Blocks:
    """A table that is read on the fly."""

    schema: pa.Schema
    read: Callable[[list[str]], Iterator[pa.Table]]
    """One pass over the named columns, a thousand rows at a time."""
    files: tuple[str, ...] = ()
    """What it is read from, if that is on this machine."""
    described: str = ""
    """What was decided on the files: type, separator, header."""
    limit: int | None = None
    sample: Callable[[], list[dict[str, Any]]] | None = None
    """The first thousand records as they stand in the files, whatever types their cells have."""

    def head(self, rows: int) -> "Blocks":
        """The first rows of the table."""

        def read(columns: list[str]) -> Iterator[pa.Table]:
            left = rows
            blocks = self.read(columns)
            while left > 0 and (block := next(blocks, None)) is not None:
                yield block.slice(0, left)
                left -= len(block)

        return replace(self, read=read, limit=rows)


Table = datasets.Dataset | Blocks


def label(spec: FilesData | HubData) -> str:
    """Name of a source in logs and messages."""
    return spec.name or (spec.path if isinstance(spec.path, str) else ", ".join(spec.path))


@overload
def open_table(spec: FilesData) -> Blocks: ...
@overload
def open_table(spec: FilesData | HubData) -> Table: ...
def open_table(spec: FilesData | HubData) -> Table:
    """The table of a source, cut to the first `spec.limit` rows: a downloaded one memory-mapped, others in blocks."""
    with reading(spec):
        if isinstance(spec, FilesData):
            paths = [spec.path] if isinstance(spec.path, str) else spec.path
            table: Table = open_files([file for path in paths for file in matches(path)])
        else:
            table = _load_hub(spec)
    if spec.limit is None:
        return table
    return table.head(spec.limit) if isinstance(table, Blocks) else table.select(range(min(spec.limit, len(table))))


# ----------------------------------------------------------------------------------------------------------------- hub


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


# --------------------------------------------------------------------------------------------------------------- files


def open_files(files: Sequence[str]) -> Blocks:
    """The table of files of one type; absolute paths."""
    if file_type(files) == "parquet":
        return _parquet_blocks(files, open)
    plain = plain_files(files)
    schema = _json_schema(plain) if plain.type == "json" else None
    names = plain.layout.names if plain.layout else ("text",)
    schema = schema or pa.schema([(name, pa.string()) for name in names])

    def read(columns: list[str]) -> Iterator[pa.Table]:
        kinds = [schema.field(name).type for name in columns]
        records = plain.records()
        while chunk := list(islice(records, _BLOCK)):
            arrays = [_array(name, kind, chunk) for name, kind in zip(columns, kinds, strict=True)]
            yield pa.Table.from_arrays(arrays, names=columns)

    def sample() -> list[dict[str, Any]]:
        return [record for _, record in islice(plain.records(), _BLOCK)]

    return Blocks(schema, read, plain.files, str(plain), sample=sample)


def _array(name: str, kind: pa.DataType, chunk: list[tuple[str, dict[str, Any]]]) -> pa.Array:
    try:
        return pa.array([record.get(name) for _, record in chunk], kind)
    except (pa.ArrowException, ValueError) as error:  # half of a surrogate pair
        raise DataError(f"{chunk[0][0]} and below: column {name!r}: {error}") from None


def _parquet_blocks(files: Sequence[str], opened: Callable[..., Any] = fsspec.open) -> Blocks:
    """Parquet files, local or of the hub.

    Not by `datasets`, which reads them with `Fragment.to_batches`: a program that ends while such a pass is open, as the
    endless batches of training do, hangs or aborts (apache/arrow issue 45214, datasets issue 7467).
    """

    def read(columns: list[str]) -> Iterator[pa.Table]:
        for file in files:
            with opened(file, "rb") as raw, pq.ParquetFile(raw) as table:
                missing = [name for name in columns if name not in table.schema_arrow.names]
                if missing:
                    raise DataError(f"{file} has no column {', '.join(missing)}, and {files[0]} has")
                for batch in table.iter_batches(_BLOCK, columns=columns):
                    found = pa.Table.from_batches([batch]).select(columns)
                    yield found.cast(pa.schema([schema.field(name) for name in columns]))

    with opened(files[0], "rb") as raw, pq.ParquetFile(raw) as table:
        schema = pa.schema([(field.name, _decoded(field.type)) for field in table.schema_arrow])
    return Blocks(schema, read, tuple(files) if opened is open else (), "parquet")


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


# ---------------------------------------------------------------------------------------------------------------- copies


def copied(table: Blocks, columns: list[str]) -> datasets.Dataset:
    """The columns of a table of files, memory-mapped from an Arrow copy, which is named by the content of the files."""
    schema = pa.schema([table.schema.field(name).remove_metadata() for name in columns])
    facts = f"{_FORMAT} {_digest(table.files)} {table.limit} {table.described} {schema}"
    path = _cache(f"{hashlib.sha256(facts.encode()).hexdigest()}.arrow")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        partial = temp_path(path)
        try:
            with (
                add_path_to_oserror(path),
                pa.OSFile(str(partial), "wb") as file,
                pa.ipc.new_stream(file, schema) as out,
            ):
                for block in table.read(columns):
                    out.write_table(block.cast(schema))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(path))


def _json_schema(plain: PlainFiles) -> pa.Schema:
    """Types of all rows of JSON files, which are kept beside the copies: they take a pass of their own."""
    path = _cache(f"{_FORMAT}-{_digest(plain.files)}.schema")
    if path.is_file():
        return pa.ipc.read_schema(pa.py_buffer(path.read_bytes()))
    schema = schema_from(plain.records())
    if not schema.names:
        raise DataError("it is empty: there is no row in it")
    with suppress(OSError):  # a disk that takes nothing: the next run reads the types again
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, schema.serialize().to_pybytes())
    return schema


def _digest(files: Sequence[str]) -> str:
    """SHA-256 of what the files hold, each by itself. Names and time stamps say nothing of it."""
    return hashlib.sha256(" ".join(sha256_of([file]) for file in files).encode()).hexdigest()


def _cache(name: str) -> Path:
    return Path(datasets.config.HF_DATASETS_CACHE) / "llm2enc" / name


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
