"""text-embeddings-inference 1.9.3: what `text-embeddings-router --model-id DIR` would run.

Read in its sources: router/src/{lib,main}.rs, backends/candle/src/lib.rs, models/{llama,mistral,qwen2,qwen3,gemma3}.rs,
flash_{mistral,qwen3}.rs, layers/rotary.rs (commit 1a7f78be), backends/ort/src/lib.rs (commit 04a02158, which may be newer
than the release; it pools the last token since pull request 664 of June 2025). Its parser stops where a field is missing or
of another type, and passes over fields it does not know.
"""

from llm2enc.model import POOLERS
from llm2enc.verification.rules.engine import EngineRules, Rule
from llm2enc.verification.rules.model_files import ModelFiles

_LLAMA, _QWEN, _GEMMA = ("llama", "mistral"), ("qwen2", "qwen3"), ("gemma3_text",)
_GRAPHS = ("model.onnx", "onnx/model.onnx")
_MODES = ("pooling_mode_cls_token", "pooling_mode_mean_tokens")
_POOLINGS = {name: pooler.tei for name, pooler in POOLERS.items() if pooler.tei}
_OTHER = "serve it by sentence-transformers or vLLM"


def _lacks_modes(files: ModelFiles) -> bool:
    config = files.pooling_config
    return config is not None and not all(isinstance(config.get(mode), bool) for mode in _MODES)


def _other_head_dim(files: ModelFiles) -> object:
    dim, heads = files.config.get("head_dim"), files.config.get("num_attention_heads")
    return dim and heads and dim * heads != files.config.get("hidden_size")


def _other_layers(files: ModelFiles) -> bool:
    """Every n-th layer is a full one, and layer_types, which is not read, says otherwise."""
    every, types = files.config.get("_sliding_window_pattern"), files.config.get("layer_types") or []
    return (
        isinstance(every, int)
        and every > 0
        and any((name == "full_attention") != (i % every == 0) for i, name in enumerate(types, 1))
    )


TEI = EngineRules(
    "tei",
    "1.9.3",
    family=lambda it: it.model_type,
    direction={
        "": "unsupported",
        **dict.fromkeys(("llama", "mistral", "qwen3", "gemma3_text"), ("use_bidirectional_attention", True)),
        "qwen2": ("is_causal", False),
    },
    graphs=_GRAPHS,
    pooling={name: name for name in _POOLINGS},
    remedies={
        "direction": "set {} in config.json",
        **{name: f"--pooling {value}" for name, value in _POOLINGS.items()},
        "normalize": '"normalize": {} in the request',
        "prompt": '--default-prompt-name NAME, or "prompt_name" in the request',
        "limit": "--auto-truncate",
    },
    fields={
        "": {"architectures": list},
        "llama": {"eos_token_id": int | None, "initializer_range": float},
        "mistral": {"initializer_range": float},
        "qwen2": {"use_sliding_window": bool},
        "qwen3": {"use_sliding_window": bool, "attention_bias": bool, "eos_token_id": int},
        "gemma3_text": {"_sliding_window_pattern": int, "rope_theta": int | float, "rope_local_base_freq": int | float},
    },
    rules=(
        Rule(
            "differs",
            "it does not run {}, a module of the directory's own that changes the vectors",
            lambda it: it.own_modules,
            remedy="serve it by sentence-transformers, with trust_remote_code=True",
        ),
        Rule(
            "unknown",
            "a Dense module follows the pooling, and what it does with one was not read in this release",
            lambda it: it.has_dense,
            remedy="compare with golden vectors",
        ),
        Rule("unsupported", "there is no tokenizer.json: it does not start", lambda it: not it.has("tokenizer.json")),
        Rule("unsupported", f"1_Pooling/config.json lacks {' or '.join(_MODES)}", _lacks_modes, (), "--pooling"),
        Rule(
            "unsupported", "rotary scaling is refused", lambda it: it.scaling and it.config.get("rope_scaling"), _LLAMA
        ),
        Rule("differs", "rotary scaling ({}) is ignored", lambda it: it.scaling, _LLAMA + _QWEN + _GEMMA, _OTHER),
        Rule(
            "unsupported",
            "pad_token_id must be a whole number or left out",
            lambda it: not isinstance(it.config.get("pad_token_id", 0), int),
        ),
        Rule(
            "unsupported",
            "sentence_bert_config.json states no max_seq_length",
            lambda it: it.transformer_config and not it.transformer_config.get("max_seq_length"),
        ),
        Rule("unsupported", "head_dim is not read, so that the weights do not fit", _other_head_dim, ("mistral",)),
        Rule("unsupported", "a sliding window is refused", lambda it: it.config.get("use_sliding_window"), _QWEN),
        Rule(
            "differs",
            "the window of {} tokens is kept to the left alone",
            lambda it: it.attention == "bidirectional" and it.window,
            ("mistral",),
            _OTHER,
        ),
        Rule("unsupported", "it stops at the pooling {}", lambda it: it.pooling != "mean" and it.pooling, _GEMMA),
        Rule("differs", "_sliding_window_pattern is read, not layer_types", _other_layers, _GEMMA, _OTHER),
        Rule("agrees", "it runs in float32 only, not CUDA's default", lambda it: True, _GEMMA, "--dtype float32"),
        Rule(
            "agrees",
            "it runs on CUDA in float16 only",
            lambda it: not any(map(it.has, _GRAPHS)),
            (*_LLAMA, "qwen2"),
            "for a CPU, add onnx/model.onnx",
        ),
    ),
)
