"""`inspect` reads one config.json, says what a conversion would meet, and survives whatever the file holds."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING

from llm2enc.model import inspect
from llm2enc.model.inspection import ECHO
from tests.support.tiny import tiny_model


def _config(folder: Path, model_type: str, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(tiny_model(model_type).config.to_json_string()), **fields}))
    return path


def test_a_directory_and_its_config_say_the_same(tmp_path: Path) -> None:
    path = _config(tmp_path, "gemma2")
    found = inspect(tmp_path).to_json()
    assert {**inspect(path).to_json(), "name": ""} == {**found, "name": ""}
    assert json.loads(json.dumps(found)) == found
    assert found["verdict"] == "convertible" and found["reason"] == "" and found["alternative"] == ""
    assert found["sliding_window"] == 3 and found["max_positions"] == 64 and found["hidden_size"] == 32
    assert [layer["type"] for layer in found["layers"]] == ["sliding_attention", "full_attention"]
    assert {layer["attention"] for layer in found["layers"]} == {"Gemma2Attention"}
    assert found["parameters"] == sum(p.numel() for p in tiny_model("gemma2").parameters())


def test_a_refused_family_names_the_layer_and_the_way_out(tmp_path: Path) -> None:
    found = inspect(_config(tmp_path, "jamba"))
    assert found.verdict == "refused" and "JambaMambaMixer" in found.reason and found.alternative == ECHO
    assert found.attention_route == "alone"
    assert {"JambaMambaMixer", "JambaAttention"} == {layer.attention for layer in found.layers}


def test_the_configuration_can_refuse_a_family_that_is_convertible(tmp_path: Path) -> None:
    assert inspect(_config(tmp_path, "falcon")).verdict == "conditional"
    assert "ALiBi" in inspect(_config(tmp_path, "falcon", alibi=True)).reason
    mixed = _config(tmp_path, "minimax_m3_vl_text", layer_types=["full_attention", "minimax_m3_sparse"])
    assert inspect(mixed).verdict == "refused"


def test_a_composite_model_is_judged_by_its_text_decoder(tmp_path: Path) -> None:
    CONFIG_MAPPING["gemma3"](text_config=tiny_model("gemma3_text").config.to_dict()).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert found.model_type == "gemma3_text" and found.verdict == "convertible" and found.hidden_size == 32


@pytest.mark.parametrize(
    ("model_type", "verdict", "word"),
    [
        ("qwen3", "conditional", "passes"),
        ("falcon_h1", "refused", "FalconH1Mixer"),
        ("gpt_neo", "refused", "GPTNeoAtt"),
    ],
)
def test_an_unknown_family_is_judged_by_its_miniature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, verdict: str, word: str
) -> None:
    for place in ("inspection", "backbone", "families"):
        monkeypatch.setattr(f"llm2enc.model.{place}.families", dict)
    found = inspect(_config(tmp_path, model_type))
    assert (found.verdict, found.studied) == (verdict, False) and word in found.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds list"),
        (b"{}", "no model_type"),
        (b'{"model_type": ["llama"]}', "no model_type"),
        (b'{"model_type": "lama"}', "has no model_type 'lama'"),
        (b'{"model_type": "x", "auto_map": {"AutoConfig": "evil.py"}}', "never run"),
        (b'{"model_type": "llama", "hidden_size": "wide"}', "not a usable llama configuration"),
        (b'{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers = 1000000000"),
        (b'{"model_type": "llama", "vocab_size": -5}', "vocab_size = -5"),
        (b'{"model_type": "gemma2", "layer_types": ["full_attention"]}', "not a usable gemma2"),
    ],
)
def test_a_useless_file_is_told_not_crashed_on(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        inspect(path)


def test_a_name_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="give a hub id, a directory"):
        inspect(tmp_path / "nothing")


_JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 70), st.floats(allow_nan=True), st.text(max_size=5),
    st.lists(st.integers(-2, 5), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
_FIELDS = sorted(CONFIG_MAPPING["gemma2"]().to_dict())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(_FIELDS), _JUNK, max_size=3))
def test_no_field_can_make_it_crash(tmp_path: Path, changes: dict) -> None:
    fields = {**json.loads(tiny_model("gemma2").config.to_json_string()), **changes, "model_type": "gemma2"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    try:
        found = inspect(path)
    except ValueError:
        return
    assert found.verdict in ("convertible", "conditional", "refused")
