"""A tiny random causal LM of every family: `tiny_model("llama")`.

Sizes come from the family's own default configuration, cut down by `llm2enc.model.tiny_random`. The table below says where
the default alone would leave something out (windows, grouped keys) or cannot be cut down by rule.
"""

from typing import Any

import pytest
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel

from llm2enc.model.tiny_random import miniature

_ALTERNATING = ["sliding_attention", "full_attention"]
_WINDOWS = {"layer_types": _ALTERNATING, "sliding_window": 3}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
_SHARED = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
}
_GROUPED = {"num_key_value_heads": 2}

OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys("llama mistral gemma olmo olmo2 phi3 phi stablelm nemotron granite mixtral".split(), _GROUPED),
    **{name: _WINDOWS | _GROUPED | {"use_sliding_window": True} for name in "qwen2 qwen2_moe qwen3 qwen3_moe".split()},
    "cohere_compass_text": {
        **_WINDOWS,
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROTARY),
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, **_WINDOWS},
    "dots3_note_text": {"head_dim": 16},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": _ALTERNATING * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "hrm_text": {"num_layers_per_stack": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "qwen4_exp_text": {
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "zamba": _SHARED,
    "zamba2": _SHARED | {"hybrid_layer_ids": [1, 3]},
}


def tiny_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """The configuration of `tiny_model`."""
    return tiny_model(model_type, **overrides).config


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of 1 to 8 layers, width 32 and 128 tokens, float32, in evaluation mode; the same for a seed.

    overrides  configuration fields that differ from the family's miniature
    """
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} does not have {model_type}")
    config = CONFIG_MAPPING[model_type]()
    return miniature(config, seed, **{**OVERRIDES.get(model_type, {}), **overrides})
