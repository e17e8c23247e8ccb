"""What can be made of a model, from its config.json alone: no weight is downloaded or read.

A known family is judged by `families.json` and the configuration at hand; an unknown one by the proof on its miniature.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm2enc.errors import CannotConvert, InputError
from llm2enc.model import limits
from llm2enc.model.backbone import Backbone
from llm2enc.model.families import causal_by_config, config_notes, families, text_config, with_common_direction
from llm2enc.model.layers import cut
from llm2enc.model.proof_record import Route
from llm2enc.model.quantized import quantization, quantized_reason
from llm2enc.model.sources import resolve
from llm2enc.model.weights import check_no_adapter

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

Verdict = Literal["convertible", "conditional", "refused"]

ECHO = "Echo embeddings work on any causal model: set `model.attention: causal` (recipes pocket-echo, echo-mistral-7b)"
LARGEST = 16 * 2**20  # bytes of a config.json; real ones have a few thousand
# Sizes beyond every real model: building their outline would take the machine down before anything could be said.
LIMITS = {
    "num_hidden_layers": 1000, "n_layer": 1000, "n_layers": 1000, "num_layers": 1000, "hidden_size": 2**17,
    "n_embd": 2**17, "vocab_size": 2**24, "num_attention_heads": 4096, "num_experts": 2**14, "n_routed_experts": 2**14,
    "num_local_experts": 2**14, "max_position_embeddings": 2**28,
}  # fmt: skip
# Keys that make transformers fetch or run something, which looking at a model must not do.
ACTIVE = (
    "auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "_experts_implementation", "experts_implementation",
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    index: int
    type: str
    """`full_attention`, `sliding_attention`, or what the family calls it."""
    attention: str
    """Class of the module that mixes tokens; empty if the model could not be outlined."""


@dataclass(frozen=True)
class Inspection:
    """What a conversion would meet."""

    name: str
    model_type: str
    verdict: Verdict
    reason: str
    """Why it is refused or conditional; empty if it is plainly convertible."""
    studied: bool
    """Whether the family is in the registry. If not, the verdict is the proof's on a tiny random model."""
    attention_route: Route
    """How packed rows are read: `packed`, `mask`, or `alone` for a model that stays causal."""
    layers: tuple[Layer, ...]
    sliding_window: int | None
    max_positions: int | None
    max_tokens: int | None
    """The longest input that is exact; more is refused, for the reason in `notes`. None: positions have no end."""
    hidden_size: int | None
    vocabulary: int | None
    parameters: int | None
    """Counted on an outline without weights; None if it could not be made."""
    notes: tuple[str, ...]
    alternative: str
    """What to do instead; empty unless the family is refused."""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return json.loads(json.dumps(asdict(self)))


def inspect(name: str | Path, revision: str | None = None, layers: int | None = None) -> Inspection:
    """The inspection of a hub id, a directory, a config.json, a GGUF file, a package with a model or `pocket`.

    layers  to keep, as `model.layers`

    raises  ValueError if there is no usable configuration
    """
    fields = _fields(str(name), revision)
    config, quantized = cut(_config(str(name), fields), layers), quantization(fields)
    known = families().get(config.model_type)
    decoder, parameters, fault = _outline(config)
    if known is None:
        verdict, reason, route = _judge(config)
    else:
        causal = causal_by_config(config)
        verdict = "refused" if causal else known["verdict"]
        reason = causal or known["reason"]
        route = "alone" if causal else "packed" if known["packed"] else "mask"
    alternative = ECHO if verdict == "refused" else ""
    if quantized:
        reasons = [reason] * (verdict == "refused") + [quantized_reason(str(name), quantized)]
        verdict, reason = "refused", "; and ".join(reasons)
    limit = limits.longest_input(config)
    notes = [*config_notes(config), *([f"no outline: {fault}"] if fault else [])]
    return Inspection(
        name=str(name),
        model_type=config.model_type,
        verdict=verdict,
        reason=reason,
        studied=known is not None,
        attention_route=route,
        layers=_layers(config, decoder),
        sliding_window=_window(config),
        max_positions=_size(config, *limits.SIZES),
        max_tokens=None if limit is None else limit.tokens,
        hidden_size=_size(config, "hidden_size", "n_embd", "d_model"),
        vocabulary=_size(config, "vocab_size"),
        parameters=parameters,
        notes=tuple(notes),
        alternative=alternative,
    )


# --------------------------------------------------------------------------------------------------------------- config


def _config(name: str, fields: dict[str, Any]) -> "PretrainedConfig":
    """The text decoder's configuration, read as data: nothing it names is fetched or run."""
    import transformers
    from transformers import CONFIG_MAPPING

    remote = "auto_map" in fields
    fields = _passive(fields)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise InputError(f"{name}: config.json has no model_type; it must say which family the model is of")
    if model_type not in CONFIG_MAPPING:
        advice = "it brings its own code, which is never run to look at it" if remote else "a newer release may know it"
        raise InputError(f"{name}: transformers {transformers.__version__} has no model_type {model_type!r}; {advice}")
    try:
        config = text_config(with_common_direction(CONFIG_MAPPING[model_type].from_dict(fields)))
    except Exception as error:  # each family checks its fields in its own way and raises what it likes
        raise InputError(f"{name}: not a usable {model_type} configuration: {_short(error)}") from error
    _check_sizes(name, config.to_dict())
    return config


def _fields(name: str, revision: str | None) -> dict[str, Any]:
    path = Path(resolve(name, revision, weights=False))
    if path.is_dir():
        check_no_adapter(str(path))
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        path = _from_hub(name, revision)
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path} has {path.stat().st_size} bytes; a config.json has a few thousand")
    try:
        fields = json.loads(path.read_bytes(), object_hook=_special_float)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {_short(error)}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds {type(fields).__name__}, a configuration is an object")
    return fields


def _special_float(value: dict[str, Any]) -> Any:
    """The number that transformers writes as an object because JSON has no infinity."""
    number = value.get("__float__")
    return float(number) if len(value) == 1 and number in ("NaN", "Infinity", "-Infinity") else value


def _from_hub(name: str, revision: str | None) -> Path:
    from transformers.utils import cached_file

    try:
        return Path(cached_file(name, "config.json", revision=revision))
    except Exception as error:  # no network, no such repository, a gated one: the hub client has an error for each
        raise InputError(
            f"no config.json for {name!r}: give a hub id, a directory with config.json, or a config.json ({_short(error)})"
        ) from error


def _passive(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, and those of nested configurations, without the keys that make transformers act."""
    return {
        key: _passive(value) if isinstance(value, dict) else value for key, value in fields.items() if key not in ACTIVE
    }


def _check_sizes(name: str, fields: dict[str, Any]) -> None:
    for key, limit in LIMITS.items():
        value = fields.get(key)
        if isinstance(value, int) and not 0 <= value <= limit:
            raise InputError(f"{name}: config.json says {key} = {value}; a model has between 0 and {limit}")


# -------------------------------------------------------------------------------------------------------------- verdict


def _judge(config: "PretrainedConfig") -> tuple[Verdict, str, Route]:
    """Verdict, reason and route of a family nobody has studied: the proof on its miniature."""
    from llm2enc.model.proof import prove
    from llm2enc.model.tiny_random import miniature

    try:
        backbone = Backbone(miniature(config), bidirectional=True)
        prove(backbone)
    except CannotConvert as error:
        return "refused", str(error).partition(": ")[2].partition(". Echo")[0], "alone"
    except ValueError as error:
        return "conditional", f"not studied, and {error}; the proof at load decides", "packed"
    return (
        "conditional",
        "not studied; a tiny random model of it passes the proof, which runs again at load",
        backbone.route,
    )


def _outline(config: "PretrainedConfig") -> tuple["nn.Module | None", int | None, str]:
    """The model on the meta device, its parameters, and why there is none."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    except Exception as error:  # the constructor of whatever family the file names
        return None, None, _short(error)
    return model, sum(parameter.numel() for parameter in model.parameters()), ""


def _layers(config: "PretrainedConfig", decoder: "nn.Module | None") -> tuple[Layer, ...]:
    from llm2enc.model.hooks import decoder_layers
    from llm2enc.model.proof import mixers

    types = getattr(config, "layer_types", None)
    count = _size(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or len(types or [])
    plain = "sliding_attention" if _window(config) and not types else "full_attention"
    named = [] if decoder is None else [mixers(layer) for _, layer in decoder_layers(decoder)]
    return tuple(
        Layer(
            index=index,
            type=types[index] if types and index < len(types) else plain,
            attention=", ".join(named[index]) if index < len(named) else "",
        )
        for index in range(count)
    )


def _window(config: "PretrainedConfig") -> int | None:
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return _size(config, "sliding_window", "sliding_window_size", "attention_window_size", "local_attention") or None


def _size(config: "PretrainedConfig", *names: str) -> int | None:
    """The first of the named fields that is a number."""
    values = [getattr(config, name, None) for name in names]
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
