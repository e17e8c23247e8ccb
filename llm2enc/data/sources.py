"""Sources: a data specification becomes rows, texts or pairs, checked as far as possible before training starts."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm2enc.data.docstrings import docstrings, pair_view, paragraph_view, sentence_view
from llm2enc.data.rows import Pair, Rows, Stream
from llm2enc.data.tables import Table, label, open_table
from llm2enc.recipe import DataSpec, DocstringsData

_log = logging.getLogger(__name__)

Row = TypeVar("Row")

_PAIR_COLUMNS = {  # role: accepted column names, the role's own first
    "query": ("query", "anchor"),
    "positive": ("positive",),
    "negatives": ("negatives", "negative"),
    "instruction": ("instruction",),
}
_OPTIONAL = {"negatives", "instruction"}


def source_name(spec: DataSpec) -> str:
    """Name of a source in batches, logs and tables."""
    return (spec.name or "docstrings") if isinstance(spec, DocstringsData) else label(spec)


def read_texts(spec: DataSpec) -> Rows[str] | Stream[str]:
    """The nonempty texts of a source."""
    if isinstance(spec, DocstringsData):
        return _listed(spec, _docstring_texts(spec))
    table = open_table(spec)
    columns = _text_columns(spec, _schema(table, source_name(spec)))
    return _rows(spec, table, columns, lambda row: row["text"])


def read_pairs(spec: DataSpec) -> Rows[Pair] | Stream[Pair]:
    """The query-document pairs of a source; rows without query or positive are dropped."""
    if isinstance(spec, DocstringsData):
        return _listed(
            spec, [_pair(spec, {"query": query, "positive": body}) for query, body in _docstring_pairs(spec)]
        )
    table = open_table(spec)
    columns = _pair_columns(spec, _schema(table, source_name(spec)))
    return _rows(spec, table, columns, lambda row: _pair(spec, row))


# ----------------------------------------------------------------------------------------------------------- docstrings


def _docstring_texts(spec: DocstringsData) -> list[str]:
    if spec.view == "pairs":
        raise ValueError(
            f"data source {source_name(spec)!r}: this stage reads texts, `view: pairs` gives pairs; "
            "set `view: paragraphs` or `view: sentences`"
        )
    found = docstrings(spec.packages, spec.split)
    return paragraph_view(found) if spec.view == "paragraphs" else sentence_view(found)


def _docstring_pairs(spec: DocstringsData) -> list[tuple[str, str]]:
    if spec.view != "pairs":
        raise ValueError(
            f"data source {source_name(spec)!r}: this stage reads pairs, `view: {spec.view}` gives texts; "
            "set `view: pairs`"
        )
    return pair_view(docstrings(spec.packages, spec.split))


def _listed(spec: DocstringsData, rows: Sequence[Row]) -> Rows[Row]:
    if spec.columns:
        raise ValueError(f"data source {source_name(spec)!r}: docstrings have no columns; remove `columns`")
    if not rows:
        raise ValueError(f"data source {source_name(spec)!r} is empty: no docstring of these packages has such prose")
    rows = rows[: spec.limit]
    return Rows(source_name(spec), len(rows), lambda positions: [rows[position] for position in positions])


# -------------------------------------------------------------------------------------------------------------- columns


def _schema(table: Table, name: str) -> dict[str, pa.DataType | None]:
    """Column name to Arrow type; the type is None where a stream does not tell it before it is read."""
    if table.features is not None:
        return {field.name: field.type for field in table.features.arrow_schema}
    first = next(iter(table), None)
    if first is None:
        raise ValueError(f"data source {name!r} is empty")
    return dict.fromkeys(first)


def _text_columns(spec: DataSpec, schema: Mapping[str, pa.DataType | None]) -> dict[str, str]:
    """{"text": column}."""
    _refuse_roles(spec, {"text"}, "texts")
    column = _named_column(spec, "text", ("text",), schema)
    strings = [name for name, kind in schema.items() if kind is not None and _is_text(kind)]
    if column is None and len(strings) == 1:
        column = strings[0]
    if column is None:
        raise _missing(spec, "text", schema)
    _check_type(spec, "text", column, schema[column], lists=False)
    return {"text": column}


def _pair_columns(spec: DataSpec, schema: Mapping[str, pa.DataType | None]) -> dict[str, str]:
    """Role to column, for the roles that the source has."""
    _refuse_roles(spec, set(_PAIR_COLUMNS), "pairs")
    columns: dict[str, str] = {}
    for role, names in _PAIR_COLUMNS.items():
        column = _named_column(spec, role, names, schema)
        if column is not None:
            _check_type(spec, role, column, schema[column], lists=role == "negatives")
            columns[role] = column
        elif role not in _OPTIONAL:
            raise _missing(spec, role, schema)
    return columns


def _refuse_roles(spec: DataSpec, known: set[str], rows: str) -> None:
    unused = set(spec.columns) - known
    if unused:
        raise ValueError(
            f"data source {source_name(spec)!r}: `columns` names {', '.join(sorted(unused))}, "
            f"but this stage reads {rows}, whose roles are {', '.join(sorted(known))}"
        )


def _named_column(spec: DataSpec, role: str, names: Sequence[str], schema: Mapping[str, Any]) -> str | None:
    if role in spec.columns:
        if spec.columns[role] not in schema:
            raise _missing(spec, role, schema)
        return spec.columns[role]
    return next((name for name in names if name in schema), None)


def _missing(spec: DataSpec, role: str, schema: Mapping[str, Any]) -> ValueError:
    wanted = spec.columns.get(role, role)
    return ValueError(
        f"data source {source_name(spec)!r} has no column {wanted!r} for the {role}; its columns are "
        f"{', '.join(schema)}. Say which one it is: `columns: {{{role}: ...}}`"
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _check_type(spec: DataSpec, role: str, column: str, kind: pa.DataType | None, lists: bool) -> None:
    """Raises unless the column can hold the role; an all-null column may, its rows are empty."""
    if kind is None or _is_text(kind) or pa.types.is_null(kind):
        return
    if lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        kind = kind.value_type
        if _is_text(kind) or pa.types.is_null(kind):
            return
    expected = "text or a list of texts" if lists else "text"
    raise ValueError(f"data source {source_name(spec)!r}: column {column!r} ({role}) holds {kind}, expected {expected}")


# ----------------------------------------------------------------------------------------------------------------- rows


def _rows(
    spec: DataSpec, table: Table, columns: dict[str, str], convert: Callable[[dict[str, Any]], Row]
) -> Rows[Row] | Stream[Row]:
    """The rows of a table whose required columns are not empty, converted when they are read."""
    name = source_name(spec)
    required = [column for role, column in columns.items() if role not in _OPTIONAL]
    # One column may play two roles, so columns are selected, and roles given to the cells afterwards.
    table = table.select_columns(sorted(set(columns.values())))
    if isinstance(table, datasets.IterableDataset):
        return _stream(name, table, columns, convert)
    kept = _nonempty(table, required)
    dropped = len(table) - len(kept)
    _log.info("%s: %d rows, %d more dropped because %s is empty", name, len(kept), dropped, " or ".join(required))
    if not len(kept):
        raise ValueError(f"data source {name!r} is empty: {dropped} rows, none with text in {' and '.join(required)}")

    def take(positions: np.ndarray) -> list[Row]:
        cells = table[kept[positions].tolist()]
        count = len(positions)
        return [convert({role: cells[column][i] for role, column in columns.items()}) for i in range(count)]

    return Rows(name, len(kept), take)


def _nonempty(table: datasets.Dataset, columns: Sequence[str]) -> np.ndarray:
    """Positions (N,) of the rows that have text in every one of the columns."""
    kept: list[np.ndarray] = []
    start = 0
    for batch in table.with_format("arrow").iter(10_000):
        mask = np.ones(batch.num_rows, dtype=bool)
        for column in columns:
            texts = batch[column].cast(pa.large_string())
            filled = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(texts), ""), False)
            mask &= filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy()
        kept.append(start + np.flatnonzero(mask))
        start += batch.num_rows
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def _stream(
    name: str, table: datasets.IterableDataset, columns: dict[str, str], convert: Callable[[dict[str, Any]], Row]
) -> Stream[Row]:
    def read() -> Iterator[Row]:
        dropped = 0
        for record in table:
            row = {role: record[column] for role, column in columns.items()}
            _check_cells(name, columns, row)
            if all((row[role] or "").strip() for role in row if role not in _OPTIONAL):
                yield convert(row)
            else:
                dropped += 1
        _log.info("%s: %d rows of this pass dropped because they are empty", name, dropped)

    if next(read(), None) is None:
        raise ValueError(f"data source {name!r} is empty")
    return Stream(name, read)


def _check_cells(name: str, columns: dict[str, str], row: dict[str, Any]) -> None:
    for role, cell in row.items():
        cells = cell if role == "negatives" and isinstance(cell, list) else [cell]
        if not all(text is None or isinstance(text, str) for text in cells):
            raise ValueError(
                f"data source {name!r}: column {columns[role]!r} ({role}) holds {cell!r:.80}, expected text"
            )


def _pair(spec: DataSpec, row: Mapping[str, Any]) -> Pair:
    negatives = row.get("negatives") or ()
    if isinstance(negatives, str):
        negatives = (negatives,)
    own = row.get("instruction") or ""
    instruction = own if own.strip() else spec.instruction
    return Pair(
        query=row["query"],
        positive=row["positive"],
        negatives=tuple(text for text in negatives if text and text.strip()),
        instruction=instruction,
        document_instruction=instruction if spec.symmetric else "",
    )
