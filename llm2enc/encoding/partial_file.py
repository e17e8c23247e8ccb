"""A file of vectors that is not finished. Rows are on the disk before the line that counts them.

vectors.npy.partial/
  run.json      what the vectors depend on; a run of anything else does not go on from here
  rows.npy      the file as it will be, with holes where rows are missing
  done-R.txt    from process R, a line `first end` for every row range that is on the disk
  ranges.npy    of int8 and uint8
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from llm2enc.storage import (
    Facts,
    PartialFolder,
    add_path_to_oserror,
    difference,
    remove_stale,
    replace_bytes,
    sync_one,
    temp_path,
)

_PARQUET_ROWS = 10_000  # in a row group


class PartialFile(PartialFolder):
    """The folder beside `out` that holds a run until it is finished."""

    unit = "vectors"
    files = ("ranges.npy", "rows.npy", "done-*.txt")

    def __init__(self, out: Path):
        super().__init__(out, "rows.npy")
        self.ranges = self.folder / "ranges.npy"

    def count_done(self, facts: Facts) -> int:
        return sum(map(len, self.done(facts)))

    def is_finished(self, facts: Facts) -> bool:
        """Whether the former run was of these facts and came to its end, but for removing the folder."""
        former = self.facts()
        same = former is not None and not difference(former, facts)
        return same and self.out.is_file() and not (self.rows.is_file() and self.missing(former))

    def holds(self, ranges_out: Path | None) -> bool:
        """Whether `ranges_out` is this run's: one that was killed in `finish` may have put it there."""
        there = ranges_out is not None and ranges_out.is_file() and self.ranges.is_file()
        return there and ranges_out.read_bytes() == self.ranges.read_bytes()

    # ---- rows

    def head(self, facts: Facts) -> bytes:
        """The header of the .npy file."""
        file = io.BytesIO()
        shape = (facts["count"], facts["width"])
        np.lib.format.write_array_header_1_0(file, {"descr": facts["dtype"], "fortran_order": False, "shape": shape})
        return file.getvalue()

    def done(self, facts: Facts) -> list[range]:
        """The rows that are on the disk, as row ranges in order that do not touch."""
        if not self.rows.is_file():
            return []
        there = (self.rows.stat().st_size - len(self.head(facts))) // _row_bytes(facts)
        found: list[range] = []
        for first, end in sorted(pair for path in self.folder.glob("done-*.txt") for pair in _row_ranges(path)):
            if not first < end <= min(there, facts["count"]):
                continue
            if found and first <= found[-1].stop:
                found[-1] = range(found[-1].start, max(end, found[-1].stop))
            else:
                found.append(range(first, end))
        return found

    def missing(self, facts: Facts) -> list[range]:
        """The rows that are not."""
        edges = [0, *(edge for rows in self.done(facts) for edge in (rows.start, rows.stop)), facts["count"]]
        return [range(first, end) for first, end in zip(edges[::2], edges[1::2], strict=True) if first < end]

    @contextmanager
    def writer(self, facts: Facts, rank: int) -> Iterator[Callable[[int, np.ndarray], None]]:
        """A function that puts a block of rows in its place, given the number of its first row."""
        start, size = len(self.head(facts)), _row_bytes(facts)
        journal = self.folder / f"done-{rank}.txt"
        journal.touch()
        with self.rows.open("r+b", buffering=0) as rows, journal.open("r+b", buffering=0) as lines:
            lines.truncate(lines.read().rfind(b"\n") + 1)  # without a line that a power cut tore
            lines.seek(0, os.SEEK_END)
            sync_one(self.folder)

            def write(first: int, block: np.ndarray) -> None:
                with add_path_to_oserror(self.rows):
                    rows.seek(start + first * size)
                    _write(rows, np.ascontiguousarray(block, dtype=facts["dtype"]).tobytes())
                    os.fsync(rows.fileno())
                    _write(lines, f"{first} {first + len(block)}\n".encode())
                    os.fsync(lines.fileno())

            yield write

    # ---- the end

    def finish(self, ranges_out: Path | None = None) -> None:
        """Put everything in its place and remove the folder."""
        if ranges_out is not None:  # before the vectors, which mean nothing without them
            replace_bytes(ranges_out, self.ranges.read_bytes())
        if self.out.suffix == ".parquet":
            remove_stale(self.out)
            _to_parquet(self.rows, temp_path(self.out))
            os.replace(temp_path(self.out), self.out)
        else:
            os.replace(self.rows, self.out)
        sync_one(self.out.absolute().parent)
        self.remove()


def _row_bytes(facts: Facts) -> int:
    return facts["width"] * np.dtype(facts["dtype"]).itemsize


def _row_ranges(journal: Path) -> Iterator[tuple[int, int]]:
    """The whole lines of a journal; one that a power cut tore counts for nothing, nor does a journal that is gone."""
    try:
        *lines, _ = journal.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        numbers = line.split(b" ")
        if len(numbers) == 2 and all(number.isdigit() for number in numbers):
            yield int(numbers[0]), int(numbers[1])


def _write(file: IO[bytes], data: bytes) -> None:
    """All of `data`: an unbuffered file may take a part of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _to_parquet(rows: Path, path: Path) -> None:
    """A .npy file of vectors (N, D) as a table with one column `embedding` of lists of D numbers."""
    import pyarrow as pa
    from pyarrow import parquet

    vectors = np.load(rows, mmap_mode="r")
    kind = pa.list_(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    with add_path_to_oserror(path), parquet.ParquetWriter(path, pa.schema({"embedding": kind})) as writer:
        for start in range(0, len(vectors), _PARQUET_ROWS):
            flat = pa.array(np.ascontiguousarray(vectors[start : start + _PARQUET_ROWS]).ravel())
            writer.write_table(pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, type=kind)}))
    sync_one(path)
