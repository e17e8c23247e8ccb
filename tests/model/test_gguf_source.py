"""A GGUF file as a source: the weights that it holds, and nothing of how they were stored."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm2enc.encoding import Encoder
from llm2enc.errors import InputError
from llm2enc.model import Backbone, inspect, load_backbone, load_config, load_tokenizer, resolve
from llm2enc.model.gguf_header import read_header
from llm2enc.model.gguf_tokenizer import cut_as_the_file_says, differences
from llm2enc.recipe import ModelSpec
from llm2enc.text import PROBES, InputFormat
from tests.support.builders import INPUT, make_tokenizer
from tests.support.tiny_gguf import tiny, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM2ENC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


# ------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_weights_are_those_of_the_file_bit_for_bit(tmp_path: Path, architecture: str, kind: str) -> None:
    path = tmp_path / "model.gguf"
    model = tiny(architecture)
    held = write(path, model, kind)
    folder = Path(resolve(str(path)))
    found = load_file(folder / "model.safetensors")
    assert found.keys() == held.keys()
    for name, weight in held.items():
        assert torch.equal(found[name], weight), name
    config = json.loads((folder / "config.json").read_text())
    assert "quant" not in json.dumps(config) and config["num_hidden_layers"] == 2
    # And what the model makes of them, by a model that never saw the file.
    model.load_state_dict(held, strict=False)
    tokens = InputFormat(INPUT, make_tokenizer()).pack(["the river runs", "through the old town"])
    read = load_backbone(ModelSpec(name=str(path), dtype="float32"))
    with torch.no_grad():
        assert torch.allclose(read.hidden(tokens), Backbone(model, True).hidden(tokens), atol=1e-5)


def test_a_file_is_dequantised_once_whatever_its_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one.gguf", tiny())
    first = resolve(str(tmp_path / "one.gguf"))
    shutil.copy(tmp_path / "one.gguf", tmp_path / "another.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)  # what is in the cache needs no package
    assert resolve(str(tmp_path / "another.gguf")) == first and len([*cache.glob("[!.]*")]) == 1


def test_looking_at_a_model_dequantises_nothing(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny())
    found = inspect(path)
    load_tokenizer(ModelSpec(name=str(path)))
    assert found.verdict == "convertible" and found.parameters == sum(p.numel() for p in tiny().parameters())
    assert not [*cache.rglob("model.safetensors")] and [*cache.rglob("config.json")]
    assert Path(resolve(str(path)), "model.safetensors").is_file()


def test_a_file_that_was_replaced_is_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny())
    first = resolve(str(path))
    write(path, tiny(seed=1))
    assert resolve(str(path)) != first


def test_a_file_in_a_directory(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny())
    assert load_config(ModelSpec(name=str(tmp_path), gguf="model.gguf")).hidden_size == 32


def test_what_is_written_knows_nothing_of_gguf(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny(), "Q8_0")
    encoder = Encoder.from_causal_lm(ModelSpec(name=str(tmp_path / "model.gguf"), dtype="float32"), INPUT)
    encoder.save(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        assert "gguf" not in file.read_text(encoding="utf-8").lower(), file
    assert np.allclose(Encoder.load(tmp_path / "out").encode(["a"]), encoder.encode(["a"]), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_other_families_are_refused_by_name_before_a_weight_is_read(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny(), architecture="rwkv7")
    for act in (inspect, resolve):
        with pytest.raises(InputError, match="architecture 'rwkv7', which transformers does not read"):
            act(str(tmp_path / "model.gguf"))


def test_one_piece_of_several_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny(), split__count=3)
    with pytest.raises(InputError, match="one of 3 pieces; join them first"):
        resolve(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"PK" + data, lambda data: data[:20], lambda data: data[:3000], lambda data: data[:-1000]],
    ids=["another format", "no keys", "half a header", "half the weights"],
)
def test_damaged_files_are_refused(tmp_path: Path, damage) -> None:
    path = tmp_path / "model.gguf"
    write(path, tiny())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"model\.gguf (cannot be used|is no GGUF file)"):
        resolve(str(path))


def test_a_tensor_that_transformers_would_drop_is_refused(tmp_path: Path, cache: Path) -> None:
    """Llama 3.1's rope factors: without them its long texts would silently be another model's."""
    write(tmp_path / "model.gguf", tiny(), extra={"rope_freqs.weight": np.ones(4, np.float32)})
    with pytest.raises(InputError, match=r"outside of the layers: \['rope_freqs.weight'\]"):
        resolve(str(tmp_path / "model.gguf"))
    assert not [*cache.rglob("*.safetensors")]


def test_positions_that_transformers_would_not_scale_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny(), llama__rope__scaling__type="linear", llama__rope__scaling__factor=8.0)
    with pytest.raises(InputError, match="scales its positions"):
        resolve(str(tmp_path / "model.gguf"))


def test_without_the_extra_the_message_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    write(tmp_path / "model.gguf", tiny())
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else real(name, *rest))
    with pytest.raises(InputError, match=r'pip install "llm2enc\[gguf\]"'):
        resolve(str(tmp_path / "model.gguf"))


def test_a_full_disk_stops_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.gguf", tiny())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(OSError, match="bytes are needed and 100 are free"):
        resolve(str(tmp_path / "model.gguf"))


# ------------------------------------------------------------------------------------------------------------ tokenizer


def original() -> PreTrainedTokenizerFast:
    """A tokenizer that cuts every digit off, as SmolLM2's does; transformers does not read that from the file."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def test_the_tokenizer_is_the_original(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny(), tokenizer=original())
    found = load_tokenizer(ModelSpec(name=str(tmp_path / "model.gguf")))
    for text in [*PROBES.values(), "a  1  23\t4", "the</s>river"]:
        assert found(text)["input_ids"] == original()(text)["input_ids"], text
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")


def test_where_a_tokenizer_differs_from_its_file_is_said(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny())
    header = read_header(tmp_path / "model.gguf")
    assert differences(make_tokenizer(), header) == []
    header.tokenizer.update(add_bos_token=True, eos_token_id=7, pre="mystery")
    word = next(number for number, token in enumerate(header.tokenizer["tokens"]) if token == "Ġthe")
    header.tokenizer["token_type"][word] = 4
    header.tokenizer["tokens"][9] = "ß?"
    assert differences(make_tokenizer(), header) == [
        "1 of 320 tokens are spelled otherwise, such as ['ß?']",
        "1 of 3 special and added tokens become several in a text, such as ['Ġthe']",
        "eos_token is token 1, in the file 7",
        "the file says add_bos_token: true, the tokenizer does otherwise",
    ]
    assert not cut_as_the_file_says(make_tokenizer(), header)


def test_texts_that_are_lost_are_said(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", tiny())
    lossy = make_tokenizer()
    lossy.backend_tokenizer.normalizer = normalizers.Lowercase()
    (sentence,) = differences(lossy, read_header(tmp_path / "model.gguf"))
    assert sentence.startswith("these texts do not come back from their tokens: a plain sentence, ")


def test_an_unknown_cut_is_said_at_every_opening(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "model.gguf", tiny())
    data = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(data.replace(b"smollm", b"chatgm"))
    AutoTokenizer.from_pretrained(resolve(str(tmp_path / "model.gguf")))
    assert "cuts texts by llama.cpp's 'chatgm'" in caplog.text
