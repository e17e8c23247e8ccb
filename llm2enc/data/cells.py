"""Cells: what the columns of each format hold, and how one of them becomes texts.

A text is a pair (instruction, text); the instruction is empty where the format has none.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm2enc.errors import DataError
from llm2enc.text import Passage

Text = tuple[str, str]  # instruction, text

# -------------------------------------------------------------------------------------------------------------- reading


def plain(cell: str | None) -> Text:
    """A text."""
    return "", cell or ""


def plain_list(cell: str | list[str | None] | None) -> list[Text]:
    """A text or a list of texts."""
    return [plain(text) for text in ([cell] if isinstance(cell, str) else cell or ())]


def instructed(cell: str | list[str | None] | None) -> Text:
    """A text or [instruction, text]."""
    if not isinstance(cell, list):
        return plain(cell)
    if len(cell) != 2:
        raise DataError(f"{cell!r:.80} has {len(cell)} parts, expected [instruction, text]")
    return cell[0] or "", cell[1] or ""


def instructed_list(cell: str | list[Any] | None) -> list[Text]:
    """Texts, or [instruction, text] each."""
    return [instructed(document) for document in ([cell] if isinstance(cell, str) else cell or ())]


def passages(cell: list[dict[str, str | None]] | None) -> list[Text]:
    """[{title, text}]; the title is optional."""
    return [("", titled(passage.get("title"), passage["text"])) for passage in cell or ()]


def titled(title: str | None, text: str | None) -> str:
    """A passage as one text, the title, a space, the body, which a template with a title slot reads apart. Training and
    evaluation join them alike."""
    return Passage(title, text or "") if title and title.strip() else (text or "").strip()


def message(cell: str | list[dict[str, str | None]] | None) -> Text:
    """[{role, content}]: the system message is the instruction, the others are the text."""
    if not isinstance(cell, list):
        return plain(cell)
    system = [part["content"] or "" for part in cell if part["role"] == "system"]
    others = [part["content"] or "" for part in cell if part["role"] != "system"]
    return "\n".join(system), "\n".join(others)


def messages(cell: Any) -> list[Text]:
    """[[{role, content}]], or one sequence without the list around it, or texts."""
    alone = isinstance(cell, str) or (isinstance(cell, list) and cell and isinstance(cell[0], dict))
    return [message(document) for document in ([cell] if alone else cell or ())]


def numbers(cell: Any) -> list[float]:
    """A number or a list of numbers; texts that write numbers (CSV) count. ValueError for what is none, or not finite."""
    found = []
    for value in cell if isinstance(cell, list) else [] if cell is None or cell == "" else [cell]:
        try:
            found.append(float(value))
        except (TypeError, ValueError):
            raise DataError(f"{value!r:.80} is no number") from None
        if not math.isfinite(found[-1]):
            raise DataError(f"{value!r:.80} is no finite number")
    return found


# ---------------------------------------------------------------------------------------------------------------- types


def is_text(kind: pa.DataType) -> bool:
    """Whether cells of this type are texts, or all empty."""
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return strings or pa.types.is_null(kind)


def is_texts(kind: pa.DataType) -> bool:
    """Whether cells of this type are lists of texts."""
    return _is_list(kind, is_text)


def holds_plain(role: str, kind: pa.DataType) -> bool:
    """A text; for documents a list of texts too."""
    return is_text(kind) or (_is_documents(role) and is_texts(kind))


def holds_instructed(role: str, kind: pa.DataType) -> bool:
    """A text or [instruction, text]; for documents a list of them too."""
    return is_text(kind) or is_texts(kind) or (_is_documents(role) and _is_list(kind, is_texts))


def holds_passages(role: str, kind: pa.DataType) -> bool:
    """A text; for documents a list of {text}."""
    return _is_list(kind, _has("text")) if _is_documents(role) else is_text(kind)


def holds_messages(role: str, kind: pa.DataType) -> bool:
    """A text or [{role, content}]; for documents a list of them too."""
    return (
        is_text(kind) or _is_message(kind) or (_is_documents(role) and (is_texts(kind) or _is_list(kind, _is_message)))
    )


def holds_turns(role: str, kind: pa.DataType) -> bool:
    """A text; as `messages` [{role, content}] or a list of texts."""
    return (_is_message(kind) or is_texts(kind)) if role == "messages" else is_text(kind)


def is_numbers(kind: pa.DataType) -> bool:
    """Whether cells of this type are lists of numbers."""
    return _is_list(kind, _is_number)


def holds_scores(role: str, kind: pa.DataType) -> bool:
    """A number, or a text that may write one; but for `score`, which is of a whole row, a list of numbers too."""
    return _is_number(kind) or is_text(kind) or (role != "score" and is_numbers(kind))


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)


def _is_documents(role: str) -> bool:
    return role in {"positive", "negatives"}


def _is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and (pa.types.is_null(kind.value_type) or of(kind.value_type))


def _has(*names: str) -> Callable[[pa.DataType], bool]:
    return lambda kind: pa.types.is_struct(kind) and all(kind.get_field_index(name) >= 0 for name in names)


def _is_message(kind: pa.DataType) -> bool:
    return _is_list(kind, _has("role", "content"))


# -------------------------------------------------------------------------------------------------------------- filling


def filled(column: pa.ChunkedArray, read: Callable[[Any], list[Any]]) -> np.ndarray:
    """(N,) whether a cell has a number, or any text but white space. Only cells that hold more are read one by one."""
    kind = column.type
    if _is_number(kind):
        return np.asarray(pc.is_valid(column))
    if pa.types.is_null(kind):
        return np.zeros(len(column), dtype=bool)
    if is_text(kind):
        return _is_filled(column)
    if is_texts(kind) and read in (plain_list, instructed_list, messages):
        flat = column.combine_chunks()
        owners = np.asarray(pc.list_parent_indices(flat))
        return np.bincount(owners[_is_filled(pc.list_flatten(flat))], minlength=len(column)) > 0
    return np.array([any(text.strip() for _, text in read(cell)) for cell in column.to_pylist()], dtype=bool)


def _is_filled(texts: pa.ChunkedArray | pa.Array) -> np.ndarray:
    if pa.types.is_null(texts.type):
        return np.zeros(len(texts), dtype=bool)
    mask = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(texts.cast(pa.large_string())), ""), False)
    return np.asarray(mask)
