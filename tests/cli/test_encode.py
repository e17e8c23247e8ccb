"""`llm2enc encode`: a vector for every line, from files and pipes, with what was decided said."""

import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llm2enc.encoding import Encoder
from llm2enc.verification import Parity, Report
from tests.cli.test_cli import call

MODEL = Path(__file__).parents[1] / "fixtures" / "format-1"
LINES = "a river\n\na town\n \n"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(MODEL)


def test_one_line_one_vector(encoder: Encoder, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text(LINES)
    code, _, said = call(capsys, "encode", MODEL, tmp_path / "a.txt", "-o", tmp_path / "v.npy")
    assert code == 0 and "a.txt: text\n" in said and "4 vectors" in said
    assert "2 of 4 texts are empty (the first in row 2): encoded as empty texts; --skip-empty leaves them out" in said
    found = np.load(tmp_path / "v.npy")
    np.testing.assert_array_equal(found, encoder.encode(["a river", "", "a town", " "]))
    assert np.isfinite(found).all() and not (tmp_path / "v.rows.npy").exists()


@pytest.mark.parametrize("out", ["v.npy", "v.parquet"])
def test_empty_texts_are_skipped_on_request_and_the_rows_that_were_kept_are_written(
    out, encoder, tmp_path, capsys
) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;a river\n2;\n3;a town\n")
    code, _, said = call(capsys, "encode", MODEL, tmp_path / "a.csv", "-o", tmp_path / out, "--skip-empty")
    assert code == 0 and "csv, separator semicolon, header id, text; text = text" in said
    assert "1 of 3 texts are empty (the first in row 2): left out" in said
    assert "v.rows.npy: the rows of" in said and "2 vectors" in said
    assert np.load(tmp_path / "v.rows.npy").tolist() == [0, 2]
    if out == "v.npy":
        np.testing.assert_array_equal(np.load(tmp_path / out), encoder.encode(["a river", "a town"]))
    (tmp_path / out).unlink()
    code, _, said = call(capsys, "encode", MODEL, tmp_path / "a.csv", "-o", tmp_path / out, "--skip-empty")
    assert code == 2 and "v.rows.npy exists already" in said


@pytest.mark.parametrize("options", [(), ("--skip-empty",)])
def test_ranges_come_from_the_texts_that_are_encoded(options, encoder: Encoder, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.txt").write_text(LINES)
    given = ("-o", tmp_path / "v.npy", "--precision", "int8", "--calibrate", tmp_path / "a.txt", *options)
    assert call(capsys, "encode", MODEL, tmp_path / "a.txt", *given)[0] == 0
    texts = ["a river", "a town"] if options else ["a river", "", "a town", " "]
    high = np.abs(encoder.encode(texts)).max()
    np.testing.assert_allclose(
        np.load(tmp_path / "v.ranges.npy"), [[-high] * encoder.dimensions, [high] * encoder.dimensions]
    )


def test_a_pipe_is_encoded_and_not_read_twice(encoder: Encoder, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "a").write_text(LINES)
    for name in ("-", "/dev/stdin"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=(tmp_path / "a").open("rb")))
        code, _, _ = call(capsys, "encode", MODEL, name, "-o", tmp_path / f"{len(name)}.npy")
        assert code == 0
        np.testing.assert_array_equal(
            np.load(tmp_path / f"{len(name)}.npy"), encoder.encode(["a river", "", "a town", " "])
        )
    both = ("--precision", "int8", "--calibrate", "-")
    code, _, said = call(capsys, "encode", MODEL, "-", "-o", tmp_path / "w.npy", *both)
    assert code == 2 and "- can be read once, and would be 2 times; write it to a file first" in said


@pytest.mark.parametrize("verdict", ["agrees", "differs"])
def test_a_directory_that_takes_no_card_is_verified_all_the_same(verdict, monkeypatch, capsys) -> None:
    def closed(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(MODEL / "README.md"))

    report = Report(str(MODEL), [Parity("transformers", 0.5, verdict=verdict)])
    monkeypatch.setattr("llm2enc.verification.verify", lambda *_: report)
    monkeypatch.setattr("llm2enc.verification.report.replace_text", closed)
    code, shown, said = call(capsys, "verify", MODEL)
    assert code == (verdict == "differs") and "transformers" in shown
    assert "is read-only, so neither table nor proof is written into it (Read-only file system)" in " ".join(
        said.split()
    )
