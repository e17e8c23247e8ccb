"""Files of a source: which a path names, and of what type they are."""

import glob
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from llm2enc.errors import DataError

_TYPES = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSED = (".gz", ".bz2", ".zst")  # what both `datasets` and pyarrow tell by the ending


def matches(path: str) -> list[str]:
    """The files of a path or glob, sorted; absolute, because `datasets` reads a relative path as a pattern."""
    if Path(path).is_file():
        return [glob.escape(str(Path(path).resolve()))]
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
    return [glob.escape(str(Path(file).resolve())) for file in found]


def file_type(files: Sequence[str]) -> str:
    """The one type of all files: json, csv, tsv, parquet or text. DataError if they differ, or are of none."""
    types = {_type(file) for file in files}
    if len(types) > 1:
        raise DataError(f"one source mixes {', '.join(sorted(types))} files; give each format its own source")
    return types.pop()


def _type(file: str) -> str:
    name = file.lower()
    compressed = next((suffix for suffix in _COMPRESSED if name.endswith(suffix)), "")
    if compressed == ".zst" and not find_spec("zstandard"):
        raise DataError(f"{file}: .zst files need the package zstandard: pip install zstandard")
    found = _TYPES.get(Path(name.removesuffix(compressed)).suffix)
    if found is None or (compressed and found == "parquet"):
        raise DataError(
            f"{file}: unknown file type; known are {', '.join(_TYPES)}, all but .parquet also as {', '.join(_COMPRESSED)}"
        )
    return found
