"""text-embeddings-inference 1.9.3: what `text-embeddings-router --model-id DIR` would run.

Read in its sources: router/src/{lib,main}.rs, backends/candle/src/lib.rs, models/{llama,mistral,qwen2,qwen3,gemma3}.rs,
flash_{mistral,qwen3}.rs, layers/rotary.rs (commit 1a7f78be), backends/ort/src/lib.rs (commit 04a02158, which may be newer
than the release; it pools the last token since pull request 664 of June 2025). Its parser stops where a field is missing or
of another type, and passes over fields it does not know.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from llm2enc.verification.rules.findings import Finding, pooled_prompts
from llm2enc.verification.rules.layout import ENCODERS, Layout

ENGINE, VERSION = "tei", "1.9.3"

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings"),
)
# Fields without which the model's configuration is not read, by model_type: whole numbers and others.
_NEEDED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "llama": (_SIZES, ("hidden_act", "initializer_range", "rms_norm_eps")),
    "mistral": (_SIZES, ("hidden_act", "initializer_range", "rms_norm_eps")),
    "qwen2": (_SIZES, ("hidden_act", "rms_norm_eps", "use_sliding_window")),
    "qwen3": ((*_SIZES, "eos_token_id"), ("hidden_act", "rms_norm_eps", "use_sliding_window", "attention_bias")),
    "gemma3_text": (
        (*_SIZES, "pad_token_id", "query_pre_attn_scalar", "_sliding_window_pattern"),
        ("attention_bias", "hidden_activation", "rms_norm_eps", "rope_local_base_freq", "rope_theta"),
    ),
}
_WHOLE_OR_NULL = {"llama": ("bos_token_id", "eos_token_id", "pad_token_id", "head_dim", "sliding_window")}
_CUDA_FLOAT16_ONLY = ("llama", "mistral", "qwen2")
_FLAG = ("llama", "mistral", "qwen3", "gemma3_text")  # attend both ways by use_bidirectional_attention
_ONNX = ("model.onnx", "onnx/model.onnx")  # in the order in which they are looked for


def check(layout: Layout) -> list[Finding]:
    # Images for CPUs try an ONNX file first, and their other backend if that fails.
    by_onnx = _has_onnx(layout)
    points = [_router, _pooling, _normalize, _prompts, _limit]
    points += [_onnx] if by_onnx else []
    points += [_model] if not by_onnx or layout.model_type in _NEEDED else []
    return [finding for point in points for finding in point(layout)]


_finding = partial(Finding, ENGINE, VERSION)


def _router(layout: Layout) -> Iterator[Finding]:
    """What is read whichever backend runs."""
    config = layout.config
    for name in ("architectures", "model_type", "max_position_embeddings"):
        if name not in config and not (name == "max_position_embeddings" and "n_positions" in config):
            yield _finding("unsupported", f"config.json has no {name}, without which the router does not start")
    if "pad_token_id" in config and not _whole(config["pad_token_id"]):
        yield _finding(
            "unsupported",
            f"pad_token_id is {config['pad_token_id']!r}; the router reads a whole number, or no such key",
            "take pad_token_id out of config.json",
        )
    if not layout.has("tokenizer.json"):
        yield _finding("unsupported", "there is no tokenizer.json, the only form of a tokenizer that is read")


def _model(layout: Layout) -> Iterator[Finding]:
    """The candle backend: CUDA, and the CPU where no ONNX file is found."""
    model_type, config = layout.model_type, layout.config
    if model_type in ENCODERS:
        yield from _direction(layout, "bidirectional", "")
        return
    if model_type not in _NEEDED:
        yield _finding(
            "unsupported", f"model type {model_type!r} is not built in", "add onnx/model.onnx, which its CPU images run"
        )
        return
    yield from _fields(layout)
    if model_type == "qwen2":
        both, remedy = config.get("is_causal", True) is False, 'set "is_causal": false in config.json'
    else:
        both = config.get("use_bidirectional_attention") is True
        remedy = 'set "use_bidirectional_attention": true in config.json'
    yield from _direction(layout, "bidirectional" if both else "causal", remedy)
    yield from _rope(layout)
    yield from _window(layout)
    if model_type in _CUDA_FLOAT16_ONLY:
        message = f"{model_type} without ONNX runs on CUDA in float16 only, the default there"
        yield _finding("agrees", message, "" if _has_onnx(layout) else "for a CPU, add onnx/model.onnx")
    if model_type == "gemma3_text":
        yield from _gemma3(layout)
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if model_type == "mistral" and _whole(heads) and config.get("head_dim", width // heads) != width // heads:
        yield _finding("unsupported", "mistral is read without head_dim: the weights don't fit and loading stops")


def _gemma3(layout: Layout) -> Iterator[Finding]:
    yield _finding("agrees", "gemma3 runs in float32 only, which is not the default on CUDA", "--dtype float32")
    if layout.pooling != "mean":
        yield _finding("unsupported", f"gemma3 is pooled by the mean only, and stops at {layout.pooling}")
    pattern, types = layout.config.get("_sliding_window_pattern"), layout.config.get("layer_types")
    if not _whole(pattern) or not types:
        return
    full = [number for number, name in enumerate(types, 1) if name == "full_attention"]
    if full != [number for number in range(1, len(types) + 1) if number % pattern == 0]:
        message = (
            f"every layer whose number {pattern} divides is made a full one, and layer_types, not read, says otherwise"
        )
        yield _finding("differs", message, "serve it by sentence-transformers or vLLM")


def _direction(layout: Layout, direction: str, remedy: str) -> Iterator[Finding]:
    if direction == layout.attention:
        yield _finding("agrees", f"{layout.model_type} runs with {direction} attention")
    else:
        message = f"{layout.model_type} would run with {direction} attention, and no error; {layout.attention} is meant"
        yield _finding("differs", message, remedy if layout.attention == "bidirectional" else "")


def _fields(layout: Layout) -> Iterator[Finding]:
    whole, others = _NEEDED[layout.model_type]
    config = layout.config
    bad = [name for name in whole if not _whole(config.get(name))] + [
        name for name in others if config.get(name) is None
    ]
    for name in _WHOLE_OR_NULL.get(layout.model_type, ()):
        bad += [name] if config.get(name) is not None and not _whole(config[name]) else []
    if bad:
        message = f"it does not start: config.json has no {', '.join(bad)} of the type read for {layout.model_type}"
        yield _finding("unsupported", message, "complete config.json")


def _rope(layout: Layout) -> Iterator[Finding]:
    config, parameters = layout.config, layout.config.get("rope_parameters")
    if layout.model_type != "gemma3_text":
        whole = isinstance(parameters, dict) and isinstance(parameters.get("rope_theta"), int | float)
        if parameters is not None and not (whole and isinstance(parameters.get("rope_type"), str)):
            yield _finding("unsupported", "rope_parameters must hold a rope_theta and a rope_type, or be left out")
        elif parameters is None and config.get("rope_theta") is None:
            yield _finding("unsupported", "config.json states no rope_theta")
    if layout.rope_type == "default":
        return
    if layout.model_type in ("llama", "mistral") and config.get("rope_scaling"):
        yield _finding("unsupported", f"rotary scaling ({layout.rope_type}) is refused for {layout.model_type}")
    else:
        message = f"rotary scaling ({layout.rope_type}) is ignored without a word for {layout.model_type}"
        yield _finding("differs", message, "serve it by sentence-transformers or vLLM")


def _window(layout: Layout) -> Iterator[Finding]:
    if layout.model_type in ("qwen2", "qwen3") and layout.config.get("use_sliding_window"):
        yield _finding("unsupported", f"a sliding window is refused for {layout.model_type}")
    elif layout.window and layout.model_type == "mistral" and layout.attention == "bidirectional":
        yield _finding(
            "differs",
            f"the window of {layout.window} tokens is kept to the left alone: longer texts differ",
            f"export with input.max_tokens of {layout.window} at most, which takes the window out",
        )


def _has_onnx(layout: Layout) -> bool:
    return any(layout.has(name) for name in _ONNX)


def _onnx(layout: Layout) -> Iterator[Finding]:
    """The output last_hidden_state of the graph is what is pooled."""
    yield _finding("agrees", "images for CPUs run the ONNX file, in whose graph the attention is fixed")


def _pooling(layout: Layout) -> Iterator[Finding]:
    path, config = "1_Pooling/config.json", layout.pooling_config
    remedy = {"first": "--pooling cls", "mean": "--pooling mean", "last": "--pooling last-token"}.get(
        layout.pooling, ""
    )
    if not layout.has(path):
        if layout.model_type in ENCODERS and layout.pooling == "first":
            yield _finding("agrees", "pools the first token, its default for BERT-like models")
        elif "bert" in layout.model_type.lower():
            yield _finding("differs", f"without {path} it pools the first token; {layout.pooling} is meant", remedy)
        else:
            yield _finding("unsupported", f"there is no {path}, so it does not start", remedy)
        return
    keys = ("pooling_mode_cls_token", "pooling_mode_mean_tokens")
    if config is None or any(not isinstance(config.get(key), bool) for key in keys):
        yield _finding("unsupported", f"{path} lacks {' and '.join(keys)}, so it does not start", remedy)
        return
    order = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
    found = next((name for key, name in order.items() if config.get(key)), None)
    if found is None:
        yield _finding("unsupported", f"it stops at the pooling {layout.pooling}", remedy)
    elif found != layout.pooling:
        yield _finding("differs", f"pools {found}; {layout.pooling} is meant", remedy)
    else:
        yield _finding("agrees", f"pools {found}")


def _normalize(layout: Layout) -> Iterator[Finding]:
    if layout.normalize:
        yield _finding("agrees", "normalises vectors, unless a request says otherwise")
    else:
        message = "vectors come at length 1 unless a request says otherwise; directions are right"
        yield _finding("differs", message, '"normalize": false in the request')


def _prompts(layout: Layout) -> Iterator[Finding]:
    yield from pooled_prompts(layout, _finding)
    if layout.default_prompt:
        name = layout.top_config["default_prompt_name"]
        message = f"no prompt is put before a text; sentence-transformers puts {layout.default_prompt!r} by default"
        yield _finding("differs", message, f"--default-prompt-name {name}")
    elif layout.prompts:
        names = ", ".join(sorted(layout.prompts))
        yield _finding("agrees", f"a request chooses among the prompts ({names})", '"prompt_name" in the request')


def _limit(layout: Layout) -> Iterator[Finding]:
    config = layout.transformer_config
    if config is not None and not _whole(config.get("max_seq_length")):
        yield _finding("unsupported", "sentence_bert_config.json states no max_seq_length, so it does not start")
        return
    message = f"takes texts of up to {layout.limit} tokens, and refuses longer ones unless told to cut them"
    yield _finding("agrees", message, "--auto-truncate")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
