"""infinity_emb 0.0.78: what `infinity_emb v2 --model-id DIR` would run.

Read in its wheel: transformer/embedder/{sentence_transformer,optimum}.py, inference/select_model.py, and the
releases that it allows: sentence-transformers 3 (3.4.1 read), which in turn allows transformers 4 only.
"""

from llm2enc.verification.rules.engine import EngineRules, Rule
from llm2enc.verification.rules.model_files import POOLINGS, ModelFiles

# What Transformer.__init__ and Pooling.__init__ of sentence-transformers 3.4.1 take.
_TRANSFORMER = (
    "max_seq_length model_args tokenizer_args config_args cache_dir do_lower_case tokenizer_name_or_path backend"
)
_POOLING = {"word_embedding_dimension", "pooling_mode", "include_prompt", *POOLINGS}
_KNOWN = "sentence_transformers.models."
_SAFE = "serve it by sentence-transformers from 5.5 on, with transformers from 5.4 on"


def _new_keys(files: ModelFiles) -> str:
    """What sentence-transformers 3 and transformers 4 stop at; the export writes it to keep them from running as causal."""
    keys = {*files.transformer_config} - {*_TRANSFORMER.split()} | {*(files.pooling_config or {})} - _POOLING
    keys |= {"allow_all_kernels"} & {*(files.transformer_config.get("model_args") or {})}
    heads = any(not layer.isdecimal() for layer in files.config.get("pruned_heads") or {})
    return ", ".join(sorted(keys | {"pruned_heads"} if heads else keys))


INFINITY = EngineRules(
    "infinity",
    "0.0.78",
    family=lambda it: it.model_type,
    direction={"": "causal"},  # transformers 4 does not know is_causal
    pooling=None,
    remedies={"prompt": "put it before every text in the client"},
    rules=(
        Rule(
            "unsupported",
            "sentence-transformers 3 has no {}: it stops",
            lambda it: ", ".join(name for name in it.modules or [] if not name.startswith(_KNOWN)),
            remedy=_SAFE,
        ),
        Rule("unsupported", "sentence-transformers 3 or transformers 4 stops at the key {}", _new_keys, (), _SAFE),
        Rule(
            "differs",
            "transformers 4 knows no rope_parameters and takes rope_theta as 10000",
            lambda it: "rope_parameters" in it.config and "rope_theta" not in it.config,
            remedy="write rope_theta and rope_scaling beside rope_parameters in config.json",
        ),
    ),
)
