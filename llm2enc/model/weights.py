"""A model's weights from its files: each tensor in its place, or an error that names those that are not.

transformers draws at random what it does not find, and passes over what it does not know, with a warning at most. What
counts here as missing is what it says of itself: tied weights, recomputed buffers and tensors that a family leaves out are
its own declarations. A tensor that the file has and the model lacks is passed over only where the architecture that
config.json names has a module for it: the head of a causal model, the vision tower of one that reads images.
"""

import json
import logging
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm2enc.errors import InputError
from llm2enc.model.families import decoder_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_log = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What DataParallel and PEFT put before all names, and torch.compile, FSDP and checkpointing before any module's.
_WRAPPED = re.compile(
    r"^(?:module|base_model\.model)\.|(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_LFS = b"version https://git-lfs"


def load_model(
    auto: Any,
    name: str,
    config: "PretrainedConfig",
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> "PreTrainedModel":
    """The model of a directory or hub id by `auto` (AutoModel, AutoModelForCausalLM), with every weight from its files.

    The decoder alone, where the files lack something outside of it: a language-model head, a vision tower.

    options  of from_pretrained
    raises   InputError for a tensor that is missing, unknown or of another shape, for a file that was cut, and for an
             adapter beside the weights
    """
    check_no_adapter(name, revision)
    files = _weight_files(name, revision)
    own = {tensor: unwrapped(tensor) for file in files for tensor in tensor_shapes(file)}
    wrapped = [tensor for tensor, clean in own.items() if tensor != clean]
    options |= {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        if wrapped:
            _log.warning(
                "%s: %d of %d tensor names carry a wrapper, such as %s; they are read as %s and so on",
                name, len(wrapped), len(own), wrapped[0], own[wrapped[0]],
            )  # fmt: skip
            with torch.device("meta"):  # the classes behind `auto` want a name, which state_dict rules out
                kind = type(auto.from_config(config, trust_remote_code=trust_remote_code))
            state = _renamed(files, own)
            model, found = kind.from_pretrained(None, state_dict=state, trust_remote_code=False, **options)
        else:
            model, found = auto.from_pretrained(
                name, revision=revision, use_safetensors=True, trust_remote_code=trust_remote_code, **options
            )
    except RuntimeError as error:  # such as experts of which one is missing, so that they do not stack
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"the weights of {name} do not become those of {config.model_type} ({' '.join(str(error).split())[:300]}); "
            "get its files again"
        ) from error
    return _complete(model, found, name, revision)


def check_no_adapter(name: str, revision: str | None = None) -> None:
    """InputError, with the lines that merge it, if there is an adapter in the place of a model or beside its weights."""
    path = find_file(name, ADAPTER_CONFIG, revision)
    if path is None:
        return
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is no adapter's configuration ({error}); take it away, or get it again") from None
    weights = find_file(name, "adapter_model.safetensors", revision)
    bare = weights is not None and any(key.startswith("base_model.model.layers.") for key in tensor_shapes(weights))
    auto = "AutoModel" if bare else "AutoModelForCausalLM"  # PEFT passes over an adapter whose names do not fit
    if find_file(name, "config.json", revision) is None:
        raise InputError(
            f"{name} holds an adapter, not a model: it was trained on {base}. Merge it into that, and give the result: "
            f"{_merging(base or 'BASE', name, auto)}"
        )
    raise InputError(
        f"{name} holds an adapter ({ADAPTER_CONFIG}) beside its weights, and it is not said whether the model is meant with "
        "it or without. Move the adapter's files to a folder of their own, and give the weights alone, or the result of "
        f"merging both: {_merging(name, 'ADAPTER', auto)}"
    )


def _merging(base: str, adapter: str, auto: str) -> str:
    code = (
        f"from peft import PeftModel; from transformers import {auto} as M, AutoTokenizer as T; "
        f"PeftModel.from_pretrained(M.from_pretrained({base!r}), {adapter!r}).merge_and_unload()"
        f".save_pretrained('merged'); T.from_pretrained({base!r}).save_pretrained('merged')"
    )
    return f"python -c {shlex.quote(code)}"


# --------------------------------------------------------------------------------------------------------------- files


def find_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """The path of a file of a directory or hub repository; None if it has none, or cannot be reached."""
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        return Path(name, file) if Path(name, file).is_file() else None
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    found = cached_file(name, file, revision=revision, **{f"_raise_exceptions_for_{kind}": False for kind in quiet})
    return None if found is None else Path(found)


def _weight_files(name: str, revision: str | None) -> list[Path]:
    """The safetensors files that transformers would read; none where it has to say itself what is wrong."""
    whole = find_file(name, _WEIGHTS, revision)
    if whole is not None:
        return [whole]
    index = find_file(name, _INDEX, revision)
    if index is None:
        return []
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{index} is no index of weights ({type(error).__name__}: {error}); get it again") from None
    files = {shard: find_file(name, shard, revision) for shard in sorted(shards)}
    absent = [shard for shard, path in files.items() if path is None]
    if absent:
        raise InputError(f"{name} lacks {_named(absent)} of its weights, by {_INDEX}; get the files again")
    return [path for path in files.values() if path is not None]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file, from its header.

    raises  InputError if the file is not as long as its header says
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 8 + length:
            what = (
                "a pointer of git-lfs: run `git lfs pull`" if _LFS.startswith(start) else "cut, or no safetensors file"
            )
            raise InputError(f"{path} has {size} bytes and is {what}; get it again")
        try:
            fields = json.loads(file.read(length))
            fields.pop("__metadata__", None)
            expected = 8 + length + max((field["data_offsets"][1] for field in fields.values()), default=0)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise InputError(f"{path} is no safetensors file ({type(error).__name__}: {error}); get it again") from None
    if size != expected:
        raise InputError(f"{path} has {size} bytes, but its header describes {expected}; get it again")
    return {tensor: tuple(field["shape"]) for tensor, field in fields.items()}


def unwrapped(tensor: str) -> str:
    """A tensor's name without what wrappers of a model put into it."""
    while (clean := _WRAPPED.sub("", tensor)) != tensor:
        tensor = clean
    return tensor


def _renamed(files: Iterable[Path], names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in files:
        for tensor, value in load_file(file).items():
            if names[tensor] in state:
                raise InputError(f"{file}: {tensor} and another tensor are both {names[tensor]} without their wrappers")
            state[names[tensor]] = value
    return state


# ------------------------------------------------------------------------------------------------------------- tensors


def check_tensors(path: Path, own: Mapping[str, tuple[int, ...]], whose: str, remedy: str) -> None:
    """InputError unless a safetensors file is whole and holds the tensors `own`, by name and shape; `whose` they are."""
    found = tensor_shapes(path)
    _refuse(
        path,
        whose,
        sorted(own.keys() - found.keys()),
        sorted(found.keys() - own.keys()),
        [(name, found[name], own[name]) for name in sorted(own.keys() & found.keys()) if own[name] != found[name]],
        remedy,
    )


def _complete(model: "PreTrainedModel", found: Mapping[str, Any], name: str, revision: str | None) -> "PreTrainedModel":
    """The model, or its decoder where only that is whole. `found`: what transformers says of the loading."""
    decoder = decoder_of(model)
    within = {f"{path}." if path else "" for path, module in model.named_modules() if module is decoder}
    missing = sorted(tensor for tensor in found["missing_keys"] if tensor.startswith(tuple(within)))
    unneeded = _not_in(model, name, revision) if found["unexpected_keys"] else set()
    left_out = {key for key in found["unexpected_keys"] if any(f".{path}." in f".{key}" for path in unneeded)}
    others = sorted(found["unexpected_keys"] - left_out)
    unmerged = any(".lora_" in tensor or ".base_layer." in tensor for tensor in others)
    remedy = "merge its adapter before saving it (merge_and_unload)" if unmerged else "get or write its files again"
    _refuse(name, f"a {type(model).__name__}", missing, others, sorted(found["mismatched_keys"]), remedy)
    if left_out:
        _log.info("%s: left out, as an encoder has no use for them: %s", name, _named(sorted(left_out)))
    if found["missing_keys"]:
        _log.info("%s: the decoder is used alone, for lack of %s", name, _named(sorted(found["missing_keys"])))
        return decoder
    return model


def _not_in(model: "PreTrainedModel", name: str, revision: str | None) -> set[str]:
    """Paths of the outermost modules that the architecture of config.json has and the model does not."""
    import transformers

    path = find_file(name, "config.json", revision)
    names = json.loads(path.read_text(encoding="utf-8")).get("architectures") if path else None
    kind = getattr(transformers, names[0], None) if names else type(model)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) and kind.config_class):
        return set()  # an architecture of the repository's own code
    config = kind.config_class.from_pretrained(name, revision=revision, trust_remote_code=False)
    with torch.device("meta"):
        declared = _paths(kind(config))
    own = _paths(model) | {""}
    return {path for path in declared - own if path.rpartition(".")[0] in own}


def _paths(model: "PreTrainedModel") -> set[str]:
    """Paths of the modules, as they are without the head around them."""
    base = model.base_model_prefix
    return {path.removeprefix(f"{base}.") for path, _ in model.named_modules()} - {base}


def _refuse(
    what: str | Path,
    whose: str,
    missing: list[str],
    unexpected: list[str],
    reshaped: list[tuple[str, Any, Any]],
    remedy: str,
) -> None:
    """InputError that names the first of each, and how many there are."""
    shapes = [f"{name} {tuple(theirs)}, not {tuple(ours)}" for name, theirs, ours in reshaped]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    said = "; ".join(f"{len(names)} {kind} ({_named(names)})" for kind, names in faults.items() if names)
    if said:
        raise InputError(f"the tensors of {what} are not those of {whose}: {said}; {remedy}")


def _named(names: list[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
