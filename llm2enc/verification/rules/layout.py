"""A saved directory's files, and what they mean to sentence-transformers and transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FACTS = "llm2enc.json"  # written by llm2enc.export
POOLINGS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
_MODES = {"cls": "first", "weightedmean": "weighted_mean", "lasttoken": "last"}  # of the newer schema; others as above
# Families that attend both ways without being told.
ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "mpnet",
    "deberta-v2",
    "modernbert",
    "nomic_bert",
)


@dataclass(frozen=True)
class Layout:
    """The files that engines read, as they stand; and what the directory means."""

    folder: Path
    config: dict[str, Any]
    modules: list[dict[str, Any]] | None
    """modules.json; None without one."""
    pooling_config: dict[str, Any] | None
    """config.json of the first pooling module; None without one."""
    transformer_config: dict[str, Any] | None
    """sentence_bert_config.json."""
    top_config: dict[str, Any]
    """config_sentence_transformers.json; empty without one."""

    attention: Literal["bidirectional", "causal"]
    pooling: str
    """first, mean, last, weighted_mean, max or mean_sqrt_len."""
    normalize: bool
    reason: str
    """Why sentence-transformers itself can't read this model as llm2enc does; empty if it can."""

    @property
    def model_type(self) -> str:
        return self.config.get("model_type", "")

    @property
    def architectures(self) -> list[str]:
        return self.config.get("architectures") or []

    @property
    def limit(self) -> int | None:
        """Tokens of a text at most, as sentence-transformers cuts it; None where the files don't say."""
        own = (self.transformer_config or {}).get("max_seq_length")
        return own or self.config.get("max_position_embeddings") or self.config.get("n_positions")

    @property
    def include_prompt(self) -> bool:
        return (self.pooling_config or {}).get("include_prompt", True)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts that are not empty."""
        return {name: prompt for name, prompt in (self.top_config.get("prompts") or {}).items() if prompt}

    @property
    def default_prompt(self) -> str:
        """What sentence-transformers puts before every text unless told otherwise."""
        return self.prompts.get(self.top_config.get("default_prompt_name") or "", "")

    @property
    def rope(self) -> list[dict[str, Any]]:
        """Rotary settings, one row per kind of layer, whichever of their names they are under."""
        rows = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        return list(rows.values()) if rows and all(isinstance(row, dict) for row in rows.values()) else [rows]

    @property
    def rope_type(self) -> str:
        """The first scaling that is not the default."""
        types = [row.get("rope_type") or row.get("type") or "default" for row in self.rope]
        return next((name for name in types if name != "default"), "default")

    @property
    def window(self) -> int | None:
        """Tokens that a layer with a sliding window reads, as config.json states it, if a text can be longer."""
        window, types = self.config.get("sliding_window"), self.config.get("layer_types")
        off = self.config.get("use_sliding_window") is False or (types and "sliding_attention" not in types)
        # Only families that have a window at all read the key; Llama carries it for others.
        if not window or off or self.model_type == "llama":
            return None
        return window if self.limit is None or window < self.limit else None

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()


def read(folder: Path) -> Layout:
    """ValueError if `folder` has no config.json, or a file of it is no JSON."""
    config = _json(folder / "config.json")
    if config is None:
        raise ValueError(f"{folder} has no config.json, so it is not a saved model; give the directory of one")
    modules = _json(folder / "modules.json")
    place = next((row["path"] for row in modules or [] if row["type"].endswith(".Pooling")), None)
    pooling_config = _json(folder / place / "config.json") if place is not None else None
    facts = _json(folder / FACTS) or {}
    return Layout(
        folder=folder,
        config=config,
        modules=modules,
        pooling_config=pooling_config,
        transformer_config=_json(folder / "sentence_bert_config.json"),
        top_config=_json(folder / "config_sentence_transformers.json") or {},
        attention=facts.get("attention") or _attention(config),
        pooling=facts.get("pooling") or _pooling(config, pooling_config),
        normalize=facts.get("normalize", any(row["type"].endswith(".Normalize") for row in modules or [])),
        reason=facts.get("reason", ""),
    )


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _attention(config: dict[str, Any]) -> Literal["bidirectional", "causal"]:
    """As transformers from 5.4 on runs it."""
    model_type = config.get("model_type")
    flag = model_type == "gemma3_text" and config.get("use_bidirectional_attention") is True
    both = flag or config.get("is_causal") is False or (model_type in ENCODERS and not config.get("is_decoder"))
    return "bidirectional" if both else "causal"


def _pooling(config: dict[str, Any], pooling: dict[str, Any] | None) -> str:
    """As sentence-transformers pools; its default for a plain model is the mean, or the last token for a generator."""
    if pooling is None:
        generator = any(name.endswith("ForCausalLM") for name in config.get("architectures") or [])
        return "last" if generator and config.get("is_causal") is not False else "mean"
    if mode := pooling.get("pooling_mode"):
        return _MODES.get(mode, mode.removesuffix("_tokens"))
    return next((name for key, name in POOLINGS.items() if pooling.get(key)), "mean")
