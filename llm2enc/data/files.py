"""Files of a source: which a path names, of what type they are, and the one decoder of all that hold text."""

import bz2
import glob
import gzip
import io
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from llm2enc.errors import DataError

_TYPES = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSED = (".gz", ".bz2", ".zst")
# Packed text holds 3 to 20 times its size; a bomb 1000 times.
_SMALL, _RATIO = 2**28, 200  # characters that any file may hold; characters per packed byte


def matches(path: str) -> list[str]:
    """The files of a path or glob, sorted, as absolute paths. A link keeps its own name: its target's may say nothing."""
    if is_pipe(path):
        raise DataError(
            f"{path} is a pipe, which is read once, and training reads its data again; write it to a file first"
        )
    if Path(path).is_file():
        return [os.path.abspath(path)]
    if Path(path).is_dir():
        tables = sorted(file.name for file in Path(path).iterdir() if file.is_file())
        raise DataError(
            f"{path} is a folder, and no BEIR data set (corpus.jsonl, queries.jsonl, qrels/); a batch holds rows of one "
            f"data set, so give each file its own source: {', '.join(tables[:8]) or 'it is empty'}"
        )
    found = sorted(file for file in glob.glob(path, recursive=True) if Path(file).is_file())
    if not found:
        what = "no file matches this glob" if glob.has_magic(path) else "no such file"
        raise DataError(f"{path}: {what}; a relative path is taken from the working directory, {Path.cwd()}")
    return [os.path.abspath(file) for file in found]


def file_type(files: Sequence[str]) -> str:
    """The one type of all files: json, csv, tsv, parquet or text. DataError if they differ, or are of none."""
    types = {_suffixes(file)[0] for file in files}
    if len(types) > 1:
        raise DataError(f"one source mixes {', '.join(sorted(types))} files; give each format its own source")
    return types.pop()


def _suffixes(file: str) -> tuple[str, str]:
    """Type and compression, by the name of the file or of what it links to."""
    for name in (file.lower(), os.path.realpath(file).lower()):
        compressed = next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
        found = _TYPES.get(Path(name.removesuffix(compressed)).suffix)
        if found and not (compressed and found == "parquet"):
            if compressed == ".zst" and not find_spec("zstandard"):
                raise DataError(f"{file}: .zst files need the package zstandard: pip install zstandard")
            return found, compressed
    raise DataError(
        f"{file}: unknown file type; known are {', '.join(_TYPES)}, all but .parquet also as {', '.join(_COMPRESSED)}"
    )


def lines_of(file: str) -> Iterator[str]:
    """The lines of a file that holds text, each with its end: UTF-8, with or without a byte order mark, unpacked.

    A line ends with a line feed. A carriage return alone, U+2028 and their like are a part of the text.

    raises  DataError with file and line for what is no UTF-8, or damaged; for a packed file that holds far more than text
            packs to, which a stranger's may
    """
    number, left = 0, sys.maxsize - 1
    if _suffixes(file)[1]:
        left = max(_SMALL, _RATIO * os.path.getsize(file))
    try:
        with _opened(file) as lines:
            while line := lines.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise DataError(
                        f"{file} unpacks to more than {_RATIO} times its size, as no text does; if it is to be trusted, "
                        "unpack it first"
                    )
                yield line
                number += 1
    except UnicodeDecodeError as error:
        raise DataError(f"{file}, line {number + 1} or later is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}") from None


def _opened(file: str) -> IO[str]:
    options = {"encoding": "utf-8-sig", "newline": "\n"}
    compressed = _suffixes(file)[1]
    if compressed == ".zst":
        import zstandard  # pyright: ignore[reportMissingImports] - `_suffixes` has asked for it

        return zstandard.open(file, "rt", **options)
    return {".gz": gzip.open, ".bz2": bz2.open}.get(compressed, io.open)(file, "rt", **options)


# --------------------------------------------------------------------------------------------------------------- pipes


def is_pipe(path: str) -> bool:
    """Whether a path is `-`, /dev/stdin, or anything else that can be read only once."""
    named = path in ("-", "/dev/stdin")
    return named or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path))


def spooled(path: str, folder: str, column: str | None) -> str:
    """A copy of a pipe in `folder`, with the ending that its content tells: .jsonl, of a table .csv or .tsv, or .txt.

    column  of the texts; a table is known by its header, which must name it
    """
    copy = os.path.join(folder, "input.txt")
    with open(copy, "wb") as file:
        if path in ("-", "/dev/stdin"):
            shutil.copyfileobj(sys.stdin.buffer, file)
        else:
            with open(path, "rb") as pipe:
                shutil.copyfileobj(pipe, file)
    ending = _ending(next((line for line in lines_of(copy) if line.strip()), ""), column)
    os.rename(copy, copy.removesuffix(".txt") + ending)
    return copy.removesuffix(".txt") + ending


def _ending(line: str, column: str | None) -> str:
    try:
        if isinstance(json.loads(line), dict):
            return ".jsonl"
    except ValueError:
        pass
    if column is None:
        return ".txt"
    found = next((end for end, sep in ((".csv", ","), (".tsv", "\t")) if column in line.strip().split(sep)), None)
    if found is None:
        raise DataError(
            f"what comes through the pipe is no JSON lines, and its first line does not name the column {column!r}: "
            f"{line.strip()!r:.80}; leave --column out for one text a line"
        )
    return found


def spool_folder() -> tempfile.TemporaryDirectory:
    """A folder for `spooled`; it is removed with the object."""
    return tempfile.TemporaryDirectory(prefix="llm2enc-")
