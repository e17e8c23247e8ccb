"""Arrow types of JSON columns, from all rows: what no reader asks for may hold anything."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import pyarrow as pa

from llm2enc.data.plain_files import Record

_CHUNK = 1000
_PARTS = ("title", "text", "role", "content")  # of an object in a cell; no format reads others (formats.py)
_MIXED = b"mixed"


class Mixed(pa.ExtensionType):
    """The type of a column whose cells have no common type; in a schema an empty column that carries the reason."""

    def __init__(self, reason: str):
        self.reason = reason  # first, because the next line asks for it
        super().__init__(pa.null(), "llm2enc.mixed")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.reason.encode()

    def __str__(self) -> str:
        return self.reason


def schema_from(records: Iterable[tuple[str, Record]]) -> pa.Schema:
    """The columns in the order of their first rows, each with the type that holds all of its cells."""
    kinds: dict[str, pa.DataType] = {}
    records = iter(records)
    while chunk := list(islice(records, _CHUNK)):
        for name in dict.fromkeys(name for _, record in chunk for name in record):
            former = kinds.get(name, pa.null())
            if not isinstance(former, Mixed):
                places, cells = zip(*((where, record[name]) for where, record in chunk if name in record), strict=True)
                kinds[name] = _grown(former, places, cells)
    return pa.schema([_field(name, kind) for name, kind in kinds.items()])


def type_in(field: pa.Field) -> pa.DataType:
    """The type of a column of `schema_from`."""
    reason = (field.metadata or {}).get(_MIXED)
    return field.type if reason is None else Mixed(reason.decode())


def _field(name: str, kind: pa.DataType) -> pa.Field:
    return (
        pa.field(name, pa.null(), metadata={_MIXED: kind.reason}) if isinstance(kind, Mixed) else pa.field(name, kind)
    )


def _grown(former: pa.DataType, places: tuple[str, ...], cells: tuple[Any, ...]) -> pa.DataType:
    """The type that holds the former cells and these; `Mixed` where there is none."""
    try:
        whole = unified(former, _read_parts(pa.array(cells).type))
    except (pa.ArrowException, OverflowError, ValueError):
        whole = None
    if whole is not None:
        return whole
    for where, cell in zip(places, cells, strict=True):
        kind = _type_of(cell)
        whole = None if kind is None else unified(former, kind)
        if whole is None:
            given = f"{cell!r:.60} ({where})"
            return Mixed(f"{given}, which fits no type" if kind is None else f"{former}, then {kind}: {given}")
        former = whole
    return former


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds cells of both; None if there is none."""
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if all(types.is_integer(kind) or types.is_floating(kind) for kind in (one, other)):
        return pa.float64()
    if types.is_list(one) and types.is_list(other):
        inner = unified(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if types.is_struct(one) and types.is_struct(other):
        parts = {field.name: field.type for field in one}
        for field in other:
            inner = unified(parts.get(field.name, pa.null()), field.type)
            if inner is None:
                return None
            parts[field.name] = inner
        return pa.struct(list(parts.items()))
    return None


def _type_of(value: Any) -> pa.DataType | None:
    """The type of a value of JSON; None for a list of several types, a number beyond 64 bits, or half a surrogate pair."""
    if isinstance(value, dict):
        parts = {name: _type_of(value[name]) for name in _PARTS if name in value}
        return None if None in parts.values() else pa.struct(list(parts.items()))
    if isinstance(value, list):
        inner: pa.DataType | None = pa.null()
        for kind in map(_type_of, value):
            inner = None if inner is None or kind is None else unified(inner, kind)
        return None if inner is None else pa.list_(inner)
    try:
        return pa.array([value]).type
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def _read_parts(kind: pa.DataType) -> pa.DataType:
    """The type without the parts of objects that nobody reads."""
    if pa.types.is_list(kind):
        return pa.list_(_read_parts(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _read_parts(field.type)) for field in kind if field.name in _PARTS])
    return kind
