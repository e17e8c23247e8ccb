"""Quantised bases: told by config.json alone, and refused before anything runs.

An adapter merged into 8 or 4 bits loses most of what it learnt in their rounding, or cannot be merged at all. Some methods
are also turned into plain weights at load, or not, by what GPU and packages a machine has: the same recipe would start from
other weights. So they are dequantised once, by the user, and that checkpoint is the base.
"""

from collections.abc import Mapping
from typing import Any

# Methods that transformers turns into plain weights without the method's own kernels, and the configuration that says so.
_DEQUANTIZED_BY = {"fp8": "FineGrainedFP8Config", "mxfp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}


def quantization(fields: Mapping[str, Any]) -> str:
    """How the weights of a config.json with these fields are quantised, such as `gptq, 4 bits`; empty if they are not."""
    parts = [fields, *(value for key, value in fields.items() if key.endswith("_config") and isinstance(value, dict))]
    for part in parts:
        # MLX writes `quantization`, early compressed-tensors `compression_config`.
        for key in ("quantization_config", "quantization", "compression_config"):
            found = part.get(key)
            if isinstance(found, Mapping):
                return _described(found)
    return ""


def quantized_reason(name: str, how: str) -> str:
    """Why a model whose weights are quantised as `how` is refused, and what to do."""
    method = how.partition(",")[0]
    dequantize = ""
    if method in _DEQUANTIZED_BY:
        config = _DEQUANTIZED_BY[method]
        dequantize = (
            f', or write it out once with plain weights: AutoModelForCausalLM.from_pretrained("{name}", dtype="bfloat16", '
            f'quantization_config={config}(dequantize=True)).save_pretrained("DIR"), and AutoTokenizer.from_pretrained('
            f'"{name}").save_pretrained("DIR"), both of transformers 5.24 or newer'
        )
    return (
        f"its weights are quantised ({how}), and what is trained on them could not be merged into them. Give the "
        f"unquantised checkpoint that it was made from{dequantize}"
    )


def _described(found: Mapping[str, Any]) -> str:
    """Method and width as a user knows them."""
    method = str(found.get("quant_method") or found.get("quant_type") or "a method that is not named")
    if found.get("load_in_8bit"):
        return f"{method}, 8 bits"
    if found.get("load_in_4bit"):
        return f"{method}, {found.get('bnb_4bit_quant_type', '4 bits')}"
    bits = next((found[key] for key in ("bits", "w_bit", "nbits", "num_bits") if isinstance(found.get(key), int)), None)
    return method if bits is None else f"{method}, {bits} bits"
