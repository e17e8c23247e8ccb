"""What the cells of a column look like: rules over a sample, by which a guess is refused that the content contradicts."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from llm2enc.errors import DataError

_ID = re.compile(r"(?=\S*\d)([A-Za-z]{1,12}[-_:/.#]?)?[0-9a-fA-F-]{1,40}")
# Names of columns that grade nothing, whatever their values, of those that do, and of those whose few values are kinds.
_ID_NAME = re.compile(
    r"(^|_)(ids?|idx|index|uuid|docid|qid|pid|rank|position|len|length|date|year|time|timestamp)$|^unnamed"
)
_LABEL_NAME = re.compile(
    "label|score|relev|simil|grade|rating|^is_|^has_|match|dupl|paraphras|correct|entail|judg|(^|_)sim$"
)
_KIND_NAME = re.compile("(^|_)(type|source|dataset|dataset_name|domain|split|task|lang|language|topic|category)$")
_CLASSES = 10
_SCALES = ((-1, 1), (0, 5), (0, 10), (0, 100))


def check_texts(column: str, cells: Sequence[Any], guessed: bool) -> None:
    """DataError for a column of texts whose cells are none.

    guessed  whether nobody named the column: numbers and ids may be encoded, if that is what is wanted
    """
    if written_lists(cells):
        raise DataError(
            f"column {column!r} holds lists that are written as text ({_first(cells)!r:.60}); write such rows as JSON "
            "lines or .parquet, which have lists"
        )
    found = no_text(cells) if guessed else ""
    if found:
        raise DataError(
            f"column {column!r} was taken for texts, and holds {found} ({_first(cells)!r:.60}); name the column of the "
            "texts"
        )


def _first(cells: Sequence[Any]) -> Any:
    return next((cell for cell in cells if cell is not None and cell != ""), None)


def no_text(cells: Sequence[Any]) -> str:
    """What all cells are that have something, if that is no text: `numbers`, `ids`; else empty."""
    filled = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    if not filled:
        return ""
    if all(_number(cell) is not None for cell in filled):
        return "numbers"
    return "ids" if len(set(filled)) == len(filled) and all(_ID.fullmatch(cell.strip()) for cell in filled) else ""


def written_lists(cells: Sequence[Any]) -> bool:
    """Whether every cell that has something is a list that is written as text."""
    filled = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    return bool(filled) and all(_is_list(cell.strip()) for cell in filled)


def grades(name: str, cells: Sequence[Any]) -> str:
    """What the cells look like, with examples, if they class or grade their rows: by their values or the column's name."""
    filled = [cell for cell in cells if cell is not None and cell != ""]
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    if not filled or not all(isinstance(cell, str | int | float) for cell in filled) or _ID_NAME.search(name):
        return ""
    values = list(dict.fromkeys(filled))
    numbers = [_number(cell) for cell in filled]
    short = max(len(str(value)) for value in values) <= 30
    named = bool(_LABEL_NAME.search(name)) and short
    if None in numbers:
        few = 1 < len(values) <= min(_CLASSES, len(filled) // 2) and short and not _KIND_NAME.search(name)
        kind = "classes" if few or named else ""
    else:
        kind = "grades" if _is_scale(numbers) else "classes" if _are_classes(numbers) else "grades" if named else ""
    return f"{kind} ({', '.join(map(str, values[:4]))}{', ...' * (len(values) > 4)})" if kind else ""


def _is_scale(numbers: Sequence[float]) -> bool:
    """Whether some are fractions, and all lie on a usual scale."""
    inside = any(low <= min(numbers) and max(numbers) <= high for low, high in _SCALES)
    return inside and any(number != int(number) for number in numbers)


def _are_classes(numbers: Sequence[float]) -> bool:
    """Whether they are two truth values, or few whole numbers that come again and again."""
    values = set(numbers)
    return values == {0, 1} or 1 < len(values) <= min(_CLASSES, len(numbers) - 1)


def _number(cell: Any) -> float | None:
    try:
        found = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def _is_list(text: str) -> bool:
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        return isinstance(ast.literal_eval(text), list)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
