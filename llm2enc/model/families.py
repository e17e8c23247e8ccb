"""What is known of each family of decoders: convertible, under a condition, or refused, and why."""

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2enc.model import limits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@lru_cache
def families() -> dict[str, dict[str, Any]]:
    """What is known of each model_type: verdict (convertible, conditional, refused), reason, packed."""
    return json.loads((Path(__file__).parent / "families.json").read_text(encoding="utf-8"))


# What transformers calls layers whose attention a config can open to both sides, or that don't mix tokens at all.
BIDIRECTIONAL_LAYERS = {"full_attention", "sliding_attention", "indexed_attention", "mlp", "moe", "dense", "sparse"}
ALIBI = "ALiBi's bias grows with the key's position whatever the query's, so without a causal mask the last tokens win"


def causal_by_config(config: "PretrainedConfig") -> str:
    """Why the configuration alone rules out a conversion; empty if it does not."""
    known = families().get(config.model_type, {})
    if known.get("verdict") == "refused":
        return known["reason"]
    for index, kind in enumerate(getattr(config, "layer_types", None) or []):
        if kind not in BIDIRECTIONAL_LAYERS:
            return f"layer {index} is of kind {kind!r}, which reads in one direction or was never studied"
    return ALIBI if getattr(config, "alibi", False) is True else ""


def config_notes(config: "PretrainedConfig") -> list[str]:
    """Conditions under which a conversion holds, one sentence each."""
    limit = limits.longest_input(config)
    return [] if limit is None else [f"inputs of more than {limit.tokens} tokens are refused: {limit.why}"]


def unsupported_reason(model_type: str, reason: str) -> str:
    return (
        f"{model_type} cannot be made bidirectional: {reason}. Echo embeddings work on any causal model: set "
        "`model.attention: causal` and an Echo input template (see the recipes pocket-echo and echo-mistral-7b)"
    )


def text_config(config: "PretrainedConfig") -> "PretrainedConfig":
    """The configuration of the text decoder: of a composite model (Gemma 3 with vision) only this one is obeyed."""
    return config.get_text_config(decoder=True)


def decoder_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """The text model without its head."""
    if text_config(model.config) is not model.config:
        return model.get_decoder()
    base: Any = model.base_model
    if base is model and model.get_output_embeddings() is not None:  # Llama 4 misnames its decoder
        return model.model
    return base


# Families whose configuration holds half of the window that the file says, plus one, once this key is set. What is set.
_HALVING = {"gemma3_text": True, "gemma4_text": "all", "gemma4_unified_text": "all"}


def with_common_direction(config: "PretrainedConfig") -> "PretrainedConfig":
    """The configuration with the direction and the window of its text decoder said as every family says them.

    That is `is_causal` alone, and a window W of which a token reads i - j < W, or |i - j| <= W in both directions. Gemma 3
    and 4 have a key of their own beside it, under which transformers halves the window of the file and counts it
    exclusively: read with `is_causal` too, it would be one token wider, and the mask that the key makes is of functions
    that cannot be traced.
    """
    text = text_config(config)
    said = getattr(text, "use_bidirectional_attention", None)
    if said and said == _HALVING.get(text.model_type):
        text.use_bidirectional_attention, text.is_causal = None, False
        text.sliding_window -= 1
    return config


def is_bidirectional(config: "PretrainedConfig") -> bool:
    """Whether the files say that the text decoder reads in both directions already."""
    text = text_config(config)
    said = getattr(text, "use_bidirectional_attention", None)
    return getattr(text, "is_causal", None) is False or said in (True, "all")
