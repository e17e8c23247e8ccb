"""What cannot be merged, and why: arguments, configurations, tokenizers, headers of weight files. No weight is read."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm2enc.artifact import Metadata
from llm2enc.errors import explained
from llm2enc.merging.arithmetic import METHODS
from llm2enc.merging.weights import Weights

# Of config.json: where a model comes from, how it is stored, what other programs look for. No state depends on these.
_HARMLESS = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "pruned_heads",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
# What an export or a conversion changes in the configuration of the base.
_CONVERTED = {
    "attention_dropout", "is_causal", "layer_types", "max_window_layers",
    "rope_local_base_freq", "rope_parameters", "rope_scaling", "sliding_window", "tie_word_embeddings",
    "use_bidirectional_attention", "use_sliding_window",
}  # fmt: skip


def wrong_arguments(
    folders: list[Path], out: Path, method: str, weights: list[float], base: str | Path | None, base_weight: float
) -> list[str]:
    """What is wrong with the call itself."""
    faults = []
    if len(folders) < (2 if base is None else 1):
        faults.append(f"{len(folders)} encoders to merge; give at least two, or one with a base")
    if method not in METHODS:
        faults.append(f"the method is {method!r}; expected one of {', '.join(METHODS)}")
    if len(weights) != len(folders):
        faults.append(f"{len(weights)} weights for {len(folders)} encoders; give one each")
    if not all(math.isfinite(weight) for weight in weights) or sum(weights) <= 0:
        faults.append(f"the weights {weights} must be finite and add up to more than 0")
    if method == "slerp" and any(weight < 0 for weight in weights):
        faults.append(f"the weights {weights} have a negative one, which means nothing on an arc; use the average")
    if not 0 <= base_weight <= 1:
        faults.append(f"base_weight is {base_weight}; it is the share of the base, 0 to 1")
    if (base is None) != (base_weight == 0):
        faults.append(f"base is {base} and base_weight is {base_weight}: give both or neither")
    if out.resolve() in {Path(place).resolve() for place in (*folders, *([] if base is None else [base]))}:
        faults.append(f"{out} is to be merged and to be written; choose another directory for the result")
    return faults


def differences(parents: list[Weights], metadata: list[Metadata], n: int) -> list[str]:
    """What keeps encoder `n` from being merged with the first one."""
    first, other = parents[0].folder, parents[n].folder
    ours, theirs = metadata[0], metadata[n]
    faults = [
        f"{name} is {getattr(theirs, name)!r}, not {getattr(ours, name)!r}"
        for name in ("attention", "pooling", "normalize")
        if getattr(ours, name) != getattr(theirs, name)
    ]
    if ours.head != theirs.head:
        faults.append(f"the head is {theirs.head}, not {ours.head}")
    for what, own, found in (
        ("another input format", ours.input.model_dump(), theirs.input.model_dump()),
        ("other model settings", _settings(first), _settings(other)),
        ("another tokenizer", _tokenizer(first), _tokenizer(other)),
    ):
        keys = sorted(key for key in own.keys() | found.keys() if own.get(key) != found.get(key))
        if keys:
            faults.append(f"{what} ({', '.join(keys)})")
    faults += _other_tensors(parents[0].headers, parents[n].headers)
    return [f"{other} cannot be merged with {first}: {'; '.join(faults)}"] if faults else []


def _other_tensors(ours: dict[str, tuple], theirs: dict[str, tuple]) -> list[str]:
    """How names, shapes and storage types differ."""
    faults = []
    alone = sorted(ours.keys() ^ theirs.keys())
    if alone:
        faults.append(f"{len(alone)} tensors are in one of them only, such as {alone[0]}")
    both = sorted(ours.keys() & theirs.keys())
    shaped = [f"{name} {theirs[name][0]}, not {ours[name][0]}" for name in both if ours[name][0] != theirs[name][0]]
    if shaped:
        faults.append(f"{len(shaped)} tensors have another shape, such as {shaped[0]}")
    typed = [f"{theirs[name][1]}, not {ours[name][1]}" for name in both if ours[name][1] != theirs[name][1]]
    if typed:
        faults.append(f"weights are stored as {typed[0]}: Encoder.load(folder, dtype=...).save(...) converts one")
    return faults


def _settings(folder: Path) -> dict[str, Any]:
    """The configuration of the text model, without what says nothing about the states of given ids."""
    with explained(str(folder / "config.json"), "get the file again"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in config.get("text_config", config).items() if name not in _HARMLESS}


def _tokenizer(folder: Path) -> dict[str, Any]:
    """tokenizer.json, without the padding and truncation that the last call left behind."""
    with suppress(FileNotFoundError), explained(str(folder / "tokenizer.json"), "get the file again"):
        data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return {name: value for name, value in data.items() if name not in ("padding", "truncation")}
    return {}


def names_in_base(parent: Weights, base: Weights) -> dict[str, str]:
    """Name in the decoder -> name in the base, which may put a prefix such as `model.` before all of them; {} if unlike."""
    first = next(iter(parent.files))
    for found in base.files:
        prefix = found.removesuffix(first)
        if found.endswith(first) and all(prefix + name in base.files for name in parent.files):
            return {name: prefix + name for name in parent.files}
    return {}


def unlike_base(parent: Weights, base: Weights) -> list[str]:
    """Why the decoder of `base` is not the one that `parent` came from."""
    names, first, root = names_in_base(parent, base), parent.folder, base.folder
    if not names:
        return [f"{root} does not have the tensors of {first} under any prefix, such as {next(iter(parent.files))}"]
    ours, theirs = _settings(first), _settings(root)
    keys = sorted(key for key in (ours.keys() & theirs.keys()) - _CONVERTED if ours[key] != theirs[key])
    faults = [f"other model settings ({', '.join(keys)})"] if keys else []
    floats = {"F64", "F32", "F16", "BF16"}
    for name, (shape, kind) in parent.headers.items():
        found, stored = base.headers[names[name]]
        if found != shape or (stored != kind and not {stored, kind} <= floats):
            faults.append(f"{names[name]} is {stored} {found}, not {kind} {shape}")
            break
    ours, theirs = (_tokenizer(folder).get("model", {}).get("vocab") for folder in (first, root))
    if ours is not None and theirs is not None and ours != theirs:
        faults.append("another vocabulary")
    return [f"{root} is no base of {first}: {'; '.join(faults)}"] if faults else []
