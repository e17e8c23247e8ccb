"""Sources: a data specification becomes rows, checked as far as possible before training starts."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from llm2enc.data import beir, cells, content, dialogues
from llm2enc.data.docstrings.corpus import pair_view, paragraph_view, read_docstrings, sentence_view
from llm2enc.data.formats import FORMATS, SCORES, DetectedFormat, check_content, detect_format
from llm2enc.data.records import to_pair, to_scored_pair
from llm2enc.data.rows import Dialogue, Pair, PairKind, RowKind, Rows, ScoredPair, Stream
from llm2enc.data.tables import Blocks, Table, copied, label, open_table, reading
from llm2enc.data.types import type_in
from llm2enc.errors import DataError
from llm2enc.recipe import DataSpec, DocstringsData, FilesData, HubData

_log = logging.getLogger(__name__)

Row = TypeVar("Row")


def source_name(spec: DataSpec) -> str:
    """Name of a source in batches, logs and tables."""
    return (spec.name or "docstrings") if isinstance(spec, DocstringsData) else label(spec)


def read_texts(spec: DataSpec) -> Rows[str] | Stream[str]:
    """The nonempty texts of a source."""
    if isinstance(spec, DocstringsData):
        return _listed(spec, _docstring_texts(spec))
    if spec.view == "texts" and not _has_texts(spec):
        pairs = examine(spec.model_copy(update={"view": None}))[1]
        if isinstance(pairs, Stream):
            return Stream(pairs.name, lambda: map(_both_sides, pairs.blocks()))
        return _both_sides(pairs)
    table = open_table(spec)
    column = _text_column(spec, table)
    reader = _Reader(source_name(spec), [column], {column: cells.plain_list}, lambda record: record[column])
    return _rows(spec, table, reader)


def _has_texts(spec: FilesData | HubData) -> bool:
    """Whether a source is a table of texts, not of pairs."""
    if _is_beir(spec):
        return False
    columns = [name for name, kind in schema_of(open_table(spec)).items() if cells.is_text(kind)]
    return "text" in {*columns, *spec.columns} or len(columns) == 1


def _both_sides(pairs: Rows[Pair]) -> Rows[str]:
    """The query and the positive of each pair, in turn."""

    def take(positions: np.ndarray) -> list[str]:
        found = zip(positions.tolist(), pairs.take(positions // 2), strict=True)
        return [pair.positive if position % 2 else pair.query for position, pair in found]

    return Rows(pairs.name, 2 * len(pairs), take, pairs.dropped)


def read_rows(row: RowKind, spec: DataSpec, scores: bool = False) -> Rows[Any] | Stream[Any]:
    """The rows of a source, texts (`str`), dialogues or pairs; those without text, response, query, positive or score are
    dropped.

    scores  as for `examine`
    """
    if row is Dialogue:
        return read_dialogues(spec)
    return read_texts(spec) if row is str else examine(spec, row, scores)[1]


def read_dialogues(spec: DataSpec) -> Rows[Dialogue] | Stream[Dialogue]:
    """The dialogues of a source that have a response.

    raises  DataError if its columns hold none; for a row that is no dialogue, when it is read
    """
    name = source_name(spec)
    if isinstance(spec, DocstringsData) or _is_beir(spec):
        raise DataError(f"data source {name!r}: this stage reads dialogues, which docstrings and BEIR folders are not")
    _refuse_beir(spec)
    _refuse_roles(spec, {"messages", "prompt", "response"}, "dialogues")
    if spec.format != "auto" or spec.view is not None:
        raise DataError(f"data source {name!r}: this stage reads dialogues; remove `format` and `view`")
    table = open_table(spec)
    try:
        columns = dialogues.columns_of(schema_of(table), spec.columns)
        with reading(spec):
            sample = head(table, list(columns.values()))
        for role, column in columns.items():
            if role != "messages":
                content.check_texts(column, sample[column], guessed=not spec.columns)
    except DataError as error:
        raise DataError(f"data source {name!r}: {error}") from None
    _log.info("%s: dialogues (%s)", name, ", ".join(f"{role} = {column}" for role, column in columns.items()))

    def convert(record: dict[str, Any]) -> Dialogue:
        try:
            return dialogues.to_dialogue(columns, record)
        except DataError as error:
            raise DataError(f"data source {name!r}: {error}") from None

    required = {column: dialogues.responses for role, column in columns.items() if role != "prompt"}
    return _rows(spec, table, _Reader(name, list(columns.values()), required, convert))


def examine(
    spec: DataSpec, row: PairKind = Pair, scores: bool = False
) -> tuple[DetectedFormat, Rows[Any] | Stream[Any]]:
    """What a source of pairs was taken for, and its rows.

    row     the kind of row
    scores  give `Pair`s the scores of their documents, where the source has them; else those columns are not read
    """
    if row is ScoredPair and (isinstance(spec, DocstringsData) or _is_beir(spec)):
        raise DataError(
            f"data source {source_name(spec)!r}: this stage reads scored pairs, two texts and a number a row"
        )
    if isinstance(spec, DocstringsData):
        return DetectedFormat("docstrings", {"query": ("summary",), "positive": ("body",)}), _listed(
            spec, [_own_pair(spec, query, body) for query, body in _docstring_pairs(spec)]
        )
    if spec.view == "texts":
        raise DataError(
            f"data source {source_name(spec)!r}: this stage reads pairs, `view: texts` gives texts; remove it"
        )
    if _is_beir(spec):
        detected, rows = beir.read(spec, scores)
    else:
        _refuse_beir(spec)
        table = open_table(spec)
        detected = _detected(spec, table, row, scores)
        rows = _rows(spec, table, _pair_reader(spec, detected, row))
    _log.info("%s: %s", source_name(spec), detected)
    return detected, rows


# ----------------------------------------------------------------------------------------------------------- docstrings


def _docstring_texts(spec: DocstringsData) -> list[str]:
    if spec.view == "pairs":
        raise DataError(
            f"data source {source_name(spec)!r}: this stage reads texts, `view: pairs` gives pairs; "
            "set `view: paragraphs` or `view: sentences`"
        )
    found = read_docstrings(spec.packages, spec.split)
    return paragraph_view(found) if spec.view == "paragraphs" else sentence_view(found)


def _docstring_pairs(spec: DocstringsData) -> list[tuple[str, str]]:
    if spec.view != "pairs":
        raise DataError(
            f"data source {source_name(spec)!r}: this stage reads pairs, `view: {spec.view}` gives texts; "
            "set `view: pairs`"
        )
    return pair_view(read_docstrings(spec.packages, spec.split))


def _listed(spec: DocstringsData, rows: Sequence[Row]) -> Rows[Row]:
    if spec.columns:
        raise DataError(f"data source {source_name(spec)!r}: docstrings have no columns; remove `columns`")
    if not rows:
        raise DataError(f"data source {source_name(spec)!r} is empty: no docstring of these packages has such prose")
    rows = rows[: spec.limit]
    return Rows(source_name(spec), len(rows), lambda positions: [rows[position] for position in positions])


def _own_pair(spec: DocstringsData, query: str, body: str) -> Pair:
    return Pair(query, body, (), spec.instruction, spec.instruction if spec.symmetric else "")


# -------------------------------------------------------------------------------------------------------------- columns


def schema_of(table: Table) -> dict[str, pa.DataType]:
    """Column name to Arrow type, in the order of the table."""
    schema = table.schema if isinstance(table, Blocks) else table.features.arrow_schema
    return {field.name: type_in(field) for field in schema}


def head(table: Table, columns: list[str]) -> dict[str, list[Any]]:
    """The cells of the first thousand rows, by column."""
    if isinstance(table, Blocks) and table.sample is not None:
        records = table.sample()
        return {name: [record.get(name) for record in records] for name in columns}
    if isinstance(table, Blocks):
        block = next(table.read(columns), None)
        return {name: block[name].to_pylist() if block is not None else [] for name in columns}
    head = table.select_columns(columns)[:1000]
    return {name: list(head[name]) for name in columns}


def _text_column(spec: FilesData | HubData, table: Table) -> str:
    schema = schema_of(table)
    _refuse_roles(spec, {"text"}, "texts")
    if spec.format != "auto":
        raise DataError(f"data source {source_name(spec)!r}: this stage reads texts, `format` is for pairs; remove it")
    strings = [name for name, kind in schema.items() if cells.is_text(kind) and not pa.types.is_null(kind)]
    column = spec.columns.get("text") or ("text" if "text" in schema else strings[0] if len(strings) == 1 else None)
    if column not in schema:
        raise DataError(
            f"data source {source_name(spec)!r} has no column {column or 'text'!r} for the text; its columns are "
            f"{', '.join(schema)}. Say which one it is: `columns: {{text: ...}}`"
        )
    if not cells.is_text(schema[column]):
        raise DataError(
            f"data source {source_name(spec)!r}: column {column!r} (text) holds {schema[column]}, expected text"
        )
    with reading(spec):
        sample = head(table, [column])[column]
    try:
        content.check_texts(column, sample, guessed=column not in ("text", spec.columns.get("text")))
    except ValueError as error:
        raise DataError(f"data source {source_name(spec)!r}: {error}") from None
    _log.info("%s: %s; text = %s", source_name(spec), getattr(table, "described", "") or "table", column)
    return column


def _refuse_roles(spec: DataSpec, known: set[str], rows: str) -> None:
    unused = set(spec.columns) - known
    if unused:
        raise DataError(
            f"data source {source_name(spec)!r}: `columns` names {', '.join(sorted(unused))}, "
            f"but this stage reads {rows}, whose roles are {', '.join(sorted(known))}; remove it"
        )


def _is_beir(spec: DataSpec) -> bool:
    return isinstance(spec, FilesData) and beir.is_beir(spec.path)


def _refuse_beir(spec: FilesData | HubData) -> None:
    split = isinstance(spec, FilesData) and spec.split is not None
    if split or spec.format == "beir":
        what = "`split` is for BEIR folders, give the file itself" if split else "`format: beir` needs a BEIR folder"
        raise DataError(
            f"data source {source_name(spec)!r}: {what}; such a folder holds corpus.jsonl, queries.jsonl and qrels/"
        )


def _detected(spec: FilesData | HubData, table: Table, row: PairKind, scores: bool) -> DetectedFormat:
    texts = {"query", "positive", "instruction"}
    if row is ScoredPair:
        _refuse_roles(spec, texts | {"score"}, "scored pairs")
    elif scores:
        _refuse_roles(spec, texts | {"negatives", *SCORES} - {"score"}, "pairs with scores")
    else:
        _refuse_roles(spec, texts | {"negatives"}, "pairs without scores")
    schema = schema_of(table)
    with reading(spec):
        sample = head(table, list(schema))
    try:
        detected = detect_format(schema, spec.format, spec.columns, row, scores)
        check_content(detected, sample, spec.columns, row)
    except ValueError as error:
        raise DataError(f"data source {source_name(spec)!r}: {error}") from None
    described = (table.described,) if isinstance(table, Blocks) and table.described else ()
    return replace(detected, notes=(*described, *detected.notes))


# ----------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Reader(Generic[Row]):
    """How the rows of a table are read."""

    name: str
    """Of the source, for messages."""
    columns: list[str]
    required: dict[str, Callable[[Any], list[Any]]]
    """Columns that must have text or a number, and how their cells read."""
    convert: Callable[[dict[str, Any]], Row]
    """The row of a record that has it."""

    def kept(self, table: pa.Table) -> np.ndarray:
        """Positions of the rows that have text in every required column."""
        mask = np.ones(len(table), dtype=bool)
        for column, read in self.required.items():
            try:
                mask &= cells.filled(table[column], read)
            except ValueError as error:
                raise DataError(f"data source {self.name!r}: column {column!r}: {error}") from None
        return np.flatnonzero(mask)


def _pair_reader(spec: FilesData | HubData, detected: DetectedFormat, row: PairKind) -> _Reader[Any]:
    form = FORMATS[detected.format]
    (query,), (positive,) = detected.roles["query"], detected.roles["positive"]
    required = {query: lambda cell: [form.query(cell)]} | {positive: form.documents}
    required |= {score: cells.numbers for score in detected.roles.get("score", ())}
    made = to_scored_pair if row is ScoredPair else to_pair

    def convert(record: dict[str, Any]) -> Any:
        try:
            return made(detected, record, spec.instruction, spec.symmetric)
        except ValueError as error:
            raise DataError(f"data source {source_name(spec)!r}: {error}") from None

    return _Reader(source_name(spec), detected.columns, required, convert)


def _rows(spec: FilesData | HubData, table: Table, reader: _Reader[Row]) -> Rows[Row] | Stream[Row]:
    """The rows of a table whose required columns are not empty, converted when they are read."""
    if isinstance(table, Blocks) and spec.streaming:
        return _stream(spec, table, reader)
    with reading(spec):
        table = copied(table, reader.columns) if isinstance(table, Blocks) else table.select_columns(reader.columns)
    name = reader.name
    kept, start = [np.zeros(0, dtype=np.int64)], 0
    for block in table.select_columns(list(reader.required)).with_format("arrow").iter(10_000):
        kept.append(start + reader.kept(block))
        start += len(block)
    positions = np.concatenate(kept)
    dropped = start - len(positions)
    filled = " and ".join(reader.required)
    _log.info("%s: %d rows, %d more dropped because %s is empty", name, len(positions), dropped, filled)
    if not len(positions):
        raise DataError(f"data source {name!r} is empty: {start} rows, none with text in {filled}")

    def take(chosen: np.ndarray) -> list[Row]:
        found = table[positions[chosen].tolist()]
        records = zip(*(found[column] for column in reader.columns), strict=True)
        return [reader.convert(dict(zip(reader.columns, record, strict=True))) for record in records]

    return Rows(name, len(positions), take, dropped)


def _stream(spec: FilesData | HubData, table: Blocks, reader: _Reader[Row]) -> Stream[Row]:
    name = reader.name

    def blocks() -> Iterator[Rows[Row]]:
        dropped = 0
        tables = table.read(reader.columns)
        while True:
            with reading(spec):
                block = next(tables, None)
            if block is None:
                break
            kept = reader.kept(block)
            dropped += len(block) - len(kept)
            yield _block(block.take(kept), reader)
        _log.info("%s: %d rows of this pass dropped because they are empty", name, dropped)

    if not any(len(block) for block in blocks()):
        raise DataError(f"data source {name!r} is empty: no row has text in {' and '.join(reader.required)}")
    return Stream(name, blocks)


def _block(table: pa.Table, reader: _Reader[Row]) -> Rows[Row]:
    def take(chosen: np.ndarray) -> list[Row]:
        return [reader.convert(record) for record in table.take(chosen).to_pylist()]

    return Rows(reader.name, len(table), take)
