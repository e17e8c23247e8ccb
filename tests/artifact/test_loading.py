"""Loading trusts what was proven as long as nothing has changed, and says what has."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm2enc.artifact import integrity
from llm2enc.encoding import Encoder
from llm2enc.errors import CannotConvert
from llm2enc.model import Backbone, proven, spot_check
from llm2enc.text import Tokens
from tests.artifact.test_directory import make_encoder
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    make_encoder().save(folder)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "copy")


def edit(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


RECORDED = 0.5  # a leak that no proof would let pass


@pytest.fixture
def marked(copy: Path) -> Path:
    """A directory whose proof has a number that a new one cannot have."""
    edit(copy / "llm2enc.json", lambda facts: facts["proof"].update(leak=RECORDED))
    return copy


def test_an_unchanged_directory_is_not_proven_again(marked: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Encoder.load(marked).backbone.proof.leak == RECORDED
    assert not caplog.records


@pytest.mark.parametrize("package", ["torch", "transformers", "tokenizers", "llm2enc"])
def test_another_release_is_proven_again_and_named(
    package: str, marked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(marked / "llm2enc.json", lambda facts: facts["proof"]["versions"].update({package: "0.0.1"}))
    with caplog.at_level(logging.WARNING):
        assert Encoder.load(marked).backbone.proof.leak < RECORDED
    (said,) = caplog.messages
    assert f"{package} is " in said and "the proof is of 0.0.1; the full proof ran again" in said


def test_the_full_proof_runs_where_it_is_asked_for(marked: Path) -> None:
    assert Encoder.load(marked, full_proof=True).backbone.proof.leak < RECORDED


def test_a_directory_of_a_release_before_these_records_is_proven(
    copy: Path, good: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def as_before(facts: dict) -> None:
        del facts["files"]
        facts["proof"] = {name: facts["proof"][name] for name in ("layers", "leak", "difference", "route", "notes")}

    edit(copy / "llm2enc.json", as_before)
    assert np.array_equal(Encoder.load(copy).encode("a"), Encoder.load(good).encode("a"))
    (said,) = caplog.messages
    assert "did not record what its proof rests on; the full proof ran" in said


def flip_one_bit(path: Path) -> None:
    weights = load_file(path)
    weights["layers.1.mlp.down_proj.weight"].view(torch.int32)[0, 0] ^= 1
    save_file(weights, path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [(flip_one_bit, "is not the file"), (truncate, "is not the file"), (Path.unlink, "is missing")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_changed_weights_are_refused_by_name(damage: Callable[[Path], None], words: str, copy: Path) -> None:
    damage(copy / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors {words}.*llm2enc verify"):
        Encoder.load(copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_changed_settings_are_proven_again_and_named(name: str, marked: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(marked / name, lambda settings: settings.update(comment="changed"))
    assert Encoder.load(marked).backbone.proof.leak < RECORDED
    (said,) = caplog.messages
    assert f"{name} is not the file that was written; the full proof ran again" in said


def test_settings_that_give_other_vectors_are_refused(copy: Path) -> None:
    edit(copy / "config.json", lambda config: config.update(rms_norm_eps=10.0))
    with pytest.raises(ValueError, match="does not give the vector that was saved with it"):
        Encoder.load(copy)


def test_a_directory_that_became_causal_is_refused_by_its_golden_vector(copy: Path) -> None:
    edit(copy / "llm2enc.json", lambda facts: facts.update(attention="causal"))
    with pytest.raises(ValueError, match="does not give the vector that was saved with it"):
        Encoder.load(copy)


def test_a_causal_key_in_config_json_is_named_and_without_effect(
    copy: Path, good: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(copy / "config.json", lambda config: config.update(is_causal=True))
    assert np.array_equal(Encoder.load(copy).encode("a"), Encoder.load(good).encode("a"))
    assert "config.json is not the file" in caplog.text


# ------------------------------------------------------------------------------------------------------------ spot check


TEXT = Tokens.from_lists([[5, 6, 7, 8]], [[True] * 4], [False])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_spot_check_passes_a_right_model_with_the_states_of_the_text(bidirectional: bool) -> None:
    backbone = Backbone(tiny_model("llama"), bidirectional)
    with torch.no_grad():
        torch.testing.assert_close(spot_check(backbone, TEXT), backbone.eval().hidden(TEXT))


@pytest.mark.parametrize(("bidirectional", "words"), [(True, "unmoved"), (False, "to stay causal")])
def test_a_spot_check_refuses_a_model_that_reads_in_the_other_direction(bidirectional: bool, words: str) -> None:
    backbone = Backbone(tiny_model("llama"), bidirectional)

    def turned(module, args, kwargs):
        packing = dataclasses.replace(kwargs["packing"], causal=bidirectional)
        return args, {**kwargs, "packing": packing}

    for layer in backbone.decoder.layers:
        layer.self_attn.register_forward_pre_hook(turned, with_kwargs=True)
    with pytest.raises(CannotConvert, match=words):
        spot_check(backbone, TEXT)


# ---------------------------------------------------------------------------------------------------------- one proof


def test_a_proof_holds_for_the_weights_it_was_measured_on() -> None:
    backbone = Backbone(tiny_model("llama"), bidirectional=True)
    first = proven(backbone)
    assert proven(backbone) is first and first.fingerprint == backbone.fingerprint()
    with torch.no_grad():
        backbone.decoder.layers[0].mlp.down_proj.weight[0, 0] += 1
    assert proven(backbone) is not first and proven(backbone).fingerprint == backbone.fingerprint()


def test_what_is_loaded_and_saved_again_keeps_its_proof(marked: Path, tmp_path: Path) -> None:
    Encoder.load(marked).save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "llm2enc.json").read_text())["proof"]["leak"] == RECORDED
    Encoder.load(marked).save(tmp_path / "half", dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "llm2enc.json").read_text())["proof"]["leak"] < RECORDED


# ------------------------------------------------------------------------------------------------------------ digests


def test_a_small_file_has_its_own_sha256_and_a_large_one_that_of_a_sample(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert integrity.digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr(integrity, "WHOLE", 1)
    content = bytearray(3 * integrity.MIB + 10_000)
    changes = {"header": 7, "start of a MiB": 2 * integrity.MIB, "last byte": len(content) - 1}
    found = set()
    for place in (None, *changes.values()):
        changed = bytearray(content)
        if place is not None:
            changed[place] ^= 1
        path.write_bytes(changed)
        found.add(integrity.digest(path))
    path.write_bytes(content[:-5000])
    assert len(found | {integrity.digest(path)}) == len(changes) + 2


@pytest.mark.parametrize("start", [integrity.MIB + 1, 2 * integrity.MIB + 5000])
def test_a_change_of_a_whole_mib_is_seen_wherever_it_starts(start: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(integrity, "WHOLE", 1)
    path, content = tmp_path / "weights", bytearray(5 * integrity.MIB)
    path.write_bytes(content)
    before = integrity.digest(path)
    content[start : start + integrity.MIB] = b"\1" * integrity.MIB
    path.write_bytes(content)
    assert integrity.digest(path) != before
