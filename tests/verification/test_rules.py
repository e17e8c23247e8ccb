"""Verdicts about engines that cannot be run here, on directories made on the spot.

What is expected was derived by hand from the engine's sources; the reason stands beside it. Every damage is one key of one
file, so that a rule that looks elsewhere fails.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm2enc.encoding import Encoder
from llm2enc.model import Backbone
from llm2enc.recipe import InputSpec, Part
from llm2enc.text import InputFormat
from llm2enc.verification.rules import check, verdicts
from llm2enc.verification.rules.engine import RuleResult
from tests.support.builders import INPUT, make_tokenizer
from tests.support.tiny import tiny_model

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
    Encoder(backbone, InputFormat(input, make_tokenizer()), pooling).eval().save(folder)
    # transformers opens any tokenizer of a qwen2 folder by Qwen's rules, and ours is not one of Qwen's.
    facts = json.loads((folder / "llm2enc.json").read_text())
    (folder / "llm2enc.json").write_text(json.dumps(facts | {"reason": ""}))
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    return {family: exported(root / family, family) for family in FAMILIES}


@pytest.fixture
def copied(exports: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's export."""
    return lambda family: shutil.copytree(exports[family], tmp_path / "copy")


def change(folder: Path, file: str, **changes: Any) -> Path:
    """The folder with keys of one file changed; None takes a key out."""
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def found(folder: Path, engine: str, *words: str) -> list[RuleResult]:
    """Results for `engine` whose message holds all `words`."""
    return [f for f in check(folder) if f.engine == engine and all(word in f.message for word in words)]


def only(folder: Path, engine: str, *words: str) -> RuleResult:
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


CONFIG, POOLING, TOP = "config.json", "1_Pooling/config.json", "config_sentence_transformers.json"
OLD = dict.fromkeys(f"pooling_mode_{name}_tokens" for name in ("cls", "mean", "max", "mean_sqrt_len", "weightedmean"))
DEFAULT = {"prompts": {"document": "text: ", "query": "ask: "}, "default_prompt_name": "document"}
BOTH = "use_bidirectional_attention"


@pytest.mark.parametrize(
    ("family", "file", "changes", "engine", "verdict", "word"),
    [
        # Direction: each engine reads its own key.
        ("llama", CONFIG, {"is_causal": None}, "vllm", "differs", "causal attention, and no error"),
        ("llama", CONFIG, {"is_causal": None}, "tei", "agrees", "bidirectional attention"),
        *((name, CONFIG, {BOTH: None}, "tei", "differs", "causal attention") for name in ("llama", "mistral", "qwen3")),
        *((name, CONFIG, {BOTH: None}, "vllm", "agrees", "bidirectional") for name in ("llama", "mistral", "qwen3")),
        ("gemma3_text", CONFIG, {BOTH: None}, "vllm", "differs", "causal attention"),
        ("gemma3_text", CONFIG, {"is_causal": None}, "vllm", "agrees", "bidirectional attention"),
        # Qwen2Config has is_causal, true by default, and no use_bidirectional_attention.
        ("qwen2", CONFIG, {BOTH: None}, "tei", "agrees", "bidirectional attention"),
        ("qwen2", CONFIG, {"is_causal": None}, "tei", "differs", "causal attention"),
        # Pooling: PoolConfig has no default for two booleans; vLLM's get_pooling_config takes `pooling_mode` as well.
        ("llama", POOLING, OLD, "tei", "unsupported", "lacks pooling_mode_cls_token"),
        ("llama", POOLING, OLD, "vllm", "agrees", "pools mean"),
        # Rotary scaling that depends on the batch.
        ("llama", CONFIG, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "vllm", "unknown", "dynamic"),
        # Fields that TEI's parser needs: Option<usize>, usize, a bool without a default, ...
        ("llama", CONFIG, {"eos_token_id": [1, 2]}, "tei", "unsupported", "eos_token_id"),
        ("qwen3", CONFIG, {"eos_token_id": [1, 2]}, "tei", "unsupported", "eos_token_id"),
        ("qwen2", CONFIG, {"use_sliding_window": None}, "tei", "unsupported", "use_sliding_window"),
        ("mistral", CONFIG, {"initializer_range": None}, "tei", "unsupported", "initializer_range"),
        ("llama", CONFIG, {"pad_token_id": "<pad>"}, "tei", "unsupported", "pad_token_id"),
        ("gemma3_text", CONFIG, {"_sliding_window_pattern": None}, "tei", "unsupported", "_sliding_window_pattern"),
        ("llama", "sentence_bert_config.json", {"max_seq_length": None}, "tei", "unsupported", "max_seq_length"),
        ("mistral", CONFIG, {"head_dim": 64}, "tei", "unsupported", "head_dim"),
        # Every n-th layer of Gemma 3 is a full one there, and layer_types (sliding, sliding, full) is not read.
        ("gemma3_text", CONFIG, {"_sliding_window_pattern": 2}, "tei", "differs", "layer_types"),
        # A default prompt is put before texts by no engine.
        *(("llama", TOP, DEFAULT, engine, "differs", "'text: '") for engine in ("vllm", "tei", "infinity")),
        # What sentence-transformers itself cannot say.
        *(("llama", "llm2enc.json", {"reason": "it skips tokens"}, engine, "differs", "it skips tokens")
          for engine in ("vllm", "tei", "infinity")),
    ],
)  # fmt: skip
def test_a_changed_key_is_judged_by_what_the_engine_reads(
    copied: Callable, family: str, file: str, changes: dict, engine: str, verdict: str, word: str
) -> None:
    folder = change(copied(family), file, **changes)
    assert only(folder, engine, word).verdict == verdict


def test_gemma3_agrees_where_its_layers_follow_the_pattern(copied: Callable) -> None:
    """Its window too: 2 W in config.json, of which transformers makes W + 1 and vLLM W; TEI halves it to W."""
    folder = change(copied("gemma3_text"), CONFIG, _sliding_window_pattern=3)
    assert json.loads((folder / CONFIG).read_text())["sliding_window"] < 64
    assert verdicts(check(folder))["vllm"] == verdicts(check(folder))["tei"] == "agrees"


@pytest.mark.parametrize(
    ("family", "file", "changes", "engine", "word", "remedy"),
    [
        *((name, CONFIG, {}, "vllm", "causal", "serve it by sentence-transformers") for name in ("gemma2", "olmo2")),
        ("llama", CONFIG, {"is_causal": None}, "vllm", "causal", "--hf-overrides '{\"is_causal\": false}'"),
        ("llama", CONFIG, {BOTH: None}, "tei", "causal", f'set "{BOTH}": true in config.json'),
        ("llama", TOP, DEFAULT, "tei", "'text: '", '--default-prompt-name NAME, or "prompt_name" in the request'),
        ("llama", CONFIG, {}, "tei", "float16", "for a CPU, add onnx/model.onnx"),
        ("llama", CONFIG, {"dtype": "float32"}, "vllm", "float16", "--dtype float32"),
        ("gemma3_text", CONFIG, {}, "tei", "float32 only", "--dtype float32"),
    ],
)
def test_the_remedy_is_what_the_engine_takes(
    copied: Callable, family: str, file: str, changes: dict, engine: str, word: str, remedy: str
) -> None:
    assert only(change(copied(family), file, **changes), engine, word).remedy == remedy


@pytest.mark.parametrize(
    ("pooling", "vllm", "tei"),
    [
        ("first", "agrees", "agrees"),
        ("last", "agrees", "agrees"),
        ("weighted_mean", "differs", "unsupported"),  # vLLM warns and pools the last token
    ],
)
def test_a_pooling_is_judged_by_what_the_engine_has(tmp_path: Path, pooling: str, vllm: str, tei: str) -> None:
    folder = exported(tmp_path / "model", "qwen3", pooling)
    assert verdicts(check(folder)) == {"vllm": vllm, "tei": tei, "infinity": "unsupported"}


def test_gemma3_is_pooled_by_the_mean_only_in_tei(tmp_path: Path) -> None:
    folder = exported(tmp_path / "model", "gemma3_text", "last")
    assert only(folder, "tei", "stops at the pooling last").verdict == "unsupported"
    assert verdicts(check(folder))["vllm"] == "agrees"


@pytest.mark.parametrize(
    ("key", "vllm", "tei"),
    [
        ("pooling_mode_cls_token", "pools first;", "pools first;"),
        ("pooling_mode_lasttoken", "pools last;", "pools last;"),
        ("pooling_mode_mean_sqrt_len_tokens", "pools mean", "stops at the pooling mean_sqrt_len"),  # vLLM: first word
        ("pooling_mode_max_tokens", "pools last;", "stops at the pooling max"),
        ("pooling_mode_weightedmean_tokens", "pools last;", "stops at the pooling weighted_mean"),
    ],
)
def test_the_pooling_is_found_by_the_old_keys(copied: Callable, key: str, vllm: str, tei: str) -> None:
    changes = {"pooling_mode": None, "pooling_mode_mean_tokens": False, key: True}
    folder = change(copied("llama"), POOLING, **changes)
    assert found(folder, "vllm", vllm) and found(folder, "tei", tei)


def test_the_class_paths_of_sentence_transformers_6_are_known_to_vllm_alone(copied: Callable) -> None:
    folder = copied("llama")
    rows = json.loads((folder / "modules.json").read_text())
    rows[1]["type"] = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(rows))
    assert verdicts(check(folder))["vllm"] == "agrees"
    rows[1]["type"] = "my.own.Pooling"  # compared with two names, so the last token is pooled
    (folder / "modules.json").write_text(json.dumps(rows))
    assert only(folder, "vllm", "pools last").verdict == "differs"
    assert '"pooling_type": "MEAN"' in only(folder, "vllm", "pools last").remedy
    assert only(folder, "infinity", "has no my.own.Pooling").verdict == "unsupported"


def test_a_missing_normalize_module_changes_lengths_only(copied: Callable) -> None:
    """vLLM sets use_activation by the module; TEI normalises whatever the directory says."""
    folder = copied("llama")
    rows = json.loads((folder / "modules.json").read_text())[:2]
    (folder / "modules.json").write_text(json.dumps(rows))
    assert only(folder, "vllm", "as they are").remedy == "--pooler-config '{\"use_activation\": true}'"
    change(folder, "llm2enc.json", normalize=False)
    assert not found(folder, "vllm", "vectors come")
    assert only(folder, "tei", "length 1").remedy == '"normalize": false in the request'


def test_prompts_that_are_not_pooled_differ_where_a_mean_is_taken(tmp_path: Path) -> None:
    """INPUT pools the text alone: the export writes include_prompt false, which only sentence-transformers knows."""
    folder = exported(tmp_path / "unpooled", "llama", input=INPUT)
    assert json.loads((folder / POOLING).read_text())["include_prompt"] is False
    for engine in ("vllm", "tei"):
        assert only(folder, engine, "prompt's tokens are pooled").verdict == "differs"


def test_a_window_in_use_is_narrower_in_vllm_and_causal_or_refused_in_tei(tmp_path: Path) -> None:
    """Flash attention's (W - 1, W - 1) against |i - j| <= W; FlashMistral has a left window; Qwen3Attention bails out."""
    mistral = exported(tmp_path / "mistral", "mistral", sliding_window=WINDOW)
    options = {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}
    qwen = exported(tmp_path / "qwen3", "qwen3", **options)
    assert only(mistral, "vllm", "one token less").verdict == only(qwen, "vllm", "one token less").verdict == "differs"
    assert only(mistral, "tei", "to the left alone").verdict == "differs"
    assert only(qwen, "tei", "sliding window is refused").verdict == "unsupported"


def test_rotary_scaling_is_refused_ignored_or_followed(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    llama = exported(tmp_path / "llama", "llama", rope_parameters=yarn)
    qwen = exported(tmp_path / "qwen3", "qwen3", rope_parameters=yarn)
    assert only(llama, "tei", "refused").verdict == "unsupported"
    assert only(qwen, "tei", "yarn").verdict == "differs"  # Qwen3Config has no rope_scaling, and rope_type is unused
    assert verdicts(check(llama))["vllm"] == verdicts(check(qwen))["vllm"] == "agrees"


def test_a_missing_tokenizer_file_stops_tei(copied: Callable) -> None:
    folder = copied("llama")
    (folder / "tokenizer.json").unlink()
    assert only(folder, "tei", "tokenizer.json").verdict == "unsupported"
    assert only(folder, "vllm", "tokenizer.json").verdict == "unknown"


@pytest.mark.parametrize(("family", "before"), [("olmo2", "unsupported"), ("phi3", "unsupported"), ("llama", "agrees")])
def test_an_onnx_file_lets_tei_run_any_family_on_the_cpu(copied: Callable, family: str, before: str) -> None:
    """backends/ort pools `last_hidden_state` of onnx/model.onnx; the family is not asked."""
    folder = copied(family)
    assert verdicts(check(folder))["tei"] == before
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    assert verdicts(check(folder))["tei"] == "agrees" and not found(folder, "tei", "float16")


def test_infinity_runs_a_directory_without_guards_as_causal(copied: Callable) -> None:
    """Run for real: with neither file's newer keys, its vectors were at cosine 0.94 of the right ones, without a word."""
    folder, file = copied("llama"), "sentence_bert_config.json"
    for place, key in (
        *((file, key) for key in ("transformer_task", "modality_config", "module_output_name")),
        (POOLING, "embedding_dimension"),
        (CONFIG, "pruned_heads"),
        (file, "allow_all_kernels"),
    ):
        assert key in only(folder, "infinity", "stops").message
        # Heads that were really pruned are numbers, and stop nothing.
        changes = {"pruned_heads": {"1": [0]}} if key == "pruned_heads" else {key: None}
        change(folder, place, **({"model_args": None} if key == "allow_all_kernels" else changes))
    assert only(folder, "infinity", "causal attention, and no error").verdict == "differs"


# ---------------------------------------------------------------------------------------------- third-party directories


def third_party(folder: Path, config: dict[str, Any], pooling: str, *, normalize: bool = True) -> Path:
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
    folder = third_party(tmp_path / "bert", config, "pooling_mode_mean_tokens")
    assert set(verdicts(check(folder)).values()) == {"agrees"}


def test_a_causal_embedder_is_causal_everywhere(tmp_path: Path) -> None:
    """Qwen3-Embedding's form: nothing about the direction, the last token pooled."""
    config = {
        **{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6},
        **{"attention_bias": False, "use_sliding_window": False, "eos_token_id": 1, "rope_theta": 1e6},
    }
    folder = third_party(tmp_path / "causal", config, "pooling_mode_lasttoken")
    assert set(verdicts(check(folder)).values()) == {"agrees"}
    assert only(folder, "vllm", "causal attention").verdict == "agrees"


def test_infinity_always_normalizes_and_reads_the_legacy_rope_theta_only(tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertModel"], "rope_parameters": {"rope_theta": 1e6}}
    folder = third_party(tmp_path / "bert", config, "pooling_mode_mean_tokens", normalize=False)
    assert only(folder, "infinity", "length 1").verdict == only(folder, "infinity", "rope_theta").verdict == "differs"


def test_a_plain_model_is_not_embedded_by_vllm_nor_opened_by_tei(tmp_path: Path) -> None:
    folder = third_party(tmp_path / "plain", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "")
    shutil.rmtree(folder / "1_Pooling")
    (folder / "modules.json").unlink()
    assert only(folder, "vllm", "generate text").remedy == "--runner pooling"
    assert only(folder, "tei", "1_Pooling/config.json").verdict == "unsupported"


def test_an_architecture_that_was_not_read_is_unknown_to_vllm(tmp_path: Path) -> None:
    config = {"model_type": "newcomer", "architectures": ["NewcomerModel"]}
    assert verdicts(check(third_party(tmp_path / "new", config, "pooling_mode_mean_tokens")))["vllm"] == "unknown"


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        check(tmp_path)
