"""What llama.cpp does with each family: the name of its architecture, and where it differs from transformers.

Read in llama.cpp's src/models and src/llama-model.cpp, as packed in llama-cpp-python 0.3.36. `{arch}.attention.causal`
is read for every architecture since March 2026 (pull request 20973). An older llama.cpp ignores it and would give causal
vectors without a word, so where there is an architecture made for bidirectional attention, it is taken: older releases
stop at a name they don't know.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm2enc.errors import NoGGUF

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FULL, SLIDING = "full_attention", "sliding_attention"
_SILU = ("silu", "swish")
_GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")  # ggml has one, the tanh form, from a table of float16
_QKV = ("q_proj", "k_proj", "v_proj")
_NEOX = (
    "input_layernorm", "post_attention_layernorm", "final_layer_norm", "query_key_value", "dense", "dense_h_to_4h",
    "dense_4h_to_h",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """One model family."""

    causal: str  # architecture for an encoder that kept its causal attention
    bidirectional: str
    activations: tuple[str, ...]
    biases: tuple[str, ...] = ()  # parts of transformers' model whose bias it adds; others it would drop
    prefix: str = "model."  # what `gguf` wants before the names of a bare decoder
    interleaved: bool = False  # rotary embedding turns neighbours (0, 1), not halves (0, d/2): rows of q and k move
    offset: bool = False  # transformers multiplies by 1 + weight in norms, llama.cpp by weight
    head: bool = False  # it does not load without a language-model head
    square: bool = False  # it takes heads x head width for the model's width
    partial: bool = False  # rotary embedding may turn a part of each head only
    factors: bool = False  # it reads one factor per rotary frequency
    windows: tuple[str, ...] = ()  # architectures that know sliding windows as we mean them


FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("llama", "mistral"),
        Family(
            "llama", "llama-embed", _SILU, (*_QKV, "o_proj", "gate_proj", "up_proj", "down_proj"),
            interleaved=True, factors=True,
        ),
    ),
    "qwen2": Family("qwen2", "qwen2", _SILU, _QKV, square=True),
    "qwen3": Family("qwen3", "qwen3", _SILU, _QKV),
    "gemma2": Family("gemma2", "gemma2", _GELU, offset=True, windows=("gemma2",)),
    # `gemma3` masks a window to the left only; `gemma-embedding` to both sides.
    "gemma3_text": Family(
        "gemma3", "gemma-embedding", _GELU, offset=True, windows=("gemma3", "gemma-embedding"),
    ),
    "phi3": Family("phi3", "phi3", _SILU, square=True, partial=True, factors=True),
    "gpt_neox": Family(
        "gptneox", "gptneox", _GELU, _NEOX,
        prefix="gpt_neox.", head=True, square=True, partial=True,
    ),
    "olmo2": Family("olmo2", "olmo2", _SILU, head=True, square=True),
}  # fmt: skip


def family_of(config: "PretrainedConfig") -> Family:
    """The family of a configuration. NoGGUF if there is none, or if this member of it is computed otherwise."""
    model_type = config.model_type
    if model_type not in FAMILIES:
        raise NoGGUF(
            f"model_type {model_type!r} has no rules for llama.cpp here; {', '.join(FAMILIES)} have. Export to ONNX or "
            "OpenVINO instead"
        )
    family = FAMILIES[model_type]
    # Gemma's first releases said `hidden_act`, the later ones read `hidden_activation`.
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in family.activations:
        raise NoGGUF(
            f"the activation is {activation!r}, but llama.cpp computes {model_type} with {family.activations[0]!r} always"
        )
    if family.square and config.num_attention_heads * head_width(config) != config.hidden_size:
        raise NoGGUF(
            f"{config.num_attention_heads} heads of {head_width(config)} make another width than the model's "
            f"{config.hidden_size}, which llama.cpp cannot load for {model_type}"
        )
    _check_scale(config)
    return family


def check_biases(decoder: "PreTrainedModel") -> None:
    """NoGGUF if the model adds a bias where llama.cpp does not, or lacks one that it needs."""
    family, model_type = FAMILIES[decoder.config.model_type], decoder.config.model_type
    found = {name.split(".")[-2] for name in decoder.state_dict() if name.endswith(".bias")}
    if found - set(family.biases):
        raise NoGGUF(
            f"{', '.join(sorted(found - set(family.biases)))} have a bias, which llama.cpp does not add in {model_type}; "
            "export to ONNX instead"
        )
    if model_type == "gpt_neox" and set(family.biases) - found:
        raise NoGGUF(
            f"{', '.join(sorted(set(family.biases) - found))} have no bias, and llama.cpp does not load gpt_neox without"
        )


def architecture(config: "PretrainedConfig", bidirectional: bool) -> str:
    """llama.cpp's name."""
    family = FAMILIES[config.model_type]
    return family.bidirectional if bidirectional else family.causal


def head_width(config: "PretrainedConfig") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def window(config: "PretrainedConfig", bidirectional: bool, max_tokens: int) -> tuple[int, list[bool]] | None:
    """llama.cpp's size of the sliding window, and which layers have it; None if the file needs none.

    NoGGUF if a text of `max_tokens` reaches a window that llama.cpp does not have.
    """
    size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    sliding = [kind == SLIDING for kind in kinds] if kinds else [size is not None] * config.num_hidden_layers
    if size is None or not any(sliding):
        return None
    arch, family = architecture(config, bidirectional), FAMILIES[config.model_type]
    reached = max_tokens > size
    if arch == "gemma-embedding":
        return 2 * size, sliding  # it halves the number: |i - j| <= size, as we count
    if arch in family.windows and not (reached and bidirectional):
        return size, sliding  # i - j < size, as transformers counts a causal window
    if reached:
        raise NoGGUF(
            f"some layers have a window of {size} tokens, and texts up to {max_tokens}; llama.cpp "
            + ("looks to the left only in it" if arch in family.windows else f"has no window for {config.model_type}")
            + f". Set `max_tokens: {size}` in the recipe's `input`, or export to ONNX"
        )
    return None


def _check_scale(config: "PretrainedConfig") -> None:
    """Gemma says what attention is scaled by; llama.cpp knows it by the number of layers."""
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is None:
        return
    expected = head_width(config)
    if (config.model_type, config.num_hidden_layers) == ("gemma2", 46):
        expected = config.hidden_size // config.num_attention_heads
    if scalar != expected:
        raise NoGGUF(
            f"query_pre_attn_scalar is {scalar}, but llama.cpp scales attention of {config.model_type} by {expected}"
        )
    if config.model_type == "gemma2" and not config.attn_logit_softcapping:
        raise NoGGUF("attn_logit_softcapping is off, but llama.cpp caps attention of gemma2 always")
