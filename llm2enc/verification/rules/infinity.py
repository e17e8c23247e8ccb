"""infinity_emb 0.0.78: what `infinity_emb v2 --model-id DIR` would run.

Read in its wheel: transformer/embedder/{sentence_transformer,optimum}.py, inference/select_model.py, and the
releases that it allows: sentence-transformers 3 (3.4.1 read), which in turn allows transformers 4 only.
"""

from collections.abc import Iterator
from functools import partial

from llm2enc.verification.rules.findings import Finding
from llm2enc.verification.rules.layout import ENCODERS, POOLINGS, Layout

ENGINE, VERSION = "infinity", "0.0.78"

# What Transformer.__init__ and Pooling.__init__ of sentence-transformers 3.4.1 take. Any other key of their files stops it.
_TRANSFORMER = (
    *("max_seq_length", "model_args", "tokenizer_args", "config_args", "cache_dir", "do_lower_case"),
    *("tokenizer_name_or_path", "backend"),
)
_POOLING = ("word_embedding_dimension", "pooling_mode", "include_prompt", *POOLINGS)
_SAFE = "serve it by sentence-transformers from 5.5 on, with transformers from 5.4 on"


def check(layout: Layout) -> list[Finding]:
    return [finding for point in (_opens, _prompts) for finding in point(layout)]


_finding = partial(Finding, ENGINE, VERSION)


def _opens(layout: Layout) -> Iterator[Finding]:
    """The default engine, torch: sentence-transformers 3 opens the directory."""
    new = [row["type"] for row in layout.modules or [] if not row["type"].startswith("sentence_transformers.models.")]
    unknown = [key for key in layout.transformer_config or {} if key not in _TRANSFORMER]
    unknown += [key for key in layout.pooling_config or {} if key not in _POOLING]
    if new:
        yield _finding("unsupported", f"sentence-transformers 3 has no {', '.join(new)}: it stops", _SAFE)
    elif unknown:
        message = f"sentence-transformers 3 stops at the key {unknown[0]}, which it does not know"
        if layout.attention == "bidirectional":
            message += ", as it should: its transformers 4 would run the model as causal"
        yield _finding("unsupported", message, _SAFE)
    elif any(not str(layer).isdecimal() for layer in layout.config.get("pruned_heads") or {}):
        yield _finding("unsupported", "transformers 4 stops at pruned_heads in config.json", _SAFE)
    elif "allow_all_kernels" in ((layout.transformer_config or {}).get("model_args") or {}):
        yield _finding("unsupported", "transformers 4 stops at allow_all_kernels in sentence_bert_config.json", _SAFE)
    elif layout.attention == "bidirectional" and layout.model_type not in ENCODERS:
        message = "transformers 4 ignores is_causal and would run the model as causal, and no error"
        yield _finding("differs", message, "export it by llm2enc, which writes keys that stop old releases")
    else:
        yield _finding("agrees", f"runs with {layout.attention} attention, pools as sentence-transformers does")
        yield from _rope(layout)
        yield from _normalize(layout)


def _rope(layout: Layout) -> Iterator[Finding]:
    """transformers 4 knows the legacy names only."""
    if "rope_parameters" not in layout.config or "rope_theta" in layout.config:
        return
    message = "transformers 4 knows no rope_parameters and takes rope_theta as 10000"
    yield _finding("differs", message, "write rope_theta and rope_scaling beside rope_parameters in config.json")


def _normalize(layout: Layout) -> Iterator[Finding]:
    if not layout.normalize:
        yield _finding("differs", "vectors always come at length 1; directions are right")


def _prompts(layout: Layout) -> Iterator[Finding]:
    if layout.default_prompt:
        yield _finding(
            "differs",
            f"no prompt is put before a text; sentence-transformers puts {layout.default_prompt!r} by default",
            "put it before every text in the client",
        )
