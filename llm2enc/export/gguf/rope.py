"""Rotary settings: from the frequencies that the model itself computed, not from its configuration's words.

    factor[i] = theta ** (-2 i / n) / frequency[i]            1 everywhere: no scaling

llama.cpp takes the factors as they are for some architectures, and for the others a kind and a number.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2enc.errors import NoGGUF
from llm2enc.export.gguf.families import FAMILIES, FULL, SLIDING, head_width

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def metadata(decoder: "PreTrainedModel", max_tokens: int) -> dict[str, Any]:
    """Keys after `{arch}.rope.`. NoGGUF if llama.cpp would turn by other angles."""
    config = decoder.config
    settings, factors, attention = _full(decoder, max_tokens)
    width = 2 * len(factors)
    if width != head_width(config) and not FAMILIES[config.model_type].partial:
        raise NoGGUF(
            f"rotary embedding turns {width} of {head_width(config)} dimensions of a head, which llama.cpp cannot do for "
            f"{config.model_type}"
        )
    keys: dict[str, Any] = {"dimension_count": width, "freq_base": float(settings["rope_theta"])}
    keys |= _local(decoder)
    if FAMILIES[config.model_type].factors or np.allclose(factors, 1, atol=1e-5):
        return keys | ({} if attention == 1 else {"scaling.attn_factor": attention})
    if np.allclose(factors, factors[0], rtol=1e-5) and attention == 1:
        return keys | {"scaling.type": "linear", "scaling.factor": float(factors[0])}
    if settings["rope_type"] == "yarn" and FULL not in config.rope_parameters:
        return keys | _yarn(settings, config, attention)
    raise NoGGUF(
        f"llama.cpp cannot turn by the frequencies of rotary kind {settings['rope_type']!r} for {config.model_type}; export "
        "to ONNX instead"
    )


def factor_tensors(decoder: "PreTrainedModel", arch: str, max_tokens: int) -> dict[str, np.ndarray]:
    """Factors (n / 2,) as tensors of the file, for architectures that read them and models that have any."""
    _, factors, _ = _full(decoder, max_tokens)
    if not FAMILIES[decoder.config.model_type].factors or np.allclose(factors, 1, atol=1e-5):
        return {}
    # Phi-3 chooses one of two by the size of the context, which whoever starts the server may set; ours needs one.
    names = ("rope_factors_long", "rope_factors_short") if arch == "phi3" else ("rope_freqs",)
    return {f"{name}.weight": factors.astype(np.float32) for name in names}


def _full(decoder: "PreTrainedModel", max_tokens: int) -> tuple[dict[str, Any], np.ndarray, float]:
    """Settings, factors and the scale of cosine and sine in layers of full attention."""
    parameters = decoder.config.rope_parameters
    prefix = f"{FULL}_" if FULL in parameters else ""
    settings = parameters.get(FULL, parameters)
    rotary = decoder.rotary_emb
    _check_length(settings, decoder.config, max_tokens)
    attention = float(getattr(rotary, f"{prefix}attention_scaling", 1.0))
    return settings, _factors(rotary, prefix, settings["rope_theta"]), attention


def _factors(rotary: Any, prefix: str, theta: float) -> np.ndarray:
    # The original ones: some kinds write other frequencies over the buffer once they have seen a long text.
    frequencies = getattr(rotary, f"{prefix}original_inv_freq").detach().float().cpu().numpy().astype(np.float64)
    return theta ** -(np.arange(len(frequencies)) / len(frequencies)) / frequencies


def _local(decoder: "PreTrainedModel") -> dict[str, Any]:
    """The second set of frequencies, of layers with a sliding window (Gemma 3)."""
    parameters = decoder.config.rope_parameters
    if SLIDING not in parameters:
        return {}
    theta = float(parameters[SLIDING]["rope_theta"])
    if not np.allclose(_factors(decoder.rotary_emb, f"{SLIDING}_", theta), 1, atol=1e-5):
        raise NoGGUF("rotary embedding is scaled in layers with a sliding window, which llama.cpp does not do")
    return {"freq_base_swa": theta}


def _check_length(settings: dict[str, Any], config: "PretrainedConfig", max_tokens: int) -> None:
    """Two kinds use other frequencies for texts beyond a length; only those of short texts can be written."""
    limit = {
        "dynamic": config.max_position_embeddings,
        "longrope": settings.get("original_max_position_embeddings") or config.max_position_embeddings,
    }.get(settings["rope_type"])
    if limit is not None and max_tokens > limit:
        raise NoGGUF(
            f"rotary scaling {settings['rope_type']!r} has other frequencies for texts beyond {limit} tokens, and "
            f"llama.cpp chooses by the size of its context, not by the text; set `max_tokens: {limit}` in the recipe"
        )


def _yarn(settings: dict[str, Any], config: "PretrainedConfig", attention: float) -> dict[str, Any]:
    if not settings.get("truncate", True) or (settings.get("beta_fast") or 32, settings.get("beta_slow") or 1) != (
        32,
        1,
    ):
        raise NoGGUF("llama.cpp knows YaRN with beta_fast 32, beta_slow 1 and truncate only")
    factor, original = float(settings["factor"]), settings["original_max_position_embeddings"]
    own = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0  # what llama.cpp scales cosine and sine by itself
    keys = {"scaling.type": "yarn", "scaling.factor": factor, "scaling.original_context_length": int(original)}
    return keys if math.isclose(own, attention, rel_tol=1e-6) else keys | {"scaling.attn_factor": attention / own}
