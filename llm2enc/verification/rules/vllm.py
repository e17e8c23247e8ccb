"""vLLM 0.33.0: what `vllm serve DIR` would run.

Read in its wheel: model_executor/models/{registry,config,llama,mistral,phi3,qwen2,qwen3,gemma2,gemma3}.py and
transformers/base.py, transformers_utils/config.py, config/{model,pooler}.py, v1/attention/backends/flash_attn.py.
"""

from collections.abc import Iterator
from functools import partial

from llm2enc.verification.rules.findings import Finding, pooled_prompts
from llm2enc.verification.rules.layout import ENCODERS, Layout

ENGINE, VERSION = "vllm", "0.33.0"

# Architectures, without their last word, whose attention is chosen by config.is_causal.
_READS_IS_CAUSAL = (
    *("Llama", "Mistral", "Ministral3", "Phi3", "Qwen2", "Qwen3", "Apertus", "InternLM3", "IQuestCoder", "TeleChat3"),
)
# Run by classes of vLLM's own that know no other direction than causal.
_ALWAYS_CAUSAL = (
    *(
        "Bloom",
        "Cohere",
        "Cohere2",
        "Dbrx",
        "Exaone",
        "Exaone4",
        "Falcon",
        "Gemma",
        "Gemma2",
        "Gemma3n",
        "Gemma4",
        "GptOss",
    ),
    *("GPT2", "GPTJ", "Granite", "GraniteMoe", "GraniteMoeShared", "HyperCLOVAX", "MiniCPM3", "Mixtral", "Nemotron"),
    *("Olmoe", "OPT", "PhiMoE", "Qwen2Moe", "Qwen3Moe", "StableLm"),
)
# Run by transformers' own modules inside vLLM. Attention is bidirectional there only if a module's `is_causal` is false,
# and these families set it to true whatever the configuration says.
_BY_TRANSFORMERS = (
    *("Arcee", "Cwm", "Glm", "GPTBigCode", "GPTNeoX", "HunYuanDenseV1", "Jais2", "Olmo", "Olmo2", "Olmo3", "Phi"),
    *("SeedOss", "SmolLM3", "Starcoder2", "VaultGemma"),
)
_POOLING_MODULES = (
    "sentence_transformers.models.Pooling",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
)
_POOLINGS = {"CLS": "first", "LAST": "last", "MEAN": "mean"}
_ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "ntk", "proportional")


def check(layout: Layout) -> list[Finding]:
    points = (_attention, _pooling, _normalize, _limit, _window, _rope, _prompts, _dtype, _tokenizer)
    return [finding for point in points for finding in point(layout)]


_finding = partial(Finding, ENGINE, VERSION)


def _attention(layout: Layout) -> Iterator[Finding]:
    architecture = next(iter(layout.architectures), "")
    family = architecture.removesuffix("ForCausalLM").removesuffix("Model").removesuffix("Text")
    causal = layout.config.get("is_causal", True)
    remedy = "--hf-overrides '{\"is_causal\": false}'" if layout.attention == "bidirectional" else ""
    if not architecture:
        yield _finding("unsupported", "config.json names no architectures, by which vLLM finds the model")
        return
    if layout.model_type in ENCODERS:
        causal, remedy = False, ""
    elif family == "Gemma3":
        # Gemma3TextModelConfig sets is_causal from this key, over what config.json or --hf-overrides say.
        causal = not layout.config.get("use_bidirectional_attention")
        remedy = remedy and "--hf-overrides '{\"use_bidirectional_attention\": true}'"
    elif family in _BY_TRANSFORMERS or family in _ALWAYS_CAUSAL:
        causal, remedy = True, remedy and "serve it by sentence-transformers"
    elif family not in _READS_IS_CAUSAL:
        yield _finding("unknown", f"nothing is known here of {architecture} in vLLM", "compare with golden vectors")
        return
    direction = "causal" if causal else "bidirectional"
    if direction == layout.attention:
        yield _finding("agrees", f"{architecture} runs with {direction} attention")
    else:
        why = ": its attention comes from transformers' modules" if family in _BY_TRANSFORMERS else ""
        message = f"{architecture} would run with {direction} attention, and no error{why}; {layout.attention} is meant"
        yield _finding("differs", message, remedy)


def _pooling(layout: Layout) -> Iterator[Finding]:
    found = seq_pooling(layout)
    remedy = f'--runner pooling --pooler-config \'{{"pooling_type": "{_name(layout.pooling)}"}}\''
    if _name(layout.pooling) is None:
        remedy = "serve it by sentence-transformers"
    if found is None:
        default = "first" if layout.model_type in ENCODERS else "last"
        if default == layout.pooling and layout.modules is not None:
            yield _finding("agrees", f"pools the {default} token, its default")
        elif layout.modules is None:
            yield _finding("differs", "without modules.json it would generate text, not embed", remedy)
        else:
            message = f"finds no pooling it knows and pools the {default} token; {layout.pooling} is meant"
            yield _finding("differs", message, remedy)
    elif found == layout.pooling:
        yield _finding("agrees", f"pools {found}")
    else:
        yield _finding("differs", f"pools {found}; {layout.pooling} is meant", remedy)


def seq_pooling(layout: Layout) -> str | None:
    """What get_pooling_config finds in the directory, in our words; None for vLLM's default."""
    if not any(row["type"] in _POOLING_MODULES for row in layout.modules or []):
        return None
    found = None
    for key, value in (layout.pooling_config or {}).items():
        if key == "pooling_mode" and isinstance(value, str):
            name = value
        elif value is True:
            name = key
        else:
            continue
        # pooling_mode_mean_sqrt_len_tokens is taken for the mean: only the first word counts.
        word = name.replace("pooling_mode_", "").split("_", 1)[0]
        found = _POOLINGS.get("LAST" if "lasttoken" in word else word.upper(), found)
    return found


def _name(pooling: str) -> str | None:
    return next((name for name, ours in _POOLINGS.items() if ours == pooling), None)


def _normalize(layout: Layout) -> Iterator[Finding]:
    # Without a pooling module nothing says "no", and its default is to normalise.
    normalizes = layout.modules is None or any(row["type"].endswith(".Normalize") for row in layout.modules)
    if normalizes == layout.normalize:
        yield _finding("agrees", f"{'normalises' if normalizes else 'leaves the length of'} vectors")
    else:
        setting = '{"use_activation": ' + str(layout.normalize).lower() + "}"
        message = (
            f"vectors come {'at length 1' if normalizes else 'as they are'}, which is not meant; directions are right"
        )
        yield _finding("differs", message, f"--pooler-config '{setting}'")


def _limit(layout: Layout) -> Iterator[Finding]:
    own = (layout.transformer_config or {}).get("max_seq_length")
    limit = own or layout.limit
    yield _finding(
        "agrees",
        f"takes texts of up to {limit} tokens, and refuses longer ones unless the request asks to cut them",
        '"truncate_prompt_tokens": -1 in the request',
    )


def _window(layout: Layout) -> Iterator[Finding]:
    if layout.window is None or layout.attention == "causal" or layout.model_type == "gemma3_text":
        # Gemma 3: transformers makes W + 1 of the 2 W in config.json, and vLLM reads one token less to either side.
        return
    yield _finding(
        "differs",
        f"sliding layers read {layout.window - 1} tokens to either side, one less than transformers: texts beyond "
        f"{layout.window} tokens differ",
        f"export with input.max_tokens of {layout.window} at most, which takes the window out",
    )


def _rope(layout: Layout) -> Iterator[Finding]:
    kind = layout.rope_type
    if kind not in _ROPE_TYPES:
        yield _finding("unsupported", f"rotary embeddings of type {kind!r} are not built by get_rope")
    elif kind in ("dynamic", "longrope"):
        message = f"{kind} rotary embeddings depend on a batch's longest text in transformers and not here"
        yield _finding("unknown", message, "keep texts within original_max_position_embeddings")


def _prompts(layout: Layout) -> Iterator[Finding]:
    yield from pooled_prompts(layout, _finding)
    if layout.default_prompt:
        yield _finding(
            "differs",
            f"no prompt is put before a text; sentence-transformers puts {layout.default_prompt!r} by default",
            "put it before every text in the client",
        )
    elif layout.prompts:
        names = ", ".join(sorted(layout.prompts))
        yield _finding("agrees", f"prompts ({names}) are the client's: the text must begin with one")


def _dtype(layout: Layout) -> Iterator[Finding]:
    if layout.config.get("dtype", layout.config.get("torch_dtype")) == "float32":
        yield _finding("agrees", "float32 weights are computed in float16 unless told otherwise", "--dtype float32")


def _tokenizer(layout: Layout) -> Iterator[Finding]:
    if not layout.has("tokenizer.json"):
        yield _finding("unknown", "there is no tokenizer.json, so special tokens depend on the tokenizer's class")
