"""Keys and files of an exported directory that only some programs look at: guards, pad tokens, rights."""

import json
from pathlib import Path

import numpy as np
import pytest

from llm2enc.encoding import Encoder
from tests.artifact.test_directory import TEXTS, WHOLE, make_encoder


def test_a_pad_token_without_a_row_in_the_model_is_replaced(tmp_path: Path) -> None:
    encoder = make_encoder(spec=WHOLE)
    encoder.input_format.tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # and nobody resized the embeddings
    assert encoder.input_format.tokenizer.pad_token_id == 320
    encoder.save(tmp_path / "out")
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)  # a padded batch


def test_engines_read_numbers_where_transformers_allows_nothing_and_lists(tmp_path: Path) -> None:
    encoder = make_encoder(spec=WHOLE, eos_token_id=[5, 6], pad_token_id=None)
    encoder.save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["eos_token_id"] == 5 and "pad_token_id" not in config and config["bos_token_id"] == 0
    assert encoder.backbone.config.eos_token_id == [5, 6]


def test_files_are_as_readable_as_the_umask_lets_them_be(tmp_path: Path) -> None:
    make_encoder().save(tmp_path / "out")
    (tmp_path / "other").touch()
    rights = {path.stat().st_mode for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert rights == {(tmp_path / "other").stat().st_mode}


def test_old_releases_stop_at_keys_that_new_ones_ignore(tmp_path: Path) -> None:
    """Which releases stop was run by benchmarks/stacks.py; here: the keys are there, and only for bidirectional models."""
    encoder = make_encoder()
    encoder.save(tmp_path / "both")
    make_encoder(bidirectional=False).save(tmp_path / "causal")
    said = json.loads((tmp_path / "both" / "config.json").read_text())["pruned_heads"]
    with pytest.raises(ValueError, match="pip install -U transformers"):
        {int(layer) for layer in said}  # what transformers 4 does with them
    assert Encoder.load(tmp_path / "both").fingerprint() == encoder.fingerprint()
    assert "pruned_heads" not in json.loads((tmp_path / "causal" / "config.json").read_text())
    assert "model_args" not in json.loads((tmp_path / "causal" / "sentence_bert_config.json").read_text())
