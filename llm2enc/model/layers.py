"""The first layers of a model: `model.layers: N` cuts the configuration, and everything behind it sees a smaller model.

What a layer does must not depend on how many there are. That is checked on models without weights before any is read: the
first N layers of the whole one have the parts and settings of the smaller one's, so that the smaller model's states are
those of layer N of the whole, through the same final norm.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from llm2enc.errors import InputError, explained
from llm2enc.model.families import text_config
from llm2enc.model.hooks import decoder_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PLAIN = (bool, int, float, str, type(None))


def cut(config: "PretrainedConfig", layers: int | None, trust_remote_code: bool = False) -> "PretrainedConfig":
    """The configuration with the first `layers` decoder layers, every list of one entry a layer included.

    raises  InputError if there are not so many, or the layers of the family depend on how many follow
    """
    if layers is None:
        return config
    decoder = text_config(config)
    depth, family = getattr(decoder, "num_hidden_layers", None), decoder.model_type
    if not isinstance(depth, int) or not 0 < layers <= depth:
        raise InputError(f"`model.layers: {layers}`: {family} has {depth} layers to keep the first of")
    shared = getattr(decoder, "num_kv_shared_layers", None)
    if shared and layers < depth:
        raise InputError(
            f"`model.layers: {layers}`: the last {shared} layers of {family} read keys and values of layers before them, "
            "counted from the end, so it cannot be cut; leave `layers` out"
        )
    smaller = copy.deepcopy(config)
    for name, value in vars(text_config(smaller)).copy().items():
        if isinstance(value, list | tuple) and len(value) == depth and not name.endswith("_token_id"):
            setattr(text_config(smaller), name, value[:layers])
    text_config(smaller).num_hidden_layers = layers
    with explained(f"`model.layers: {layers}` of {family}", "leave `layers` out"):
        _check(*(_outline(one, trust_remote_code) for one in (config, smaller)), depth, layers, family)
    return smaller


def _outline(config: "PretrainedConfig", trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)


def _check(whole: nn.Module, first: nn.Module, depth: int, layers: int, family: str) -> None:
    """InputError unless `first` is the beginning of `whole`: equal layers, and equal parts around them."""
    beyond = {f"{path}." for path, _ in decoder_layers(whole)[layers:]}
    parts = {name: part for name, part in whole.named_modules() if not f"{name}.".startswith(tuple(beyond))}
    kept = dict(first.named_modules())
    odd = parts.keys() ^ kept.keys()
    odd |= {name for name in parts.keys() & kept.keys() if not _alike(parts[name], kept[name], (depth, layers))}
    if len(decoder_layers(first)) != layers or odd:
        raise InputError(
            f"`model.layers: {layers}`: the layers of {family} depend on how many there are ({', '.join(sorted(odd)[:3])}), "
            "so it cannot be cut; leave `layers` out"
        )


def _alike(one: nn.Module, other: nn.Module, counts: tuple[int, int]) -> bool:
    """Whether two modules have one class, equal shapes, and all plain values of the other are the one's as well.

    The other may lack what the one has for kinds of layers that are gone, and each may note its own number of layers.
    """
    shapes = [{name: p.shape for name, p in module.named_parameters(recurse=False)} for module in (one, other)]
    plain = {key: value for key, value in vars(other).items() if isinstance(value, _PLAIN)}
    pairs = [(vars(one).get(key, ...), value) for key, value in plain.items()]
    return type(one) is type(other) and shapes[0] == shapes[1] and all(a == b or (a, b) == counts for a, b in pairs)
