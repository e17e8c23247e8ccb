"""vLLM 0.33.0: what `vllm serve DIR` would run.

Read in its wheel: model_executor/models/{registry,config,llama,mistral,phi3,qwen2,qwen3,gemma2,gemma3}.py and
transformers/base.py, transformers_utils/config.py, config/{model,pooler}.py, v1/attention/backends/flash_attn.py.
"""

from llm2enc.model import POOLERS
from llm2enc.verification.rules.engine import EngineRules, Rule

_READS_IS_CAUSAL = "Llama Mistral Ministral3 Phi3 Qwen2 Qwen3 Apertus InternLM3 IQuestCoder TeleChat3".split()
# Its own classes that know no other direction, and, from Arcee on, families run by transformers' modules, which set
# is_causal to true whatever the configuration says.
_CAUSAL = (
    "Bloom Cohere Cohere2 Dbrx Exaone Exaone4 Falcon Gemma Gemma2 Gemma3n Gemma4 GptOss GPT2 GPTJ Granite GraniteMoe "
    "GraniteMoeShared HyperCLOVAX MiniCPM3 Mixtral Nemotron Olmoe OPT PhiMoE Qwen2Moe Qwen3Moe StableLm "
    "Arcee Cwm Glm GPTBigCode GPTNeoX HunYuanDenseV1 Jais2 Olmo Olmo2 Olmo3 Phi SeedOss SmolLM3 Starcoder2 VaultGemma"
).split()
_POOLINGS = {name: pooler.vllm for name, pooler in POOLERS.items() if pooler.vllm}
_POOLER = '--runner pooling --pooler-config \'{{"pooling_type": "{}"}}\''


VLLM = EngineRules(
    "vllm",
    "0.33.0",
    family=lambda it: it.architecture,
    direction={
        "": "unknown",
        **dict.fromkeys(_READS_IS_CAUSAL, ("is_causal", False)),
        **dict.fromkeys(_CAUSAL, "causal"),
        "Gemma3": ("use_bidirectional_attention", True),  # sets is_causal, over what config.json says
    },
    # pooling_mode_mean_sqrt_len_tokens is cut after its first word.
    pooling={**{name: name for name in _POOLINGS}, "mean_sqrt_len": "mean", "": "last"},
    pooling_modules=(
        "sentence_transformers.models.Pooling",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    ),
    always_normalizes=False,
    remedies={
        "direction": "--hf-overrides '{{{}}}'",
        **{name: _POOLER.format(value) for name, value in _POOLINGS.items()},
        "normalize": "--pooler-config '{{\"use_activation\": {}}}'",
        "prompt": "put it before every text in the client",
        "limit": '"truncate_prompt_tokens": -1 in the request',
    },
    fields={"": {"architectures": list}},
    rules=(
        Rule("differs", "it would generate text, not embed", lambda it: it.modules is None, (), "--runner pooling"),
        Rule(
            "differs",
            "sliding layers read one token less to either side than transformers' {}: longer texts differ",
            # Of the 2 W of Gemma 3 transformers makes W + 1, and vLLM W.
            lambda it: it.attention == "bidirectional" and it.model_type != "gemma3_text" and it.window,
            remedy="export with input.max_tokens within the window, which takes it out",
        ),
        Rule(
            "unknown",
            "{} rotary embeddings depend on a batch's longest text in transformers and not here",
            lambda it: it.scaling in ("dynamic", "longrope") and it.scaling,
            remedy="keep texts within original_max_position_embeddings",
        ),
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
        Rule("unknown", "without tokenizer.json a class adds special tokens", lambda it: not it.has("tokenizer.json")),
        Rule(
            "agrees",
            "it computes in float16 where the weights are float32",
            lambda it: it.config.get("dtype", it.config.get("torch_dtype")) == "float32",
            remedy="--dtype float32",
        ),
    ),
)
