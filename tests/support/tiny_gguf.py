"""Tiny GGUF files of random models, and their weights dequantised by hand: what a reader of the file must find."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.support.builders import make_tokenizer
from tests.support.tiny import tiny_model

FAMILIES = {"llama": "llama", "gemma3": "gemma3_text"}
SPACE = "\u2581"


def tiny(architecture: str = "llama", tokens: int = 320, **overrides: Any) -> PreTrainedModel:
    """A random model as its GGUF file describes it: transformers gives Gemma 3 five windows before each full layer."""
    windows = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2} if architecture == "gemma3" else {}
    return tiny_model(FAMILIES[architecture], **{"vocab_size": tokens, **windows, **overrides})


def write(
    path: Path,
    model: PreTrainedModel,
    kind: str = "F32",
    tokenizer: PreTrainedTokenizerFast | None = None,
    extra: dict[str, np.ndarray] | None = None,
    architecture: str | None = None,
    **metadata: Any,
) -> dict[str, torch.Tensor]:
    """Write `model` as llama.cpp's converter does, and return the weights that the file holds, by transformers' names.

    kind      of matrices; the rest is float32
    extra     further tensors
    metadata  further keys, `__` for a dot
    """
    family = {name: key for key, name in FAMILIES.items()}[model.config.model_type]
    writer = gguf.GGUFWriter(path, architecture or family)
    _add_settings(writer, model)
    _add_words(writer, tokenizer or make_tokenizer())
    for key, value in metadata.items():
        key = key.replace("__", ".")
        add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, int: writer.add_uint32}
        add[type(value)](key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], model.config.num_hidden_layers)
    held = {}
    for name, parameter in model.named_parameters():
        weight = _as_stored(name, parameter.detach().numpy().copy(), model)
        stored_as = gguf.GGMLQuantizationType[kind if weight.ndim == 2 else "F32"]
        data = gguf.quants.quantize(weight, stored_as)
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=stored_as)
        held[name] = torch.from_numpy(_as_trained(name, by_hand(data, stored_as.name).reshape(weight.shape), model))
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def by_hand(data: np.ndarray, kind: str) -> np.ndarray:
    """Float32 values of stored blocks of 32: d q (Q8_0), d q + m (Q4_1: low halves of 16 bytes, then the high ones)."""
    if kind in ("F32", "F16"):
        return data.astype(np.float32)
    blocks = data.reshape(-1, {"Q8_0": 34, "Q4_1": 20}[kind])
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == "Q8_0":
        return scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)
    least, halves = blocks[:, 2:4].copy().view(np.float16).astype(np.float32), blocks[:, 4:]
    return scale * np.concatenate([halves & 15, halves >> 4], axis=1).astype(np.float32) + least


def _heads(name: str, model: PreTrainedModel) -> int:
    """Heads of a matrix whose rows llama.cpp turns pair by pair; 0 for others."""
    config = model.config
    if config.model_type != "llama":
        return 0
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)


def _as_stored(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    if heads := _heads(name, model):
        return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape).copy()
    return weight + np.float32(1) if _is_offset(name, model) else weight


def _as_trained(name: str, weight: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    if heads := _heads(name, model):
        return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape).copy()
    return weight - np.float32(1) if _is_offset(name, model) else weight


def _is_offset(name: str, model: PreTrainedModel) -> bool:
    return "norm" in name and model.config.model_type == "gemma3_text"


def _add_settings(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "llama":
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.head_dim)
    else:
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)


def _add_words(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
