"""Texts in an unnamed temporary file: 8 bytes of memory each."""

import os
import tempfile
from array import array

import numpy as np


class Spool:
    """Texts that are added at the end, and read again by their numbers."""

    def __init__(self) -> None:
        self._copy, self._ends = tempfile.TemporaryFile(), array("q", [0])  # noqa: SIM115 - as long as the texts live

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> None:
        self._ends.append(self._ends[-1] + self._copy.write(text.encode("utf-8")))

    def take(self, positions: np.ndarray) -> list[str]:
        """The texts at the given positions (N,), in that order."""
        found = []
        for position in positions.tolist():
            self._copy.seek(self._ends[position])
            found.append(self._copy.read(self._ends[position + 1] - self._ends[position]).decode("utf-8"))
        self._copy.seek(0, os.SEEK_END)  # where `add` writes
        return found
