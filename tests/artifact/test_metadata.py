"""llm2enc.json: what releases have written stays readable, and is written back as it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm2enc.artifact import METADATA_FILE, MergeRecord, read_metadata, write_metadata
from llm2enc.encoding import Encoder

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format-1"
"""A directory that llm2enc 0.1.0 wrote when its metadata had no types: random weights, prompts with rules, a report."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(FORMAT_1, tmp_path / "model")


def change(folder: Path, **keys) -> Path:
    content = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    (folder / METADATA_FILE).write_text(json.dumps(content | keys), encoding="utf-8")
    return folder


def test_a_directory_of_the_first_format_gives_its_golden_vectors() -> None:
    encoder, metadata = Encoder.load(FORMAT_1), read_metadata(FORMAT_1)
    assert encoder.backbone.fingerprint() == metadata.fingerprint
    np.testing.assert_allclose(encoder.encode(metadata.golden.texts), metadata.golden.vectors, atol=2e-6)


def test_what_was_read_is_written_back_byte_for_byte(copy: Path) -> None:
    write_metadata(copy, read_metadata(copy))
    assert (copy / METADATA_FILE).read_bytes() == (FORMAT_1 / METADATA_FILE).read_bytes()


def test_an_encoder_saved_again_has_the_keys_of_its_format(tmp_path: Path) -> None:
    Encoder.load(FORMAT_1).save(tmp_path / "again")
    ours, theirs = (json.loads((folder / METADATA_FILE).read_text()) for folder in (tmp_path / "again", FORMAT_1))
    differing = {
        "proof",
        "files",
        "versions",
        "history",
        "recipe",
        "golden",
        "reason",
    }  # how it was made, rounding, prose
    assert [key for key in ours if key != "files"] == [key for key in theirs if key != "verification"]
    assert {key: ours[key] for key in ours.keys() - differing} == {key: theirs[key] for key in ours.keys() - differing}


def test_keys_of_a_newer_release_are_kept(copy: Path) -> None:
    golden = json.loads((copy / METADATA_FILE).read_text())["golden"] | {"dtype": "float32"}
    write_metadata(copy, read_metadata(change(copy, teacher={"name": "large"}, golden=golden)))
    content = json.loads((copy / METADATA_FILE).read_text())
    assert content["teacher"] == {"name": "large"} and content["golden"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"format": 2}, r"format 2, this llm2enc reads format 1; .*0\.1\.0"),
        ({"format": None, "versions": None}, "format None, .*unknown"),
        ({"pooling": "max"}, r"llm2enc\.json is damaged: pooling: .*'mean'"),
        ({"golden": {"texts": [], "vectors": [[None]]}}, r"damaged: golden\.vectors\.0\.0: .*number"),
        ({"input": {"document": [{"slot": "text", "pool": True}], "chunks": 2}}, r"input\.query: .*; input\.chunks: "),
    ],
)
def test_metadata_that_this_release_would_misread_is_refused(copy: Path, keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder.load(change(copy, **keys))


@pytest.mark.parametrize("text", ["[]", '"format"', "{", "\ud800"])
def test_a_file_that_is_no_json_object_is_damaged(copy: Path, text: str) -> None:
    (copy / METADATA_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"llm2enc\.json is damaged"):
        read_metadata(copy)


def test_a_merge_of_release_0_1_keeps_the_share_of_its_base() -> None:
    record = {"method": "average", "parents": [], "base": "abc", "towards": 0.25}
    found = MergeRecord.model_validate(record)
    assert found.base_weight == 0.25 and MergeRecord.model_validate(found.model_dump()) == found
    assert found.model_dump() == {"method": "average", "parents": [], "base": "abc", "base_weight": 0.25}
