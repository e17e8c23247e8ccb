"""Quantised bases: every method that transformers knows is refused by config.json alone, with its name and a way out."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from llm2enc.errors import CannotConvert
from llm2enc.model import inspect, load_backbone, load_config, skeleton
from llm2enc.recipe import ModelSpec
from tests.support.builders import make_model


def quantized(folder: Path, **config: object) -> Path:
    """A model whose config.json says that its weights are quantised."""
    make_model().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def refusal(folder: Path) -> str:
    """Why it is refused, which every way to the model must say."""
    spec = ModelSpec(name=str(folder), attention="causal")
    said = set()
    for way in (load_config, load_backbone, skeleton):
        with pytest.raises(CannotConvert) as error:
            way(spec)
        said.add(str(error.value).removeprefix(f"{folder} cannot be a base: "))
    found = inspect(folder)
    assert found.verdict == "refused" and said == {found.reason}
    return found.reason


@pytest.mark.parametrize("method", sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
def test_every_method_is_refused_by_its_name(method: str, tmp_path: Path) -> None:
    reason = refusal(quantized(tmp_path, quantization_config={"quant_method": method}))
    assert f"its weights are quantised ({method}), " in reason and "Give the unquantised checkpoint" in reason
    assert ("(dequantize=True)" in reason) == (method in ("fp8", "mxfp8", "mxfp4"))


@pytest.mark.parametrize(
    ("config", "how"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, nf4"),
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
        ({"quant_method": "a new one"}, "a new one"),
        ({}, "a method that is not named"),
        ({"group_size": 64, "bits": 4}, "a method that is not named, 4 bits"),
    ],
)
def test_method_and_width_are_named(config: dict, how: str, tmp_path: Path) -> None:
    assert f"quantised ({how})" in refusal(quantized(tmp_path, quantization_config=config))


@pytest.mark.parametrize("key", ["quantization", "compression_config"])
def test_other_keys_for_the_same(key: str, tmp_path: Path) -> None:
    assert "6 bits" in refusal(quantized(tmp_path, **{key: {"bits": 6}}))


def test_a_part_of_a_composite_model_counts(tmp_path: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect(tmp_path)
    assert found.verdict == "refused" and "awq, 4 bits" in found.reason
    with pytest.raises(CannotConvert, match="awq, 4 bits"):
        load_config(ModelSpec(name=str(tmp_path)))


def test_null_is_no_quantisation(tmp_path: Path) -> None:
    folder = quantized(tmp_path, quantization_config=None)
    assert inspect(folder).verdict == "convertible" and load_backbone(ModelSpec(name=str(folder))).depth == 2


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="older ones keep the scales in the file"
)
def test_the_line_for_fp8_gives_the_plain_weights(tmp_path: Path) -> None:
    """Each block of 16 x 16 is its 8-bit numbers times one scale."""
    folder = quantized(tmp_path / "fp8", quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    stored, plain = {}, load_file(folder / "model.safetensors")
    for name in [name for name in plain if "_proj" in name]:
        rows, columns = plain[name].shape
        blocks = plain[name].view(rows // 16, 16, columns // 16, 16)
        scales = blocks.abs().amax((1, 3)) / 448
        numbers = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        stored |= {name: numbers.view(rows, columns), f"{name.removesuffix('weight')}weight_scale_inv": scales}
        plain[name] = (numbers.float() * scales[:, None, :, None]).view(rows, columns)
    save_file({**plain, **stored}, folder / "model.safetensors", metadata={"format": "pt"})
    line = refusal(folder).partition("plain weights: ")[2].partition(", and AutoTokenizer")[0]
    line = line.replace('"DIR"', repr(str(tmp_path / "plain"))).replace('"bfloat16"', '"float32"')
    eval(line, {"AutoModelForCausalLM": AutoModelForCausalLM, "FineGrainedFP8Config": FineGrainedFP8Config})
    found = load_file(tmp_path / "plain" / "model.safetensors")
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)
    assert inspect(tmp_path / "plain").verdict == "convertible"
