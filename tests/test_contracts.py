"""Verdicts about engines that can't be run here, on directories made on the spot.

What is expected was derived by hand from the engine's sources; the reason stands beside it. Every damage is one key of one
file, so that a rule that looks elsewhere fails.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import INPUT, make_tokenizer
from tiny import tiny_model

from llm2enc.artifact import directory as export
from llm2enc.encoding import Encoder
from llm2enc.model import Backbone
from llm2enc.recipe import InputSpec, Part
from llm2enc.text import InputFormat
from llm2enc.verification.rules import check, verdicts
from llm2enc.verification.rules.findings import Finding
from llm2enc.verification.rules.layout import read
from llm2enc.verification.rules.vllm import seq_pooling

FAMILIES = "llama mistral qwen2 qwen3 gemma2 gemma3_text phi3 gpt_neox olmo2".split()
EVERYTHING_POOLED = InputSpec(
    query=(Part(special="bos", pool=True), Part(slot="text", pool=True)),
    document=(Part(special="bos", pool=True), Part(slot="text", pool=True)),
    max_tokens=64,
)
WINDOW = 16  # shorter than max_tokens, so that the export keeps it


def exported(folder: Path, family: str, pooling: str = "mean", input: InputSpec = EVERYTHING_POOLED, **config) -> Path:
    shape = {"vocab_size": 320, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    # Some miniatures have windows; a test that wants one asks for it.
    full = {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"] * 2}
    plain = full if family.startswith("qwen") else {"sliding_window": None} if family == "mistral" else {}
    backbone = Backbone(tiny_model(family, **(shape | plain | config)), bidirectional=True)
    export.write(Encoder(backbone, InputFormat(input, make_tokenizer()), pooling).eval(), folder)
    # transformers opens any tokenizer of a qwen2 folder by Qwen's rules, and ours is not one of Qwen's.
    facts = json.loads((folder / "llm2enc.json").read_text())
    (folder / "llm2enc.json").write_text(json.dumps(facts | {"reason": ""}))
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    return {family: exported(root / family, family) for family in FAMILIES}


@pytest.fixture
def damaged(exports: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of an export with keys of one file changed; None takes a key out."""

    def damage(family: str, file: str, **changes: Any) -> Path:
        folder = tmp_path / "copy"
        if not folder.exists():
            shutil.copytree(exports[family], folder)
        content = json.loads((folder / file).read_text())
        content = {key: value for key, value in (content | changes).items() if value is not None}
        (folder / file).write_text(json.dumps(content))
        return folder

    return damage


def found(folder: Path, engine: str, *words: str) -> list[Finding]:
    """Findings of `engine` whose message holds all `words`."""
    return [f for f in check(folder) if f.engine == engine and all(word in f.message for word in words)]


def only(folder: Path, engine: str, *words: str) -> Finding:
    (finding,) = found(folder, engine, *words)
    return finding


# ------------------------------------------------------------------------------------------------------------- exports

VLLM = {
    # llama.py, which builds Mistral too, phi3.py on top of it, qwen2.py and qwen3.py read is_causal.
    **dict.fromkeys(("llama", "mistral", "phi3", "qwen2", "qwen3"), "agrees"),
    # Gemma3TextModelConfig: is_causal = not use_bidirectional_attention, which the export writes for this family.
    "gemma3_text": "agrees",
    # gemma2.py knows neither key.
    "gemma2": "differs",
    # No classes of their own: Base._get_attn_cls asks the modules' is_causal, and transformers sets it to True.
    "gpt_neox": "differs",
    "olmo2": "differs",
}
TEI = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), "agrees"),
    # No variant of the candle backend's Config enum.
    **dict.fromkeys(("phi3", "gemma2", "gpt_neox", "olmo2"), "unsupported"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_exports_are_judged_by_family(exports: dict[str, Path], family: str) -> None:
    found = verdicts(check(exports[family]))
    assert found["vllm"] == VLLM[family]
    if family != "gemma3_text":
        assert found["tei"] == TEI[family]
    assert found["infinity"] == "unsupported"  # sentence-transformers 3 stops at the first key it does not know


def test_gemma3_in_tei_takes_its_layers_from_a_pattern(damaged: Callable[..., Path]) -> None:
    """Gemma3Config needs _sliding_window_pattern, and layer_types is not read: every n-th layer is full."""
    without = damaged("gemma3_text", "config.json", _sliding_window_pattern=None)
    assert only(without, "tei", "_sliding_window_pattern").verdict == "unsupported"
    agreeing = damaged("gemma3_text", "config.json", _sliding_window_pattern=3)  # sliding, sliding, full
    assert verdicts(check(agreeing))["tei"] == "agrees"
    other = damaged("gemma3_text", "config.json", _sliding_window_pattern=2)
    assert only(other, "tei", "layer_types").verdict == "differs"


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "olmo2"])
def test_what_vllm_runs_as_causal_has_no_flag_that_helps(exports: dict[str, Path], family: str) -> None:
    finding = only(exports[family], "vllm", "causal attention, and no error")
    assert finding.remedy == "serve it by sentence-transformers"


def test_an_onnx_file_lets_tei_run_any_family_on_the_cpu(exports: dict[str, Path], tmp_path: Path) -> None:
    """backends/ort pools `last_hidden_state` of onnx/model.onnx, by the last token too; the family is not asked."""
    for folder in (
        shutil.copytree(exports["olmo2"], tmp_path / "copy"),
        exported(tmp_path / "last", "phi3", "last"),
    ):
        assert only(folder, "tei", "not built in").verdict == "unsupported"
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").touch()
        assert verdicts(check(folder))["tei"] == "agrees"


def test_an_onnx_file_is_asked_for_only_where_there_is_none(exports: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exports["llama"], tmp_path / "copy")
    assert only(folder, "tei", "in float16 only").remedy == "for a CPU, add onnx/model.onnx"
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    assert only(folder, "tei", "in float16 only").remedy == ""


# ------------------------------------------------------------------------------------------------------------- damages


def test_without_is_causal_vllm_is_causal_and_tei_is_not(damaged: Callable[..., Path]) -> None:
    """TEI's LlamaConfig reads use_bidirectional_attention instead."""
    folder = damaged("llama", "config.json", is_causal=None)
    assert only(folder, "vllm", "causal attention").verdict == "differs"
    assert "is_causal" in only(folder, "vllm", "causal attention").remedy
    assert verdicts(check(folder))["tei"] == "agrees"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_without_its_flag_tei_is_causal_and_vllm_is_not(damaged: Callable[..., Path], family: str) -> None:
    folder = damaged(family, "config.json", use_bidirectional_attention=None)
    assert only(folder, "tei", "causal attention").verdict == "differs"
    assert verdicts(check(folder))["vllm"] == "agrees"


def test_tei_reads_is_causal_for_qwen2_alone(damaged: Callable[..., Path]) -> None:
    """Qwen2Config has is_causal, true by default, and no use_bidirectional_attention."""
    assert verdicts(check(damaged("qwen2", "config.json", use_bidirectional_attention=None)))["tei"] == "agrees"
    assert verdicts(check(damaged("qwen2", "config.json", is_causal=None)))["tei"] == "differs"


def test_the_pooling_schema_of_sentence_transformers_6_stops_tei_and_not_vllm(damaged: Callable[..., Path]) -> None:
    """PoolConfig has no default for the two booleans; get_pooling_config takes `pooling_mode` as well."""
    old = dict.fromkeys(key for key in read_pooling(damaged("llama", "config.json")) if key.startswith("pooling_mode_"))
    folder = damaged("llama", "1_Pooling/config.json", **old)
    assert only(folder, "tei", "1_Pooling/config.json lacks").verdict == "unsupported"
    assert only(folder, "tei", "1_Pooling/config.json lacks").remedy == "--pooling mean"
    assert verdicts(check(folder))["vllm"] == "agrees"


def read_pooling(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "1_Pooling" / "config.json").read_text())


def test_the_class_paths_of_sentence_transformers_6_are_known_to_vllm(damaged: Callable[..., Path]) -> None:
    folder = damaged("llama", "config.json")
    rows = json.loads((folder / "modules.json").read_text())
    rows[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(rows))
    assert verdicts(check(folder))["vllm"] == "agrees"
    rows[1]["type"] = "my.own.Pooling"  # compared with two names, so the last token is pooled
    (folder / "modules.json").write_text(json.dumps(rows))
    assert only(folder, "vllm", "pools the last token").verdict == "differs"
    assert '"pooling_type": "MEAN"' in only(folder, "vllm", "pools the last token").remedy


@pytest.mark.parametrize(
    ("key", "pooling"),
    [
        ("pooling_mode_cls_token", "first"),
        ("pooling_mode_lasttoken", "last"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean"),  # the name is cut after its first word
        ("pooling_mode_max_tokens", None),
        ("pooling_mode_weightedmean_tokens", None),
    ],
)
def test_poolings_that_vllm_finds(damaged: Callable[..., Path], key: str, pooling: str | None) -> None:
    changes = {"pooling_mode": None, "pooling_mode_mean_tokens": False, key: True}
    assert seq_pooling(read(damaged("llama", "1_Pooling/config.json", **changes))) == pooling


def test_a_weighted_mean_is_refused_by_tei_and_silently_the_last_token_in_vllm(tmp_path: Path) -> None:
    folder = exported(tmp_path / "weighted", "llama", "weighted_mean")
    assert only(folder, "vllm", "pools the last token; weighted_mean is meant").verdict == "differs"
    assert only(folder, "tei", "stops at the pooling weighted_mean").verdict == "unsupported"


def test_the_last_token_is_pooled_by_both(tmp_path: Path) -> None:
    found = verdicts(check(exported(tmp_path / "last", "qwen3", "last")))
    assert found["vllm"] == found["tei"] == "agrees"


def test_a_missing_normalize_module_changes_lengths_only(damaged: Callable[..., Path]) -> None:
    """vLLM sets use_activation by the module; TEI normalises whatever the directory says."""
    folder = damaged("llama", "llm2enc.json", normalize=False)
    rows = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(rows[:2]))
    assert only(folder, "vllm", "length").verdict == "agrees"
    assert only(folder, "tei", "length 1").verdict == "differs"
    assert only(folder, "tei", "length 1").remedy == '"normalize": false in the request'


def test_prompts_that_are_not_pooled_differ_where_a_mean_is_taken(tmp_path: Path) -> None:
    """INPUT pools the text alone: the export writes include_prompt false, which only sentence-transformers knows."""
    folder = exported(tmp_path / "unpooled", "llama", input=INPUT)
    assert read_pooling(folder)["include_prompt"] is False
    for engine in ("vllm", "tei"):
        assert only(folder, engine, "prompt's tokens are pooled").verdict == "differs"


def test_a_default_prompt_is_put_before_texts_by_no_engine(damaged: Callable[..., Path]) -> None:
    changes = {"prompts": {"document": "text: ", "query": "ask: "}, "default_prompt_name": "document"}
    folder = damaged("llama", "config_sentence_transformers.json", **changes)
    for engine in ("vllm", "tei", "infinity"):
        assert only(folder, engine, "'text: '").verdict == "differs"
    assert only(folder, "tei", "'text: '").remedy == "--default-prompt-name document"
    named = damaged("llama", "config_sentence_transformers.json", default_prompt_name=None)
    assert verdicts(check(named))["vllm"] == verdicts(check(named))["tei"] == "agrees"


def test_a_window_in_use_is_one_token_narrower_in_vllm_and_one_sided_in_tei(tmp_path: Path) -> None:
    """Flash attention's (W - 1, W - 1) against |i - j| <= W; FlashMistral passes window_size_left alone."""
    folder = exported(tmp_path / "mistral", "mistral", sliding_window=WINDOW)
    assert only(folder, "vllm", "15 tokens to either side").verdict == "differs"
    assert only(folder, "tei", "to the left alone").verdict == "differs"


def test_a_window_is_refused_by_tei_for_qwen(tmp_path: Path) -> None:
    """Qwen3Attention::load bails out."""
    options = {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
    folder = exported(tmp_path / "qwen3", "qwen3", **options)
    assert only(folder, "tei", "sliding window is refused").verdict == "unsupported"
    assert verdicts(check(folder))["vllm"] == "differs"


def test_gemma3s_window_is_right_everywhere(exports: dict[str, Path]) -> None:
    """2 W in config.json: transformers makes W + 1 of it, of which vLLM reads W; TEI halves it to W."""
    assert json.loads((exports["gemma3_text"] / "config.json").read_text())["sliding_window"] < 64
    assert not found(exports["gemma3_text"], "vllm", "window") and not found(exports["gemma3_text"], "tei", "window")


def test_rotary_scaling_is_refused_ignored_or_followed(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    llama = exported(tmp_path / "llama", "llama", rope_parameters=yarn)
    qwen = exported(tmp_path / "qwen3", "qwen3", rope_parameters=yarn)
    assert only(llama, "tei", "yarn").verdict == "unsupported"
    assert only(qwen, "tei", "yarn").verdict == "differs"  # Qwen3Config has no rope_scaling, and rope_type is unused
    assert verdicts(check(llama))["vllm"] == verdicts(check(qwen))["vllm"] == "agrees"


def test_a_batch_dependent_rotary_scaling_is_unknown(damaged: Callable[..., Path]) -> None:
    folder = damaged("llama", "config.json", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert only(folder, "vllm", "dynamic").verdict == "unknown"


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [
        ("llama", {"eos_token_id": [1, 2]}, "eos_token_id"),  # Option<usize>
        ("qwen3", {"eos_token_id": [1, 2]}, "eos_token_id"),  # usize
        ("qwen2", {"use_sliding_window": None}, "use_sliding_window"),  # bool without a default
        ("mistral", {"initializer_range": None}, "initializer_range"),
        ("llama", {"pad_token_id": "<pad>"}, "pad_token_id"),
    ],
)
def test_fields_of_another_type_stop_tei(damaged: Callable[..., Path], family: str, changes: dict, word: str) -> None:
    folder = damaged(family, "config.json", **changes)
    assert verdicts(check(folder))["tei"] == "unsupported" and found(folder, "tei", word)


def test_a_missing_tokenizer_file_stops_tei(damaged: Callable[..., Path]) -> None:
    folder = damaged("llama", "config.json")
    (folder / "tokenizer.json").unlink()
    assert only(folder, "tei", "tokenizer.json").verdict == "unsupported"
    assert only(folder, "vllm", "tokenizer.json").verdict == "unknown"


def test_infinity_runs_a_directory_without_guards_as_causal(damaged: Callable[..., Path]) -> None:
    """Run for real: with neither file's newer keys, its vectors were at cosine 0.94 of the right ones, without a word."""
    file = "sentence_bert_config.json"
    assert "transformer_task" in only(damaged("llama", file), "infinity", "stops").message
    damaged("llama", file, **dict.fromkeys(("transformer_task", "modality_config", "module_output_name")))
    folder = damaged("llama", "1_Pooling/config.json")
    assert "embedding_dimension" in only(folder, "infinity", "stops").message
    damaged("llama", "1_Pooling/config.json", embedding_dimension=None)
    assert "pruned_heads" in only(folder, "infinity", "stops").message
    # Heads that were really pruned are numbers, and stop nothing.
    damaged("llama", "config.json", pruned_heads={"1": [0]})
    assert "allow_all_kernels" in only(folder, "infinity", "stops").message
    damaged("llama", file, model_args=None)
    assert only(folder, "infinity", "as causal").verdict == "differs"


def test_what_sentence_transformers_itself_cannot_say_differs_everywhere(damaged: Callable[..., Path]) -> None:
    folder = damaged("llama", "llm2enc.json", native=False, reason="the pooling skips tokens inside the text")
    for engine in ("vllm", "tei", "infinity"):
        assert only(folder, engine, "skips tokens").verdict == "differs"


# -------------------------------------------------------------------------------------------------- foreign directories


def foreign(folder: Path, config: dict[str, Any], pooling: str, *, normalize: bool = True) -> Path:
    """A directory of sentence-transformers 3, without weights."""
    shape = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    (folder / "1_Pooling").mkdir(parents=True)
    keys = ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens", "pooling_mode_lasttoken")
    rows = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    files: dict[str, Any] = {
        "config.json": {**shape, "max_position_embeddings": 64, "num_key_value_heads": 2} | config,
        "modules.json": [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in rows],
        "1_Pooling/config.json": {"word_embedding_dimension": 8, **{key: key == pooling for key in keys}},
        "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": False},
        "tokenizer.json": {},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_bert_agrees_everywhere(tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "pad_token_id": 0}
    folder = foreign(tmp_path / "bert", config, "pooling_mode_mean_tokens")
    assert set(verdicts(check(folder)).values()) == {"agrees"}


def test_a_causal_embedder_is_causal_everywhere(tmp_path: Path) -> None:
    """Qwen3-Embedding's form: nothing about the direction, the last token pooled."""
    config = {
        **{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6},
        **{"attention_bias": False, "use_sliding_window": False, "eos_token_id": 1, "rope_theta": 1e6},
    }
    folder = foreign(tmp_path / "causal", config, "pooling_mode_lasttoken")
    assert set(verdicts(check(folder)).values()) == {"agrees"}
    assert only(folder, "vllm", "causal attention").verdict == "agrees"


def test_a_plain_model_is_not_embedded_by_vllm_nor_opened_by_tei(tmp_path: Path) -> None:
    folder = foreign(tmp_path / "plain", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "")
    shutil.rmtree(folder / "1_Pooling")
    (folder / "modules.json").unlink()
    assert (
        only(folder, "vllm", "generate text").remedy == '--runner pooling --pooler-config \'{"pooling_type": "LAST"}\''
    )
    assert only(folder, "tei", "1_Pooling/config.json").verdict == "unsupported"


def test_an_architecture_that_was_not_read_is_unknown_to_vllm(tmp_path: Path) -> None:
    config = {"model_type": "newcomer", "architectures": ["NewcomerModel"]}
    assert verdicts(check(foreign(tmp_path / "new", config, "pooling_mode_mean_tokens")))["vllm"] == "unknown"


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check(tmp_path)
