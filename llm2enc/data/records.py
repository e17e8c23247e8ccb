"""Records: the row that a table's record (column to cell) stands for."""

from collections.abc import Callable, Mapping
from typing import Any

from llm2enc.data import cells
from llm2enc.data.formats import FORMATS, DetectedFormat
from llm2enc.data.rows import Pair, ScoredPair
from llm2enc.errors import DataError


def to_pair(
    detected: DetectedFormat, record: Mapping[str, Any], instruction: str = "", symmetric: bool = False
) -> Pair | None:
    """The pair of a record; None if it has no query or no positive.

    instruction  for rows that carry none of their own
    symmetric    documents carry the instruction of the query
    raises       ValueError if a cell is not of the format, if a row gives its documents different instructions, or if it
                 has not as many scores as documents
    """
    form = FORMATS[detected.format]
    [(asked, query)] = _cells(detected, "query", lambda cell: [form.query(cell)], record)
    positives = _cells(detected, "positive", form.documents, record)
    negatives = _cells(detected, "negatives", form.documents, record)
    positive_scores, negative_scores = _scores(detected, record, len(positives), len(negatives))
    places: dict[str, int] = {}  # of the positives, each text once
    for place, (_, text) in enumerate(positives):
        if text.strip():
            places.setdefault(text, place)
    kept = [place for place, (_, text) in enumerate(negatives) if text.strip()]
    if not query.strip() or not places:
        return None
    own = [text for _, text in _cells(detected, "instruction", cells.plain_list, record)]
    asked = next((text for text in (*own, asked, instruction) if text.strip()), "")
    told = {text for text, document in (*positives, *negatives) if document.strip()}
    if len(told) > 1:
        raise DataError(f"one row gives its documents different instructions: {sorted(told)!r:.200}")
    first, *extra = places
    return Pair(
        query=query,
        positive=first,
        negatives=tuple(negatives[place][1] for place in kept),
        instruction=asked,
        document_instruction=told.pop() or (asked if symmetric else ""),
        extra_positives=tuple(extra),
        positive_scores=tuple(positive_scores[place] for place in places.values()) if positive_scores else (),
        negative_scores=tuple(negative_scores[place] for place in kept) if negative_scores else (),
    )


def to_scored_pair(
    detected: DetectedFormat, record: Mapping[str, Any], instruction: str = "", symmetric: bool = False
) -> ScoredPair | None:
    """The two texts of a record and their score; None if one of the three is empty.

    raises  ValueError as `to_pair` does, or if a cell holds more than one text or number
    """
    pair = to_pair(detected, record, instruction, symmetric)
    found = _cells(detected, "score", cells.numbers, record)
    if pair is None or not found:
        return None
    if pair.extra_positives:
        (column,) = detected.roles["positive"]
        raise DataError(f"column {column!r} holds {1 + len(pair.extra_positives)} texts, and a score is of one")
    return ScoredPair(pair.query, pair.positive, found[0], pair.instruction, pair.document_instruction)


def _scores(
    detected: DetectedFormat, record: Mapping[str, Any], positives: int, negatives: int
) -> tuple[list[float], list[float]]:
    """Scores of the positives and of the negatives; empty where the row has none."""
    joint = _cells(detected, "scores", cells.numbers, record)
    if joint:
        _check_count(detected, "scores", len(joint), positives + negatives)
        return joint[:positives], joint[positives:]
    found = []
    for role, documents in (("positive_scores", positives), ("negative_scores", negatives)):
        found.append(_cells(detected, role, cells.numbers, record))
        if found[-1]:
            _check_count(detected, role, len(found[-1]), documents)
    return found[0], found[1]


def _check_count(detected: DetectedFormat, role: str, scores: int, documents: int) -> None:
    if scores != documents:
        columns = " + ".join(detected.roles[role])
        raise DataError(
            f"column {columns!r} ({role}) holds {scores} numbers for {documents} documents; give one for each"
        )


def _cells(
    detected: DetectedFormat, role: str, read: Callable[[Any], list[Any]], record: Mapping[str, Any]
) -> list[Any]:
    """What the cells of a role hold. Types cannot tell all: a list of texts may hold one, two or three."""
    found: list[Any] = []
    for name in detected.roles.get(role, ()):
        try:
            found += read(record[name])
        except ValueError as error:
            raise DataError(f"column {name!r} ({role}): {error}") from None
    return found
