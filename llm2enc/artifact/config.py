"""The decoder that leaves the house: weights without a head, and a config.json that every engine reads alike."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2enc.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig

    from llm2enc.artifact.parts import Parts

# Families for which text-embeddings-inference reads this key instead of is_causal; transformers ignores it there.
_BIDIRECTIONAL_KEY = ("llama", "mistral", "qwen2", "qwen3", "phi3")
# Families in which a layer's type decides its mask and nothing else, so that an unused window may be taken out. In
# others it decides rotary settings too (Gemma 3, Cohere 2).
_WINDOW_IS_ONLY_A_MASK = ("mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2")
# Families whose decoder layer does not tell its attention that it is bidirectional: with sdpa a batch without padding would
# be read as causal. Eager attention obeys the mask alone.
_EAGER_ONLY = ("nemotron", "stablelm")
# transformers 4 reads this key as layer numbers, so a sentence in its place is what its error says; 5 has no use for it.
_GUARD = (
    "this encoder is bidirectional and transformers before 5.2 would run it as causal: pip install -U transformers; or "
    "take pruned_heads out of config.json for a program that reads is_causal itself"
)


def write(parts: "Parts", folder: Path, dtype: str | None) -> list[str]:
    """Weights and config.json; what a reader should know about them. dtype: None for the weights' own."""
    decoder = parts.backbone.decoder
    former = {name: getattr(decoder.config, name) for name in ("architectures", "dtype")}
    decoder.save_pretrained(folder, state_dict=None if dtype is None else _rounded(decoder, dtype))
    for name, value in former.items():  # saving sets both on the live model
        setattr(decoder.config, name, value)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        config["dtype"] = dtype
    window, notes = _unused_window(config, parts.input_format.spec.max_tokens)
    config |= window
    config |= _legacy_rope(config)
    config |= _attention_keys(config, parts.backbone.bidirectional)
    if not parts.backbone.bidirectional or is_gemma3(config["model_type"]):
        config.pop("is_causal", None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # text-embeddings-inference reads a number, or no such key. Several EOS tokens are for what generates.
        found = config.pop(name, None)
        if found not in (None, []):
            config[name] = found[0] if isinstance(found, list) else found
    if "eos_token_id" not in config and parts.input_format.tokenizer.eos_token_id is not None:
        config["eos_token_id"] = parts.input_format.tokenizer.eos_token_id  # which it needs for some families
    (folder / "config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if needs_eager(parts):
        notes.append(
            f"{config['model_type']} is bidirectional with attn_implementation='eager' alone. sentence-transformers knows "
            "(sentence_bert_config.json); for transformers, give it to from_pretrained. Programs without this choice "
            "read single texts, and batches of equal lengths, as a causal model would."
        )
    return notes


def read(folder: Path) -> "PretrainedConfig":
    """The configuration of a directory, with which our own code opens its decoder by AutoModel.from_pretrained.

    Direction and window are said as every family says them, not as `_attention_keys` writes them for engines.
    """
    from transformers import AutoConfig

    from llm2enc.model import naming_untrusted_code, with_common_direction, without_kernels

    with naming_untrusted_code(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return with_common_direction(without_kernels(config))


def model_args(parts: "Parts") -> dict[str, Any]:
    """How sentence-transformers has to load the decoder; empty for a causal one."""
    if not parts.backbone.bidirectional:
        return {}
    eager = needs_eager(parts)
    # The default of an argument that transformers has since 5.3: releases before, some of which would run the model as
    # causal under a sentence-transformers that only warns, stop at it.
    return {**({"attn_implementation": "eager"} if eager else {}), "allow_all_kernels": False}


def needs_eager(parts: "Parts") -> bool:
    """Whether only eager attention is bidirectional in every batch."""
    return parts.backbone.bidirectional and parts.backbone.config.model_type in _EAGER_ONLY


def _rounded(decoder: "nn.Module", dtype: str) -> "dict[str, Tensor]":
    """The decoder's weights in another storage type. ValueError if one of them is too large for it."""
    import torch

    state = {}
    for name, tensor in decoder.state_dict().items():
        state[name] = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        if not torch.isfinite(state[name]).all() and torch.isfinite(tensor).all():
            raise InputError(f"{name} has values that {dtype} cannot hold; write bfloat16 or float32")
    return state


def _attention_keys(config: dict[str, Any], bidirectional: bool) -> dict[str, Any]:
    """The keys by which engines know the direction, and the one at which those that know none stop."""
    if not bidirectional:
        return {}
    guard = {"pruned_heads": {_GUARD: []}}
    if is_gemma3(config["model_type"]):
        # Engines read only this key here, and transformers then halves the window and counts it exclusively: twice the
        # window makes |i - j| <= W, which is what is_causal=False means everywhere else.
        return {"use_bidirectional_attention": True, "sliding_window": 2 * config["sliding_window"], **guard}
    key = {"use_bidirectional_attention": True} if config["model_type"] in _BIDIRECTIONAL_KEY else {}
    return {"is_causal": False, **key, **guard}


def is_gemma3(model_type: str) -> bool:
    return model_type == "gemma3_text"


def _unused_window(config: dict[str, Any], max_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """Changes that take out a sliding window no input can reach, and what to say about one that stays.

    Engines disagree about a window by one token, so none is better than one without effect.
    """
    window, family = config.get("sliding_window"), config["model_type"]
    if window is None:
        return {}, []
    if window < max_tokens:
        return {}, [
            f"Some layers read {window} tokens to either side. Flash-attention kernels count one token less than eager "
            f"and SDPA do, so vectors of texts beyond {window} tokens differ a little between them."
        ]
    if family not in _WINDOW_IS_ONLY_A_MASK:
        return {}, [f"config.json keeps a sliding window of {window} tokens, which no input of this model reaches."]
    changes: dict[str, Any] = {"sliding_window": None}
    if "use_sliding_window" in config:
        changes["use_sliding_window"] = False
    if config.get("layer_types"):
        changes["layer_types"] = ["full_attention"] * len(config["layer_types"])
    return changes, []


def _legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings under the names that transformers 4 and other engines know; they ignore `rope_parameters`."""
    parameters = config.get("rope_parameters") or {}
    if is_gemma3(config["model_type"]):
        return {
            **_flat_rope(parameters["full_attention"]),
            "rope_local_base_freq": parameters["sliding_attention"]["rope_theta"],
        }
    return _flat_rope(parameters) if "rope_theta" in parameters else {}


def _flat_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    scaling = {key: value for key, value in parameters.items() if key not in ("rope_theta", "partial_rotary_factor")}
    partial = {key: parameters[key] for key in ("partial_rotary_factor",) if key in parameters}
    scaled = parameters.get("rope_type", "default") != "default"
    return {"rope_theta": parameters["rope_theta"], **partial, "rope_scaling": scaling if scaled else None}
