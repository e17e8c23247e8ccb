"""A file of vectors that is not finished: a folder beside it. Rows are on the disk before the line that counts them.

vectors.npy.partial/
  run.json      what the vectors depend on; a run of anything else does not go on from here
  rows.npy      the file as it will be, with holes where rows are missing
  done-R.txt    from process R, a line `first end` for every row range that is on the disk
  ranges.npy    of int8 and uint8
"""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from llm2enc.errors import InputError
from llm2enc.storage import (
    add_path_to_oserror,
    file_lock,
    remove_stale,
    replace_bytes,
    replace_text,
    sync_one,
    temp_path,
)

Facts = dict[str, Any]  # with `count`, `width` and `dtype` of the rows
_PARQUET_ROWS = 10_000  # in a row group


class PartialFile:
    """The folder beside `out` that holds a run until it is finished."""

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self.rows = self.folder / "rows.npy"
        self.ranges = self.folder / "ranges.npy"
        self._facts = self.folder / "run.json"

    # ---- whose it is

    def facts(self) -> Facts | None:
        """What the former run was of; None if there is none, or one that had not begun.

        raises  ValueError for a folder that is none of ours
        """
        try:
            return json.loads(self._facts.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if not self.folder.exists() or all(map(_is_ours, self.folder.iterdir())):
                return None
        except NotADirectoryError:
            pass
        except ValueError:
            raise InputError(f"{self._facts} is damaged; remove {self.folder} to begin anew") from None
        raise InputError(f"{self.folder} is in the way, and holds no unfinished run of ours; move it away") from None

    def check(self, facts: Facts) -> bool:
        """Whether a former run of the same can go on.

        facts   some or all of what the vectors depend on, by name
        raises  ValueError, which names the difference, if there are rows of something else
        """
        former = self.facts()
        if former is None:
            return False
        facts = json.loads(json.dumps(facts))
        other = [name for name, value in facts.items() if former.get(name) != value]
        done = sum(map(len, self.done(former)))
        if not other or not done:
            return not other
        words = "; ".join(f"{name}: {_short(former.get(name))}, now {_short(facts[name])}" for name in other)
        raise InputError(
            f"{self.folder} holds {done:,} of {former['count']:,} vectors of another run ({words}). Go on with what that "
            "run was given, write to another file, or remove the folder to begin anew"
        )

    def is_finished(self, facts: Facts) -> bool:
        """Whether the former run was of these facts and came to its end, but for removing the folder."""
        former = self.facts()
        same = former is not None and json.loads(json.dumps(facts)).items() <= former.items()
        return same and self.out.is_file() and not (self.rows.is_file() and self.missing(former))

    def holds(self, ranges_out: Path | None) -> bool:
        """Whether `ranges_out` is this run's: one that was killed in `finish` may have put it there."""
        there = ranges_out is not None and ranges_out.is_file() and self.ranges.is_file()
        return there and ranges_out.read_bytes() == self.ranges.read_bytes()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """ValueError if another run writes the same file at this time. The lock ends with its process, however."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.folder / "lock", self.out):
            try:
                yield
            finally:
                former = self.facts()
                if former is None or not self.done(former):  # nothing came of it, or all
                    self.remove()

    # ---- rows

    def begin(self, facts: Facts) -> None:
        """Write run.json and a rows.npy without rows, unless they are there."""
        if self.facts() == json.loads(json.dumps(facts)) and self.rows.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [self._facts, *self.folder.glob("done-*.txt")]:
            path.unlink(missing_ok=True)
        with add_path_to_oserror(self.rows), self.rows.open("wb") as file:
            file.write(_header(facts))
            file.flush()
            os.fsync(file.fileno())
        replace_text(self._facts, json.dumps(facts, indent=1) + "\n")
        sync_one(self.folder)
        sync_one(self.folder.parent)

    def done(self, facts: Facts) -> list[range]:
        """The rows that are on the disk, as row ranges in order that do not touch."""
        if not self.rows.is_file():
            return []
        there = (self.rows.stat().st_size - len(_header(facts))) // _row_bytes(facts)
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
        start, size = len(_header(facts)), _row_bytes(facts)
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

    def remove(self) -> None:
        """Remove the folder: rows first, by which `is_finished` knows what is left of it after a kill, run.json last."""
        for path in sorted(self.folder.glob("*"), key=lambda path: (path == self._facts, path != self.rows)):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    """Whether a run may leave such a file before it has written run.json."""
    return any(map(path.match, ("lock", "lock.soft", "ranges.npy", "rows.npy", "done-*.txt", "*.partial-*")))


def _header(facts: Facts) -> bytes:
    """The beginning of the .npy file."""
    file = io.BytesIO()
    shape = (facts["count"], facts["width"])
    np.lib.format.write_array_header_1_0(file, {"descr": facts["dtype"], "fortran_order": False, "shape": shape})
    return file.getvalue()


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


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:12]}..."
