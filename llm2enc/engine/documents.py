"""Distinct documents on disk, each with a number: what is searched, and what a row's own texts are found by."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from llm2enc.audit import keys_of
from llm2enc.data import Pair, Rows, Spool, Stream, beir, read_texts
from llm2enc.errors import DataError
from llm2enc.recipe import FilesData

_READ = 1000  # rows at a time


class Documents:
    """Texts that differ by more than case, white space and Unicode form; of equal ones the first is kept.

    About 130 bytes of memory each: the texts are in a temporary file.
    """

    def __init__(self) -> None:
        self._texts = Spool()
        self._numbers: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, texts: Sequence[str]) -> list[int]:
        """The number of each text, a new one where there was none."""
        found = []
        for text, key in zip(texts, keys_of(texts).tolist(), strict=True):
            if key not in self._numbers:
                self._numbers[key] = len(self._texts)
                self._texts.add(text)
            found.append(self._numbers[key])
        return found

    def find(self, text: str) -> int | None:
        """The number of a text, if it is a document."""
        return self._numbers.get(int(keys_of([text])[0]))

    def take(self, numbers: np.ndarray) -> list[str]:
        return self._texts.take(numbers)

    @property
    def rows(self) -> Rows[str]:
        return Rows("documents", len(self), self.take)


def corpus_texts(path: str) -> Iterator[str]:
    """The nonempty texts of a BEIR folder's corpus, or of files with a text in each row. DataError for what is neither."""
    if beir.is_beir(path):
        corpus = beir.files(Path(path), None)[0]
        return (text for text in beir.read_texts(corpus).values() if text.strip())
    found = read_texts(FilesData(kind="files", path=path))
    return iter(found) if isinstance(found, Stream) else in_order(found)


def in_order(rows: Rows) -> Iterator:
    """The rows one after another, read by slices."""
    return (row for start in range(0, len(rows), _READ) for row in rows[start : start + _READ])


@dataclass(frozen=True)
class Collection:
    """The documents of a run, and which of them answer which query."""

    documents: Documents
    searched: int
    """Negatives come from the first so many; the others are texts of rows that the corpus does not hold."""
    several: bool
    """Whether a row has several positives."""
    instructed: bool
    """Whether a row has an instruction."""
    _positives: dict[int, tuple[int, ...]]

    def positives(self, query: str) -> tuple[int, ...]:
        """Numbers of all documents that stand as a positive beside this query, in any row."""
        return self._positives[int(keys_of([query])[0])]


def collect(pairs: Rows[Pair], corpus: Iterable[str] | None) -> Collection:
    """The documents of a corpus, then those of the pairs; without one, negatives come from all of the pairs' own.

    raises  DataError for a row whose documents carry an instruction, for which the rows that are written have no place
    """
    documents, positives = Documents(), dict[int, tuple[int, ...]]()
    several, instructed = False, False
    texts = iter(corpus or ())
    while piece := list(islice(texts, _READ)):
        documents.add(piece)
    searched = len(documents)
    for number, pair in enumerate(in_order(pairs), 1):
        if pair.document_instruction:
            raise DataError(
                f"{pairs.name}, row {number}: its documents carry the instruction {pair.document_instruction!r:.60}, for "
                "which the mined rows have no column; leave it out of the file, and set `symmetric: true` in the recipe"
            )
        own = documents.add([pair.positive, *pair.extra_positives])
        documents.add(pair.negatives)
        key = int(keys_of([pair.query])[0])
        several, instructed = several or bool(pair.extra_positives), instructed or bool(pair.instruction)
        positives[key] = tuple(dict.fromkeys((*positives.get(key, ()), *own)))
    return Collection(documents, searched if corpus is not None else len(documents), several, instructed, positives)
