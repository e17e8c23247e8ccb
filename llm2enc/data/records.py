"""Records: the row that a table's record (column to cell) stands for."""

from collections.abc import Callable, Mapping
from typing import Any

from llm2enc.data import cells
from llm2enc.data.formats import FORMATS, Recognised
from llm2enc.data.rows import Pair, ScoredPair
from llm2enc.errors import DataError


def to_pair(
    recognised: Recognised, record: Mapping[str, Any], instruction: str = "", symmetric: bool = False
) -> Pair | None:
    """The pair of a record; None if it has no query or no right document.

    instruction  for rows that carry none of their own
    symmetric    documents carry the instruction of the query
    raises       ValueError if a cell is not of the format, if a row gives its documents different instructions, or if it
                 has not as many scores as documents
    """
    form = FORMATS[recognised.format]
    [(asked, query)] = _cells(recognised, "query", lambda cell: [form.query(cell)], record)
    right = _cells(recognised, "positive", form.documents, record)
    wrong = _cells(recognised, "negatives", form.documents, record)
    right_scores, wrong_scores = _scores(recognised, record, len(right), len(wrong))
    places: dict[str, int] = {}  # of the right documents, each text once
    for place, (_, text) in enumerate(right):
        if text.strip():
            places.setdefault(text, place)
    kept = [place for place, (_, text) in enumerate(wrong) if text.strip()]
    if not query.strip() or not places:
        return None
    own = [text for _, text in _cells(recognised, "instruction", cells.plain_list, record)]
    asked = next((text for text in (*own, asked, instruction) if text.strip()), "")
    told = {text for text, document in (*right, *wrong) if document.strip()}
    if len(told) > 1:
        raise DataError(f"one row gives its documents different instructions: {sorted(told)!r:.200}")
    first, *others = places
    return Pair(
        query=query,
        positive=first,
        negatives=tuple(wrong[place][1] for place in kept),
        instruction=asked,
        document_instruction=told.pop() or (asked if symmetric else ""),
        others=tuple(others),
        positive_scores=tuple(right_scores[place] for place in places.values()) if right_scores else (),
        negative_scores=tuple(wrong_scores[place] for place in kept) if wrong_scores else (),
    )


def to_scored_pair(
    recognised: Recognised, record: Mapping[str, Any], instruction: str = "", symmetric: bool = False
) -> ScoredPair | None:
    """The two texts of a record and their score; None if one of the three is empty.

    raises  ValueError as `to_pair` does, or if a cell holds more than one text or number
    """
    pair = to_pair(recognised, record, instruction, symmetric)
    found = _cells(recognised, "score", cells.numbers, record)
    if pair is None or not found:
        return None
    if pair.others:
        (column,) = recognised.roles["positive"]
        raise DataError(f"column {column!r} holds {1 + len(pair.others)} texts, and a score is of one")
    return ScoredPair(pair.query, pair.positive, found[0], pair.instruction, pair.document_instruction)


def _scores(
    recognised: Recognised, record: Mapping[str, Any], right: int, wrong: int
) -> tuple[list[float], list[float]]:
    """Scores of the right and of the wrong documents; empty where the row has none."""
    joint = _cells(recognised, "scores", cells.numbers, record)
    if joint:
        _check_count(recognised, "scores", len(joint), right + wrong)
        return joint[:right], joint[right:]
    found = []
    for role, documents in (("positive_scores", right), ("negative_scores", wrong)):
        found.append(_cells(recognised, role, cells.numbers, record))
        if found[-1]:
            _check_count(recognised, role, len(found[-1]), documents)
    return found[0], found[1]


def _check_count(recognised: Recognised, role: str, scores: int, documents: int) -> None:
    if scores != documents:
        columns = " + ".join(recognised.roles[role])
        raise DataError(
            f"column {columns!r} ({role}) holds {scores} numbers for {documents} documents; give one for each"
        )


def _cells(recognised: Recognised, role: str, read: Callable[[Any], list[Any]], record: Mapping[str, Any]) -> list[Any]:
    """What the cells of a role hold. Types cannot tell all: a list of texts may hold one, two or three."""
    found: list[Any] = []
    for name in recognised.roles.get(role, ()):
        try:
            found += read(record[name])
        except ValueError as error:
            raise DataError(f"column {name!r} ({role}): {error}") from None
    return found
