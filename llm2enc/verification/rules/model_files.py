"""A saved directory's files, and what they mean to sentence-transformers and transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm2enc.artifact import METADATA_FILE, read_metadata
from llm2enc.errors import InputError
from llm2enc.model import POOLERS

POOLINGS = {  # keys of 1_Pooling/config.json; the last two are no pooling of ours
    **{f"pooling_mode_{pooler.flag}": name for name, pooler in POOLERS.items()},
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
_MODES = {pooler.mode: name for name, pooler in POOLERS.items()}  # of the newer schema; others as above
# Families that attend both ways without being told.
ENCODERS = "bert roberta xlm-roberta camembert distilbert mpnet deberta-v2 modernbert nomic_bert".split()


@dataclass(frozen=True)
class ModelFiles:
    """The files that engines read; and what the directory means: attention, pooling, normalize, reason."""

    folder: Path
    config: dict[str, Any]
    modules: list[str] | None  # classes in modules.json; None without one
    pooling_config: dict[str, Any] | None  # config.json of the first pooling module; None without one
    transformer_config: dict[str, Any]  # sentence_bert_config.json
    prompts: dict[str, str]  # those that are not empty
    default_prompt: str  # what sentence-transformers puts before every text unless told otherwise
    stated_pooling: str  # by its files: first, mean, last, weighted_mean, max, mean_sqrt_len, or several joined by +
    normalizes: bool  # whether modules.json has a module for it
    attention: Literal["bidirectional", "causal"]
    pooling: str
    normalize: bool
    reason: str  # why sentence-transformers itself cannot read this model as llm2enc does; empty if it can

    @property
    def model_type(self) -> str:
        return self.config.get("model_type", "")

    @property
    def architecture(self) -> str:
        """The first class of config.json without its last words: Llama, Gemma3."""
        name = next(iter(self.config.get("architectures") or []), "")
        return name.removesuffix("ForCausalLM").removesuffix("Model").removesuffix("Text")

    @property
    def limit(self) -> int | None:
        """Tokens of a text at most, as sentence-transformers cuts it; None where the files do not say."""
        own = self.transformer_config.get("max_seq_length")
        return own or self.config.get("max_position_embeddings") or self.config.get("n_positions")

    @property
    def scaling(self) -> str:
        """The first rotary scaling, of one for all layers or one per kind of layer; empty for the default."""
        rows = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        each = rows.values() if rows and all(isinstance(row, dict) for row in rows.values()) else [rows]
        types = [row.get("rope_type") or row.get("type") or "default" for row in each]
        return next((name for name in types if name != "default"), "")

    @property
    def window(self) -> int | None:
        """Tokens that a layer with a sliding window reads, as config.json states it, if a text can be longer."""
        window, types = self.config.get("sliding_window"), self.config.get("layer_types")
        off = self.config.get("use_sliding_window") is False or (types and "sliding_attention" not in types)
        # Only families that have a window at all read the key; Llama carries it for others.
        if not window or off or self.model_type == "llama":
            return None
        return window if self.limit is None or window < self.limit else None

    @property
    def has_dense(self) -> bool:
        """Whether a projection follows the pooling."""
        return any(name.endswith(".Dense") for name in self.modules or [])

    @property
    def own_modules(self) -> str:
        """Modules whose code the directory brings."""
        return ", ".join(name for name in self.modules or [] if not name.startswith("sentence_transformers."))

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()


def read(folder: Path) -> ModelFiles:
    """ValueError if `folder` has no config.json, or a file of it is no JSON."""
    config, rows = (_json(folder / name) for name in ("config.json", "modules.json"))
    if config is None:
        raise InputError(f"{folder} has no config.json, so it is not a saved model; give the directory of one")
    metadata = read_metadata(folder) if (folder / METADATA_FILE).is_file() else None
    top = _json(folder / "config_sentence_transformers.json") or {}
    place = next((row["path"] for row in rows or [] if row["type"].endswith(".Pooling")), None)
    pooling_config = _json(folder / place / "config.json") if place is not None else None
    prompts = {name: prompt for name, prompt in (top.get("prompts") or {}).items() if prompt}
    modules = None if rows is None else [row["type"] for row in rows]
    stated, normalizes = _pooling(config, pooling_config), any(name.endswith(".Normalize") for name in modules or [])
    return ModelFiles(
        folder,
        config,
        modules,
        pooling_config,
        transformer_config=_json(folder / "sentence_bert_config.json") or {},
        prompts=prompts,
        default_prompt=prompts.get(top.get("default_prompt_name") or "", ""),
        stated_pooling=stated,
        normalizes=normalizes,
        attention=metadata.attention if metadata else _attention(config),
        pooling=metadata.pooling if metadata else stated,
        normalize=metadata.normalize if metadata else normalizes,
        reason=metadata.reason if metadata else "",
    )


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


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
    mode = str(pooling.get("pooling_mode") or "")
    stated = {name for key, name in POOLINGS.items() if pooling.get(key)} | {
        _MODES.get(mode, mode.removesuffix("_tokens"))
    }
    return "+".join(sorted(stated - {""})) or "mean"
