"""Ids beyond the embedding are named before anything is read."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken

from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import load_backbone, load_tokenizer
from llm2enc.recipe import InputSpec, ModelSpec, Part
from llm2enc.text import InputFormat
from tests.support.builders import INPUT, make_encoder, make_model, make_tokenizer

ROWS = 320


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add(folder: Path, token: str, special: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=special)], special_tokens=special)
    tokenizer.save_pretrained(folder)


def test_a_tokenizer_that_fits_stays_as_it_is(base: Path) -> None:
    tokenizer = load_tokenizer(ModelSpec(name=str(base)))
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab() and len(tokenizer) == ROWS


def test_a_token_added_for_texts_is_refused_with_its_id(base: Path) -> None:
    add(base, "<domain>", special=False)
    with pytest.raises(InputError, match=r"1 tokens.*ids from 320 on\): <domain> \(320\).*resize_token_embeddings"):
        Encoder.from_causal_lm(str(base), INPUT)


@pytest.mark.parametrize("role", ["eos_token", "bos_token", "unk_token"])
def test_a_token_of_a_role_that_is_not_in_the_vocabulary_is_refused(role: str, base: Path) -> None:
    edit(base / "tokenizer_config.json", **{role: "</other>"})
    with pytest.raises(InputError, match=rf"</other> \(320, {role}\)"):
        load_tokenizer(ModelSpec(name=str(base)))


def test_a_tokenizer_of_another_model_is_refused(base: Path) -> None:
    make_tokenizer(330).save_pretrained(base)
    with pytest.raises(InputError, match=r"has 10 tokens.*ids from 320 on"):
        load_tokenizer(ModelSpec(name=str(base)))


def test_a_spare_special_token_is_read_as_plain_text_and_said(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(base / "tokenizer_config.json", pad_token="[PAD]")
    with caplog.at_level(logging.INFO):
        tokenizer = load_tokenizer(ModelSpec(name=str(base)))
    assert "no row in the embedding for [PAD], which is read as plain text" in caplog.text
    text = "a [PAD] river"
    assert tokenizer(text).input_ids == make_tokenizer()(text).input_ids and max(tokenizer(text).input_ids) < ROWS
    assert tokenizer.pad_token is None and tokenizer.eos_token == "</s>"


def test_a_template_token_without_a_row_is_refused(base: Path) -> None:
    add(base, "<|end|>", special=True)
    template = (Part(slot="text", pool=True), Part(token="<|end|>"))
    with pytest.raises(InputError, match=r"the template needs the token '<\|end\|>', but the tokenizer has none"):
        InputFormat(InputSpec(query=template, document=template), load_tokenizer(ModelSpec(name=str(base))))


@pytest.mark.parametrize(
    ("key", "value"), [("pad_token_id", ROWS), ("eos_token_id", 5000), ("eos_token_id", [1, ROWS])]
)
def test_an_id_in_config_json_beyond_its_vocabulary_is_refused(key: str, value: Any, base: Path) -> None:
    edit(base / "config.json", **{key: value})
    with pytest.raises(InputError, match=rf"{key} (320|5000), but vocab_size 320: ids go from 0 to 319"):
        load_backbone(ModelSpec(name=str(base)))


def test_a_saved_directory_is_checked_too(tmp_path: Path) -> None:
    make_encoder().save(tmp_path / "model")
    edit(tmp_path / "model" / "tokenizer_config.json", eos_token="</other>")
    with pytest.raises(InputError, match=r"</other> \(320, eos_token\)"):
        Encoder.load(tmp_path / "model")
