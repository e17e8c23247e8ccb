"""Texts by the standard library are those that the table reader gives, and encoding a file needs no more than it."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm2enc.data import read_text_files, read_texts
from llm2enc.encoding import Encoder
from llm2enc.errors import DataError, InputError, require
from llm2enc.recipe import FilesData

MODEL = Path(__file__).parents[1] / "fixtures" / "format-1"
FILES = {
    "lines.txt": "one\n\n  \ntwo\r\nthree\u2028four\x0bfive\rsix\n\u3000\n last ",
    "mark.txt": "\ufeffone\ntwo",
    "latin.txt": b"caf\xe9\n",
    "empty.txt": "",
    "blank.txt": " \n\n",
    "plain.jsonl": '{"text": "a"}\n\n{"text": " "}\n{"text": null}\n{"text": "b\\n\\u2028c", "n": 1}\n',
    "mark.jsonl": '\ufeff{"text": "a"}\n{"text": "b"}\n',
    "other.jsonl": '{"id": 1, "say": "a"}\n{"id": 2, "say": "b"}\n',
    "two.jsonl": '{"one": "a", "two": "b"}\n',
    "numbers.jsonl": '{"text": 1}\n',
    "mixed.jsonl": '{"text": "a"}\n{"text": 2}\n',
    "lists.jsonl": '{"text": ["a", "b"]}\n',
    "broken.jsonl": '{"text": "a"}\n{"text": \n',
    "scalar.jsonl": '"a"\n',
    "surrogate.jsonl": '{"text": "\\ud83d"}\n',
    "empty.jsonl": "",
    "nothing.jsonl": '{"text": null}\n',
    "array.json": '[{"text": "a"},\n {"text": "b"}]',
    "scalars.json": "[1, 2]",
    "plain.csv": 'id,text\n007,"a, ""quoted"""\n8,NA\n\n9,\n10, spaced \n11,"two\nlines"\n12,a"b"c\n13,"a"b"c"\n',
    "carriage.csv": "text\r\na\r\nb\r\n",
    "mark.csv": "\ufefftext\na\n",
    "alone.csv": "say\na\nb\n",
    "short.csv": "id,text\n1\n2,b\n",
    "long.csv": "id,text\n1,a\n2,b,c\n",
    "open.csv": 'text\na\n"b\nc\n',
    "twice.csv": "text,text\na,b\n",
    "header.csv": "text\n",
    "empty.csv": "",
    "two.csv": "one,two\na,b\n",
    "wide.csv": f"text\n{'x' * 200_000}\n",
    "plain.tsv": 'id\ttext\n1\t"a" b"\n2\tNA\n3\t"open\n\n4\t\n',
}


def texts(read, *given) -> list[str] | None:
    """None if the file is refused."""
    try:
        return list(read(*given))
    except DataError:
        return None


@pytest.mark.parametrize("name", FILES)
def test_both_readers_give_the_same_texts_or_refuse(name: str, tmp_path: Path) -> None:
    content = FILES[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    expected = texts(read_texts, FilesData(kind="files", path=str(path)))
    assert texts(read_text_files, str(path), None, True) == expected
    assert (expected is None) == (name.partition(".")[0] in {
        "latin", "empty", "blank", "two", "numbers", "mixed", "lists", "broken", "scalar", "surrogate", "nothing",
        "scalars", "long", "open", "header", "short", "twice",
    })  # fmt: skip


def test_globs_compression_and_columns(tmp_path: Path) -> None:
    for name, line in {"b.jsonl.gz": '{"say": "b", "text": "-"}', "a.jsonl.gz": '{"say": "a", "text": "-"}'}.items():
        (tmp_path / name).write_bytes(gzip.compress(line.encode()))
    pattern, columns = str(tmp_path / "*.gz"), {"text": "say"}
    found = read_text_files(pattern, "say")
    assert list(found) == list(read_texts(FilesData(kind="files", path=pattern, columns=columns))) == ["a", "b"]
    assert found[::-1] == ["b", "a"] and found[1] == "b"


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": 2}\n', "text", "line 2: column 'text' holds 2, expected text"),
        ("a.csv", "one,two\na,b\n", "text", "no column 'text'; its columns are one, two"),
        ("a.csv", "text\na\n", "say", "no column 'say'"),
        ("a.csv", 'text\n"a\n', "text", "a quotation mark is opened and never closed"),
        (
            "a.csv",
            "text\na,b\n",
            "text",
            r"line 2 has 2 fields, and the header names 1 \(text\): 'a,b'; put",
        ),
        ("a.txt.gz", "no gzip", "text", r"a\.txt\.gz cannot be read: Not a gzipped file"),
        ("a.doc", "text", "text", "unknown file type"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name: str, content: str, column: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_text_files(str(tmp_path / name), column)


HIDDEN = (
    "peft datasets accelerate wandb sklearn scipy pandas pyarrow matplotlib pytrec_eval mteb jinja2 py3langid"
    " sentence_transformers".split()
)
HIDE = f"""
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec.__func__
def visible(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {HIDDEN} else find(cls, name, path, target)
PathFinder.find_spec = classmethod(visible)
from llm2enc.cli import main
main()
"""


def encode(source: Path, out: Path) -> subprocess.CompletedProcess:
    """`llm2enc encode` where the hidden packages are not installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HIDE, "encode", str(MODEL), str(source), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.mark.parametrize("name", ["lines.txt", "plain.jsonl", "plain.csv"])
def test_encoding_a_file_needs_neither_training_nor_evaluation_libraries(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8", newline="")
    done = encode(tmp_path / name, tmp_path / "v.npy")
    assert done.returncode == 0, done.stderr
    expected = Encoder.load(MODEL).encode(list(read_text_files(str(tmp_path / name))))
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected, atol=1e-6)


def test_parquet_without_its_packages_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "texts.parquet").touch()
    done = encode(tmp_path / "texts.parquet", tmp_path / "v.npy")
    assert done.returncode == 2 and 'datasets and pyarrow, not installed here: pip install "llm2enc"' in done.stderr


def test_a_missing_package_is_named_with_its_extra() -> None:
    require("json", "csv", extra="report")
    with pytest.raises(InputError, match=r'needs no_such_package, .*: pip install "llm2enc\[report\]"'):
        require("json", "no_such_package", extra="report")
